"""`lucid evaluate`."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from typing import Annotated

import typer

from lucid.cli.arguments import Checkpoint, Device, Dtype, Field, Json, Threads, checkpoint_named, load_masked_lm
from lucid.cli.streams import to_json
from lucid.hub import BUILTIN


def evaluate(
    data: Annotated[list[str], typer.Option("--data", metavar="FILE", help="File, folder or pattern of text; again for more.")],
    model: Checkpoint = BUILTIN,
    max_length: Annotated[int, typer.Option("--max-length", min=4, help="Longest example, in tokens.")] = 128,
    tokens: Annotated[int | None, typer.Option("--tokens", min=1, help="Evaluate on so many tokens. [dim]Default: all.[/dim]")] = None,
    masking: Annotated[str, typer.Option("--masking", help="token, word (whole words) or span.")] = "token",
    mask_share: Annotated[float, typer.Option("--mask-share", help="Share of tokens that are asked for.")] = 0.15,
    field: Field = "text",
    as_json: Json = False,
    device: Device = "cpu",
    dtype: Dtype = None,
    threads: Threads = None,
) -> None:
    """Measure how well a model guesses masked words of a text.

    The masks are the same every time and for every model with the same
    tokenizer, so figures compare. The intervals are of 95 % confidence.

    For example:

    [cyan]lucid evaluate run/model --data held-out.txt[/cyan]

    [cyan]lucid evaluate DIR --data texts/ --tokens 100000 --json | jq .perplexity.mean[/cyan]
    """
    import math

    from lucid.data import Masking, check_sources, find_sources, prepare_corpus
    from lucid.hub import checkpoint_folder
    from lucid.models.config_file import read_config
    from lucid.training.evaluate import evaluate
    from lucid.training.run import check_vocabulary, evaluation_batches
    from lucid.training.view import progress_view

    masks = Masking(masking, mask_share)
    sources = find_sources(data)
    check_sources(sources, field)
    folder = checkpoint_folder(checkpoint_named(model))
    read_config(folder, add_pooling_layer=False)
    loaded = load_masked_lm(folder, device, dtype, threads)
    tokenizer = loaded.tokenizer
    if tokenizer is None:
        raise FileNotFoundError(f"{folder} has no tokenizer: copy the one that it was trained with there")
    check_vocabulary(tokenizer, loaded.config, max_length, str(folder))
    with tempfile.TemporaryDirectory(prefix="lucid-") as cache:
        with progress_view("tokenise", sum(source.path.stat().st_size for source in sources)) as progress:
            corpus = prepare_corpus(sources, tokenizer, cache, field=field, progress=progress)
        batches = evaluation_batches(corpus, tokenizer, max_length, masks)
        n_batches = None if tokens is None else math.ceil(tokens / batches.n_tokens)
        n_examples = None if n_batches is not None else len(batches.examples)
        with progress_view("evaluate", n_examples, "examples") as progress:
            found = evaluate(loaded, batches, n_batches=n_batches, progress=lambda n: progress(n, n))
    assert found is not None
    if as_json:
        print(to_json({"model": str(folder), **asdict(found)}))
        return
    print(f"model       {folder}")
    print(f"text        {found.n_examples:,} examples, {found.n_labels:,} masked words")
    for name, estimate, places in (("loss", found.loss, 4), ("perplexity", found.perplexity, 2), ("accuracy", found.accuracy, 4)):
        print(f"{name:<10}  {estimate.mean:.{places}f}  (95 %: {estimate.low:.{places}f} to {estimate.high:.{places}f})")
