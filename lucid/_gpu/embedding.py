"""The input of BERT on the GPU, and the gradients of tables, summed in one order."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from lucid._gpu.layer_norm import WARP, held_size, norm_backward, warps_of
from lucid._gpu.runtime import Array, blocks, c_type, contiguous, empty, launch, place, xp

TOKENS_AT_ONCE = 64  # of one table row that one block adds; a row that is looked up more often takes two steps


class Segments(NamedTuple):
    """Tokens sorted by the table row that they look up.

    Attributes
    ----------
    rows : array, int32. The rows that are looked up, rising.
    order : array, int32, shape (T,). The tokens, those of a row together, in their own order.
    pieces : array, int32. Where in `order` each piece of at most `TOKENS_AT_ONCE` tokens of one row begins, and the end.
    starts : array, int32. Where among the pieces those of each row begin, and the end.
    """

    rows: Any
    order: Any
    pieces: Any
    starts: Any


def segments_of(ids: Any) -> Segments:
    """Return how the gradients of tokens are added to those of a table, on the host, where ids are.

    Parameters
    ----------
    ids : array, int32, shape (T,), T > 0
    """
    n = len(ids)
    # One sort of (id, token) is stable, and several times faster than a stable sort of ids.
    keys = np.sort(ids.astype(np.int64) * n + np.arange(n))
    order = (keys % n).astype(np.int32)
    rows, begins, counts = np.unique(keys // n, return_index=True, return_counts=True)
    n_pieces = -(-counts // TOKENS_AT_ONCE)
    starts = np.concatenate([[0], np.cumsum(n_pieces)])
    pieces = np.repeat(begins, n_pieces) + TOKENS_AT_ONCE * (np.arange(starts[-1]) - np.repeat(starts[:-1], n_pieces))
    return Segments(rows.astype(np.int32), order, np.append(pieces, n).astype(np.int32), starts.astype(np.int32))


def embedding_forward(
    words: Array,
    ids: Array,
    positions: Array,
    position_ids: Array,
    types: Array,
    type_ids: Array,
    gain: Array,
    bias: Array,
    eps: float,
    y: Array,
    total: Array | None,
    mean: Array | None,
    rstd: Array | None,
) -> None:
    """y[t] = LayerNorm(words[ids[t]] + positions[position_ids[t]] + types[type_ids[t]]); `total`, `mean`, `rstd` may be None."""
    n_rows, width = y.shape
    n_bytes = 4 * held_size(width, y.itemsize)
    n_warps = warps_of(n_bytes, 4)
    tables = (words, ids, positions, position_ids, types, type_ids)
    args = (*tables, gain, bias, np.float32(eps), y, total, mean, rstd, np.int32(n_rows), np.int32(width))
    launch("embedding", f"embedding_forward<{c_type(y)}>", blocks(n_rows, n_warps), WARP * n_warps, args, shared=n_warps * n_bytes)


def sum_segments(rows: Array, order: Array | None, starts: Array, out: Array) -> None:
    """out[s] = sum of rows[order[i]] for i from starts[s] to starts[s + 1], in that order; of rows[i] without `order`."""
    n_segments, n = out.shape
    threads = min(256, blocks(blocks(n, 16 // rows.itemsize), WARP) * WARP)
    launch("embedding", f"sum_segments<{c_type(rows)}>", n_segments, threads, (rows, order, starts, out, np.int32(n)))


def forward(
    words: Array,
    positions: Array,
    types: Array,
    gain: Array,
    bias: Array,
    *,
    ids: Array,
    position_ids: Array,
    type_ids: Array,
    eps: float,
    keep: bool,
) -> tuple[Array, Any]:
    """Do what `lucid.ops.embedding` says."""
    y = empty((len(ids), words.shape[1]), words.dtype)
    total = empty(y.shape, y.dtype) if keep else None
    mean, rstd = (empty((len(ids),)), empty((len(ids),))) if keep else (None, None)
    tables = [contiguous(table) for table in (words, positions, types)]
    if y.size:
        embedding_forward(
            tables[0],
            place(ids),
            tables[1],
            place(position_ids),
            tables[2],
            place(type_ids),
            contiguous(gain),
            contiguous(bias),
            eps,
            y,
            total,
            mean,
            rstd,
        )
    looked_up = [(table.shape, index) for table, index in zip(tables, (ids, position_ids, type_ids), strict=True)]
    return y, (total, gain, mean, rstd, looked_up) if keep else None


def table_gradient(d_rows: Array, ids: Array) -> tuple[Array, Array]:
    """Return the rows of a table that were looked up, int32, and their gradients, float32: sums over tokens in one order."""
    ids = ids if isinstance(ids, np.ndarray) else xp.asnumpy(ids)
    if not ids.size:
        return xp.zeros(0, np.int32), empty((0, d_rows.shape[1]))
    segments = segments_of(ids)
    values = empty((len(segments.pieces) - 1, d_rows.shape[1]))
    sum_segments(d_rows, xp.asarray(segments.order), xp.asarray(segments.pieces), values)
    if len(segments.starts) < len(segments.pieces):
        of_pieces, values = values, empty((len(segments.rows), d_rows.shape[1]))
        sum_segments(of_pieces, None, xp.asarray(segments.starts), values)
    return xp.asarray(segments.rows), values


def backward(saved: tuple[Any, ...], d_y: Array) -> tuple[Any, ...]:
    """Return the gradient of each table as (rows, values, shape), then those of gain and bias."""
    total, gain, mean, rstd, looked_up = saved
    d_total, d_gain, d_bias = norm_backward(total, gain, mean, rstd, d_y)
    return (*((*table_gradient(d_total, ids), shape) for shape, ids in looked_up), d_gain, d_bias)
