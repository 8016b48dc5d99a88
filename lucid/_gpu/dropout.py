"""Dropout on the GPU: the same numbers are dropped as on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np

from lucid._gpu.runtime import Array, blocks, c_type, contiguous, empty, launch, place

THREADS = 256


def dropout_forward(x: Array, y: Array, columns: Array, examples: Array, key: int, stream: int, p_drop: float) -> None:
    """Y = x / (1 - p_drop), or 0 with probability p_drop; y may be x."""
    n_rows, n = x.shape
    numbers = np.uint64(key), np.uint32(stream), np.uint64(int(p_drop * 2**32)), np.float32(1 / (1 - p_drop))
    grid = blocks(n_rows * blocks(n, 16 // x.itemsize), THREADS)
    args = (x, y, columns, examples, *numbers, np.int32(n_rows), np.int32(n))
    launch("dropout", f"dropout_forward<{c_type(x)}>", grid, THREADS, args)


def forward(x: Array, *, p: float, seed: int, stream: int, columns: Array, examples: Array, keep: bool) -> tuple[Array, Any]:
    """Do what `lucid.ops.dropout` says."""
    x, y = contiguous(x), empty(x.shape, x.dtype)
    dropout_forward(x, y, place(columns), place(examples), seed, stream, p)
    return y, {"p": p, "seed": seed, "stream": stream, "columns": columns, "examples": examples}


def backward(saved: dict[str, Any], d_y: Array) -> tuple[Array]:
    """Return the gradient of x: the same numbers are dropped, the others scaled alike."""
    return (forward(d_y, **saved, keep=False)[0],)
