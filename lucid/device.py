"""Where an array lives: "cpu" (NumPy) or "gpu" (CuPy)."""

from typing import Any, Literal

import numpy as np

Device = Literal["cpu", "gpu"]


class DeviceError(RuntimeError):
    """A device that cannot be used here; the message says what is missing."""


def gpu_status() -> str:
    """Say in one line whether ``device="gpu"`` can be used, and if not, why."""
    return "not available: this version of lucid has CPU kernels only"


def check_device(device: object) -> Device:
    """Return `device` if it names a device that can be used.

    Raises
    ------
    ValueError
        The name is neither "cpu" nor "gpu".
    DeviceError
        The device cannot be used here.
    """
    if device == "cpu":
        return "cpu"
    if device == "gpu":
        raise DeviceError(f"device 'gpu' is {gpu_status()}. Use device='cpu'.")
    raise ValueError(f"device {device!r} is unknown: use 'cpu' or 'gpu'")


def device_of(array: Any) -> Device:
    """Return the device of a NumPy or CuPy array."""
    return "cpu" if isinstance(array, np.ndarray) else "gpu"
