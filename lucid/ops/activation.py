"""Activations, element by element: GELU in both forms, ReLU, SiLU, tanh."""

from typing import Any

import numpy as np

from lucid._ext import kernels
from lucid.ops.op import Array, Kernel, Op, empty, on_gpu, stored_type
from lucid.threads import threads_for

ACTIVATIONS = {
    "gelu": 1,
    "gelu_new": 2,
    "gelu_pytorch_tanh": 2,
    "relu": 3,
    "silu": 4,
    "swish": 4,
    "tanh": 5,
}
"""Names as in Hugging Face configurations, and the kernels' numbers for them.

"gelu" is x Phi(x) with the exact normal distribution (erf); "gelu_new" its tanh form
(Hendrycks & Gimpel 2016).
"""

# Not activations of a network, but the functions that these are made of; tests ask for them.
ELEMENTARY = {"exp": 6, "erf": 7}


def _check(x: Array, *, name: str) -> None:
    if not hasattr(x, "dtype") or x.dtype != stored_type(x):
        raise TypeError(f"activation: x must be a float32 array, not {getattr(x, 'dtype', type(x).__name__)}")
    if name not in ACTIVATIONS and name not in ELEMENTARY:
        raise ValueError(f"activation {name!r} is unknown; known: {', '.join(ACTIVATIONS)}")


def _forward(x: Array, *, name: str, keep: bool) -> tuple[Array, Any]:
    y = empty(x.shape)
    kernels.activation_forward(np.ascontiguousarray(x).reshape(-1), y.reshape(-1), {**ACTIVATIONS, **ELEMENTARY}[name], threads_for(x.size))
    return y, (x, name) if keep else None


def _backward(saved: tuple[Array, str], d_y: Array) -> tuple[Array]:
    x, name = saved
    d_x = empty(x.shape)
    kernels.activation_backward(
        np.ascontiguousarray(x).reshape(-1), np.ascontiguousarray(d_y).reshape(-1), d_x.reshape(-1), ACTIVATIONS[name], threads_for(x.size)
    )
    return (d_x,)


activation = Op("activation", _check, cpu=Kernel(_forward, _backward), gpu=on_gpu("activation", numbers={**ACTIVATIONS, **ELEMENTARY}))
"""y = f(x), for a float32 array of any shape; ``name`` is a key of `ACTIVATIONS`."""
