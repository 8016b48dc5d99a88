"""Padding is removed at the door: a batch becomes one row per real token.

Everything between `pack` and `unpack` works on [tokens, width]; only attention looks at `starts`. So cost
follows real tokens, and padding cannot reach a result.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from lucid.autograd import apply
from lucid.device import on_host
from lucid.models.bert.config import BERTConfig
from lucid.ops.reshape import reshape
from lucid.tensor import Tensor, as_array

# Real tokens of one forward pass over many sequences: enough to keep the kernels busy, little memory.
TOKENS_AT_ONCE = 4096


@dataclass(frozen=True)
class TokenRows:
    """Some of a batch's tokens.

    Attributes
    ----------
    index : array, int32, shape (P,), rising. Places among the packed tokens.
    starts : array, int32, shape (B + 1,). Sequence b has rows starts[b] to starts[b + 1].
    """

    index: Any
    starts: Any


@dataclass(frozen=True)
class PackedBatch:
    """The real tokens of a batch, one row each.

    Attributes
    ----------
    shape : (B, S). Of the padded batch.
    cells : array, int32, shape (T,), rising. Where a token stands in the flattened (B, S).
    ids : array, int32, shape (T,). Words, or rows of `embeds`.
    position_ids, type_ids : array, int32, shape (T,)
    starts : array, int32, shape (B + 1,). Sequence b has tokens starts[b] to starts[b + 1] (`cu_seqlens`).
    embeds : Tensor, float32, shape (B * S, C), or None. Vectors in place of the word table.
    seed : int or None. For dropout; None is none.
    numbers : array, int32, shape (B,), or None. By which dropout knows the sequences; None counts them.
    own_places : array, int32, shape (T,), or None. `places`, where they are not counted from `starts`.
    """

    shape: tuple[int, int]
    cells: Any
    ids: Any
    position_ids: Any
    type_ids: Any
    starts: Any
    embeds: Any = None
    seed: int | None = None
    numbers: Any = None
    own_places: Any = None

    @property
    def n_tokens(self) -> int:
        """T, the number of real tokens."""
        return len(self.cells)

    @cached_property
    def columns(self) -> Any:
        """Column of each token in the padded batch, int32, shape (T,)."""
        return self.cells % np.int32(max(1, self.shape[1]))

    @cached_property
    def places(self) -> Any:
        """Number of each token among the real tokens of its sequence, int32, shape (T,): padding does not count."""
        if self.own_places is not None:
            return self.own_places
        return np.arange(self.n_tokens, dtype=np.int32) - np.repeat(self.starts[:-1], np.diff(self.starts))

    @cached_property
    def examples(self) -> Any:
        """Number of each sequence, int32, shape (B,)."""
        return np.arange(self.shape[0], dtype=np.int32) if self.numbers is None else self.numbers

    @cached_property
    def token_examples(self) -> Any:
        """Sequence of each token, int32, shape (T,)."""
        return np.repeat(self.examples, np.diff(self.starts))

    def rows_at(self, cells: Any) -> TokenRows:
        """Return the rows of real tokens that stand at `cells`, a boolean array of shape (B, S)."""
        index = np.flatnonzero(cells.reshape(-1)[self.cells]).astype(np.int32)
        return TokenRows(index, np.searchsorted(index, self.starts).astype(np.int32))

    def take(self, rows: TokenRows) -> PackedBatch:
        """Return the batch of these rows only: what dropout asks about them stays the same."""
        index = rows.index
        return PackedBatch(
            self.shape,
            self.cells[index],
            self.ids[index],
            self.position_ids[index],
            self.type_ids[index],
            rows.starts,
            self.embeds,
            self.seed,
            self.numbers,
            self.places[index],
        )


def integers(name: str, values: Any, shape: tuple[int, ...] | None = None) -> np.ndarray[Any, Any]:
    """Return `values` as an int64 array (B, S).

    Raises
    ------
    TypeError
        They are not integers.
    ValueError
        They have another shape.
    """
    array = on_host(as_array(values))
    if array.size == 0 and array.dtype.kind == "f" and not hasattr(values, "dtype"):
        array = array.astype(np.int64)  # an empty list says nothing of its type
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} must hold integers, not {array.dtype}")
    if array.ndim != 2:
        hint = f"; give {name}[None] for one sequence" if array.ndim == 1 else ""
        raise ValueError(f"{name} must have shape (batch, sequence), not {array.shape}{hint}")
    if shape is not None and array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}, the batch has shape {shape}")
    want_size(array.shape)
    if array.dtype.kind == "u" and array.itemsize == 8 and array.size and int(array.max()) > np.iinfo(np.int64).max:
        raise IndexError(f"{name} holds {int(array.max())}, which is no 64-bit integer")
    whole: np.ndarray[Any, Any] = array.astype(np.int64, copy=False)
    return whole


def want_size(shape: tuple[int, ...]) -> None:
    """Raise ValueError unless a batch of this shape can be numbered with 32 bits."""
    if max(shape[:2]) >= 1 << 31 or shape[0] * shape[1] >= 1 << 31:
        raise ValueError(f"a batch holds fewer than 2**31 cells, not {shape[0]} x {shape[1]}: split it")


def want_range(name: str, array: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any], limit: int, what: str) -> None:
    """Raise IndexError unless every value of `array` (B, S) where `wanted` is set lies in [0, limit)."""
    is_bad = (array < 0) | (array >= limit)
    is_bad &= wanted
    if is_bad.any():
        b, s = np.argwhere(is_bad)[0]
        raise IndexError(f"{name}[{b}, {s}] is {array[b, s]}, outside [0, {limit}): {what}")


def flags(name: str, values: Any, shape: tuple[int, int]) -> np.ndarray[Any, Any]:
    """Return an array (B, S) of 0 and 1, of any type of number, as booleans.

    Raises
    ------
    TypeError, ValueError
        It has another shape, or other values.
    """
    array = on_host(as_array(values))
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}, the batch has shape {shape}")
    is_set: np.ndarray[Any, Any] = array != 0
    if array.dtype.kind != "b" and not ((array == 1) | ~is_set).all():
        raise ValueError(f"{name} must hold {'0 (padding) and 1 (token)' if name == 'attention_mask' else '0 and 1'} only")
    return is_set


def attention_cells(attention_mask: Any, shape: tuple[int, int]) -> np.ndarray[Any, Any]:
    """Return which cells of (B, S) hold real tokens, as booleans.

    Raises
    ------
    TypeError, ValueError
        The mask has another shape, or values other than 0 and 1.
    """
    if attention_mask is None:
        return np.ones(shape, bool)
    return flags("attention_mask", attention_mask, shape)


def pack(
    config: BERTConfig,
    input_ids: Any = None,
    attention_mask: Any = None,
    token_type_ids: Any = None,
    position_ids: Any = None,
    inputs_embeds: Any = None,
    *,
    seed: int | None = None,
) -> PackedBatch:
    """Check a batch as users give it, and pack its real tokens.

    Parameters
    ----------
    config : BERTConfig
    input_ids : integers, shape (B, S); or
    inputs_embeds : float, shape (B, S, C). Exactly one of the two.
    attention_mask : 0 and 1, shape (B, S), optional. Holes are allowed.
    token_type_ids, position_ids : integers, shape (B, S), optional. Default 0, and the column.
    seed : int, optional. For dropout.

    Raises
    ------
    IndexError
        An id, type or position of a real token is out of range; the message names it and its place.
    TypeError, ValueError
        Wrong dtypes, shapes or values. What stands under mask 0 is not looked at.
    """
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("give exactly one of input_ids and inputs_embeds")
    embeds = None
    if inputs_embeds is not None:
        embeds = as_array(inputs_embeds)
        if embeds.dtype.kind != "f":
            raise TypeError(f"inputs_embeds must hold floating-point numbers, not {embeds.dtype}")
        if isinstance(inputs_embeds, Tensor) and inputs_embeds.requires_grad and embeds.dtype != np.float32:
            raise TypeError(f"inputs_embeds can get a gradient in float32, not {embeds.dtype}")
        if embeds.ndim != 3 or embeds.shape[2] != config.hidden_size:
            raise ValueError(f"inputs_embeds must have shape (batch, sequence, {config.hidden_size}), not {embeds.shape}")
        shape = embeds.shape[:2]
        want_size(shape)
        tensor = inputs_embeds if isinstance(inputs_embeds, Tensor) and embeds.dtype == np.float32 else Tensor(embeds, np.float32)
        embeds = apply(reshape, tensor, shape=(shape[0] * shape[1], config.hidden_size))
        ids = np.arange(shape[0] * shape[1], dtype=np.int64).reshape(shape)
    else:
        ids = integers("input_ids", input_ids)
        shape = ids.shape
    is_real = attention_cells(attention_mask, shape)
    if embeds is None:
        want_range("input_ids", ids, is_real, config.vocab_size, "the word table has that many rows")
    cells = np.flatnonzero(is_real).astype(np.int32)
    if position_ids is None:
        positions = cells % np.int32(max(1, shape[1]))
        longest = int(positions.max(initial=-1)) + 1
        if longest > config.max_position_embeddings:
            raise ValueError(
                f"a sequence has {longest} tokens, the position table only {config.max_position_embeddings} rows: shorten or split the text"
            )
    else:
        table = integers("position_ids", position_ids, shape)
        want_range("position_ids", table, is_real, config.max_position_embeddings, "the position table has that many rows")
        positions = table.reshape(-1)[cells].astype(np.int32)
    if token_type_ids is None:
        types = np.zeros(len(cells), np.int32)
    else:
        table = integers("token_type_ids", token_type_ids, shape)
        want_range("token_type_ids", table, is_real, config.type_vocab_size, "the segment table has that many rows")
        types = table.reshape(-1)[cells].astype(np.int32)
    starts = np.zeros(shape[0] + 1, np.int32)
    np.cumsum(is_real.sum(axis=1), out=starts[1:])
    return PackedBatch(shape, cells, ids.reshape(-1)[cells].astype(np.int32), positions, types, starts, embeds, seed)


def pack_lists(
    config: BERTConfig,
    ids: Sequence[Sequence[int]],
    types: Sequence[Sequence[int]] | None = None,
    *,
    numbers: Any = None,
    seed: int | None = None,
) -> PackedBatch:
    """Pack sequences of any lengths that were never padded.

    Parameters
    ----------
    config : BERTConfig
    ids : B lists of ids
    types : B lists of segments, as long as those of ids; optional. Default 0.
    numbers : integers, B of them, optional. By which dropout knows the sequences.
    seed : int, optional. For dropout.

    Raises
    ------
    IndexError
        An id or a segment is out of range.
    ValueError
        A sequence is longer than the position table.
    """
    lengths = np.array([len(row) for row in ids], np.int64)
    longest = int(lengths.max(initial=0))
    if longest > config.max_position_embeddings:
        raise ValueError(
            f"a sequence has {longest} tokens, the position table only {config.max_position_embeddings} rows: shorten or split the text"
        )
    starts = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=starts[1:])
    if max(len(ids) * longest, int(starts[-1])) >= 1 << 31:
        raise ValueError(f"a batch holds fewer than 2**31 cells, not {len(ids)} x {longest}: split it")
    positions = np.arange(starts[-1]) - np.repeat(starts[:-1], lengths)
    cells = positions + np.repeat(np.arange(len(lengths)) * longest, lengths)

    def flat(name: str, rows: Sequence[Sequence[int]], limit: int, what: str) -> Any:
        values = np.fromiter((i for row in rows for i in row), np.int64, count=int(starts[-1]))
        is_bad = (values < 0) | (values >= limit)
        if is_bad.any():
            place = int(np.argmax(is_bad))
            b = int(np.searchsorted(starts, place, side="right")) - 1
            raise IndexError(f"{name}[{b}, {place - starts[b]}] is {values[place]}, outside [0, {limit}): {what}")
        return values.astype(np.int32)

    return PackedBatch(
        (len(ids), longest),
        cells.astype(np.int32),
        flat("input_ids", ids, config.vocab_size, "the word table has that many rows"),
        positions.astype(np.int32),
        np.zeros(int(starts[-1]), np.int32)
        if types is None
        else flat("token_type_ids", types, config.type_vocab_size, "the segment table has that many rows"),
        starts.astype(np.int32),
        seed=seed,
        numbers=None if numbers is None else np.asarray(numbers, np.int32),
    )


def by_tokens(lengths: Sequence[int], most_tokens: int = TOKENS_AT_ONCE, most_sequences: int | None = None) -> Iterator[list[int]]:
    """Cut sequences, longest first, into groups of at most `most_tokens` tokens; a longer one stands alone.

    Parameters
    ----------
    lengths : of the sequences
    most_tokens : int
    most_sequences : int, optional

    Yields
    ------
    numbers : list of int. Of the sequences in a group.

    Notes
    -----
    Sequences of like length share a group, so that its work divides evenly among threads. No result depends on
    it: a packed sequence knows nothing of its neighbours.
    """
    group: list[int] = []
    n_tokens = 0
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if group and (n_tokens + lengths[i] > most_tokens or len(group) == most_sequences):
            yield group
            group, n_tokens = [], 0
        group.append(i)
        n_tokens += lengths[i]
    if group:
        yield group
