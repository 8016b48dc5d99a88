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
        self._faults: dict[Hashable, str] = {}  # by kind of work; empty where there are none
        self._is_checking = False

    @property
    def is_asked_for(self) -> bool:
        """Whether `SWITCH` names it."""
        return self.name in asked_for(os.environ.get(SWITCH, "0"))

    def does(self, kind: Hashable, check: Callable[[], None], work: Callable[[], Any]) -> bool:
        """Let the library work, if it may; return whether it did. If not, what `work` writes may hold anything."""
        if not self.is_asked_for:
            return False
        with self._lock:
            if self._is_checking:  # what is compared with is made without
                return False
            if kind not in self._faults:
                self._is_checking = True
                try:
                    self._try(kind, check)
                finally:
                    self._is_checking = False
            if not self._faults[kind]:
                self._try(kind, work)
            return not self._faults[kind]

    def _try(self, kind: Hashable, action: Callable[[], Any]) -> None:
        try:
            action()
        except MemoryError:  # says nothing of the library
            self._faults.pop(kind, None)
            raise
        except Exception as error:  # the libraries' own, of many kinds
            hint = "; pip install 'lucid-bert[gpu-fast]'" if isinstance(error, ImportError) else ""
            self._faults[kind] = f"{type(error).__name__}: {error}{hint}"
            warnings.warn(f"{SWITCH}: {self.name} is not used for {kind} ({self._faults[kind]})", stacklevel=3)
        else:
            self._faults[kind] = ""

    def used(self) -> list[str]:
        """Return what the library does by now, a line for each kind of work."""
        return [f"{self.name}: {kind}" for kind, fault in self._faults.items() if not fault]

    def refused(self) -> list[str]:
        """Return what it was asked for and does not do, with the reason."""
        return [f"{self.name}: not {kind} ({fault})" for kind, fault in self._faults.items() if fault]

    def forget(self) -> None:
        """Try everything again."""
        self._faults.clear()


CUBLASLT, CUDNN = map(Library, NAMES)
