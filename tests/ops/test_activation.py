"""Activations over the whole of float32: the errors that lucid/_ext/elementary.pyx claims, the tails, what is not finite."""

from functools import cache
from itertools import pairwise
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import reference
from cases import normal
from reference import RELATIVE_ERRORS, activation_bound

from lucid.ops.activation import ACTIVATIONS, ELEMENTARY, activation

Array = Any
NUMBERS = {**ACTIVATIONS, **ELEMENTARY}
NAMES = ("gelu", "gelu_new", "relu", "silu", "tanh", "exp", "erf")
EXP_RANGE = np.float32(-87.3), np.float32(88.37)
LARGEST = np.finfo(np.float32).max


def _floats(begin: float, end: float, step: int) -> Array:
    """Every `step`-th float from `begin` (> 0) up to `end`, then all of them negated."""
    first, last = (int(np.float32(x).view(np.uint32)) for x in (begin, end))
    x = np.arange(first, last, step, dtype=np.uint32).view(np.float32)
    return np.concatenate([x, -x])


@cache
def _sweep() -> Array:
    """All finite exponents and signs, subnormals too; densely where a function is neither linear nor constant; every edge."""
    everywhere = np.arange(0, 1 << 32, 4099, dtype=np.uint32).view(np.float32)
    edges = np.array(
        [0.0, 1e-45, 1.1754942e-38, 1.1754944e-38, 0.55, 0.927734375, 4.0, 5.6568542, 87.3, 88.37, 88.73, 104, LARGEST], np.float32
    )
    with np.errstate(over="ignore", under="ignore"):
        edges = np.concatenate([np.nextafter(edges, np.float32(-np.inf)), edges, np.nextafter(edges, np.float32(np.inf))])
    x = np.concatenate([everywhere, _floats(2.0**-14, 104, 307), edges, -edges])
    return x[np.isfinite(x)]


def _apply(kernels: ModuleType, x: Array, name: str) -> Array:
    y = np.empty_like(x)
    kernels.activation_forward(x, y, NUMBERS[name], 1)
    return y


@cache
def _expected(name: str) -> tuple[Array, Array]:
    """The reference over the sweep and how far from it a kernel may be."""
    x = _sweep().astype(np.float64)
    with np.errstate(over="ignore"):
        if name != "exp":
            return reference.activation(x, name=name), activation_bound(x, name=name)
        # exp is 0 below its range and infinite above.
        is_inside = (x >= EXP_RANGE[0]) & (x <= EXP_RANGE[1])
        outside = np.where(x < EXP_RANGE[0], 0, np.inf)
        return np.where(is_inside, np.exp(x), outside), np.where(is_inside, activation_bound(np.clip(x, *EXP_RANGE), name=name), 0)


@pytest.mark.parametrize("name", NAMES)
def test_the_error_over_all_floats_is_what_is_claimed(name: str, kernels: ModuleType) -> None:
    x, (want, bound) = _sweep(), _expected(name)
    got = _apply(kernels, x, name).astype(np.float64)
    error = np.zeros(len(x))
    np.subtract(got, want, out=error, where=got != want)  # which are equal where both are infinite
    error = np.where(np.isnan(error), np.inf, np.abs(error))
    worst = int(np.argmax(error - bound))
    assert error[worst] <= bound[worst], f"{name}({x[worst]!r}) is off by {error[worst]:.3g}, claimed {bound[worst]:.3g}"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "end"), [("exp", EXP_RANGE[1]), ("erf", 4.0), ("tanh", 10.0)])
def test_the_relative_error_of_every_single_float_is_what_is_claimed(name: str, end: float, kernels: ModuleType) -> None:
    """From 2^-14, where the functions are still nearly linear, up; of the odd ones the positive half."""
    edges = sorted({*(2.0**exponent for exponent in range(-14, 7) if 2.0**exponent < end), float(end)})
    for first, last in pairwise(edges):
        x = _floats(first, last, 1)
        x = x[x >= EXP_RANGE[0]] if name == "exp" else x[: len(x) // 2]
        want = reference.activation(x, name=name)
        error = np.abs(_apply(kernels, x, name) / want - 1).max()
        assert error <= RELATIVE_ERRORS[name], f"{name} between {first} and {last}: {error:.4g}"


@pytest.mark.parametrize("name", ["erf", "tanh"])
def test_erf_and_tanh_are_odd_and_never_above_one(name: str, kernels: ModuleType) -> None:
    x = _sweep()
    y = _apply(kernels, x, name)
    assert np.array_equal(_apply(kernels, -x, name), -y)
    assert np.abs(y).max() == 1


@pytest.mark.parametrize("name", NAMES)
def test_nan_passes_through_whatever_its_payload(name: str, kernels: ModuleType) -> None:
    payloads = np.array([1, 2, 0x100, 0x1FF, 0x200, 0x3FFFFF, 0x400000, 0x400001, 0x4001FF, 0x7FFFFF], np.uint32)
    x = np.concatenate([payloads | 0x7F800000, payloads | 0xFF800000]).astype(np.uint32).view(np.float32)
    y = _apply(kernels, x, name)
    assert np.isnan(y).all(), f"not NaN for the bits {[hex(int(b)) for b in x[~np.isnan(y)].view(np.uint32)]}"


@pytest.mark.parametrize(
    ("name", "at_minus_infinity", "at_infinity"),
    [*((name, 0, np.inf) for name in ("gelu", "gelu_new", "relu", "silu")), ("tanh", -1, 1), ("erf", -1, 1), ("exp", 0, np.inf)],
)
def test_infinities(name: str, at_minus_infinity: float, at_infinity: float, kernels: ModuleType) -> None:
    low, high = _apply(kernels, np.array([-np.inf, np.inf], np.float32), name)
    # x * f(x) with f(x) = 0 may be NaN, as in other frameworks; never a number that is not the limit.
    assert low == at_minus_infinity or (np.isnan(low) and name in ("gelu", "gelu_new", "silu"))
    assert high == at_infinity


@pytest.mark.parametrize("name", NAMES)
def test_an_element_has_the_same_bits_wherever_it_stands(name: str, kernels: ModuleType, rng: np.random.Generator) -> None:
    x = normal(rng, 9000, scale=3)
    whole = _apply(kernels, x, name)
    for begin, end in [(i, j) for i in range(5) for j in range(i + 1, i + 40)] + [(4090, 4101), (17, 8999)]:
        assert np.array_equal(_apply(kernels, x[begin:end], name), whole[begin:end])


@pytest.mark.parametrize("name", NAMES)
def test_the_result_may_take_the_place_of_the_input(name: str, kernels: ModuleType, rng: np.random.Generator) -> None:
    x = normal(rng, 1021)
    want = _apply(kernels, x, name)
    kernels.activation_forward(x, x, NUMBERS[name], 1)
    assert np.array_equal(x, want)


def test_names_of_the_same_function_give_the_same_bits(rng: np.random.Generator) -> None:
    x = normal(rng, 1021)
    assert np.array_equal(activation(x, name="gelu_new"), activation(x, name="gelu_pytorch_tanh"))
    assert np.array_equal(activation(x, name="silu"), activation(x, name="swish"))
    assert not np.array_equal(activation(x, name="gelu"), activation(x, name="gelu_new"))


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0, 2), (2, 3, 4, 5)])
def test_the_shape_is_kept(shape: tuple[int, ...]) -> None:
    assert activation(np.ones(shape, np.float32), name="relu").shape == shape
