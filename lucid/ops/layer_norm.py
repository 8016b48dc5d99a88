"""Layer normalisation with the residual sum before it."""

from typing import Any

import numpy as np

from lucid._ext import kernels
from lucid.ops.op import Array, Kernel, Op, want
from lucid.threads import threads_for


def _check(x: Array, gain: Array, bias: Array, residual: Array | None = None, *, eps: float) -> None:
    want("layer_norm", "x", x, np.float32, (None, None))
    width = x.shape[1]
    want("layer_norm", "gain", gain, np.float32, (width,))
    want("layer_norm", "bias", bias, np.float32, (width,))
    if residual is not None:
        want("layer_norm", "residual", residual, np.float32, x.shape)
    if not eps > 0:
        raise ValueError(f"layer_norm: eps must be positive, not {eps}")


def _forward(x: Array, gain: Array, bias: Array, residual: Array | None = None, *, eps: float) -> tuple[Array, Any]:
    y = np.empty(x.shape, np.float32)
    kernels.layer_norm_forward(
        np.ascontiguousarray(x),
        None if residual is None else np.ascontiguousarray(residual),
        np.ascontiguousarray(gain),
        np.ascontiguousarray(bias),
        eps,
        y,
        None,
        None,
        threads_for(x.size),
    )
    return y, None


layer_norm = Op("layer_norm", _check, cpu=Kernel(_forward, None), gpu=None)
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
