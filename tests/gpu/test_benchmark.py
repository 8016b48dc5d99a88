"""lucid's side of `benchmarks.gpu` on the emulated GPU: what a run on a real one calls, calls that are there."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the suite of benchmarks stands beside the package

import lucid
from benchmarks.gpu.cases import LIBRARIES
from benchmarks.gpu.run import check, distances
from benchmarks.gpu.sides import Lucid
from benchmarks.peers import Setting
from benchmarks.texts import N_WORDS
from benchmarks.workloads import Case, Task
from gpu.emulator import Emulator
from lucid._gpu.libraries import CUBLASLT, CUDNN, SWITCH
from lucid.models import BERTConfig, BERTForMaskedLM


class Clock:
    """CuPy's events and pool, as far as the side asks for them; each event is a second after the one before."""

    now = 0.0

    def __init__(self) -> None:
        Clock.now += 1.0
        self.at = Clock.now

    def record(self) -> None:
        pass

    synchronize = record


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    """A checkpoint smaller than the suite's."""
    lucid.manual_seed(7)
    config = BERTConfig.sized(2, 64, vocab_size=N_WORDS, max_position_embeddings=16, add_pooling_layer=False)
    BERTForMaskedLM(config).save_pretrained(tmp_path / "model")
    return Setting(tmp_path / "model", tmp_path, 1, "mini")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("task", [Task.ENCODE, Task.LOSS, Task.TRAINING_STEP])
def test_answers_are_the_cpus(task: Task, dtype: str, setting: Setting, emulated: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = SimpleNamespace(total_bytes=lambda: 5, free_all_blocks=lambda: None)
    cuda = SimpleNamespace(Event=Clock, get_elapsed_time=lambda a, b: 1e3 * (b.at - a.at))
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=cuda, get_default_memory_pool=lambda: pool))
    case = Case("3", task, (9, 4, 12))
    on_cpu = Lucid("reference", setting, is_on_gpu=False)
    on_gpu = Lucid("lucid-float32" if dtype == "float32" else "lucid", setting, is_on_gpu=True)
    answers = []
    for side in (on_cpu, on_gpu):
        side.prepare(case)
        answers.append(side.answer())
    check(distances(answers[1], answers[0]), is_float32=dtype == "float32")
    assert set(answers[1]) == set(answers[0])
    begin = on_gpu.mark()
    found: Any = on_gpu.call()
    assert on_gpu.seconds([begin, on_gpu.mark(), on_gpu.mark()]) == [1.0, 1.0]
    assert found.device == "gpu" and np.isfinite(found.numpy()).all()
    assert on_gpu.peak_bytes() == 5
    assert on_gpu.libraries() == []
    on_gpu.release()


def test_a_side_without_the_libraries_it_is_called_after_fails(
    setting: Setting, emulated: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SWITCH, "0")  # it sets it
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=None, get_default_memory_pool=lambda: None))
    for name in ("nvmath.bindings", "cudnn"):
        monkeypatch.setitem(sys.modules, name, None)
    side = Lucid(LIBRARIES, setting, is_on_gpu=True)
    assert os.environ[SWITCH] == "1"
    side.prepare(Case("2", Task.ENCODE, (3, 5)))
    with pytest.warns(UserWarning, match="is not used for"):
        side.answer()
    with pytest.raises(RuntimeError, match=r"no library could be used: cublaslt: not .*product.*; cudnn: not .*attention.*cudnn"):
        side.libraries()
    CUBLASLT.forget(), CUDNN.forget()
