"""A small text, a small model, and runs of a few steps."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import texts
from safetensors.numpy import load_file

from lucid import threads
from lucid.training import PretrainOptions, pretrain

CONFIG = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 32,
}


@pytest.fixture(autouse=True)
def one_thread():
    """Products this small gain nothing from threads, and lose much where other processes want the CPUs too."""
    threads.set_num_threads(1)
    yield
    threads.set_num_threads(None)


@pytest.fixture(scope="session")
def materials(tmp_path_factory) -> Path:
    """A folder with train.txt, validation.txt, a tokenizer and a config.json."""
    folder = tmp_path_factory.mktemp("materials")
    texts.write(folder / "train.txt", texts.documents(1, 40))
    texts.write(folder / "validation.txt", texts.documents(2, 15))
    texts.tokenizer().save_pretrained(folder / "tokenizer")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


@pytest.fixture
def options(materials, tmp_path) -> PretrainOptions:
    return sixteen_steps(materials, tmp_path)


def sixteen_steps(materials: Path, folder: Path) -> PretrainOptions:
    """Return options for 16 steps of 4 batches with dropout, over a text that ends within."""
    return PretrainOptions(
        data=(str(materials / "train.txt"),),
        out=str(folder / "run"),
        cache=str(materials / "cache"),
        size=str(materials / "config.json"),
        tokenizer=str(materials / "tokenizer"),
        max_length=24,
        batch_tokens=64,
        accumulate=4,
        steps=16,
        lr=1e-2,
        save_every=100,
        threads=1,
    )


@pytest.fixture(scope="session")
def uninterrupted(materials, tmp_path_factory) -> Path:
    """The folder of a run of `options` that was never stopped."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    made = sixteen_steps(materials, folder)
    assert pretrain(replace(made, validation=(str(materials / "validation.txt"),), eval_every=4)).n_steps == 16
    return Path(made.out)


def weights(folder: Path) -> str:
    """Return a hash of the bits of a model and, in a checkpoint, of its moments."""
    found = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        for name, array in sorted(load_file(path).items()):
            found.update(name.encode() + array.tobytes())
    return found.hexdigest()


def losses(out: Path) -> list[dict]:
    """Return what the log says, but for how long it took."""
    records = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in record.items() if name != "seconds"} for record in records]
