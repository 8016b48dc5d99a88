"""Words behind the masks of texts."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lucid.models.bert.joint import Filling, fill_jointly
from lucid.models.bert.packing import by_tokens
from lucid.models.bert.questions import MaskedText, Pieces, Question, answers, parts_of, room_of, unfilled
from lucid.models.bert.targets import Gap, Target, encode_targets, score_targets
from lucid.models.bert.texts import Texts, check_tokenizer, encode_texts, listed
from lucid.models.bert.windows import Window
from lucid.text import BERTTokenizerFast
from lucid.text.joining import Joiner

# Tokens of texts whose questions and answers are held at once.
_TOKENS_IN_WORK = 1 << 16


@dataclass(frozen=True, slots=True)
class MaskFill:
    """One guess for one [MASK].

    Attributes
    ----------
    score : float. Probability of the word; of a target of several pieces, the product of theirs.
    token : int or None. Id of the word; None where it has several pieces.
    token_str : str. The word as the vocabulary has it.
    sequence : str. The text with this mask filled, other masks stay; of a text that has a window, the window.
    log_prob : float. Natural logarithm of the score; no underflow.
    tokens : tuple of int. Ids of all pieces.
    n_pieces : int. Their number.
    target : str or None. With `targets`, the word as it was given there.
    window : (begin, end) or None. What of the text the model read: ``tokenizer.tokenize(text)[begin:end]``, around
        the mask; None for all of it. Only a text longer than the position table has one.
    """

    score: float
    token: int | None
    token_str: str
    sequence: str
    log_prob: float = 0.0
    tokens: tuple[int, ...] = ()
    n_pieces: int = 1
    target: str | None = None
    window: Window | None = None


@dataclass(frozen=True, slots=True)
class JointFill:
    """Words for all masks of a text.

    Attributes
    ----------
    score : float. Probability of the words together.
    words : tuple of str. One for each mask.
    sequence : str. The whole text with all masks filled.
    log_prob : float. Natural logarithm of the score; no underflow.
    tokens : tuple of tuples of int. The ids of each word's pieces.
    windows : tuple of (begin, end) or None, or None. For each mask what of the text was read to fill it, as
        `MaskFill.window`; None where all was read for all.
    """

    score: float
    words: tuple[str, ...]
    sequence: str
    log_prob: float
    tokens: tuple[tuple[int, ...], ...]
    windows: tuple[Window | None, ...] | None = None


class FillMask:
    """The method that fills masks; mixed into `BERTForMaskedLM`, which is what `self` is."""

    def fill_mask(
        self: Any,
        texts: Texts,
        top_k: int = 5,
        targets: Sequence[str] | None = None,
        *,
        joint: bool = False,
        beam_width: int = 8,
        tokenizer: BERTTokenizerFast | None = None,
    ) -> Any:
        """Guess the words behind the masks of a text, or of many.

        Parameters
        ----------
        texts : str, or list of str
            Each with one [MASK] or more, and of any length.
        top_k : int
            Guesses for a mask, or with `joint` for a text, best first.
        targets : list of str, optional
            Only these words are guessed at; the `top_k` best of them are given. A word may have several pieces.
        joint : bool
            Fill the masks of a text together. Otherwise each is guessed with the others in place.
        beam_width : int
            With `joint`: fillings that are kept from mask to mask, at least `top_k`. More find better ones and cost more.
        tokenizer : BERTTokenizerFast, optional
            Default: the model's own, from `from_pretrained`.

        Returns
        -------
        fills : for each mask of the text, a list of `MaskFill`; with `joint`, a list of `JointFill`
            For a list of texts, a list of these, in its order.

        Raises
        ------
        TypeError
            Texts or targets are not str.
        ValueError
            A text has no mask, a target is not in the vocabulary, a number is out of range, or there is no tokenizer.

        Notes
        -----
        A result depends on its text alone, to the bit: not on the other texts, their order or number.

        **Targets.** A target of n pieces is put into n masks, which are filled from left to right; its score is the
        product of the pieces' probabilities, each given those before it. So a score is a probability among all
        words of n pieces, since the model does not say how many pieces to expect. Targets of one length compare
        exactly. A longer one has more factors, though those after the first are often near 1: where that matters,
        compare ``log_prob / n_pieces`` too. A target of n pieces costs n passes of the text for each mask; those
        of one piece cost one pass together.

        **joint.** Masks are filled from left to right, each given the words before it: log P = sum over masks of
        log P(word | words before). A beam search keeps the best `beam_width` fillings; it costs
        1 + (masks - 1) * beam_width passes of the text.

        **Long texts.** Of a text longer than the position table, the model reads a window around the mask, with as
        much context on both sides as fits, and masks near each other share one; `window` says which, and `sequence`
        shows it. With `joint` every mask has a window of its own, and `sequence` is the whole text.
        """
        tokenizer = check_tokenizer(self.tokenizer if tokenizer is None else tokenizer)
        top_k = _count("top_k", top_k, None if targets is not None or joint else self.config.vocab_size)
        beam_width = _count("beam_width", beam_width, None)
        room = room_of(self)
        chosen = None if targets is None else encode_targets(tokenizer, targets, room)
        several = listed("texts", texts)
        masked = _masked_texts(self, tokenizer, several, isinstance(texts, str))
        fills: list[Any] = [None] * len(masked)
        writer = Joiner(tokenizer)
        for group in by_tokens([len(text.ids) for text in masked], _TOKENS_IN_WORK):
            members = [masked[i] for i in group]
            results: Any
            if joint:
                distinct = None if chosen is None else list({target.pieces: target for target in chosen}.values())
                found = fill_jointly(self, tokenizer, members, max(beam_width, top_k), distinct)
                results = [
                    [_joint_fill(tokenizer, text, filling) for filling in best[:top_k]] for text, best in zip(members, found, strict=True)
                ]
            elif chosen is None:
                results = _fill_with_best(self, tokenizer, members, top_k, room, writer)
            else:
                results = _fill_with_targets(self, tokenizer, members, top_k, room, writer, chosen)
            for i, result in zip(group, results, strict=True):
                fills[i] = result
        return fills[0] if isinstance(texts, str) else fills


def _count(name: str, value: Any, most: int | None) -> int:
    try:
        n = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, not {value!r:.60}") from None
    if n < 1 or (most is not None and n > most):
        limit = "be at least 1" if most is None else f"lie between 1 and the {most} words of the model"
        raise ValueError(f"{name} must {limit}, not {n}")
    return n


def _masked_texts(model: Any, tokenizer: BERTTokenizerFast, texts: list[str], is_single: bool) -> list[MaskedText]:
    rows = encode_texts(model, tokenizer, texts, None, add_special_tokens=False)["input_ids"]
    masked = []
    for i, (text, ids) in enumerate(zip(texts, rows, strict=True)):
        places = tuple(place for place, token in enumerate(ids) if token == tokenizer.mask_token_id)
        if not places:
            where = "" if is_single else f"texts[{i}]: "
            raise ValueError(
                f"{where}no {tokenizer.mask_token} in {text[:60]!r}: write {tokenizer.mask_token} where a word is to be guessed"
            )
        masked.append(MaskedText(ids, places))
    return masked


class _Sequences:
    """What a part of a text, or a window of that, becomes when one of its masks is filled."""

    def __init__(self, writer: Joiner, text: MaskedText, place: int, window: Window | None) -> None:
        self._writer = writer
        begin, end = window or (0, len(text.ids))
        self._before_ids, self._after_ids = text.ids[begin:place], text.ids[place + 1 : end]
        self._before = writer.join(self._before_ids)
        self._after = writer.join(self._after_ids, is_start=False)

    def filled(self, pieces: Pieces) -> str:
        if not self._before:  # the first token has no space before it, whichever that is
            return self._writer.join([*self._before_ids, *pieces, *self._after_ids])
        return self._before + self._writer.join(pieces, is_start=False) + self._after


def _fill_with_best(
    model: Any, tokenizer: BERTTokenizerFast, texts: list[MaskedText], top_k: int, room: int, writer: Joiner
) -> list[list[list[MaskFill]]]:
    """Return the best `top_k` words of the vocabulary for each mask of each text."""
    fills: list[list[list[MaskFill]]] = [[[] for _ in text.masks] for text in texts]
    parts = [(t, part) for t, text in enumerate(texts) for part in parts_of(text, room)]
    questions = [
        Question(part.text, unfilled(part.text, tokenizer.mask_token_id), tuple((mask, 0) for mask in part.asked)) for _, part in parts
    ]
    for i, answer in answers(model, tokenizer, questions, k=top_k):
        t, part = parts[i]
        window = part.in_text(answer.window)
        for row, mask in enumerate(part.asked):
            sequences = _Sequences(writer, part.text, part.text.masks[mask], answer.window)
            guesses = zip(answer.log_probs[row].tolist(), answer.words[row].tolist(), strict=True)
            fills[t][part.first_mask + mask] = [
                MaskFill(math.exp(log_prob), word, writer.token(word), sequences.filled((word,)), log_prob, (word,), 1, None, window)
                for log_prob, word in guesses
            ]
    return fills


def _fill_with_targets(
    model: Any, tokenizer: BERTTokenizerFast, texts: list[MaskedText], top_k: int, room: int, writer: Joiner, targets: list[Target]
) -> list[list[list[MaskFill]]]:
    """Return the best `top_k` targets for each mask of each text."""
    fills: list[list[list[MaskFill]]] = [[[] for _ in text.masks] for text in texts]
    parts = [(t, part) for t, text in enumerate(texts) for part in parts_of(text, room)]
    gaps = [Gap(part.text, unfilled(part.text, tokenizer.mask_token_id), part.asked) for _, part in parts]
    log_probs, windows = score_targets(model, tokenizer, gaps, targets)
    words = [_spelled(tokenizer, target.pieces) for target in targets]
    for (g, mask), scores in log_probs.items():
        text_number, part = parts[g]
        sequences: dict[Window | None, _Sequences] = {}
        for t in np.argsort(-scores, kind="stable")[:top_k].tolist():
            pieces, log_prob = targets[t].pieces, float(scores[t])
            window = windows[g, mask, len(pieces)]
            if window not in sequences:
                sequences[window] = _Sequences(writer, part.text, part.text.masks[mask], window)
            fills[text_number][part.first_mask + mask].append(
                MaskFill(
                    score=math.exp(log_prob),
                    token=pieces[0] if len(pieces) == 1 else None,
                    token_str=words[t],
                    sequence=sequences[window].filled(pieces),
                    log_prob=log_prob,
                    tokens=pieces,
                    n_pieces=len(pieces),
                    target=targets[t].word,
                    window=part.in_text(window),
                )
            )
    return fills


def _joint_fill(tokenizer: BERTTokenizerFast, text: MaskedText, filling: Filling) -> JointFill:
    ids, _ = Question(text, filling.contents, ()).filled()
    return JointFill(
        score=math.exp(filling.log_prob),
        words=tuple(_spelled(tokenizer, pieces) for pieces in filling.contents),
        sequence=Joiner(tokenizer).join(ids),
        log_prob=filling.log_prob,
        tokens=filling.contents,
        windows=None if all(window is None for window in filling.windows) else filling.windows,
    )


def _spelled(tokenizer: BERTTokenizerFast, pieces: Pieces) -> str:
    """Return a word as the vocabulary has it: a single piece as it is, several joined."""
    writer = Joiner(tokenizer)
    return writer.token(pieces[0]) if len(pieces) == 1 else writer.join(pieces)
