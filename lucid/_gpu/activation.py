"""Activations on the GPU, alone and behind a product."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lucid._gpu.runtime import Array, blocks, c_type, contiguous, empty, launch

THREADS = 256


def activation_forward(x: Array, y: Array, activation: int) -> None:
    """Y = activation(x), element by element; `y` may be `x`."""
    grid = blocks(x.size, THREADS * 16 // x.itemsize)
    launch("activation", f"activation_forward<{c_type(x)}>", grid, THREADS, (x, y, np.int64(x.size), np.int32(activation)))


def activation_backward(x: Array, d_y: Array, d_x: Array, activation: int) -> None:
    """d_x = d_y * activation'(x); `d_x` may be `d_y`."""
    grid = blocks(x.size, THREADS * 16 // x.itemsize)
    launch("activation", f"activation_backward<{c_type(x)}>", grid, THREADS, (x, d_y, d_x, np.int64(x.size), np.int32(activation)))


def bias_activation(z: Array, bias: Array | None, residual: Array | None, before: Array | None, y: Array, activation: int) -> None:
    """Y = activation(z + bias) + residual, and before = z + bias; `y` and `before` may be `z`."""
    n_rows, n = z.shape
    grid = blocks(n_rows * blocks(n, 16 // z.itemsize), THREADS)
    args = (z, bias, residual, before, y, np.int32(activation), np.int32(n_rows), np.int32(n))
    launch("activation", f"bias_activation<{c_type(z)}>", grid, THREADS, args)


def forward(x: Array, *, name: str, keep: bool, numbers: Mapping[str, int]) -> tuple[Array, Any]:
    """Do what `lucid.ops.activation` says; `numbers` are the kernels' for the names."""
    x, y = contiguous(x), empty(x.shape, x.dtype)
    activation_forward(x, y, numbers[name])
    return y, (x, numbers[name]) if keep else None


def backward(saved: tuple[Array, int], d_y: Array) -> tuple[Array]:
    """Return the gradient of x."""
    x, activation = saved
    d_x = empty(x.shape, x.dtype)
    activation_backward(x, contiguous(d_y), d_x, activation)
    return (d_x,)
