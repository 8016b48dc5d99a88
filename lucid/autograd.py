"""The tape: applying operations to tensors, and going back.

Data moves forward through `apply`; only `backward` goes back. A tensor that came out of a recorded operation
holds the node that made it; nodes hold what their operation's backward reads, and the tensors before them.
"""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable
from contextlib import ContextDecorator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from lucid.ops.op import Array, Op, RowsGradient
from lucid.tensor import Tensor

_numbers = itertools.count()
_local = threading.local()


def is_grad_enabled() -> bool:
    """Return whether this thread records operations."""
    return getattr(_local, "enabled", True)


class no_grad(ContextDecorator):
    """Record nothing inside: ``with no_grad(): ...`` or ``@no_grad()``. For the calling thread only."""

    _enabled = False

    def __enter__(self) -> Self:
        self._before = [*getattr(self, "_before", []), is_grad_enabled()]
        _local.enabled = self._enabled
        return self

    def __exit__(self, *_: object) -> None:
        _local.enabled = self._before.pop()


class enable_grad(no_grad):
    """Record again inside a `no_grad`."""

    _enabled = True


@dataclass(slots=True, eq=False)
class Node:
    """A recorded operation.

    Attributes
    ----------
    number : int. Rises in the order of recording: the reverse is an order to go back in.
    name : str
    backward : the kernel's, or of a recomputed function
    saved : what backward reads; dropped once it has run
    inputs : the tensors before it, None where nothing goes back
    versions : of the inputs that are parameters, at the time
    """

    number: int
    name: str
    backward: Callable[[Any, Array], Any] | None
    saved: Any
    inputs: tuple[Tensor | None, ...]
    versions: tuple[int | None, ...]


def apply(op: Op, *inputs: Any, **params: Any) -> Any:
    """Run `op` on tensors, record it if a gradient will be wanted, and return tensors.

    Parameters
    ----------
    op : Op
    *inputs : Tensor, Parameter, PackedWeight, array or None. Only tensors with `requires_grad` get gradients.
    **params
        Passed to the op as they are.

    Returns
    -------
    Tensor or tuple of Tensor
    """
    wants = tuple(isinstance(x, Tensor) and x.requires_grad for x in inputs)
    is_recorded = is_grad_enabled() and any(wants) and op.is_differentiable
    arrays = tuple(x.array if isinstance(x, Tensor) else x for x in inputs)
    result, saved = op.run(*arrays, keep=is_recorded, **params)
    if isinstance(result, tuple):
        return tuple(Tensor(np.asarray(array)) for array in result)
    out = Tensor(result)
    if is_recorded:
        before = tuple(x if want else None for x, want in zip(inputs, wants, strict=True))
        _record(out, op.name, op.on(arrays[0]).backward, saved, before)
    return out


def _record(out: Tensor, name: str, backward: Callable[[Any, Array], Any] | None, saved: Any, inputs: tuple[Tensor | None, ...]) -> None:
    versions = tuple(getattr(x, "version", None) for x in inputs)
    out.node = Node(next(_numbers), name, backward, saved, inputs, versions)
    out.requires_grad = True


def recompute(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return function(x), keeping nothing of what happens inside: backward runs it again.

    Parameters
    ----------
    function : from a tensor to a tensor. It must do the same both times, as counter-based dropout does;
        parameters it uses get their gradients.
    x : Tensor

    Notes
    -----
    Source: Chen et al. 2016, "Training deep nets with sublinear memory cost".
    """
    if not (is_grad_enabled() and x.requires_grad):
        return function(x)
    with no_grad():
        out = Tensor(function(x).array)

    def again(saved: Array, d_out: Array) -> tuple[Array]:
        inner = Tensor(saved, requires_grad=True)
        with enable_grad():
            backward(function(inner), d_out)
        return (inner.grad,)

    _record(out, "recompute", again, x.array, (x,))
    return out


def backward(tensor: Tensor, gradient: Any = None) -> None:
    """Add to `grad` of every leaf that `tensor` came from the derivative of ``sum(tensor * gradient)``.

    Parameters
    ----------
    tensor : Tensor, recorded
    gradient : array_like of the tensor's shape, optional for a tensor of one element, where it is 1

    Raises
    ------
    RuntimeError
        Nothing was recorded, the tape was used before, or a parameter was written since.
    ValueError
        `gradient` is missing or has the wrong shape.
    """
    if tensor.node is None:
        raise RuntimeError(
            "backward() on a tensor that was not recorded: the model must be in train mode (model.train()), or an input have "
            "requires_grad=True, outside of no_grad()"
        )
    if gradient is None:
        if tensor.size != 1:
            raise ValueError(f"backward() of a tensor of shape {tensor.shape} wants a gradient of that shape; or take its loss first")
        gradient = np.ones(tensor.shape, np.float32)
    gradient = np.asarray(gradient, np.float32)
    if gradient.shape != tensor.shape:
        raise ValueError(f"backward() wants a gradient of shape {tensor.shape}, not {gradient.shape}")
    waiting: dict[int, tuple[Node, Array]] = {tensor.node.number: (tensor.node, gradient)}
    order = [-tensor.node.number]
    while order:
        node, d_out = waiting.pop(-heapq.heappop(order))
        for x, d_x in zip(node.inputs, _gradients(node, d_out), strict=True):
            if x is None or d_x is None:
                continue
            if x.node is None:
                x.accumulate(d_x)
            elif x.node.number in waiting:
                waiting[x.node.number] = (x.node, waiting[x.node.number][1] + _dense(d_x))
            else:
                waiting[x.node.number] = (x.node, _dense(d_x))
                heapq.heappush(order, -x.node.number)


def _dense(gradient: Array | RowsGradient) -> Array:
    return gradient.dense() if isinstance(gradient, RowsGradient) else gradient


def _gradients(node: Node, d_out: Array) -> tuple[Any, ...]:
    if node.backward is None:
        raise RuntimeError(f"the tape was used before: run forward again before backward() ({node.name})")
    for x, version in zip(node.inputs, node.versions, strict=True):
        if getattr(x, "version", None) != version:
            raise RuntimeError(f"a parameter of {node.name}, of shape {x.shape}, was written between forward and backward")  # type: ignore[union-attr]
    gradients = node.backward(node.saved, d_out)
    node.backward, node.saved = None, None
    return (*gradients, *(None,) * (len(node.inputs) - len(gradients)))


def gradcheck(function: Callable[..., Tensor], *inputs: Tensor, step: float = 1e-2, tolerance: float = 1e-2, seed: int = 0) -> float:
    """Compare backward with four-point differences along a random direction.

    Parameters
    ----------
    function : from tensors to a tensor of one element
    *inputs : Tensor with requires_grad, float32
    step : float. Of the differences; float32 allows no small one.
    tolerance : float. Largest relative error of the directional derivative.
    seed : int. Of the direction.

    Returns
    -------
    error : float, relative

    Raises
    ------
    AssertionError
        The error exceeds `tolerance`.
    """
    rng = np.random.default_rng(seed)
    directions = [rng.standard_normal(x.shape) for x in inputs]
    leaves = [Tensor(x.numpy().copy(), requires_grad=True) for x in inputs]
    function(*leaves).backward()
    claimed = sum(
        float((leaf.grad.astype(np.float64) * d).sum()) for leaf, d in zip(leaves, directions, strict=True) if leaf.grad is not None
    )

    def along(t: float) -> float:
        with no_grad():
            return float(function(*(Tensor((x.numpy() + t * d).astype(np.float32)) for x, d in zip(inputs, directions, strict=True))))

    measured = (8 * (along(step) - along(-step)) - (along(2 * step) - along(-2 * step))) / (12 * step)
    error = abs(claimed - measured) / max(abs(measured), abs(claimed), 1e-6)
    if not error <= tolerance:
        raise AssertionError(f"gradcheck: backward gives {claimed:.6g} along a random direction, differences give {measured:.6g}")
    return error
