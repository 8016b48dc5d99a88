"""The seam between the model and the devices: `Op`, a value that pairs a check with a kernel per device."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np

from lucid._ext._memory import Memory
from lucid.device import Device, device_of, is_on_gpu
from lucid.device import stored_type as stored_type

_ARRAY_TYPES = (np.ndarray, np.memmap)

Array = Any
"""A NumPy array, or a CuPy array with the same interface."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """An operation on one device.

    Attributes
    ----------
    forward : ``(*arrays, keep, **params) -> (out, saved)``. Without `keep` nothing is saved.
    backward : ``(saved, d_out) -> gradients``, one per array, None for one without; or None where no gradient
        is defined. It checks nothing: the tape asks `want_gradient` before.
    is_fresh : whether the arrays that backward returns are new and nobody else's: none shares memory with another, with an
        input or with d_out. Then one becomes a leaf's `grad` as it is, and what comes later is added into it in place: a
        tied word table has no second copy of its gradient. Where it is not promised, the first addition makes a copy.
    """

    forward: Callable[..., tuple[Any, Any]]
    backward: Callable[..., Any] | None
    is_fresh: bool = False


@dataclass(frozen=True, slots=True)
class Op:
    """An operation: its name, the check of its arguments for both devices, and its kernels.

    `gpu` is a thunk, so that importing lucid never imports CuPy; None where there is no GPU kernel yet.
    """

    name: str
    check: Callable[..., None]
    cpu: Kernel
    gpu: Callable[[], Kernel] | None

    def on(self, array: Array) -> Kernel:
        """Return the kernel for the device of `array`, or of a packed weight's panels: the only line that picks a device."""
        array = getattr(array, "panels", array)
        if isinstance(array, np.ndarray):
            return self.cpu
        if self.gpu is None or not is_on_gpu(array):
            raise TypeError(f"{self.name}: no kernel for {type(array).__module__}.{type(array).__name__}; want a NumPy array")
        return self.gpu()

    @property
    def is_differentiable(self) -> bool:
        """Whether there is a backward."""
        return self.cpu.backward is not None

    def run(self, *arrays: Array, keep: bool, **params: Any) -> tuple[Any, Any]:
        """Check, pick the device, run forward; return the result, and what backward reads if `keep`."""
        self.check(*arrays, **params)
        for array in arrays:
            if type(array) is not np.ndarray and array is not None and is_on_gpu(array):
                self._want_all_on_gpu(arrays)
                break
        arrays, params = tuple(map(aligned, arrays)), {name: aligned(value) for name, value in params.items()}
        return self.on(arrays[0]).forward(*arrays, keep=keep, **params)

    def _want_all_on_gpu(self, arrays: tuple[Array, ...]) -> None:
        """Raise TypeError unless all arrays are there; arrays of indices, among the parameters, are copied when they are not."""
        if not all(is_on_gpu(array) for array in arrays if array is not None):
            raise TypeError(f"{self.name}: some arrays are on the CPU and some on the GPU: move them with .to('gpu') or .to('cpu')")

    def __call__(self, *arrays: Array, **params: Any) -> Any:
        """Run forward and return the result alone."""
        return self.run(*arrays, keep=False, **params)[0]


@dataclass(frozen=True, slots=True)
class RowsGradient:
    """A gradient that is zero but for some rows.

    Attributes
    ----------
    rows : slice or array of distinct row numbers
    values : array, float32, shape (number of rows, ...)
    shape : of the whole gradient
    """

    rows: Any
    values: Array
    shape: tuple[int, ...]

    def add_to(self, total: Array) -> None:
        """Add to a dense gradient in place."""
        total[self.rows] += self.values

    def dense(self) -> Array:
        """Return the whole gradient."""
        total = np.zeros_like(self.values, shape=self.shape)
        total[self.rows] = self.values
        return total


def on_gpu(
    module: str, forward: str = "forward", backward: str | None = "backward", *, is_fresh: bool = False, **bound: Any
) -> Callable[[], Kernel]:
    """Return the thunk of an op's GPU kernel: functions of `lucid._gpu.<module>`, which is imported when the kernel is first asked for.

    Parameters
    ----------
    module, forward, backward : str. `backward` is None where no gradient is defined.
    is_fresh : bool. As for `Kernel`.
    **bound
        What forward is given as well: numbers and names that the GPU's side does not know.
    """

    @cache
    def kernel() -> Kernel:
        functions = import_module(f"lucid._gpu.{module}")
        run, back = getattr(functions, forward), None if backward is None else getattr(functions, backward)
        return Kernel(partial(run, **bound) if bound else run, back, is_fresh)

    return kernel


def want(op: str, name: str, array: Array, dtype: Any, shape: tuple[int | None, ...]) -> None:
    """Raise unless `array` has this dtype and shape; None in `shape` stands for any length.

    Raises
    ------
    TypeError
        Not an array, or of another dtype.
    ValueError
        Of another shape.
    """
    # Not other subclasses: what they answer when they are checked need not be what they hold.
    if type(array) not in _ARRAY_TYPES and not is_on_gpu(array):
        raise TypeError(f"{op}: {name} must be an array, not {type(array).__name__}")
    if array.dtype != dtype:
        raise TypeError(f"{op}: {name} must be {np.dtype(dtype).name}, not {array.dtype}")
    lengths = array.shape
    is_right = len(lengths) == len(shape)
    if is_right and lengths != shape:
        for length, wanted in zip(lengths, shape, strict=True):  # a plain loop: this runs 200 times in a forward pass
            if length != wanted and wanted is not None:
                is_right = False
    if not is_right:
        shape_text = ", ".join("any" if n is None else str(n) for n in shape)
        raise ValueError(f"{op}: {name} must have shape ({shape_text}), not {lengths}")


class Form(NamedTuple):
    """What of a result its gradient must have, too."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    device: Device

    @classmethod
    def of(cls, array: Array) -> Form:
        """Return that of an array."""
        return cls(tuple(array.shape), array.dtype, device_of(array))


def want_gradient(op: str, d_out: Array, result: Form) -> None:
    """Raise TypeError or ValueError unless `d_out` is of the result's form: every backward reads it without bounds, on either device."""
    want(op, "d_out", d_out, result.dtype, result.shape)
    if device_of(d_out) != result.device:
        raise TypeError(f"{op}: d_out is on the {device_of(d_out)}, the result on the {result.device}")


def want_ids(op: str, name: str, ids: Array, limit: int) -> None:
    """Raise IndexError unless every id lies in [0, limit). Kernels read memory at these places."""
    if ids.size and (int(ids.min()) < 0 or int(ids.max()) >= limit):
        at = int(np.flatnonzero((ids < 0) | (ids >= limit))[0])
        raise IndexError(f"{op}: {name}[{at}] is {int(ids.reshape(-1)[at])}, outside [0, {limit})")


def want_integer(op: str, name: str, value: int) -> None:
    """Raise TypeError unless `value` is an integer: compared with an array, anything else may broadcast."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{op}: {name} must be an integer, not {type(value).__name__}")


def want_stream(op: str, name: str, stream: int) -> None:
    """Raise unless `stream` is a 32-bit word, as `lucid.random.stream` makes them."""
    if isinstance(stream, bool) or not hasattr(stream, "__index__"):
        raise TypeError(f"{op}: {name} must be an integer, not {type(stream).__name__}")
    if not 0 <= stream < 1 << 32:
        raise ValueError(f"{op}: {name} must lie in [0, 2**32), not {stream}")


def aligned(value: Any) -> Any:
    """Return a NumPy array that lies at odd addresses as a copy that does not, and anything else as it is: C does not allow it."""
    return value.copy() if isinstance(value, np.ndarray) and not value.flags.aligned else value


def empty(shape: tuple[int, ...], *, is_lasting: bool = False) -> Array:
    """Return a float32 array on the CPU whose values are not set: aligned to cache lines, its memory used before if it can be.

    With `is_lasting`, for what outlives a call, its memory is fresh and of the exact size.
    """
    size = math.prod(shape)
    if size == 0:
        return np.empty(shape, np.float32)
    return np.frombuffer(Memory(4 * size, reuse=not is_lasting), np.float32).reshape(shape)  # type: ignore[call-overload]


def rows_contiguous(array: Array) -> Array:
    """Return `array` with unit stride along its last axis, copied only if it has another."""
    array = aligned(array)
    return array if array.strides[-1] == array.itemsize and array.strides[0] % array.itemsize == 0 else np.ascontiguousarray(array)
