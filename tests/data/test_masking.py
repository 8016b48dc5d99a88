"""Masks: which tokens, what stands in their place, and that nothing else matters."""

import numpy as np
import pytest
import texts

from lucid.data import Masker, Masking
from lucid.data.masking import _span_rate
from lucid.ops.mlm_mask import mlm_mask
from lucid.random import Purpose, token_words

TOKENIZER = texts.tokenizer()
CLS, SEP, MASK = TOKENIZER.cls_token_id, TOKENIZER.sep_token_id, TOKENIZER.mask_token_id
GOES_ON = TOKENIZER.continues_word
FIRST = len(texts.VOCAB) - len(texts.WORDS) - len(texts.PIECES) - 1


def examples_of(rng, n, length):
    """Return ids, columns and numbers of `n` examples of up to `length` tokens."""
    rows = [[CLS, *rng.integers(FIRST, len(texts.VOCAB), int(rng.integers(2, length))), SEP] for _ in range(n)]
    ids = np.array([i for row in rows for i in row], np.int64)
    columns = np.array([c for row in rows for c in range(len(row))], np.int32)
    numbers = np.repeat(np.arange(n, dtype=np.int32) * 7 + 3, [len(row) for row in rows])
    return ids, columns, numbers


def words_of(ids, numbers):
    """Return the word that each token belongs to, by its own loop."""
    words, word = [], -1
    for t, token in enumerate(ids):
        is_special = token in TOKENIZER.all_special_ids
        joins = t > 0 and GOES_ON[token] and numbers[t] == numbers[t - 1] and ids[t - 1] not in TOKENIZER.all_special_ids
        word += not joins or is_special
        words.append(word)
    return np.array(words)


class TestToken:
    def test_it_is_what_create_masked_lm_inputs_does(self, rng):
        ids, columns, numbers = examples_of(rng, 300, 40)
        masking = Masking("token", 0.3, 0.6, 0.3)
        wanted = mlm_mask(
            ids,
            may_mask=(~np.isin(ids, TOKENIZER.all_special_ids)).astype(np.uint8),
            columns=columns,
            examples=numbers,
            special_ids=np.array(sorted(TOKENIZER.all_special_ids), np.int32),
            vocab_size=TOKENIZER.vocab_size,
            mask_token_id=MASK,
            seed=99,
            mlm_probability=0.3,
            mask_replace_prob=0.6,
            random_replace_prob=0.3,
        )
        got = Masker(masking, TOKENIZER)(ids, columns, numbers, 99)
        assert np.array_equal(got[0], wanted[0]) and np.array_equal(got[1], wanted[1])


@pytest.mark.parametrize("strategy", ["token", "word", "span"])
class TestEvery:
    def test_rates(self, rng, strategy):
        ids, columns, numbers = examples_of(rng, 3000, 60)
        for p in (0.15, 0.4):
            masked, labels = Masker(Masking(strategy, p), TOKENIZER)(ids, columns, numbers, 5)
            may = ~np.isin(ids, TOKENIZER.all_special_ids)
            chosen = labels != -100
            assert not chosen[~may].any() and np.array_equal(masked[~chosen], ids[~chosen]) and np.array_equal(labels[chosen], ids[chosen])
            share = chosen.sum() / may.sum()
            # Fewer spans reach the first words of an example.
            assert abs(share - p) < (0.012 if strategy != "span" else 0.05) and (strategy != "span" or share < p)
            masks = (masked[chosen] == MASK).mean()
            stays = (masked[chosen] == ids[chosen]).mean()
            assert abs(masks - 0.8) < 0.01 and abs(stays - 0.1 - 0.1 / 20) < 0.01
            assert not np.isin(masked[chosen & (masked != MASK)], TOKENIZER.all_special_ids).any()

    def test_an_example_is_masked_alike_in_any_company(self, rng, strategy):
        ids, columns, numbers = examples_of(rng, 40, 30)
        masker = Masker(Masking(strategy, 0.25), TOKENIZER)
        masked, labels = masker(ids, columns, numbers, 5)
        for number in np.unique(numbers)[[0, 7, 39]]:
            own = numbers == number
            alone = masker(ids[own], columns[own], numbers[own], 5)
            assert np.array_equal(alone[0], masked[own]) and np.array_equal(alone[1], labels[own])
        order = np.argsort(-numbers, kind="stable")
        again = masker(ids[order], columns[order], numbers[order], 5)
        assert np.array_equal(again[0], masked[order]) and np.array_equal(again[1], labels[order])
        assert not np.array_equal(masker(ids, columns, numbers, 6)[1], labels)

    def test_nothing_and_everything(self, rng, strategy):
        masker = Masker(Masking(strategy, 1.0, 1.0, 0.0), TOKENIZER)
        ids, columns, numbers = examples_of(rng, 20, 30)
        masked, labels = masker(ids, columns, numbers, 5)
        may = ~np.isin(ids, TOKENIZER.all_special_ids)
        assert (masked[may] == MASK).all() and np.array_equal(labels[may], ids[may]) and (labels[~may] == -100).all()
        nothing = np.zeros(0, np.int64)
        assert [len(array) for array in masker(nothing, nothing.astype(np.int32), nothing.astype(np.int32), 5)] == [0, 0]


class TestWords:
    def test_pieces_of_a_word_are_chosen_together(self, rng):
        ids, columns, numbers = examples_of(rng, 400, 40)
        labels = Masker(Masking("word", 0.3), TOKENIZER)(ids, columns, numbers, 5)[1]
        words, chosen = words_of(ids, numbers), labels != -100
        for word in np.unique(words[chosen]):
            assert chosen[words == word].all()
        sizes = np.bincount(words)
        assert (sizes > 1).sum() > 100 and sizes.max() > 2

    def test_an_example_that_begins_within_a_word(self):
        piece = TOKENIZER.convert_tokens_to_ids("##ing")
        ids = np.array([CLS, piece, piece, 5, SEP, CLS, piece, SEP])
        columns, numbers = np.array([0, 1, 2, 3, 4, 0, 1, 2], np.int32), np.array([1, 1, 1, 1, 1, 2, 2, 2], np.int32)
        for seed in range(50):
            chosen = Masker(Masking("word", 0.5), TOKENIZER)(ids, columns, numbers, seed)[1] != -100
            assert chosen[1] == chosen[2] and not chosen[[0, 4, 5, 7]].any()


class TestSpans:
    def test_runs_are_as_long_as_spans_are(self, rng):
        """Where spans are rare, runs of chosen words are spans: 3.8 words on average, 10 at most unless two meet."""
        n, length = 4000, 200
        ids = np.tile(np.array([CLS, *[FIRST] * length, SEP], np.int64), n)
        columns = np.tile(np.arange(length + 2, dtype=np.int32), n)
        numbers = np.repeat(np.arange(n, dtype=np.int32), length + 2)
        chosen = (Masker(Masking("span", 0.005), TOKENIZER)(ids, columns, numbers, 5)[1] != -100).reshape(n, -1)
        edges = np.diff(chosen.astype(np.int8), axis=1)
        begins, ends = np.argwhere(edges == 1), np.argwhere(edges == -1)
        inside = ends[:, 1] < length  # not cut by the end of the example
        sizes = (ends - begins)[inside, 1]
        assert abs(sizes.mean() - 3.797) < 0.12 and (sizes <= 10).mean() > 0.99
        assert abs((sizes == 1).mean() - 0.2 / (1 - 0.8**10)) < 0.03

    def test_whole_words(self, rng):
        ids, columns, numbers = examples_of(rng, 400, 40)
        chosen = Masker(Masking("span", 0.3), TOKENIZER)(ids, columns, numbers, 5)[1] != -100
        words = words_of(ids, numbers)
        for word in np.unique(words[chosen]):
            assert chosen[words == word].all()

    def test_the_rate_of_spans(self):
        reaches = 1 - np.concatenate([[0], np.cumsum(0.2 * 0.8 ** np.arange(10)) / (1 - 0.8**10)])[:10]
        for p in (0.01, 0.15, 0.5, 0.99):
            assert 1 - np.prod(1 - _span_rate(p) * reaches) == pytest.approx(p)


def test_bad_settings():
    for settings, match in (
        ({"strategy": "letter"}, "masking must be one of token, word, span, not 'letter'"),
        ({"p_choose": 0.0}, "must lie in"),
        ({"p_choose": 1.5}, "must lie in"),
        ({"p_mask": 0.8, "p_random": 0.3}, "sum to"),
        ({"p_mask": -0.1}, "sum to"),
    ):
        with pytest.raises(ValueError, match=match):
            Masking(**settings)


def test_words_are_those_of_the_kernels(rng):
    from lucid._ext import kernels
    from lucid.random import stream

    columns, numbers = rng.integers(0, 512, 50), rng.integers(0, 2**31, 50)
    for seed in (0, 12345, 2**64 - 1):
        words = token_words(columns, numbers, Purpose.MLM_SPAN, seed)
        for c, e, row in zip(columns.tolist(), numbers.tolist(), words.tolist(), strict=True):
            assert tuple(row) == kernels.philox_block(0, c, e, stream(Purpose.MLM_SPAN), seed)
