"""BERT as in Devlin et al. 2019: embeddings, then layers of attention and feed-forward, then a pooler.

Inside, a batch is packed: arrays are [tokens, width] and hold no padding (packing.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lucid.autograd import apply, is_grad_enabled, recompute
from lucid.device import device_of
from lucid.models.bert.config import BERTConfig
from lucid.models.bert.embed import Embed
from lucid.models.bert.packing import PackedBatch, TokenRows, pack
from lucid.models.bert.room import room_for
from lucid.models.pretrained import PretrainedModel, folder_has_pooler
from lucid.nn import Dropout, Embedding, LayerNorm, Linear, Module, ModuleList, init
from lucid.nn.derived import derived
from lucid.ops.attention import AttentionDropout, attention
from lucid.ops.attention_map import attention_map
from lucid.ops.embedding import embedding
from lucid.ops.encoder import LayerWeights, encoder
from lucid.ops.reshape import reshape
from lucid.ops.rows import gather_rows, scatter_rows
from lucid.random import Purpose, resolve_seed, stream
from lucid.tensor import Tensor


class BERTOutput(NamedTuple):
    """What `BERT.forward` returns when inner states are asked for.

    Attributes
    ----------
    sequence_output : Tensor, (B, S, C)
    pooled_output : Tensor, (B, C), or None
    hidden_states : list of Tensor (B, S, C): the embeddings, then the output of every layer; or None
    attentions : list of Tensor (B, H, S, S), a layer each; or None. Probabilities before dropout.
    """

    sequence_output: Tensor
    pooled_output: Tensor | None
    hidden_states: list[Tensor] | None
    attentions: list[Tensor] | None


@dataclass
class Trace:
    """Inner states, as they pass by; `attentions` None where they are not asked for."""

    hidden_states: list[Tensor] = field(default_factory=list)
    attentions: list[Tensor] | None = None


class BERTEmbeddings(Module):
    """Word + position + segment vectors, LayerNorm, dropout (figure 2 of the paper)."""

    def __init__(self, config: BERTConfig) -> None:
        super().__init__()
        width, std = config.hidden_size, config.initializer_range
        self.word_embeddings = Embedding(config.vocab_size, width, init.normal(std))
        self.position_embeddings = Embedding(config.max_position_embeddings, width, init.normal(std))
        self.token_type_embeddings = Embedding(config.type_vocab_size, width, init.normal(std))
        self.layer_norm = LayerNorm(width, config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob, Purpose.EMBEDDING_DROPOUT)

    def forward(self, batch: PackedBatch) -> Tensor:
        """Return the first hidden state, (T, C)."""
        words = self.word_embeddings.table() if batch.embeds is None else self._as_words(batch.embeds)
        x: Tensor = apply(
            embedding,
            words,
            self.value(self.position_embeddings.weight),
            self.value(self.token_type_embeddings.weight),
            self.value(self.layer_norm.weight),
            self.value(self.layer_norm.bias),
            ids=batch.ids,
            position_ids=batch.position_ids,
            type_ids=batch.type_ids,
            eps=self.layer_norm.eps,
        )
        return self.dropout(x, batch)  # type: ignore[no-any-return]

    def _as_words(self, embeds: Tensor) -> Tensor:
        """Return vectors in place of words where the tables are, in their type."""
        tables = self.position_embeddings.weight.operand
        if device_of(tables) == embeds.device and tables.dtype == embeds.dtype:
            return embeds
        if embeds.requires_grad:
            raise TypeError(f"inputs_embeds can get a gradient as {tables.dtype} on the {device_of(tables)}, where the model is")
        return embeds.to(device_of(tables)).to(tables.dtype)


class BERTAttention(Module):
    """LayerNorm(x + dropout(dense(attention(x)))). Q, K and V are one product."""

    def __init__(self, config: BERTConfig, layer: int) -> None:
        super().__init__()
        width, std = config.hidden_size, config.initializer_range
        self.qkv = Linear(width, 3 * width, init.normal(std))
        self.dense = Linear(width, width, init.normal(std))
        self.layer_norm = LayerNorm(width, config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob, Purpose.ATTENTION_OUTPUT_DROPOUT, layer)
        self.n_heads = config.num_attention_heads
        self.p_dropout = config.attention_probs_dropout_prob
        self.stream = stream(Purpose.ATTENTION_DROPOUT, layer)

    def forward(self, hidden: Tensor, batch: PackedBatch, rows: TokenRows | None = None, trace: Trace | None = None) -> Tensor:
        """Return the next hidden state of all tokens, (T, C), or of `rows`, (P, C)."""
        if rows is None:
            asked, queries, keys_values, query_starts = batch, self.qkv(hidden), None, None
            if trace is not None and trace.attentions is not None:
                trace.attentions.append(
                    apply(attention_map, queries, n_heads=self.n_heads, starts=batch.starts, columns=batch.columns, length=batch.shape[1])
                )
        else:
            asked, query_starts = batch.take(rows), rows.starts
            keys_values = self.qkv(hidden, columns=(hidden.shape[1], 3 * hidden.shape[1]))
            hidden = apply(gather_rows, hidden, rows=rows.index)
            queries = self.qkv(hidden, columns=(0, hidden.shape[1]))
        context = apply(
            attention,
            queries,
            keys_values,
            n_heads=self.n_heads,
            key_starts=batch.starts,
            query_starts=query_starts,
            dropout=self._dropout(asked, batch),
        )
        return self.layer_norm(self.dropout(self.dense(context), asked), residual=hidden)  # type: ignore[no-any-return]

    def _dropout(self, asked: PackedBatch, batch: PackedBatch) -> AttentionDropout | None:
        if not self.training or self.p_dropout == 0 or batch.seed is None:
            return None
        return AttentionDropout(self.p_dropout, batch.seed, self.stream, asked.places, batch.places, batch.examples)

    def extra_repr(self) -> str:
        """Return the number of heads and the dropout of the probabilities."""
        return f"n_heads={self.n_heads}, p_dropout={self.p_dropout:g}"


class BERTFeedForward(Module):
    """LayerNorm(x + dropout(dense_out(activation(dense_in(x)))))."""

    def __init__(self, config: BERTConfig, layer: int) -> None:
        super().__init__()
        width, inner, std = config.hidden_size, config.intermediate_size, config.initializer_range
        self.dense_in = Linear(width, inner, init.normal(std))
        self.dense_out = Linear(inner, width, init.normal(std))
        self.layer_norm = LayerNorm(width, config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob, Purpose.FEED_FORWARD_DROPOUT, layer)
        self.activation = config.hidden_act

    def forward(self, hidden: Tensor, batch: PackedBatch) -> Tensor:
        """Return the next hidden state, (T, C)."""
        inner = self.dense_in(hidden, activation=self.activation)
        return self.layer_norm(self.dropout(self.dense_out(inner), batch), residual=hidden)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        """Return the activation."""
        return f"activation={self.activation!r}"


class BERTLayer(Module):
    """Attention, then feed-forward."""

    def __init__(self, config: BERTConfig, layer: int) -> None:
        super().__init__()
        self.attention = BERTAttention(config, layer)
        self.feed_forward = BERTFeedForward(config, layer)

    def forward(self, hidden: Tensor, batch: PackedBatch, rows: TokenRows | None = None, trace: Trace | None = None) -> Tensor:
        """Return the next hidden state of all tokens, (T, C), or of `rows`, (P, C)."""
        hidden = self.attention(hidden, batch, rows, trace)
        return self.feed_forward(hidden, batch if rows is None else batch.take(rows))  # type: ignore[no-any-return]

    def weights(self) -> LayerWeights | None:
        """Return what `forward` computes with, or None where the op `encoder` does not do the same.

        Something is in train mode, lives on the GPU, was replaced by what behaves otherwise, or has another shape.
        """
        attention, feed_forward = self.attention, self.feed_forward
        qkv, dense, norm = attention.qkv, attention.dense, attention.layer_norm
        dense_in, dense_out, last_norm = feed_forward.dense_in, feed_forward.dense_out, feed_forward.layer_norm
        parts = (self, attention, qkv, dense, norm, attention.dropout, feed_forward, dense_in, dense_out, last_norm, feed_forward.dropout)
        if tuple(map(type, parts)) != _LAYER_PARTS or any(part.training or not _OWN.isdisjoint(vars(part)) for part in parts):
            return None
        if any(parameter.device != "cpu" for parameter in self.parameters()):
            return None
        try:
            return LayerWeights(
                attention.n_heads,
                feed_forward.activation,
                qkv.weight.packed(),
                qkv.bias.operand,
                dense.weight.packed(),
                dense.bias.operand,
                norm.weight.operand,
                norm.bias.operand,
                norm.eps,
                dense_in.weight.packed(),
                dense_in.bias.operand,
                dense_out.weight.packed(),
                dense_out.bias.operand,
                last_norm.weight.operand,
                last_norm.bias.operand,
                last_norm.eps,
            )
        except (TypeError, ValueError):  # pruned heads, no activation: the modules compute it, or say what is wrong
            return None


_LAYER_PARTS: tuple[type[Module], ...] = (
    BERTLayer,
    BERTAttention,
    Linear,
    Linear,
    LayerNorm,
    Dropout,
    BERTFeedForward,
    Linear,
    Linear,
    LayerNorm,
    Dropout,
)
_OWN = frozenset({"forward", "value"})  # methods that a user may give to a module of his own
_FORWARDS = tuple((kind, kind.forward) for kind in dict.fromkeys(_LAYER_PARTS))


def _is_patched() -> bool:
    """Return whether a class has another `forward` than it was written with: a profiler's, or an adapter's."""
    return any(kind.forward is not forward for kind, forward in _FORWARDS)


class BERTEncoder(Module):
    """The layers.

    Attributes
    ----------
    is_recomputed : bool
        Keep only the hidden state before each layer for backward, and run the layer again there: less memory,
        a third more time.
    is_fused : bool
        Run all layers as one operation where that gives the same bits: in eval mode on the CPU, with the modules that this class
        makes, without a gradient or inner states. False runs the modules one by one there, too.
    """

    is_fused = True

    def __init__(self, config: BERTConfig) -> None:
        super().__init__()
        self.is_recomputed = False
        self.layer = ModuleList([BERTLayer(config, i) for i in range(config.num_hidden_layers)])

    def forward(self, hidden: Tensor, batch: PackedBatch, rows: TokenRows | None = None, trace: Trace | None = None) -> Tensor:
        """Return the last hidden state; with `rows`, the last layer runs its queries and feed-forward for those only."""
        is_recorded = is_grad_enabled() and isinstance(hidden, Tensor) and hidden.requires_grad
        if self.is_fused and not self.training and trace is None and not is_recorded and not _is_patched():
            weights = derived(self, self._weights)
            if weights is not None:
                asked = {} if rows is None else {"rows": rows.index, "row_starts": rows.starts}
                return apply(encoder, hidden, layers=weights, starts=batch.starts, **asked)  # type: ignore[no-any-return]
        *first, last = self.layer
        for layer in first:
            if trace is not None:
                trace.hidden_states.append(hidden)
            if self.is_recomputed and trace is None:
                hidden = recompute(partial(layer, batch=batch), hidden, layer.parameters())
            else:
                hidden = layer(hidden, batch, trace=trace)
        if trace is not None:
            trace.hidden_states.append(hidden)
        return last(hidden, batch, rows, trace)  # type: ignore[no-any-return]

    def _weights(self) -> list[LayerWeights] | None:
        """Return the layers' weights for the op `encoder`, or None if one of them has to run by itself."""
        weights = [layer.weights() if isinstance(layer, BERTLayer) else None for layer in self.layer]
        return None if any(layer is None for layer in weights) else weights  # type: ignore[return-value]


class BERTPooler(Module):
    """tanh(dense(the first token's vector))."""

    def __init__(self, config: BERTConfig) -> None:
        super().__init__()
        self.dense = Linear(config.hidden_size, config.hidden_size, init.normal(config.initializer_range))

    def forward(self, first: Tensor) -> Tensor:
        """Return (B, C) for the first tokens' vectors, (B, C)."""
        return self.dense(first, activation="tanh")  # type: ignore[no-any-return]


class BERT(PretrainedModel, Embed):
    """The BERT encoder.

    Parameters
    ----------
    config : BERTConfig

    Notes
    -----
    A new model is in train mode: dropout is active until ``.eval()``.
    """

    config: BERTConfig
    architecture = "BertModel"

    def __init__(self, config: BERTConfig) -> None:
        super().__init__(config)
        self.embeddings = BERTEmbeddings(config)
        self.encoder = BERTEncoder(config)
        self.pooler = BERTPooler(config) if config.add_pooling_layer else None

    def pack(self, *inputs: Any, seed: int | None = None, is_eval: bool = False, **named_inputs: Any) -> PackedBatch:
        """Check and pack a batch; in train mode it carries the seed of its dropout, unless `is_eval`."""
        has_dropout = self.training and not is_eval
        return pack(self.config, *inputs, seed=resolve_seed(seed) if has_dropout else None, **named_inputs)

    def encode(self, batch: PackedBatch, rows: TokenRows | None = None, trace: Trace | None = None) -> Tensor:
        """Return the last hidden state of the packed tokens, (T, C), or of `rows`, (P, C)."""
        if rows is not None and len(rows.index) == batch.n_tokens:
            rows = None
        with room_for(self, batch):
            hidden: Tensor = self.encoder(self.embeddings(batch), batch, rows, trace)
        if trace is not None:
            trace.hidden_states = [unpack(state, batch) for state in [*trace.hidden_states, hidden]]
        return hidden

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
    ) -> tuple[Tensor, Tensor | None] | BERTOutput:
        """Encode a batch.

        Parameters
        ----------
        input_ids : integers, shape (B, S). Words; or
        inputs_embeds : float, shape (B, S, C). Vectors in place of words; exactly one of the two.
        attention_mask : 0 and 1, shape (B, S), optional. 0 is padding, anywhere.
        token_type_ids : integers, shape (B, S), optional. Segment, default 0.
        position_ids : integers, shape (B, S), optional. Default: the column.
        output_hidden_states, output_attentions : bool
            Return a `BERTOutput` that holds these as well.
        seed : int, optional. Of dropout, in train mode.

        Returns
        -------
        sequence_output : Tensor, float32, shape (B, S, C). Zeros at padding.
        pooled_output : Tensor, float32, shape (B, C), or None without a pooler. Zeros where a sequence has no token.

        Raises
        ------
        IndexError
            An id, type or position is out of range.
        TypeError, ValueError
            Wrong dtypes, shapes or values.
        """
        batch = self.pack(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, seed=seed)
        trace = make_trace(output_hidden_states, output_attentions)
        with room_for(self, batch):
            hidden = self.encode(batch, trace=trace)
            sequence, pooled = unpack(hidden, batch), self._pool(hidden, batch)
        if trace is None:
            return sequence, pooled
        return BERTOutput(sequence, pooled, trace.hidden_states if output_hidden_states else None, trace.attentions)

    def _pool(self, hidden: Tensor, batch: PackedBatch) -> Tensor | None:
        if self.pooler is None:
            return None
        has_tokens = np.flatnonzero(np.diff(batch.starts)).astype(np.int32)
        pooled = self.pooler(apply(gather_rows, hidden, rows=batch.starts[has_tokens]))
        return apply(scatter_rows, pooled, rows=has_tokens, n_rows=batch.shape[0])  # type: ignore[no-any-return]

    @classmethod
    def _wants_pooler(cls, folder: Path) -> bool:
        return folder_has_pooler(folder)

    def _as_masked_lm(self) -> Module:
        holder = Module()
        holder.bert = self
        return holder

    def get_input_embeddings(self) -> Embedding:
        """Return the word table."""
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, table: Embedding) -> None:
        """Replace the word table by another of the same shape."""
        check_table("input embeddings", table, Embedding, self.embeddings.word_embeddings.weight.shape)
        self.embeddings.word_embeddings = table

    def resize_token_embeddings(self, n_words: int) -> Embedding:
        """Give the word table `n_words` rows: old ones stay, new ones start as in a new model.

        Raises
        ------
        ValueError
            `n_words` is smaller than 1, or leaves out the padding.
        """
        self.config = replace(self.config, vocab_size=n_words)
        old = self.embeddings.word_embeddings
        values = resized(old, n_words, self.config.initializer_range)
        self.embeddings.word_embeddings = Embedding(n_words, self.config.hidden_size, lambda _: values["weight"])
        self.embeddings.word_embeddings.weight.move_like(old.weight)
        return self.embeddings.word_embeddings

    def get_output_embeddings(self) -> None:
        """Return None: the backbone has no decoder."""

    def set_output_embeddings(self, decoder: Any) -> None:
        """Raise: the backbone has no decoder."""
        raise AttributeError("BERT has no output embeddings; BERTForMaskedLM has")

    def tie_weights(self) -> None:
        """Do nothing: the backbone has no decoder to tie."""


def make_trace(output_hidden_states: bool, output_attentions: bool) -> Trace | None:
    """Return where inner states go, or None if none are asked for."""
    if not (output_hidden_states or output_attentions):
        return None
    return Trace(attentions=[] if output_attentions else None)


def unpack(rows: Tensor, batch: PackedBatch) -> Tensor:
    """Return rows of packed tokens, (T, any), in the padded batch, (B, S, any), with zeros at padding."""
    n_sequences, length = batch.shape
    padded = apply(scatter_rows, rows, rows=batch.cells, n_rows=n_sequences * length)
    return apply(reshape, padded, shape=(n_sequences, length, rows.shape[1]))  # type: ignore[no-any-return]


def resized(table: Embedding | Linear, n_rows: int, std: float) -> dict[str, Any]:
    """Return the values of a table's parameters with rows cut off, or new ones added as in a new model."""
    values = {}
    for name, parameter in table.named_parameters():
        old = parameter.numpy()
        new = init.normal(std if name == "weight" else 0.0)((n_rows, *parameter.shape[1:]))
        new[: len(old)] = old[:n_rows]
        values[name] = new
    return values


def check_table(name: str, module: Any, kind: type[Module], shape: tuple[int, ...]) -> None:
    """Raise unless `module` is a `kind` whose weight has this shape."""
    if not isinstance(module, kind):
        raise TypeError(f"{name} must be a {kind.__name__}, not {type(module).__name__}")
    if module.weight.shape != shape:  # type: ignore[attr-defined]
        raise ValueError(f"{name} must have shape {shape}, not {module.weight.shape}")  # type: ignore[attr-defined]
