"""Sums of columns on the GPU, in one order: the gradients of biases, and of gains."""

from __future__ import annotations

import numpy as np

from lucid._gpu.runtime import Array, blocks, c_type, contiguous, empty, launch

WARP, GROUPS = 32, 8  # threads of a block: lanes, and groups of rows
ROWS_AT_ONCE = 64
NONE = 0  # the number of no activation


def join_parts(parts: Array) -> Array:
    """Return the sums of columns of parts, (n_parts, n) float32, added in float64."""
    n_parts, n = parts.shape
    out = empty((n,))
    launch("columns", "join_parts", blocks(n, WARP), (WARP, GROUPS), (parts, out, np.int32(n_parts), np.int32(n)))
    return out


def column_sum(x: Array) -> Array:
    """Return the sums of the columns of a matrix, float32."""
    return sums_behind(None, x, NONE, has_sum=True)[1]


def sums_behind(z: Array | None, d_y: Array, activation: int, *, has_sum: bool) -> tuple[Array, Array | None]:
    """Return d_y * activation'(z), or d_y without z, and the sums of its columns if they are asked for; one pass for both."""
    d_y = contiguous(d_y)
    n_rows, n = d_y.shape
    d_z = None if z is None else empty(d_y.shape, d_y.dtype)
    n_parts = blocks(n_rows, ROWS_AT_ONCE)
    parts = empty((n_parts, n)) if has_sum else None
    grid = blocks(n, WARP * 16 // d_y.itemsize), n_parts
    args = (z, d_y, d_z, parts, np.int32(activation), np.int32(n_rows), np.int32(n), np.int32(ROWS_AT_ONCE))
    launch("columns", f"column_parts<{c_type(d_y)}>", grid, (WARP, GROUPS), args)
    return d_y if d_z is None else d_z, None if parts is None else join_parts(parts)
