"""The first link: the reference's backward against four-point differences of its forward, in float64."""

import itertools
from typing import Any

import numpy as np
import pytest

from gradients import reference
from gradients.cases import CASES, Call, Case

Array = Any
STEP = 1e-3
"""Of the differences: their error is of the order of STEP^4, and of 1e-16 / STEP."""
LARGEST = 1000
"""Numbers in a case's arrays, for every one of which forward runs four times."""
SMALL = [case for case in CASES if 0 < case.size <= LARGEST]


def derivative(function: Any, array: Array, at: tuple[int, ...]) -> float:
    """d function() / d array[at], by four-point central differences."""
    held, values = array[at], []
    for k in (1, -1, 2, -2):
        array[at] = held + k * STEP
        values.append(function())
    array[at] = held
    return float((8 * (values[0] - values[1]) - (values[2] - values[3])) / (12 * STEP))


def worst_error(case: Case, call: Call, d_out: Array) -> float:
    """The largest difference between `back` and the differences, relative to the largest gradient of the array."""

    def loss() -> float:
        return float((case.reference(call)[0] * d_out).sum())

    claimed = case.reference(call)[1](d_out)
    assert len(claimed) <= len(call.arrays)
    errors = [0.0]
    for (name, array), d in itertools.zip_longest(call.arrays.items(), claimed):
        assert (array is None) == (d is None), name
        if array is None:
            continue
        assert d.shape == array.shape, name
        measured = np.zeros(array.shape)
        for at in np.ndindex(array.shape):
            measured[at] = derivative(loss, array, at)
        errors.append(float(np.abs(d - measured).max(initial=0) / max(np.abs(measured).max(initial=0), 1e-3)))
    return max(errors)


def test_every_op_has_a_small_case() -> None:
    assert {case.op.name for case in SMALL} == {case.op.name for case in CASES}


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_backward_is_the_derivative_of_forward(case: Case) -> None:
    rng = np.random.default_rng(3)
    call = case.build(rng)
    call = Call({name: None if array is None else np.array(array, np.float64) for name, array in call.arrays.items()}, call.params)
    d_out = rng.standard_normal(np.shape(case.reference(call)[0]))
    assert worst_error(case, call, d_out) < 1e-8


@pytest.mark.parametrize("name", reference.ACTIVATIONS)
def test_slopes(name: str) -> None:
    x = np.concatenate([np.linspace(-6, -0.01, 50), np.linspace(0.01, 6, 50)])  # ReLU has no slope at 0
    h = 1e-3
    value = lambda x: reference.ACTIVATIONS[name](x)[0]  # noqa: E731
    measured = (8 * (value(x + h) - value(x - h)) - (value(x + 2 * h) - value(x - 2 * h))) / (12 * h)
    assert np.abs(reference.ACTIVATIONS[name](x)[1] - measured).max() < 1e-10


def test_the_check_can_fail() -> None:
    """A sign, a factor or a lost term in any op's backward is far above the bound."""
    rng = np.random.default_rng(3)
    case = next(case for case in SMALL if case.op.name == "layer_norm")
    call = case.build(rng)
    call = Call({name: np.array(array, np.float64) for name, array in call.arrays.items()}, call.params)
    d_out = rng.standard_normal(case.reference(call)[0].shape)
    for wrong in (-1.0, 1.001):

        class Wrong(Case):
            def reference(self, call: Call) -> tuple[Array, reference.Back]:
                out, back = super().reference(call)
                return out, lambda d_y: tuple(wrong * d for d in back(d_y))  # noqa: B023

        assert worst_error(Wrong(case.op, case.label, case.build, case.bound), call, d_out) > 1e-4
