"""Layer normalisation on the GPU."""

from __future__ import annotations

from typing import Any

import numpy as np

from lucid._gpu.columns import join_parts
from lucid._gpu.runtime import SHARED_WITHOUT_ASKING, Array, blocks, c_type, contiguous, empty, launch

WARP = 32
ROWS_AT_ONCE = 64  # whose shares of d_gain and d_bias one block adds
MOST_WARPS = 8


def held_size(width: int, itemsize: int) -> int:
    """Return how many float32 a warp holds of a row: its width, filled up to 32 lanes of 16 bytes each."""
    step = WARP * 16 // itemsize
    return blocks(width, step) * step


def warps_of(n_bytes: int, most: int = MOST_WARPS) -> int:
    """Return how many warps of a block can have `n_bytes` of shared memory each; at least one, which then asks for more."""
    return max(1, min(most, SHARED_WITHOUT_ASKING // max(1, n_bytes)))


def layer_norm_forward(
    x: Array,
    residual: Array | None,
    gain: Array,
    bias: Array,
    eps: float,
    y: Array,
    total: Array | None,
    mean: Array | None,
    rstd: Array | None,
) -> None:
    """Y = LayerNorm(x + residual); `residual`, and what backward reads, `total`, `mean` and `rstd`, may be None."""
    n_rows, width = x.shape
    n_bytes = 4 * held_size(width, x.itemsize)
    n_warps = warps_of(n_bytes, 4)
    args = (x, residual, gain, bias, np.float32(eps), y, total, mean, rstd, np.int32(n_rows), np.int32(width))
    launch("layer_norm", f"layer_norm_forward<{c_type(x)}>", blocks(n_rows, n_warps), WARP * n_warps, args, shared=n_warps * n_bytes)


def layer_norm_backward(
    x: Array, gain: Array, mean: Array, rstd: Array, d_y: Array, d_x: Array, d_gain_parts: Array, d_bias_parts: Array
) -> None:
    """d_x, and the sums of `ROWS_AT_ONCE` rows each that make d_gain and d_bias."""
    n_rows, width = x.shape
    n_bytes = 2 * 4 * held_size(width, x.itemsize)
    n_warps = warps_of(n_bytes)
    args = (x, gain, mean, rstd, d_y, d_x, d_gain_parts, d_bias_parts, np.int32(n_rows), np.int32(width), np.int32(ROWS_AT_ONCE))
    launch("layer_norm", f"layer_norm_backward<{c_type(x)}>", len(d_gain_parts), WARP * n_warps, args, shared=n_warps * n_bytes)


def forward(x: Array, gain: Array, bias: Array, residual: Array | None = None, *, eps: float, keep: bool) -> tuple[Array, Any]:
    """Do what `lucid.ops.layer_norm` says."""
    x, y = contiguous(x), empty(x.shape, x.dtype)
    total = mean = rstd = None
    if keep:
        total = x if residual is None else empty(x.shape, x.dtype)
        mean, rstd = empty((x.shape[0],)), empty((x.shape[0],))
    if y.size:
        given = None if residual is None else contiguous(residual)
        layer_norm_forward(x, given, contiguous(gain), contiguous(bias), eps, y, None if residual is None else total, mean, rstd)
    return y, (total, gain, mean, rstd, residual is not None) if keep else None


def norm_backward(total: Array, gain: Array, mean: Array, rstd: Array, d_y: Array) -> tuple[Array, Array, Array]:
    """Return the gradients of the sums before the normalisation, of gain and of bias."""
    d_x = empty(total.shape, total.dtype)
    n_parts = blocks(len(total), ROWS_AT_ONCE)
    d_gain, d_bias = (empty((n_parts, total.shape[1])) for _ in range(2))
    if total.size:
        layer_norm_backward(total, contiguous(gain), mean, rstd, contiguous(d_y), d_x, d_gain, d_bias)
    return d_x, join_parts(d_gain), join_parts(d_bias)


def backward(saved: tuple[Any, ...], d_y: Array) -> tuple[Array, ...]:
    """Return the gradients of x, gain, bias and the residual."""
    total, gain, mean, rstd, has_residual = saved
    d_x, d_gain, d_bias = norm_backward(total, gain, mean, rstd, d_y)
    return (d_x, d_gain, d_bias, d_x) if has_residual else (d_x, d_gain, d_bias)
