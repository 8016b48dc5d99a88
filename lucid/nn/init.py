"""Initial values of parameters: functions from a shape to an array, run when the values are first needed."""

from collections.abc import Callable
from typing import Any

import numpy as np

from lucid.random import resolve_seed

Initializer = Callable[[tuple[int, ...]], np.ndarray[Any, Any]]


def zeros(shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Return zeros, float32."""
    return np.zeros(shape, np.float32)


def ones(shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Return ones, float32."""
    return np.ones(shape, np.float32)


def normal(std: float, seed: int | None = None) -> Initializer:
    """Return an initializer that draws from the normal distribution with mean 0.

    Parameters
    ----------
    std : float, >= 0
    seed : int, optional
        None takes the next one under `lucid.manual_seed` now, not when the values are drawn.
    """
    key = resolve_seed(seed)

    def draw(shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
        values = np.random.Generator(np.random.Philox(key=key)).standard_normal(shape, dtype=np.float32)
        values *= np.float32(std)
        return values

    return draw
