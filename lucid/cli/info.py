"""`lucid info`."""

from __future__ import annotations

import warnings
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lucid.cli.arguments import Checkpoint, Json, checkpoint_named
from lucid.cli.errors import ERROR
from lucid.cli.streams import to_json
from lucid.hub import BUILTIN

if TYPE_CHECKING:
    from lucid.models.checkpoint import StoredTensor


def info(
    model: Checkpoint = BUILTIN,
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    as_json: Json = False,
) -> None:
    """Describe a checkpoint: sizes, tensors, tokenizer, and what would load.

    Only the headers of its weight files are read.
    The exit code is 1 where the folder cannot be loaded as it is.

    For example:

    [cyan]lucid info DIR[/cyan]

    [cyan]lucid info DIR --tensors | grep bias[/cyan]

    [cyan]lucid info DIR --json | jq .parameters[/cyan]
    """
    facts, stored = _facts(model)
    if as_json:
        listed = [{name: getattr(each, name) for name in type(each).__dataclass_fields__} for each in stored]
        print(to_json({**facts, "tensors": listed} if tensors else facts))
    else:
        _print(facts, stored if tensors else [])
    if facts["problem"] is not None:
        raise typer.Exit(ERROR)


def _facts(folder_or_hub_id: str) -> tuple[dict[str, Any], list[StoredTensor]]:
    """Return what there is to say of a folder, as JSON has it, and its tensors."""
    from lucid.hub import checkpoint_folder
    from lucid.models import BERTForMaskedLM, BERTTokenizerFast, LoadReport
    from lucid.models.checkpoint import check_tensors, list_tensors
    from lucid.models.config_file import read_config

    folder = checkpoint_folder(checkpoint_named(folder_or_hub_id))
    config = read_config(folder, add_pooling_layer=False)
    stored = list_tensors(folder)
    model = BERTForMaskedLM(config)
    problem, report = None, LoadReport()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the report says it
            report = check_tensors(model, folder)
        if report.missing:
            problem = "tensors are missing; from_pretrained(..., strict=False) starts them at random"
    except ValueError as error:
        problem = str(error)
    tokenizer: dict[str, Any] | None = None
    try:
        loaded = BERTTokenizerFast.from_pretrained(folder)
        tokenizer = {"words": loaded.vocab_size, "special_tokens": loaded.all_special_tokens, "longest": loaded.model_max_length}
        if loaded.vocab_size > config.vocab_size:
            problem = (
                f"the tokenizer has {loaded.vocab_size} words, the word table {config.vocab_size} rows: they belong to different models"
            )
    except FileNotFoundError:
        pass
    except ValueError as error:
        problem = str(error)
    facts = {
        "folder": str(folder),
        "layers": config.num_hidden_layers,
        "width": config.hidden_size,
        "heads": config.num_attention_heads,
        "feed_forward": config.intermediate_size,
        "activation": config.hidden_act,
        "words": config.vocab_size,
        "positions": config.max_position_embeddings,
        "segments": config.type_vocab_size,
        "parameters": model.parameter_size,
        "n_tensors": len(stored),
        "n_bytes": sum(each.n_bytes for each in stored),
        "dtypes": dict(Counter(each.dtype for each in stored)),
        "files": sorted({each.file for each in stored}),
        "tokenizer": tokenizer,
        "loaded": report.n_loaded,
        "tied": report.is_tied,
        "missing": report.missing,
        "unexpected": report.unexpected,
        "ignored": report.ignored,
        "notes": report.notes,
        "problem": problem,
    }
    return facts, stored


def _print(facts: dict[str, Any], stored: list[StoredTensor]) -> None:
    tokenizer = facts["tokenizer"]
    dtypes = ", ".join(f"{n} {dtype}" for dtype, n in facts["dtypes"].items())
    rows = {
        "folder": facts["folder"],
        "model": f"{facts['layers']} layers, {facts['width']} wide, {facts['heads']} heads of {facts['width'] // facts['heads']}, "
        f"feed-forward {facts['feed_forward']}, {facts['activation']}",
        "tables": f"{facts['words']:,} words, {facts['positions']} positions, {facts['segments']} segments",
        "parameters": f"{facts['parameters']:,} ({4 * facts['parameters'] / 1e6:,.1f} MB in memory)",
        "files": f"{', '.join(facts['files'])}: {facts['n_tensors']} tensors ({dtypes}), {facts['n_bytes'] / 1e6:,.1f} MB",
        "tokenizer": "none: give ids, not texts",
        "loads": f"no: {facts['problem']}",
    }
    if tokenizer is not None:
        longest = "" if tokenizer["longest"] is None else f", at most {tokenizer['longest']} tokens"
        rows["tokenizer"] = f"{tokenizer['words']:,} words{longest}; special: {' '.join(tokenizer['special_tokens'])}"
    if facts["problem"] is None:
        used = "all tensors" if not facts["unexpected"] and not facts["ignored"] else "not all tensors are needed"
        rows["loads"] = f"yes, {used}; decoder and word table are {'tied' if facts['tied'] else 'not tied'}"
    for name, what in (("missing", "missing"), ("unexpected", "unexpected"), ("ignored", "not needed")):
        if facts[name]:
            rows[what] = ", ".join(facts[name])
    for i, note in enumerate(facts["notes"], 1):
        rows[f"note {i}"] = note
    width = max(map(len, rows))
    print("\n".join(f"{name:<{width}}  {value}" for name, value in rows.items()))
    if stored:
        widest = max(len(each.name) for each in stored)
        print()
        for each in stored:
            print(f"{each.name:<{widest}}  {each.dtype:<5}{' x '.join(map(str, each.shape)):>14}  {each.file}")
