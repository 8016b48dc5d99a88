"""The tape: applying operations to tensors, and going back.

Data moves forward through `apply`; only `backward` goes back. A tensor that came out of a recorded operation
holds the node that made it; a node holds what its operation's backward reads, and where its gradients go:
the nodes before it, and leaf tensors. It holds no other array, so a result that no backward reads is
free as soon as the model has done with it.
"""

from __future__ import annotations

import inspect
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ContextDecorator, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import numpy as np

from lucid.device import is_on_gpu, on_host
from lucid.ops.op import Array, Form, Op, RowsGradient, want_gradient
from lucid.tensor import Tensor

_Function = TypeVar("_Function", bound=Callable[..., Any])
_numbers = itertools.count()


class _Recording(threading.local):
    """Whether a thread records, what it did before each `no_grad` that it is inside of, and what backward is to run within."""

    def __init__(self) -> None:
        self.is_on = True
        self.before: list[bool] = []
        self.within: Callable[[], AbstractContextManager[None]] = nullcontext


_recording = _Recording()


def is_grad_enabled() -> bool:
    """Return whether this thread records operations."""
    return _recording.is_on


class no_grad(ContextDecorator):
    """Record nothing inside: ``with no_grad(): ...`` or ``@no_grad()``. For the calling thread only.

    Raises
    ------
    TypeError
        It decorates a generator or a coroutine, whose body would run outside.
    """

    _is_on = False

    def __call__(self, function: _Function) -> _Function:
        """Return `function` so that it runs inside."""
        if inspect.isgeneratorfunction(function) or inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(f"{type(self).__name__} cannot decorate a generator or coroutine: use it inside, with `with`")
        return super().__call__(function)

    def __enter__(self) -> Self:
        # Kept with the thread, not with `self`: threads share the `no_grad` of a decorated function.
        _recording.before.append(_recording.is_on)
        _recording.is_on = self._is_on
        return self

    def __exit__(self, *_: object) -> None:
        _recording.is_on = _recording.before.pop()


class enable_grad(no_grad):
    """Record again inside a `no_grad`: ``with enable_grad(): ...`` or ``@enable_grad()``."""

    _is_on = True


@contextmanager
def backward_within(context: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """Let `backward` of what is recorded inside run within a context of its own, which may say its errors better."""
    before, _recording.within = _recording.within, context
    try:
        yield
    finally:
        _recording.within = before


@dataclass(slots=True, eq=False)
class Node:
    """A recorded operation.

    Attributes
    ----------
    number : int. Rises in the order of recording: the reverse is an order to go back in.
    name : str. The operation's.
    backward : the kernel's, or of a recomputed function; None once it has run
    saved : what backward reads; dropped once it has run
    result : shape, type and device of the result, which the gradient that arrives must have
    targets : for each input where its gradient goes: the node that made it, itself if it is a leaf, None if
        it wants none; dropped once backward has run
    parameters : those among the inputs, and their versions at the time
    is_fresh : of the kernel: a leaf may take a gradient for its own and add others into it
    within : makes the context of `backward_within`; backward runs in that of the last node that has one
    """

    number: int
    name: str
    backward: Callable[[Any, Array], Any] | None
    saved: Any
    result: Form
    targets: tuple[Node | Tensor | None, ...]
    parameters: tuple[tuple[Tensor, int], ...]
    is_fresh: bool = False
    within: Callable[[], AbstractContextManager[None]] = nullcontext

    def check(self) -> None:
        """Raise RuntimeError unless backward can run, and would see what forward saw."""
        if self.backward is None:
            raise RuntimeError(f"the tape was used before: run forward again before backward() ({self.name})")
        for parameter, version in self.parameters:
            if parameter.version != version:  # type: ignore[attr-defined]
                raise RuntimeError(
                    f"a parameter of {self.name}, of shape {parameter.shape}, was written between forward and backward: run forward again"
                )

    def run(self, d_out: Array) -> list[tuple[Node | Tensor, Array | RowsGradient]]:
        """Run backward, once; return the gradients with their targets, and forget everything else."""
        assert self.backward is not None
        want_gradient(self.name, d_out, self.result)
        gradients = self.backward(self.saved, d_out)
        # Fewer gradients than inputs: the inputs behind have none.
        pairs = zip(self.targets, gradients, strict=False)
        arrived = [(target, d_x) for target, d_x in pairs if target is not None and d_x is not None]
        self.backward, self.saved, self.targets, self.parameters = None, None, (), ()
        self.within = nullcontext
        return arrived


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
    is_recorded = is_grad_enabled() and op.is_differentiable and any(isinstance(x, Tensor) and x.requires_grad for x in inputs)
    arrays = [x.operand if isinstance(x, Tensor) else x for x in inputs]
    result, saved = op.run(*arrays, keep=is_recorded, **params)
    if isinstance(result, tuple):
        return tuple(map(Tensor, result))
    out = Tensor(result)
    if is_recorded:
        kernel = op.on(arrays[0])
        _record(out, op.name, kernel.backward, saved, inputs, kernel.is_fresh)
    return out


def _record(
    out: Tensor, name: str, backward: Callable[[Any, Array], Any] | None, saved: Any, inputs: Iterable[Any], is_fresh: bool = False
) -> None:
    tensors = tuple(x if isinstance(x, Tensor) else None for x in inputs)
    targets = tuple((x.node or x) if x is not None and x.requires_grad else None for x in tensors)
    # Those without requires_grad as well: their values were saved, too.
    parameters = tuple((x, int(x.version)) for x in tensors if x is not None and hasattr(x, "version"))
    out.node = Node(next(_numbers), name, backward, saved, Form.of(out.array), targets, parameters, is_fresh, _recording.within)
    out.requires_grad = True


def recompute(function: Callable[[Tensor], Tensor], x: Tensor, parameters: Iterable[Tensor] = ()) -> Tensor:
    """Return function(x), keeping nothing of what happens inside: backward runs it again.

    Parameters
    ----------
    function : from a tensor to a tensor. It must do the same both times, as counter-based dropout does;
        parameters it uses get their gradients.
    x : Tensor
    parameters : that the function uses; backward raises if one was written since

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

    _record(out, "recompute", again, x.array, (x, *parameters))
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
        Nothing was recorded, a part of the tape was used before, or a parameter was written since. No `grad`
        was touched.
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
        gradient = np.ones_like(tensor.array)
    elif is_on_gpu(gradient) or is_on_gpu(tensor.array):
        gradient = Tensor(gradient, tensor.dtype, tensor.device).array.copy()
    else:
        gradient = np.array(gradient, np.float32)  # a copy: what flows back may become a leaf's `grad`
    if gradient.shape != tensor.shape:
        raise ValueError(f"backward() wants a gradient of shape {tensor.shape}, not {gradient.shape}")
    nodes = _nodes_before(tensor.node)
    for node in nodes:
        node.check()
    waiting: dict[Node, Array] = {tensor.node: gradient}
    del gradient
    within = next((node.within for node in reversed(nodes) if node.within is not nullcontext), nullcontext)
    with within():
        while nodes:  # popped, so that each node's arrays are free before the next one runs
            _step_back(nodes.pop(), waiting)


def _nodes_before(last: Node) -> list[Node]:
    """Return `last` and every node that it came from, by number."""
    found, unseen = {last}, [last]
    while unseen:
        before = {target for target in unseen.pop().targets if isinstance(target, Node)} - found
        found |= before
        unseen.extend(before)
    return sorted(found, key=lambda node: node.number)


def _step_back(node: Node, waiting: dict[Node, Array]) -> None:
    """Run one node's backward, and hand its gradients on."""
    if node not in waiting:  # the nodes after it gave no gradient
        return
    for target, d_x in node.run(waiting.pop(node)):
        if isinstance(target, Tensor):
            target.accumulate(d_x, is_own=node.is_fresh)
        elif target in waiting:
            waiting[target] = waiting[target] + _dense(d_x)
        else:
            waiting[target] = _dense(d_x)


def _dense(gradient: Array | RowsGradient) -> Array:
    return gradient.dense() if isinstance(gradient, RowsGradient) else gradient


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
    rng = np.random.default_rng([seed, 0x67726164])  # not default_rng(seed), which may have made the inputs
    directions = [rng.standard_normal(x.shape) for x in inputs]
    leaves = [Tensor(x.numpy().copy(), device=x.device, requires_grad=True) for x in inputs]
    function(*leaves).backward()
    claimed = sum(
        float((on_host(leaf.grad).astype(np.float64) * d).sum())
        for leaf, d in zip(leaves, directions, strict=True)
        if leaf.grad is not None
    )

    def along(t: float) -> float:
        with no_grad():
            return float(
                function(
                    *(Tensor((x.numpy() + t * d).astype(np.float32), device=x.device) for x, d in zip(inputs, directions, strict=True))
                )
            )

    measured = (8 * (along(step) - along(-step)) - (along(2 * step) - along(-2 * step))) / (12 * step)
    error = abs(claimed - measured) / max(abs(measured), abs(claimed), 1e-6)
    if not error <= tolerance:
        raise AssertionError(f"gradcheck: backward gives {claimed:.6g} along a random direction, differences give {measured:.6g}")
    return error
