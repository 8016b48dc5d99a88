"""The second link: the float32 kernels' backward against the reference, within derived bounds; and what every backward promises."""

import importlib
import pkgutil
import tracemalloc
from typing import Any

import numpy as np
import pytest

import lucid.ops
from gradients import reference
from gradients.cases import (
    CASES,
    CURVATURE,
    SLOPE_ERROR,
    Case,
    U,
    assert_other_gradients_are_refused,
    assert_within,
    cases_of,
    for_each_thread_count,
    gradients,
    normal,
)
from lucid.ops.activation import ACTIVATIONS, activation
from lucid.ops.adamw import adamw_step, sum_of_squares
from lucid.ops.cross_entropy import cross_entropy
from lucid.ops.decoder import decoder_cross_entropy, decoder_loss
from lucid.ops.dropout import dropout
from lucid.ops.linear import PackedWeight, column_sum, linear
from lucid.ops.op import Op, RowsGradient
from lucid.ops.rows import gather_rows
from lucid.ops.total import scale, total

Array = Any
EVERY_CASE = pytest.mark.parametrize("case", CASES, ids=str)
SMALL_CASES = [case for case in CASES if case.size <= 20_000]
EVERY_SMALL_CASE = pytest.mark.parametrize("case", SMALL_CASES, ids=str)
CONSTANT = {"layer_norm-3x1", "layer_norm-1x2", "embedding-1x1-of-1-packed"}
"""Widths 1 and 2 normalise to constants: what is left of their gradient is rounding."""


def _find_ops() -> list[Op]:
    modules = [importlib.import_module(f"lucid.ops.{info.name}") for info in pkgutil.iter_modules(lucid.ops.__path__)]
    found = {value.name: value for module in modules for value in vars(module).values() if isinstance(value, Op)}
    return [op for op in found.values() if op.is_differentiable]


OPS = _find_ops()
EVERY_OP = pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20_141_222)


def d_out_of(case: Case, call: Any, rng: np.random.Generator) -> Array:
    return normal(rng, *np.shape(case.reference(call)[0]))


def relative(got: Array, want: Array) -> float:
    return float(np.linalg.norm(got - want) / max(np.linalg.norm(want), 1e-30))


@EVERY_OP
def test_every_differentiable_op_has_a_case(op: Op) -> None:
    assert cases_of(op), f"add {op.name} to tests/gradients/cases.py, and its float64 gradient to reference.py"


@EVERY_CASE
def test_gradients_are_those_of_the_reference(case: Case, rng: np.random.Generator) -> None:
    call = case.build(rng)
    d_out = d_out_of(case, call, rng)
    got, want = gradients(case.op, call, d_out), case.reference(call)[1](d_out)
    bounds = case.bound(d_out, *call.arrays.values(), **call.params)
    for name, g, w, bound in zip(call.arrays, got, want, bounds, strict=False):
        if call.arrays[name] is None or (case.op is decoder_cross_entropy and name == call.packed):
            assert g is None, f"{name} was not given or is a constant, and has a gradient"
            continue
        assert_within(g, w, bound, name)
        # Together, where roundings cancel, it is far better than the bounds, which could hide a wrong one.
        if str(case) not in CONSTANT:
            assert relative(g, w) < 1e-5 or "offset" in str(case), name


@EVERY_CASE
def test_forward_gives_the_same_bits_with_a_tape(case: Case, rng: np.random.Generator) -> None:
    call = case.build(rng)
    kept, plain = call.run(case.op, keep=True)[0], call.run(case.op, keep=False)[0]
    assert kept.dtype == np.float32
    assert kept.tobytes() == plain.tobytes()


@EVERY_CASE
def test_gradients_have_the_same_bits_for_any_number_of_threads(case: Case, rng: np.random.Generator) -> None:
    call = case.build(rng)
    d_out = d_out_of(case, call, rng)
    one, *others = for_each_thread_count(lambda: [None if g is None else g.tobytes() for g in gradients(case.op, call, d_out)])
    assert all(other == one for other in others)


@EVERY_SMALL_CASE
def test_inputs_are_read_only_and_stay_as_they_are(case: Case, rng: np.random.Generator) -> None:
    """The arrays of forward, and the gradient that comes in, may be someone else's."""

    def locked(array: Array) -> Array:
        copy = array.copy()
        copy.flags.writeable = False
        return copy

    call = case.build(rng)
    d_out = d_out_of(case, call, rng)
    assert [g is None or g.tobytes() for g in gradients(case.op, call.map(locked), locked(d_out))] == [
        g is None or g.tobytes() for g in gradients(case.op, call, d_out)
    ]
    before = case.build(np.random.default_rng(20_141_222))
    untouched: list[Array] = []
    before.map(lambda array: untouched.append(array) or array)  # type: ignore[func-returns-value]
    now: list[Array] = []
    call.map(lambda array: now.append(array) or array)  # type: ignore[func-returns-value]
    assert [a.tobytes() for a in now] == [a.tobytes() for a in untouched]


@pytest.mark.parametrize("case", [case for case in SMALL_CASES if case.op not in (total, scale, decoder_loss)], ids=str)
def test_a_strided_gradient_gives_the_same_bits(case: Case, rng: np.random.Generator) -> None:
    call = case.build(rng)
    d_out = d_out_of(case, call, rng)
    wide = np.zeros((*d_out.shape[:-1], 2 * d_out.shape[-1]), np.float32)
    wide[..., ::2] = d_out
    strided = wide[..., ::2]
    fortran = np.asfortranarray(d_out)
    want = [g is None or g.tobytes() for g in gradients(case.op, call, d_out)]
    assert [g is None or g.tobytes() for g in gradients(case.op, call, strided)] == want
    assert [g is None or g.tobytes() for g in gradients(case.op, call, fortran)] == want


@pytest.mark.parametrize("case", [case for case in SMALL_CASES if case.op.cpu.is_fresh], ids=str)
@pytest.mark.parametrize("is_one", [False, True])
def test_gradients_that_are_called_fresh_are_nobody_elses(case: Case, is_one: bool, rng: np.random.Generator) -> None:
    """A leaf adds others into them in place: that may change no other gradient, no input and no d_out."""
    call = case.build(rng)
    others: list[Array] = []
    call.map(lambda array: others.append(array) or array)  # type: ignore[func-returns-value]
    d_out = np.ones_like(d_out_of(case, call, rng)) if is_one else d_out_of(case, call, rng)
    out, saved = call.run(case.op)
    found = case.op.cpu.backward(saved, d_out)  # type: ignore[misc]
    fresh = [g.values if isinstance(g, RowsGradient) else g for g in found if g is not None]
    assert fresh
    for i, gradient in enumerate(fresh):
        assert gradient.flags.writeable
        assert not any(np.shares_memory(gradient, other) for other in (*fresh[:i], *others, d_out, out))


def test_some_gradients_are_called_fresh() -> None:
    assert decoder_loss.cpu.is_fresh


@EVERY_OP
def test_a_gradient_of_another_shape_or_type_is_refused(op: Op, rng: np.random.Generator) -> None:
    """Kernels read it without bounds."""
    call = cases_of(op)[0].build(rng)
    assert_other_gradients_are_refused(op, call.arrays.values(), call.params)


# The parts


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_slopes_over_a_sweep(name: str) -> None:
    tails = [-1e30, -1e4, -200, -104, -90, -88, -20, 20, 88, 90, 104, 200, 1e4, 1e30, 0.0, -0.0, 1e-40, -1e-40]
    x = np.concatenate([np.linspace(-20, 20, 100_001), np.linspace(-0.01, 0.01, 2001), tails]).astype(np.float32)
    _, saved = activation.run(x, name=name, keep=True)
    got = activation.cpu.backward(saved, np.ones_like(x))[0]  # type: ignore[misc]
    with np.errstate(over="ignore", invalid="ignore"):
        value, slope = reference.ACTIVATIONS[name](np.clip(x.astype(np.float64), -1e3, 1e3))
    assert np.isfinite(value).all()
    assert_within(got, slope, 0.0 if name == "relu" else SLOPE_ERROR, name)
    if name != "relu":
        assert np.abs(np.diff(slope[:100_001])).max() <= CURVATURE * 4.0001e-4


def test_a_row_that_is_asked_for_twice_gets_both_gradients(rng: np.random.Generator) -> None:
    x, d_y = normal(rng, 3, 5), normal(rng, 4, 5)
    _, saved = gather_rows.run(x, rows=np.array([1, 2, 1, 1], np.int32), keep=True)
    (d_x,) = gather_rows.cpu.backward(saved, d_y)  # type: ignore[misc]
    assert np.array_equal(d_x, [np.zeros(5), d_y[0] + d_y[2] + d_y[3], d_y[1]])


def test_dropout_drops_the_same_numbers_backward_as_forward(rng: np.random.Generator) -> None:
    params = {"p": 0.4, "seed": 11, "stream": 7, "columns": np.arange(50, dtype=np.int32), "examples": np.full(50, 3, np.int32)}
    ones = np.ones((50, 31), np.float32)
    y, saved = dropout.run(ones, **params, keep=True)
    assert np.array_equal(dropout.cpu.backward(saved, ones)[0], y)  # type: ignore[misc]
    assert 0.3 < (y == 0).mean() < 0.5
    assert set(np.unique(y)) == {np.float32(0), np.float32(1 / np.float64(0.6))}


def test_a_column_sum_is_added_in_float64(rng: np.random.Generator) -> None:
    x = np.concatenate([np.full((1, 70), 1e8), normal(rng, 4000, 70), np.full((1, 70), -1e8)]).astype(np.float32)
    want = x.astype(np.float64).sum(axis=0)
    assert_within(column_sum(x), want, U * np.abs(want) + 1e-6, "column_sum")
    assert np.array_equal(column_sum(np.zeros((0, 70), np.float32)), np.zeros(70))


def test_the_table_gradient_of_a_slice_of_columns_names_its_rows_only(rng: np.random.Generator) -> None:
    x, weight, bias = normal(rng, 5, 7), normal(rng, 11, 7), normal(rng, 11)
    _, saved = linear.run(x, weight, bias, columns=(3, 8), keep=True)
    _, d_weight, d_bias, _ = linear.cpu.backward(saved, normal(rng, 5, 5))  # type: ignore[misc]
    for d in (d_weight, d_bias):
        assert isinstance(d, RowsGradient)
        assert len(d.values) == 5
        assert not d.dense()[[0, 1, 2, 8, 9, 10]].any()
        assert d.dense()[3:8].all()


@pytest.mark.parametrize("n_rows", [37, 1024, 1031])
def test_the_decoder_gives_the_gradients_of_linear_and_cross_entropy(n_rows: int, rng: np.random.Generator) -> None:
    """Blocks of words and groups of rows stand where a whole product cuts its sums as well: the bits are the same."""
    x, weight, bias, d_losses = normal(rng, n_rows, 26), normal(rng, 5000, 26), normal(rng, 5000), normal(rng, n_rows)
    labels = rng.integers(0, 5000, n_rows).astype(np.int32)
    _, saved = decoder_cross_entropy.run(x, weight, bias, labels=labels, keep=True)
    logits, of_linear = linear.run(x, weight, bias, keep=True)
    losses, of_loss = cross_entropy.run(logits, labels=labels, keep=True)

    def whole(d_losses: Array) -> tuple[Array, ...]:
        return linear.cpu.backward(of_linear, *cross_entropy.cpu.backward(of_loss, d_losses))  # type: ignore[misc, no-any-return]

    for got, want in zip(decoder_cross_entropy.cpu.backward(saved, d_losses), whole(d_losses), strict=False):  # type: ignore[misc]
        assert np.array_equal(got, want)
    loss, saved = decoder_loss.run(x, weight, bias, labels=labels, divisor=n_rows, keep=True)
    assert np.array_equal(loss, total(losses, divisor=n_rows))
    d_x, d_weight, d_bias = decoder_loss.cpu.backward(saved, np.ones((), np.float32))  # type: ignore[misc]
    want = whole(np.full(n_rows, np.float32(1 / n_rows)))
    assert np.array_equal(d_x, want[0])
    assert np.array_equal(d_weight, want[1])
    if n_rows <= 1024:
        assert np.array_equal(d_bias, want[2])
    else:  # added in float32 from one group of rows to the next
        assert relative(d_bias, want[2]) < 1e-7


@pytest.mark.parametrize("op", [decoder_loss, decoder_cross_entropy], ids=lambda op: op.name)
def test_the_decoder_makes_no_gradient_of_a_constant_weight(op: Op, rng: np.random.Generator) -> None:
    """Of panels, and of a weight whose gradient is not wanted; the other gradients have the same bits."""
    x, weight, bias, labels = normal(rng, 37, 26), normal(rng, 5000, 26), normal(rng, 5000), rng.integers(0, 5000, 37).astype(np.int32)
    params: dict[str, Any] = {"labels": labels, **({"divisor": 2} if op is decoder_loss else {})}
    found = []
    for held, more in ((weight, {}), (PackedWeight.pack(weight), {}), (weight, {"has_d_weight": False})):
        out, saved = op.run(x, held, bias, **params, **more, keep=True)
        found.append((out, *op.cpu.backward(saved, np.full(out.shape, 3, np.float32))))  # type: ignore[misc]
    (want, want_d_x, d_weight, want_d_bias), *constant = found
    assert d_weight.any()
    for out, d_x, none, d_bias in constant:
        assert none is None
        assert np.array_equal(out, want) and np.array_equal(d_x, want_d_x) and np.array_equal(d_bias, want_d_bias)


@pytest.mark.parametrize("keep", [False, True])
def test_the_logits_of_all_rows_are_never_there(keep: bool, rng: np.random.Generator) -> None:
    """4096 rows of 4096 words would be 67 MB; those of 1024 rows at a time are 17."""
    n_rows, n_words = 4096, 4096
    x, weight, labels = normal(rng, n_rows, 8), normal(rng, n_words, 8), rng.integers(0, n_words, n_rows).astype(np.int32)
    tracemalloc.start()
    try:
        decoder_loss.run(x, weight, labels=labels, divisor=n_rows, keep=keep)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 0.4 * 4 * n_rows * n_words


# The optimizer's kernels


@pytest.mark.parametrize("n", [0, 1, 7, 8, 4095, 4096, 4097, 12_289])
def test_adamw_against_float64(n: int, rng: np.random.Generator) -> None:
    weight, d_weight, m = normal(rng, n), normal(rng, n, scale=0.1), normal(rng, n, scale=0.1)
    v = np.abs(normal(rng, n, scale=0.01))
    settings: dict[str, Any] = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-3, "weight_decay": 0.05, "step": 3}
    want = reference.adamw(*(a.astype(np.float64) for a in (weight, m, v, 0.5 * d_weight)), **settings)

    def run() -> list[Array]:
        arrays = [weight.copy(), m.copy(), v.copy()]
        adamw_step(arrays[0], d_weight, *arrays[1:], scale=0.5, **settings)
        return arrays

    results = for_each_thread_count(run)
    assert len({b"".join(array.tobytes() for array in result) for result in results}) == 1
    step = np.abs(want[0] - weight.astype(np.float64))
    for name, got, w, bound in zip(
        ("weight", "m", "v"), results[0], want, (2 * U * np.abs(weight) + 16 * U * step, 4e-9, 4e-9), strict=True
    ):
        assert_within(got, w, bound + 4 * U * np.abs(w), name)


def test_adamw_refuses_what_it_cannot_update_in_place() -> None:
    settings: dict[str, Any] = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-3, "weight_decay": 0.05, "step": 1}
    good = [np.zeros((4, 3), np.float32) for _ in range(4)]
    adamw_step(*good, **settings)
    for i in range(4):
        for wrong in (np.zeros((4, 3)), np.zeros((4, 3), np.float16), [[0.0]]):
            with pytest.raises(TypeError, match="adamw"):
                adamw_step(*good[:i], wrong, *good[i + 1 :], **settings)
        with pytest.raises(ValueError, match="adamw"):
            adamw_step(*good[:i], np.zeros((3, 4), np.float32), *good[i + 1 :], **settings)
    for i in (0, 2, 3):
        with pytest.raises(ValueError, match="C-contiguous"):
            adamw_step(*good[:i], np.zeros((3, 4), np.float32).T, *good[i + 1 :], **settings)
        locked = np.zeros((4, 3), np.float32)
        locked.flags.writeable = False
        with pytest.raises(ValueError, match="read-only"):
            adamw_step(*good[:i], locked, *good[i + 1 :], **settings)
    adamw_step(good[0], np.ones((3, 4), np.float32).T, *good[2:], **settings)
    assert good[0].all()
    with pytest.raises(ValueError, match="step"):
        adamw_step(*good, **{**settings, "step": 0})


@pytest.mark.parametrize("n", [0, 1, 7, 8, 15, 17, 4095, 4096, 4097, 50_001])
def test_a_sum_of_squares_is_made_in_float64(n: int, rng: np.random.Generator) -> None:
    x = normal(rng, n)
    want = float(np.square(x.astype(np.float64)).sum())
    results = for_each_thread_count(lambda: sum_of_squares(x))
    assert len(set(results)) == 1
    assert abs(results[0] - want) <= 1e-12 * want


def test_squares_neither_overflow_nor_vanish() -> None:
    assert sum_of_squares(np.full(5000, 1e30, np.float32)) == pytest.approx(5e63, rel=1e-6)
    assert sum_of_squares(np.full(5000, 1e-30, np.float32)) == pytest.approx(5e-57, rel=1e-6)
    assert sum_of_squares(np.array([1, np.inf], np.float32)) == np.inf
    assert np.isnan(sum_of_squares(np.array([1, np.nan], np.float32)))
    for wrong in (np.zeros(3), np.zeros(3, np.float16), [1.0]):
        with pytest.raises(TypeError, match="sum_of_squares"):
            sum_of_squares(wrong)
