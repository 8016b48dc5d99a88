"""Taking rows out of an array and putting them back: each is the other's gradient."""

from typing import Any

import numpy as np

from lucid.ops.op import Array, Kernel, Op, want, want_ids


def _check_gather(x: Array, *, rows: Array) -> None:
    want("gather_rows", "x", x, np.float32, (None, None))
    want("gather_rows", "rows", rows, np.int32, (None,))
    want_ids("gather_rows", "rows", rows, x.shape[0])


def _gather(x: Array, *, rows: Array) -> tuple[Array, Any]:
    return np.take(x, rows, axis=0), None


def _check_scatter(x: Array, *, rows: Array, n_rows: int) -> None:
    want("scatter_rows", "x", x, np.float32, (None, None))
    want("scatter_rows", "rows", rows, np.int32, (x.shape[0],))
    want_ids("scatter_rows", "rows", rows, n_rows)
    if len(rows) > 1 and int(np.diff(rows).min()) <= 0:
        raise ValueError("scatter_rows: rows must rise, each named once")


def _scatter(x: Array, *, rows: Array, n_rows: int) -> tuple[Array, Any]:
    if len(rows) == n_rows:
        return x, None
    y = np.zeros((n_rows, x.shape[1]), np.float32)
    y[rows] = x
    return y, None


gather_rows = Op("gather_rows", _check_gather, cpu=Kernel(_gather, None), gpu=None)
"""y[p] = x[rows[p]]: x (T, C) float32, rows (P,) int32, y (P, C)."""

scatter_rows = Op("scatter_rows", _check_scatter, cpu=Kernel(_scatter, None), gpu=None)
"""y[rows[t]] = x[t], zeros elsewhere: x (T, C) float32, rows (T,) int32 rising, y (n_rows, C)."""
