"""BERT masked language modelling without PyTorch.

>>> import lucid.models as models
>>> model = models.BERTForMaskedLM.from_pretrained("path/to/folder")  # doctest: +SKIP
>>> model.fill_mask("Paris is the [MASK] of France.")  # doctest: +SKIP
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lucid import data as data
    from lucid import models as models
    from lucid import nn as nn
    from lucid import ops as ops
    from lucid import optim as optim
    from lucid import text as text
    from lucid import training as training
    from lucid.autograd import enable_grad as enable_grad
    from lucid.autograd import gradcheck as gradcheck
    from lucid.autograd import no_grad as no_grad
    from lucid.device import DeviceError as DeviceError
    from lucid.errors import FormatError as FormatError
    from lucid.random import manual_seed as manual_seed
    from lucid.tensor import Tensor as Tensor
    from lucid.threads import get_num_threads as get_num_threads
    from lucid.threads import set_num_threads as set_num_threads
    from lucid.threads import show_config as show_config

__all__ = [
    "DeviceError",
    "FormatError",
    "Tensor",
    "enable_grad",
    "get_num_threads",
    "gradcheck",
    "manual_seed",
    "models",
    "nn",
    "no_grad",
    "optim",
    "set_num_threads",
    "show_config",
]

# Imported when they are first asked for: `lucid --help` is to need neither NumPy nor the kernels.
_HOMES = {
    "DeviceError": "device",
    "FormatError": "errors",
    "Tensor": "tensor",
    "enable_grad": "autograd",
    "get_num_threads": "threads",
    "gradcheck": "autograd",
    "manual_seed": "random",
    "no_grad": "autograd",
    "set_num_threads": "threads",
    "show_config": "threads",
}
_ROOMS = ("autograd", "data", "device", "errors", "models", "nn", "ops", "optim", "random", "tensor", "text", "threads", "training")


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(import_module(f"lucid.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    if name in _ROOMS:
        return import_module(f"lucid.{name}")
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("lucid-bert")
        except PackageNotFoundError:  # sources on the path, never installed
            return "0+not.installed"
    raise AttributeError(f"module 'lucid' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ROOMS, "__version__"})
