"""`lucid.training` with the model on the GPU: the CPU's losses, and checkpoints in the middle of a step."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training.conftest import materials as materials
from training.conftest import sixteen_steps

from lucid.device import DeviceError
from lucid.training import Checkpoints, evaluate, load_model, restore
from lucid.training.run import Run, put_together


@pytest.fixture
def run(materials: Path, tmp_path: Path, device: Any) -> Run:
    return put_together(replace(sixteen_steps(materials, tmp_path), device="gpu", accumulate=2))


def test_losses_are_the_cpus(run: Run) -> None:
    found = {}
    for where in ("cpu", "gpu"):
        trainer = replace(run, options=replace(run.options, device=where)).trainer(run.new_model())
        assert trainer.model.device == where
        found[where] = [step for _ in range(6) if (step := trainer.advance()) is not None]
    for got, want in zip(found["gpu"], found["cpu"], strict=True):
        assert got.loss == pytest.approx(want.loss, rel=1e-4)
        assert got.grad_norm == pytest.approx(want.grad_norm, rel=1e-3)
        assert isinstance(got.grad_norm, float)


def test_a_checkpoint_within_a_step(run: Run, tmp_path: Path) -> None:
    trainer = run.trainer(run.new_model())
    for _ in range(3):
        trainer.advance()
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(trainer, {})
    found = checkpoints.newest()
    assert found is not None
    other = run.trainer(load_model(found))
    restore(other, found)
    assert other.model.device == "gpu"
    for t in (trainer, other):
        assert t.advance() is not None
    assert all(np.array_equal(value, other.model.state_dict()[name]) for name, value in trainer.model.state_dict().items())


def test_evaluation(run: Run) -> None:
    model = run.new_model()
    want = evaluate(model, run.batches, n_batches=1)
    got = evaluate(model.to("gpu"), run.batches, n_batches=1)
    assert got.loss.mean == pytest.approx(want.loss.mean, rel=1e-4)
    assert got.accuracy == want.accuracy


def test_options(materials: Path, tmp_path: Path) -> None:
    options = sixteen_steps(materials, tmp_path)
    for changes, says in (
        ({"device": "cuda"}, "--device must be cpu or gpu"),
        ({"dtype": "bfloat16"}, "--dtype must be float32 without --device gpu"),
        ({"dtype": "float16"}, "--dtype must be float32 or bfloat16"),
    ):
        with pytest.raises(ValueError, match=says):
            replace(options, **changes).check()


def test_a_run_without_a_gpu_says_so_at_once(materials: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lucid._gpu.runtime.status", lambda: 1 / 0)
    with pytest.raises(DeviceError, match="Use device='cpu'"):
        replace(sixteen_steps(materials, tmp_path), device="gpu").check()
