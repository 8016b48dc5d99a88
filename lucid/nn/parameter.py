"""Parameter: a tensor that a model owns, in the layout that its current use needs."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from lucid.nn.init import Initializer
from lucid.ops.linear import PackedWeight
from lucid.tensor import Tensor


class Parameter(Tensor):
    """A float32 array that only `assign` and optimizers write.

    Parameters
    ----------
    shape : tuple of int
    initializer : function from a shape to an array. Called when the values are first needed.

    Attributes
    ----------
    version : int
        Rises with every write.

    Notes
    -----
    Inference holds a weight once, as packed panels: `packed` lets the row-major array go, and `array`
    rebuilds it for whoever asks.
    """

    __slots__ = ("_initializer", "_lock", "_packed", "_shape", "version")

    def __init__(self, shape: tuple[int, ...], initializer: Initializer) -> None:
        self._array = None
        self._packed: PackedWeight | None = None
        self._shape = tuple(shape)
        self._initializer = initializer
        self._lock = threading.Lock()
        self.version = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes."""
        return self._shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of an element: float32."""
        return np.dtype(np.float32)

    @property
    def array(self) -> Any:
        """The values, row-major and read-only."""
        with self._lock:
            if self._array is None:
                if self._packed is not None:
                    return _read_only(self._packed.unpack())
                self._array = _read_only(self._initializer(self._shape))
            return self._array

    def packed(self) -> PackedWeight:
        """Return the weight (N, K) as the kernels read it, packed once per version."""
        with self._lock:
            if self._packed is None:
                array = self._array if self._array is not None else self._initializer(self._shape)
                self._packed = PackedWeight.pack(array)
                self._array = None
            return self._packed

    def table(self) -> PackedWeight | Any:
        """Return the weight in whatever layout is there, for looking up rows."""
        packed = self._packed
        return self.array if packed is None else packed

    def assign(self, values: Any) -> None:
        """Replace the values by a copy of `values`.

        Raises
        ------
        TypeError
            The values are not floating-point numbers.
        ValueError
            Their shape differs from the parameter's.
        """
        array = np.asarray(values)
        if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
            raise TypeError(f"a parameter holds floating-point numbers, not {array.dtype}")
        if array.shape != self._shape:
            raise ValueError(f"a parameter of shape {self._shape} cannot take values of shape {array.shape}")
        self.adopt(np.array(array, np.float32, order="C"))

    def adopt(self, array: np.ndarray[Any, Any]) -> None:
        """Take over a float32, C-contiguous array of the right shape without copying; nobody else may write it."""
        with self._lock:
            self._array = _read_only(array)
            self._packed = None
            self.version += 1

    def __repr__(self) -> str:
        return f"Parameter(shape={self.shape})"

    def __reduce__(self) -> Any:
        return _restore, (self._shape, np.array(self.array), self.version)


def _read_only(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    array.flags.writeable = False
    return array


def _restore(shape: tuple[int, ...], array: np.ndarray[Any, Any], version: int) -> Parameter:
    parameter = Parameter(shape, lambda _: array)
    parameter.adopt(array)
    parameter.version = version
    return parameter
