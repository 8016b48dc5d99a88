"""Masking beyond the case table: the Python reference bit for bit, rates, special tokens, edges of the probabilities."""

import math
from typing import Any

import numpy as np
import pytest
import reference
from cases import integers

from lucid.ops.mlm_mask import mlm_mask

Array = Any
SPECIAL = np.array([0, 100, 101, 102, 103], np.int32)
VOCABULARY = {"special_ids": SPECIAL, "vocab_size": 30522, "mask_token_id": 103}


def _tokens(n: int, vocab_size: int = 30522) -> tuple[Array, dict[str, Array]]:
    """Texts of 512 tokens; the special ids are marked as such."""
    ids = np.random.default_rng(3).integers(0, vocab_size, n)
    tokens = {"columns": np.arange(n, dtype=np.int32) % 512, "examples": (np.arange(n) // 512).astype(np.int32)}
    return ids, {"may_mask": (~np.isin(ids, SPECIAL)).astype(np.uint8), **tokens}


@pytest.mark.parametrize(
    "probabilities",
    [(0.15, 0.8, 0.1), (0.5, 0.3, 0.3), (1.0, 0.0, 1.0), (1.0, 0.1, 0.9), (0.9, 0.7, 0.3), (1.0, 1.0, 0.0), (1.0, 0.0, 0.0)],
)
def test_it_is_the_python_reference_exactly(probabilities: tuple[float, float, float], n_threads: int) -> None:
    ids, tokens = _tokens(2000, 1021)
    names = ("mlm_probability", "mask_replace_prob", "random_replace_prob")
    arguments = {
        **tokens,
        **VOCABULARY,
        "vocab_size": 1021,
        "seed": 2**64 - 59,
        "epoch": 300,
        **dict(zip(names, probabilities, strict=True)),
    }
    for got, want in zip(mlm_mask(ids, **arguments), reference.mlm_mask(ids, **arguments), strict=True):
        assert np.array_equal(got, want)


@pytest.mark.parametrize("special", [(), (0,), (30521,), (5, 6, 7, 8), tuple(range(1, 30522))])
def test_any_set_of_special_ids(special: tuple[int, ...]) -> None:
    ids, tokens = _tokens(500)
    arguments = {**tokens, **VOCABULARY, "special_ids": np.array(special, np.int32), "seed": 4, "mlm_probability": 1.0}
    arguments |= {"mask_replace_prob": 0.0, "random_replace_prob": 1.0}
    masked_ids, labels = mlm_mask(ids, **arguments)
    assert np.array_equal(masked_ids, reference.mlm_mask(ids, **arguments)[0])
    assert not np.isin(masked_ids[labels != -100], special).any()


def _is_binomial(count: int, n: int, p: float) -> bool:
    return bool(abs(count - n * p) <= 5 * math.sqrt(n * p * (1 - p)))


@pytest.mark.parametrize(("choose", "mask", "random"), [(0.15, 0.8, 0.1), (0.4, 0.5, 0.25)])
def test_rates_over_a_million_tokens(choose: float, mask: float, random: float) -> None:
    ids, tokens = _tokens(1_000_000)
    rates = {"mlm_probability": choose, "mask_replace_prob": mask, "random_replace_prob": random}
    masked_ids, labels = mlm_mask(ids, **tokens, **VOCABULARY, seed=11, **rates)
    is_chosen, may_mask = labels != -100, tokens["may_mask"] == 1
    assert not is_chosen[~may_mask].any()
    assert np.array_equal(masked_ids[~is_chosen], ids[~is_chosen])
    assert np.array_equal(labels[is_chosen], ids[is_chosen])
    assert not np.isin(labels[is_chosen], SPECIAL).any()
    n_chosen = int(is_chosen.sum())
    assert _is_binomial(n_chosen, int(may_mask.sum()), choose)
    became = masked_ids[is_chosen]
    is_mask, is_same = became == 103, became == ids[is_chosen]
    assert _is_binomial(int(is_mask.sum()), n_chosen, mask)
    chance = random / (30522 - len(SPECIAL))  # that a random word is the word itself
    assert _is_binomial(int(is_same.sum()), n_chosen, 1 - mask - random + chance)
    assert not np.isin(became[~is_mask], SPECIAL).any()


def test_random_words_are_uniform_over_ordinary_words() -> None:
    special, vocab_size = np.array([0, 3, 4, 5, 499], np.int32), 500
    ids, tokens = _tokens(1_000_000, vocab_size)
    arguments = {**tokens, "may_mask": np.ones(len(ids), np.uint8), "special_ids": special, "vocab_size": vocab_size, "mask_token_id": 4}
    drawn, _ = mlm_mask(ids, **arguments, seed=5, mlm_probability=1.0, mask_replace_prob=0.0, random_replace_prob=1.0)
    counts = np.bincount(drawn, minlength=vocab_size)
    ordinary = np.setdiff1d(np.arange(vocab_size), special)
    assert not counts[special].any()
    assert all(_is_binomial(int(count), len(ids), 1 / len(ordinary)) for count in counts[ordinary])


@pytest.mark.parametrize(("mask", "random"), [(0.8, 0.2), (0.9, 0.1), (0.7, 0.3), (0.1, 0.9), (1.0, 0.0), (1 / 3, 2 / 3)])
def test_probabilities_that_sum_to_one_keep_no_token(mask: float, random: float) -> None:
    n = 200_000
    _, tokens = _tokens(n)
    ids = np.full(n, 100, np.int64)  # a special id: drawn by no one
    arguments = {**tokens, "may_mask": np.ones(n, np.uint8), **VOCABULARY, "mlm_probability": 1.0}
    masked_ids, _ = mlm_mask(ids, **arguments, seed=1, mask_replace_prob=mask, random_replace_prob=random)
    assert (masked_ids != 100).all()
    assert _is_binomial(int((masked_ids == 103).sum()), n, mask)


def test_probability_zero_chooses_nothing_and_one_everything_that_may_be() -> None:
    ids, tokens = _tokens(5000)
    masked_ids, labels = mlm_mask(ids, **tokens, **VOCABULARY, seed=1, mlm_probability=0.0)
    assert np.array_equal(masked_ids, ids)
    assert (labels == -100).all()
    masked_ids, labels = mlm_mask(ids, **tokens, **VOCABULARY, seed=1, mlm_probability=1.0, mask_replace_prob=1.0, random_replace_prob=0.0)
    may_mask = tokens["may_mask"] == 1
    assert np.array_equal(masked_ids, np.where(may_mask, 103, ids))
    assert np.array_equal(labels, np.where(may_mask, ids, -100))


def test_every_word_may_be_special_if_none_is_drawn() -> None:
    ids, tokens = _tokens(100, 5)
    vocabulary = {"special_ids": np.arange(5, dtype=np.int32), "vocab_size": 5, "mask_token_id": 4}
    tokens["may_mask"][:] = 1
    masked_ids, _ = mlm_mask(ids, **tokens, **vocabulary, seed=1, mlm_probability=1.0, mask_replace_prob=0.5, random_replace_prob=0.0)
    assert ((masked_ids == 4) | (masked_ids == ids)).all()


def test_a_token_is_masked_the_same_in_any_company(rng: np.random.Generator) -> None:
    ids, tokens = _tokens(5000)
    masked_ids, labels = mlm_mask(ids, **tokens, **VOCABULARY, seed=9, mlm_probability=0.5)
    some = np.sort(rng.permutation(5000)[:700])
    got = mlm_mask(ids[some], **{name: array[some] for name, array in tokens.items()}, **VOCABULARY, seed=9, mlm_probability=0.5)
    assert np.array_equal(got[0], masked_ids[some])
    assert np.array_equal(got[1], labels[some])


def test_choices_differ_by_everything_that_names_them() -> None:
    ids, tokens = _tokens(4000)
    tokens["may_mask"][:] = 1
    base = {**tokens, "seed": 1, "epoch": 0}
    others = ({"seed": 2}, {"seed": 1 + (1 << 32)}, {"epoch": 1}, {"columns": tokens["columns"] + np.int32(512)})
    others += ({"examples": tokens["examples"] + np.int32(9)},)
    chosen = [mlm_mask(ids, **VOCABULARY, **{**base, **other}, mlm_probability=0.5)[1] != -100 for other in ({}, *others)]
    for i, a in enumerate(chosen):
        for b in chosen[:i]:
            assert abs((a == b).mean() - 0.5) < 5 * 0.5 / math.sqrt(4000)


@pytest.mark.parametrize("ignore_index", [-1, 0, 2**40])
def test_ignore_index_and_wide_ids_are_kept(ignore_index: int, rng: np.random.Generator) -> None:
    _, tokens = _tokens(300)
    tokens["may_mask"][:150] = 0
    ids = integers(rng, 0, 100, 300).astype(np.int64) + 2**40  # what the caller passes as ids is none of the op's business
    _, labels = mlm_mask(ids, **tokens, **VOCABULARY, seed=1, mlm_probability=1.0, ignore_index=ignore_index)
    assert (labels[:150] == ignore_index).all()
    assert np.array_equal(labels[150:], np.where(tokens["may_mask"][150:] == 1, ids[150:], ignore_index))
