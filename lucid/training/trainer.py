"""The state of a training run, and how it moves: one batch at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from lucid.data import Batch, Batches, Place
from lucid.models import BERTForMaskedLM
from lucid.models.bert.packing import PackedBatch, TokenRows, pack_lists
from lucid.optim import AdamW, Schedule


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
    Weights, moments, `place`, `losses` and gradients are all there is: two trainers that agree in them go on alike, bit for bit.
    """

    def __init__(self, model: BERTForMaskedLM, optimizer: AdamW, schedule: Schedule, batches: Batches, n_accumulated: int = 1) -> None:
        if n_accumulated < 1:
            raise ValueError(f"a step has a batch at least, not {n_accumulated}")
        self.model, self.optimizer, self.schedule, self.batches = model.train(), optimizer, schedule, batches
        self.n_accumulated = n_accumulated
        self.place = Place()
        self.losses: list[float] = []
        self._batches_of_step: list[Batch] = []

    @property
    def n_steps(self) -> int:
        """Steps taken."""
        return self.optimizer.n_steps

    def advance(self) -> Step | None:
        """Run the next batch; the last of a step updates the weights.

        Returns
        -------
        step : Step, or None within one

        Raises
        ------
        NonFiniteError
            The loss or a gradient is NaN or infinite; the message names step and batch. The weights are as before.
        """
        if not self._batches_of_step:
            self._batches_of_step = self._next_batches()
        batches = self._batches_of_step
        self._run(batches[len(self.losses)])
        if len(self.losses) < self.n_accumulated:
            return None
        lr = self.schedule.step()
        n_labels, norm = sum(batch.n_labels for batch in batches), 0.0
        if n_labels:
            where = f"from example {self.place.example} of epoch {self.place.epoch} on"
            norm = float(self.optimizer.step(batch=where, divisor=n_labels))
            self.optimizer.settle()
        else:  # nothing was asked, so there is no gradient
            self.optimizer.n_steps += 1
        self.optimizer.zero_grad()
        loss = math.fsum(self.losses) / max(1, n_labels)
        n_tokens = sum(batch.n_tokens for batch in batches)
        step = Step(self.n_steps, self.place.epoch, loss, lr, norm, n_tokens, n_labels)
        self.place, self.losses, self._batches_of_step = batches[-1].end, [], []
        return step

    def _next_batches(self) -> list[Batch]:
        batches: list[Batch] = []
        for _ in range(self.n_accumulated):
            batches.append(self.batches.at(batches[-1].end if batches else self.place))
        return batches

    def _run(self, batch: Batch) -> None:
        """Add a batch's share to the gradients and to the loss."""
        if not batch.n_labels:
            self.losses.append(0.0)
            return
        packed, rows, labels = pack_batch(self.model, batch, seed=batch.seed)
        loss = self.model.loss_of(packed, rows, labels, "sum")
        first, last = batch.place.example, batch.place.example + len(batch.numbers) - 1
        where = f"{len(self.losses) + 1} of {self.n_accumulated} (examples {first} to {last} in the order of epoch {batch.place.epoch})"
        value = self.optimizer.check_loss(loss, batch=where)
        loss.backward()
        self.losses.append(value)


def pack_batch(model: BERTForMaskedLM, batch: Batch, seed: int | None = None) -> tuple[PackedBatch, TokenRows, Any]:
    """Return a batch as the model takes it, the tokens that are asked for, and what is right there, int32."""
    asked = np.flatnonzero(batch.labels != -100)
    ids = [batch.ids[start:stop] for start, stop in zip(batch.starts[:-1], batch.starts[1:], strict=True)]
    packed = pack_lists(model.config, ids, numbers=batch.numbers, seed=seed)
    rows = TokenRows(asked.astype(np.int32), np.searchsorted(asked, batch.starts).astype(np.int32))
    return packed, rows, batch.labels[asked].astype(np.int32)
