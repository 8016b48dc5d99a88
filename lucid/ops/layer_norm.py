"""Layer normalisation with the residual sum before it."""

from typing import Any

import numpy as np

from lucid._ext import kernels
from lucid.ops.op import Array, Kernel, Op, empty, on_gpu, stored_type, want
from lucid.threads import threads_for


def _check(x: Array, gain: Array, bias: Array, residual: Array | None = None, *, eps: float) -> None:
    want("layer_norm", "x", x, stored_type(x), (None, None))
    width = x.shape[1]
    want("layer_norm", "gain", gain, np.float32, (width,))
    want("layer_norm", "bias", bias, np.float32, (width,))
    if residual is not None:
        want("layer_norm", "residual", residual, x.dtype, x.shape)
    if not np.float32(eps) > 0:
        raise ValueError(f"layer_norm: eps must be positive, not {eps}")


def _forward(x: Array, gain: Array, bias: Array, residual: Array | None = None, *, eps: float, keep: bool) -> tuple[Array, Any]:
    y = empty(x.shape)
    total = mean = rstd = None
    if keep:
        total = x if residual is None else empty(x.shape)
        mean, rstd = empty((2, x.shape[0]))
    kernels.layer_norm_forward(
        np.ascontiguousarray(x),
        None if residual is None else np.ascontiguousarray(residual),
        np.ascontiguousarray(gain),
        np.ascontiguousarray(bias),
        eps,
        y,
        None if residual is None else total,
        mean,
        rstd,
        threads_for(x.size),
    )
    return y, (total, gain, mean, rstd, residual is not None) if keep else None


def norm_backward(total: Array, gain: Array, mean: Array, rstd: Array, d_y: Array) -> tuple[Array, Array, Array]:
    """Return the gradients of the sums before the normalisation, of gain and of bias."""
    d_x = empty(total.shape)
    n_parts = -(-len(total) // kernels.norm_rows)
    d_gain, d_bias = np.zeros((2, n_parts, total.shape[1]), np.float32)
    kernels.layer_norm_backward(
        np.ascontiguousarray(total),
        np.ascontiguousarray(gain),
        mean,
        rstd,
        np.ascontiguousarray(d_y),
        d_x,
        d_gain,
        d_bias,
        threads_for(total.size),
    )
    return d_x, d_gain.sum(axis=0, dtype=np.float64).astype(np.float32), d_bias.sum(axis=0, dtype=np.float64).astype(np.float32)


def _backward(saved: tuple[Array, Array, Array, Array, bool], d_y: Array) -> tuple[Array, ...]:
    total, gain, mean, rstd, has_residual = saved
    d_x, d_gain, d_bias = norm_backward(total, gain, mean, rstd, d_y)
    return (d_x, d_gain, d_bias, d_x) if has_residual else (d_x, d_gain, d_bias)


layer_norm = Op("layer_norm", _check, cpu=Kernel(_forward, _backward), gpu=on_gpu("layer_norm"))
"""Normalise each row of x + residual to zero mean and unit variance, then scale and shift.

Parameters
----------
x : array, float32, shape (T, C)
gain, bias : array, float32, shape (C,)
residual : array, float32, shape (T, C), optional
eps : float, > 0. Added to the variance (squared units of x).

Returns
-------
y : array, float32, shape (T, C)

Raises
------
TypeError
    An array is not float32.
ValueError
    Shapes do not agree, or eps is not positive.

Notes
-----
Source: Ba et al. 2016, eq. 3-4. Sums run in 16 lanes joined by a fixed tree.
"""
