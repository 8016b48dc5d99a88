"""Module: a tree of parameters with a forward method."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Self

import numpy as np

from lucid.device import Device, check_device, on_host, real_type
from lucid.nn.derived import changed
from lucid.nn.parameter import Parameter


class Module:
    """A part of a model: parameters, other modules, and `forward`.

    A parameter or module that is set as an attribute belongs to the module. A new module is in train
    mode.
    """

    training: bool = True

    def __init__(self) -> None:
        self._parameters: dict[str, Parameter] = {}
        self._modules: dict[str, Module] = {}

    def __setattr__(self, name: str, value: Any) -> None:
        for kind, members in ((Parameter, "_parameters"), (Module, "_modules")):
            if isinstance(value, kind):
                if members not in self.__dict__:
                    raise AttributeError(f"call super().__init__() before setting {name!r}")
                self.__dict__[members][name] = value
        super().__setattr__(name, value)
        if not name.startswith("_"):
            changed()

    def __delattr__(self, name: str) -> None:
        super().__delattr__(name)
        self._parameters.pop(name, None)
        self._modules.pop(name, None)
        changed()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run `forward`."""
        return self.forward(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the module's output; every module defines its own."""
        raise TypeError(f"{type(self).__name__} has no forward: it only holds other modules")

    def children(self) -> Iterator[tuple[str, Module]]:
        """Yield (name, module) for each direct member."""
        yield from self._modules.items()

    def modules(self) -> Iterator[Module]:
        """Yield this module and all below it, parents first."""
        yield self
        for _, child in self.children():
            yield from child.modules()

    def _named(self, prefix: str = "") -> Iterator[tuple[str, Parameter]]:
        for name, parameter in self._parameters.items():
            yield prefix + name, parameter
        for name, child in self.children():
            yield from child._named(f"{prefix}{name}.")

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Yield (path, parameter); a parameter that stands at several paths comes once, at the first."""
        seen: set[int] = set()
        for name, parameter in self._named():
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield name, parameter

    def parameters(self) -> Iterator[Parameter]:
        """Yield each parameter once."""
        for _, parameter in self.named_parameters():
            yield parameter

    @property
    def parameter_size(self) -> int:
        """Number of trainable numbers; tied parameters count once."""
        return sum(parameter.size for parameter in self.parameters())

    def state_dict(self) -> dict[str, np.ndarray[Any, Any]]:
        """Return path -> values (read-only arrays), tied parameters once."""
        return {name: parameter.numpy() for name, parameter in self.named_parameters()}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Set the parameters from path -> values. Nothing is set unless everything fits.

        Parameters
        ----------
        state : mapping from path to array_like
            A second path of a tied parameter may be there too, if its values are the same.
        strict : bool
            Whether missing and unexpected paths are an error; shapes always are.

        Raises
        ------
        KeyError
            With `strict`: paths are missing or unexpected.
        ValueError
            A shape differs, or the two paths of a tied parameter differ in value.
        TypeError
            Values that are not floating-point numbers.
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"load_state_dict wants a mapping from path to array, not {type(state).__name__}")
        own = dict(self.named_parameters())
        aliases = dict(self._named())
        missing = sorted(own.keys() - state.keys())
        unexpected = sorted(state.keys() - aliases.keys())
        if strict and (missing or unexpected):
            raise KeyError(f"state_dict does not fit: missing {missing or 'nothing'}, unexpected {unexpected or 'nothing'}")
        first_path = {id(parameter): name for name, parameter in own.items()}
        for name in aliases.keys() & state.keys():
            array, parameter = np.asarray(on_host(state[name])), aliases[name]
            if array.shape != parameter.shape:
                raise ValueError(f"state_dict: {name} has shape {array.shape}, the model wants {parameter.shape}")
            if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
                raise TypeError(f"state_dict: {name} holds {array.dtype}, the model wants floating-point numbers")
            twin = first_path[id(parameter)]
            if twin != name and twin in state and not np.array_equal(array, np.asarray(on_host(state[twin]))):
                raise ValueError(f"state_dict: {name} and {twin} are tied in this model, but their values differ")
        for name, parameter in own.items():
            if name in state:
                parameter.assign(state[name])

    def value(self, parameter: Parameter, *, packed: bool = False) -> Any:
        """Return what an operation is to take for one of the module's parameters.

        In train mode the parameter itself, so that it is on the tape, and its row-major array is kept. In eval
        mode a constant: its packed weight if `packed`, else its array.
        """
        if self.training:
            parameter.row_major()
            return parameter
        return parameter.packed() if packed else parameter.operand

    def zero_grad(self) -> None:
        """Forget the gradients of all parameters."""
        for parameter in self.parameters():
            parameter.grad = None

    def train(self, mode: bool = True) -> Self:
        """Set train mode for this module and all below it: dropout is active, and parameters are on the tape."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Self:
        """Set eval mode for this module and all below it: no dropout, and parameters are constants."""
        return self.train(False)

    def to(self, device: Device, dtype: str | None = None) -> Self:
        """Move the parameters and their gradients to a device.

        Parameters
        ----------
        device : "cpu" or "gpu"
        dtype : "float32", "bfloat16" or "float16", optional
            What the GPU's matrices and activations are stored in. Parameters, gradients, sums and losses stay float32; float16 is
            for inference: small gradients would vanish. Default: as it is, float32 for a model that comes from the CPU.

        Raises
        ------
        DeviceError
            The device cannot be used here; the message says why.
        ValueError
            There is no such type, or none but float32 on the CPU.
        """
        check_device(device)
        if dtype is not None:
            real_type(dtype)
            if device == "cpu" and dtype != "float32":
                raise ValueError(f"the CPU computes in float32, not {dtype}")
        for parameter in self.parameters():
            parameter.move(device, dtype)
        return self

    @property
    def device(self) -> Device:
        """Where the parameters live."""
        return next((parameter.device for parameter in self.parameters()), "cpu")

    def extra_repr(self) -> str:
        """Return what stands between the brackets when the module is printed."""
        return ""

    def __repr__(self) -> str:
        lines = [f"({name}): " + repr(child).replace("\n", "\n  ") for name, child in self.children()]
        inside = self.extra_repr()
        if not lines:
            return f"{type(self).__name__}({inside})"
        return "\n  ".join([f"{type(self).__name__}({inside}", *lines]) + "\n)"


class ModuleList(Module):
    """Modules by number."""

    def __init__(self, modules: list[Module]) -> None:
        super().__init__()
        for i, module in enumerate(modules):
            self._modules[str(i)] = module

    def __getitem__(self, index: int) -> Module:
        return list(self._modules.values())[index]

    def __setitem__(self, index: int, module: Module) -> None:
        self._modules[list(self._modules)[index]] = module
        changed()

    def __delitem__(self, index: int) -> None:
        modules = list(self)
        del modules[index]
        self._modules = {str(i): module for i, module in enumerate(modules)}
        changed()

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[Module]:
        return iter(self._modules.values())

    def __repr__(self) -> str:
        if len({repr(module) for module in self}) == 1:
            return f"ModuleList(\n  (0-{len(self) - 1}): {len(self)} x " + repr(self[0]).replace("\n", "\n  ") + "\n)"
        return super().__repr__()
