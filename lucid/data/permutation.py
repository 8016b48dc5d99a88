"""A shuffled order that is computed, not stored: where an epoch goes next is a function of the place alone.

A Feistel network over pairs (left, right) with left < a and right < b is a bijection of 0 ... a * b - 1, whatever its round
function is (Black & Rogaway 2002, "Ciphers with arbitrary finite domains", the generalised Feistel cipher). With a * b just
above n, a value that falls outside is sent through again until it falls inside (cycle walking).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lucid.random import Purpose, token_words

_ROUNDS = 8


class Permutation:
    """A permutation of 0 ... n - 1, drawn by a seed.

    Parameters
    ----------
    n : int, 1 to 2**31
    seed : int, 0 to 2**64 - 1

    Notes
    -----
    A place costs the same wherever it is, and nothing is stored: to go on at a place is to ask for it.
    """

    def __init__(self, n: int, seed: int) -> None:
        if not 1 <= n <= 1 << 31:
            raise ValueError(f"Permutation: n must lie between 1 and 2**31, not {n}")
        self.n = n
        self._a = math.isqrt(n - 1) + 1
        self._b = -(-n // self._a)
        words = token_words(np.arange(_ROUNDS), np.zeros(_ROUNDS), Purpose.SHUFFLE, seed).astype(np.uint64)
        self._keys = words[:, 0] | words[:, 1] << np.uint64(32)

    def __call__(self, places: Any) -> np.ndarray[Any, Any]:
        """Return what stands at `places`, integers in [0, n), as int64."""
        values = np.atleast_1d(np.asarray(places, np.int64)).astype(np.uint64)
        if values.size and int(values.max()) >= self.n:
            raise IndexError(f"Permutation: a place lies outside [0, {self.n})")
        values = self._encrypt(values)
        while (outside := np.flatnonzero(values >= self.n)).size:
            values[outside] = self._encrypt(values[outside])
        return values.astype(np.int64)

    def _encrypt(self, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        a, b = np.uint64(self._a), np.uint64(self._b)
        left: np.ndarray[Any, Any] = values // b
        right: np.ndarray[Any, Any] = values % b
        for i, key in enumerate(self._keys):
            if i % 2:
                right = (right + _mixed(left + key) % b) % b
            else:
                left = (left + _mixed(right + key) % a) % a
        found: np.ndarray[Any, Any] = left * b + right
        return found


def _mixed(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the finaliser of SplitMix64 (Steele et al. 2014): every bit of x reaches every bit of the result."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray[Any, Any] = x ^ (x >> np.uint64(31))
    return mixed
