"""BERT masked language modelling without PyTorch.

>>> import lucid.models as models
>>> model = models.BERTForMaskedLM.from_pretrained("path/to/folder")  # doctest: +SKIP
>>> model.fill_mask("Paris is the [MASK] of France.")  # doctest: +SKIP
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from lucid import models as models
    from lucid import nn as nn
    from lucid import optim as optim

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


def __getattr__(name: str) -> Any:
    # Models bring the tokenizers library: imported when they are first asked for.
    if name in ("models", "nn", "ops", "optim", "text"):
        return import_module(f"lucid.{name}")
    if name == "__version__":
        from importlib.metadata import version

        return version("lucid-bert")
    raise AttributeError(f"module 'lucid' has no attribute {name!r}")
