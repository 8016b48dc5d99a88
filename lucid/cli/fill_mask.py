"""`lucid fill-mask`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from lucid.cli.arguments import Device, Dtype, File, Json, Model, Threads, checkpoint_named, lines_of, load_masked_lm
from lucid.cli.errors import say
from lucid.cli.streams import Line, open_lines, run_stream, to_json
from lucid.hub import BUILTIN

if TYPE_CHECKING:
    from lucid.models import BERTForMaskedLM, JointFill, MaskFill

# A table shows longer texts around the mask only, this many characters on either side.
_LONG_TEXT, _EXCERPT = 240, 60


def fill_mask(
    model: Model = BUILTIN,
    texts: Annotated[list[str] | None, typer.Argument(metavar="TEXT...", help="Texts with [MASK] in them; - reads lines.")] = None,
    file: File = None,
    top_k: Annotated[
        int | None, typer.Option("--top-k", "-k", min=1, help="Guesses for each mask. [dim]Default: 5, or all targets.[/dim]")
    ] = None,
    targets: Annotated[
        str | None,
        typer.Option("--targets", metavar="WORD,WORD,...", help="Rank these words only. [dim]@FILE reads them, one a line.[/dim]"),
    ] = None,
    joint: Annotated[bool, typer.Option("--joint", help="Fill the masks of a text together.")] = False,
    beam_width: Annotated[int, typer.Option("--beam-width", min=1, help="With --joint: fillings kept from mask to mask.")] = 8,
    as_json: Json = False,
    device: Device = "cpu",
    dtype: Dtype = None,
    threads: Threads = None,
) -> None:
    """Guess the words behind [MASK].

    TEXT... prints a table for each mask. Lines of a file or a pipe print rows
    of line, mask, probability, word and text, with tabs between them (--joint:
    line, log-probability, words, text). --json prints one object a text.
    A line without [MASK] is an error of its own; blank lines are skipped.

    For example:

    [cyan]lucid fill-mask "Paris is the [MASK] of France."[/cyan]

    [cyan]lucid fill-mask "He plays the [MASK]." --targets "piano,double bass"[/cyan]

    [cyan]lucid fill-mask "[MASK] is the [MASK] of France." --joint[/cyan]

    [cyan]lucid fill-mask --file lines.txt --json > fills.jsonl[/cyan]

    [cyan]zcat lines.gz | lucid fill-mask - | head[/cyan]
    """
    words = None if targets is None else _words(targets)
    with open_lines(lines_of(texts, file)) as stream:
        masked_lm = load_masked_lm(checkpoint_named(model), device, dtype, threads)
        settings: dict[str, Any] = {
            "top_k": top_k or (len(words) if words else 5),
            "targets": words,
            "joint": joint,
            "beam_width": beam_width,
        }
        masked_lm.fill_mask([], **settings)  # a wrong setting is one error, not one for every line
        if stream is not None:
            _fill_stream(masked_lm, stream, as_json, settings)
        elif as_json:
            several = texts or []
            for text, result in zip(several, _answer(masked_lm, several, settings), strict=True):
                print(_json(text, result))
        else:
            _print_tables(masked_lm, texts or [], _answer(masked_lm, texts or [], settings))


def _fill_stream(masked_lm: BERTForMaskedLM, stream: BinaryIO, as_json: bool, settings: dict[str, Any]) -> None:
    def to_record(line: Line, result: Any) -> str | None:
        if as_json:
            return _json(line.text, result, line.number)
        if isinstance(result, str):
            say(f"line {line.number}: {result}")
            return None
        if note := _window_note(masked_lm, line.text, _windows(result)):
            say(f"line {line.number}: {note}")
        return "\n".join(["\t".join((str(line.number), *row)) for row in _rows(result)])

    assert masked_lm.tokenizer is not None
    mask = masked_lm.tokenizer.mask_token
    run_stream(stream, lambda texts: _answer(masked_lm, texts, settings), to_record, is_likely=lambda text: mask in text)


def _answer(masked_lm: BERTForMaskedLM, texts: list[str], settings: dict[str, Any]) -> list[Any]:
    if len(texts) == 1:  # an error then speaks of the text, not of its place in a list
        return [masked_lm.fill_mask(texts[0], **settings)]
    fills: list[Any] = masked_lm.fill_mask(texts, **settings)
    return fills


def _words(targets: str) -> list[str]:
    """Return the words of --targets."""
    if targets.startswith("@"):
        found = Path(targets[1:]).read_text(encoding="utf-8").splitlines()
    else:
        found = targets.split(",")
    words = [word.strip() for word in found if word.strip()]
    if not words:
        raise typer.BadParameter(f"--targets {targets!r} has no words")
    return words


def _json(text: str, result: Any, number: int | None = None) -> str:
    """Return the record of a text; `result` is a str where there is none."""
    record: dict[str, Any] = {} if number is None else {"line": number}
    record["text"] = text
    if isinstance(result, str):
        record["error"] = result
    elif result and isinstance(result[0], list):
        record["masks"] = [[_fields(fill) for fill in guesses] for guesses in result]
    else:
        record["fillings"] = [_fields(filling) for filling in result]
    return to_json(record)


def _fields(fill: MaskFill | JointFill) -> dict[str, Any]:
    return {name: getattr(fill, name) for name in type(fill).__dataclass_fields__}


def _rows(result: list[Any]) -> list[tuple[str, ...]]:
    """Return what follows the line's number in each row of a text."""
    if isinstance(result[0], list):
        return [
            (str(mask), f"{fill.score:.6g}", fill.token_str, fill.sequence) for mask, guesses in enumerate(result, 1) for fill in guesses
        ]
    return [(f"{filling.log_prob:.6f}", " ".join(filling.words), filling.sequence) for filling in result]


def _print_tables(masked_lm: BERTForMaskedLM, texts: list[str], fills: list[Any]) -> None:
    from lucid.cli.tables import show

    assert masked_lm.tokenizer is not None
    mask = masked_lm.tokenizer.mask_token
    for text, result in zip(texts, fills, strict=True):
        parts = text.split(mask)
        if isinstance(result[0], list):
            for number, guesses in enumerate(result, 1):
                title = _shortened(text) + (f"  (mask {number} of {len(result)})" if len(result) > 1 else "")
                note = _window_note(masked_lm, text, [guesses[0].window])
                show(_guesses_table(title, note, guesses, mask.join(parts[:number]), mask.join(parts[number:])))
        else:
            note = _window_note(masked_lm, text, _windows(result))
            show(_fillings_table(_shortened(text), note, result, parts))


def _guesses_table(title: str, note: str | None, guesses: list[MaskFill], before: str, after: str) -> Any:
    """Return the table of one mask, which stands between `before` and `after`."""
    from lucid.cli.tables import add_row, make_table

    has_pieces = any(fill.n_pieces > 1 for fill in guesses)
    table = make_table(title, note)
    table.add_column("probability", justify="right")
    table.add_column("word")
    if has_pieces:
        table.add_column("pieces", justify="right")
    table.add_column("text")
    for fill in guesses:
        probability = f"{fill.score:.4f}" if fill.score >= 1e-4 else f"{fill.score:.1e}"
        shown = fill.sequence if len(fill.sequence) <= _LONG_TEXT else _end(before) + fill.token_str + _start(after)
        add_row(table, probability, fill.token_str, *([str(fill.n_pieces)] if has_pieces else []), shown)
    return table


def _fillings_table(title: str, note: str | None, fillings: list[JointFill], parts: list[str]) -> Any:
    """Return the table of a text filled jointly; `parts` are what stands around its masks."""
    from lucid.cli.tables import add_row, make_table

    table = make_table(title, note)
    table.add_column("log-probability", justify="right")
    table.add_column("words")
    table.add_column("text")
    for filling in fillings:
        shown = filling.sequence
        if len(shown) > _LONG_TEXT:
            inner = [word + _middle(part) for word, part in zip(filling.words, parts[1:-1], strict=False)]
            shown = "".join([_end(parts[0]), *inner, filling.words[-1], _start(parts[-1])])
        add_row(table, f"{filling.log_prob:.4f}", " ".join(filling.words), shown)
    return table


def _windows(result: list[Any]) -> list[tuple[int, int] | None]:
    """Return what of a text was read for each of its masks."""
    return [guesses[0].window for guesses in result] if isinstance(result[0], list) else list(result[0].windows or [])


def _window_note(masked_lm: BERTForMaskedLM, text: str, windows: Iterable[tuple[int, int] | None]) -> str | None:
    """Say what of a long text was read."""
    read = sorted({window for window in windows if window is not None})
    if not read:
        return None
    assert masked_lm.tokenizer is not None
    spans = ", ".join(f"{begin + 1} to {end}" for begin, end in read)
    return f"The text is longer than the model can read: of its {len(masked_lm.tokenizer.tokenize(text))} tokens, {spans} were read."


def _shortened(text: str) -> str:
    return text if len(text) <= _LONG_TEXT else text[: 2 * _EXCERPT] + " … " + text[-_EXCERPT:]


def _end(text: str) -> str:
    return text if len(text) <= _EXCERPT else "… " + text[-_EXCERPT:]


def _start(text: str) -> str:
    return text if len(text) <= _EXCERPT else text[:_EXCERPT] + " …"


def _middle(text: str) -> str:
    return text if len(text) <= 2 * _EXCERPT else text[:_EXCERPT] + " … " + text[-_EXCERPT:]
