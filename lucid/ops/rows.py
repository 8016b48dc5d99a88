"""Taking rows out of an array and putting them back: each is the other's gradient."""

from typing import Any

import numpy as np

from lucid.ops.op import Array, Kernel, Op, on_gpu, stored_type, want, want_ids


def _check_gather(x: Array, *, rows: Array) -> None:
    want("gather_rows", "x", x, stored_type(x), (None, None))
    want("gather_rows", "rows", rows, np.int32, (None,))
    want_ids("gather_rows", "rows", rows, x.shape[0])


def _gather(x: Array, *, rows: Array, keep: bool) -> tuple[Array, Any]:
    return np.take(x, rows, axis=0), (rows, x.shape)


def _gather_backward(saved: tuple[Array, tuple[int, int]], d_y: Array) -> tuple[Array]:
    rows, shape = saved
    d_x = np.zeros(shape, np.float32)
    np.add.at(d_x, rows, d_y)
    return (d_x,)


def _check_scatter(x: Array, *, rows: Array, n_rows: int) -> None:
    want("scatter_rows", "x", x, stored_type(x), (None, None))
    want("scatter_rows", "rows", rows, np.int32, (x.shape[0],))
    want_ids("scatter_rows", "rows", rows, n_rows)
    if len(rows) > 1 and int(np.diff(rows).min()) <= 0:
        raise ValueError("scatter_rows: rows must rise, each named once")


def _scatter(x: Array, *, rows: Array, n_rows: int, keep: bool) -> tuple[Array, Any]:
    if len(rows) == n_rows:
        return x, rows
    y = np.zeros((n_rows, x.shape[1]), np.float32)
    y[rows] = x
    return y, rows


def _scatter_backward(rows: Array, d_y: Array) -> tuple[Array]:
    return (np.take(d_y, rows, axis=0),)


gather_rows = Op("gather_rows", _check_gather, cpu=Kernel(_gather, _gather_backward), gpu=on_gpu("rows", "gather", "gather_backward"))
"""y[p] = x[rows[p]]: x (T, C) float32, rows (P,) int32, y (P, C)."""

scatter_rows = Op(
    "scatter_rows", _check_scatter, cpu=Kernel(_scatter, _scatter_backward), gpu=on_gpu("rows", "scatter", "scatter_backward")
)
"""y[rows[t]] = x[t], zeros elsewhere: x (T, C) float32, rows (T,) int32 rising, y (n_rows, C)."""
