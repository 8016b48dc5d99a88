"""`lucid pretrain`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lucid.cli.arguments import Threads, checkpoint_named
from lucid.hub import BUILTIN

if TYPE_CHECKING:
    from lucid.training.run import Run

_DATA, _MODEL, _LENGTH, _RATE, _MASKS, _FOLDER = "Text", "Model", "Batches and length", "Optimizer", "Masks", "Run folder"


def _option(flag: str, panel: str, help_text: str, **settings: Any) -> Any:
    return typer.Option(flag, rich_help_panel=panel, help=help_text, **settings)


def pretrain(
    context: typer.Context,
    data: Annotated[list[str] | None, _option("--data", _DATA, "File, folder or pattern of text to learn from; again for more.")] = None,
    validation: Annotated[list[str] | None, _option("--validation", _DATA, "Text to evaluate on.")] = None,
    field: Annotated[str | None, _option("--field", _DATA, "Of JSON lines, the text. [dim]Default: text.[/dim]")] = None,
    size: Annotated[str | None, _option("--size", _MODEL, "A new model: tiny, mini, small, medium, base, large, or a config.json.")] = None,
    from_checkpoint: Annotated[
        str | None, _option("--from", _MODEL, "Go on from this checkpoint: a folder, a run, a hub name, or builtin.", metavar="DIR")
    ] = None,
    tokenizer: Annotated[str | None, _option("--tokenizer", _MODEL, "[dim]Default: the checkpoint's.[/dim]", metavar="DIR")] = None,
    dropout: Annotated[float | None, _option("--dropout", _MODEL, "[dim]Default: as configured; 0.1 for a size.[/dim]")] = None,
    steps: Annotated[int | None, _option("--steps", _LENGTH, "Steps to take, or")] = None,
    epochs: Annotated[float | None, _option("--epochs", _LENGTH, "passes over the text.")] = None,
    max_length: Annotated[int | None, _option("--max-length", _LENGTH, "Longest example, in tokens. [dim]Default: 128.[/dim]")] = None,
    batch_tokens: Annotated[int | None, _option("--batch-tokens", _LENGTH, "Tokens at once. [dim]Default: 4096.[/dim]")] = None,
    accumulate: Annotated[int | None, _option("--accumulate", _LENGTH, "Batches of a step. [dim]Default: 1.[/dim]")] = None,
    lr: Annotated[float | None, _option("--lr", _RATE, "Highest learning rate. [dim]Default: 5e-4, with --from 5e-5.[/dim]")] = None,
    warmup: Annotated[float | None, _option("--warmup", _RATE, "Share of the steps over which it rises. [dim]Default: 0.05.[/dim]")] = None,
    decay: Annotated[str | None, _option("--decay", _RATE, "How it falls: linear, cosine, constant. [dim]Default: linear.[/dim]")] = None,
    weight_decay: Annotated[float | None, _option("--weight-decay", _RATE, "[dim]Default: 0.01.[/dim]")] = None,
    clip: Annotated[float | None, _option("--clip", _RATE, "Largest norm of a gradient. [dim]Default: 1.[/dim]")] = None,
    beta2: Annotated[float | None, _option("--beta2", _RATE, "[dim]Default: 0.999.[/dim]")] = None,
    masking: Annotated[str | None, _option("--masking", _MASKS, "token, word (whole words) or span. [dim]Default: token.[/dim]")] = None,
    mask_share: Annotated[float | None, _option("--mask-share", _MASKS, "Tokens that are asked for. [dim]Default: 0.15.[/dim]")] = None,
    mask_replace: Annotated[float | None, _option("--mask-replace", _MASKS, "Of these, become \\[MASK]. [dim]Default: 0.8.[/dim]")] = None,
    random_replace: Annotated[
        float | None, _option("--random-replace", _MASKS, "Of these, a random word. [dim]Default: 0.1.[/dim]")
    ] = None,
    seed: Annotated[int | None, _option("--seed", _MASKS, "Of weights, order, masks and dropout. [dim]Default: 0.[/dim]")] = None,
    out: Annotated[str | None, _option("--out", _FOLDER, "Folder of the run.", metavar="DIR")] = None,
    resume: Annotated[bool, _option("--resume", _FOLDER, "Go on with the run in --out; begin it if it has not begun.")] = False,
    eval_every: Annotated[int | None, _option("--eval-every", _FOLDER, "Steps. [dim]Default: a tenth, at most 1000.[/dim]")] = None,
    eval_tokens: Annotated[int | None, _option("--eval-tokens", _FOLDER, "Evaluate on so many tokens. [dim]Default: all.[/dim]")] = None,
    save_every: Annotated[int | None, _option("--save-every", _FOLDER, "Steps. [dim]Default: a tenth, at most 1000.[/dim]")] = None,
    keep: Annotated[int | None, _option("--keep", _FOLDER, "Checkpoints to keep, beside the best. [dim]Default: 2.[/dim]")] = None,
    cache: Annotated[
        str | None, _option("--cache", _FOLDER, "For tokenised text. [dim]Default: in the run's folder.[/dim]", metavar="DIR")
    ] = None,
    device: Annotated[str | None, _option("--device", _FOLDER, "cpu or gpu. [dim]Default: cpu.[/dim]")] = None,
    dtype: Annotated[str | None, _option("--dtype", _FOLDER, "On the GPU: float32 or bfloat16. [dim]Default: float32.[/dim]")] = None,
    config: Annotated[Path | None, typer.Option("--config", metavar="FILE", help="TOML file with any of these options.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tokenise, time two steps, say what the run will cost, and stop.")] = False,
    threads: Threads = None,
) -> None:
    """Train a masked language model on your text.

    Text has a sentence or paragraph a line, and a blank line between documents;
    files may be packed (.gz .xz .zst), or JSON lines.
    SIGTERM and Ctrl-C save and stop; --resume goes on, with the same bits as a
    run that was never stopped. The run's folder gets pretrain.toml (all options),
    log.jsonl, curve.png (with matplotlib), checkpoints/ and, at the end, model/.

    For example:

    [cyan]lucid pretrain --from DIR --data texts/ --validation held-out.txt --epochs 1 --out run[/cyan]

    [cyan]lucid pretrain --size tiny --tokenizer tokenizer --data 'train-*.txt.xz' --steps 2000 --out run --dry-run[/cyan]

    [cyan]lucid pretrain --out run --resume[/cyan]
    """
    from lucid.cli.errors import say
    from lucid.training.loop import OPTIONS_FILE, pretrain
    from lucid.training.options import PretrainOptions, read_toml

    names = PretrainOptions.__dataclass_fields__
    values = {} if config is None else read_toml(config)
    given = {name: value for name, value in context.params.items() if name in names and value not in (None, [], ())}
    values |= {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    saved = Path(values.get("out", "")) / OPTIONS_FILE
    if resume and "out" in values and saved.exists():
        before = read_toml(saved)
        if "epochs" in values:
            before.pop("steps", None)
        values = {**before, **values}
    options = PretrainOptions(**_absolute(values))
    if dry_run:
        _dry_run(options)
        return
    outcome = pretrain(options, resume=resume)
    if outcome.stopped_by is not None:
        raise typer.Exit(128 + outcome.stopped_by)
    say(f"{outcome.n_steps:,} steps done: the model is in {outcome.folder}")


def _absolute(values: dict[str, Any]) -> dict[str, Any]:
    """Return the options with paths that hold wherever the run is resumed."""
    found = dict(values)
    for name in ("data", "validation"):
        if name in found:
            found[name] = tuple(os.path.abspath(path) for path in found[name])
    for name in ("tokenizer", "from_checkpoint"):
        if found.get(name) is not None:
            found[name] = os.fspath(checkpoint_named(found[name]))
    for name in ("tokenizer", "size", "from_checkpoint", "cache"):
        path = found.get(name)
        if path is not None and path != BUILTIN and (name == "cache" or os.path.exists(path)):
            found[name] = os.path.abspath(path)
    return found


def _dry_run(options: Any) -> None:
    import lucid
    from lucid.training.cost import measure_cost
    from lucid.training.run import put_together
    from lucid.training.view import duration

    lucid.set_num_threads(options.threads)
    run: Run = put_together(options)
    cost, corpus = measure_cost(run), run.corpus
    rows = {
        "text": f"{corpus.n_documents:,} documents, {corpus.n_lines:,} lines, {corpus.n_pieces:,} tokens; "
        f"{len(run.batches.examples):,} examples of {run.batches.examples.lengths.mean() + 2:.0f} tokens",
        "model": f"{run.config.num_hidden_layers} layers, {run.config.hidden_size} wide, {cost.n_parameters:,} parameters",
        "run": f"{cost.n_steps:,} steps, {cost.n_tokens:,} tokens, {cost.n_epochs:.3g} epochs",
        "operations": f"{cost.flops:.3g} in all",
        "memory": f"{cost.memory_bytes / 1e6:,.0f} MB (measured)",
        "speed": f"{cost.seconds_per_step:.3g} s a step, {cost.n_tokens / cost.seconds:,.0f} tokens/s, "
        f"{cost.flops / cost.seconds / 1e9:,.0f} GFLOP/s on {lucid.get_num_threads()} threads (measured)",
        "time": f"{duration(cost.seconds)}, and what evaluations and checkpoints take",
    }
    print("\n".join(f"{name:<10}  {value}" for name, value in rows.items()))
