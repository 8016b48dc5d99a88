"""The state of a training run, and how it moves: one batch at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from lucid.data import Batch, Batches, Place
from lucid.device import read_later
from lucid.models import BERTForMaskedLM
from lucid.models.bert.packing import PackedBatch, TokenRows, pack_lists
from lucid.optim import AdamW, NonFiniteError, Schedule


@dataclass(frozen=True, slots=True)
class Step:
    """What a step did.

    Attributes
    ----------
    step : int, from 1
    epoch : int. Where its first batch lies, from 0.
    loss : float. Mean over the step's labels, in nats.
    lr : float
    grad_norm : float. Before clipping.
    n_tokens, n_labels : int
    """

    step: int
    epoch: int
    loss: float
    lr: float
    grad_norm: float
    n_tokens: int
    n_labels: int


@dataclass(frozen=True, slots=True)
class _Loss:
    """The sum over the labels of a batch: how to read it, and how the batch is called."""

    read: Callable[[], Any]
    where: str


@dataclass(frozen=True, slots=True)
class _Unread:
    """A step whose losses and norm nobody has read, and what else a `Step` is made of."""

    place: Place
    batches: list[Batch]
    losses: list[_Loss]
    lr: float
    norm: Any


class Trainer:
    """A model, its optimizer, and the place in the data that they have come to.

    A step is `n_accumulated` batches: their gradients, each of the sum over its labels, add up, and are divided by the number of
    labels of them all. So a step follows the mean over its labels, not the mean of means.

    Parameters
    ----------
    model : BERTForMaskedLM. Put in train mode.
    optimizer : AdamW
    schedule : Schedule of that optimizer
    batches : Batches
    n_accumulated : int, >= 1

    Attributes
    ----------
    place : Place. Where the step at hand begins.
    losses : list of float. The sum over the labels of each batch of the step at hand that has run.

    Notes
    -----
    On the GPU, loss and norm of a step are read one step late, when all of the next one has been asked for, so that nothing waits. A step
    that is not finite changes nothing in any case: AdamW looks at the norm there.

    Weights, moments, `place`, `losses` and gradients are all there is: two trainers that agree in them go on alike, bit for bit.
    """

    def __init__(self, model: BERTForMaskedLM, optimizer: AdamW, schedule: Schedule, batches: Batches, n_accumulated: int = 1) -> None:
        if n_accumulated < 1:
            raise ValueError(f"a step has a batch at least, not {n_accumulated}")
        self.model, self.optimizer, self.schedule, self.batches = model.train(), optimizer, schedule, batches
        self.n_accumulated = n_accumulated
        self.place = Place()
        self._losses: list[_Loss] = []
        self._batches_of_step: list[Batch] = []
        self._unread: _Unread | None = None
        self._step: Step | None = None  # read, but not returned

    @property
    def n_steps(self) -> int:
        """Steps taken."""
        return self.optimizer.n_steps

    @property
    def n_done(self) -> int:
        """Batches of the step at hand that have run."""
        return len(self._losses)

    @property
    def losses(self) -> list[float]:
        """What the class says. On the GPU this waits, and raises `NonFiniteError` for a loss that is not finite."""
        return [self.optimizer.check_loss(loss.read(), batch=loss.where) for loss in self._losses]

    @losses.setter
    def losses(self, values: Iterable[float]) -> None:
        self._losses = [_Loss(partial(float, value), "") for value in values]

    def advance(self) -> Step | None:
        """Run the next batch; the last of a step updates the weights.

        Returns
        -------
        step : Step, or None within one. On the GPU it is the step before, None after the first: `take_step` gives the last.

        Raises
        ------
        NonFiniteError
            The loss or a gradient is NaN or infinite; the message names step and batch. The weights are as before that step.
        """
        if not self._batches_of_step:
            self._batches_of_step = self._next_batches()
        batches = self._batches_of_step
        self._run(batches[self.n_done])
        if self.n_done < self.n_accumulated:
            return None
        before = self.take_step()  # while the GPU is busy with the step at hand
        lr = self.schedule.step()
        n_labels = sum(batch.n_labels for batch in batches)
        norm: Any = 0.0
        if n_labels:
            where = f"from example {self.place.example} of epoch {self.place.epoch} on"
            norm = self.optimizer.step(batch=where, divisor=n_labels)
        else:  # nothing was asked, so there is no gradient
            self.optimizer.n_steps += 1
        self.optimizer.zero_grad()
        self._unread = _Unread(self.place, batches, self._losses, lr, norm)
        self.place, self._losses, self._batches_of_step = batches[-1].end, [], []
        return before if self._is_late else self.take_step()

    def take_step(self) -> Step | None:
        """Return the step that `advance` has not returned yet, if there is one, and wait for it.

        Raises
        ------
        NonFiniteError
            As `advance`.
        """
        self.settle()
        step, self._step = self._step, None
        return step

    def settle(self) -> None:
        """Wait for the last step, if nobody has; `take_step` or `advance` will return it.

        Raises
        ------
        NonFiniteError
            As `advance`. The trainer is then where that step began.
        """
        last, self._unread = self._unread, None
        if last is None:
            return
        try:
            norm = self.optimizer.settle()
        except NonFiniteError:
            self.place, self._losses, self._batches_of_step = last.place, [], []
            self.optimizer.zero_grad()
            for loss in last.losses:  # which says more, if it was one of these
                self.optimizer.check_loss(loss.read(), batch=loss.where)
            raise
        n_labels, n_tokens = (sum(getattr(batch, name) for batch in last.batches) for name in ("n_labels", "n_tokens"))
        loss = math.fsum(float(loss.read()) for loss in last.losses) / max(1, n_labels)
        norm = float(last.norm) if norm is None else norm
        self._step = Step(self.n_steps, last.place.epoch, loss, last.lr, norm, n_tokens, n_labels)

    @property
    def _is_late(self) -> bool:
        return self.model.device == "gpu"

    def _next_batches(self) -> list[Batch]:
        batches: list[Batch] = []
        for _ in range(self.n_accumulated):
            batches.append(self.batches.at(batches[-1].end if batches else self.place))
        return batches

    def _run(self, batch: Batch) -> None:
        """Add a batch's share to the gradients and to the loss."""
        if not batch.n_labels:
            self._losses.append(_Loss(float, ""))
            return
        packed, rows, labels = pack_batch(self.model, batch, seed=batch.seed)
        loss = self.model.loss_of(packed, rows, labels, "sum")
        first, last = batch.place.example, batch.place.example + len(batch.numbers) - 1
        where = f"{self.n_done + 1} of {self.n_accumulated} (examples {first} to {last} in the order of epoch {batch.place.epoch})"
        if self._is_late:
            loss.backward(loss.array * 0 + 1)  # NaN where the loss is not finite: then AdamW makes no step
        else:
            self.optimizer.check_loss(loss, batch=where)
            loss.backward()
        self._losses.append(_Loss(read_later(loss.array), where))


def pack_batch(model: BERTForMaskedLM, batch: Batch, seed: int | None = None) -> tuple[PackedBatch, TokenRows, Any]:
    """Return a batch as the model takes it, the tokens that are asked for, and what is right there, int32."""
    asked = np.flatnonzero(batch.labels != -100)
    ids = [batch.ids[start:stop] for start, stop in zip(batch.starts[:-1], batch.starts[1:], strict=True)]
    packed = pack_lists(model.config, ids, numbers=batch.numbers, seed=seed)
    rows = TokenRows(asked.astype(np.int32), np.searchsorted(asked, batch.starts).astype(np.int32))
    return packed, rows, batch.labels[asked].astype(np.int32)
