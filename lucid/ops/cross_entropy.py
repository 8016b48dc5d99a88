"""Softmax cross-entropy on given logits."""

from typing import Any

import numpy as np

from lucid._ext import kernels
from lucid.ops.op import Array, Kernel, Op, empty, on_gpu, stored_type, want, want_ids, want_integer
from lucid.threads import threads_for


def _check(logits: Array, *, labels: Array, ignore_index: int = -100) -> None:
    want("cross_entropy", "logits", logits, stored_type(logits), (None, None))
    want("cross_entropy", "labels", labels, np.int32, (logits.shape[0],))
    want_integer("cross_entropy", "ignore_index", ignore_index)
    if logits.shape[1] == 0:
        raise ValueError("cross_entropy: logits have no columns")
    want_ids("cross_entropy", "labels", np.where(labels == ignore_index, 0, labels), logits.shape[1])


def _forward(logits: Array, *, labels: Array, ignore_index: int = -100, keep: bool) -> tuple[Array, Any]:
    counted = np.where(labels == ignore_index, -1, labels).astype(np.int32)
    losses = np.empty(logits.shape[0], np.float32)
    lse = np.empty(logits.shape[0], np.float32)
    kernels.cross_entropy_forward(
        np.ascontiguousarray(logits),
        counted,
        losses,
        lse,
        threads_for(logits.size),
    )
    return losses, (logits, counted, lse) if keep else None


def _backward(saved: tuple[Array, Array, Array], d_losses: Array) -> tuple[Array]:
    logits, labels, lse = saved
    d_logits = empty(logits.shape)
    kernels.cross_entropy_backward(
        np.ascontiguousarray(logits), labels, lse, np.ascontiguousarray(d_losses), 0, d_logits, threads_for(logits.size)
    )
    return (d_logits,)


cross_entropy = Op("cross_entropy", _check, cpu=Kernel(_forward, _backward), gpu=on_gpu("cross_entropy", is_fresh=True))
"""losses[p] = log(sum_j exp(logits[p, j])) - logits[p, labels[p]]; 0 where the label is `ignore_index`.

Parameters
----------
logits : array, float32, shape (P, V)
labels : array, int32, shape (P,)
ignore_index : int

Returns
-------
losses : array, float32, shape (P,)

Raises
------
IndexError
    A label that is not `ignore_index` lies outside [0, V).
TypeError, ValueError
    Dtypes or shapes do not agree.
"""
