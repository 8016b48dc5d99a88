"""From logits to the best words and to the loss, in NumPy: what runtimes of graphs leave to their users."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.workloads import TOP_K


def log_sum_exp(logits: Any) -> Any:
    """Return log(sum(exp(row))) of each row."""
    largest = logits.max(axis=1)
    return largest + np.log(np.exp(logits - largest[:, None]).sum(axis=1))


def best_words(logits: Any) -> tuple[Any, Any]:
    """Return ids and probabilities of the best words of each row, best first."""
    ids = np.argpartition(logits, -TOP_K, axis=1)[:, -TOP_K:]
    values = np.take_along_axis(logits, ids, axis=1)
    order = np.argsort(-values, axis=1)
    ids, values = np.take_along_axis(ids, order, axis=1), np.take_along_axis(values, order, axis=1)
    return ids, np.exp(values - log_sum_exp(logits)[:, None])


def losses(logits: Any, labels: Any) -> Any:
    """Return the cross-entropy of each row."""
    return log_sum_exp(logits) - logits[np.arange(len(labels)), labels]
