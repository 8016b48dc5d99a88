"""Tensor: an array that knows its device, and speaks NumPy and DLPack."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from numbers import Real
from typing import Any

import numpy as np

from lucid.device import Device, check_device, device_of, is_on_gpu, moved, on_host, stored_type
from lucid.threads import in_forked_child

_accumulating = threading.Lock()


def _renew_lock() -> None:
    # Another thread may have held it when this process was forked: nobody would ever release it.
    global _accumulating
    _accumulating = threading.Lock()


in_forked_child(_renew_lock)


class Tensor:
    """An array of numbers on one device.

    Parameters
    ----------
    data : array_like
        A NumPy or CuPy array, a `Tensor`, anything with ``__dlpack__`` or ``__array__``, a number or nested lists.
        An array is shared, not copied, unless `dtype` or `device` asks for another one.
    dtype : numpy dtype, optional
        Python floats give float32, Python ints int64.
    device : {"cpu", "gpu"}, optional
        Default: where `data` is.
    requires_grad : bool
        Whether `backward` is to fill `grad`; for float32 only, and half precision on the GPU.

    Attributes
    ----------
    grad : array of the tensor's shape, or None. Added to by each `backward`; set it to None to start anew.
    requires_grad : bool
    node : what made the tensor, on the tape, or None

    Notes
    -----
    ``numpy.asarray(tensor)`` and ``numpy.from_dlpack(tensor)`` share the memory of a CPU tensor.
    """

    __slots__ = ("_array", "_grad", "_is_own_grad", "node", "requires_grad")
    __array_priority__ = 1000.0  # a NumPy number leaves a product with a tensor to the tensor

    def __init__(self, data: Any, dtype: Any = None, device: Device | None = None, requires_grad: bool = False) -> None:
        self._grad: Any = None
        self._is_own_grad = False
        self.node: Any = None
        self.requires_grad = requires_grad
        self._array: Any = as_array(data, dtype)
        if device is not None:
            self._array = moved(self._array, check_device(device))
        if requires_grad and self._array.dtype != stored_type(self._array):
            raise TypeError(f"only float32 tensors have gradients, not {self._array.dtype}: pass dtype=numpy.float32")

    @property
    def array(self) -> Any:
        """The array itself: NumPy on the CPU, CuPy on the GPU."""
        return self._array

    @property
    def operand(self) -> Any:
        """What an operation reads: the array, or of a parameter its values in another layout or type."""
        return self.array

    @property
    def grad(self) -> Any:
        """What `backward` has added up so far."""
        return self._grad

    @grad.setter
    def grad(self, value: Any) -> None:
        with _accumulating:
            self._grad = value
            self._is_own_grad = False  # the array may be someone else's, too

    @property
    def data(self) -> Any:
        """The array itself, under the name that other frameworks use."""
        return self.array

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes."""
        return tuple(self.array.shape)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape))

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of an element."""
        dtype: np.dtype[Any] = self.array.dtype
        return dtype

    @property
    def device(self) -> Device:
        """Where the array lives."""
        return device_of(self.array)

    def backward(self, gradient: Any = None) -> None:
        """Add to `grad` of every parameter and tensor that this one came from its derivative; see `lucid.autograd.backward`."""
        from lucid.autograd import backward

        backward(self, gradient)

    def detach(self) -> Tensor:
        """Return the same values off the tape."""
        return Tensor(self.array)

    def accumulate(self, gradient: Any, *, is_own: bool = False) -> None:
        """Add a gradient, an array or a `RowsGradient`, to `grad`; with `is_own` the array becomes the tensor's.

        Raises
        ------
        ValueError
            It has another shape.
        """
        if tuple(gradient.shape) != self.shape:
            raise ValueError(f"a gradient of shape {gradient.shape} for a tensor of shape {self.shape}")
        with _accumulating:  # two threads may go back into one model
            if not hasattr(gradient, "add_to"):
                if self.grad is None:
                    # Unless it is its own, another tensor may share it, and it is never written to.
                    self._grad, self._is_own_grad = gradient, is_own
                elif self._is_own_grad:
                    np.add(self.grad, gradient, out=self.grad)
                else:
                    total = self.grad + gradient
                    self._grad, self._is_own_grad = total if is_on_gpu(total) else np.asarray(total), True
            else:
                if not self._is_own_grad:
                    self._grad = np.zeros_like(gradient.values, shape=self.shape) if self.grad is None else self.grad.copy()
                    self._is_own_grad = True
                gradient.add_to(self.grad)

    def __copy__(self) -> Tensor:
        copied = object.__new__(type(self))
        for kind in type(self).__mro__:
            for name in getattr(kind, "__slots__", ()):
                if name != "__weakref__" and hasattr(self, name):
                    setattr(copied, name, getattr(self, name))
        copied._is_own_grad = self._is_own_grad = False  # both hold the array now
        return copied

    def __mul__(self, factor: float) -> Tensor:
        if not isinstance(factor, Real):  # of anything else the gradient would be lost
            raise TypeError(f"a tensor can be multiplied by a number, and divided by one, not by a {type(factor).__name__}")
        from lucid.autograd import apply
        from lucid.ops.total import scale

        scaled: Tensor = apply(scale, self, factor=float(factor))
        return scaled

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> Tensor:
        return self * (1.0 / divisor if isinstance(divisor, Real) else divisor)

    def numpy(self) -> np.ndarray[Any, Any]:
        """Return the values as a NumPy array; it shares memory if the tensor is on the CPU."""
        return np.asarray(on_host(self.array))

    def item(self) -> int | float | bool:
        """Return the one element as a Python number.

        Raises
        ------
        ValueError
            There is not exactly one element.
        """
        if self.size != 1:
            raise ValueError(f"item() wants a tensor of one element, this one has shape {self.shape}; index it first or use tolist()")
        return self.numpy().reshape(()).item()  # type: ignore[no-any-return]

    def tolist(self) -> Any:
        """Return the values as nested lists of Python numbers."""
        return self.numpy().tolist()

    def to(self, target: Any) -> Tensor:
        """Return this tensor on another device ("cpu", "gpu") or with another dtype; itself if nothing changes.

        Raises
        ------
        DeviceError
            There is no such device here.
        TypeError
            `target` is neither a device nor a dtype of numbers.
        """
        if target is None:
            raise TypeError('to() wants "cpu", "gpu" or a dtype, not None')
        if isinstance(target, str) and target in ("cpu", "gpu"):
            return self if device_of(self.array) == check_device(target) else Tensor(self.array, device=target)  # type: ignore[arg-type]
        dtype = np.dtype(target)
        return self if dtype == self.dtype else Tensor(self.array.astype(dtype))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.array.__dlpack_device__()  # type: ignore[no-any-return]

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of a 0-d tensor")
        return self.shape[0]

    def __getitem__(self, index: Any) -> Tensor:
        array = self.array[index]
        return Tensor(array if is_on_gpu(array) else np.asarray(array))

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __bool__(self) -> bool:
        return bool(self.item())

    def __repr__(self) -> str:
        values = np.array2string(self.numpy(), separator=", ", threshold=20, edgeitems=3, prefix="Tensor(")
        return f"Tensor({values}, shape={self.shape}, dtype={self.dtype}, device='{self.device}')"


def as_array(data: Any, dtype: Any = None) -> Any:
    """Return the NumPy or CuPy array behind `data`, converting what is not one to NumPy's.

    Raises
    ------
    TypeError
        `data` holds no numbers.
    ValueError
        Nested lists of unequal lengths.
    """
    if type(data) is np.ndarray and dtype is None and data.dtype.kind in "biuf":
        return data
    if isinstance(data, np.ma.MaskedArray):
        raise TypeError("masked arrays hold values that are not meant: give a plain array, and an attention_mask for what is padding")
    array: Any
    if isinstance(data, Tensor):
        array = data.array
    elif is_on_gpu(data):
        array = data
    elif isinstance(data, np.ndarray):
        array = np.asarray(data)
    elif hasattr(data, "__array__"):
        array = np.asarray(data)
    elif hasattr(data, "__dlpack__"):
        try:
            array = np.from_dlpack(data)
        except (BufferError, RuntimeError) as error:
            raise TypeError(f"{type(data).__name__} gives no array of numbers: {error}") from error
    else:
        try:
            array = np.asarray(data)
        except ValueError as error:
            raise ValueError("nested lists of unequal lengths: pad them to one length, or give the texts to a text method") from error
        if array.dtype == np.float64 and dtype is None:
            array = array.astype(np.float32)
        elif array.size == 0 and dtype is None and array.dtype == np.float64:
            array = array.astype(np.int64)
    if array.dtype.kind not in "biuf" and array.dtype.name not in ("bfloat16",):
        raise TypeError(f"a tensor holds numbers, not {array.dtype} ({type(data).__name__})")
    if dtype is None:
        return array
    if np.dtype(dtype).kind not in "biuf" and np.dtype(dtype).name != "bfloat16":
        raise TypeError(f"a tensor holds numbers, not {np.dtype(dtype)}")
    return array.astype(dtype, copy=False)
