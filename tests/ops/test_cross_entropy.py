"""Cross-entropy beyond the case table: bits of a row, labels that do not count, logits that are hard."""

from types import ModuleType
from typing import Any

import numpy as np
import pytest
from cases import ROWS, assert_within, integers, normal
from reference import cross_entropy as reference
from reference import cross_entropy_bound

from lucid.ops.cross_entropy import cross_entropy

Array = Any


@pytest.mark.parametrize("n_rows", ROWS)
@pytest.mark.parametrize("n_words", [1, 385, 1021])
def test_a_row_has_the_same_bits_beside_any_others(n_words: int, n_rows: int, rng: np.random.Generator) -> None:
    logits, labels = normal(rng, max(ROWS), n_words, scale=3), integers(rng, 0, n_words, max(ROWS))
    whole = cross_entropy(logits, labels=labels)
    for begin in range(0, max(ROWS) - n_rows + 1, 13):
        rows = slice(begin, begin + n_rows)
        assert np.array_equal(cross_entropy(logits[rows], labels=labels[rows]), whole[rows])


@pytest.mark.parametrize("ignore_index", [-100, -1, 0, 7, 1 << 40])
def test_labels_that_are_ignored_lose_nothing(ignore_index: int, rng: np.random.Generator) -> None:
    logits, labels = normal(rng, 40, 31), integers(rng, 8, 31, 40)
    whole = cross_entropy(logits, labels=labels)
    is_ignored = rng.random(40) < 0.5
    if ignore_index < 1 << 31:
        labels[is_ignored] = ignore_index
        logits[is_ignored] = np.nan
    else:
        is_ignored[:] = False
    got = cross_entropy(logits, labels=labels, ignore_index=ignore_index)
    assert np.array_equal(got, np.where(is_ignored, 0, whole))


@pytest.mark.parametrize("n_words", [2, 384, 1000])
def test_equal_logits_cost_the_logarithm_of_their_number(n_words: int) -> None:
    logits = np.full((3, n_words), 5, np.float32)
    got = cross_entropy(logits, labels=np.array([0, 1, n_words - 1], np.int32))
    assert np.allclose(got, np.log(n_words), rtol=2e-7, atol=0)


@pytest.mark.parametrize("shift", [-1e4, 0.0, 1e4])
def test_the_largest_logit_may_stand_in_any_block(shift: float, rng: np.random.Generator) -> None:
    logits = normal(rng, 6, 1021)
    logits[np.arange(6), [0, 383, 384, 500, 767, 1020]] = 2000  # whose exp, beside the others', no float64 holds
    logits += np.float32(shift)
    labels = np.array([0, 0, 0, 384, 500, 1020], np.int32)
    assert_within(cross_entropy(logits, labels=labels), reference(logits, labels=labels), cross_entropy_bound(logits, labels=labels))


@pytest.mark.parametrize("excluded", [slice(3, 9), slice(0, 384), slice(384, 768), slice(7, 1021)])
def test_words_excluded_by_minus_infinity_do_not_count(excluded: slice, rng: np.random.Generator) -> None:
    """Whole blocks of them, too."""
    logits, labels = normal(rng, 4, 1021), np.full(4, 1000, np.int32)
    if excluded.stop > 1000:
        labels[:] = 3
    logits[:, excluded] = -np.inf
    rest = np.delete(logits, excluded, axis=1)
    moved = np.array([int(np.delete(np.arange(1021), excluded).searchsorted(label)) for label in labels], np.int32)
    assert_within(cross_entropy(logits, labels=labels), reference(rest, labels=moved), cross_entropy_bound(rest, labels=moved))


@pytest.mark.parametrize("bits", [0x7FC00000, 0xFFC00000, 0x7FC00001, 0x7F800001], ids=hex)
@pytest.mark.parametrize("at", [0, 17, 400, 799])
def test_a_nan_among_the_logits_makes_the_loss_nan(at: int, bits: int, rng: np.random.Generator) -> None:
    logits = normal(rng, 3, 800)
    logits[1].view(np.uint32)[at] = bits
    assert np.isnan(cross_entropy(logits, labels=np.array([5, 5, 5], np.int32))).tolist() == [False, True, False]


@pytest.mark.parametrize("first_word", [1, 383, 385, -1])
def test_sums_of_words_begin_where_a_block_does(first_word: int, kernels: ModuleType, rng: np.random.Generator) -> None:
    """Between, they would go to another block's place."""
    sums, label_logits = np.zeros((4, 5, 2), np.float32), np.zeros(4, np.float32)
    with pytest.raises(ValueError, match=rf"first_word must be a multiple of 384, not {first_word}"):
        kernels.logit_sums(normal(rng, 4, 31), np.zeros(4, np.int32), first_word, sums, label_logits, 1)
    assert not sums.any() and not label_logits.any()
