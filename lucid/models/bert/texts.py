"""The masked language model on texts: loss and predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lucid.autograd import apply, is_grad_enabled
from lucid.device import Device
from lucid.models.bert.packing import PackedBatch, TokenRows, by_tokens, pack_lists
from lucid.ops.reshape import reshape
from lucid.ops.rows import scatter_rows
from lucid.ops.total import total
from lucid.random import resolve_seed
from lucid.tensor import Tensor
from lucid.text import BERTTokenizerFast

Texts = str | Sequence[str]


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

        Raises
        ------
        ValueError
            A text is longer than the position table: the message says what to do.

        Notes
        -----
        Many texts run in batches of a bounded number of tokens, unless they are to be differentiated: the tape
        holds them all. Neither masks nor dropout nor the sum depend on that.
        """
        if reduction not in ("mean", "sum", None):
            raise ValueError(f"reduction must be 'mean', 'sum' or None, not {reduction!r}")
        self.to(device)
        encoded = _encode_segments(self, tokenizer, text_a, text_b)
        lengths = np.array([len(row) for row in encoded["input_ids"]], np.int64)
        starts = np.concatenate([[0], np.cumsum(lengths)])
        masked, labels = self.mask_tokens(
            _flat(encoded["input_ids"]),
            _flat(encoded["special_tokens_mask"]) == 0,
            (np.arange(starts[-1]) - np.repeat(starts[:-1], lengths)).astype(np.int32),
            np.repeat(np.arange(len(lengths), dtype=np.int32), lengths),
            mask_token_id=tokenizer.mask_token_id if mask_token_id is None else mask_token_id,
            mlm_probability=mlm_probability,
            mask_replace_prob=mask_replace_prob,
            random_replace_prob=random_replace_prob,
            ignore_index=ignore_index,
            seed=seed,
        )
        dropout_seed = resolve_seed(seed) if self.training else None
        # Where labels are, among all tokens in the caller's order; and each one's loss.
        asked = np.flatnonzero(labels != ignore_index)
        first_asked = np.searchsorted(asked, starts)

        def of(group: Sequence[int]) -> tuple[PackedBatch, TokenRows, Any]:
            """Return a group of texts, where its labels are, and the labels."""
            batch = pack_lists(
                self.config,
                [masked[starts[i] : starts[i + 1]] for i in group],
                [encoded["token_type_ids"][i] for i in group],
                numbers=group,
                seed=dropout_seed,
            )
            own = [asked[first_asked[i] : first_asked[i + 1]] for i in group]
            row_starts = np.concatenate([[0], np.cumsum([len(places) for places in own])])
            index = [places - starts[i] + batch.starts[b] for b, (i, places) in enumerate(zip(group, own, strict=True))]
            rows = TokenRows(_joined(index).astype(np.int32), row_starts.astype(np.int32))
            return batch, rows, labels[_joined(own)].astype(np.int32)

        if self.training and is_grad_enabled():
            whole = of(range(len(lengths)))
            if reduction is not None:
                return self.loss_of(*whole, reduction)  # type: ignore[no-any-return]
            losses = self.losses_of(*whole)
        else:
            values = np.empty(len(asked), np.float32)
            for group in by_tokens(lengths.tolist()):
                places = _joined([np.arange(first_asked[i], first_asked[i + 1]) for i in group])
                values[places] = self.losses_of(*of(group)).numpy()
            losses = Tensor(values, device=self.device)
        if reduction is not None:
            return apply(total, losses, divisor=max(1, len(asked)) if reduction == "mean" else 1)  # type: ignore[no-any-return]
        longest = int(lengths.max(initial=0))
        text_of = np.searchsorted(starts, asked, side="right") - 1
        cells = (text_of * longest + asked - starts[text_of]).astype(np.int32)
        every = apply(scatter_rows, apply(reshape, losses, shape=(len(asked), 1)), rows=cells, n_rows=len(lengths) * longest)
        return apply(reshape, every, shape=(len(lengths) * longest,))  # type: ignore[no-any-return]

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

        Raises
        ------
        ValueError
            A text is longer than the position table: the message says what to do.
        """
        self.to(device)
        encoded = _encode_segments(self, tokenizer, text_a, text_b)
        rows = encoded["input_ids"]
        lengths = [len(row) for row in rows]
        predicted = np.zeros((len(rows), max(lengths, default=0)), np.int64)
        for group in by_tokens(lengths):
            batch = pack_lists(self.config, [rows[i] for i in group], [encoded["token_type_ids"][i] for i in group])
            every = TokenRows(np.arange(batch.n_tokens, dtype=np.int32), batch.starts)
            best = self.top_k(batch, every, 1)[1][:, 0]
            for b, i in enumerate(group):
                predicted[i, : lengths[i]] = best[batch.starts[b] : batch.starts[b + 1]]
        return Tensor(predicted, device=self.device)


def check_tokenizer(tokenizer: Any) -> BERTTokenizerFast:
    """Return `tokenizer` if it is one.

    Raises
    ------
    TypeError
        It is something else.
    ValueError
        It is None.
    """
    if tokenizer is None:
        raise ValueError("this model has no tokenizer: load it from a folder that holds one, or pass tokenizer=")
    if not isinstance(tokenizer, BERTTokenizerFast):
        raise TypeError(f"tokenizer must be a BERTTokenizerFast, not {type(tokenizer).__name__}")
    return tokenizer


def listed(name: str, texts: Any) -> list[str]:
    """Return a text, or a list or tuple of texts, as a list.

    Raises
    ------
    TypeError
        It is something else.
    """
    several = [texts] if isinstance(texts, str) else texts
    if not isinstance(several, (list, tuple)):
        raise TypeError(f"{name} must be a str or a list of str, not {type(texts).__name__}")
    for i, text in enumerate(several):
        if not isinstance(text, str):
            raise TypeError(f"{name} must be a str or a list of str: {name}[{i}] is a {type(text).__name__}")
    return list(several)


def encode_texts(
    model: Any, tokenizer: BERTTokenizerFast, firsts: list[str], seconds: list[str] | None, **options: Any
) -> dict[str, list[list[int]]]:
    """Return texts, or pairs of texts, as lists of ids, in one parallel call.

    Raises
    ------
    IndexError
        The tokenizer has a word that the model lacks.
    """
    encoded = tokenizer.encode_batch(firsts, seconds, padding=False, **options)
    if tokenizer.vocab_size > model.config.vocab_size:
        for i, row in enumerate(encoded["input_ids"]):
            if row and max(row) >= model.config.vocab_size:
                raise IndexError(
                    f"text {i} has the word {tokenizer.convert_ids_to_tokens(max(row))!r}, id {max(row)}, but the model has "
                    f"{model.config.vocab_size} words: this tokenizer belongs to another model"
                )
    return encoded


def want_room(model: Any, rows: list[list[int]], name: str, advice: str) -> None:
    """Raise ValueError, with advice, if the ids of a text are more than the position table has rows.

    `name` is the argument's, with {} for the number of the text in a list.
    """
    most = model.config.max_position_embeddings
    for i, row in enumerate(rows):
        if len(row) > most:
            raise ValueError(
                f"{name.format(i)} has {len(row)} tokens with [CLS] and [SEP], the model's position table {most} rows: {advice}"
            )


def _encode_segments(model: Any, tokenizer: Any, text_a: Texts, text_b: Texts | None) -> dict[str, list[list[int]]]:
    """Return what the model takes for texts, and where their special tokens stand; none is too long."""
    check_tokenizer(tokenizer)
    firsts = listed("text_a", text_a)
    seconds = None if text_b is None else listed("text_b", text_b)
    if seconds is not None and len(firsts) != len(seconds):
        raise ValueError(f"text_b has {len(seconds)} texts, text_a has {len(firsts)}")
    encoded = encode_texts(model, tokenizer, firsts, seconds, return_special_tokens_mask=True)
    most = model.config.max_position_embeddings
    want_room(
        model,
        encoded["input_ids"],
        ("text_a" if isinstance(text_a, str) else "text_a[{}]") + ("" if seconds is None else " and its text_b"),
        f"split the text into parts of at most {most - 2 - (seconds is not None)} tokens and give them as a list, or cut it yourself with "
        f"tokenizer.encode_batch(..., max_length={most}, truncation=True) and call the method that takes ids",
    )
    return encoded


def _flat(rows: list[list[int]]) -> Any:
    return np.fromiter((i for row in rows for i in row), np.int64, count=sum(map(len, rows)))


def _joined(arrays: list[Any]) -> Any:
    return np.concatenate(arrays) if arrays else np.zeros(0, np.int64)
