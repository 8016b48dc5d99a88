"""Updating parameters, and measuring gradients. In place, and off the tape."""

import numpy as np

from lucid._ext import kernels
from lucid.ops.op import Array, aligned, want
from lucid.threads import threads_for


def adamw_step(
    weight: Array,
    d_weight: Array,
    m: Array,
    v: Array,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    step: int,
    scale: float = 1.0,
) -> None:
    """Update `weight`, `m` and `v` in place (Loshchilov & Hutter 2019, algorithm 2).

    Parameters
    ----------
    weight, d_weight, m, v : array, float32, one shape; those that are written C-contiguous
    lr, eps, weight_decay : float
    betas : (float, float)
    step : int, >= 1. For the bias correction.
    scale : float. Multiplies the gradient.

    Raises
    ------
    TypeError
        An array is not float32.
    ValueError
        Shapes differ, an array to be written is not C-contiguous and aligned, or `step` is smaller than 1.
    """
    for name, array in (("weight", weight), ("d_weight", d_weight), ("m", m), ("v", v)):
        want("adamw", name, array, np.float32, getattr(weight, "shape", ()))
    for name, array in (("weight", weight), ("m", m), ("v", v)):
        if not (array.flags.c_contiguous and array.flags.aligned):
            raise ValueError(f"adamw: {name} must be C-contiguous and aligned: it is written in place")
    if step < 1:
        raise ValueError(f"adamw: step counts from 1, not {step}")
    kernels.adamw_step(
        weight.reshape(-1),
        np.ascontiguousarray(aligned(d_weight)).reshape(-1),
        m.reshape(-1),
        v.reshape(-1),
        lr,
        *betas,
        eps,
        weight_decay,
        1 - betas[0] ** step,
        1 - betas[1] ** step,
        scale,
        threads_for(weight.size),
    )


def sum_of_squares(x: Array) -> float:
    """Return the sum of the squares of a float32 array, in float64, the same for any number of threads.

    Raises
    ------
    TypeError
        `x` is not a float32 array.
    """
    if getattr(x, "dtype", None) != np.float32:
        raise TypeError(f"sum_of_squares: x must be a float32 array, not {getattr(x, 'dtype', type(x).__name__)}")
    return float(kernels.sum_of_squares(np.ascontiguousarray(aligned(x)).reshape(-1), threads_for(x.size)))
