"""`lucid train-tokenizer`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lucid.cli.arguments import Field


def train_tokenizer(
    files: Annotated[list[str], typer.Argument(metavar="FILES...", help="Text files, folders or patterns; .gz, .xz and .zst too.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder to write the tokenizer to.")],
    vocab_size: Annotated[int, typer.Option("--vocab-size", "-v", min=6, help="Words, the five special ones included.")] = 16_000,
    cased: Annotated[bool, typer.Option("--cased", help="Keep capitals and accents.")] = False,
    min_frequency: Annotated[int, typer.Option("--min-frequency", min=1, help="Join no pieces that are seen less often.")] = 2,
    field: Field = "text",
) -> None:
    """Train a WordPiece vocabulary on your text.

    The same text gives the same vocabulary. The folder gets tokenizer.json,
    vocab.txt and tokenizer_config.json, which lucid and transformers load.

    For example:

    [cyan]lucid train-tokenizer texts/ --vocab-size 8000 --out tokenizer[/cyan]

    [cyan]lucid train-tokenizer 'news-*.jsonl.gz' --field body --cased --out tokenizer[/cyan]
    """
    from lucid.data import check_sources, find_sources
    from lucid.data.sources import TextLines
    from lucid.text.training import train_tokenizer

    sources = find_sources(files)
    check_sources(sources, field)
    if any((out / name).exists() for name in ("tokenizer.json", "vocab.txt")):
        raise FileExistsError(f"{out} holds a tokenizer already: choose another --out, or remove it")
    tokenizer = train_tokenizer(TextLines(sources, field), vocab_size, lowercase=not cased, min_frequency=min_frequency)
    tokenizer.save_pretrained(out)
    print(f"{tokenizer.vocab_size:,} words in {out}")
