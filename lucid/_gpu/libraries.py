"""Libraries of NVIDIA's in place of lucid's own kernels: only if they are asked for, and only what they were seen to do right."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Hashable
from functools import lru_cache
from typing import Any

import numpy as np

from lucid._gpu.runtime import Array, xp

SWITCH = "LUCID_GPU_LIBRARIES"
"""Environment variable: "1" asks for all libraries, names with commas between for some, "0" for none, which it is without."""
NAMES = ("cublaslt", "cudnn")
BOUNDS = {"float32": 1e-4, "float16": 2.0**-9, "bfloat16": 2.0**-6}
"""Most relative distance from lucid's own kernels: a few roundings."""


class WrongError(ArithmeticError):
    """A library computes something else than lucid's own kernels."""


@lru_cache(maxsize=8)
def asked_for(value: str) -> frozenset[str]:
    """Return the libraries that a value of `SWITCH` names.

    Raises
    ------
    ValueError
        There is none of that name.
    """
    names = {name.strip() for name in value.split(",")} - {"", "0"}
    if not names <= {"1", *NAMES}:
        raise ValueError(f"{SWITCH}={value!r}: want 0, 1 or some of {','.join(NAMES)}")
    return frozenset(NAMES if "1" in names else names)


def check_near(name: str, got: Array, want: Array) -> None:
    """Raise WrongError if arrays are further apart than `BOUNDS` of their type, or not finite; waits for the GPU."""
    g, w = (np.asarray(xp.asnumpy(x)).astype(np.float64) for x in (got, want))
    bound = BOUNDS[want.dtype.name] * float(np.linalg.norm(w))
    distance = float(np.linalg.norm(g - w))
    if not distance <= bound:
        raise WrongError(f"{name} is {distance:.2g} from that of lucid's own kernels; the bound is {bound:.2g}")


class Library:
    """A library, what it was tried for, and whether it was right.

    Parameters
    ----------
    name : str. One of `NAMES`.

    Notes
    -----
    Before a kind of work is done by the library for the first time, a small case is done both ways. If that goes wrong, or a later
    call raises, lucid warns and does work of this kind itself from then on.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._lock = threading.RLock()  # handles of these libraries are for one thread at a time
        self._is_right: dict[Hashable, bool] = {}
        self._is_checking = False

    @property
    def is_asked_for(self) -> bool:
        """Whether `SWITCH` names it."""
        return self.name in asked_for(os.environ.get(SWITCH, "0"))

    @property
    def kinds(self) -> list[Hashable]:
        """What the library does by now."""
        return [kind for kind, is_right in self._is_right.items() if is_right]

    def does(self, kind: Hashable, check: Callable[[], None], work: Callable[[], Any]) -> bool:
        """Let the library work, if it may; return whether it did. If not, what `work` writes may hold anything."""
        if not self.is_asked_for:
            return False
        with self._lock:
            if self._is_checking:  # what is compared with is made without
                return False
            if kind not in self._is_right:
                self._is_checking = True
                try:
                    self._is_right[kind] = self._went_well(kind, check)
                finally:
                    self._is_checking = False
            if self._is_right[kind]:
                self._is_right[kind] = self._went_well(kind, work)
            return self._is_right[kind]

    def _went_well(self, kind: Hashable, action: Callable[[], Any]) -> bool:
        try:
            action()
        except MemoryError:  # says nothing of the library
            self._is_right.pop(kind, None)
            raise
        except Exception as error:  # the libraries' own, of many kinds
            hint = "; pip install 'lucid-bert[gpu-fast]'" if isinstance(error, ImportError) else ""
            warnings.warn(f"{SWITCH}: {self.name} is not used for {kind} ({type(error).__name__}: {error}{hint})", stacklevel=3)
            return False
        return True

    def forget(self) -> None:
        """Try everything again."""
        self._is_right.clear()


CUBLASLT, CUDNN = map(Library, NAMES)


def in_use() -> list[str]:
    """Return what libraries do by now, a line for each kind of work."""
    return [f"{library.name}: {kind}" for library in (CUBLASLT, CUDNN) for kind in library.kinds]
