"""Dropout beyond the case table: rates, scale, and what a number depends on."""

import math
from typing import Any

import numpy as np
import pytest
from cases import ROWS, integers, normal
from reference import philox4x32_10

from lucid.ops.dropout import dropout
from lucid.random import Purpose, stream

Array = Any
STREAM = stream(Purpose.FEED_FORWARD_DROPOUT, 3, 17)


def _tokens(n: int) -> dict[str, Array]:
    return {"columns": np.arange(n, dtype=np.int32) % 512, "examples": (np.arange(n) // 512).astype(np.int32)}


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
def test_the_rate_is_the_probability_and_the_rest_is_scaled(p: float) -> None:
    x = np.full((1302, 768), 3, np.float32)  # a million numbers
    y = dropout(x, p=p, seed=7, stream=STREAM, **_tokens(1302))
    is_dropped = y == 0
    assert abs(is_dropped.sum() - x.size * p) < 5 * math.sqrt(x.size * p * (1 - p))
    assert (y[~is_dropped] == np.float32(3) * np.float32(1 / (1 - p))).all()
    # No row and no column is special.
    for axis in (0, 1):
        n = x.shape[axis]
        assert np.abs(is_dropped.sum(axis=axis) - n * p).max() < 6 * math.sqrt(n * p * (1 - p)) + 3


def test_a_number_is_that_of_the_python_philox(n_threads: int) -> None:
    seed, columns, examples = 0xFEDCBA9876543210, np.array([0, 511, 3], np.int32), np.array([0, 2**31 - 1, 9], np.int32)
    y = dropout(np.ones((3, 11), np.float32), p=0.5, seed=seed, stream=STREAM, columns=columns, examples=examples)
    for row in range(3):
        for channel in range(11):
            counter = (channel // 4, int(columns[row]), int(examples[row]), STREAM)
            number = philox4x32_10(counter, (seed & 0xFFFFFFFF, seed >> 32))[channel % 4]
            assert y[row, channel] == (0 if number < 2**31 else 2)


@pytest.mark.parametrize("n_rows", ROWS)
@pytest.mark.parametrize("width", [1, 31, 768])
def test_a_row_has_the_same_bits_beside_any_others(width: int, n_rows: int, rng: np.random.Generator) -> None:
    x, columns, examples = normal(rng, max(ROWS), width), integers(rng, 0, 512, max(ROWS)), integers(rng, 0, 99, max(ROWS))
    whole = dropout(x, p=0.3, seed=1, stream=STREAM, columns=columns, examples=examples)
    for begin in range(0, max(ROWS) - n_rows + 1, 13):
        rows = slice(begin, begin + n_rows)
        assert np.array_equal(dropout(x[rows], p=0.3, seed=1, stream=STREAM, columns=columns[rows], examples=examples[rows]), whole[rows])


def test_masks_differ_by_everything_that_names_them() -> None:
    x, base = np.ones((64, 64), np.float32), {"seed": 5, "stream": STREAM, **_tokens(64)}
    others = (
        {"seed": 6},
        {"seed": 5 + (1 << 32)},
        {"stream": stream(Purpose.EMBEDDING_DROPOUT, 3, 17)},
        {"stream": stream(Purpose.FEED_FORWARD_DROPOUT, 4, 17)},
        {"stream": stream(Purpose.FEED_FORWARD_DROPOUT, 3, 18)},
        {"columns": base["columns"] + np.int32(64)},
        {"examples": base["examples"] + np.int32(1)},
    )
    masks = [dropout(x, p=0.5, **{**base, **other}) > 0 for other in ({}, *others)]
    for i, a in enumerate(masks):
        for b in masks[:i]:
            assert abs((a == b).mean() - 0.5) < 5 * 0.5 / 64  # as two independent masks agree


def test_probability_zero_keeps_every_bit(rng: np.random.Generator) -> None:
    x = normal(rng, 7, 31)
    x[0, :4] = np.nan, np.inf, -0.0, 1e-45
    assert dropout(x, p=0.0, seed=1, stream=STREAM, **_tokens(7)).tobytes() == x.tobytes()


def test_what_is_dropped_is_zero_even_if_it_was_not_finite() -> None:
    x = np.full((16, 64), np.nan, np.float32)
    y = dropout(x, p=0.5, seed=1, stream=STREAM, **_tokens(16))
    assert np.array_equal(y == 0, dropout(np.ones_like(x), p=0.5, seed=1, stream=STREAM, **_tokens(16)) == 0)


def test_the_result_may_take_the_place_of_the_input(rng: np.random.Generator, kernels: Any) -> None:
    x, tokens = normal(rng, 7, 31), _tokens(7)
    want = dropout(x, p=0.3, seed=1, stream=STREAM, **tokens)
    kernels.dropout_forward(x, x, tokens["columns"], tokens["examples"], 1, STREAM, 0.3, 1)
    assert np.array_equal(x, want)
