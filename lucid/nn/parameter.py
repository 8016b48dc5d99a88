"""Parameter: a tensor that a model owns, in the layout that its current use needs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import numpy as np

from lucid.nn.init import Initializer
from lucid.ops.linear import PackedWeight
from lucid.tensor import Tensor
from lucid.threads import in_forked_child


class Parameter(Tensor):
    """A float32 array that only `assign` and optimizers write.

    Parameters
    ----------
    shape : tuple of int
    initializer : function from a shape to an array. Called when the values are first needed.

    Attributes
    ----------
    grad : array of the parameter's shape, or None. What `backward` adds to.
    requires_grad : bool. False freezes the parameter.
    version : int. Rises with every write.

    Notes
    -----
    Inference holds a weight once, as packed panels: `packed` lets the row-major array go, and `array`
    rebuilds it for whoever asks. Training holds it row-major: `row_major` lets the panels go.
    """

    __slots__ = ("__weakref__", "_initializer", "_lock", "_packed", "_shape", "_view", "version")

    def __init__(self, shape: tuple[int, ...], initializer: Initializer) -> None:
        self._array = None
        self._view: Any = None  # of `_array`, read-only; None until it is asked for
        self._packed: PackedWeight | None = None
        self._shape = tuple(shape)
        self._initializer = initializer
        self._lock = threading.RLock()  # again: `write` holds it while its caller may read
        self.version = 0
        self.grad = None
        self.node = None
        self.requires_grad = True
        _every_parameter.add(self)

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
        """The values, row-major, as a read-only view; a copy while the parameter is packed."""
        view = self._view
        if view is None:
            with self._lock:
                view = _read_only(self._values())
                self._view = view if self._packed is None else None
        return view

    def _values(self) -> np.ndarray[Any, Any]:
        if self._array is None:
            if self._packed is not None:
                unpacked: np.ndarray[Any, Any] = self._packed.unpack(is_lasting=True)
                return unpacked
            self._array = self._initializer(self._shape)
        values: np.ndarray[Any, Any] = self._array
        return values

    def row_major(self) -> Any:
        """Return the values as `array` does, and keep them in this layout from now on."""
        with self._lock:
            self._array = self._values()
            self._packed = None
            return _read_only(self._array)

    def packed(self) -> PackedWeight:
        """Return the weight (N, K) as the kernels read it, packed once per version."""
        with self._lock:
            if self._packed is None:
                self._packed = PackedWeight.pack(self._values(), is_lasting=True)
                self._array = self._view = None
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
            self._array, self._view, self._packed = array, None, None
            self.version += 1

    def adopt_packed(self, weight: PackedWeight) -> None:
        """Take over a packed weight of the right shape, which nobody else may write."""
        with self._lock:
            self._array, self._view, self._packed = None, None, weight
            self.version += 1

    @contextmanager
    def write(self) -> Iterator[np.ndarray[Any, Any]]:
        """Give the row-major array for writing in place; the version rises."""
        with self._lock:
            array = self._values()
            self.version += 1
            try:
                yield array
            finally:
                # Only now: whoever read inside may have changed the layout.
                self._array, self._view, self._packed = array, None, None

    def __repr__(self) -> str:
        return f"Parameter(shape={self.shape})"

    def __reduce__(self) -> Any:
        return _restore, (self._shape, np.array(self.array), self.version, self.requires_grad)


_every_parameter: WeakSet[Parameter] = WeakSet()


def _renew_locks() -> None:
    # Another thread may have held some when this process was forked: nobody would ever release them.
    for parameter in _every_parameter:
        parameter._lock = threading.RLock()


in_forked_child(_renew_locks)


def _read_only(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    view = array.view()
    view.flags.writeable = False
    return view


def _restore(shape: tuple[int, ...], array: np.ndarray[Any, Any], version: int, requires_grad: bool) -> Parameter:
    parameter = Parameter(shape, lambda _: array)
    parameter.adopt(array)
    parameter.version, parameter.requires_grad = version, requires_grad
    return parameter
