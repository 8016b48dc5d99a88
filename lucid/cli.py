"""The `lucid` command."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="BERT masked language modelling without PyTorch.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


@app.callback(invoke_without_command=True)
def main(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """BERT masked language modelling without PyTorch."""
    if version:
        import lucid

        print(f"lucid {lucid.__version__}")
        raise typer.Exit
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())


@app.command()
def config() -> None:
    """Print version, instruction set, threads and dependencies."""
    import lucid

    lucid.show_config()


@app.command("fill-mask")
def fill_mask(
    texts: Annotated[list[str], typer.Argument(metavar="TEXT...", help="Texts with a [MASK] where a word is to be guessed.")],
    model: Annotated[
        Path, typer.Option("--model", "-m", metavar="DIR", help="Folder with config.json, model.safetensors and a tokenizer.")
    ],
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, help="Guesses for each mask.")] = 5,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Threads; the default is every CPU allowed.")] = None,
) -> None:
    """Guess the words behind [MASK].

    Example: lucid fill-mask "Paris is the [MASK] of France." --model DIR --top-k 5
    """
    import lucid
    from lucid.models import BERTForMaskedLM

    lucid.set_num_threads(threads)
    try:
        masked_lm = BERTForMaskedLM.from_pretrained(model)
        fills = masked_lm.fill_mask(texts, top_k=top_k)
    except (OSError, TypeError, ValueError, IndexError, MemoryError) as error:
        print(f"lucid: {error}", file=sys.stderr)
        raise typer.Exit(1) from error
    _print_fills(texts, fills)


def _print_fills(texts: list[str], fills: list[list[list[object]]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    for text, masks in zip(texts, fills, strict=True):
        for number, guesses in enumerate(masks, 1):
            title = text if len(masks) == 1 else f"{text}  (mask {number} of {len(masks)})"
            table = Table(title=Text(title), title_justify="left")
            table.add_column("probability", justify="right")
            table.add_column("word")
            table.add_column("text")
            for fill in guesses:
                table.add_row(f"{fill.score:.4f}", Text(fill.token_str), Text(fill.sequence))  # type: ignore[attr-defined]
            console.print(table)


if __name__ == "__main__":
    app()
