"""Writing a model's folder: beside the older files first, and whole before it takes their place."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from lucid.models.checkpoint import WEIGHTS_FILE, foreign_tensors
from lucid.models.config_file import CONFIG_FILE
from lucid.nn import Module


def _narrowed(name: str, array: np.ndarray[Any, Any], dtype: str) -> np.ndarray[Any, Any]:
    """Return an array in the type to store; a number that overflows it is an error."""
    if array.dtype == dtype:
        return array
    with np.errstate(over="ignore"):
        narrow = array.astype(dtype)
    if not np.array_equal(np.isinf(narrow), np.isinf(array)):
        raise ValueError(f"{name} holds {np.abs(array).max():g}, which {dtype} has no room for: save in float32")
    return narrow


def save_folder(model: Module, config: dict[str, Any], folder: Path, dtype: str = "float32") -> None:
    """Write `model.safetensors`, with the names that transformers reads, and `config.json`.

    Both are written beside the older ones, flushed to the disk, and only then put in their place: if the
    writing fails, the folder is as it was.

    Raises
    ------
    OSError
        The files cannot be written.
    ValueError
        A number does not fit `dtype`.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    tensors = {name: _narrowed(name, array, dtype) for name, array in foreign_tensors(model).items()}
    new = Path(tempfile.mkdtemp(prefix=".saving-", dir=folder))
    try:
        try:
            save_file(tensors, new / WEIGHTS_FILE, metadata={"format": "pt"})
        except SafetensorError as error:
            raise OSError(f"{folder / WEIGHTS_FILE} cannot be written: {error}") from error
        (new / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        os.chmod(new / WEIGHTS_FILE, (new / CONFIG_FILE).stat().st_mode)  # the library lets nobody but the owner read
        for name in (WEIGHTS_FILE, CONFIG_FILE):
            _flush(new / name)
        for name in (WEIGHTS_FILE, CONFIG_FILE):
            os.replace(new / name, folder / name)
        _flush(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _flush(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
