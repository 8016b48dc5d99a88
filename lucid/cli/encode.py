"""`lucid encode`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lucid.cli.arguments import File, Json, Model, checkpoint_named, lines_of
from lucid.cli.errors import say
from lucid.cli.streams import Line, open_lines, run_stream, to_json
from lucid.hub import BUILTIN

if TYPE_CHECKING:
    from lucid.text import BERTTokenizerFast


def encode(
    model: Model = BUILTIN,
    texts: Annotated[list[str] | None, typer.Argument(metavar="TEXT...", help="Texts; - reads lines.")] = None,
    file: File = None,
    special: Annotated[bool, typer.Option("--special/--no-special", help="Put [CLS] and [SEP] around each text.")] = True,
    as_json: Json = False,
) -> None:
    """Show the tokens of texts: ids, and where each stands in its text.

    TEXT... prints a table for each. Lines of a file or a pipe print rows of
    line, tokens and ids, with tabs between them. --json prints one object a
    text, with offsets in characters. Only the tokenizer is loaded.

    For example:

    [cyan]lucid encode "Unaffable, isn't it?"[/cyan]

    [cyan]lucid encode --file lines.txt | cut -f3[/cyan]
    """
    from lucid.text import BERTTokenizerFast

    with open_lines(lines_of(texts, file)) as stream:
        tokenizer = BERTTokenizerFast.from_pretrained(checkpoint_named(model))
        if stream is not None:
            run_stream(stream, lambda texts: _encoded(tokenizer, texts, special), partial(_record, as_json))
            return
        for text, result in zip(texts or [], _encoded(tokenizer, texts or [], special), strict=True):
            if as_json:
                print(to_json({"text": text, **result}))
            else:
                _print_table(text, result)


def _record(as_json: bool, line: Line, result: Any) -> str | None:
    if as_json:
        found = {"error": result} if isinstance(result, str) else result
        return to_json({"line": line.number, "text": line.text, **found})
    if isinstance(result, str):
        say(f"line {line.number}: {result}")
        return None
    return "\t".join((str(line.number), " ".join(result["tokens"]), " ".join(map(str, result["ids"]))))


def _encoded(tokenizer: BERTTokenizerFast, texts: list[str], special: bool) -> list[dict[str, Any]]:
    encoded = tokenizer.encode_batch(texts, padding=False, add_special_tokens=special, return_offsets=True)
    return [
        {"tokens": tokenizer.convert_ids_to_tokens(ids), "ids": ids, "offsets": offsets}
        for ids, offsets in zip(encoded["input_ids"], encoded["offsets"], strict=True)
    ]


def _print_table(text: str, result: dict[str, Any]) -> None:
    from lucid.cli.tables import add_row, make_table, show

    table = make_table(text, f"{len(result['ids'])} tokens")
    table.add_column("token")
    table.add_column("id", justify="right")
    table.add_column("characters", justify="right")
    table.add_column("in the text")
    for token, token_id, (begin, end) in zip(result["tokens"], result["ids"], result["offsets"], strict=True):
        add_row(table, token, str(token_id), f"{begin}-{end}" if end else "", text[begin:end])
    show(table)
