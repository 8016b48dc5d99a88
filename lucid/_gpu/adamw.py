"""AdamW on the GPU: all parameters in three launches, and nobody waits for a norm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lucid._gpu.runtime import Array, contiguous, empty, launch, xp

CHUNK, THREADS = 16384, 256  # as in adamw.cu

UPDATE = np.dtype(
    [
        *((name, np.uint64) for name in ("weight", "d_weight", "m", "v", "copy")),
        ("n", np.int64),
        *((name, np.float32) for name in ("keep", "rate", "root")),
        ("copy_is_half", np.int32),
    ]
)
"""`Update` of adamw.cu."""


def chunks_of(sizes: Sequence[int]) -> Any:
    """Return (parameter, chunk of it) for every block, int32, shape (n_blocks, 2)."""
    counts = [-(-size // CHUNK) for size in sizes]
    which = np.repeat(np.arange(len(sizes)), counts)
    starts = np.cumsum([0, *counts[:-1]]) if counts else np.zeros(0, np.int64)
    return np.stack([which, np.arange(len(which)) - np.repeat(starts, counts)], axis=1).astype(np.int32)


def _table(rows: Sequence[Sequence[Any]]) -> tuple[Array, Array]:
    """Return rows of `UPDATE` and the chunks of their parameters, on the GPU."""
    table = np.array([tuple(row) for row in rows], UPDATE)
    return xp.asarray(table.view(np.uint8)), xp.asarray(chunks_of(table["n"].tolist()))


def _norm(table: Array, chunks: Array, share: float, max_norm: float | None) -> Array:
    sums, norm = empty((len(chunks),), np.float64), empty((2,), np.float64)
    launch("adamw", "square_sums", len(chunks), THREADS, (table, chunks, sums))
    most = np.float64(math.inf if max_norm is None else max_norm)
    launch("adamw", "gradient_norm", 1, 1024, (sums, norm, np.float64(share), most, np.int32(len(chunks))))
    return norm


def gradient_norm(gradients: Sequence[Array]) -> Array:
    """Return the Euclidean norm of float32 arrays together, float64, shape (2,): the first of two numbers."""
    gradients = [contiguous(gradient) for gradient in gradients]
    return _norm(*_table([(0, gradient.data.ptr, 0, 0, 0, gradient.size, 0, 0, 0, 0) for gradient in gradients]), 1.0, None)


def adamw_steps(updates: Sequence[Any], *, betas: tuple[float, float], eps: float, share: float, max_norm: float | None) -> Array:
    """Update parameters in place, unless a gradient is not finite.

    Parameters
    ----------
    updates : sequence of `lucid.ops.adamw.Update`
    betas, eps : as for AdamW
    share : float. Gradients count multiplied by it.
    max_norm : float, optional. They are scaled so that their norm together is at most this.

    Returns
    -------
    norm : array, float64, shape (2,). Of all gradients together, before clipping; and what they were multiplied by.
    """
    gradients = [contiguous(update.d_weight) for update in updates]
    rows = []
    for update, gradient in zip(updates, gradients, strict=True):
        places = [0 if array is None else array.data.ptr for array in (update.weight, gradient, update.m, update.v, update.copy)]
        rate, root = update.lr / (1 - betas[0] ** update.step), 1 / math.sqrt(1 - betas[1] ** update.step)
        is_half = update.copy is not None and update.copy.dtype == np.float16
        rows.append((*places, update.weight.size, 1 - update.lr * update.weight_decay, rate, root, is_half))
    table, chunks = _table(rows)
    norm = _norm(table, chunks, share, max_norm)
    rates = (np.float32(rate) for rate in (*betas, 1 - betas[0], 1 - betas[1], eps))
    launch("adamw", "adamw_step", len(chunks), THREADS, (table, chunks, norm, *rates))
    return norm
