"""Every public function of gradients, layers and the optimizer refuses wrong shapes, types and values, and says which."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import lucid
from lucid import Tensor, enable_grad, gradcheck, nn, no_grad, optim
from lucid.autograd import apply, backward, recompute
from lucid.nn import Dropout, Embedding, LayerNorm, Linear, Module, ModuleList, Parameter, init
from lucid.ops.activation import activation
from lucid.ops.linear import linear
from lucid.optim import AdamW, Schedule, clip_grad_norm, default_groups, grad_norm
from lucid.random import Purpose

Array = Any
Bad = tuple[Callable[[], Any], type[Exception], str]


def leaf(*shape: int, dtype: Any = np.float32) -> Tensor:
    return Tensor(np.ones(shape, dtype), requires_grad=dtype == np.float32)


def weight(*shape: int) -> Parameter:
    return Parameter(shape, init.ones)


def with_gradient(array: Any) -> Parameter:
    parameter = weight(3)
    parameter.grad = array
    return parameter


def tokens(**changes: Any) -> Any:
    places = np.zeros(3, np.int32)
    return SimpleNamespace(**{"seed": 1, "places": places, "token_examples": places, **changes})


def dropped(p: float = 0.5, **changes: Any) -> Callable[[], Any]:
    return lambda: Dropout(p, Purpose.EMBEDDING_DROPOUT)(leaf(3, 4), tokens(**changes))


def of_64_bits(n: int) -> Array:
    return np.zeros(n)


BAD: dict[str, list[Bad]] = {
    "Tensor": [
        (lambda: Tensor(of_64_bits(3), requires_grad=True), TypeError, "float32"),
        (lambda: Tensor([1, 2], requires_grad=True), TypeError, "float32"),
        (lambda: Tensor("three"), TypeError, "numbers"),
        (lambda: leaf(3).backward(), RuntimeError, "not recorded"),
        (lambda: (leaf(3) * 2.0).backward(), ValueError, "shape"),
        (lambda: (leaf(3) * 2.0).backward(np.ones(4)), ValueError, r"\(3,\)"),
        (lambda: leaf(3) * "2", TypeError, "can't multiply"),
        (lambda: leaf(3) * leaf(3), TypeError, "unsupported operand"),
        (lambda: leaf(3) / leaf(1), TypeError, "unsupported operand"),
        (lambda: leaf(3).accumulate(np.zeros(4, np.float32)), ValueError, r"\(4,\)"),
    ],
    "backward": [
        (lambda: backward(Tensor(1.0)), RuntimeError, "not recorded"),
        (lambda: backward(leaf(2, 3) * 2.0, np.ones((3, 2))), ValueError, r"\(2, 3\)"),
    ],
    "apply": [
        (lambda: apply(linear, leaf(2, 3), weight(4, 5)), ValueError, "linear: x"),
        (lambda: apply(linear, leaf(2, 3, dtype=np.float16), weight(4, 3)), TypeError, "linear: x must be float32"),
        (lambda: apply(linear, [[1.0]], weight(1, 1)), TypeError, "linear: x must be an array"),
        (lambda: apply(activation, leaf(2), name="gellu"), ValueError, "gellu"),
    ],
    "recompute": [(lambda: recompute(lambda x: apply(linear, x, weight(4, 5)), leaf(2, 3)), ValueError, "linear: x")],
    "gradcheck": [
        (lambda: gradcheck(lambda x: x * 2.0, leaf(3)), ValueError, "shape"),
        (lambda: gradcheck(lambda x: x, leaf(1)), RuntimeError, "not recorded"),
        (lambda: gradcheck(lambda x: apply(linear, x, weight(4, 5)), leaf(2, 3)), ValueError, "linear: x"),
    ],
    "no_grad": [(lambda: no_grad()(_generator), TypeError, "no_grad cannot decorate")],
    "enable_grad": [(lambda: enable_grad()(_generator), TypeError, "enable_grad cannot decorate")],
    "Linear": [
        (lambda: Linear(5, 4, init.ones)(leaf(2, 3)), ValueError, "linear: x"),
        (lambda: Linear(3, 4, init.ones)(leaf(3)), ValueError, "linear: x"),
        (lambda: Linear(3, 4, init.ones)(leaf(2, 3, dtype=np.float64)), TypeError, "linear: x must be float32"),
        (lambda: Linear(3, 4, init.ones)(leaf(2, 3), residual=leaf(2, 5)), ValueError, "linear: residual"),
        (lambda: Linear(3, 4, init.ones)(leaf(2, 3), columns=(2, 9)), ValueError, "columns"),
    ],
    "LayerNorm": [
        (lambda: LayerNorm(5, 1e-5)(leaf(2, 3)), ValueError, "layer_norm: gain"),
        (lambda: LayerNorm(3, 1e-5)(leaf(2, 3, dtype=np.float64)), TypeError, "layer_norm: x must be float32"),
        (lambda: LayerNorm(3, 1e-5)(leaf(2, 3), leaf(3, 3)), ValueError, "layer_norm: residual"),
        (lambda: LayerNorm(3, 0.0)(leaf(2, 3)), ValueError, "eps"),
    ],
    "Dropout": [
        (dropped(1.5), ValueError, r"\[0, 1\)"),
        (dropped(places=np.zeros(3, np.int64)), TypeError, "int32"),
        (dropped(places=np.zeros(4, np.int32)), ValueError, r"\(3\)"),
        (dropped(token_examples=np.zeros(2, np.int32)), ValueError, "examples"),
        (dropped(seed=-1), ValueError, "seed"),
        (dropped(seed=1.5), TypeError, "seed"),
    ],
    "Embedding": [
        (lambda: Embedding(3, 4, init.ones).weight.assign(np.ones((4, 4))), ValueError, r"\(4, 4\)"),
        (lambda: Embedding(3, 4, init.ones).weight.assign(np.ones((3, 4), int)), TypeError, "floating"),
    ],
    "Parameter": [
        (lambda: weight(3).assign(np.ones(4)), ValueError, r"\(4,\)"),
        (lambda: weight(3).assign([1, 2, 3]), TypeError, "floating"),
    ],
    "Module": [
        (lambda: Module()(leaf(3)), TypeError, "no forward"),
        (lambda: Linear(3, 4, init.ones).load_state_dict({"weight": np.ones((4, 3))}), KeyError, "bias"),
        (lambda: Linear(3, 4, init.ones).load_state_dict({"weight": np.ones((3, 4)), "bias": np.ones(4)}), ValueError, "weight"),
        (lambda: Linear(3, 4, init.ones).load_state_dict([1]), TypeError, "mapping"),  # type: ignore[arg-type]
    ],
    "ModuleList": [(lambda: ModuleList([Module()])[1], IndexError, "range")],
    "init": [(lambda: init.normal(1.0, -1), ValueError, "seed"), (lambda: init.normal(1.0, 2**64), ValueError, "seed")],
    "AdamW": [
        (lambda: AdamW([5]), TypeError, "parameters"),  # type: ignore[list-item]
        (lambda: AdamW([]), ValueError, "no parameters"),
        (lambda: AdamW([weight(3)], lr=-1), ValueError, "lr"),
        (lambda: AdamW([weight(3)], betas=(0.9, 1.0)), ValueError, "betas"),
        (lambda: AdamW([with_gradient(np.ones(4, np.float32))]).step(), ValueError, "gradient of"),
        (lambda: AdamW([with_gradient(of_64_bits(3))]).step(), TypeError, "gradient of"),
        (lambda: AdamW([weight(3)]).step(), RuntimeError, "no parameter has a gradient"),
        (lambda: AdamW([weight(3)]).load_state_dict({}), KeyError, "n_steps"),
    ],
    "NonFiniteError": [
        (lambda: AdamW([with_gradient(np.full(3, np.nan, np.float32))]).step(), ArithmeticError, "not finite in step 1"),
        (lambda: AdamW([weight(3)]).check_loss(np.float32(np.inf)), ArithmeticError, "inf in step 1"),
        (lambda: AdamW([weight(3)]).check_loss(Tensor(np.ones(2))), ValueError, "one element"),
    ],
    "Schedule": [
        (lambda: Schedule(AdamW([weight(3)]), 5, 3), ValueError, "n_warmup"),
        (lambda: Schedule(AdamW([weight(3)]), 1, 3, "slow"), ValueError, "decay"),
        (lambda: Schedule(AdamW([weight(3)]), 1, 3).load_state_dict({}), KeyError, "n_warmup"),
    ],
    "clip_grad_norm": [
        (lambda: clip_grad_norm([weight(3)], 0.0), ValueError, "max_norm"),
        (lambda: clip_grad_norm([with_gradient(of_64_bits(3))], 1.0), TypeError, "float32"),
    ],
    "grad_norm": [(lambda: grad_norm([with_gradient([1.0])]), TypeError, "float32")],
    "default_groups": [(lambda: default_groups([weight(3)]), AttributeError, "modules")],  # type: ignore[arg-type]
}


def _generator() -> Any:
    yield 1


def test_every_public_name_is_here() -> None:
    of_lucid = {name for name in lucid.__all__ if getattr(getattr(lucid, name), "__module__", "") in ("lucid.autograd", "lucid.tensor")}
    assert {*of_lucid, *nn.__all__, *optim.__all__, "apply", "backward", "recompute"} == set(BAD)
    assert {"Tensor", "no_grad", "gradcheck"} <= of_lucid


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [bad for found in BAD.values() for bad in found],
    ids=[f"{name}-{i}" for name, found in BAD.items() for i in range(len(found))],
)
def test_a_wrong_argument_is_named(call: Callable[[], Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        call()
