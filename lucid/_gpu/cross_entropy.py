"""Softmax cross-entropy on given logits, on the GPU: a block of threads takes a row."""

from __future__ import annotations

from typing import Any

import numpy as np

from lucid._gpu.runtime import Array, c_type, contiguous, empty, launch, row_stride, rows_contiguous, xp

ROW_THREADS = 256
"""Of a block; `ROW_THREADS` in softmax.cuh."""


def forward(logits: Array, *, labels: Array, ignore_index: int = -100, keep: bool) -> tuple[Array, Any]:
    """Do what `lucid.ops.cross_entropy` says."""
    counted = xp.asarray(np.where(labels == ignore_index, -1, labels), np.int32)
    logits = rows_contiguous(logits)
    losses, lse = empty((2, len(logits)))
    cross_entropy_forward(logits, None, counted, losses, lse)
    return losses, (logits, counted, lse) if keep else None


def backward(saved: tuple[Array, Array, Array], d_losses: Array) -> tuple[Array]:
    """Return the gradient of the logits, of their type."""
    logits, labels, lse = saved
    d_logits = empty(logits.shape, logits.dtype)
    cross_entropy_backward(logits, None, labels, lse, contiguous(d_losses), d_logits)
    return (d_logits,)


def cross_entropy_forward(logits: Array, bias: Array | None, labels: Array, losses: Array, lse: Array) -> None:
    """losses[p] = lse[p] - logits[p, labels[p]], lse[p] = log(sum_j exp(logits[p, j])).

    Parameters
    ----------
    logits : array, float32, float16 or bfloat16, shape (P, V). Rows may be apart.
    bias : array, float32, shape (V,), or None. Added to each row.
    labels : array, int32, shape (P,). One below 0 leaves a loss of 0.
    losses, lse : array, float32, shape (P,). Written.
    """
    _launch(f"cross_entropy_forward<{c_type(logits)}>", logits, bias, labels, losses, lse)


def cross_entropy_backward(logits: Array, bias: Array | None, labels: Array, lse: Array, d_losses: Array, d_logits: Array) -> None:
    """d_logits[p, j] = (exp(logits[p, j] - lse[p]) - [labels[p] == j]) * d_losses[p].

    Parameters
    ----------
    logits, bias, labels : as for `cross_entropy_forward`. A label below 0 gives zeros.
    lse, d_losses : array, float32, shape (P,)
    d_logits : array, of the type of the logits or a smaller one, shape (P, V). Written; may be logits.
    """
    name = f"cross_entropy_backward<{c_type(logits)}, {c_type(d_logits)}>"
    _launch(name, logits, bias, labels, lse, d_losses, d_logits, stride(d_logits))


def cross_entropy_both(logits: Array, bias: Array | None, labels: Array, d_loss: float, losses: Array, d_logits: Array) -> None:
    """Do `cross_entropy_forward` and `cross_entropy_backward` of float32 logits at once, where every loss has the gradient `d_loss`."""
    _launch(f"cross_entropy_both<{c_type(d_logits)}>", logits, bias, labels, np.float32(d_loss), losses, d_logits, stride(d_logits))


def _launch(name: str, logits: Array, bias: Array | None, labels: Array, *rest: Any) -> None:
    n_rows, n_words = logits.shape
    launch("cross_entropy", name, n_rows, ROW_THREADS, (logits, stride(logits), bias, labels, np.int32(n_words), *rest))


def stride(array: Array) -> np.int64:
    """Return the distance of the rows of a matrix in elements, as a kernel takes it."""
    return np.int64(row_stride(array))
