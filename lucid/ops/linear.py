"""Linear: Y = activation(X . Wᵀ + bias) + residual, on weights packed for the kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from lucid._ext import kernels
from lucid.ops import activation as elementwise
from lucid.ops.activation import ACTIVATIONS
from lucid.ops.op import Array, Kernel, Op, RowsGradient, empty, on_gpu, rows_contiguous, stored_type, want
from lucid.threads import get_num_threads, threads_for

_BYTES_READ_AT_ONCE = 1 << 19


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A weight (N, K) as the kernels read it.

    Attributes
    ----------
    dtype : str
        Type of the stored numbers; "float32" is the only one yet.
    panels : array, float32, shape (ceil(N / panel width), K, panel width)
        Panel p holds rows p * width to (p + 1) * width of the weight, transposed; zeros beyond row N.
    scales : None
        For types that store scaled integers.
    shape : (N, K)
    """

    dtype: str
    panels: Array
    scales: None
    shape: tuple[int, int]

    @classmethod
    def pack(cls, weight: Array, *, is_lasting: bool = False) -> PackedWeight:
        """Pack a row-major float32 array (N, K); `is_lasting` as for `empty`."""
        want("pack", "weight", weight, np.float32, (None, None))
        n, k = weight.shape
        panels = empty((-(-n // kernels.panel_width), k, kernels.panel_width), is_lasting=is_lasting)
        kernels.pack_rows(rows_contiguous(weight), panels, threads_for(weight.size))
        return cls("float32", panels, None, (n, k))

    @classmethod
    def from_rows(cls, shape: tuple[int, int], read: Callable[[int, Array], None]) -> PackedWeight:
        """Pack a weight (N, K) of which ``read(begin, out)`` fills `out` with the rows from `begin` on.

        It is read in blocks that stay in cache, so the weight never stands in memory twice.
        """
        n, k = shape
        width = kernels.panel_width
        panels = empty((-(-n // width), k, width), is_lasting=True)
        n_panels = max(1, _BYTES_READ_AT_ONCE // (4 * k * width))
        block = empty((min(n_panels * width, n), k))
        for first in range(0, len(panels), n_panels):
            rows = block[: n - first * width]
            read(first * width, rows)
            kernels.pack_rows(rows, panels[first : first + n_panels], 1)
        return cls("float32", panels, None, shape)

    def rows(self, index: Array) -> Array:
        """Return some rows of the weight, (len(index), K)."""
        width = self.panels.shape[2]
        return np.ascontiguousarray(self.panels[index // width, :, index % width])

    def unpack(self, *, is_lasting: bool = False) -> Array:
        """Return the row-major array (N, K); `is_lasting` as for `empty`."""
        weight = empty(self.shape, is_lasting=is_lasting)
        kernels.unpack_rows(self.panels, weight, threads_for(weight.size))
        return weight


def want_weight(op: str, name: str, weight: PackedWeight | Array) -> tuple[int, int]:
    """Return (N, K) of a weight; raise unless it is a matrix of a `stored_type` or a sound `PackedWeight`."""
    if not isinstance(weight, PackedWeight):
        want(op, name, weight, stored_type(weight), (None, None))
        n, k = weight.shape
        return n, k
    n, k = weight.shape
    width = kernels.panel_width
    want(op, f"{name}.panels", weight.panels, np.float32, (-(-n // width), k, width))
    return n, k


def _check(
    x: Array,
    weight: PackedWeight | Array,
    bias: Array | None = None,
    residual: Array | None = None,
    *,
    activation: str | None = None,
    columns: tuple[int, int] | None = None,
) -> None:
    n, k = want_weight("linear", "weight", weight)
    want("linear", "x", x, stored_type(weight), (None, k))
    if k == 0:
        raise ValueError("linear: x and weight have width 0")
    begin, end = columns or (0, n)
    if not 0 <= begin <= end <= n:
        raise ValueError(f"linear: columns ({begin}, {end}) must lie within the {n} rows of the weight")
    if bias is not None:
        want("linear", "bias", bias, np.float32, (n,))
    if residual is not None:
        want("linear", "residual", residual, x.dtype, (x.shape[0], end - begin))
    if activation is not None and activation not in ACTIVATIONS:
        raise ValueError(f"linear: activation {activation!r} is unknown; known: {', '.join(ACTIVATIONS)}")


def _forward(
    x: Array,
    weight: PackedWeight | Array,
    bias: Array | None = None,
    residual: Array | None = None,
    *,
    activation: str | None = None,
    columns: tuple[int, int] | None = None,
    keep: bool,
) -> tuple[Array, Any]:
    begin, end = columns or (0, weight.shape[0])
    if isinstance(weight, PackedWeight):
        panels, first = weight.panels, begin
    else:
        panels, first = PackedWeight.pack(weight[begin:end]).panels, 0
    y = empty((x.shape[0], end - begin))
    # With a tape, backward reads what goes into the activation: two steps instead of one.
    is_split = keep and activation is not None
    kernels.gemm(
        rows_contiguous(x),
        panels,
        None if bias is None else np.ascontiguousarray(bias[begin:end]),
        None if residual is None or is_split else rows_contiguous(residual),
        y,
        first,
        ACTIVATIONS[activation] if activation and not is_split else 0,
        False,
        False,
        get_num_threads(),
    )
    saved = (x, weight, bias is not None, residual is not None, activation, (begin, end), y if is_split else None) if keep else None
    if is_split:
        y = elementwise.activation(y, name=activation)
        if residual is not None:
            y += residual
    return y, saved


def _backward(saved: tuple[Any, ...], d_y: Array) -> tuple[Any, ...]:
    x, weight, has_bias, has_residual, activation, (begin, end), before = saved
    d_residual = d_y if has_residual else None
    if before is not None:
        (d_y,) = elementwise.activation.cpu.backward((before, activation), d_y)  # type: ignore[misc]
    row_major = weight.unpack() if isinstance(weight, PackedWeight) else weight
    d_x = product(d_y, row_major[begin:end])
    d_weight = product(d_y, x, transpose_a=True)
    d_bias = column_sum(d_y) if has_bias else None
    if (begin, end) != (0, weight.shape[0]):
        rows = slice(begin, end)
        d_weight = RowsGradient(rows, d_weight, weight.shape)
        d_bias = None if d_bias is None else RowsGradient(rows, d_bias, weight.shape[:1])
    return d_x, d_weight, d_bias, d_residual


def product(a: Array, b: Array, *, transpose_a: bool = False, out: Array | None = None, add: bool = False) -> Array:
    """Return A . B, or Aᵀ . B, for row-major float32 arrays; written to `out`, or with `add` added to it."""
    panels = empty((-(-b.shape[1] // kernels.panel_width), b.shape[0], kernels.panel_width))
    kernels.pack_columns(rows_contiguous(b), panels, threads_for(b.size))
    if out is None:
        out = empty((a.shape[1] if transpose_a else a.shape[0], b.shape[1]))
    if b.shape[0]:
        kernels.gemm(rows_contiguous(a), panels, None, None, out, 0, 0, transpose_a, add, get_num_threads())
    elif not add:
        out[...] = 0  # a sum of nothing
    return out


def column_sum(x: Array) -> Array:
    """Return the sums of the columns of a float32 array, added in row order in float64."""
    out = np.empty(x.shape[1], np.float32)
    kernels.column_sum(np.ascontiguousarray(x), out, threads_for(x.size))
    return out


linear = Op("linear", _check, cpu=Kernel(_forward, _backward), gpu=on_gpu("linear", numbers=ACTIVATIONS))
"""Y = activation(X . Wᵀ + bias) + residual.

Parameters
----------
x : array, float32, shape (M, K)
weight : PackedWeight or array, float32, shape (N, K)
bias : array, float32, shape (N,), optional
residual : array, float32, shape (M, N), optional
activation : str, optional. A name in `lucid.ops.activation.ACTIVATIONS`.
columns : (begin, end), optional. Compute these rows of the weight only.

Returns
-------
y : array, float32, shape (M, N), or (M, end - begin)

Raises
------
TypeError
    An array is not float32.
ValueError
    Shapes do not agree, or the activation is unknown.

Notes
-----
An element of y is one sum in one order: the same bits for any M, any row of x, any number of threads. On the GPU, cuBLAS chooses
the order.
"""
