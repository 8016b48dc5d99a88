"""`lucid.training` with the model on the GPU: the CPU's losses and log, checkpoints in the middle of a step, and what is read one step late."""

import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training.conftest import losses, sixteen_steps, weights
from training.conftest import materials as materials
from training.conftest import one_thread as one_thread

from gpu.emulator import DeviceArray, Emulator
from lucid.data import Place
from lucid.device import DeviceError
from lucid.optim import NonFiniteError
from lucid.training import Checkpoints, evaluate, load_model, loop, pretrain, restore
from lucid.training import trainer as trainer_module
from lucid.training.cost import measure_cost
from lucid.training.run import Run, put_together


@pytest.fixture
def run(materials: Path, tmp_path: Path, device: Any) -> Run:
    return put_together(replace(sixteen_steps(materials, tmp_path), device="gpu", accumulate=2))


def test_losses_are_the_cpus(run: Run) -> None:
    found = {}
    for where in ("cpu", "gpu"):
        trainer = replace(run, options=replace(run.options, device=where)).trainer(run.new_model())
        assert trainer.model.device == where
        found[where] = [step for step in (*(trainer.advance() for _ in range(6)), trainer.take_step()) if step is not None]
        assert [step.step for step in found[where]] == [1, 2, 3]
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
        t.advance()
        assert t.take_step() is not None
    assert all(np.array_equal(value, other.model.state_dict()[name]) for name, value in trainer.model.state_dict().items())


def test_a_step_is_read_when_the_next_one_was_asked_for(run: Run, emulated: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host waits for losses and norm of a step alone, and only behind all of the next step's batches."""
    trainer, waits = run.trainer(run.new_model()), []
    real = emulated.read_later

    def read_later(array: Any) -> Any:
        read, asked_in = real(array), trainer.n_steps

        def wait() -> Any:
            waits.append((asked_in, trainer.n_steps, trainer.n_done))
            return read()

        return wait

    monkeypatch.setattr(emulated, "read_later", read_later)
    trainer.advance()
    n, steps = DeviceArray.n_reads, []
    for _ in range(7):
        steps.append(trainer.advance())
    assert DeviceArray.n_reads == n
    assert [None if step is None else step.step for step in steps] == [None, None, 1, None, 2, None, 3]
    # Asked for in step 1 (steps taken: 0 for the losses, 1 for the norm), read when both batches of step 2 have run, and so on.
    assert sorted(waits) == sorted((asked, k, 2) for k in (1, 2, 3) for asked in (k - 1, k - 1, k))
    trainer.settle()
    assert sorted(waits[-3:]) == [(3, 4, 0), (3, 4, 0), (4, 4, 0)]
    step = trainer.take_step()
    assert step is not None and step.step == 4 and trainer.take_step() is None


def poison(model: Any, monkeypatch: pytest.MonkeyPatch, call: int, write: Callable[[Any, Any], None]) -> None:
    """Write into the model's weights before its batch number `call`, from 1."""
    real, count = trainer_module.pack_batch, 0

    def poisoned(model: Any, batch: Any, seed: int | None = None) -> Any:
        nonlocal count
        count += 1
        if count == call:
            write(model, batch)
        return real(model, batch, seed)

    monkeypatch.setattr(trainer_module, "pack_batch", poisoned)


def nan(model: Any, batch: Any) -> None:
    with model.bert.embeddings.layer_norm.bias.write() as bias:
        bias[0] = np.nan


def impossible_word(model: Any, batch: Any) -> None:
    """A word that is right, and cannot be guessed: the loss is infinite, and its gradient finite."""
    word = int(batch.labels[batch.labels != -100][0])
    with model.cls.predictions.decoder.bias.write() as bias:
        bias[word] = -np.inf


@pytest.mark.parametrize(("write", "value"), [(nan, "nan"), (impossible_word, "inf")])
def test_a_loss_that_is_not_finite(run: Run, monkeypatch: pytest.MonkeyPatch, write: Callable[[Any, Any], None], value: str) -> None:
    """In the first batch of step 3: weights, moments and place stay as they were, and the error is the CPU's."""
    trainer, found = run.trainer(run.new_model()), {}

    def keep(model: Any, batch: Any) -> None:
        write(model, batch)
        trainer.settle()
        found["weights"], found["place"] = model.state_dict(), trainer.place

    poison(trainer.model, monkeypatch, 5, keep)
    for _ in range(7):
        trainer.advance()
    assert trainer.n_steps == 3
    says = rf"^the loss is {value} in step 3, batch 1 of 2 \(examples \d+ to \d+ in the order of epoch \d\): no weight was touched$"
    with pytest.raises(NonFiniteError, match=says):
        trainer.advance()
    assert (trainer.n_steps, trainer.place, trainer.n_done) == (2, found["place"], 0)
    after = trainer.model.state_dict()
    assert all(np.array_equal(value, after[name], equal_nan=True) for name, value in found["weights"].items())
    assert set(trainer.optimizer.state_dict()["n_updates"].values()) == {2}


@pytest.mark.parametrize("how", ["settle", "take_step", "save"])
def test_it_is_found_by_whoever_waits(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    trainer = run.trainer(run.new_model())
    poison(trainer.model, monkeypatch, 2, nan)
    for _ in range(2):
        trainer.advance()
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    with pytest.raises(NonFiniteError, match=r"the loss is nan in step 1, batch 2 of 2 \("):
        checkpoints.save(trainer, {}) if how == "save" else getattr(trainer, how)()
    assert not checkpoints.folder.exists()


def test_a_checkpoint_within_a_step_has_no_nan(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = run.trainer(run.new_model())
    poison(trainer.model, monkeypatch, 3, nan)
    for _ in range(3):
        trainer.advance()
    with pytest.raises(NonFiniteError, match=r"the loss is nan in step 2, batch 1 of 2 \("):
        Checkpoints(tmp_path / "checkpoints").save(trainer, {})
    assert not (tmp_path / "checkpoints").exists()
    step = trainer.take_step()  # which was settled before
    assert step is not None and step.step == 1


def test_a_gradient_that_is_not_finite(run: Run) -> None:
    trainer = run.trainer(run.new_model())
    trainer.advance()
    weight = trainer.model.bert.encoder.layer[0].attention.qkv.weight
    before = trainer.model.state_dict()
    weight.grad[...] = np.inf
    trainer.advance()
    with pytest.raises(
        NonFiniteError, match=r"a gradient was not finite, their norm (inf|nan), in step 1, batch from example 0 of epoch 0 on"
    ):
        trainer.take_step()
    assert all(np.array_equal(value, before[name]) for name, value in trainer.model.state_dict().items())
    assert (trainer.n_steps, trainer.place) == (0, Place())


def test_a_dry_run_waits_for_its_steps(run: Run, emulated: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    real, n_waits = emulated.read_later, 0

    def read_later(array: Any) -> Any:
        read = real(array)

        def wait() -> Any:
            nonlocal n_waits
            n_waits += 1
            return read()

        return wait

    monkeypatch.setattr(emulated, "read_later", read_later)
    assert measure_cost(run).seconds_per_step > 0
    assert n_waits == 2 * (2 + 1)  # of two steps, with two losses and a norm each


def test_nothing_is_asked(run: Run) -> None:
    """Of steps 2 and 3: their turn comes, one late as any other's."""

    class Blank:
        def at(self, place: Place) -> Any:
            batch = run.batches.at(place)
            return replace(batch, labels=np.full_like(batch.labels, -100)) if place.example >= first else batch

    real = run.batches
    first = real.at(real.at(Place()).end).end.example
    trainer = replace(run, batches=Blank()).trainer(run.new_model())  # type: ignore[arg-type]
    found = [trainer.advance() for _ in range(6)] + [trainer.take_step()]
    steps = [step for step in found if step is not None]
    assert [(s.step, s.n_labels > 0, s.loss > 0, s.grad_norm > 0) for s in steps] == [
        (1, True, True, True),
        (2, False, False, False),
        (3, False, False, False),
    ]


def stop_in(monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    """Let SIGTERM come before batch number `call` of the next run, from 1."""
    real, n = loop.Trainer.advance, 0

    def interrupted(self: Any) -> Any:
        nonlocal n
        n += 1
        if n == call:
            signal.raise_signal(signal.SIGTERM)
        return real(self)

    monkeypatch.setattr(loop.Trainer, "advance", interrupted)


def test_a_run_is_logged_as_on_the_cpu(materials: Path, tmp_path: Path, device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps, evaluations and checkpoints, in the CPU's order; and, stopped within a step and resumed, with the same bits."""
    monkeypatch.setattr(loop, "can_draw", lambda: False)
    found, folders = {}, {}
    for name in ("cpu", "gpu", "stopped"):
        options = replace(
            sixteen_steps(materials, tmp_path / name),
            **{"steps": 3, "accumulate": 2, "eval_every": 3, "eval_tokens": 60, "save_every": 2, "keep": 9},
            validation=(str(materials / "validation.txt"),),
            device="cpu" if name == "cpu" else "gpu",
        )
        if name == "stopped":
            with monkeypatch.context() as patch:
                stop_in(patch, 5)
                assert pretrain(options).folder.name == "step-00000002-1"
        assert pretrain(options, resume=name == "stopped").n_steps == 3
        found[name], folders[name] = losses(Path(options.out)), Path(options.out)
    order = [(record["step"], "validation" in record) for record in found["cpu"]]
    assert order == [(0, True), (1, False), (2, False), (3, False), (3, True)]
    assert [(record["step"], "validation" in record) for record in found["gpu"]] == order
    for got, want in zip(found["gpu"], found["cpu"], strict=True):
        if "loss" in want:
            assert got.pop("loss") == pytest.approx(want.pop("loss"), rel=1e-3)
            assert got.pop("grad_norm") == pytest.approx(want.pop("grad_norm"), rel=1e-2)
            assert got == want
    assert losses(folders["stopped"]) == losses(folders["gpu"])
    assert weights(folders["stopped"] / "model") == weights(folders["gpu"] / "model")
    for name in ("cpu", "gpu"):
        assert {path.name for path in (folders[name] / "checkpoints").iterdir()} == {"step-00000002", "step-00000003"}


def test_a_run_that_is_not_finite_says_so_in_its_log(materials: Path, tmp_path: Path, device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A NaN in step 3, after which a checkpoint is due: there is none of it."""
    options = replace(sixteen_steps(materials, tmp_path), steps=6, accumulate=2, save_every=1, keep=9, device="gpu")
    poison(None, monkeypatch, 6, nan)
    with pytest.raises(NonFiniteError, match=r"the loss is nan in step 3, batch 2 of 2 \("):
        pretrain(options)
    out = Path(options.out)
    assert [record["step"] for record in losses(out)] == [1, 2, 3]
    assert "the loss is nan in step 3, batch 2 of 2" in losses(out)[-1]["error"]
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["step-00000001", "step-00000002"]


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
