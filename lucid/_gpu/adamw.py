"""AdamW on the GPU: all parameters in three launches, and nobody waits for a norm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

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


class Update(NamedTuple):
    """What is done to one parameter.

    Attributes
    ----------
    weight, m, v : array, float32, C-contiguous. Written.
    d_weight : array, float32, of that shape
    copy : array of that shape, float16 or bfloat16, or None. The weight in the type that kernels read; written.
    lr, weight_decay : float
    correction1, correction2 : float. 1 - beta^t.
    """

    weight: Array
    d_weight: Array
    m: Array
    v: Array
    copy: Array | None
    lr: float
    weight_decay: float
    correction1: float
    correction2: float


def chunks_of(sizes: Sequence[int]) -> Any:
    """Return (parameter, chunk of it) for every block, int32, shape (n_blocks, 2)."""
    counts = [-(-size // CHUNK) for size in sizes]
    which = np.repeat(np.arange(len(sizes)), counts)
    starts = np.cumsum([0, *counts[:-1]]) if counts else np.zeros(0, np.int64)
    return np.stack([which, np.arange(len(which)) - np.repeat(starts, counts)], axis=1).astype(np.int32)


def adamw_steps(
    updates: Sequence[Update], *, betas: tuple[float, float], eps: float, share: float = 1.0, max_norm: float | None = None
) -> Array:
    """Update parameters in place, unless a gradient is not finite.

    Parameters
    ----------
    updates : sequence of Update
    betas, eps : as for AdamW
    share : float. Gradients count multiplied by it.
    max_norm : float, optional. They are scaled so that their norm together is at most this.

    Returns
    -------
    norm : array, float64, shape (2,). Of all gradients together, before clipping; and what they were multiplied by.
    """
    gradients = [contiguous(update.d_weight) for update in updates]
    table = np.zeros(len(updates), UPDATE)
    for row, update, gradient in zip(table, updates, gradients, strict=True):
        for name, array in (("weight", update.weight), ("d_weight", gradient), ("m", update.m), ("v", update.v), ("copy", update.copy)):
            row[name] = 0 if array is None else array.data.ptr
        row["n"], row["keep"], row["rate"] = update.weight.size, 1 - update.lr * update.weight_decay, update.lr / update.correction1
        row["root"] = 1 / math.sqrt(update.correction2)
        row["copy_is_half"] = update.copy is not None and update.copy.dtype == np.float16
    on_device, chunks = xp.asarray(table.view(np.uint8)), chunks_of([update.weight.size for update in updates])
    sums, norm, n, chunks = empty((len(chunks),), np.float64), empty((2,), np.float64), len(chunks), xp.asarray(chunks)
    launch("adamw", "square_sums", n, THREADS, (on_device, chunks, sums))
    most = math.inf if max_norm is None else max_norm
    launch("adamw", "gradient_norm", 1, 1024, (sums, norm, np.float64(share), np.float64(most), np.int32(n)))
    rates = (np.float32(rate) for rate in (*betas, 1 - betas[0], 1 - betas[1], eps))
    launch("adamw", "adamw_step", n, THREADS, (on_device, chunks, norm, *rates))
    return norm
