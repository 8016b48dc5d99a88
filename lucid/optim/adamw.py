"""AdamW (Loshchilov & Hutter 2019)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from lucid.device import is_on_gpu, moved, on_host, read_later
from lucid.nn import LayerNorm, Module, Parameter
from lucid.ops.adamw import Update, adamw_step, adamw_steps
from lucid.ops.op import want
from lucid.optim.clip import grad_norm
from lucid.tensor import Tensor

Group = dict[str, Any]
_GROUP_KEYS = {"params", "lr", "weight_decay"}


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


@dataclass(slots=True)
class _Moments:
    """What Adam remembers of one parameter's gradients.

    Attributes
    ----------
    m, v : array, float32, like the parameter. Running means of the gradient and of its square.
    n_updates : int. How many gradients they hold, for the bias correction: a parameter that is frozen for the
        first steps starts its own count.
    """

    m: Any
    v: Any
    n_updates: int


@dataclass(slots=True)
class _Unsettled:
    """A step on the GPU that nobody has waited for: how to read its loss and norm, whose moments it counted in, and how it is called."""

    loss: Callable[[], Any] | None
    norm: Callable[[], Any] | None
    moments: list[_Moments]
    where: str


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
    Moments are float32. A step is one pass over the arrays, the same bits for any number of threads. A
    parameter without a gradient is left alone: no decay, no moments.

    On the GPU nobody waits for a step: one whose gradients are not finite changes nothing there, and `settle`, which the next
    `step` begins with, raises for it.

    Raises
    ------
    TypeError
        Something in `params` is not a parameter.
    ValueError
        A number is out of range, a group has an unknown key, a parameter comes twice, or there is none.
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
        _want("eps", eps, 0 < eps < math.inf, "positive")
        _want("betas", betas, len(betas) == 2 and all(0 <= beta < 1 for beta in betas), "two numbers in [0, 1)")
        if max_grad_norm is not None:
            _want("max_grad_norm", max_grad_norm, max_grad_norm > 0, "positive")
        self.betas, self.eps, self.max_grad_norm = betas, eps, max_grad_norm
        self.groups = [{"lr": lr, "weight_decay": weight_decay, **group} for group in _groups(params, weight_decay)]
        for group in self.groups:
            _want_rates(group)
        self.n_steps = 0
        named = [item for group in self.groups for item in group["params"].items()]
        if len({id(p) for _, p in named}) != len(named) or len({name for name, _ in named}) != len(named):
            raise ValueError("AdamW: a parameter is in two groups, or two have one name")
        self._parameters: dict[str, Parameter] = dict(named)
        self._moments: dict[str, _Moments] = {}
        self._unsettled: _Unsettled | None = None

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for parameter in self._parameters.values():
            parameter.grad = None

    def check_loss(self, loss: Any, *, batch: object = None) -> float:
        """Return the loss as a number; `step` does it too, but micro-batches have losses of their own.

        Parameters
        ----------
        loss : Tensor or float
        batch : optional. Named in the error.

        Raises
        ------
        NonFiniteError
            The loss is NaN or infinite.
        """
        value = float(loss)
        if not math.isfinite(value):
            raise NonFiniteError(f"the loss is {value} {self._where(batch)}: no weight was touched")
        return value

    def _where(self, batch: object) -> str:
        return f"in step {self.n_steps + 1}" + ("" if batch is None else f", batch {batch}")

    def step(self, loss: Any = None, *, batch: object = None, divisor: float = 1) -> float | Tensor:
        """Update every parameter that has a gradient.

        Parameters
        ----------
        loss : Tensor or float, optional. Checked too, if given.
        batch : optional. Named in the error if something is not finite.
        divisor : float, >= 0. The gradients count divided by it, for clipping, too. After micro-batches with losses of
            ``reduction="sum"`` it is the number of their labels, and the step that of the mean over all of them. 0 counts
            as 1: over no label at all, gradients are 0 already.

        Returns
        -------
        norm : float. Of all gradients, divided, before clipping. On the GPU a tensor, which waits when it is read.

        Raises
        ------
        NonFiniteError
            The loss or a gradient is NaN or infinite.
        RuntimeError
            No parameter has a gradient.
        TypeError, ValueError
            A gradient is not float32, or has not its parameter's shape; `divisor` or a group's rate is negative or not finite.

            Whatever is raised, weights, moments and `n_steps` are as before.
        """
        self.settle()
        _want("divisor", divisor, divisor == 0 or 1e-300 < divisor < math.inf, "0, or a finite positive number")
        for group in self.groups:  # which their owner may have changed
            _want_rates(group)
        if loss is not None and not is_on_gpu(getattr(loss, "array", None)):
            self.check_loss(loss, batch=batch)
        gradients = {name: p.grad for name, p in self._parameters.items() if p.grad is not None}
        if not gradients:
            raise RuntimeError("AdamW: no parameter has a gradient: call backward() on the loss before step()")
        for name, gradient in gradients.items():
            want("AdamW", f"the gradient of {name}", gradient, np.float32, self._parameters[name].shape)
        share = 1.0 / (float(divisor) or 1.0)
        if any(map(is_on_gpu, gradients.values())):
            return self._step_on_gpu(loss, batch, share)
        norm = grad_norm(self._parameters.values()) * share
        if not math.isfinite(norm):
            bad = [name for name, gradient in gradients.items() if not np.isfinite(gradient).all()]
            others = f" and {len(bad) - 3} others" if len(bad) > 3 else ""
            raise NonFiniteError(f"the gradient of {', '.join(bad[:3])}{others} is not finite {self._where(batch)}: no weight was touched")
        scale = share if self.max_grad_norm is None or norm <= self.max_grad_norm else share * (self.max_grad_norm / norm)
        self.n_steps += 1
        for group in self.groups:
            for name, parameter in group["params"].items():
                if parameter.grad is not None:
                    self._update(name, parameter, group, scale)
        return norm

    def _moments_of(self, name: str, parameter: Parameter) -> _Moments:
        """Return a parameter's moments, where it is itself."""
        if name not in self._moments:
            self._moments[name] = _Moments(np.zeros(parameter.shape, np.float32), np.zeros(parameter.shape, np.float32), 0)
        moments = self._moments[name]
        moments.m, moments.v = moved(moments.m, parameter.device), moved(moments.v, parameter.device)
        return moments

    def _step_on_gpu(self, loss: Any, batch: object, share: float) -> Tensor:
        self._unsettled = _Unsettled(None, None, [], self._where(batch))
        updates = []
        with ExitStack() as writing:
            for group in self.groups:
                for name, parameter in group["params"].items():
                    if parameter.grad is None:
                        continue
                    weight, copy = writing.enter_context(parameter.write_with_copy())
                    moments = self._moments_of(name, parameter)
                    rates = group["lr"], group["weight_decay"], moments.n_updates + 1
                    updates.append(Update(weight, parameter.grad, moments.m, moments.v, copy, *rates))
                    self._unsettled.moments.append(moments)
            norm = adamw_steps(updates, betas=self.betas, eps=self.eps, scale=share, max_norm=self.max_grad_norm)
        self.n_steps += 1
        for moments in self._unsettled.moments:
            moments.n_updates += 1
        # Read by the next step, which need not wait for what is queued until then.
        self._unsettled.norm = read_later(norm)
        if isinstance(loss, Tensor):
            self._unsettled.loss = read_later(loss.array)
        return Tensor(norm)

    def settle(self) -> float | None:
        """Wait for the last step, if it was made on the GPU and nobody has yet.

        Returns
        -------
        norm : float, as `step` says; None where there was nothing to wait for

        Raises
        ------
        NonFiniteError
            Its loss or a gradient was NaN or infinite. Weights, moments and `n_steps` are as before that step.
        """
        last, self._unsettled = self._unsettled, None
        if last is None or last.norm is None:
            return None
        norm, loss = float(last.norm()), 0.0 if last.loss is None else float(last.loss())
        if math.isfinite(norm):
            if not math.isfinite(loss):
                raise NonFiniteError(f"the loss was {loss} {last.where}; its gradients were finite, and the step was made")
            return norm
        self.n_steps -= 1
        for moments in last.moments:
            moments.n_updates -= 1
        what = f"the loss was {loss}" if not math.isfinite(loss) else f"a gradient was not finite, their norm {norm},"
        raise NonFiniteError(f"{what} {last.where}: no weight was touched")

    def _update(self, name: str, parameter: Parameter, group: Group, scale: float) -> None:
        moments = self._moments_of(name, parameter)
        moments.n_updates += 1
        with parameter.write() as weight:
            adamw_step(
                weight,
                parameter.grad,
                moments.m,
                moments.v,
                lr=group["lr"],
                betas=self.betas,
                eps=self.eps,
                weight_decay=group["weight_decay"],
                step=moments.n_updates,
                scale=scale,
            )

    def state_dict(self) -> dict[str, Any]:
        """Return {"n_steps": int, "n_updates": path -> int, "m": path -> array, "v": path -> array}.

        The arrays are the optimizer's own, which the next step writes, or copies of the GPU's. Rates are not there: they belong to who
        made the optimizer, and to `Schedule`, which needs `n_steps` alone.
        """
        self.settle()
        return {
            "n_steps": self.n_steps,
            "n_updates": {name: moments.n_updates for name, moments in self._moments.items()},
            "m": {name: on_host(moments.m) for name, moments in self._moments.items()},
            "v": {name: on_host(moments.v) for name, moments in self._moments.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned. Nothing is set unless everything fits.

        Raises
        ------
        KeyError
            A path is unknown, or a part is missing.
        TypeError, ValueError
            A moment is not float32, or has not its parameter's shape; a count is negative.
        """
        n_steps, counts, m, v = state["n_steps"], state["n_updates"], state["m"], state["v"]
        if unknown := sorted(m.keys() - self._parameters.keys()):
            raise KeyError(f"optimizer state: the model has no {', '.join(unknown)}")
        if not m.keys() == v.keys() == counts.keys():
            raise KeyError("optimizer state: n_updates, m and v tell of different parameters")
        for name in m:
            for kind, array in (("m", m[name]), ("v", v[name])):
                want("optimizer state", f"{kind} of {name}", array, np.float32, self._parameters[name].shape)
        for name, count in (("n_steps", n_steps), *counts.items()):
            _want(f"the count of {name}", count, count >= 0, "at least 0")
        self._unsettled = None
        self._moments = {name: _Moments(np.array(m[name], order="C"), np.array(v[name], order="C"), int(counts[name])) for name in m}
        self.n_steps = int(n_steps)


def _want(name: str, value: Any, is_good: bool, what: str) -> None:
    if not is_good:
        raise ValueError(f"AdamW: {name} must be {what}, not {value}")


def _want_rates(group: Group) -> None:
    for name in ("lr", "weight_decay"):
        _want(name, group[name], 0 <= group[name] < math.inf, "finite and at least 0")


def _groups(params: Any, weight_decay: float) -> list[Group]:
    if isinstance(params, Module):
        return default_groups(params, weight_decay)
    members = list(params)
    if not members:
        raise ValueError("AdamW: no parameters")
    groups = members if isinstance(members[0], dict) else [{"params": members}]
    named: list[Group] = []
    for i, group in enumerate(groups):
        if not isinstance(group, Mapping):
            raise TypeError(f"AdamW: parameters and groups are mixed: {type(group).__name__} beside a group")
        if "params" not in group or group.keys() - _GROUP_KEYS:
            raise ValueError(f"AdamW: a group has params, and may have lr and weight_decay; not {', '.join(map(str, group))}")
        inside = group["params"]
        inside = dict(inside) if isinstance(inside, Mapping) else {f"{i}.{k}": p for k, p in enumerate(inside)}
        for p in inside.values():
            if not isinstance(p, Parameter):
                raise TypeError(f"AdamW wants parameters, not {type(p).__name__}")
        named.append({**group, "params": inside})
    return named
