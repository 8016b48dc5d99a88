"""Linear beyond the case table: bits of a row, packed weights, exact products, and values that are not finite."""

from functools import cache
from typing import Any

import numpy as np
import pytest
from cases import ROWS, assert_within, normal
from reference import linear as reference
from reference import linear_bound

from lucid._ext import kernels
from lucid.ops.linear import PackedWeight, linear

Array = Any
SHAPES = ((768, 3072), (3072, 768), (31, 1537), (1021, 33), (1, 257))  # N, K


@cache
def _problem(n: int, k: int) -> tuple[Array, PackedWeight, Array, Array, Array]:
    rng = np.random.default_rng(n * k)
    x, weight, bias, residual = normal(rng, max(ROWS), k), PackedWeight.pack(normal(rng, n, k)), normal(rng, n), normal(rng, max(ROWS), n)
    return x, weight, bias, residual, linear(x, weight, bias, residual, activation="gelu")


@pytest.mark.parametrize("n_rows", ROWS)
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_a_row_has_the_same_bits_beside_any_others(n: int, k: int, n_rows: int) -> None:
    x, weight, bias, residual, whole = _problem(n, k)
    for begin in range(0, max(ROWS) - n_rows + 1, 13):
        rows = slice(begin, begin + n_rows)
        assert np.array_equal(linear(x[rows], weight, bias, residual[rows], activation="gelu"), whole[rows])


def test_every_row_alone_has_the_bits_it_has_among_others() -> None:
    x, weight, bias, residual, whole = _problem(768, 3072)
    for row in range(0, len(x), 8):
        rows = slice(row, row + 1)
        assert np.array_equal(linear(x[rows], weight, bias, residual[rows], activation="gelu"), whole[rows])


@pytest.mark.parametrize(("n", "k"), [(1, 1), (5, 3), (23, 7), (24, 16), (25, 17), (48, 255), (1021, 33)])
def test_packing_keeps_every_weight_and_unpacking_returns_it(n: int, k: int, rng: np.random.Generator) -> None:
    weight = normal(rng, n, k)
    packed = PackedWeight.pack(weight)
    width = kernels.panel_width
    assert (packed.shape, packed.dtype, packed.panels.shape) == ((n, k), "float32", (-(-n // width), k, width))
    padded = np.zeros((len(packed.panels) * width, k), np.float32)
    padded[:n] = weight
    assert np.array_equal(packed.panels, padded.reshape(-1, width, k).transpose(0, 2, 1))
    assert np.array_equal(packed.unpack(), weight)


@pytest.mark.parametrize(("n", "k"), [(1, 1), (25, 17), (500, 700), (1021, 33), (97, 6000)])
def test_a_weight_read_in_blocks_is_the_weight_packed_whole(n: int, k: int, rng: np.random.Generator) -> None:
    weight, begins = normal(rng, n, k), []

    def read(begin: int, out: Array) -> None:
        begins.append(begin)
        out[:] = weight[begin : begin + len(out)]

    packed = PackedWeight.from_rows((n, k), read)
    assert np.array_equal(packed.panels, PackedWeight.pack(weight).panels)
    assert begins == sorted(set(begins))
    assert len(begins) > 1 or n * k < 200_000


@pytest.mark.parametrize("n", [1, 24, 25, 1021])
def test_packed_and_row_major_weights_give_the_same_bits(n: int, rng: np.random.Generator) -> None:
    x, weight, bias = normal(rng, 7, 259), normal(rng, n, 259), normal(rng, n)
    assert np.array_equal(linear(x, PackedWeight.pack(weight), bias), linear(x, weight, bias))


@pytest.mark.parametrize("columns", [(0, 1), (0, 24), (1, 25), (11, 13), (23, 25), (24, 48), (47, 121), (60, 121), (120, 121), (0, 121)])
def test_a_range_of_columns_has_the_bits_of_the_whole(columns: tuple[int, int], rng: np.random.Generator) -> None:
    x, weight, bias, residual = normal(rng, 7, 259), normal(rng, 121, 259), normal(rng, 121), normal(rng, 7, 121)
    whole = linear(x, weight, bias, residual, activation="silu")
    part = linear(x, weight, bias, residual[:, slice(*columns)], activation="silu", columns=columns)
    assert np.array_equal(part, whole[:, slice(*columns)])


@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (5, 47, 255), (7, 31, 1021), (129, 97, 3072)])
def test_products_of_small_integers_are_exact(m: int, n: int, k: int, rng: np.random.Generator) -> None:
    """Every partial sum is an integer below 2^24: one product too many, too few or misplaced shows."""
    x, weight = (rng.integers(-9, 10, shape).astype(np.float32) for shape in ((m, k), (n, k)))
    assert np.array_equal(linear(x, weight), reference(x, weight))


def test_the_bound_notices_one_missing_product(rng: np.random.Generator) -> None:
    x, weight = normal(rng, 5, 3072), normal(rng, 31, 3072)
    got = linear(x, weight)
    assert_within(got, reference(x, weight), linear_bound(x, weight))
    x[3, 1700] = 0
    with pytest.raises(AssertionError, match="wrong; first at"):
        assert_within(got, reference(x, weight), linear_bound(x, weight))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_stays_in_its_row_and_column(value: float, rng: np.random.Generator) -> None:
    x, weight, bias = normal(rng, 7, 33), normal(rng, 31, 33), normal(rng, 31)
    clean = linear(x, weight, bias)
    bad_x, bad_weight, bad_bias = x.copy(), weight.copy(), bias.copy()
    bad_x[3, 5] = bad_weight[30, 5] = bad_bias[7] = value
    is_bad = ~np.isfinite(linear(bad_x, bad_weight, bad_bias))
    want = np.zeros_like(is_bad)
    want[3], want[:, 30], want[:, 7] = True, True, True
    assert np.array_equal(is_bad, want)
    assert np.array_equal(linear(bad_x, bad_weight, bad_bias)[~want], clean[~want])


def test_width_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="width 0"):
        linear(np.zeros((2, 0), np.float32), np.zeros((3, 0), np.float32))


def test_a_packed_weight_whose_panels_do_not_hold_its_shape_is_refused() -> None:
    """It would read memory that is not its own. One row too many for the panels, so that today's error is no crash."""
    packed = PackedWeight.pack(np.zeros((kernels.panel_width, 8), np.float32))
    lying = PackedWeight("float32", packed.panels, None, (kernels.panel_width + 1, 8))
    with pytest.raises((TypeError, ValueError), match="panels"):
        linear(np.zeros((1, 8), np.float32), lying)
