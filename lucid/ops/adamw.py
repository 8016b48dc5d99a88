"""Updating parameters, and measuring gradients. In place, and off the tape."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lucid._ext import kernels
from lucid.device import is_on_gpu
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
    if is_on_gpu(x):
        return gradient_norm([x]) ** 2
    return float(kernels.sum_of_squares(np.ascontiguousarray(aligned(x)).reshape(-1), threads_for(x.size)))


def gradient_norm(gradients: Sequence[Array]) -> float:
    """Return the Euclidean norm of float32 arrays together, summed in float64. On the GPU, this waits for it."""
    if gradients and all(map(is_on_gpu, gradients)):
        from lucid._gpu.adamw import gradient_norm as on_gpu

        return float(on_gpu(gradients)[0])
    return math.sqrt(math.fsum(map(sum_of_squares, gradients)))


class Update(NamedTuple):
    """What is done to one parameter on the GPU.

    Attributes
    ----------
    weight, m, v : array, float32, C-contiguous. Written.
    d_weight : array, float32, of that shape
    copy : array of that shape, float16 or bfloat16, or None. The weight in the type that operations read; written.
    lr, weight_decay : float
    step : int, >= 1. For the bias correction.
    """

    weight: Array
    d_weight: Array
    m: Array
    v: Array
    copy: Array | None
    lr: float
    weight_decay: float
    step: int


def adamw_steps(updates: Sequence[Update], *, betas: tuple[float, float], eps: float, scale: float, max_norm: float | None) -> Array:
    """Do `adamw_step` to many parameters on the GPU at once, unless a gradient is not finite; nobody waits.

    Parameters
    ----------
    updates : sequence of Update
    betas, eps : as for `adamw_step`
    scale : float. Multiplies the gradients.
    max_norm : float, optional. Then they are scaled so that their norm together is at most this.

    Returns
    -------
    norm : array on the GPU, float64, shape (). Of all gradients together, scaled, before clipping.
    """
    from lucid._gpu.adamw import adamw_steps as on_gpu

    for update in updates:
        for name in ("weight", "d_weight", "m", "v"):
            want("adamw", name, getattr(update, name), np.float32, update.weight.shape)
    norm: Array = on_gpu(updates, betas=betas, eps=eps, share=scale, max_norm=max_norm)[0]
    return norm
