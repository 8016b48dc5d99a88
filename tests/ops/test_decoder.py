"""The product with the vocabulary beyond the case table: bits, memory, ties, any k."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cases import ROWS, integers, normal
from reference import top_k as reference_top_k

from lucid.ops.cross_entropy import cross_entropy
from lucid.ops.decoder import decoder_cross_entropy, decoder_top_k
from lucid.ops.linear import PackedWeight, linear

Array = Any
SHAPES = ((31, 7), (383, 26), (384, 33), (385, 257), (1021, 768))  # V, C


def _problem(rng: np.random.Generator, n_words: int, width: int, n_rows: int = max(ROWS)) -> tuple[Array, PackedWeight, Array, Array]:
    weight = PackedWeight.pack(normal(rng, n_words, width))
    return normal(rng, n_rows, width), weight, normal(rng, n_words), integers(rng, 0, n_words, n_rows)


# Bits


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize(("n_words", "width"), SHAPES)
def test_the_loss_has_the_bits_of_cross_entropy_of_linear(n_words: int, width: int, has_bias: bool, rng: np.random.Generator) -> None:
    x, weight, bias, labels = _problem(rng, n_words, width)
    bias = bias if has_bias else None
    want = cross_entropy(linear(x, weight, bias), labels=labels)
    assert np.array_equal(decoder_cross_entropy(x, weight, bias, labels=labels), want)


@pytest.mark.parametrize("n_rows", ROWS)
@pytest.mark.parametrize(("n_words", "width"), SHAPES)
def test_a_row_has_the_same_bits_beside_any_others(n_words: int, width: int, n_rows: int, rng: np.random.Generator) -> None:
    x, weight, bias, labels = _problem(rng, n_words, width)
    losses, best = decoder_cross_entropy(x, weight, bias, labels=labels), decoder_top_k(x, weight, bias, k=5)
    for begin in range(0, max(ROWS) - n_rows + 1, 31):
        rows = slice(begin, begin + n_rows)
        assert np.array_equal(decoder_cross_entropy(x[rows], weight, bias, labels=labels[rows]), losses[rows])
        for got, want in zip(decoder_top_k(x[rows], weight, bias, k=5), best, strict=True):
            assert np.array_equal(got, want[rows])


@pytest.mark.parametrize("k", [1, 2, 5, 127, 128, 129, 383, 384, 385, 1020, 1021])
def test_the_k_best_are_those_of_the_logits(k: int, rng: np.random.Generator, n_threads: int) -> None:
    x, weight, bias, _ = _problem(rng, 1021, 26, n_rows=19)
    logits = linear(x, weight, bias)
    values, ids, lse = decoder_top_k(x, weight, bias, k=k)
    want_values, want_ids = reference_top_k(logits, k)
    assert np.array_equal(ids, want_ids)
    assert np.array_equal(values, want_values)
    # Its log-sum-exp is what cross_entropy takes the label's logit from.
    nearest = cross_entropy(logits, labels=want_ids[:, 0].astype(np.int32))
    assert np.allclose(lse - want_values[:, 0], nearest, rtol=0, atol=1e-6 + np.abs(lse).max() * 2e-7)


def test_probabilities_sum_to_one(rng: np.random.Generator) -> None:
    x, weight, bias, _ = _problem(rng, 1021, 26, n_rows=7)
    values, _, lse = decoder_top_k(x, weight, bias, k=1021)
    assert np.allclose(np.exp(values.astype(np.float64) - lse[:, None]).sum(axis=1), 1, rtol=0, atol=3e-6)


@pytest.mark.parametrize("k", [1, 3, 40, 128, 129, 800])
def test_ties_come_by_rising_id(k: int, rng: np.random.Generator, for_each_thread_count: Callable[..., list[Any]]) -> None:
    """Few different logits, so that ties cross the blocks of words that threads work on, and the k-th place."""
    x, weight = rng.integers(-1, 2, (11, 3)).astype(np.float32), rng.integers(-1, 2, (800, 3)).astype(np.float32)
    want_values, want_ids = reference_top_k(linear(x, weight), k)
    for values, ids, _ in for_each_thread_count(lambda: decoder_top_k(x, weight, k=k)):
        assert np.array_equal(ids, want_ids)
        assert np.array_equal(values, want_values)


@pytest.mark.parametrize("k", [1, 5, 130])
def test_words_excluded_by_minus_infinity_come_last(k: int, rng: np.random.Generator) -> None:
    """A bias of minus infinity takes a word, or a whole block of them, out of the running."""
    x, weight, bias, labels = _problem(rng, 1021, 26, n_rows=6)
    bias[:900] = -np.inf
    values, ids, lse = decoder_top_k(x, weight, bias, k=k)
    want_values, want_ids = reference_top_k(linear(x, weight, bias), k)
    assert np.array_equal(ids, want_ids)
    assert np.array_equal(values, want_values)
    assert np.isfinite(lse).all()
    assert np.isfinite(decoder_cross_entropy(x, weight, bias, labels=np.maximum(labels, 900))).all()


@pytest.mark.parametrize("k", [1, 5, 129])
def test_ids_stay_within_the_vocabulary_whatever_the_logits(k: int, rng: np.random.Generator) -> None:
    x, weight, bias, _ = _problem(rng, 400, 5, n_rows=7)
    x[0], x[1, 2], x[2, 3], x[3] = np.nan, np.inf, -np.inf, 0
    bias[rng.random(400) < 0.3] = np.nan
    _, ids, _ = decoder_top_k(x, weight, bias, k=k)
    assert ids.min() >= 0
    assert ids.max() < 400
    assert all(len(set(row)) == k for row in ids.tolist())


# Memory


_PEAK = """
import sys
import numpy as np
from lucid import threads
from lucid.ops.cross_entropy import cross_entropy
from lucid.ops.decoder import decoder_cross_entropy, decoder_top_k
from lucid.ops.linear import PackedWeight, linear

threads.set_num_threads(2)
P, V, C = 512, 30522, 64
rng = np.random.default_rng(0)
x, bias, labels = rng.standard_normal((P, C), np.float32), np.zeros(V, np.float32), rng.integers(0, V, P).astype(np.int32)
weight = PackedWeight.pack(rng.standard_normal((V, C), np.float32))

def status(name):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

def run(rows):
    if sys.argv[1] == "fused":
        decoder_cross_entropy(x[:rows], weight, bias, labels=labels[:rows])
    elif sys.argv[1] == "top_k":
        decoder_top_k(x[:rows], weight, bias, k=10)
    else:
        cross_entropy(linear(x[:rows], weight, bias), labels=labels[:rows])

run(2)  # threads and code are there
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak starts anew from what is resident now
before = status("VmRSS")
run(P)
print((status("VmHWM") - before) / (P * V * 4))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(("what", "least", "most"), [("fused", 0, 0.25), ("top_k", 0, 0.5), ("separate", 0.95, 3)])
def test_logits_are_never_all_in_memory(what: str, least: float, most: float) -> None:
    """Peak extra memory over that of all logits, P * V * 4 bytes. Made separately they do show: the measure is no blind one."""
    done = subprocess.run([sys.executable, "-c", _PEAK, what], capture_output=True, text=True, timeout=120)
    if "clear_refs" in done.stderr:
        pytest.skip(f"the peak cannot be reset here: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    assert least <= float(done.stdout) < most
