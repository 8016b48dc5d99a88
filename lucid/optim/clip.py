"""The norm of a gradient, and limiting it."""

from __future__ import annotations

import math
from collections.abc import Iterable

from lucid.nn import Parameter
from lucid.ops.adamw import gradient_norm


def grad_norm(parameters: Iterable[Parameter]) -> float:
    """Return the Euclidean norm of all gradients together; a parameter without one counts as 0."""
    return gradient_norm([p.grad for p in parameters if p.grad is not None])


def clip_grad_norm(parameters: Iterable[Parameter], max_norm: float) -> float:
    """Scale all gradients so that their norm is at most `max_norm` (Pascanu et al. 2013).

    Parameters
    ----------
    parameters : of the model; their `grad` is replaced where it is scaled
    max_norm : float, > 0

    Returns
    -------
    norm : float, before clipping. Where it is not finite, nothing is scaled.

    Raises
    ------
    ValueError
        `max_norm` is not positive.
    """
    if not max_norm > 0:
        raise ValueError(f"max_norm must be positive, not {max_norm}")
    parameters = list(parameters)
    norm = grad_norm(parameters)
    if math.isfinite(norm) and norm > max_norm:
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad = parameter.grad * (max_norm / norm)
    return norm
