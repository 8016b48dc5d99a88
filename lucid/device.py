"""Where an array lives, "cpu" (NumPy) or "gpu" (CuPy), and moving it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np

Device = Literal["cpu", "gpu"]

_INSTALL = "pip install 'lucid-bert[gpu]' for CUDA 13, or 'lucid-bert[gpu12]' for CUDA 12"


class DeviceError(RuntimeError):
    """A device that cannot be used here; the message says what is missing."""


class DeviceMemoryError(MemoryError):
    """The GPU has no room; the message says for what, and what may fit."""


def is_out_of_memory(error: MemoryError) -> bool:
    """Return whether an error is CuPy's, which found no memory on the GPU."""
    return type(error).__name__ == "OutOfMemoryError"


def gpu_memory() -> tuple[int, int]:
    """Return how many bytes of the GPU are free, and how many there are."""
    from lucid._gpu import runtime

    return runtime.memory()


def gpu_status() -> str:
    """Say in one line whether ``device="gpu"`` can be used, and if not, why."""
    from lucid._gpu import runtime

    try:
        return f"available: {runtime.status()}"
    except ImportError as error:
        what = "CuPy is not installed" if error.name == "cupy" else f"CuPy cannot be imported ({_line(error)})"
        return f"not available: {what}: {_INSTALL}"
    except Exception as error:  # CuPy's own, of many kinds
        return f"not available: CuPy finds no GPU ({_line(error)}): `nvidia-smi` must show one, with a driver for CuPy's CUDA; {_INSTALL}"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def check_device(device: object) -> Device:
    """Return `device` if it names a device that can be used.

    Raises
    ------
    ValueError
        The name is neither "cpu" nor "gpu".
    DeviceError
        The device cannot be used here.
    """
    if isinstance(device, str) and device == "cpu":
        return "cpu"
    if isinstance(device, str) and device == "gpu":
        status = gpu_status()
        if status.startswith("not"):
            raise DeviceError(f"device 'gpu' is {status}. Use device='cpu'.")
        return "gpu"
    raise ValueError(f"device {device!r} is unknown: use 'cpu' or 'gpu'")


def is_on_gpu(array: Any) -> bool:
    """Return whether `array` is one of CuPy's."""
    # `get`, because torch's tensors have the interface too, wherever they are.
    return not isinstance(array, np.ndarray) and hasattr(type(array), "__cuda_array_interface__") and hasattr(type(array), "get")


def stored_type(array: Any) -> Any:
    """Return the type that an op wants of its matrices: float32; on the GPU also float16 or bfloat16, if `array` is of that type.

    Vectors, such as biases and the gain of a normalisation, are float32 in any case.
    """
    if type(array) is np.ndarray:  # at once, since every op asks
        return np.float32
    return array.dtype if is_on_gpu(array) and array.dtype.name in ("float16", "bfloat16") else np.float32


def device_of(array: Any) -> Device:
    """Return the device of a NumPy or CuPy array."""
    return "gpu" if is_on_gpu(array) else "cpu"


def moved(array: Any, device: Device) -> Any:
    """Return an array on a device: itself if it is there, else a copy.

    Raises
    ------
    DeviceError
        The device cannot be used here.
    """
    if device_of(array) == device:
        return array
    check_device(device)
    from lucid._gpu.runtime import xp

    return xp.asarray(array) if device == "gpu" else xp.asnumpy(array)


def on_host(array: Any) -> Any:
    """Return an array as one of NumPy's, to be read only: itself, or a copy of one on the GPU."""
    return moved(array, "cpu")


def read_later(array: Any) -> Callable[[], Any]:
    """Return the function that returns an array as one of NumPy's, and waits only for what was asked of the GPU until now."""
    if not is_on_gpu(array):
        return lambda: array
    from lucid._gpu import runtime

    return runtime.read_later(array)


def real_type(name: str) -> np.dtype[Any]:
    """Return the NumPy type that matrices on the GPU may have: "float32", "float16" or "bfloat16".

    Raises
    ------
    ValueError
        It is none of these.
    """
    from lucid._gpu.runtime import C_TYPES, dtype_of

    if name not in C_TYPES:
        raise ValueError(f"dtype {name!r} is unknown: use {', '.join(map(repr, C_TYPES))}")
    return dtype_of(name)
