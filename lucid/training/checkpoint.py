"""Checkpoints of a run: sealed folders that hold all that it takes to go on, bit for bit.

A checkpoint is a Hugging Face folder (config.json, model.safetensors, tokenizer) with two files more: `training.safetensors`,
the moments and, within a step, the gradients so far; and `manifest.json`, the hashes of all files, counts and places. How it
is written, and what that promises, is in `lucid.sealed_folder`.
"""

from __future__ import annotations

import json
import os
import re
import uuid
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lucid.data import Place
from lucid.device import moved, on_host
from lucid.errors import FormatError
from lucid.models import BERTForMaskedLM
from lucid.models.checkpoint import foreign_tensors
from lucid.models.config_file import config_json
from lucid.models.safetensors_file import SafetensorsFile, write_safetensors
from lucid.sealed_folder import remove, seal, sweep, verify
from lucid.training.trainer import Trainer

FORMAT = 1
_STATE_FILE = "training.safetensors"
_NAME = re.compile(r"step-(\d{8,})(?:-(\d+))?")


@dataclass(frozen=True, slots=True)
class Found:
    """A checkpoint that verified.

    Attributes
    ----------
    folder : Path
    facts : dict. What its manifest says.
    damaged : tuple of Path. Newer ones that did not.
    """

    folder: Path
    facts: dict[str, Any]
    damaged: tuple[Path, ...] = ()


class Checkpoints:
    """The checkpoints of one run, in a folder of their own.

    Parameters
    ----------
    folder : Path. Made with the first one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, trainer: Trainer, facts: dict[str, Any]) -> Path:
        """Save where a run is; do nothing where a checkpoint of that moment is there already.

        Parameters
        ----------
        trainer : Trainer
        facts : dict. Plain JSON to be kept with it.

        Raises
        ------
        OSError
            It cannot be written. No other checkpoint was touched.
        NonFiniteError
            A step or a loss on the GPU, which nobody had read yet, is not finite.
        """
        trainer.settle()
        losses = trainer.losses  # of the GPU as well, before anything is written
        n_done = len(losses)
        target = self.folder / (f"step-{trainer.n_steps:08}" + (f"-{n_done}" if n_done else ""))
        if target.exists():
            return target
        model, state = trainer.model, trainer.optimizer.state_dict()
        tensors = {f"{kind}.{path}": array for kind in ("m", "v") for path, array in state[kind].items()}
        if n_done:
            gradients = {path: on_host(p.grad) for path, p in model.named_parameters() if p.grad is not None}
            tensors |= {f"gradient.{path}": np.ascontiguousarray(gradient) for path, gradient in gradients.items()}
        config = json.dumps(config_json(model.config, model.architecture), indent=2) + "\n"
        texts = {"config.json": config.encode(), **({} if model.tokenizer is None else model.tokenizer.to_files())}
        with seal(target) as new:
            for name, arrays in (("model.safetensors", foreign_tensors(model)), (_STATE_FILE, tensors)):
                with new.open(name) as file:
                    write_safetensors(file, arrays)
            for name, content in texts.items():
                with new.open(name) as file:
                    file.write(content)
            new.facts = {
                "format": FORMAT,
                "n_steps": state["n_steps"],
                "n_updates": state["n_updates"],
                "place": asdict(trainer.place),
                "losses": losses,
                **facts,
            }
        return target

    def newest(self) -> Found | None:
        """Return the newest checkpoint that verifies, or None where there is none at all.

        Raises
        ------
        FormatError
            There are some, but none verifies.

        Warns
        -----
        UserWarning
            A newer one does not verify.
        """
        problems: dict[Path, str] = {}
        for folder in self._folders():
            try:
                facts = verify(folder)
                if facts.get("format") != FORMAT or _key(folder)[0] != facts["n_steps"]:
                    raise FormatError(f"{folder.name} was made by another version of lucid, or renamed")
            except (FormatError, OSError) as error:
                problems[folder] = str(error)
                continue
            for problem in problems.values():
                warnings.warn(f"{problem}: going on from {folder.name}", stacklevel=2)
            return Found(folder, facts, tuple(problems))
        if problems:
            raise FormatError(f"no checkpoint in {self.folder} can be used: {'; '.join(problems.values())}")
        return None

    def keep(self, n: int, best: int | None = None) -> None:
        """Remove all but the last `n` checkpoints and that of step `best`; call it after `save`, which verified the newest."""
        for folder in self._folders()[n:]:
            if _key(folder) != (best, 0):
                remove(folder)

    def sweep(self) -> None:
        """Remove what interrupted saves left."""
        sweep(self.folder)

    def set_aside(self, damaged: Iterable[Path]) -> None:
        """Take its name from a damaged checkpoint, so that it neither counts as kept nor stands in a new one's place."""
        for folder in damaged:
            os.rename(folder, folder.with_name(f"damaged-{folder.name}-{uuid.uuid4().hex[:8]}"))

    def _folders(self) -> list[Path]:
        """Return the folders that bear a checkpoint's name, newest first."""
        if not self.folder.is_dir():
            return []
        return sorted((path for path in self.folder.iterdir() if _NAME.fullmatch(path.name) and path.is_dir()), key=_key, reverse=True)


def restore(trainer: Trainer, found: Found) -> None:
    """Put a trainer where a checkpoint was saved; its model must have the checkpoint's weights already.

    Raises
    ------
    FormatError
        The checkpoint is of another model.
    """
    facts = found.facts
    parameters = dict(trainer.model.named_parameters())
    tensors: dict[str, dict[str, Any]] = {"m": {}, "v": {}, "gradient": {}}
    with SafetensorsFile(found.folder / _STATE_FILE) as file:
        for name, entry in file.entries.items():
            kind, _, path = name.partition(".")
            if kind not in tensors or path not in parameters or entry.shape != parameters[path].shape:
                raise FormatError(f"{found.folder.name}: {_STATE_FILE} holds {name:.100}, for which the model has no place")
            tensors[kind][path] = np.empty(entry.shape, np.float32)
            file.read_into(name, tensors[kind][path])
    trainer.optimizer.load_state_dict({"n_steps": facts["n_steps"], "n_updates": facts["n_updates"], "m": tensors["m"], "v": tensors["v"]})
    for path, parameter in parameters.items():
        gradient = tensors["gradient"].get(path)
        parameter.grad = None if gradient is None else moved(gradient, parameter.device)
    trainer.place, trainer.losses = Place(**facts["place"]), list(facts["losses"])


def load_model(found: Found) -> BERTForMaskedLM:
    """Return the model of a checkpoint, in eval mode."""
    return BERTForMaskedLM.from_pretrained(found.folder)


def _key(folder: Path) -> tuple[int, int]:
    """Return the step of a checkpoint, and how many batches of the next one it has seen."""
    match = _NAME.fullmatch(folder.name)
    assert match is not None
    return int(match[1]), int(match[2] or 0)
