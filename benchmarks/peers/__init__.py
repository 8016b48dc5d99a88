"""Those that are compared: one file for each library, found by name.

A peer is an object with a method for each task that it can do, named like the task (`benchmarks.workloads.Task`). The
method takes a case, prepares what need not be timed, and returns the function to be timed: it returns a dict of arrays
(`benchmarks.answers`). `training_step` returns a `benchmarks.training.TrainingStep` instead, and for a cold start the
module has a function `cold_start(variant, setting)` that returns the program to run. `make_files(variant, setting)`, where a
module has it, makes the files that are made once.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any


@dataclass(frozen=True)
class Setting:
    """What a peer is told.

    Attributes
    ----------
    folder : path. The checkpoint.
    cache : path. Folder for what a peer makes of the checkpoint, once.
    n_threads : int
    size : str. Name of the checkpoint's size.
    clock : str. "wall", or "processor": the time that the process's threads ran, whatever else the machine did.
    """

    folder: Path
    cache: Path
    n_threads: int
    size: str
    clock: str = "wall"


@dataclass(frozen=True)
class Peer:
    """A way to run BERT.

    Attributes
    ----------
    name : str. The library, and how it is used where there are several ways.
    module : str. File in this folder.
    about : str
    workloads : tuple of str
    packages : tuple of str. Distributions that it needs.
    is_optional : bool. Runs only where it is asked for by name.
    """

    name: str
    module: str
    about: str
    workloads: tuple[str, ...]
    packages: tuple[str, ...]
    is_optional: bool = False

    @property
    def missing(self) -> list[str]:
        """Packages that are not installed."""
        return [package for package in self.packages if version(package) is None]

    def load(self) -> ModuleType:
        """Import the module."""
        return importlib.import_module(f"benchmarks.peers.{self.module}")

    def make_files(self, setting: Setting) -> None:
        """Make what is made once of the checkpoint, where it is missing."""
        module = self.load()
        if hasattr(module, "make_files"):
            module.make_files(self.name, setting)

    def make(self, setting: Setting) -> Any:
        """Return the object with a method for each task."""
        return self.load().make(self.name, setting)


def version(package: str) -> str | None:
    """Return a distribution's version, None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


_TEXTS = ("W3a", "W3b", "W4")
PEERS = (
    Peer("lucid", "lucid", "lucid, as users call it", ("W1", "W2", "W3a", "W3b", "W4", "W5", "W7"), ("numpy", "tokenizers")),
    Peer(
        "transformers",
        "transformers",
        "transformers on torch, as its pages show it: attention by SDPA, pipeline for texts",
        ("W1", "W2", "W3a", "W3b", "W4", "W5", "W7"),
        ("torch", "transformers"),
    ),
    Peer("transformers-eager", "transformers", "the same, attention spelled out", ("W5",), ("torch", "transformers")),
    Peer(
        "transformers-rows", "transformers", "torch, batches sorted by length, head on asked rows only", _TEXTS, ("torch", "transformers")
    ),
    Peer("torch-compile", "transformers", "torch.compile with frozen weights", ("W1", "W2"), ("torch", "transformers"), is_optional=True),
    Peer("onnxruntime", "onnxruntime", "ONNX Runtime, graph as exported", ("W1", "W2", "W3a", "W3b", "W7"), ("onnxruntime", "tokenizers")),
    Peer(
        "onnxruntime-fused", "onnxruntime", "ONNX Runtime with its transformer fusions", ("W1", "W2", "W3a"), ("onnxruntime", "tokenizers")
    ),
    Peer(
        "onnxruntime-rows",
        "onnxruntime",
        "the same, batches sorted by length, head on asked rows only",
        (*_TEXTS, "W7"),
        ("onnxruntime", "tokenizers"),
    ),
    Peer("openvino", "openvino", "OpenVINO in float32, static shapes", ("W1", "W2", "W3a", "W3b"), ("openvino", "tokenizers")),
    Peer(
        "openvino-rows",
        "openvino",
        "the same, batches sorted by length, head on asked rows only",
        (*_TEXTS, "W7"),
        ("openvino", "tokenizers"),
    ),
    Peer("ctranslate2", "ctranslate2", "CTranslate2, which has an encoder", ("W2",), ("ctranslate2",)),
    Peer("numpy", "numpy", "BERT in a page of NumPy", ("W1", "W2", "W3a", "W3b", "W4"), ("numpy", "tokenizers"), is_optional=True),
)


def peer(name: str) -> Peer:
    """Return a peer by name.

    Raises
    ------
    KeyError
        There is none of that name.
    """
    for one in PEERS:
        if one.name == name:
            return one
    raise KeyError(f"no peer {name!r}; there are: {', '.join(one.name for one in PEERS)}")


def chosen(names: Sequence[str] | None, is_quick: bool) -> list[Peer]:
    """Return the peers of a run: those named, lucid always; by default all that are not optional, or lucid and numpy for a quick one."""
    if names is None:
        names = ["lucid", "numpy"] if is_quick else [one.name for one in PEERS if not one.is_optional]
    wanted = [peer(name).name for name in names]
    return [one for one in PEERS if one.name == "lucid" or one.name in wanted]
