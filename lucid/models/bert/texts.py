"""The masked language model on texts: loss, predictions, filled masks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lucid.device import Device
from lucid.tensor import Tensor
from lucid.text import BERTTokenizerFast

# Real tokens of one forward pass over many texts: enough to keep the kernels busy, little memory.
_TOKENS_AT_ONCE = 4096

Texts = str | Sequence[str]


@dataclass(frozen=True, slots=True)
class MaskFill:
    """One guess for one [MASK].

    Attributes
    ----------
    score : float. Probability of the word.
    token : int. Its id.
    token_str : str. The word piece.
    sequence : str. The text with this mask filled; other masks stay.
    """

    score: float
    token: int
    token_str: str
    sequence: str


class TextMethods:
    """Methods that take texts; mixed into `BERTForMaskedLM`, which is what `self` is."""

    def get_loss_from_text(
        self: Any,
        tokenizer: BERTTokenizerFast,
        text_a: Texts,
        text_b: Texts | None = None,
        *,
        device: Device = "cpu",
        mask_token_id: int | None = None,
        mlm_probability: float = 0.15,
        mask_replace_prob: float = 0.8,
        random_replace_prob: float = 0.1,
        ignore_index: int = -100,
        reduction: str | None = "mean",
        seed: int | None = None,
    ) -> Tensor:
        """Mask tokens of a text, and return the loss of guessing them.

        Parameters
        ----------
        tokenizer : BERTTokenizerFast
        text_a : str, or list of N str
        text_b : the second segments, optional; as many as there are first ones
        device : "cpu" or "gpu". The model is moved there if it is elsewhere.
        mask_token_id : int, optional. Default: the tokenizer's.
        mlm_probability, mask_replace_prob, random_replace_prob, ignore_index
            As for `create_masked_lm_inputs`.
        reduction : "mean" (over all labels of all texts), "sum", or None
        seed : int, optional. Of the masks, and of dropout in train mode.

        Returns
        -------
        loss : Tensor, float32, shape (), or (N * S,) with reduction None
        """
        self.to(device)
        inputs, special = _encode(tokenizer, text_a, text_b)
        masked_ids, labels = self.create_masked_lm_inputs(
            inputs["input_ids"],
            inputs["attention_mask"],
            special,
            mask_token_id=tokenizer.mask_token_id if mask_token_id is None else mask_token_id,
            mlm_probability=mlm_probability,
            mask_replace_prob=mask_replace_prob,
            random_replace_prob=random_replace_prob,
            ignore_index=ignore_index,
            seed=seed,
        )
        inputs["input_ids"] = masked_ids
        loss: Tensor = self.get_loss(labels, **inputs, ignore_index=ignore_index, reduction=reduction, seed=seed)
        return loss

    def predict_token_ids_from_text(
        self: Any,
        tokenizer: BERTTokenizerFast,
        text_a: Texts,
        text_b: Texts | None = None,
        *,
        device: Device = "cpu",
    ) -> Tensor:
        """Return the likeliest word at every position of a text.

        Parameters
        ----------
        tokenizer : BERTTokenizerFast
        text_a : str, or list of N str
        text_b : the second segments, optional
        device : "cpu" or "gpu". The model is moved there if it is elsewhere.

        Returns
        -------
        ids : Tensor, int64, shape (1, S), or padded (N, S), 0 at padding
        """
        self.to(device)
        ids: Tensor = self.predict_token_ids(**_encode(tokenizer, text_a, text_b)[0])
        return ids

    def fill_mask(
        self: Any,
        texts: Texts,
        top_k: int = 5,
        targets: Sequence[str] | None = None,
        *,
        tokenizer: BERTTokenizerFast | None = None,
    ) -> Any:
        """Guess the words behind the masks of a text, or of many.

        Parameters
        ----------
        texts : str, or list of str. Each with one [MASK] or more; a mask is guessed with the others in place.
        top_k : int. Guesses for a mask, best first.
        targets : list of str, optional. Only these words are guessed at; each must be one word piece.
        tokenizer : BERTTokenizerFast, optional. Default: the model's own, from `from_pretrained`.

        Returns
        -------
        fills : for each mask of the text, a list of `MaskFill`; for a list of texts, a list of these

        Raises
        ------
        ValueError
            A text has no mask or is too long, a target is not one word piece, `top_k` is out of range, or
            there is no tokenizer.
        """
        tokenizer = _checked(self.tokenizer if tokenizer is None else tokenizer)
        if not 1 <= top_k <= self.config.vocab_size:
            raise ValueError(f"top_k must lie between 1 and the {self.config.vocab_size} words of the model, not {top_k}")
        target_ids = None if targets is None else _target_ids(tokenizer, targets)
        several = _listed("texts", texts)
        rows = [tokenizer.encode(text) for text in several]
        for text, row in zip(several, rows, strict=True):
            if tokenizer.mask_token_id not in row:
                raise ValueError(f"no {tokenizer.mask_token} in {text[:60]!r}: write {tokenizer.mask_token} where a word is to be guessed")
        fills: list[list[list[MaskFill]]] = []
        for group in _by_tokens(rows):
            fills += self._fill_group(tokenizer, group, top_k, target_ids)
        return fills[0] if isinstance(texts, str) else fills

    def _fill_group(
        self: Any,
        tokenizer: BERTTokenizerFast,
        group: list[list[int]],
        top_k: int,
        target_ids: list[int] | None,
    ) -> list[list[list[MaskFill]]]:
        ids, attention_mask = _padded(group)
        batch = self.bert.pack(ids, attention_mask, is_eval=True)
        is_mask = ids == tokenizer.mask_token_id
        rows = batch.rows_at(is_mask)
        if target_ids is None:
            logits, words, lse = self.top_k(batch, rows, top_k)
        else:
            logits, words, lse = self._target_logits(batch, rows, target_ids, top_k)
        scores = np.exp(logits.astype(np.float64) - lse[:, None])
        fills: list[list[list[MaskFill]]] = [[] for _ in group]
        for p, (text, column) in enumerate(np.argwhere(is_mask)):
            guesses = []
            for score, word in zip(scores[p].tolist(), words[p].tolist(), strict=True):
                filled = [*group[text][:column], word, *group[text][column + 1 :]]
                guesses.append(MaskFill(score, word, tokenizer.convert_ids_to_tokens(word), _without_specials(tokenizer, filled)))
            fills[text].append(guesses)
        return fills

    def _target_logits(
        self: Any,
        batch: Any,
        rows: Any,
        target_ids: list[int],
        top_k: int,
    ) -> tuple[Any, Any, Any]:
        """Return the best `top_k` of the targets: logits, words and log-sum-exp over the whole vocabulary."""
        targets = np.array(target_ids)
        logits, lse = self.logits_of(batch, rows, targets)
        order = np.argsort(-logits, axis=1, kind="stable")[:, :top_k]
        return np.take_along_axis(logits, order, axis=1), targets[order], lse


def _checked(tokenizer: Any) -> BERTTokenizerFast:
    if tokenizer is None:
        raise ValueError("this model has no tokenizer: load it from a folder that holds one, or pass tokenizer=")
    if not isinstance(tokenizer, BERTTokenizerFast):
        raise TypeError(f"tokenizer must be a BERTTokenizerFast, not {type(tokenizer).__name__}")
    return tokenizer


def _listed(name: str, texts: Any) -> list[str]:
    several = [texts] if isinstance(texts, str) else texts
    if not isinstance(several, (list, tuple)) or not all(isinstance(text, str) for text in several):
        raise TypeError(f"{name} must be a str or a list of str, not {type(texts).__name__}")
    return list(several)


def _encode(tokenizer: BERTTokenizerFast, text_a: Texts, text_b: Texts | None) -> tuple[dict[str, Any], Any]:
    """Return the model's inputs for texts, padded, and where their special tokens stand."""
    firsts = _listed("text_a", text_a)
    seconds = [None] * len(firsts) if text_b is None else _listed("text_b", text_b)
    if len(firsts) != len(seconds):
        raise ValueError(f"text_b has {len(seconds)} texts, text_a has {len(firsts)}")
    encoded = [_checked(tokenizer).encode_pretraining_inputs(a, b) for a, b in zip(firsts, seconds, strict=True)]
    ids, attention_mask = _padded([row["input_ids"] for row in encoded])
    types, _ = _padded([row["token_type_ids"] for row in encoded])
    special, _ = _padded([row["special_tokens_mask"] for row in encoded])
    return {"input_ids": ids, "attention_mask": attention_mask, "token_type_ids": types}, special


def _padded(rows: list[list[int]]) -> tuple[Any, Any]:
    """Return rows of unequal length as an int64 array (N, S) and its attention mask."""
    lengths = np.array([len(row) for row in rows], np.int64)
    longest = int(lengths.max(initial=0))
    mask = np.arange(longest) < lengths[:, None]
    table = np.zeros((len(rows), longest), np.int64)
    table[mask] = [i for row in rows for i in row]
    return table, mask


def _by_tokens(rows: list[list[int]]) -> Iterator[list[list[int]]]:
    """Cut a list of rows, in order, into groups of about `_TOKENS_AT_ONCE` tokens."""
    group: list[list[int]] = []
    n_tokens = 0
    for row in rows:
        if group and n_tokens + len(row) > _TOKENS_AT_ONCE:
            yield group
            group, n_tokens = [], 0
        group.append(row)
        n_tokens += len(row)
    if group:
        yield group


def _target_ids(tokenizer: BERTTokenizerFast, targets: Sequence[str]) -> list[int]:
    if isinstance(targets, str) or not targets:
        raise ValueError("targets must be a list of words, and not an empty one")
    ids = []
    for target in targets:
        pieces = tokenizer.tokenize(target)
        if len(pieces) != 1 or pieces[0] == tokenizer.unk_token:
            raise ValueError(f"target {target!r} is not one word piece of this vocabulary but {pieces}: leave it out")
        ids.append(tokenizer.convert_tokens_to_ids(pieces[0]))
    return sorted(set(ids))


def _without_specials(tokenizer: BERTTokenizerFast, ids: list[int]) -> str:
    """Return the text of ids without [CLS] and [SEP]; masks that are not filled stay visible."""
    dropped = {tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id}
    return tokenizer.decode([i for i in ids if i not in dropped], skip_special_tokens=False)
