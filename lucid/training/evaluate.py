"""How well a model guesses masked words: on masks that stay the same, with how sure the figures are."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from lucid.autograd import no_grad
from lucid.data import Batches, Place
from lucid.models import BERTForMaskedLM
from lucid.training.trainer import pack_batch

_Z_95 = 1.959963984540054


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over labels, with the bounds of its 95 % confidence interval.

    The bounds are of a ratio of sums over examples (Cochran 1977, section 6.4), since the labels of one example are not
    independent of each other.
    """

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What an evaluation found.

    Attributes
    ----------
    loss : Estimate. Mean cross-entropy of the masked words, in nats.
    perplexity : Estimate. exp(loss).
    accuracy : Estimate. Share of masked words that are the model's likeliest.
    n_labels, n_examples : int
    """

    loss: Estimate
    perplexity: Estimate
    accuracy: Estimate
    n_labels: int
    n_examples: int


def evaluate(
    model: BERTForMaskedLM,
    batches: Batches,
    *,
    n_batches: int | None = None,
    is_stopped: Callable[[], bool] = lambda: False,
    progress: Callable[[int], None] = lambda n_examples: None,
) -> Evaluation | None:
    """Evaluate a model on the first epoch of `batches`: the same masks every time.

    Parameters
    ----------
    model : BERTForMaskedLM. Evaluated in eval mode, without dropout; its mode is put back.
    batches : Batches
    n_batches : int, optional. Use so many only: a sample, the same every time.
    is_stopped : function. Asked before each batch whether to give up.
    progress : function of the number of examples that were read since the last call

    Returns
    -------
    evaluation : Evaluation, or None if it was given up

    Raises
    ------
    ValueError
        No word is masked: the text is too short.
    """
    was_training = model.training
    sums: list[Any] = []
    model.eval()
    try:
        place = Place()
        while place.epoch == 0 and (n_batches is None or len(sums) < n_batches):
            if is_stopped():
                return None
            batch = batches.at(place)
            packed, rows, labels = pack_batch(model, batch)
            with no_grad():
                losses, guesses = model.losses_and_guesses(packed, rows, labels)
            values = np.stack([np.ones(len(labels)), losses.astype(np.float64), guesses == labels])
            sums.append(np.stack([_sums(value, rows.starts) for value in values], axis=1))
            place = batch.end
            progress(len(batch.numbers))
    finally:
        model.train(was_training)
    table = np.concatenate(sums)
    n_labels = int(table[:, 0].sum())
    if not n_labels:
        raise ValueError(f"no word of {len(table)} examples is masked: evaluate on more text, or raise the share of masked words")
    loss = _ratio(table[:, 1], table[:, 0])
    perplexity = Estimate(*(math.exp(min(bound, 700.0)) for bound in (loss.mean, loss.low, loss.high)))
    return Evaluation(loss, perplexity, _ratio(table[:, 2], table[:, 0]), n_labels, len(table))


def _sums(values: Any, starts: Any) -> Any:
    """Return the sum of each example's values."""
    running = np.concatenate([[0.0], np.cumsum(values)])
    return running[starts[1:]] - running[starts[:-1]]


def _ratio(numerators: Any, counts: Any) -> Estimate:
    mean = float(numerators.sum() / counts.sum())
    n = len(counts)
    if n < 2:
        return Estimate(mean, -math.inf, math.inf)
    variance = float(((numerators - mean * counts) ** 2).sum()) * n / (n - 1) / float(counts.sum()) ** 2
    half = _Z_95 * math.sqrt(variance)
    return Estimate(mean, mean - half, mean + half)
