"""Given words in the place of a mask, of one word piece or of several, and how likely they are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lucid.models.bert.questions import MaskedText, Pieces, Question, answers
from lucid.models.bert.windows import Window
from lucid.text import BERTTokenizerFast


@dataclass(frozen=True, slots=True)
class Target:
    """A word to rank.

    Attributes
    ----------
    word : str. As the caller wrote it.
    pieces : tuple of int. Its word pieces.
    """

    word: str
    pieces: Pieces


@dataclass(frozen=True, slots=True)
class Gap:
    """Masks of a text that are ranked one by one, each with everything else as it stands.

    Attributes
    ----------
    text : MaskedText
    contents : for each mask of the text, what stands in its place
    masks : tuple of int, rising. The masks to rank; one window holds them.
    """

    text: MaskedText
    contents: tuple[Pieces, ...]
    masks: tuple[int, ...]


def encode_targets(tokenizer: BERTTokenizerFast, targets: Any, room: int) -> list[Target]:
    """Return the targets as word pieces, each once, in the order given.

    Raises
    ------
    TypeError
        A target is not a str.
    ValueError
        There are none; or one is empty, has a part that is not in the vocabulary, a special token, or more pieces
        than the model has positions.
    """
    if isinstance(targets, str) or not hasattr(targets, "__iter__"):
        raise ValueError(f"targets must be a list of words, not {targets!r:.60}")
    words = list(dict.fromkeys(targets))
    if not words:
        raise ValueError("targets must be a list of words, and not an empty one")
    for word in words:
        if not isinstance(word, str):
            raise TypeError(f"targets holds {word!r:.60}, a {type(word).__name__}: wanted a str")
    encoded = tokenizer.encode_batch(words, padding=False, add_special_tokens=False)["input_ids"]
    for word, pieces in zip(words, encoded, strict=True):
        if not pieces:
            raise ValueError(f"target {word!r} is no word: the tokenizer makes nothing of it")
        if tokenizer.unk_token_id in pieces:
            raise ValueError(
                f"target {word!r} is not in this vocabulary: it becomes {' '.join(tokenizer.convert_ids_to_tokens(pieces))}. Leave it out"
            )
        if special := set(pieces) & set(tokenizer.all_special_ids):
            raise ValueError(f"target {word!r} holds {tokenizer.convert_ids_to_tokens(min(special))}, which is no word: leave it out")
        if len(pieces) > room:
            raise ValueError(f"target {word[:60]!r} has {len(pieces)} word pieces, the model has room for {room}")
    return [Target(word, tuple(pieces)) for word, pieces in zip(words, encoded, strict=True)]


def score_targets(
    model: Any, tokenizer: BERTTokenizerFast, gaps: Sequence[Gap], targets: Sequence[Target]
) -> tuple[dict[tuple[int, int], Any], dict[tuple[int, int, int], Window | None]]:
    """Return how likely each target is in the place of each mask.

    Parameters
    ----------
    model : BERTForMaskedLM
    tokenizer : BERTTokenizerFast
    gaps : sequence of Gap
    targets : sequence of Target

    Returns
    -------
    log_probs : dict from (gap, mask) to array, float64, shape (targets,)
    windows : dict from (gap, mask, number of pieces) to what of the text was read

    Notes
    -----
    A target of n pieces w1 ... wn stands in n masks, which are filled from left to right:

        P(w) = P(w1 | n masks) * P(w2 | w1, n - 1 masks) * ... * P(wn | w1 ... wn-1, one mask)

    so it takes n passes. Targets with the same number of pieces and the same first ones share theirs, and all
    targets of one piece share one.
    """
    log_probs = {(g, mask): np.zeros(len(targets)) for g, gap in enumerate(gaps) for mask in gap.masks}
    windows: dict[tuple[int, int, int], Window | None] = {}
    for level in range(max(len(target.pieces) for target in targets)):
        branches: dict[tuple[int, Pieces], list[int]] = defaultdict(list)
        for t, target in enumerate(targets):
            if len(target.pieces) > level:
                branches[len(target.pieces), target.pieces[:level]].append(t)
        words = np.unique([targets[t].pieces[level] for branch in branches.values() for t in branch])
        asked = list(_ask(tokenizer.mask_token_id, gaps, list(branches), level))
        for i, answer in answers(model, tokenizer, [question for question, *_ in asked], words=words):
            question, g, branch = asked[i]
            columns = np.searchsorted(words, [targets[t].pieces[level] for t in branches[branch]])
            for row, (mask, _) in enumerate(question.asked):
                log_probs[g, mask][branches[branch]] += answer.log_probs[row, columns]
                windows[g, mask, branch[0]] = answer.window
    return log_probs, windows


def _ask(mask_id: int, gaps: Sequence[Gap], branches: list[tuple[int, Pieces]], level: int) -> Any:
    """Yield (question, gap, branch): the next piece after each beginning, at each mask."""
    for g, gap in enumerate(gaps):
        for n_pieces, before in branches:
            if n_pieces == 1:
                yield Question(gap.text, gap.contents, tuple((mask, 0) for mask in gap.masks)), g, (1, ())
                continue
            content = before + (mask_id,) * (n_pieces - level)
            for mask in gap.masks:
                contents = (*gap.contents[:mask], content, *gap.contents[mask + 1 :])
                yield Question(gap.text, contents, ((mask, level),)), g, (n_pieces, before)
