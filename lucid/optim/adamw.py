"""AdamW (Loshchilov & Hutter 2019)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from lucid.nn import LayerNorm, Module, Parameter
from lucid.ops.adamw import adamw_step
from lucid.optim.clip import grad_norm

Group = dict[str, Any]


class NonFiniteError(ArithmeticError):
    """A loss or gradient is NaN or infinite. No weight was touched."""


def default_groups(model: Module, weight_decay: float = 0.01) -> list[Group]:
    """Return parameter groups for `AdamW`: no decay on biases and LayerNorm (Devlin et al. 2019, appendix A.2)."""
    plain = {id(p) for module in model.modules() if isinstance(module, LayerNorm) for p in (module.weight, module.bias)}
    decayed: dict[str, Parameter] = {}
    kept: dict[str, Parameter] = {}
    for name, parameter in model.named_parameters():
        (kept if id(parameter) in plain or name.endswith("bias") else decayed)[name] = parameter
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]


class AdamW:
    """Adam with decoupled weight decay.

    Parameters
    ----------
    params : Module, parameters, or groups
        A module gets the groups of `default_groups`. A group is a dict with "params" (parameters, or path ->
        parameter) and its own "lr" or "weight_decay" if they differ.
    lr : float, >= 0
    betas : (float, float), each in [0, 1)
    eps : float, > 0
    weight_decay : float, >= 0
    max_grad_norm : float, > 0, optional
        Scale the gradients in `step` so that their norm is at most this; costs no extra pass.

    Attributes
    ----------
    groups : list of dict
    n_steps : int. Steps taken.

    Notes
    -----
    Moments are float32. A step is one pass over the arrays, the same bits for any number of threads.
    """

    def __init__(
        self,
        params: Module | Iterable[Parameter] | Iterable[Group],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        max_grad_norm: float | None = None,
    ) -> None:
        for name, value in (("lr", lr), ("weight_decay", weight_decay)):
            _want(name, value, value >= 0, "at least 0")
        _want("eps", eps, eps > 0, "positive")
        for beta in betas:
            _want("betas", beta, 0 <= beta < 1, "in [0, 1)")
        if max_grad_norm is not None:
            _want("max_grad_norm", max_grad_norm, max_grad_norm > 0, "positive")
        self.betas, self.eps, self.max_grad_norm = betas, eps, max_grad_norm
        self.groups = [{"lr": lr, "weight_decay": weight_decay, **group} for group in _groups(params, weight_decay)]
        self.n_steps = 0
        named = [item for group in self.groups for item in group["params"].items()]
        if len({id(p) for _, p in named}) != len(named) or len({name for name, _ in named}) != len(named):
            raise ValueError("AdamW: a parameter is in two groups, or two have one name")
        self._parameters: dict[str, Parameter] = dict(named)
        self._moments: dict[str, tuple[Any, Any]] = {}

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for parameter in self._parameters.values():
            parameter.grad = None

    def step(self, loss: Any = None, *, batch: object = None) -> float:
        """Update every parameter that has a gradient.

        Parameters
        ----------
        loss : Tensor or float, optional. Checked too, if given.
        batch : optional. Named in the error if something is not finite.

        Returns
        -------
        norm : float. Of all gradients, before clipping.

        Raises
        ------
        NonFiniteError
            The loss or a gradient is NaN or infinite. Weights, moments and `n_steps` are as before.
        """
        where = f"in step {self.n_steps + 1}" + ("" if batch is None else f", batch {batch}")
        if loss is not None and not math.isfinite(float(loss)):
            raise NonFiniteError(f"the loss is {float(loss)} {where}: no weight was touched")
        norm = grad_norm(self._parameters.values())
        if not math.isfinite(norm):
            bad = [name for name, p in self._parameters.items() if p.grad is not None and not np.isfinite(p.grad).all()]
            raise NonFiniteError(f"the gradient of {', '.join(bad[:3]) or 'the model'} is not finite {where}: no weight was touched")
        scale = 1.0 if self.max_grad_norm is None or norm <= self.max_grad_norm else self.max_grad_norm / norm
        self.n_steps += 1
        for group in self.groups:
            for name, parameter in group["params"].items():
                if parameter.grad is not None:
                    self._update(name, parameter, group, scale)
        return norm

    def _update(self, name: str, parameter: Parameter, group: Group, scale: float) -> None:
        if name not in self._moments:
            self._moments[name] = (np.zeros(parameter.shape, np.float32), np.zeros(parameter.shape, np.float32))
        with parameter.write() as weight:
            adamw_step(
                weight,
                parameter.grad,
                *self._moments[name],
                lr=group["lr"],
                betas=self.betas,
                eps=self.eps,
                weight_decay=group["weight_decay"],
                step=self.n_steps,
                scale=scale,
            )

    def state_dict(self) -> dict[str, Any]:
        """Return {"n_steps": int, "m": path -> array, "v": path -> array}; the arrays are the optimizer's own."""
        return {
            "n_steps": self.n_steps,
            "m": {name: m for name, (m, _) in self._moments.items()},
            "v": {name: v for name, (_, v) in self._moments.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned. Nothing is set unless everything fits.

        Raises
        ------
        KeyError
            A path is unknown.
        ValueError
            A moment has another shape than its parameter.
        """
        if state["m"].keys() != state["v"].keys() or not state["m"].keys() <= self._parameters.keys():
            raise KeyError(f"optimizer state does not fit: unknown {sorted(state['m'].keys() - self._parameters.keys()) or 'moments'}")
        for moments in (state["m"], state["v"]):
            for name, array in moments.items():
                if array.shape != self._parameters[name].shape:
                    raise ValueError(f"optimizer state: {name} has shape {array.shape}, the model wants {self._parameters[name].shape}")
        self.n_steps = int(state["n_steps"])
        self._moments = {name: (np.array(state["m"][name], np.float32), np.array(state["v"][name], np.float32)) for name in state["m"]}


def _want(name: str, value: float, is_good: bool, what: str) -> None:
    if not is_good:
        raise ValueError(f"AdamW: {name} must be {what}, not {value}")


def _groups(params: Any, weight_decay: float) -> list[Group]:
    if isinstance(params, Module):
        return default_groups(params, weight_decay)
    members = list(params)
    if not members:
        raise ValueError("AdamW: no parameters")
    groups = members if isinstance(members[0], dict) else [{"params": members}]
    named: list[Group] = []
    for i, group in enumerate(groups):
        inside = group["params"]
        inside = dict(inside) if isinstance(inside, Mapping) else {f"{i}.{k}": p for k, p in enumerate(inside)}
        for p in inside.values():
            if not isinstance(p, Parameter):
                raise TypeError(f"AdamW wants parameters, not {type(p).__name__}")
        named.append({**group, "params": inside})
    return named
