"""Linear on the GPU: cuBLAS on row-major weights, then one pass for bias, activation and residual; or cuBLASLt, if it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lucid._gpu import cublaslt
from lucid._gpu.activation import bias_activation
from lucid._gpu.columns import NONE, sums_behind
from lucid._gpu.runtime import Array, contiguous, empty, gemm, rows_contiguous, xp


def forward(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    residual: Array | None = None,
    *,
    activation: str | None = None,
    columns: tuple[int, int] | None = None,
    keep: bool,
    numbers: Mapping[str, int],
) -> tuple[Array, Any]:
    """Do what `lucid.ops.linear` says; `numbers` are the kernels' for the names of activations."""
    begin, end = columns or (0, weight.shape[0])
    x, weight = rows_contiguous(x), rows_contiguous(weight)
    number = NONE if activation is None else numbers[activation]
    if bias is not None and residual is None and number == NONE:
        y = cublaslt.product(x, weight[begin:end], contiguous(bias[begin:end]))
        if y is not None:
            return y, (x, weight, True, False, number, (begin, end), None) if keep else None
    z = gemm(x, weight[begin:end], transpose_b=True)
    # With a tape, backward reads what goes into the activation.
    before, y = (z, empty(z.shape, z.dtype)) if keep and number != NONE else (None, z)
    if y.size and not (bias is None and residual is None and number == NONE):
        given = None if residual is None else contiguous(residual)
        bias_activation(z, None if bias is None else contiguous(bias[begin:end]), given, before, y, number)
    return y, (x, weight, bias is not None, residual is not None, number, (begin, end), before) if keep else None


def backward(saved: tuple[Any, ...], d_y: Array) -> tuple[Any, ...]:
    """Return the gradients of x, weight, bias and residual; those of weight and bias are float32, zero outside of `columns`."""
    x, weight, has_bias, has_residual, activation, (begin, end), before = saved
    d_y = rows_contiguous(d_y)
    d_weight = (empty if end - begin == len(weight) else xp.zeros)(weight.shape, np.float32)
    d_bias = cublaslt.weight_gradient(d_y, x, d_weight[begin:end]) if has_bias and before is None else None
    d_z = d_y
    if d_bias is None:
        d_z, d_bias = sums_behind(before, d_y, activation, has_sum=has_bias) if d_y.size else (d_y, _zeros(has_bias, end - begin))
        gemm(d_z, x, d_weight[begin:end], transpose_a=True)
    d_x = gemm(d_z, weight[begin:end])
    if d_bias is not None and end - begin != len(weight):
        d_bias, part = xp.zeros(len(weight), np.float32), d_bias
        d_bias[begin:end] = part
    return d_x, d_weight, d_bias, d_y if has_residual else None


def _zeros(has_bias: bool, n: int) -> Array | None:
    return xp.zeros(n, np.float32) if has_bias else None
