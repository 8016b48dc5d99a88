"""Parameter: a tensor that a model owns, in the layout that its current use needs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import numpy as np

from lucid.device import Device, is_on_gpu, moved, on_host, real_type
from lucid.nn.derived import changed
from lucid.nn.init import Initializer
from lucid.ops.linear import PackedWeight
from lucid.tensor import Tensor, as_array
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
    On the CPU, inference holds a weight once, as packed panels: `packed` lets the row-major array go, and `array`
    rebuilds it for whoever asks. Training holds it row-major: `row_major` lets the panels go.

    On the GPU there are no panels. With another type than float32, operations read a copy of a matrix in that type, made once
    per version; the values, gradients and whatever an optimizer keeps stay float32, and vectors have no copy.
    """

    __slots__ = ("__weakref__", "_copy", "_device", "_initializer", "_lock", "_packed", "_shape", "_type", "_view", "version")

    def __init__(self, shape: tuple[int, ...], initializer: Initializer) -> None:
        self._array = None
        self._view: Any = None  # of `_array`, read-only; None until it is asked for
        self._packed: PackedWeight | None = None
        self._device: Device = "cpu"
        self._type: np.dtype[Any] = np.dtype(np.float32)  # that operations read, of a matrix on the GPU
        self._copy: Any = None  # in that type, where it is another
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
    def device(self) -> Device:
        """Where the values live."""
        return self._device

    @property
    def array(self) -> Any:
        """The values, row-major: on the CPU as a read-only view, a copy while the parameter is packed."""
        view = self._view
        if view is None:
            with self._lock:
                view = _read_only(self._values())
                self._view = view if self._packed is None else None
        return view

    @property
    def operand_type(self) -> np.dtype[Any]:
        """The type of `operand`, which need not be there yet."""
        return self.dtype if self._device == "cpu" or len(self._shape) < 2 else self._type

    @property
    def operand(self) -> Any:
        """The values as operations read them: of a matrix on the GPU, in the type that `move` was given."""
        if self.operand_type == np.float32:
            return self.array
        with self._lock:
            if self._copy is None:
                self._copy = self._values().astype(self._type)
            return self._copy

    def _values(self) -> Any:
        if self._array is None:
            if self._packed is not None:
                return self._packed.unpack(is_lasting=True)
            self._array = moved(self._initializer(self._shape), self._device)
        return self._array

    def move(self, device: Device, dtype: str | None = None) -> None:
        """Take the values, and the gradient, to a device.

        Parameters
        ----------
        device : "cpu" or "gpu"
        dtype : "float32", "float16" or "bfloat16", optional. On the GPU, the type of the matrices that operations read. Default:
            the type as it is, float32 for what comes from the CPU.
        """
        with self._lock:
            if dtype is not None or device == "cpu":
                self._type, self._copy = real_type(dtype or "float32"), None
            if device == self._device:
                return
            if self._array is not None or self._packed is not None:
                self._array = moved(self._values(), device)
            self._device, self._packed, self._view, self._copy = device, None, None, None
            if self.grad is not None:
                self.grad = moved(self.grad, device)
            changed()

    def row_major(self) -> Any:
        """Return the values as `array` does, and keep them in this layout from now on."""
        with self._lock:
            self._array = self._values()
            if self._packed is not None:
                self._packed = None
                changed()
            return _read_only(self._array)

    def move_like(self, other: Parameter) -> None:
        """Take the values to where another parameter's are, to be read in the same type."""
        self.move(other._device, other._type.name)

    def packed(self) -> PackedWeight | Any:
        """Return the weight (N, K) as the kernels of its device read it: on the CPU packed, once per version."""
        if self._device == "gpu":
            return self.operand
        with self._lock:
            if self._packed is None:
                self._packed = PackedWeight.pack(self._values(), is_lasting=True)
                self._array = self._view = None
            return self._packed

    def table(self) -> PackedWeight | Any:
        """Return the weight in whatever layout is there, for looking up rows."""
        packed = self._packed
        return self.operand if packed is None else packed

    def rows(self, index: Any) -> Any:
        """Return some rows of the values, for numbers on the host."""
        packed = self.packed() if len(self._shape) == 2 else self.array
        return packed.rows(index) if isinstance(packed, PackedWeight) else packed[moved(index, self._device)]

    def assign(self, values: Any) -> None:
        """Replace the values by a copy of `values`.

        Raises
        ------
        TypeError
            The values are not floating-point numbers.
        ValueError
            Their shape differs from the parameter's.
        """
        array = np.asarray(on_host(as_array(values) if is_on_gpu(values) else values))
        if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
            raise TypeError(f"a parameter holds floating-point numbers, not {array.dtype}")
        if array.shape != self._shape:
            raise ValueError(f"a parameter of shape {self._shape} cannot take values of shape {array.shape}")
        self.adopt(np.array(array, np.float32, order="C"))

    def adopt(self, array: np.ndarray[Any, Any]) -> None:
        """Take over a float32, C-contiguous array of the right shape without copying; nobody else may write it."""
        with self._lock:
            self._array, self._view, self._packed, self._copy = moved(array, self._device), None, None, None
            self.version += 1
            changed()

    def adopt_packed(self, weight: PackedWeight) -> None:
        """Take over a packed weight of the right shape, which nobody else may write."""
        if self._device == "gpu":
            self.adopt(weight.unpack())
            return
        with self._lock:
            self._array, self._view, self._packed = None, None, weight
            self.version += 1
            changed()

    @contextmanager
    def write(self) -> Iterator[Any]:
        """Give the row-major array for writing in place; the version rises."""
        with self._lock:
            try:
                with self.write_with_copy() as (array, _):
                    yield array
            finally:
                self._copy = None

    @contextmanager
    def write_with_copy(self) -> Iterator[tuple[Any, Any]]:
        """Give the row-major array, and the copy of another type that operations read, or None: to be written alike."""
        with self._lock:
            array, copy = self._values(), self._copy
            self.version += 1
            try:
                yield array, copy
            finally:
                # Only now: whoever read inside may have changed the layout.
                self._array, self._view, self._packed, self._copy = array, None, None, copy
                changed()

    def __repr__(self) -> str:
        return f"Parameter(shape={self.shape})"

    def __deepcopy__(self, _: Any) -> Parameter:
        copied = _restore(self._shape, np.array(self.numpy()), self.version, self.requires_grad)
        copied.move_like(self)
        return copied

    def __reduce__(self) -> Any:
        # On the CPU: another process may have no GPU.
        return _restore, (self._shape, np.array(self.numpy()), self.version, self.requires_grad)


_every_parameter: WeakSet[Parameter] = WeakSet()


def _renew_locks() -> None:
    # Another thread may have held some when this process was forked: nobody would ever release them.
    for parameter in _every_parameter:
        parameter._lock = threading.RLock()


in_forked_child(_renew_locks)


def _read_only(array: Any) -> Any:
    if is_on_gpu(array):
        return array
    view = array.view()
    view.flags.writeable = False
    return view


def _restore(shape: tuple[int, ...], array: np.ndarray[Any, Any], version: int, requires_grad: bool) -> Parameter:
    parameter = Parameter(shape, lambda _: array)
    parameter.adopt(array)
    parameter.version, parameter.requires_grad = version, requires_grad
    return parameter
