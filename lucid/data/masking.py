"""Which tokens are asked for: single tokens, whole words, or spans of words.

All three choose tokens; what stands in a chosen token's place (80 % [MASK], 10 % a random word, 10 % itself) is the same for
all, and comes from `lucid.ops.mlm_mask`. A token's fate depends on (seed, example, column) and, for words and spans, on the
pieces that its example consists of: on nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lucid.ops.mlm_mask import mlm_mask
from lucid.random import Purpose, token_words
from lucid.text import BERTTokenizerFast

STRATEGIES = ("token", "word", "span")
_LONGEST_SPAN = 10


@dataclass(frozen=True, slots=True)
class Masking:
    """How tokens are chosen and replaced.

    Attributes
    ----------
    strategy : "token", "word" (all pieces of a word together) or "span" (runs of words, 3.8 long on average as in SpanBERT)
    p_choose : float in [0, 1]. Share of tokens that are asked for.
    p_mask, p_random : float. Of the chosen: share that becomes [MASK], and a random word. The rest stays.

    Raises
    ------
    ValueError
        A share is out of range, or the strategy is unknown.
    """

    strategy: str = "token"
    p_choose: float = 0.15
    p_mask: float = 0.8
    p_random: float = 0.1

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise ValueError(f"masking must be one of {', '.join(STRATEGIES)}, not {self.strategy!r}")
        if not 0 < self.p_choose <= 1:
            raise ValueError(f"the share of masked tokens must lie in (0, 1], not {self.p_choose}")
        if min(self.p_mask, self.p_random) < 0 or self.p_mask + self.p_random > 1 + 1e-12:
            raise ValueError(f"the shares of [MASK] and of random words must sum to at most 1, not {self.p_mask} and {self.p_random}")


class Masker:
    """Masks tokens for a tokenizer.

    Parameters
    ----------
    masking : Masking
    tokenizer : BERTTokenizerFast. Says what is special, what goes on a word, and what [MASK] is.
    """

    def __init__(self, masking: Masking, tokenizer: BERTTokenizerFast) -> None:
        self.masking = masking
        self._special_ids = np.array(sorted(tokenizer.all_special_ids), np.int32)
        self._vocab_size, self._mask_token_id = tokenizer.vocab_size, tokenizer.mask_token_id
        self._is_special = np.zeros(tokenizer.vocab_size, bool)
        self._is_special[self._special_ids] = True
        self._continues_word = tokenizer.continues_word

    def __call__(self, ids: Any, columns: Any, examples: Any, seed: int) -> tuple[Any, Any]:
        """Return what the model is to see, and labels with -100 where nothing is asked.

        Parameters
        ----------
        ids : array, int64, shape (T,). The tokens of some examples, one after the other.
        columns, examples : array, int32, shape (T,). Which token of which example each is.
        seed : int

        Returns
        -------
        masked_ids, labels : array, int64, shape (T,)
        """
        may_mask = ~self._is_special[ids]
        is_chosen = self._chosen(ids, may_mask, columns, examples, seed) & may_mask
        replaced, _ = mlm_mask(
            ids,
            may_mask=is_chosen.astype(np.uint8),
            columns=columns,
            examples=examples,
            special_ids=self._special_ids,
            vocab_size=self._vocab_size,
            mask_token_id=self._mask_token_id,
            seed=seed,
            mlm_probability=1.0,
            mask_replace_prob=self.masking.p_mask,
            random_replace_prob=self.masking.p_random,
        )
        return replaced, np.where(is_chosen, ids, -100)

    def _chosen(self, ids: Any, may_mask: Any, columns: Any, examples: Any, seed: int) -> Any:
        strategy, p = self.masking.strategy, self.masking.p_choose
        if strategy == "token":
            return token_words(columns, examples, Purpose.MLM_MASK, seed)[:, 0] < _threshold(p)
        # A word begins where nothing goes on: also after a special token, with which every example begins.
        goes_on = self._continues_word[ids] & may_mask
        goes_on[1:] &= may_mask[:-1]
        goes_on[:1] = False
        firsts = np.flatnonzero(~goes_on)
        word_of = np.cumsum(~goes_on) - 1
        if strategy == "word":
            words = token_words(columns[firsts], examples[firsts], Purpose.MLM_MASK, seed)[:, 0] < _threshold(p)
            return words[word_of]
        words = token_words(columns[firsts], examples[firsts], Purpose.MLM_SPAN, seed)
        begins = (words[:, 0] < _threshold(_span_rate(p))) & may_mask[firsts]
        lengths = np.searchsorted(_SPAN_CDF, words[:, 1] / 2.0**32, side="right") + 1
        # No span reaches beyond its example.
        order = np.cumsum(_changes(examples[firsts]))
        example_ends = np.searchsorted(order, order, side="right")
        at = np.flatnonzero(begins)
        ends = np.minimum(at + lengths[at], example_ends[at])
        covered = np.zeros(len(firsts) + 1, np.int64)
        np.add.at(covered, at, 1)
        np.add.at(covered, ends, -1)
        return (np.cumsum(covered[:-1]) > 0)[word_of]


def _threshold(p: float) -> int:
    return int(p * 4294967296.0)


def _changes(values: Any) -> Any:
    """Return 1 where a value differs from the one before it."""
    changes = np.zeros(len(values), np.int64)
    changes[1:] = values[1:] != values[:-1]
    return changes


# Lengths 1 to 10, geometric with p = 0.2 (Joshi et al. 2020, "SpanBERT", section 3.1).
_SPAN_WEIGHTS = 0.2 * 0.8 ** np.arange(_LONGEST_SPAN)
_SPAN_CDF = np.cumsum(_SPAN_WEIGHTS / _SPAN_WEIGHTS.sum())[:-1]


def _span_rate(p_choose: float) -> float:
    """Return the share of words that begin a span, so that `p_choose` of all words lie in one.

    A word lies in none if none of the words before it begins a span that reaches it.
    """
    reaches = 1 - np.concatenate([[0.0], _SPAN_CDF])  # P(length > k), k = 0, 1, ...
    low, high = 0.0, 1.0
    for _ in range(60):
        rate = (low + high) / 2
        low, high = (rate, high) if 1 - np.prod(1 - rate * reaches) < p_choose else (low, rate)
    return low
