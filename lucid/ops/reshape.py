"""Another shape for the same numbers."""

import math
from typing import Any

from lucid.ops.op import Array, Kernel, Op, stored_type


def _check(x: Array, *, shape: tuple[int, ...]) -> None:
    if not hasattr(x, "dtype") or x.dtype != stored_type(x):
        raise TypeError(f"reshape: x must be a float32 array, not {getattr(x, 'dtype', type(x).__name__)}")
    if any(n < 0 for n in shape) or math.prod(shape) != x.size:
        raise ValueError(f"reshape: shape {shape} does not hold the {x.size} numbers of x, whose shape is {x.shape}")


def _forward(x: Array, *, shape: tuple[int, ...], keep: bool) -> tuple[Array, Any]:
    return x.reshape(shape), x.shape


def _backward(shape: tuple[int, ...], d_y: Array) -> tuple[Array]:
    return (d_y.reshape(shape),)


reshape = Op("reshape", _check, cpu=Kernel(_forward, _backward), gpu=lambda: Kernel(_forward, _backward))
"""x with another shape of the same size."""
