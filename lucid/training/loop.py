"""The loop: train, evaluate, save, and go on where a run stopped as if it had not."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lucid.errors import FormatError
from lucid.optim import NonFiniteError
from lucid.sealed_folder import flush, sweep
from lucid.threads import set_num_threads
from lucid.training.checkpoint import Checkpoints, load_model, restore
from lucid.training.curves import can_draw, draw_curves
from lucid.training.evaluate import evaluate
from lucid.training.log import Log
from lucid.training.options import PretrainOptions, read_toml
from lucid.training.run import Run, put_together
from lucid.training.signals import StopSignals
from lucid.training.trainer import Step, Trainer
from lucid.training.view import View

OPTIONS_FILE, LOG_FILE, CURVES_FILE, LOCK_FILE = "pretrain.toml", "log.jsonl", "curve.png", "lock"
CHECKPOINTS, MODEL = "checkpoints", "model"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended.

    Attributes
    ----------
    folder : Path. The finished model, or the checkpoint to go on from.
    n_steps : int. Steps taken.
    stopped_by : int or None. The signal that ended it early.
    """

    folder: Path
    n_steps: int
    stopped_by: int | None = None


def pretrain(options: PretrainOptions, *, resume: bool = False) -> Outcome:
    """Train a masked language model.

    Parameters
    ----------
    options : PretrainOptions
    resume : bool
        Go on where the run in ``options.out`` stopped; one that has not begun begins. However often a run is stopped and resumed,
        by whatever signal and with whatever number of threads, its weights are those of a run that never stopped, bit for bit.

    Returns
    -------
    outcome : Outcome

    Raises
    ------
    FileExistsError
        There is a run already, and `resume` is False.
    FileNotFoundError, FormatError, ValueError
        The options cannot work, or are not those that the run began with.
    NonFiniteError
        Loss or gradient is not finite. Weights and checkpoints are as they were.
    OSError
        The last checkpoint cannot be written.
    """
    options.check()
    out = Path(options.out)
    if (out / OPTIONS_FILE).exists() and not resume:
        raise FileExistsError(errno.EEXIST, "there is a run in this folder: --resume goes on with it; or choose another --out", str(out))
    out.mkdir(parents=True, exist_ok=True)
    set_num_threads(options.threads)
    with _locked(out):
        sweep(Path(options.cache or out / "tokens"))
        run = put_together(options)
        _keep_options(run.options, out)
        return _Loop(run, out).go()


def model_of_run(folder: Path) -> Path | None:
    """Return the model of a run's folder: the finished one, or that of the newest checkpoint; None if it is no run's folder."""
    if not (folder / OPTIONS_FILE).exists():
        return None
    if (folder / MODEL).is_dir():
        return folder / MODEL
    found = Checkpoints(folder / CHECKPOINTS).newest()
    if found is None:
        raise FileNotFoundError(f"{folder}: the run has no checkpoint yet")
    return found.folder


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Keep other processes out of a run's folder; the lock goes with the process, however it ends."""
    descriptor = os.open(out / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FormatError(f"{out}: another process is training in this folder") from None
        yield
    finally:
        os.close(descriptor)


def _keep_options(options: PretrainOptions, out: Path) -> None:
    """Write the resolved options into the run's folder, or see that they are those that are there."""
    path = out / OPTIONS_FILE
    if path.exists():
        different = options.differences(asdict(PretrainOptions(**read_toml(path))))
        if different:
            names = ", ".join(f"--{name.replace('_', '-')}" for name in different)
            raise ValueError(f"{out}: the run began with another {names}: leave that out to go on, or choose another --out")
    new = path.with_name(path.name + ".new")
    new.write_text(options.to_toml(), encoding="utf-8")
    flush(new)
    os.replace(new, path)
    flush(out)


class _Loop:
    """A run in its folder."""

    def __init__(self, run: Run, out: Path) -> None:
        self.run, self.options, self.out = run, run.options, out
        self.checkpoints, self.log = Checkpoints(out / CHECKPOINTS), Log(out / LOG_FILE)
        self.checkpoints.sweep()
        self.evaluated = -1  # the step that was evaluated last
        self.best: dict[str, Any] | None = None
        found = self.checkpoints.newest()
        if found is None:
            self.trainer: Trainer = run.trainer(run.new_model())
        else:
            if found.facts["corpus"] != run.corpus.key:
                raise FormatError(f"{out}: text or tokenizer changed since the run began; it cannot be resumed")
            self.trainer = run.trainer(load_model(found))
            restore(self.trainer, found)
            self.checkpoints.set_aside(found.damaged)
            self.evaluated, self.best = found.facts["evaluated"], found.facts["best"]
        self.saved = self.trainer.n_steps if found is not None and not self.trainer.n_done else -1
        self.log.rewind(self.trainer.n_steps, self.evaluated)

    def go(self) -> Outcome:
        trainer, n_steps = self.trainer, self.options.steps
        assert n_steps is not None
        view = View(n_steps, trainer.n_steps)
        try:
            with StopSignals() as stop:
                while True:
                    if not trainer.n_done:
                        self._evaluate(view, stop)
                    if stop:
                        folder = self._save(view, must=True)
                        view.say(f"stopped after step {trainer.n_steps:,} of {n_steps:,}, saved: --resume goes on from there")
                        return Outcome(folder or self.out, trainer.n_steps, stop.received)
                    if not trainer.n_done:
                        if self._is_save_due(n_steps):
                            self._save(view, must=trainer.n_steps == n_steps)
                        if trainer.n_steps == n_steps:
                            break
                    self._advance(view)
        except NonFiniteError as error:
            self.log.write({"step": trainer.n_steps + 1, "error": str(error)})
            raise
        finally:
            view.close()
            self._draw()
        return Outcome(self._finish(), trainer.n_steps)

    def _advance(self, view: View) -> None:
        begin = time.perf_counter()
        self._tell(self.trainer.advance(), begin, view)

    def _settle(self, view: View) -> None:
        """Wait for a step that nobody has waited for."""
        begin = time.perf_counter()
        self._tell(self.trainer.take_step(), begin, view)

    def _tell(self, step: Step | None, begin: float, view: View) -> None:
        if step is not None:
            self.log.write({**asdict(step), "seconds": round(time.perf_counter() - begin, 4)})
            view.step(step)

    def _evaluate(self, view: View, stop: StopSignals) -> None:
        """Evaluate if it is time to, and was not done before."""
        step, every = self.trainer.n_steps, self.options.eval_every
        assert every is not None
        if self.run.validation is None or self.evaluated == step or (step % every and step != self.options.steps):
            return
        self._settle(view)
        found = evaluate(self.trainer.model, self.run.validation, n_batches=self.run.n_validation_batches, is_stopped=lambda: bool(stop))
        if found is None:
            return
        self.evaluated = step
        self.log.write({"step": step, "validation": asdict(found)})
        view.evaluation(step, found)
        if step and (self.best is None or found.loss.mean < self.best["loss"]):
            self.best = {"step": step, "loss": found.loss.mean}
        self._draw()

    def _is_save_due(self, n_steps: int) -> bool:
        step, every = self.trainer.n_steps, self.options.save_every
        assert every is not None
        is_best = self.best is not None and self.best["step"] == step
        return step > 0 and step != self.saved and (step % every == 0 or step == n_steps or is_best)

    def _save(self, view: View, *, must: bool) -> Path | None:
        """Save; if the disk refuses, that is an error if it `must` be, else a line, and training goes on."""
        self._settle(view)
        facts = {"corpus": self.run.corpus.key, "evaluated": self.evaluated, "best": self.best, "options": asdict(self.options)}
        try:
            folder = self.checkpoints.save(self.trainer, facts)
            self.checkpoints.keep(self.options.keep, None if self.best is None else self.best["step"])
        except OSError as error:
            if must:
                raise
            view.say(f"lucid: warning: no checkpoint of step {self.trainer.n_steps:,}: {error}; training goes on")
            return None
        self.saved = self.trainer.n_steps
        return folder

    def _draw(self) -> None:
        if can_draw():
            draw_curves(self.log.read(), self.out / CURVES_FILE)

    def _finish(self) -> Path:
        """Leave the finished model in a folder of its own."""
        folder = self.out / MODEL
        self.trainer.model.save_pretrained(folder)
        return folder
