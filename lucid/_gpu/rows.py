"""Taking rows out of an array of the GPU and putting them back."""

from __future__ import annotations

from typing import Any

import numpy as np

from lucid._gpu.embedding import table_gradient
from lucid._gpu.runtime import Array, blocks, c_type, contiguous, empty, launch, place, xp

WARP = 32


def take_rows(x: Array, rows: Array, y: Array) -> None:
    """y[p] = x[rows[p]]."""
    _copy("take_rows", x, rows, y)


def put_rows(x: Array, rows: Array, y: Array) -> None:
    """y[rows[p]] = x[p]; no row is named twice."""
    _copy("put_rows", x, rows, y)


def _copy(kernel: str, x: Array, rows: Array, y: Array) -> None:
    n = x.shape[1]
    if n:
        threads = min(256, blocks(blocks(n, 16 // x.itemsize), WARP) * WARP)
        launch("rows", f"{kernel}<{c_type(x)}>", len(rows), threads, (contiguous(x), place(rows), y, np.int32(n)))


def gather(x: Array, *, rows: Array, keep: bool) -> tuple[Array, Any]:
    """Do what `lucid.ops.rows.gather_rows` says."""
    y = empty((len(rows), x.shape[1]), x.dtype)
    take_rows(x, rows, y)
    return y, (rows, x.shape)


def gather_backward(saved: tuple[Array, tuple[int, int]], d_y: Array) -> tuple[Array]:
    """Return the gradient of x: where a row was taken twice, a sum in the order of `rows`."""
    rows, shape = saved
    d_x = xp.zeros(shape, d_y.dtype)
    if not isinstance(rows, np.ndarray) or (rows[1:] <= rows[:-1]).any():
        rows, sums = table_gradient(contiguous(d_y), rows)
        d_y = sums.astype(d_y.dtype)
    put_rows(d_y, rows, d_x)
    return (d_x,)


def scatter(x: Array, *, rows: Array, n_rows: int, keep: bool) -> tuple[Array, Any]:
    """Do what `lucid.ops.rows.scatter_rows` says."""
    if len(rows) == n_rows:
        return x, rows
    y = xp.zeros((n_rows, x.shape[1]), x.dtype)
    put_rows(x, rows, y)
    return y, rows


def scatter_backward(rows: Array, d_y: Array) -> tuple[Array]:
    """Return the gradient of x."""
    return (gather(d_y, rows=rows, keep=False)[0],)
