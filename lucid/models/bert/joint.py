"""Several masks of a text filled together, by beam search."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lucid.models.bert.questions import MaskedText, Pieces, Question, answers, unfilled
from lucid.models.bert.targets import Gap, Target, score_targets
from lucid.models.bert.windows import Window
from lucid.text import BERTTokenizerFast


@dataclass(frozen=True, slots=True)
class Filling:
    """Words in the place of a text's masks.

    Attributes
    ----------
    log_prob : float
    contents : for each mask, the word's pieces; the mask itself where it is not filled yet
    windows : for each filled mask, what of the text was read, or None for all of it
    """

    log_prob: float
    contents: tuple[Pieces, ...]
    windows: tuple[Window | None, ...]

    def then(self, pieces: Pieces, log_prob: float, window: Window | None) -> Filling:
        """Return this filling with the next mask filled."""
        n = len(self.windows)
        return Filling(self.log_prob + log_prob, (*self.contents[:n], pieces, *self.contents[n + 1 :]), (*self.windows, window))


def fill_jointly(
    model: Any,
    tokenizer: BERTTokenizerFast,
    texts: Sequence[MaskedText],
    width: int,
    targets: Sequence[Target] | None = None,
) -> list[list[Filling]]:
    """Return the likeliest complete fillings of each text, best first.

    Parameters
    ----------
    model : BERTForMaskedLM
    tokenizer : BERTTokenizerFast
    texts : sequence of MaskedText
    width : int. Fillings that are kept from mask to mask.
    targets : sequence of Target, optional. The only words to fill in.

    Returns
    -------
    fillings : for each text, at most `width` of them

    Notes
    -----
    Masks are filled from left to right, each given those before it:

        P(w1 ... wm) = P(w1 | m masks) * P(w2 | w1, m - 1 masks) * ... * P(wm | w1 ... wm-1)

    A masked language model gives other products in other orders; one order for all makes fillings comparable.
    The search is exact when `width` is at least the number of words to the power of m - 1. It takes
    1 + (m - 1) * width passes of a text. Equal probabilities go by rising ids.
    """
    beams = [[Filling(0.0, unfilled(text, tokenizer.mask_token_id), ())] for text in texts]
    for mask in range(max((len(text.masks) for text in texts), default=0)):
        unfinished = [(t, filling) for t, text in enumerate(texts) if len(text.masks) > mask for filling in beams[t]]
        gaps = [Gap(texts[t], filling.contents, (mask,)) for t, filling in unfinished]
        longer: dict[int, list[Filling]] = {t: [] for t, _ in unfinished}
        guesses = _best_words(model, tokenizer, gaps, width) if targets is None else _best_targets(model, tokenizer, gaps, width, targets)
        for gap, pieces, log_prob, window in guesses:
            t, filling = unfinished[gap]
            longer[t].append(filling.then(pieces, log_prob, window))
        for t, fillings in longer.items():
            beams[t] = sorted(fillings, key=lambda filling: (-filling.log_prob, filling.contents))[:width]
    return beams


_Guess = tuple[int, Pieces, float, Window | None]


def _best_words(model: Any, tokenizer: BERTTokenizerFast, gaps: Sequence[Gap], width: int) -> Iterator[_Guess]:
    """Yield (gap, pieces, log-probability, window) for the best words of each gap."""
    questions = [Question(gap.text, gap.contents, ((gap.masks[0], 0),)) for gap in gaps]
    for i, answer in answers(model, tokenizer, questions, k=min(width, model.config.vocab_size)):
        for word, log_prob in zip(answer.words[0].tolist(), answer.log_probs[0].tolist(), strict=True):
            yield i, (word,), log_prob, answer.window


def _best_targets(model: Any, tokenizer: BERTTokenizerFast, gaps: Sequence[Gap], width: int, targets: Sequence[Target]) -> Iterator[_Guess]:
    """Yield the same for the best targets of each gap."""
    log_probs, windows = score_targets(model, tokenizer, gaps, targets)
    for (i, mask), scores in log_probs.items():
        for t in np.argsort(-scores, kind="stable")[:width].tolist():
            pieces = targets[t].pieces
            yield i, pieces, float(scores[t]), windows[i, mask, len(pieces)]
