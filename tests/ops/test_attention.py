"""Attention beyond the case table: a sequence alone and packed, queries that are asked for, hard scores, dropout, log-sum-exp."""

import math
import subprocess
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import reference
from cases import assert_within, normal, starts_of
from reference import U, attention_bound

from lucid.ops.attention import AttentionDropout, attention
from lucid.random import Purpose, stream

Array = Any
HEADS = ((3, 26), (12, 64), (1, 1), (2, 25))  # number, width
# Lengths around the blocks of the kernel: 24 keys of a panel, 32 queries, 192 keys, 256 queries.
LENGTHS = (1, 5, 6, 7, 24, 25, 33, 129, 191, 192, 193, 257, 385)


def _qkv(rng: np.random.Generator, n_heads: int, head_width: int, lengths: tuple[int, ...]) -> Array:
    return normal(rng, sum(lengths), 3 * n_heads * head_width)


def _dropout(lengths: tuple[int, ...], p: float = 0.25, first_example: int = 40) -> AttentionDropout:
    columns = np.concatenate([np.arange(n) for n in lengths]).astype(np.int32)
    examples = np.arange(first_example, first_example + len(lengths), dtype=np.int32)
    return AttentionDropout(p, 12345678901234567890, stream(Purpose.ATTENTION_DROPOUT, 2, 9), columns, columns, examples)


def _rows_of(drop: AttentionDropout | None, rows: slice, sequence: int) -> AttentionDropout | None:
    if drop is None:
        return None
    examples = drop.examples[sequence : sequence + 1]
    return AttentionDropout(drop.p, drop.seed, drop.stream, drop.query_columns[rows], drop.key_columns[rows], examples)


# Bits


@pytest.mark.parametrize("p", [None, 0.25])
@pytest.mark.parametrize(("n_heads", "head_width"), HEADS)
def test_a_sequence_has_the_same_bits_alone_and_in_any_batch(
    n_heads: int, head_width: int, p: float | None, rng: np.random.Generator
) -> None:
    lengths = LENGTHS if n_heads < 12 else (1, 6, 129, 7, 200)
    qkv, starts, drop = _qkv(rng, n_heads, head_width, lengths), starts_of(lengths), None if p is None else _dropout(lengths, p)
    whole = attention(qkv, n_heads=n_heads, key_starts=starts, dropout=drop)
    for b, n in enumerate(lengths):
        rows = slice(starts[b], starts[b + 1])
        alone = attention(qkv[rows], n_heads=n_heads, key_starts=starts_of((n,)), dropout=_rows_of(drop, rows, b))
        assert np.array_equal(alone, whole[rows]), f"sequence {b} of length {n}"
    for _ in range(5):  # some of the sequences, in another order, with an empty one among them
        chosen = rng.permutation(len(lengths))[: rng.integers(1, len(lengths))]
        rows_of_batch = np.concatenate([np.arange(starts[b], starts[b + 1]) for b in chosen])
        batch_lengths = (*(lengths[b] for b in chosen), 0)
        batch_drop = None
        if drop is not None:
            columns, examples = drop.query_columns[rows_of_batch], np.append(drop.examples[chosen], 7).astype(np.int32)
            batch_drop = AttentionDropout(drop.p, drop.seed, drop.stream, columns, columns, examples)
        batch = attention(qkv[rows_of_batch], n_heads=n_heads, key_starts=starts_of(batch_lengths), dropout=batch_drop)
        assert np.array_equal(batch, whole[rows_of_batch])


@pytest.mark.parametrize("p", [None, 0.25])
@pytest.mark.parametrize(("n_heads", "head_width"), HEADS)
def test_queries_that_are_asked_for_have_the_bits_of_all(n_heads: int, head_width: int, p: float | None, rng: np.random.Generator) -> None:
    lengths = (7, 300, 1, 129)
    width, qkv, starts = n_heads * head_width, _qkv(rng, n_heads, head_width, lengths), starts_of(lengths)
    drop = None if p is None else _dropout(lengths, p)
    whole = attention(qkv, n_heads=n_heads, key_starts=starts, dropout=drop)
    for n_asked in [(1, 1, 1, 1), (0, 5, 0, 6), (7, 300, 1, 129), (3, 34, 0, 129), (0, 0, 1, 0)]:
        chosen = [np.sort(rng.permutation(np.arange(starts[b], starts[b + 1]))[:n]) for b, n in enumerate(n_asked)]
        rows = np.concatenate(chosen).astype(np.intp)
        some = drop and AttentionDropout(drop.p, drop.seed, drop.stream, drop.query_columns[rows], drop.key_columns, drop.examples)
        got = attention(
            qkv[rows, :width], qkv[:, width:], n_heads=n_heads, key_starts=starts, query_starts=starts_of(n_asked), dropout=some
        )
        assert np.array_equal(got, whole[rows])


def test_neighbours_that_are_not_finite_do_not_matter(rng: np.random.Generator) -> None:
    lengths, width = (5, 30, 6), 2 * 13
    qkv, starts = _qkv(rng, 2, 13, lengths), starts_of(lengths)
    whole = attention(qkv, n_heads=2, key_starts=starts)
    qkv[5:35] = np.nan
    got = attention(qkv, n_heads=2, key_starts=starts)
    is_clean = np.r_[0:5, 35:41]
    assert np.array_equal(got[is_clean], whole[is_clean])
    assert np.isnan(got[5:35]).all()
    assert got.shape == (41, width)


# Values


@pytest.mark.parametrize("order", ["rising", "falling", "peak in the last block"])
def test_scores_far_apart(order: str, rng: np.random.Generator) -> None:
    """Later blocks of keys raise the maximum, by so much that exp of a raw score would overflow."""
    n_keys, width = 500, 16
    height = {
        "rising": np.linspace(-900, 900, n_keys),
        "falling": np.linspace(900, -900, n_keys),
        "peak in the last block": np.zeros(n_keys),
    }
    heights = height[order].copy()
    heights[-3] += 300 if order == "peak in the last block" else 0
    q = np.zeros((4, width), np.float32)
    q[:, 0] = [1, 0.5, -1, 0]
    keys_values = normal(rng, n_keys, 2 * width)
    keys_values[:, 0] = heights * math.sqrt(width)
    arguments = {"n_heads": 1, "key_starts": starts_of((n_keys,)), "query_starts": starts_of((4,))}
    got = attention(q, keys_values, **arguments)
    assert_within(got, reference.attention(q, keys_values, **arguments), attention_bound(q, keys_values, **arguments))


def test_scores_of_which_few_count(rng: np.random.Generator) -> None:
    qkv, arguments = 8 * _qkv(rng, 4, 16, (200, 30)), {"n_heads": 4, "key_starts": starts_of((200, 30))}
    assert_within(attention(qkv, **arguments), reference.attention(qkv, **arguments), attention_bound(qkv, **arguments))


@pytest.mark.parametrize("n_keys", [1, 2, 64, 192, 256, 512])
def test_equal_scores_average_the_values(n_keys: int, rng: np.random.Generator) -> None:
    keys_values = normal(rng, n_keys, 2 * 32)
    keys_values[:, :32] = keys_values[0, :32]
    q = normal(rng, 3, 32)
    got = attention(q, keys_values, n_heads=2, key_starts=starts_of((n_keys,)), query_starts=starts_of((3,)))
    mean = keys_values[:, 32:].astype(np.float64).mean(axis=0)
    assert_within(got, np.broadcast_to(mean, (3, 32)), 3e-7 + 0 * got)


def test_one_key_returns_its_value(rng: np.random.Generator) -> None:
    qkv = normal(rng, 9, 3 * 39)
    got = attention(qkv, n_heads=3, key_starts=np.arange(10, dtype=np.int32))
    assert_within(got, qkv[:, 78:], 3 * U * np.abs(qkv[:, 78:]))


@pytest.mark.parametrize("n_heads", [1, 3])
def test_heads_do_not_mix(n_heads: int, rng: np.random.Generator) -> None:
    qkv = _qkv(rng, n_heads, 13, (40,))
    q, k, v = np.split(qkv, 3, axis=1)
    whole = attention(qkv, n_heads=n_heads, key_starts=starts_of((40,)))
    for head in range(n_heads):
        columns = slice(13 * head, 13 * (head + 1))
        alone = attention(np.hstack([q[:, columns], k[:, columns], v[:, columns]]), n_heads=1, key_starts=starts_of((40,)))
        assert np.array_equal(alone, whole[:, columns])


@pytest.mark.parametrize(("n_heads", "head_width"), HEADS)
def test_the_kernel_leaves_the_log_sum_exp_for_backward(
    n_heads: int, head_width: int, kernels: ModuleType, rng: np.random.Generator
) -> None:
    lengths = (5, 0, 200, 33)
    qkv, starts = _qkv(rng, n_heads, head_width, lengths), starts_of(lengths)
    q, k, v = np.split(qkv, 3, axis=1)
    out, without, lse = np.empty_like(q), np.empty_like(q), np.empty((len(q), n_heads), np.float32)
    for where, saved in ((out, lse), (without, None)):
        kernels.attention_forward(q, k, v, starts, starts, n_heads, 1 / math.sqrt(head_width), where, saved, None, None, None, 0, 0, 0.0, 1)
    assert np.array_equal(out, without)
    want = np.full(lse.shape, np.nan)
    for head in reference.attention_heads(qkv, None, n_heads, starts, None, None):
        want[head.rows, head.columns.start // head_width] = reference.log_sum_exp(head.scores)
    assert_within(lse, want, 2e-6 * np.maximum(1, np.abs(want)))


# Dropout


def test_without_dropout_and_with_probability_zero_are_the_same_bits(rng: np.random.Generator) -> None:
    qkv = _qkv(rng, 2, 13, (40,))
    bare = attention(qkv, n_heads=2, key_starts=starts_of((40,)))
    assert np.array_equal(attention(qkv, n_heads=2, key_starts=starts_of((40,)), dropout=_dropout((40,), 0.0)), bare)


def _dropped(lengths: tuple[int, ...], n_heads: int, drop: AttentionDropout) -> list[Array]:
    """The weights that dropout leaves of one sequence after another, [heads, queries, keys]: values that are unit vectors show them."""
    weights, starts = [], starts_of(lengths)
    for b, n in enumerate(lengths):
        qkv = np.zeros((n, n_heads, 3, n), np.float32)
        qkv[:, :, 2] = np.eye(n)[:, None]
        rows = slice(starts[b], starts[b + 1])
        packed = np.ascontiguousarray(qkv.transpose(0, 2, 1, 3)).reshape(n, -1)
        out = attention(packed, n_heads=n_heads, key_starts=starts_of((n,)), dropout=_rows_of(drop, rows, b))
        weights.append(out.reshape(n, n_heads, n).transpose(1, 0, 2))
    return weights


def test_dropped_weights_are_those_of_the_python_philox() -> None:
    lengths, drop = (11, 37), _dropout((11, 37))
    for b, weights in enumerate(_dropped(lengths, 3, drop)):
        for head in range(3):
            for query in range(0, lengths[b], 5):
                for key in range(lengths[b]):
                    counter = ((head * 65536 + key) // 4, query, int(drop.examples[b]), drop.stream)
                    block = reference.philox4x32_10(counter, (drop.seed & 0xFFFFFFFF, drop.seed >> 32))
                    is_kept = block[(head * 65536 + key) % 4] >= int(drop.p * 2**32)
                    assert (weights[head, query, key] > 0) == is_kept
                    assert weights[head, query, key] == pytest.approx(is_kept / lengths[b] / (1 - drop.p), rel=1e-6)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_the_rate_of_dropout_is_its_probability(p: float) -> None:
    weights = np.concatenate([w.reshape(-1) for w in _dropped((150, 150), 4, _dropout((150, 150), p))])
    n_dropped, n = (weights == 0).sum(), weights.size
    assert abs(n_dropped - n * p) < 5 * math.sqrt(n * p * (1 - p))


def test_dropout_differs_by_seed_stream_and_example(rng: np.random.Generator) -> None:
    lengths, drop = (40,), _dropout((40,))
    masks = [
        _dropped(lengths, 2, d)[0] > 0
        for d in (
            drop,
            _dropout((40,), first_example=41),
            AttentionDropout(drop.p, drop.seed + (1 << 32), drop.stream, drop.query_columns, drop.key_columns, drop.examples),
            AttentionDropout(drop.p, drop.seed, drop.stream + (1 << 16), drop.query_columns, drop.key_columns, drop.examples),
        )
    ]
    masks = [mask[head] for mask in masks for head in range(2)]
    for i, a in enumerate(masks):
        for b in masks[:i]:
            assert 0.5 < (a == b).mean() < 0.75  # independent masks of rate 1/4 agree in 10 places of 16


# What is refused


_WRAPPED_STARTS = """
import numpy as np
from lucid.ops.attention import attention
starts = np.arange(1025) * (1 << 22)   # once round all int32: every difference, taken in int32, is positive
starts[-1] += 5
try:
    attention(np.zeros((1024, 3), np.float32), np.zeros((5, 6), np.float32), n_heads=1, key_starts=starts.astype(np.int32),
              query_starts=np.arange(1025, dtype=np.int32))
except ValueError as error:
    print(error)
"""


def test_starts_that_wrap_around_int32_are_refused() -> None:
    done = subprocess.run([sys.executable, "-c", _WRAPPED_STARTS], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"exit status {done.returncode}: {done.stderr[-300:]}"
    assert "key_starts" in done.stdout


def test_heads_of_no_width_give_no_columns() -> None:
    assert attention(np.zeros((3, 0), np.float32), n_heads=2, key_starts=starts_of((3,))).shape == (3, 0)
