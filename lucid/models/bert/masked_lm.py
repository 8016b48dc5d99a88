"""BERT with the masked language modelling head."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lucid.autograd import apply, no_grad
from lucid.models.bert.backbone import BERT, Trace, check_table, make_trace, resized, unpack
from lucid.models.bert.config import BERTConfig
from lucid.models.bert.fill_mask import FillMask
from lucid.models.bert.masking import MASK_TOKEN_ID, TokenMasking
from lucid.models.bert.packing import PackedBatch, TokenRows, integers, want_range
from lucid.models.bert.room import room_for
from lucid.models.bert.texts import TextMethods
from lucid.models.pretrained import PretrainedModel
from lucid.nn import Embedding, LayerNorm, Linear, Module, Parameter, init
from lucid.ops.decoder import decoder_cross_entropy, decoder_loss, decoder_top_k
from lucid.ops.linear import linear
from lucid.ops.op import Op, want_integer
from lucid.ops.reshape import reshape
from lucid.ops.rows import scatter_rows
from lucid.tensor import Tensor

# Of the released BERT vocabularies: [UNK], [CLS], [SEP], [MASK]; beside them stands the padding.
_USUAL_SPECIAL_IDS = (100, 101, 102, MASK_TOKEN_ID)


class MaskedLMOutput(NamedTuple):
    """What `BERTForMaskedLM.forward` returns when inner states are asked for; see `BERTOutput`."""

    logits: Tensor
    hidden_states: list[Tensor] | None
    attentions: list[Tensor] | None


class BERTPredictionTransform(Module):
    """LayerNorm(activation(dense(x))): what stands between the encoder and the decoder."""

    def __init__(self, config: BERTConfig) -> None:
        super().__init__()
        self.dense = Linear(config.hidden_size, config.hidden_size, init.normal(config.initializer_range))
        self.layernorm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.activation = config.hidden_act

    def forward(self, hidden: Tensor) -> Tensor:
        """Return (P, C) for (P, C)."""
        return self.layernorm(self.dense(hidden, activation=self.activation))  # type: ignore[no-any-return]


class BERTPredictions(Module):
    """Transform and decoder."""

    def __init__(self, config: BERTConfig) -> None:
        super().__init__()
        self.transform = BERTPredictionTransform(config)
        self.decoder = Linear(config.hidden_size, config.vocab_size, init.normal(config.initializer_range))


class BERTMaskedLMHead(Module):
    """The head: ``cls.predictions``."""

    def __init__(self, config: BERTConfig) -> None:
        super().__init__()
        self.predictions = BERTPredictions(config)


class BERTForMaskedLM(PretrainedModel, TokenMasking, TextMethods, FillMask):
    """BERT for masked language modelling (Devlin et al. 2019, section 3.1).

    Parameters
    ----------
    config : BERTConfig

    Notes
    -----
    A new model is in train mode: `forward` and `get_loss` apply dropout until ``.eval()``. `predict_*`,
    `get_accuracy` and `fill_mask` never do. The product with the vocabulary is made for the rows that
    are asked for, and the last layer runs its queries and feed-forward only for those.
    """

    config: BERTConfig
    architecture = "BertForMaskedLM"

    def __init__(self, config: BERTConfig) -> None:
        super().__init__(config)
        self.bert = BERT(config)
        self.cls = BERTMaskedLMHead(config)
        self.special_token_ids = sorted({i for i in (config.pad_token_id, *_USUAL_SPECIAL_IDS) if i is not None and i < config.vocab_size})
        if config.tie_word_embedding:
            self.tie_weights()

    def forward(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        position_ids: Any = None,
        inputs_embeds: Any = None,
        *,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        seed: int | None = None,
    ) -> Tensor | MaskedLMOutput:
        """Return the logits of every word at every position.

        Parameters
        ----------
        input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds
            As for `BERT.forward`.
        output_hidden_states, output_attentions : bool
            Return a `MaskedLMOutput` that holds these as well.
        seed : int, optional. Of dropout, in train mode.

        Returns
        -------
        logits : Tensor, float32, or on the GPU the type of its matrices, shape (B, S, V). Zeros at padding.
        """
        batch = self.bert.pack(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, seed=seed)
        trace = make_trace(output_hidden_states, output_attentions)
        with room_for(self, batch, has_logits=True):
            logits = unpack(self.cls.predictions.decoder(self._transformed(batch, None, trace)), batch)
        if trace is None:
            return logits
        return MaskedLMOutput(logits, trace.hidden_states if output_hidden_states else None, trace.attentions)

    def _transformed(self, batch: PackedBatch, rows: TokenRows | None, trace: Trace | None = None) -> Tensor:
        """Return what the decoder multiplies: (T, C), or (P, C) for `rows`."""
        return self.cls.predictions.transform(self.bert.encode(batch, rows, trace))  # type: ignore[no-any-return]

    def get_loss(
        self,
        labels: Any,
        input_ids: Any = None,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        position_ids: Any = None,
        inputs_embeds: Any = None,
        *,
        ignore_index: int = -100,
        reduction: str | None = "mean",
        seed: int | None = None,
    ) -> Tensor:
        """Return the cross-entropy of the labels.

        Parameters
        ----------
        labels : integers, shape (B, S). The right word, or `ignore_index` where nothing is asked.
        input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds
            As for `BERT.forward`.
        ignore_index : int
        reduction : "mean" (over the labels that count), "sum", or None
        seed : int, optional. Of dropout, in train mode.

        Returns
        -------
        loss : Tensor, float32, shape (), in nats; or (B * S,) with reduction None. 0 where no label counts.

        Raises
        ------
        IndexError
            A label lies outside the vocabulary.
        ValueError
            A label stands under mask 0, or a shape, mask or reduction is wrong.
        """
        if reduction not in ("mean", "sum", None):
            raise ValueError(f"reduction must be 'mean', 'sum' or None, not {reduction!r}")
        batch = self.bert.pack(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, seed=seed)
        rows, row_labels = self._labelled(batch, labels, ignore_index)
        if reduction is not None:
            return self.loss_of(batch, rows, row_labels, reduction)
        n_cells = batch.shape[0] * batch.shape[1]
        column = apply(reshape, self.losses_of(batch, rows, row_labels), shape=(len(row_labels), 1))
        every = apply(scatter_rows, column, rows=batch.cells[rows.index], n_rows=n_cells)
        return apply(reshape, every, shape=(n_cells,))  # type: ignore[no-any-return]

    def loss_of(self, batch: PackedBatch, rows: TokenRows, labels: Any, reduction: str) -> Tensor:
        """Return the mean or the sum of the cross-entropy of `rows`, for int32 labels (P,)."""
        divisor = max(1, len(labels)) if reduction == "mean" else 1
        return self._asked(decoder_loss, batch, rows, labels=labels, divisor=divisor)

    def losses_of(self, batch: PackedBatch, rows: TokenRows, labels: Any) -> Tensor:
        """Return the cross-entropy of each of `rows`, (P,), for int32 labels (P,)."""
        return self._asked(decoder_cross_entropy, batch, rows, labels=labels)

    def _asked(self, op: Op, batch: PackedBatch, rows: TokenRows, **params: Any) -> Tensor:
        decoder = self.cls.predictions.decoder
        with room_for(self, batch, rows):
            x, weight, bias = self._transformed(batch, rows), decoder.value(decoder.weight, packed=True), decoder.value(decoder.bias)
            return apply(op, x, weight, bias, has_d_weight=decoder.weight.requires_grad, **params)  # type: ignore[no-any-return]

    @no_grad()
    def losses_and_guesses(self, batch: PackedBatch, rows: TokenRows, labels: Any) -> tuple[Any, Any]:
        """Return the cross-entropy of each of `rows` and its likeliest word, as arrays (P,), from one pass through the encoder."""
        decoder = self.cls.predictions.decoder
        weight, bias = decoder.value(decoder.weight, packed=True), decoder.value(decoder.bias)
        with room_for(self, batch, rows):
            x = self._transformed(batch, rows)
            losses = apply(decoder_cross_entropy, x, weight, bias, labels=labels)
            _, ids, _ = apply(decoder_top_k, x, decoder.weight.packed(), decoder.bias, k=1)
        return losses.numpy(), ids.numpy()[:, 0]

    def _labelled(self, batch: PackedBatch, labels: Any, ignore_index: int) -> tuple[TokenRows, Any]:
        """Return the tokens whose label counts, and those labels as int32."""
        want_integer("labels", "ignore_index", ignore_index)
        table = integers("labels", labels, batch.shape)
        counts = table != ignore_index
        is_real = np.zeros(batch.shape, bool)
        is_real.reshape(-1)[batch.cells] = True
        if (counts & ~is_real).any():
            b, s = np.argwhere(counts & ~is_real)[0]
            raise ValueError(f"labels[{b}, {s}] is {table[b, s]}, but attention_mask is 0 there: set that label to {ignore_index}")
        want_range("labels", table, counts, self.config.vocab_size, f"a word of the vocabulary, or ignore_index {ignore_index}")
        rows = batch.rows_at(counts)
        return rows, table.reshape(-1)[batch.cells[rows.index]].astype(np.int32)

    def _adopt_tokenizer(self, folder: Path) -> None:
        super()._adopt_tokenizer(folder)
        if self.tokenizer is not None:
            self.bert.tokenizer = self.tokenizer
            self.special_token_ids = sorted(set(self.tokenizer.all_special_ids))

    @no_grad()
    def top_k(self, batch: PackedBatch, rows: TokenRows, k: int) -> tuple[Any, Any, Any]:
        """Return the k best words of `rows`: logits (P, k), ids (P, k) and log-sum-exp (P,), as arrays."""
        decoder = self.cls.predictions.decoder
        with room_for(self, batch, rows):
            x = self._transformed(batch, rows)
            values, ids, lse = apply(decoder_top_k, x, decoder.value(decoder.weight, packed=True), decoder.bias, k=k)
        return values.numpy(), ids.numpy(), lse.numpy()

    @no_grad()
    def logits_of(self, batch: PackedBatch, rows: TokenRows, words: Any) -> tuple[Any, Any]:
        """Return the logits of some words, (P, len(words)), and log-sum-exp over all words, (P,), for `rows`."""
        decoder = self.cls.predictions.decoder
        with room_for(self, batch, rows):
            weight = decoder.weight.packed()
            x = self._transformed(batch, rows)
            _, _, lse = apply(decoder_top_k, x, weight, decoder.bias, k=1)
            logits = apply(linear, x, decoder.weight.rows(words), decoder.bias.rows(words))
        return logits.numpy().astype(np.float32, copy=False), lse.numpy()

    def predict_token_ids(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        position_ids: Any = None,
        inputs_embeds: Any = None,
    ) -> Tensor:
        """Return the likeliest word at every position, always in eval mode.

        Returns
        -------
        ids : Tensor, int64, shape (B, S). 0 at padding.
        """
        batch = self.bert.pack(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, is_eval=True)
        ids = np.zeros(batch.shape, np.int64)
        rows = batch.rows_at(np.ones(batch.shape, bool))
        ids.reshape(-1)[batch.cells] = self.top_k(batch, rows, 1)[1][:, 0]
        return Tensor(ids, device=self.device)

    def get_accuracy(
        self,
        labels: Any,
        input_ids: Any = None,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        position_ids: Any = None,
        inputs_embeds: Any = None,
        *,
        ignore_index: int = -100,
    ) -> Tensor:
        """Return the share of labels that are the likeliest word, always in eval mode.

        Returns
        -------
        accuracy : Tensor, float32, shape (). 0.0 where no label counts.
        """
        batch = self.bert.pack(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, is_eval=True)
        rows, row_labels = self._labelled(batch, labels, ignore_index)
        if not len(row_labels):
            return Tensor(np.float32(0), device=self.device)
        accuracy = np.float32((self.top_k(batch, rows, 1)[1][:, 0] == row_labels).mean())
        return Tensor(accuracy, device=self.device)

    def get_input_embeddings(self) -> Embedding:
        """Return the word table."""
        return self.bert.get_input_embeddings()

    def set_input_embeddings(self, table: Embedding) -> None:
        """Replace the word table by another of the same shape, for the decoder too if they are tied."""
        self.bert.set_input_embeddings(table)
        if self.config.tie_word_embedding:
            self.tie_weights()

    def resize_token_embeddings(self, n_words: int) -> Embedding:
        """Give word table, decoder and its bias `n_words` rows: old ones stay, new ones start as in a new model.

        Raises
        ------
        ValueError
            `n_words` is smaller than 1, or leaves out the padding.
        """
        is_tied = self.config.tie_word_embedding
        old = self.cls.predictions.decoder
        table = self.bert.resize_token_embeddings(n_words)
        self.config = replace(self.bert.config)
        values = resized(old, n_words, self.config.initializer_range)
        self.cls.predictions.decoder = Linear(self.config.hidden_size, n_words, lambda _: values["weight"])
        self.cls.predictions.decoder.bias.adopt(values["bias"])
        self.cls.predictions.decoder.to(self.device)
        self.cls.predictions.decoder.weight.move_like(old.weight)
        self.special_token_ids = [i for i in self.special_token_ids if i < n_words]
        if is_tied:
            self.tie_weights()
        return table

    def get_output_embeddings(self) -> Linear:
        """Return the decoder."""
        return self.cls.predictions.decoder

    def set_output_embeddings(self, decoder: Linear) -> None:
        """Replace the decoder by another of the same shape."""
        check_table("output embeddings", decoder, Linear, self.cls.predictions.decoder.weight.shape)
        self.cls.predictions.decoder = decoder
        self._settle(decoder.weight is self.bert.embeddings.word_embeddings.weight)

    def tie_weights(self) -> None:
        """Let the decoder multiply with the word table itself."""
        self.cls.predictions.decoder.weight = self.bert.embeddings.word_embeddings.weight
        self._settle(True)

    def untie_weights(self) -> None:
        """Give the decoder a weight of its own, equal to the word table."""
        values = np.array(self.bert.embeddings.word_embeddings.weight.numpy())
        weight = Parameter(values.shape, lambda _: values)
        weight.move_like(self.bert.embeddings.word_embeddings.weight)
        self.cls.predictions.decoder.weight = weight
        self._settle(False)

    def _settle(self, is_tied: bool) -> None:
        self.config.tie_word_embedding = self.bert.config.tie_word_embedding = is_tied
