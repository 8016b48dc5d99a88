"""The tables of docs/errors.md quote messages about files: each is made to appear, as it is printed there."""

import json
import os
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lucid.models import BERTForMaskedLM

FIXTURE = Path(__file__).parent / "models" / "fixtures"
PAGE = Path(__file__).resolve().parents[1] / "docs" / "errors.md"


def _config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _tensors(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def _untie(tensors: dict[str, Any]) -> None:
    tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"] * np.float32(2)


def _drop_head(tensors: dict[str, Any]) -> None:
    for name in [name for name in tensors if name.startswith("cls.")]:
        del tensors[name]


# What a row begins with -> what makes it so. Numbers and names of the row may be those of another model.
DAMAGE: dict[str, Callable[[Path], Any]] = {
    "DIR holds neither": lambda folder: (folder / "model.safetensors").unlink(),
    "pytorch_model.bin is a pickle": lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
    "model.safetensors is a pointer": lambda folder: (folder / "model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\n"
    ),
    "model.safetensors ...": lambda folder: os.truncate(folder / "model.safetensors", 20_000),
    "config.json describes": lambda folder: _config(folder, model_type="roberta"),
    "config.json asks for": lambda folder: _config(folder, position_embedding_type="relative_key"),
    "tensor ...": lambda folder: _config(folder, hidden_size=72),
    "the checkpoint lacks": lambda folder: _tensors(folder, _drop_head),
    "the tokenizer has": lambda folder: (folder / "vocab.txt").write_text((folder / "vocab.txt").read_text() + "another\n"),
    "DIR: the model has no place": lambda folder: _tensors(
        folder, lambda tensors: tensors.update({"classifier.weight": np.zeros(2, np.float32)})
    ),
    "config.json ties": lambda folder: _tensors(folder, _untie),
}


def _rows() -> list[str]:
    """Give the messages in the tables."""
    section = re.search(r"^## Loading$(.*?)^## ", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert section is not None
    return re.findall(r"^\| `([^`]+)` \|", section[1], re.MULTILINE)


@pytest.mark.parametrize("row", _rows())
def test_a_message_of_the_page_is_what_is_said(row: str, tmp_path: Path) -> None:
    begin = next((begin for begin in DAMAGE if row.startswith(begin)), None)
    assert begin is not None, "a row that no damage here makes"
    folder = tmp_path / "DIR"
    shutil.copytree(FIXTURE, folder)
    DAMAGE[begin](folder)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            BERTForMaskedLM.from_pretrained(folder)
        except (ValueError, OSError) as error:
            said = str(error)
        else:
            said = "\n".join(str(warning.message) for warning in warned)
    said = said.replace(str(folder), "DIR")
    quoted = re.escape(row).replace(r"\.\.\.", ".*")
    assert re.search(re.sub(r"\d+", r"\\d+", quoted), said), said


def test_all_damage_is_on_the_page() -> None:
    assert [begin for begin in DAMAGE if not any(row.startswith(begin) for row in _rows())] == []
