"""Vectors of texts: the encoder's last hidden state, pooled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from lucid.autograd import no_grad
from lucid.models.bert.packing import PackedBatch, TokenRows, by_tokens, pack_lists
from lucid.models.bert.texts import Texts, check_tokenizer, encode_texts, listed, want_room
from lucid.tensor import Tensor
from lucid.text import BERTTokenizerFast


def _mean(tokens: Any) -> Any:
    return tokens.mean(axis=0, dtype=np.float64)


def _max(tokens: Any) -> Any:
    return tokens.max(axis=0)


# What is made of a text's tokens; None takes the first one, and then the last layer runs for no other.
_POOLINGS: dict[str, Callable[[Any], Any] | None] = {"mean": _mean, "max": _max, "cls": None}


class Embed:
    """The method that embeds texts; mixed into `BERT`, which is what `self` is."""

    @no_grad()
    def embed(
        self: Any,
        texts: Texts,
        pooling: str = "mean",
        *,
        normalize: bool = False,
        max_length: int | None = None,
        tokenizer: BERTTokenizerFast | None = None,
    ) -> Tensor:
        """Return a vector for each text, always in eval mode.

        Parameters
        ----------
        texts : str, or list of N str
        pooling : "mean" (over all tokens, [CLS] and [SEP] too), "max" (of each feature over all tokens) or "cls"
            (the first token)
        normalize : bool
            Divide each vector by its length, so that dot products are cosines. A vector of length 0 stays.
        max_length : int, optional
            Cut each text to so many tokens, [CLS] and [SEP] included. Default: nothing is cut, and a text longer
            than the position table is an error.
        tokenizer : BERTTokenizerFast, optional
            Default: the model's own, from `from_pretrained`.

        Returns
        -------
        vectors : Tensor, float32, shape (N, C); (1, C) for a single text

        Raises
        ------
        TypeError
            Texts are not str.
        ValueError
            An unknown pooling, a text that is longer than the position table, or no tokenizer.

        Notes
        -----
        The arithmetic is that of sentence-transformers' `Pooling` and `Normalize`. A vector depends on its text
        alone, to the bit. Source: Reimers and Gurevych 2019, section 3.
        """
        if pooling not in _POOLINGS:
            raise ValueError(f"pooling must be one of {', '.join(map(repr, _POOLINGS))}, not {pooling!r}")
        pool = _POOLINGS[pooling]
        tokenizer = check_tokenizer(self.tokenizer if tokenizer is None else tokenizer)
        is_cut = max_length is not None
        rows = encode_texts(self, tokenizer, listed("texts", texts), None, max_length=max_length, truncation=is_cut)["input_ids"]
        name = "the text" if isinstance(texts, str) else "texts[{}]"
        want_room(self, rows, name, f"give max_length={self.config.max_position_embeddings} to cut it, or split it into parts")
        vectors = np.empty((len(rows), self.config.hidden_size), np.float32)
        for group in by_tokens([len(row) for row in rows]):
            batch = pack_lists(self.config, [rows[i] for i in group])
            vectors[group] = self._first_tokens(batch) if pool is None else _pooled(self.encode(batch).numpy(), batch, pool)
        if normalize:
            lengths = np.sqrt(np.square(vectors, dtype=np.float64).sum(axis=1, keepdims=True))
            vectors = (vectors / np.maximum(lengths, 1e-12)).astype(np.float32)
        return Tensor(vectors, device=self.device)

    def _first_tokens(self: Any, batch: PackedBatch) -> Any:
        n_sequences = len(batch.starts) - 1
        return self.encode(batch, TokenRows(batch.starts[:-1], np.arange(n_sequences + 1, dtype=np.int32))).numpy()


def _pooled(hidden: Any, batch: PackedBatch, pool: Callable[[Any], Any]) -> Any:
    """Return pool(the tokens of a sequence) for each sequence, (B, C)."""
    return np.stack([pool(hidden[begin:end]) for begin, end in zip(batch.starts[:-1], batch.starts[1:], strict=True)])
