"""Another shape for the same numbers."""

from typing import Any

from lucid.ops.op import Array, Kernel, Op


def _check(x: Array, *, shape: tuple[int, ...]) -> None:
    if not hasattr(x, "reshape"):
        raise TypeError(f"reshape: x must be an array, not {type(x).__name__}")


def _forward(x: Array, *, shape: tuple[int, ...], keep: bool) -> tuple[Array, Any]:
    return x.reshape(shape), x.shape


def _backward(shape: tuple[int, ...], d_y: Array) -> tuple[Array]:
    return (d_y.reshape(shape),)


reshape = Op("reshape", _check, cpu=Kernel(_forward, _backward), gpu=None)
"""x with another shape of the same size."""
