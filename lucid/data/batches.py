"""Batches of examples, each a function of the place in the data: to go on at a place is to ask for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lucid.data.examples import Examples
from lucid.data.masking import Masker
from lucid.data.permutation import Permutation
from lucid.random import epoch_seed
from lucid.text import BERTTokenizerFast


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """A place in the data: between the examples of an epoch's order.

    Attributes
    ----------
    epoch : int, from 0
    example : int. How many of the epoch's examples lie before it.
    """

    epoch: int = 0
    example: int = 0


@dataclass(frozen=True, slots=True)
class Batch:
    """Some examples, masked, without padding.

    Attributes
    ----------
    place, end : Place. Where it begins, and where the next one begins.
    seed : int. Of the epoch, for dropout.
    numbers : array, int32, shape (B,). Of the examples.
    starts : array, int64, shape (B + 1,). Example b has tokens starts[b] to starts[b + 1].
    ids : array, int64, shape (T,). [CLS], pieces, [SEP]; masked.
    labels : array, int64, shape (T,). The right word where it is asked for, else -100.
    """

    place: Place
    end: Place
    seed: int
    numbers: Any
    starts: Any
    ids: Any
    labels: Any

    @property
    def n_tokens(self) -> int:
        """T."""
        return len(self.ids)

    @property
    def n_labels(self) -> int:
        """How many words are asked for."""
        return int((self.labels != -100).sum())


class Batches:
    """Batches of up to a number of tokens, in an order that is drawn anew for each epoch.

    A batch is as many of the next examples as fit; one never crosses the end of an epoch, so an epoch's last is smaller.

    Parameters
    ----------
    examples : Examples
    tokenizer : BERTTokenizerFast
    masker : Masker
    n_tokens : int. Tokens of a batch at most, [CLS] and [SEP] included.
    seed : int. Of order, masks and dropout.

    Raises
    ------
    ValueError
        The longest example does not fit.
    """

    def __init__(self, examples: Examples, tokenizer: BERTTokenizerFast, masker: Masker, n_tokens: int, seed: int) -> None:
        longest = int(examples.lengths.max()) + 2
        if n_tokens < longest:
            raise ValueError(f"a batch of {n_tokens} tokens does not hold the longest example, which has {longest}")
        self.examples, self.n_tokens, self.seed = examples, n_tokens, seed
        self._masker = masker
        self._cls, self._sep = tokenizer.cls_token_id, tokenizer.sep_token_id
        self._order: tuple[int, Permutation] | None = None

    def at(self, place: Place) -> Batch:
        """Return the batch that begins at a place."""
        numbers = self._numbers(place)
        end = place.example + len(numbers)
        lengths = self.examples.lengths[numbers].astype(np.int64) + 2
        starts = np.concatenate([[0], np.cumsum(lengths)])
        ids = np.empty(starts[-1], np.int64)
        ids[starts[:-1]], ids[starts[1:] - 1] = self._cls, self._sep
        for number, start, stop in zip(numbers.tolist(), starts[:-1].tolist(), starts[1:].tolist(), strict=True):
            ids[start + 1 : stop - 1] = self.examples.pieces(number)
        columns = (np.arange(len(ids)) - np.repeat(starts[:-1], lengths)).astype(np.int32)
        seed = epoch_seed(self.seed, place.epoch)
        masked, labels = self._masker(ids, columns, np.repeat(numbers.astype(np.int32), lengths), seed)
        following = Place(place.epoch, end) if end < len(self.examples) else Place(place.epoch + 1, 0)
        return Batch(place, following, seed, numbers.astype(np.int32), starts, masked, labels)

    def n_batches(self, epoch: int) -> int:
        """Return how many batches an epoch has."""
        lengths = self.examples.lengths[self._permutation(epoch)(np.arange(len(self.examples)))].astype(np.int64) + 2
        ends = np.cumsum(lengths)
        n, before = 0, 0
        while before < ends[-1]:
            n += 1
            before = ends[np.searchsorted(ends, before + self.n_tokens, side="right") - 1]
        return n

    def _numbers(self, place: Place) -> Any:
        """Return the numbers of the examples of the batch at a place."""
        permutation = self._permutation(place.epoch)
        # No example is shorter than four tokens: so many at most fit.
        stop = min(len(self.examples), place.example + self.n_tokens // 4)
        numbers = permutation(np.arange(place.example, stop))
        ends = np.cumsum(self.examples.lengths[numbers].astype(np.int64) + 2)
        return numbers[: np.searchsorted(ends, self.n_tokens, side="right")]

    def _permutation(self, epoch: int) -> Permutation:
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, Permutation(len(self.examples), epoch_seed(self.seed, epoch))
        return self._order[1]
