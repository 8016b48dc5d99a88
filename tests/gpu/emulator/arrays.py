"""Arrays as CuPy's: NumPy's in disguise, that nothing takes for NumPy's."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import EllipsisType, SimpleNamespace
from typing import Any

import numpy as np


class DeviceArray(np.lib.mixins.NDArrayOperatorsMixin):
    """An array of the emulated GPU; `host` is the NumPy array behind it, which only the emulator may touch."""

    n_reads = 0
    """How often, over all arrays, the host waited for a value: `get`, `item`, `float`, `bool` and the like."""

    def __init__(self, host: np.ndarray) -> None:
        self.host = host

    shape = property(lambda self: self.host.shape)
    dtype = property(lambda self: self.host.dtype)
    strides = property(lambda self: self.host.strides)
    size = property(lambda self: self.host.size)
    ndim = property(lambda self: self.host.ndim)
    nbytes = property(lambda self: self.host.nbytes)
    itemsize = property(lambda self: self.host.itemsize)
    flags = property(lambda self: self.host.flags)
    T = property(lambda self: DeviceArray(self.host.T))
    data = property(lambda self: SimpleNamespace(ptr=self.host.ctypes.data))

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {"shape": self.shape, "typestr": self.dtype.str, "data": (self.host.ctypes.data, False), "version": 3}

    def get(self) -> np.ndarray:
        """Wait, and return a copy as a NumPy array."""
        DeviceArray.n_reads += 1
        return self.host.copy()

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("an array of the GPU is not turned into a NumPy array unasked: use .get()")

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        with np.errstate(all="ignore"):  # a GPU does not say it
            return wrapped(getattr(ufunc, method)(*unwrapped(inputs), **unwrapped(options)))

    def __array_function__(self, function: Callable[..., Any], types: Any, args: Any, options: Any) -> Any:
        return wrapped(function(*unwrapped(args), **unwrapped(options)))

    def __getitem__(self, index: Any) -> DeviceArray:
        return wrapped(self.host[unwrapped(index)])

    def __setitem__(self, index: Any, value: Any) -> None:
        self.host[unwrapped(index)] = unwrapped(value)

    def __len__(self) -> int:
        return len(self.host)

    def _read(self) -> Any:
        DeviceArray.n_reads += 1
        return self.host.item()

    item = _read

    def __float__(self) -> float:
        return float(self._read())

    def __int__(self) -> int:
        return int(self._read())

    def __bool__(self) -> bool:
        return bool(self._read())

    def __getattr__(self, name: str) -> Any:
        if name not in METHODS:
            raise AttributeError(f"the emulator's arrays have no {name}")

        def method(*args: Any, **options: Any) -> Any:
            return wrapped(getattr(self.host, name)(*unwrapped(args), **unwrapped(options)))

        return method

    def __repr__(self) -> str:
        return f"DeviceArray({self.host!r})"


METHODS = {"reshape", "ravel", "astype", "copy", "view", "transpose", "sum", "max", "min", "mean", "any", "all", "fill", "argsort", "take"}

PLAIN = (int, float, bool, complex, str, bytes, np.generic, np.dtype, slice, type, EllipsisType, type(None))


def unwrapped(value: Any) -> Any:
    """Return what NumPy is to see; a NumPy array among the GPU's is an error, as it is for CuPy."""
    if isinstance(value, DeviceArray):
        return value.host
    if isinstance(value, (tuple, list)):
        return type(value)(map(unwrapped, value))
    if isinstance(value, dict):
        return {name: unwrapped(inside) for name, inside in value.items()}
    if isinstance(value, PLAIN):
        return value
    raise TypeError(f"a {type(value).__name__} beside arrays of the GPU: CuPy takes no such thing")


def wrapped(value: Any) -> Any:
    """Return a result as CuPy would: a number is an array without axes."""
    if isinstance(value, (np.ndarray, np.generic)):
        return DeviceArray(np.asarray(value))
    return tuple(map(wrapped, value)) if isinstance(value, tuple) else value


class OutOfMemoryError(MemoryError):
    """As CuPy's."""


class ArrayModule:
    """The functions of NumPy that CuPy has too, on arrays of the emulated GPU."""

    FUNCTIONS = frozenset(
        "zeros ones full arange zeros_like ones_like full_like empty_like ascontiguousarray concatenate stack where take sum sort argsort "
        "cumsum add multiply maximum minimum exp log sqrt isfinite any all broadcast_to repeat searchsorted square copyto".split()
    )
    __version__ = "emulated"
    n_bytes = n_free = 1 << 40
    """All bytes, and those that `empty` may still take: set it lower to see what happens without room."""
    ndarray = DeviceArray

    def __getattr__(self, name: str) -> Any:
        if name not in self.FUNCTIONS:
            raise AttributeError(f"the emulator has no xp.{name}: name it in ArrayModule.FUNCTIONS if CuPy has it")
        function = getattr(np, name)

        def on_device(*args: Any, **options: Any) -> Any:
            return wrapped(function(*unwrapped(args), **unwrapped(options)))

        return on_device

    def empty(self, shape: Any, dtype: Any = np.float32) -> DeviceArray:
        """Return an array of NaN, or of a large number: what nobody wrote is seen."""
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        dtype = np.dtype(dtype)
        self.n_free -= math.prod(shape) * dtype.itemsize
        if self.n_free < 0:
            raise OutOfMemoryError(f"Out of memory allocating {math.prod(shape) * dtype.itemsize:,} bytes.")
        return DeviceArray(
            np.full(math.prod(shape) * dtype.itemsize, 0xFF if dtype.kind in "fV" else 0x7B, np.uint8).view(dtype).reshape(shape)
        )

    def asarray(self, data: Any, dtype: Any = None) -> DeviceArray:
        """Return a copy on the GPU of what is on the host."""
        if isinstance(data, DeviceArray):
            return data if dtype is None or data.dtype == dtype else data.astype(dtype)
        return DeviceArray(np.array(data, dtype))

    array = asarray

    def asnumpy(self, array: Any) -> np.ndarray:
        """Wait, and return a copy on the host."""
        return array.get() if isinstance(array, DeviceArray) else np.asarray(array)
