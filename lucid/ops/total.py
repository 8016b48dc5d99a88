"""From the losses of rows to one number."""

from typing import Any

import numpy as np

from lucid.ops.op import Array, Kernel, Op, on_gpu, stored_type, want


def want_divisor(op: str, divisor: float) -> None:
    """Raise ValueError unless `divisor` is a number of rows, or larger: by less, sums may overflow."""
    if not divisor >= 1:
        raise ValueError(f"{op}: divisor must be at least 1, not {divisor}")


def _check_total(x: Array, *, divisor: float) -> None:
    want("total", "x", x, np.float32, (None,))
    want_divisor("total", divisor)


def _total(x: Array, *, divisor: float, keep: bool) -> tuple[Array, Any]:
    return np.asarray(np.float32(x.sum(dtype=np.float64) / divisor)), (x.shape, divisor)


def _total_backward(saved: tuple[tuple[int, ...], float], d_y: Array) -> tuple[Array]:
    shape, divisor = saved
    return (np.full(shape, np.float32(float(d_y) / divisor)),)


def _check_scale(x: Array, *, factor: float) -> None:
    if not hasattr(x, "dtype") or x.dtype != stored_type(x):
        raise TypeError(f"scale: x must be a float32 array, not {getattr(x, 'dtype', type(x).__name__)}")
    if not isinstance(factor, (int, float, np.number)):
        raise TypeError(f"scale: factor must be a number, not {type(factor).__name__}")


def _scale(x: Array, *, factor: float, keep: bool) -> tuple[Array, Any]:
    return np.asarray(x * np.float32(factor)), factor


def _scale_backward(factor: float, d_y: Array) -> tuple[Array]:
    return (np.asarray(d_y * np.float32(factor)),)


total = Op("total", _check_total, cpu=Kernel(_total, _total_backward), gpu=on_gpu("total", "total", "total_backward"))
"""sum(x) / divisor, summed in float64: x (P,) float32, the result 0-d float32."""

scale = Op("scale", _check_scale, cpu=Kernel(_scale, _scale_backward), gpu=on_gpu("total", "scale", "scale_backward"))
"""factor * x, for a float32 array of any shape."""
