"""The checkpoint that every peer loads: random weights from a fixed seed, made once, by lucid."""

from __future__ import annotations

import shutil
from pathlib import Path

from benchmarks.texts import vocabulary

SIZES = {"base": (12, 768), "mini": (4, 256)}
"""Layers and width."""
DEFAULT_CACHE = Path.home() / ".cache" / "lucid-benchmarks"
_SEED = 20190524


def checkpoint(cache: Path, size: str) -> Path:
    """Return a folder with config.json, model.safetensors and the tokenizer, made if it is missing.

    Parameters
    ----------
    cache : path. Folder that holds what is made once.
    size : str, a name in `SIZES`
    """
    folder = cache / f"bert-{size}"
    if (folder / "model.safetensors").exists():
        return folder
    import lucid
    from lucid import models

    lucid.manual_seed(_SEED)
    n_layers, width = SIZES[size]
    model = models.BERTForMaskedLM(models.BERTConfig.sized(n_layers, width, add_pooling_layer=False))
    model.tokenizer = models.BERTTokenizerFast(vocab=vocabulary())
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    model.save_pretrained(unfinished)
    unfinished.rename(folder)
    return folder
