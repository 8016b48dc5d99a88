"""Layer normalisation beyond the case table: bits of a row, what backward reads, rows that are hard."""

from types import ModuleType
from typing import Any

import numpy as np
import pytest
from cases import ROWS, assert_within, normal
from reference import U, layer_norm_bound
from reference import layer_norm as reference

from lucid.ops.layer_norm import layer_norm

Array = Any
WIDTHS = (1, 7, 31, 768, 1021)


def _problem(rng: np.random.Generator, n_rows: int, width: int) -> tuple[Array, Array, Array, Array]:
    return normal(rng, n_rows, width), normal(rng, width), normal(rng, width), normal(rng, n_rows, width)


@pytest.mark.parametrize("n_rows", ROWS)
@pytest.mark.parametrize("width", WIDTHS)
def test_a_row_has_the_same_bits_beside_any_others(width: int, n_rows: int, rng: np.random.Generator) -> None:
    x, gain, bias, residual = _problem(rng, max(ROWS), width)
    whole = layer_norm(x, gain, bias, residual, eps=1e-12)
    for begin in range(0, max(ROWS) - n_rows + 1, 13):
        rows = slice(begin, begin + n_rows)
        assert np.array_equal(layer_norm(x[rows], gain, bias, residual[rows], eps=1e-12), whole[rows])


@pytest.mark.parametrize("width", WIDTHS)
def test_the_residual_is_added_first(width: int, rng: np.random.Generator) -> None:
    x, gain, bias, residual = _problem(rng, 5, width)
    assert np.array_equal(layer_norm(x, gain, bias, residual, eps=1e-12), layer_norm(x + residual, gain, bias, eps=1e-12))


@pytest.mark.parametrize("has_residual", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_kernel_leaves_mean_and_rstd_for_backward(
    width: int, has_residual: bool, kernels: ModuleType, rng: np.random.Generator
) -> None:
    x, gain, bias, residual = _problem(rng, 5, width)
    y, without, sums = np.empty_like(x), np.empty_like(x), np.empty_like(x)
    mean, rstd = np.empty(5, np.float32), np.empty(5, np.float32)
    kernels.layer_norm_forward(x, residual if has_residual else None, gain, bias, 1e-5, y, sums, mean, rstd, 1)
    kernels.layer_norm_forward(x, residual if has_residual else None, gain, bias, 1e-5, without, None, None, None, 1)
    assert np.array_equal(y, without)
    if has_residual:
        assert np.array_equal(sums, x + residual)
    total = x.astype(np.float64) + (residual if has_residual else 0)
    assert_within(mean, total.mean(axis=1), width * U * np.abs(total).mean(axis=1))
    want = 1 / np.sqrt(total.var(axis=1) + 1e-5)
    assert_within(rstd, want, want * (width + 8) * U * (1 + want * np.abs(total).max(axis=1)))


@pytest.mark.parametrize("has_residual", [False, True])
def test_the_result_may_take_the_place_of_the_input(has_residual: bool, kernels: ModuleType, rng: np.random.Generator) -> None:
    x, gain, bias, residual = _problem(rng, 5, 31)
    y = np.empty_like(x)
    kernels.layer_norm_forward(x, residual if has_residual else None, gain, bias, 1e-5, y, None, None, None, 1)
    kernels.layer_norm_forward(x, residual if has_residual else None, gain, bias, 1e-5, x, None, None, None, 1)
    assert np.array_equal(x, y)


def test_a_row_of_width_one_is_its_bias(rng: np.random.Generator) -> None:
    x, gain, bias, _ = _problem(rng, 7, 1)
    assert np.array_equal(layer_norm(x, gain, bias, eps=1e-12), np.broadcast_to(bias, (7, 1)))


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, -1e4, 1e-30])
def test_a_row_without_variance(value: float, rng: np.random.Generator) -> None:
    """The mean of equal numbers need not be exact; its error is divided by sqrt(eps), and by no less."""
    x, gain, bias = np.full((2, 768), value, np.float32), normal(rng, 768), normal(rng, 768)
    got = layer_norm(x, gain, bias, eps=1e-5)
    assert_within(got, reference(x, gain, bias, eps=1e-5), layer_norm_bound(x, gain, bias, eps=1e-5))
    if value in (0.0, 1.0):
        assert np.array_equal(got, np.broadcast_to(bias, got.shape))


def test_eps_is_added_to_the_variance() -> None:
    x = np.array([[-1, 1, -1, 1]], np.float32)
    ones, zeros = np.ones(4, np.float32), np.zeros(4, np.float32)
    assert np.array_equal(layer_norm(x, ones, zeros, eps=3.0), x / 2)


def test_nan_stays_in_its_row(rng: np.random.Generator) -> None:
    x, gain, bias, _ = _problem(rng, 5, 31)
    clean = layer_norm(x, gain, bias, eps=1e-12)
    x[2, 30] = np.nan
    got = layer_norm(x, gain, bias, eps=1e-12)
    assert np.isnan(got[2]).all()
    assert np.array_equal(got[[0, 1, 3, 4]], clean[[0, 1, 3, 4]])
