"""The workloads: what is run, on which inputs, how many operations it takes at least, and what lucid is to reach."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from benchmarks.aims import Aim
from benchmarks.checkpoint import SIZES
from benchmarks.texts import N_WORDS, ids_of, lengths_between, texts_of

P_LABEL = 0.15
IGNORED = -100
TOP_K = 5
NO_AIM = Aim()


class Task(StrEnum):
    """What a peer is asked for; a peer has a method of that name for each it can do."""

    LOGITS = "logits"
    ENCODE = "encode"
    FILL_MASKS = "fill_masks"
    LOSS = "loss"
    TRAINING_STEP = "training_step"
    COLD_START = "cold_start"


@dataclass(frozen=True)
class Case:
    """One input of a workload.

    Attributes
    ----------
    label : str
    task : Task
    lengths : tuple of int. Tokens of each sequence, with [CLS] and [SEP].
    aim : Aim
    """

    label: str
    task: Task
    lengths: tuple[int, ...]
    aim: Aim = NO_AIM

    @property
    def n_tokens(self) -> int:
        """Real tokens."""
        return sum(self.lengths)

    def rows(self) -> list[list[int]]:
        """Return the ids, a list for each sequence."""
        return ids_of(self.lengths, seed=len(self.lengths))

    def texts(self) -> list[str]:
        """Return a text with one [MASK] for each sequence."""
        return texts_of(self.lengths, seed=len(self.lengths))

    def labels(self) -> list[list[int]]:
        """Return a label for 15 % of the tokens, `IGNORED` for the others."""
        rng = np.random.default_rng(self.n_tokens)
        flat = np.full(self.n_tokens, IGNORED)
        flat[rng.permutation(self.n_tokens)[: round(P_LABEL * self.n_tokens)]] = 5000
        return [part.tolist() for part in np.split(flat, np.cumsum(self.lengths)[:-1])]

    @property
    def n_asked(self) -> int:
        """Tokens whose words are asked for."""
        if self.task in (Task.FILL_MASKS, Task.COLD_START):
            return len(self.lengths)
        if self.task in (Task.LOSS, Task.TRAINING_STEP):
            return round(P_LABEL * self.n_tokens)
        return self.n_tokens if self.task is Task.LOGITS else 0

    def flops(self, size: str) -> float:
        """Return the operations that the answer takes without padding, each layer for every token, backward twice forward."""
        n_layers, width = SIZES[size]
        inner = 4 * width
        encoder = sum(n_layers * (2 * s * (4 * width * width + 2 * width * inner) + 4 * s * s * width) for s in self.lengths)
        head = 2 * self.n_asked * (width * width + width * N_WORDS)
        return float(encoder + head) * (3 if self.task is Task.TRAINING_STEP else 1)


@dataclass(frozen=True)
class Workload:
    """Cases that are asked in the same way."""

    name: str
    title: str
    cases: tuple[Case, ...]
    weight: float = 1.0
    """Share of the time box, beside the others'."""


def _full(task: Task, shapes: dict[tuple[int, int], Aim]) -> tuple[Case, ...]:
    return tuple(Case(f"{b}x{s}", task, (s,) * b, aim) for (b, s), aim in shapes.items())


def workloads(is_quick: bool = False) -> tuple[Workload, ...]:
    """Return the workloads W1-W5 and W7; W6 is int8, which lucid does not have.

    Parameters
    ----------
    is_quick : bool
        Small inputs, without aims: they show that everything works, not how fast it is.
    """
    fills, many, loss = (12,), lengths_between(8, 128, 64), lengths_between(16, 128, 32)
    w1 = {(1, 16): Aim(0.75), (1, 128): Aim(0.9), (8, 128): Aim(0.86, peak=0.88)}
    w2 = {(1, 16): Aim(0.75), (1, 128): Aim(0.88), (8, 128): Aim(0.82, peak=0.9), (4, 512): Aim(0.77, peak=0.9)}
    step = {(8, 128): Aim(transformers=0.55, memory=0.75)}
    if is_quick:
        many, loss = lengths_between(8, 32, 8), lengths_between(8, 32, 4)
        w1 = w2 = {(1, 16): NO_AIM, (4, 48): NO_AIM}
        step = {(2, 32): NO_AIM}
    return (
        Workload("W1", "logits for every position", _full(Task.LOGITS, w1)),
        Workload("W2", "encoder only", _full(Task.ENCODE, w2)),
        Workload(
            "W3a",
            "fill-mask from text, one sentence at a time",
            (Case("1 sentence", Task.FILL_MASKS, fills, _of(is_quick, Aim(0.65))),),
            0.5,
        ),
        Workload(
            "W3b",
            "fill-mask from text, many sentences at once",
            (Case(_spread(many, "sentences"), Task.FILL_MASKS, many, _of(is_quick, Aim(0.35))),),
            1.5,
        ),
        Workload(
            "W4",
            "masked-LM loss, no gradient",
            (Case(_spread(loss, "sequences"), Task.LOSS, loss, _of(is_quick, Aim(transformers=0.35))),),
            1,
        ),
        Workload("W5", "training step: forward, backward, AdamW, dropout 0.1", _full(Task.TRAINING_STEP, step), 1.5),
        Workload(
            "W7",
            "cold start: new process, import, load, one fill-mask",
            (Case("1 sentence", Task.COLD_START, fills, _of(is_quick, Aim(seconds=0.5, memory_of_checkpoint=1.25))),),
        ),
    )


def _of(is_quick: bool, aim: Aim) -> Aim:
    return NO_AIM if is_quick else aim


def _spread(lengths: Sequence[int], what: str) -> str:
    return f"{len(lengths)} {what} of {min(lengths)}-{max(lengths)} tokens"


def find(name: str, label: str, is_quick: bool) -> Case:
    """Return a case by its names."""
    return next(case for w in workloads(is_quick) if w.name == name for case in w.cases if case.label == label)


def padded(rows: Sequence[Sequence[int]], filler: int = 0) -> Any:
    """Return lists as one int64 array, filled up at the end."""
    array = np.full((len(rows), max(map(len, rows))), filler, np.int64)
    for row, values in zip(array, rows, strict=True):
        row[: len(values)] = values
    return array


def mask_of(rows: Sequence[Sequence[int]]) -> Any:
    """Return 1 for tokens and 0 for padding, int64."""
    return padded([[1] * len(row) for row in rows])


def batches_by_length(rows: Sequence[Sequence[int]], n_rows: int) -> list[list[int]]:
    """Return the numbers of the rows in batches of `n_rows`, those of like length together: little padding."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    return [order[i : i + n_rows] for i in range(0, len(order), n_rows)]


def batches_in_order(n: int, n_rows: int) -> list[list[int]]:
    """Return the numbers 0 to n - 1 in batches of `n_rows`, as they come."""
    return [list(range(i, min(n, i + n_rows))) for i in range(0, n, n_rows)]
