"""The matrix product at its own entry: the three products of training, ranges of columns, epilogues, strides, threads."""

from types import ModuleType
from typing import Any

import numpy as np
import pytest
from cases import ROWS, assert_within, normal
from reference import product_bound

from lucid.ops.activation import ACTIVATIONS

Array = Any
# One, primes, and around what the kernel cuts by: 4 rows, 24 (or 12) columns, 64 rows; 4, 256 and 768 products.
M, N, K = (1, 2, 3, 4, 5, 63, 65, 129), (1, 11, 12, 13, 23, 24, 25, 97), (1, 2, 3, 4, 5, 255, 256, 257, 259, 767, 768, 769, 1537)
SHAPES = [(m, N[i % len(N)], K[(5 * i + j) % len(K)]) for i, m in enumerate(M) for j in range(4)]
SHAPES += [(m, n, 7) for m in (4, 5) for n in N] + [(7, 25, k) for k in K]
SHAPES += [(m, 61, 3072) for m in ROWS] + [(5, 768, 3072), (6, 3072, 768)]
N_THREADS = 3


class Product:
    """out = activation(A . B + bias) + residual by one build of the kernels."""

    def __init__(self, kernels: ModuleType) -> None:
        self.kernels, self.panel = kernels, kernels.panel_width

    def _panels(self, n: int, k: int) -> Array:
        return np.full((-(-n // self.panel), k, self.panel), np.nan, np.float32)

    def pack_rows(self, weight: Array) -> Array:
        panels = self._panels(*weight.shape)
        self.kernels.pack_rows(weight, panels, N_THREADS)
        return panels

    def pack_columns(self, b: Array) -> Array:
        panels = self._panels(b.shape[1], b.shape[0])
        self.kernels.pack_columns(b, panels, N_THREADS)
        return panels

    def __call__(
        self,
        a: Array,
        panels: Array,
        n: int,
        bias: Array | None = None,
        residual: Array | None = None,
        first_column: int = 0,
        activation: str | None = None,
        transpose_a: bool = False,
        n_threads: int = N_THREADS,
        add_to: Array | None = None,
    ) -> Array:
        """Run it on a result that lies between two guards, and see that they stand afterwards."""
        m = a.shape[1] if transpose_a else a.shape[0]
        buffer = np.full(m * n + 128, -77, np.float32)
        out = buffer[64 : 64 + m * n].reshape(m, n)
        out[:] = np.nan if add_to is None else add_to
        number = ACTIVATIONS[activation] if activation else 0
        self.kernels.gemm(a, panels, bias, residual, out, first_column, number, transpose_a, add_to is not None, n_threads)
        assert (buffer[:64] == -77).all(), "wrote before the result"
        assert (buffer[64 + m * n :] == -77).all(), "wrote behind the result"
        return out


@pytest.fixture
def product(kernels: ModuleType) -> Product:
    return Product(kernels)


def _integers(rng: np.random.Generator, *shape: int) -> Array:
    return rng.integers(-9, 10, shape).astype(np.float32)


def _amid_nan(array: Array) -> Array:
    """The same array as part of a wider one full of NaN: what is read beside it shows."""
    wide = np.full((len(array) + 2, array.shape[1] + 7), np.nan, np.float32)
    view = wide[1:-1, 3:-4]
    view[:] = array
    return view


# The three products of training


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_x_times_w_transposed(shape: tuple[int, int, int], product: Product, rng: np.random.Generator) -> None:
    m, n, k = shape
    x, weight = normal(rng, m, k), normal(rng, n, k)
    got = product(_amid_nan(x), product.pack_rows(_amid_nan(weight)), n)
    assert_within(got, x.astype(np.float64) @ weight.T.astype(np.float64), product_bound(x, weight))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_dy_times_w(shape: tuple[int, int, int], product: Product, rng: np.random.Generator) -> None:
    """The gradient of x: here the sum runs over the rows of the weight."""
    m, n, k = shape
    d_y, weight = normal(rng, m, k), normal(rng, k, n)
    got = product(_amid_nan(d_y), product.pack_columns(_amid_nan(weight)), n)
    assert_within(got, d_y.astype(np.float64) @ weight.astype(np.float64), product_bound(d_y, weight.T))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_dy_transposed_times_x(shape: tuple[int, int, int], product: Product, rng: np.random.Generator) -> None:
    """The gradient of the weight: here the sum runs over the tokens."""
    m, n, k = shape
    d_y, x = normal(rng, k, m), normal(rng, k, n)
    got = product(_amid_nan(d_y), product.pack_columns(_amid_nan(x)), n, transpose_a=True)
    assert_within(got, d_y.T.astype(np.float64) @ x.astype(np.float64), product_bound(d_y.T, x.T))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_small_integers_are_exact_in_all_three(shape: tuple[int, int, int], product: Product, rng: np.random.Generator) -> None:
    """Every partial sum is an integer below 2^24: one product too many, too few or misplaced shows."""
    m, n, k = shape
    a, b = _integers(rng, m, k), _integers(rng, k, n)
    want = a @ b
    assert np.array_equal(want, a.astype(np.int64) @ b.astype(np.int64))
    assert np.array_equal(product(a, product.pack_rows(np.ascontiguousarray(b.T)), n), want)
    assert np.array_equal(product(a, product.pack_columns(b), n), want)
    assert np.array_equal(product(np.ascontiguousarray(a.T), product.pack_columns(b), n, transpose_a=True), want)


@pytest.mark.parametrize(("m", "n", "k"), [(5, 25, 259), (129, 97, 1537), (7, 768, 3072)])
def test_the_three_give_the_same_bits(m: int, n: int, k: int, product: Product, rng: np.random.Generator) -> None:
    """They differ in how the operands lie, not in the order of a sum."""
    a, b = normal(rng, m, k), normal(rng, k, n)
    want = product(a, product.pack_columns(b), n)
    assert np.array_equal(product(a, product.pack_rows(np.ascontiguousarray(b.T)), n), want)
    assert np.array_equal(product(np.ascontiguousarray(a.T), product.pack_columns(b), n, transpose_a=True), want)


def test_the_order_of_a_sum_is_chains_of_256(product: Product) -> None:
    """The K block is a constant of the package: 2^24 + 1 is 2^24, but ones that were added among themselves count."""
    k = 1024
    a, b = np.ones((1, k), np.float32), np.ones((k, 1), np.float32)
    a[0, 0] = 2.0**24
    # The chain that starts with 2^24 loses its 255 ones; the three others bring 256 each.
    assert product(a, product.pack_columns(b), 1)[0, 0] == 2.0**24 + 3 * 256


# Panels


@pytest.mark.parametrize("k", [1, 15, 16, 17, 33])
@pytest.mark.parametrize("n", [1, 11, 12, 13, 24, 25, 49])
def test_packing(n: int, k: int, product: Product, rng: np.random.Generator) -> None:
    weight = normal(rng, n, k)
    panels = product.pack_rows(_amid_nan(weight))
    padded = np.zeros((len(panels) * product.panel, k), np.float32)
    padded[:n] = weight
    assert np.array_equal(panels, padded.reshape(-1, product.panel, k).transpose(0, 2, 1))
    assert np.array_equal(product.pack_columns(_amid_nan(np.ascontiguousarray(weight.T))), panels)
    back = np.empty_like(weight)
    product.kernels.unpack_rows(panels, back, N_THREADS)
    assert np.array_equal(back, weight)


# Ranges of columns


@pytest.mark.parametrize("k", [3, 770])
@pytest.mark.parametrize("m", [1, 4, 7, 65])
def test_ranges_of_columns_have_the_bits_of_the_whole(m: int, k: int, product: Product, rng: np.random.Generator) -> None:
    n, panel = 5 * product.panel + 5, product.panel
    a, panels = normal(rng, m, k), product.pack_rows(normal(rng, n, k))
    bias, residual = normal(rng, n), normal(rng, m, n)
    whole = product(a, panels, n, bias, residual, activation="gelu")
    edges = (0, 1, panel - 1, panel, panel + 1, 2 * panel, 2 * panel + 7, 5 * panel, n - 1, n)
    for begin in edges:
        for end in edges:
            if begin < end:
                columns = slice(begin, end)
                part = product(a, panels, end - begin, bias[columns].copy(), residual[:, columns], begin, "gelu")
                assert np.array_equal(part, whole[:, columns]), f"columns {begin} to {end}"


# Epilogues


@pytest.mark.parametrize("activation", [None, "gelu", "gelu_new", "relu", "silu", "tanh"])
@pytest.mark.parametrize("has_residual", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
def test_epilogues(has_bias: bool, has_residual: bool, activation: str | None, product: Product, rng: np.random.Generator) -> None:
    """The bits of bias, activation and residual applied one after the other to the bare product; over edges and several passes of K."""
    for m, n, k in ((7, 61, 5), (5, 24, 1600), (66, 7, 769)):
        a, panels, bias, residual = normal(rng, m, k), product.pack_rows(normal(rng, n, k)), normal(rng, n), normal(rng, m, n)
        want = product(a, panels, n)
        want = want + bias if has_bias else want
        if activation:
            product.kernels.activation_forward(want.reshape(-1), want.reshape(-1), ACTIVATIONS[activation], 1)
        want = want + residual if has_residual else want
        got = product(a, panels, n, bias if has_bias else None, _amid_nan(residual) if has_residual else None, activation=activation)
        assert np.array_equal(got, want)


# Strides, threads, rows


@pytest.mark.parametrize("transpose_a", [False, True])
def test_operands_may_be_parts_of_others_and_go_backwards(transpose_a: bool, product: Product, rng: np.random.Generator) -> None:
    a, b, residual = normal(rng, 31, 29), normal(rng, 29 if not transpose_a else 31, 25), normal(rng, 31 if not transpose_a else 29, 25)
    want = product(a, product.pack_columns(b), 25, None, residual, transpose_a=transpose_a)
    for view in (_amid_nan, lambda x: x[::-1].copy()[::-1], lambda x: np.repeat(x, 2, axis=0)[::2]):
        got = product(view(a), product.pack_columns(view(b)), 25, None, view(residual), transpose_a=transpose_a)
        assert np.array_equal(got, want)


@pytest.mark.parametrize("transpose_a", [False, True])
@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (1, 97, 33), (5, 11, 770), (129, 7, 33), (129, 97, 770), (66, 300, 5)])
def test_bits_do_not_depend_on_the_number_of_threads(
    m: int, n: int, k: int, transpose_a: bool, product: Product, rng: np.random.Generator
) -> None:
    a, panels = normal(rng, k, m) if transpose_a else normal(rng, m, k), product.pack_rows(normal(rng, n, k))
    bias, residual = normal(rng, n), normal(rng, m, n)
    want = product(a, panels, n, bias, residual, 0, "gelu", transpose_a, n_threads=1)
    for n_threads in (2, 3, 4, 5, 8, 13):
        assert np.array_equal(product(a, panels, n, bias, residual, 0, "gelu", transpose_a, n_threads), want)


@pytest.mark.parametrize("n_rows", ROWS)
def test_a_row_has_the_same_bits_beside_any_others(n_rows: int, product: Product, rng: np.random.Generator) -> None:
    a, panels = normal(rng, max(ROWS), 3072), product.pack_rows(normal(rng, 61, 3072))
    whole = product(a, panels, 61)
    for begin in range(0, max(ROWS) - n_rows + 1, 13):
        assert np.array_equal(product(a[begin : begin + n_rows], panels, 61), whole[begin : begin + n_rows])
        transposed = product(np.ascontiguousarray(a[begin : begin + n_rows].T), panels, 61, transpose_a=True)
        assert np.array_equal(transposed, whole[begin : begin + n_rows])


@pytest.mark.parametrize(("m", "n"), [(0, 5), (5, 0), (0, 0)])
def test_empty_products(m: int, n: int, product: Product) -> None:
    assert product(np.zeros((m, 3), np.float32), product.pack_rows(np.zeros((n, 3), np.float32)), n).shape == (m, n)


@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 25, 769), (129, 97, 1537), (64, 24, 256)], ids=str)
def test_accumulating_adds_to_what_is_there(product: Any, shape: tuple[int, int, int], rng: np.random.Generator) -> None:
    m, n, k = shape
    a, weight, before = (rng.standard_normal(s).astype(np.float32) for s in ((m, k), (n, k), (m, n)))
    panels = product.pack_rows(weight)
    got = product(a, panels, n, add_to=before)
    alone = product(a, panels, n)
    bound = 4 * 2.0**-24 * (np.abs(before) + np.abs(a).astype(np.float64) @ np.abs(weight.T))
    assert (np.abs(got - (before.astype(np.float64) + alone)) <= bound * (1 + k / 256)).all()
    assert not np.array_equal(got, alone)
