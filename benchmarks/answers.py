"""Whether a peer's answer is the reference's: nothing is timed before.

An answer is a dict of arrays. What is compared, and how closely:

- logits and hidden states: within 1e-4 of the largest number in the reference, everywhere;
- guesses for masks: the k-th score is the reference's k-th, and is the reference's score of that word, within 1e-3;
- the loss within 1e-5, the norm of the gradient within 1e-4; the loss with dropout within 5 %, since no two draw the same zeros.

Half precision, a wrong mask or a lost layer are far outside; another order of sums is far inside.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.workloads import TOP_K, Task

Answer = Mapping[str, Any]

BOUNDS = {
    "logits": 1e-4,
    "hidden": 1e-4,
    "scores": 1e-3,
    "loss": 1e-5,
    "gradient_norm": 1e-4,
    "loss_with_dropout": 0.05,
}


class WrongAnswerError(Exception):
    """A peer answers something else than the reference."""


def check(task: Task, answer: Answer, reference: Answer) -> float:
    """Return the largest distance of an answer from the reference, divided by its bound: at most 1.

    Parameters
    ----------
    task : Task
    answer : dict of arrays
    reference : dict of arrays; for masks, ``log_probs`` of all words. A number that it lacks is not compared.

    Raises
    ------
    WrongAnswerError
        It is further away, has another shape, or holds what is no number.
    """
    if task in (Task.FILL_MASKS, Task.COLD_START):
        distances = {"scores": _distance_of_guesses(np.asarray(answer["ids"]), np.asarray(answer["scores"]), reference["log_probs"])}
    else:
        distances = {name: _distance(name, np.asarray(answer[name]), np.asarray(reference[name])) for name in answer if name in reference}
    if not distances:
        raise WrongAnswerError("nothing that can be compared")
    shares = {name: distance / BOUNDS[name] for name, distance in distances.items()}
    for name, share in shares.items():
        if not share <= 1:  # NaN as well
            raise WrongAnswerError(f"{name}: {distances[name]:.2g} from the reference, the bound is {BOUNDS[name]:g}")
    return max(shares.values())


def _distance(name: str, values: Any, wanted: Any) -> float:
    if values.shape != wanted.shape:
        raise WrongAnswerError(f"{name} has shape {values.shape}, the reference {wanted.shape}")
    return float(np.abs(values - wanted).max() / np.abs(wanted).max())


def _distance_of_guesses(ids: Any, scores: Any, log_probs: Any) -> float:
    n = len(log_probs)
    if ids.shape != (n, TOP_K) or scores.shape != ids.shape:
        raise WrongAnswerError(f"guesses have shapes {ids.shape} and {scores.shape}, wanted {(n, TOP_K)}")
    if any(len(set(row.tolist())) < TOP_K for row in ids):
        raise WrongAnswerError("a word is guessed twice for a mask")
    # By scores, not by ids: words as likely as each other may change places.
    best = np.exp(-np.sort(-log_probs, axis=1)[:, :TOP_K])
    own = np.exp(np.take_along_axis(log_probs, ids, axis=1))
    return float(max(np.abs(scores / best - 1).max(), np.abs(scores / own - 1).max()))
