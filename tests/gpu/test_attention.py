"""Attention of the GPU beyond the cases of test_ops.py: tensor cores, dropout, bits, hard scores, geometry."""

from typing import Any

import numpy as np
import pytest
import reference
from cases import normal
from gradients import reference as gradient_reference

from gpu.cases import ROUNDING
from gpu.emulator import DeviceArray, Emulator
from lucid._gpu import attention_mma, runtime
from lucid._gpu.attention import TILE, tiles_of
from lucid.ops.attention import AttentionDropout, attention
from lucid.random import Purpose, stream

Array = Any


# Tensor cores

HALF = ("float16", "bfloat16")
# Heads, width, lengths, queries asked (None: all), dropout. Lengths around tiles of 64 and of 32, and empty sequences.
ON_TENSOR_CORES = [
    (2, 64, (70, 1, 0, 64), None, None),
    (2, 64, (66, 131), None, 0.3),
    (2, 64, (130, 0, 3, 7), (67, 0, 0, 2), 0.1),
    (2, 32, (65, 5), None, 0.1),
    (2, 128, (33, 66), None, 0.1),
    (1, 128, (97, 3), (5, 0), None),
]


def _problem(
    rng: np.random.Generator, dtype: str, n_heads: int, head_width: int, lengths: tuple[int, ...], asked: Any, p: float | None
) -> tuple[list[Array], dict[str, Any], Array]:
    """Arrays as they are once stored, the other arguments, and a gradient."""
    width, n_keys, n_queries = n_heads * head_width, sum(lengths), sum(lengths if asked is None else asked)
    shapes = [(n_keys, 3 * width)] if asked is None else [(n_queries, width), (n_keys, 2 * width)]
    stored = runtime.dtype_of(dtype)
    starts = np.cumsum([0, *lengths]).astype(np.int32)
    params: dict[str, Any] = {"n_heads": n_heads, "key_starts": starts, "query_starts": None, "dropout": None}
    columns = np.concatenate([np.arange(n) for n in lengths]).astype(np.int32)
    query_columns = columns
    if asked is not None:
        params["query_starts"] = np.cumsum([0, *asked]).astype(np.int32)
        query_columns = rng.integers(0, 512, n_queries).astype(np.int32)
    if p is not None:
        examples = rng.integers(0, 1 << 30, len(lengths)).astype(np.int32)
        params["dropout"] = AttentionDropout(p, 2**63 + 11, stream(Purpose.ATTENTION_DROPOUT, 3, 2), query_columns, columns, examples)
    return [normal(rng, *shape).astype(stored) for shape in shapes], params, normal(rng, n_queries, width).astype(stored)


def _run(arrays: list[Array], params: dict[str, Any], d_out: Array) -> tuple[Array, ...]:
    """Forward and backward, and back on the host as float64."""
    kernel = attention.gpu()  # type: ignore[misc]
    out, saved = kernel.forward(*map(runtime.xp.asarray, arrays), **params, keep=True)
    plain, _ = kernel.forward(*map(runtime.xp.asarray, arrays), **params, keep=False)
    assert plain.get().tobytes() == out.get().tobytes()
    gradients = kernel.backward(saved, runtime.xp.asarray(d_out))
    return out.get(), *(gradient.get() for gradient in gradients)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the kernels that ran."""
    names: list[str] = []
    launch = runtime.launch

    def noting(source: str, kernel: str, *args: Any, **options: Any) -> None:
        names.append(f"{source}.{kernel}")
        launch(source, kernel, *args, **options)

    monkeypatch.setattr(runtime, "launch", noting)
    return names


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("problem", ON_TENSOR_CORES, ids=str)
@pytest.mark.parametrize("form", ["mma", "plain"])
def test_half_precision(
    form: str, problem: Any, dtype: str, device: Any, launched: list[str], rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each number within a few roundings of the sizes that were rounded; all together far better."""
    if form == "plain":
        monkeypatch.setattr(attention_mma, "WIDTHS", ())
    arrays, params, d_out = _problem(rng, dtype, *problem)
    got = _run(arrays, params, d_out)
    assert all(name.startswith("attention_mma." if form == "mma" else "attention.") for name in launched)
    exact = [array.astype(np.float64) for array in arrays]
    out, back = gradient_reference.attention(*exact, **params)
    want = (out, *(d for d in back(d_out.astype(np.float64)) if d is not None))
    u = ROUNDING[dtype]
    for name, g, w in zip(("out", "d_queries", "d_keys_values"), got, want, strict=False):
        g = g.astype(np.float64)
        assert np.isfinite(g).all()
        if g.size:
            assert np.linalg.norm(g - w) < u * np.linalg.norm(w), name
            assert np.abs(g - w).max() < 3 * u * max(1, np.abs(w).max()), name


def test_what_tensor_cores_cannot_do_goes_to_the_plain_form(device: Any, launched: list[str], rng: np.random.Generator) -> None:
    """Another head width, rows at odd places, keys that are not counted from 0: the same values within a rounding."""
    arrays, params, _ = _problem(rng, "float16", 2, 64, (9, 4), None, 0.2)
    (qkv,) = arrays
    forward = attention.gpu().forward  # type: ignore[misc]
    want = forward(runtime.xp.asarray(qkv), **params, keep=False)[0].get().astype(np.float32)
    flat = runtime.xp.empty(qkv.size + 1, qkv.dtype)
    flat[1:] = runtime.xp.asarray(qkv).reshape(-1)
    odd = forward(flat[1:].reshape(qkv.shape), **params, keep=False)[0].get()
    drop = params["dropout"]
    shifted = AttentionDropout(drop.p, drop.seed, drop.stream, drop.query_columns, drop.key_columns + np.int32(4), drop.examples)
    moved = forward(runtime.xp.asarray(qkv), **{**params, "dropout": shifted}, keep=False)[0].get()
    narrow = forward(runtime.xp.asarray(qkv), **{**params, "n_heads": 8}, keep=False)[0].get()
    names = [name.split("<")[0] for name in launched]
    assert names == ["attention_mma.attention_forward", *3 * ["attention.attention_forward"]]
    assert np.abs(odd.astype(np.float32) - want).max() < 4e-3
    assert np.abs(moved.astype(np.float32) - want).max() > 0.1
    assert np.isfinite(narrow.astype(np.float32)).all()


@pytest.mark.parametrize("dtype", ["float32", *HALF])
def test_the_same_pairs_are_dropped_as_on_the_cpu(dtype: str, emulated: Emulator, rng: np.random.Generator) -> None:
    """Values that are unit vectors show which: in every type, and in any order of threads."""
    n, n_heads = 64, 2
    qkv = np.zeros((2 * n, 3, n_heads, n), np.float32)
    qkv[:, 2] = np.tile(np.eye(n), (2, 1))[:, None]
    qkv = qkv.reshape(2 * n, -1)
    _, params, _ = _problem(rng, "float32", n_heads, n, (n, n), None, 0.3)
    on_cpu = attention(qkv, **params)
    for emulated.is_reversed in (False, True):
        got = attention.gpu().forward(runtime.xp.asarray(qkv.astype(runtime.dtype_of(dtype))), **params, keep=False)[0].get()  # type: ignore[misc]
        assert np.array_equal(got != 0, on_cpu != 0)
        assert 0.65 < (on_cpu != 0).mean() * n < 0.75 * n


# Bits

BOTH_FORMS = pytest.mark.parametrize("dtype", ["float32", "bfloat16"])


@BOTH_FORMS
def test_no_result_depends_on_the_order_of_threads(dtype: str, emulated: Emulator, rng: np.random.Generator) -> None:
    problem = _problem(rng, dtype, 1, 32, (200, 5), None, 0.1)  # four tiles: two pairs of places for them in shared memory
    one = _run(*problem)
    emulated.is_reversed = True
    assert [x.tobytes() for x in _run(*problem)] == [x.tobytes() for x in one]


@BOTH_FORMS
def test_a_sequence_has_the_same_bits_alone_and_in_a_batch(dtype: str, device: Any, rng: np.random.Generator) -> None:
    lengths = (3, 70, 65)
    (qkv,), params, d_out = _problem(rng, dtype, 2, 32, lengths, None, 0.2)
    starts, drop = params["key_starts"], params["dropout"]
    whole = _run([qkv], params, d_out)
    for b in range(len(lengths)):
        rows = slice(starts[b], starts[b + 1])
        columns = drop.key_columns[rows]
        alone = {
            "n_heads": 2,
            "key_starts": np.array([0, lengths[b]], np.int32),
            "dropout": AttentionDropout(drop.p, drop.seed, drop.stream, columns, columns, drop.examples[b : b + 1]),
        }
        assert [x.tobytes() for x in _run([qkv[rows]], alone, d_out[rows])] == [x[rows].tobytes() for x in whole]


@BOTH_FORMS
def test_queries_that_are_asked_for_have_the_bits_of_all(dtype: str, device: Any, rng: np.random.Generator) -> None:
    lengths, asked = (3, 130, 40), (1, 66, 0)
    (qkv,), params, _ = _problem(rng, dtype, 2, 32, lengths, None, 0.2)
    starts, drop = params["key_starts"], params["dropout"]
    forward = attention.gpu().forward  # type: ignore[misc]
    whole = forward(runtime.xp.asarray(qkv), **params, keep=False)[0].get()
    rows = np.concatenate([np.sort(rng.permutation(np.arange(starts[b], starts[b + 1]))[:n]) for b, n in enumerate(asked)])
    some = AttentionDropout(drop.p, drop.seed, drop.stream, drop.query_columns[rows], drop.key_columns, drop.examples)
    arrays = (runtime.xp.asarray(x) for x in (np.ascontiguousarray(qkv[rows, :64]), np.ascontiguousarray(qkv[:, 64:])))
    query_starts = np.cumsum([0, *asked]).astype(np.int32)
    got = forward(*arrays, n_heads=2, key_starts=starts, query_starts=query_starts, dropout=some, keep=False)[0].get()
    assert got.tobytes() == whole[rows].tobytes()


@BOTH_FORMS
def test_neighbours_that_are_not_finite_do_not_matter(dtype: str, device: Any, rng: np.random.Generator) -> None:
    (qkv,), params, d_out = _problem(rng, dtype, 2, 32, (5, 66, 6), None, None)
    whole = _run([qkv], params, d_out)
    qkv[5:71], d_out[5:71] = np.nan, np.nan
    is_clean = np.r_[0:5, 71:77]
    for got, want in zip(_run([qkv], params, d_out), whole, strict=True):
        assert got[is_clean].tobytes() == want[is_clean].tobytes()
        assert np.isnan(got[5:71].astype(np.float32)).all()


# Values


@BOTH_FORMS
def test_scores_far_apart(dtype: str, device: Any, rng: np.random.Generator) -> None:
    """Later tiles of keys raise the maximum, by so much that exp of a raw score would overflow."""
    n_keys, width = 150, 32
    q, keys_values = np.zeros((4, width)), normal(rng, n_keys, 2 * width).astype(np.float64)
    q[:, 0] = [1, 0.5, -1, 0]
    keys_values[:, 0] = np.linspace(-900, 900, n_keys) * np.sqrt(width)
    stored = runtime.dtype_of(dtype)
    arrays = [x.astype(stored) for x in (q, keys_values)]
    params = {"n_heads": 1, "key_starts": np.array([0, n_keys], np.int32), "query_starts": np.array([0, 4], np.int32)}
    got = attention.gpu().forward(*map(runtime.xp.asarray, arrays), **params, keep=False)[0].get().astype(np.float64)  # type: ignore[misc]
    want = gradient_reference.attention(*(x.astype(np.float64) for x in arrays), **params)[0]
    assert np.abs(got - want).max() < (1e-3 if dtype == "float32" else 0.02)  # scores of a thousand have few digits left


@BOTH_FORMS
def test_scores_far_below_zero(dtype: str, device: Any, rng: np.random.Generator) -> None:
    """exp(-lse) would overflow where a tile has no key, or no query."""
    (qkv,), params, d_out = _problem(rng, dtype, 1, 32, (5, 66), None, None)
    qkv[:, 0], qkv[:, 32] = 40, -40
    got = _run([qkv], params, d_out)
    out, back = gradient_reference.attention(qkv.astype(np.float64), **params)
    for g, w in zip(got, (out, back(d_out.astype(np.float64))[0]), strict=True):
        assert np.linalg.norm(g - w) < ROUNDING["bfloat16"] * np.linalg.norm(w)


@pytest.mark.parametrize("dtype", ["float32", *HALF])
def test_the_log_sum_exp_is_left_for_backward(dtype: str, device: Any, rng: np.random.Generator) -> None:
    (qkv,), params, _ = _problem(rng, dtype, 2, 64, (5, 0, 70), None, None)
    _, (*_, lse, _, _) = attention.gpu().forward(runtime.xp.asarray(qkv), **params, keep=True)  # type: ignore[misc]
    want = np.full((75, 2), np.nan)
    for head in reference.attention_heads(qkv.astype(np.float64), None, 2, params["key_starts"], None, None):
        want[head.rows, head.columns.start // 64] = reference.log_sum_exp(head.scores)
    assert lse.dtype == np.float32
    assert np.abs(lse.get() - want).max() < 4e-6


def test_the_gradient_of_the_key_bias_is_zero(device: Any, rng: np.random.Generator) -> None:
    """Up to rounding: it is a sum of rows of dS, which each sum to 0."""
    (qkv,), params, d_out = _problem(rng, "float32", 2, 32, (130, 40), None, 0.1)
    d_q, d_k, _ = np.split(_run([qkv], params, d_out)[1].astype(np.float64).sum(axis=0), 3)
    assert np.abs(d_k).max() < 1e-6 * np.abs(d_q).max()


def test_starts_on_the_gpu_are_refused(emulated: Emulator, rng: np.random.Generator) -> None:
    """The grid is made from them: the host would have to wait."""
    (qkv,), params, _ = _problem(rng, "float32", 1, 32, (5, 3), None, None)
    with pytest.raises(TypeError, match="attention: key_starts must be a NumPy array"):
        attention(runtime.xp.asarray(qkv), **{**params, "key_starts": runtime.xp.asarray(params["key_starts"])})


def test_the_host_waits_for_nothing(emulated: Emulator, rng: np.random.Generator) -> None:
    arrays, params, d_out = _problem(rng, "bfloat16", 1, 32, (5, 3), None, 0.1)
    placed, d_out = [runtime.xp.asarray(array) for array in arrays], runtime.xp.asarray(d_out)
    before = DeviceArray.n_reads
    _, saved = attention.gpu().forward(*placed, **params, keep=True)  # type: ignore[misc]
    attention.gpu().backward(saved, d_out)  # type: ignore[misc]
    assert DeviceArray.n_reads == before


# Geometry


def _tiles(lengths: Any, others: Any) -> Array:
    return tiles_of(*(np.cumsum([0, *n]).astype(np.int32).tobytes() for n in (lengths, others)))


@pytest.mark.parametrize("lengths", [(), (0, 0), (1,), (64,), (65, 0, 3), (128, 200, 1, 63, 64)])
def test_tiles_hold_every_row_once_and_one_sequence_each(lengths: tuple[int, ...]) -> None:
    tiles, starts = _tiles(lengths, lengths), np.cumsum([0, *lengths])
    assert tiles.dtype == np.int32
    assert tiles.flags.c_contiguous
    rows = [row for b, first in tiles for row in range(first, min(first + TILE, starts[b + 1]))]
    assert sorted(rows) == list(range(sum(lengths)))
    assert all((first - starts[b]) % TILE == 0 for b, first in tiles)


def test_the_longest_walks_come_first() -> None:
    assert _tiles((65, 3, 70), (5, 900, 30)).tolist() == [[1, 65], [2, 68], [2, 132], [0, 0], [0, 64]]


@pytest.mark.parametrize("head_width", attention_mma.WIDTHS)
def test_two_blocks_share_the_memory_of_a_multiprocessor(head_width: int) -> None:
    """Of an A100: 164 KB, and a block at most 163; each block takes 1 KB more than it asks for."""
    for n_bytes in (attention_mma.forward_bytes(head_width), attention_mma.backward_keys_bytes(head_width)):
        assert 2 * (n_bytes + 1024) <= 164 << 10


def test_counted_columns() -> None:
    starts = np.array([0, 2, 2, 5], np.int32)
    assert attention_mma.is_counted(np.array([0, 1, 0, 1, 2], np.int32), starts)
    assert not attention_mma.is_counted(np.array([0, 1, 2, 3, 4], np.int32), starts)
