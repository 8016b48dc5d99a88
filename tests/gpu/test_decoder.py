"""Decoder and cross-entropy of the GPU beyond the table of cases: every type over chunks of rows, bits, ties, what is refused."""

from typing import Any

import numpy as np
import pytest
from cases import assert_within, integers, normal
from reference import top_k as reference_top_k

from gpu.cases import ROUNDING, host
from gpu.emulator import Emulator
from lucid._gpu import cross_entropy as cross_entropy_kernels
from lucid._gpu import decoder, runtime
from lucid.ops.cross_entropy import cross_entropy
from lucid.ops.decoder import decoder_loss

Array = Any
HALF = ("float16", "bfloat16")


# Geometry


@pytest.mark.parametrize("n_rows", [0, 1, 1023, 1024, 1025, 4915])
def test_chunks_are_all_rows_in_order(n_rows: int) -> None:
    chunks = decoder.row_chunks(n_rows)
    assert [row for chunk in chunks for row in range(chunk.start, chunk.stop)] == list(range(n_rows))
    assert all(chunk.stop - chunk.start <= decoder.ROWS_AT_ONCE for chunk in chunks)


@pytest.mark.parametrize(("n_words", "wanted"), [(1, 8), (8, 8), (30522, 30528)])
def test_rows_of_logits_begin_at_16_bytes(n_words: int, wanted: int) -> None:
    assert decoder.padded(n_words) == wanted
    assert decoder.padded(n_words) * 2 % 16 == 0  # two bytes a number are the fewest


@pytest.mark.parametrize(("n", "blocks"), [(0, 0), (1, 1), (256, 1), (257, 2), (30522 * 768, decoder.MOST_SCALE_BLOCKS)])
def test_blocks_that_scale(n: int, blocks: int) -> None:
    assert decoder.scale_grid(n) == blocks


# Against float64


def _problem(rng: np.random.Generator, dtype: str, n_rows: int = 9, n_words: int = 403, width: int = 24) -> tuple[Array, ...]:
    """x, weight, bias and labels on the host, the first two as they are once stored in `dtype`."""
    stored = runtime.dtype_of(dtype)
    x, weight = (normal(rng, n, width).astype(stored) for n in (n_rows, n_words))
    return x, weight, normal(rng, n_words), integers(rng, 0, n_words, n_rows)


def _exact(x: Array, weight: Array, bias: Array, labels: Array, d_losses: Array) -> dict[str, Array]:
    """Everything in float64."""
    x, weight = x.astype(np.float64), weight.astype(np.float64)
    logits = x @ weight.T + bias
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    lse = logits.max(axis=1) + np.log(p.sum(axis=1))
    d = (p / p.sum(axis=1, keepdims=True) - (np.arange(len(weight)) == labels[:, None])) * d_losses[:, None]
    return {"losses": lse - logits[np.arange(len(x)), labels], "d": d, "d_x": d @ weight, "d_weight": d.T @ x, "d_bias": d.sum(axis=0)}


@pytest.mark.parametrize("dtype", ["float32", *HALF])
@pytest.mark.parametrize("has_d_weight", [True, False])
def test_every_type(dtype: str, has_d_weight: bool, device: Any, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses as exact as in float32; gradients as the roundings of d and of d_x allow; over several chunks of rows."""
    monkeypatch.setattr(decoder, "ROWS_AT_ONCE", 4)
    x, weight, bias, labels = _problem(rng, dtype)
    want = _exact(x, weight, bias, labels, np.full(len(x), 0.25))
    arrays = [runtime.xp.asarray(array) for array in (x, weight, bias)]
    loss, saved = decoder.loss(*arrays, labels=labels, divisor=4.0, has_d_weight=has_d_weight, keep=True)
    assert abs(float(loss) - want["losses"].sum() / 4) < 4e-6 * abs(want["losses"]).sum()
    plain, _ = decoder.loss(*arrays, labels=labels, divisor=4.0, keep=False)
    assert np.array_equal(plain.get(), loss.get())
    gradients = decoder.loss_gradients(saved, runtime.xp.asarray(np.float32(1)))
    d_x, d_weight, d_bias = host(gradients)
    assert (d_weight is None) == (not has_d_weight)
    u = ROUNDING[dtype]
    of_d = u * np.abs(want["d"]) + 3e-6 * np.abs(want["d"]) + (2.0**-25 if dtype == "float16" else 1e-9)
    assert_within(d_x, want["d_x"], of_d @ np.abs(weight.astype(np.float64)) * 1.01 + 1.01 * u * np.abs(want["d_x"]) + 1e-5)
    assert_within(d_bias, want["d_bias"], of_d.sum(axis=0) + 1e-6)
    if has_d_weight:
        assert_within(d_weight, want["d_weight"], of_d.T @ np.abs(x.astype(np.float64)) * 1.01 + 1e-5)
    assert gradients[0].dtype == arrays[0].dtype
    # The same from the losses of rows.
    losses, saved = decoder.cross_entropy(*arrays, labels=labels, has_d_weight=has_d_weight, keep=True)
    assert_within(losses.get(), want["losses"], 4e-6 * np.abs(want["losses"]) + 4e-6)
    again = decoder.cross_entropy_gradients(saved, runtime.xp.asarray(np.full(len(x), 0.25, np.float32)))
    for one, other in zip(host(again), (d_x, d_weight, d_bias), strict=True):
        assert (one is None) == (other is None)
        if one is not None:  # a unit in the last place of lse apart
            assert np.allclose(one.astype(np.float64), other.astype(np.float64), rtol=2.1 * max(u, 1e-6), atol=1e-5)


@pytest.mark.parametrize("dtype", HALF)
def test_cross_entropy_of_half_precision_logits(dtype: str, device: Any, rng: np.random.Generator) -> None:
    logits = normal(rng, 6, 403, scale=3).astype(runtime.dtype_of(dtype))
    labels = integers(rng, 0, 403, 6)
    labels[2] = -100
    losses, saved = cross_entropy.gpu().forward(runtime.xp.asarray(logits), labels=labels, keep=True)
    (d,) = cross_entropy.gpu().backward(saved, runtime.xp.asarray(np.ones(6, np.float32)))
    p = np.exp(logits.astype(np.float64))
    want = p / p.sum(axis=1, keepdims=True) - (np.arange(403) == labels[:, None])
    want[2] = 0
    assert_within(losses.get(), np.where(labels < 0, 0, np.log(p.sum(axis=1)) - logits[np.arange(6), labels].astype(np.float64)), 1e-5)
    assert d.dtype == logits.dtype
    assert_within(d.get(), want, (ROUNDING[dtype] + 1e-5) * np.abs(want) + 2.0**-25)


# Bits


@pytest.mark.parametrize("begin", [0, 3])
def test_a_row_has_the_same_bits_beside_any_others(begin: int, device: Any, rng: np.random.Generator) -> None:
    logits, labels = normal(rng, 7, 1021, scale=3), integers(rng, 0, 1021, 7)
    whole = cross_entropy.gpu().forward(runtime.xp.asarray(logits), labels=labels, keep=False)[0].get()
    some = slice(begin, begin + 2)
    assert np.array_equal(
        cross_entropy.gpu().forward(runtime.xp.asarray(logits[some]), labels=labels[some], keep=False)[0].get(), whole[some]
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_bit_depends_on_the_order_in_which_threads_run(dtype: str, emulated: Emulator, rng: np.random.Generator) -> None:
    """In float32 the gradient takes the place of the logits: nobody may write before the label's was read."""
    x, weight, bias, labels = _problem(rng, dtype)

    def everything() -> list[bytes]:
        arrays = [runtime.xp.asarray(array) for array in (x, weight, bias)]
        loss, saved = decoder.loss(*arrays, labels=labels, divisor=3.0, keep=True)
        gradients = decoder.loss_gradients(saved, runtime.xp.asarray(np.float32(0.3)))
        best, _ = decoder.top_k(*arrays, k=5, keep=False)
        return [array.tobytes() for array in host((loss, *gradients, *best))]

    want = everything()
    emulated.is_reversed = True
    assert everything() == want


@pytest.mark.parametrize("label", [403, -1])
def test_a_label_beyond_the_vocabulary_is_refused_wherever_it_is(label: int, device: Any, rng: np.random.Generator) -> None:
    x, weight, bias, labels = _problem(rng, "float32")
    labels[4] = label
    arrays = [runtime.xp.asarray(array) for array in (x, weight, bias)]
    for place in (np.asarray, runtime.xp.asarray):
        with pytest.raises(IndexError, match=rf"labels\[4\] is {label}, outside \[0, 403\)"):
            decoder_loss.run(*arrays, labels=place(labels), divisor=1.0, keep=True)


# The best words


def _best(logits: Array, k: int, bias: Array | None = None) -> tuple[Array, Array, Array]:
    """Take them from given logits."""
    n = len(logits)
    found = [runtime.empty((n, k), np.float32), runtime.empty((n, k), np.int32), runtime.empty((n,), np.float32)]
    decoder.decoder_top_k(runtime.xp.asarray(logits), None if bias is None else runtime.xp.asarray(bias), *found)
    return host(tuple(found))  # type: ignore[no-any-return]


@pytest.mark.parametrize("k", [1, 3, 40, 257, 800])
def test_ties_come_by_rising_id(k: int, device: Any, rng: np.random.Generator) -> None:
    """Few different logits, so that a thread's words and its neighbours' are equal; both zeros are, too."""
    logits, zeros = rng.integers(-1, 2, (5, 800)).astype(np.float32), np.where(rng.random(800) < 0.5, np.float32(-0.0), np.float32(0.0))
    logits[logits == 0] = -0.0
    values, ids, _ = _best(logits, k, zeros)
    want_values, want_ids = reference_top_k(logits, k)
    assert np.array_equal(ids, want_ids)
    assert np.array_equal(values, want_values)


@pytest.mark.parametrize("k", [1, 5, 129, 400])
def test_infinities_and_nan(k: int, device: Any, rng: np.random.Generator) -> None:
    logits = normal(rng, 6, 400)
    logits[0], logits[1, :390], logits[2, 7], logits[3, 5:9] = np.nan, -np.inf, np.nan, np.inf
    logits[4] = -np.inf
    values, ids, lse = _best(logits, k)
    assert ids.min() >= 0 and ids.max() < 400
    assert all(len(set(row)) == k for row in ids.tolist())
    order = np.argsort(np.where(np.isnan(logits), np.inf, -logits), axis=1, kind="stable")[:, :k]
    for row in (1, 3, 4, 5):
        assert np.array_equal(ids[row], order[row])
        assert np.array_equal(values[row], logits[row, order[row]])
    assert not np.isnan(values[2]).any() or k == 400  # NaN comes last
    assert np.isnan(lse).tolist() == [True, False, True, True, False, False]
    assert lse[4] == -np.inf
    assert np.isfinite(lse[[1, 5]]).all()


# The parts


@pytest.mark.parametrize("dtype", ["float32", *HALF])
def test_a_factor_of_one_reads_nothing(dtype: str, device: Any, rng: np.random.Generator) -> None:
    x = normal(rng, 13, 50).astype(runtime.dtype_of(dtype))
    x[0, 0] = 0.0
    on_gpu = runtime.xp.asarray(x)
    decoder.scale_in_place(on_gpu, runtime.xp.asarray(np.float32(1)))
    assert on_gpu.get().tobytes() == x.tobytes()
    decoder.scale_in_place(on_gpu, runtime.xp.asarray(np.float32(-2.5)))
    assert np.array_equal(on_gpu.get(), (x.astype(np.float32) * np.float32(-2.5)).astype(x.dtype))


def test_the_gradient_takes_the_place_of_the_logits(device: Any, rng: np.random.Generator) -> None:
    """And what lies between the rows stays as it was."""
    wide, labels = normal(rng, 3, 40), np.array([1, -1, 36], np.int32)
    logits, bias = runtime.xp.asarray(wide), normal(rng, 37)
    row = logits[:, :37]
    losses = runtime.empty((3,), np.float32)
    cross_entropy_kernels.cross_entropy_both(row, runtime.xp.asarray(bias), runtime.xp.asarray(labels), 0.5, losses, row)
    p = np.exp(wide[:, :37].astype(np.float64) + bias)
    want = 0.5 * (p / p.sum(axis=1, keepdims=True) - (np.arange(37) == labels[:, None]))
    want[1] = 0
    assert_within(row.get(), want, 1e-6)
    assert np.array_equal(logits.get()[:, 37:], wide[:, 37:])
    assert losses.get()[1] == 0


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_berts_vocabulary_over_two_chunks(dtype: str, device: Any, rng: np.random.Generator) -> None:
    """Rows of logits that no block takes in one go, and 33 million of them."""
    n_rows = decoder.ROWS_AT_ONCE + 77
    x, weight, bias, labels = _problem(rng, dtype, n_rows, 30522, 16)
    want = _exact(x, weight, bias, labels, np.full(n_rows, 1 / n_rows))
    arrays = [runtime.xp.asarray(array) for array in (x, weight, bias)]
    loss, gradients = decoder.loss(*arrays, labels=labels, divisor=n_rows, keep=True)
    assert abs(float(loss) / want["losses"].mean() - 1) < 1e-6
    for name, got in zip(("d_x", "d_weight", "d_bias"), host(gradients), strict=True):
        error = np.linalg.norm(got.astype(np.float64) - want[name]) / np.linalg.norm(want[name])
        assert error < max(2e-6, 2 * ROUNDING[dtype]), name
    (values, ids, lse), _ = decoder.top_k(*arrays, k=5, keep=False)
    logits = x.astype(np.float64) @ weight.astype(np.float64).T + bias
    assert np.abs(np.take_along_axis(logits, ids.get().astype(np.intp), 1) - values.get()).max() < 1e-4
    assert np.abs(-np.sort(-logits, axis=1)[:, :5] - values.get()).max() < 1e-4
    assert np.abs(lse.get() - logits[np.arange(n_rows), labels] - want["losses"]).max() < 1e-4
