"""`lucid fill-mask` and `lucid evaluate` with ``--device gpu``: what they print is what the CPU says; without a GPU, one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import texts
from click.testing import Result
from training.conftest import materials as materials
from training.conftest import one_thread as one_thread
from typer.testing import CliRunner

import lucid
from lucid._gpu import runtime
from lucid.cli import app
from lucid.models import BERTConfig, BERTForMaskedLM

COMMANDS = ["fill-mask", "evaluate"]


@pytest.fixture
def call(materials: Path, tmp_path: Path) -> Callable[..., Result]:
    """Run one of the commands on a small model, with more arguments."""
    tokenizer = texts.tokenizer()
    sizes = {
        "vocab_size": tokenizer.vocab_size,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    lucid.manual_seed(3)
    model = BERTForMaskedLM(BERTConfig.base(**sizes, max_position_embeddings=32, initializer_range=0.2))
    model.tokenizer = tokenizer
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    text = (materials / "validation.txt").read_text().splitlines()[0].split()
    given = {
        "fill-mask": [" ".join([*text[:4], "[MASK]", *text[5:8]]), "--model", folder, "--top-k", 3],
        "evaluate": [folder, "--data", materials / "validation.txt", "--max-length", 24, "--tokens", 300],
    }
    return lambda command, *more: CliRunner().invoke(app, [command, *map(str, (*given[command], "--json", *more))])


def numbers(record: Any) -> list[Any]:
    """Return all that a record holds, in order."""
    inside = record.values() if isinstance(record, dict) else record if isinstance(record, list) else None
    return [record] if inside is None else [number for value in inside for number in numbers(value)]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(("dtype", "within"), [(None, 1e-4), ("float32", 1e-4), ("bfloat16", 0.2)])
def test_the_gpu_says_what_the_cpu_says(call: Callable[..., Result], device: Any, command: str, dtype: str | None, within: float) -> None:
    want = call(command)
    n_before = getattr(device, "n_launches", 0)
    got = call(command, "--device", "gpu", *([] if dtype is None else ["--dtype", dtype]))
    assert (got.exit_code, got.stderr) == (0, "")
    assert not hasattr(device, "n_launches") or device.n_launches > n_before
    found, wanted = (numbers(json.loads(result.stdout)) for result in (got, want))
    for g, w in zip(found, wanted, strict=True):
        if isinstance(w, float):
            assert g == pytest.approx(w, rel=within)
        elif dtype != "bfloat16":
            assert g == w


@pytest.mark.parametrize("command", COMMANDS)
def test_without_a_gpu(call: Callable[..., Result], command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the model is read, which may take long."""

    def status() -> str:
        raise RuntimeError("cudaErrorInsufficientDriver: CUDA driver version is\ninsufficient for CUDA runtime version")

    monkeypatch.setattr(runtime, "status", status)
    monkeypatch.setattr(BERTForMaskedLM, "from_pretrained", lambda *_: pytest.fail("the model was read"))
    got = call(command, "--device", "gpu")
    assert (got.exit_code, got.stdout, got.stderr.count("\n")) == (1, "", 1)
    assert got.stderr.startswith("lucid: device 'gpu' is not available: CuPy finds no GPU (cudaErrorInsufficientDriver: ")
    assert "pip install 'lucid-bert[gpu]'" in got.stderr and got.stderr.endswith("Use device='cpu'.\n")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--device", "cuda"], "lucid: device 'cuda' is unknown: use 'cpu' or 'gpu'\n"),
        (["--dtype", "bfloat16"], "lucid: the CPU computes in float32, not bfloat16\n"),
        (["--dtype", "int8"], "lucid: dtype 'int8' is unknown: use 'float32', 'float16', 'bfloat16'\n"),
    ],
)
def test_what_there_is_not(call: Callable[..., Result], command: str, arguments: list[str], says: str) -> None:
    got = call(command, *arguments)
    assert (got.exit_code, got.stdout, got.stderr) == (1, "", says)
