"""The calls of `tests/cases.py` and `tests/gradients/cases.py` on the GPU, and how far its results may be."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from cases import Array, Call
from gradients.cases import Call as GradientCall

from lucid._gpu.runtime import dtype_of, xp
from lucid.ops.op import RowsGradient, is_on_gpu

WORSE = 4
"""A GPU adds in other orders, and its exponentials are wrong by 2 ulp: so many times the CPU's bounds."""

ROUNDING = {"float32": 0.0, "float16": 2.0**-11, "bfloat16": 2.0**-8}
"""Half an ulp of 1.0 of the stored types."""


def host(result: Any) -> Any:
    """Return results of the GPU as NumPy arrays."""
    if isinstance(result, (tuple, list)):
        return tuple(map(host, result))
    return xp.asnumpy(result) if is_on_gpu(result) else result


def on_gpu(call: Call | GradientCall, dtype: str = "float32") -> dict[str, Any]:
    """Return the arrays of a call on the GPU, matrices in `dtype`. A packed weight is row-major there."""
    return {name: None if array is None else moved(array, dtype) for name, array in call.arrays.items()}


def moved(array: Array, dtype: str) -> Any:
    is_matrix = array.dtype == np.float32 and array.ndim >= 2
    return xp.asarray(array.astype(dtype_of(dtype)) if is_matrix else array)


def rounded(call: Any, dtype: str) -> Any:
    """Return the call with matrices as the GPU sees them: rounded to `dtype`."""

    def of(array: Array) -> Array:
        is_matrix = array.dtype == np.float32 and array.ndim >= 2
        return array.astype(dtype_of(dtype)).astype(np.float32) if is_matrix else array

    return dataclasses.replace(call, arrays={name: None if a is None else of(a) for name, a in call.arrays.items()})


def dense(gradient: Any) -> Any:
    """Return a gradient of the GPU as a NumPy array; None stays."""
    return None if gradient is None else host(gradient.dense() if isinstance(gradient, RowsGradient) else gradient)
