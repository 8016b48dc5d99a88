"""What the model is asked about masks, as sequences to run; and the answers.

A text keeps its ids without [CLS] and [SEP]. A question puts something in the place of each of its masks (the
mask itself, words, or several masks for a word of several pieces), frames the text or a window of it, and asks
for the words at some of these places. Sequences are made when their turn comes, so many questions cost little.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lucid.models.bert.packing import TOKENS_AT_ONCE, PackedBatch, TokenRows, by_tokens, pack_lists
from lucid.models.bert.windows import Window, share_windows, window_around
from lucid.text import BERTTokenizerFast

# Numbers in the table of logits of chosen words, at once.
_MOST_LOGITS = 1 << 22

Pieces = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class MaskedText:
    """A text with masks.

    Attributes
    ----------
    ids : list of int. Without [CLS] and [SEP].
    masks : tuple of int, rising. Where masks stand among them.
    """

    ids: list[int]
    masks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """Masks that are read in one window, with as much of their text as any window around them holds.

    Attributes
    ----------
    text : MaskedText. The part, or all of a text that fits.
    asked : tuple of int, rising. Numbers of the masks within the part.
    first_token, first_mask : int. Of the part within its text.
    """

    text: MaskedText
    asked: tuple[int, ...]
    first_token: int
    first_mask: int

    def in_text(self, window: Window | None) -> Window | None:
        """Return a window of the part as one of its text."""
        return None if window is None else (window[0] + self.first_token, window[1] + self.first_token)


def parts_of(text: MaskedText, room: int) -> Iterator[Part]:
    """Cut a text into what is read in one window each."""
    for group in share_windows(text.masks, len(text.ids), room):
        if len(text.ids) <= room:
            yield Part(text, tuple(group), 0, 0)
            continue
        begin = max(0, text.masks[group[0]] - room)
        end = min(len(text.ids), text.masks[group[-1]] + 1 + room)
        first, last = bisect_left(text.masks, begin), bisect_left(text.masks, end)
        near = MaskedText(text.ids[begin:end], tuple(place - begin for place in text.masks[first:last]))
        yield Part(near, tuple(mask - first for mask in group), begin, first)


@dataclass(frozen=True, slots=True)
class Question:
    """Which word stands at some places of a text.

    Attributes
    ----------
    text : MaskedText
    contents : for each mask of the text, what stands in its place
    asked : (mask, piece) pairs, rising: the places within `contents`
    """

    text: MaskedText
    contents: tuple[Pieces, ...]
    asked: tuple[tuple[int, int], ...]

    @property
    def n_tokens(self) -> int:
        """Number of tokens with the masks' contents in place, without [CLS] and [SEP]."""
        return len(self.text.ids) + sum(map(len, self.contents)) - len(self.contents)

    def filled(self) -> tuple[list[int], list[int]]:
        """Return the ids with the contents in place, and where each content starts."""
        ids: list[int] = []
        starts: list[int] = []
        done = 0
        for place, content in zip(self.text.masks, self.contents, strict=True):
            ids += self.text.ids[done:place]
            starts.append(len(ids))
            ids += content
            done = place + 1
        return ids + self.text.ids[done:], starts

    def window(self, starts: Sequence[int], room: int) -> tuple[int, int]:
        """Return what is read of the filled ids: all, or the window around what is asked."""
        first, last = self.asked[0][0], self.asked[-1][0]
        return window_around(self.n_tokens, starts[first], starts[last] + len(self.contents[last]), room)

    def of_text(self, window: Window, starts: Sequence[int]) -> Window | None:
        """Return a window of the filled ids as one of the text's own tokens; None if it holds all of them."""
        if window == (0, self.n_tokens):
            return None

        def own(place: int) -> int:
            further = [min(len(content) - 1, place - start) for start, content in zip(starts, self.contents, strict=True) if start < place]
            return place - sum(further)

        return own(window[0]), own(window[1] - 1) + 1


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model says to a question.

    Attributes
    ----------
    log_probs : array, float64, shape (places asked, k)
    words : array, int, shape (places asked, k) or (k,). Which words these are the log-probabilities of.
    window : what of the text was read, or None for all of it
    """

    log_probs: Any
    words: Any
    window: Window | None


def unfilled(text: MaskedText, mask_id: int) -> tuple[Pieces, ...]:
    """Return the contents of a text nothing of which is filled."""
    return ((mask_id,),) * len(text.masks)


def room_of(model: Any) -> int:
    """Return how many tokens of a text fit between [CLS] and [SEP].

    Raises
    ------
    ValueError
        None do.
    """
    room: int = model.config.max_position_embeddings - 2
    if room < 1:
        raise ValueError(f"the position table has {room + 2} rows: no room for a token between [CLS] and [SEP]")
    return room


def answers(
    model: Any,
    tokenizer: BERTTokenizerFast,
    questions: Sequence[Question],
    *,
    k: int = 1,
    words: Any = None,
) -> Iterator[tuple[int, Answer]]:
    """Ask questions, in batches of a bounded number of tokens.

    Parameters
    ----------
    model : BERTForMaskedLM
    tokenizer : BERTTokenizerFast
    questions : sequence of Question
    k : int. The best k words are wanted; or
    words : array of ids, rising. These words are.

    Yields
    ------
    number : int. Of the question.
    answer : Answer

    Notes
    -----
    The order is that of the batches. No answer depends on it.
    """
    room = room_of(model)
    lengths = [min(question.n_tokens, room) + 2 for question in questions]
    most = None if words is None else max(1, _MOST_LOGITS // len(words))
    for group in by_tokens(lengths, TOKENS_AT_ONCE, most):
        batch, rows, windows = _pack(model, tokenizer, [questions[i] for i in group], room)
        if words is None:
            logits, chosen, lse = model.top_k(batch, rows, k)
        else:
            (logits, lse), chosen = model.logits_of(batch, rows, words), None
        log_probs = logits.astype(np.float64) - lse[:, None]
        for i, window, begin, end in zip(group, windows, rows.starts[:-1], rows.starts[1:], strict=True):
            yield i, Answer(log_probs[begin:end], words if chosen is None else chosen[begin:end], window)


def _pack(
    model: Any, tokenizer: BERTTokenizerFast, questions: list[Question], room: int
) -> tuple[PackedBatch, TokenRows, list[Window | None]]:
    sequences, places, windows = [], [], []
    n_before, row_starts = 0, [0]
    for question in questions:
        ids, starts = question.filled()
        begin, end = question.window(starts, room)
        sequences.append([tokenizer.cls_token_id, *ids[begin:end], tokenizer.sep_token_id])
        places += [n_before + 1 + starts[mask] + piece - begin for mask, piece in question.asked]
        row_starts.append(len(places))
        n_before += end - begin + 2
        windows.append(question.of_text((begin, end), starts))
    batch = pack_lists(model.config, sequences)
    return batch, TokenRows(np.array(places, np.int32), np.array(row_starts, np.int32)), windows
