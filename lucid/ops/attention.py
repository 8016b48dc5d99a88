"""Multi-head attention over packed sequences."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from lucid._ext import kernels
from lucid.device import is_on_gpu
from lucid.ops.op import Array, Kernel, Op, aligned, empty, on_gpu, rows_contiguous, stored_type, want, want_stream
from lucid.random import check_seed
from lucid.threads import get_num_threads


@dataclass(frozen=True, slots=True)
class AttentionDropout:
    """Dropout of attention probabilities, and where its random numbers come from.

    Attributes
    ----------
    p : float in [0, 1). Probability that a probability becomes 0; the others are divided by 1 - p.
    seed : int. Philox key.
    stream : int. Last word of the counter, from `lucid.random.stream`.
    query_columns : array, int32, shape (P,). Which token of its sequence a query is, padding not counted.
    key_columns : array, int32, shape (T,)
    examples : array, int32, shape (B,)

    Notes
    -----
    The element of a pair is head * 65536 + the key's column; its token position is the query's column.
    """

    p: float
    seed: int
    stream: int
    query_columns: Array
    key_columns: Array
    examples: Array


def want_starts(op: str, name: str, starts: Array, n_rows: int) -> None:
    """Raise unless `starts` (B + 1,), on the CPU, rises from 0 to the number of rows."""
    want(op, name, starts, np.int32, (None,))
    if is_on_gpu(starts):
        raise TypeError(f"{op}: {name} must be a NumPy array, on the GPU too: the work is cut by it")
    if len(starts) < 1 or starts[0] != 0 or starts[-1] != n_rows or (len(starts) > 1 and (starts[1:] < starts[:-1]).any()):
        raise ValueError(f"{op}: {name} must rise from 0 to the number of rows, {n_rows}")


def want_keys(op: str, names: str, query_starts: Array, key_starts: Array) -> None:
    """Raise ValueError unless both tell of the same sequences, and each with queries has keys; `names` is what the caller calls them."""
    if len(query_starts) != len(key_starts):
        raise ValueError(f"{op}: {names} must tell of the same sequences")
    if ((np.diff(query_starts) > 0) & (np.diff(key_starts) == 0)).any():
        raise ValueError(f"{op}: {names} give a sequence queries and no keys")


def _check(
    queries: Array,
    keys_values: Array | None = None,
    *,
    n_heads: int,
    key_starts: Array,
    query_starts: Array | None = None,
    dropout: AttentionDropout | None = None,
) -> None:
    want("attention", "queries", queries, stored_type(queries), (None, None))
    n_queries, width = queries.shape
    if keys_values is None:
        if width % 3:
            raise ValueError(f"attention: without keys_values, queries holds Q, K and V side by side: its width {width} must be 3 * C")
        width //= 3
    else:
        want("attention", "keys_values", keys_values, queries.dtype, (None, 2 * width))
    if n_heads < 1 or width % n_heads:
        raise ValueError(f"attention: width {width} must be a multiple of n_heads {n_heads}")
    want_starts("attention", "key_starts", key_starts, n_queries if keys_values is None else keys_values.shape[0])
    if query_starts is not None:
        want_starts("attention", "query_starts", query_starts, n_queries)
        want_keys("attention", "query_starts and key_starts", query_starts, key_starts)
    elif keys_values is not None:
        raise ValueError("attention: separate keys_values want query_starts")
    if dropout is not None:
        if not isinstance(dropout, AttentionDropout):
            raise TypeError(f"attention: dropout must be an AttentionDropout or None, not {type(dropout).__name__}")
        want_stream("attention", "dropout.stream", dropout.stream)
        want("attention", "dropout.query_columns", dropout.query_columns, np.int32, (n_queries,))
        want("attention", "dropout.key_columns", dropout.key_columns, np.int32, (int(key_starts[-1]),))
        want("attention", "dropout.examples", dropout.examples, np.int32, (len(key_starts) - 1,))
        check_seed(dropout.seed)
        if not 0 <= dropout.p < 1:
            raise ValueError(f"attention: dropout.p must lie in [0, 1), not {dropout.p}")


def _forward(
    queries: Array,
    keys_values: Array | None = None,
    *,
    n_heads: int,
    key_starts: Array,
    query_starts: Array | None = None,
    dropout: AttentionDropout | None = None,
    keep: bool,
) -> tuple[Array, Any]:
    q, k, v = _split(queries, keys_values)
    width = q.shape[1]
    out = empty((q.shape[0], width))
    scale = 1.0 / np.sqrt(max(1, width // n_heads))
    lse = empty((q.shape[0], n_heads)) if keep else None
    starts = np.ascontiguousarray(key_starts)
    query_starts = starts if query_starts is None else np.ascontiguousarray(query_starts)
    kernels.attention_forward(
        rows_contiguous(q),
        rows_contiguous(k),
        rows_contiguous(v),
        query_starts,
        starts,
        n_heads,
        scale,
        out,
        lse,
        *_dropout_arguments(dropout),
        get_num_threads(),
    )
    return out, (queries, keys_values, query_starts, starts, n_heads, lse, dropout) if keep else None


def _backward(saved: tuple[Any, ...], d_out: Array) -> tuple[Array, ...]:
    queries, keys_values, query_starts, starts, n_heads, lse, dropout = saved
    q, k, v = _split(queries, keys_values)
    d_queries = empty(queries.shape)
    d_keys_values = None if keys_values is None else empty(keys_values.shape)
    kernels.attention_backward(
        rows_contiguous(q),
        rows_contiguous(k),
        rows_contiguous(v),
        query_starts,
        starts,
        n_heads,
        1.0 / np.sqrt(max(1, q.shape[1] // n_heads)),
        lse,
        np.ascontiguousarray(d_out),
        *_split(d_queries, d_keys_values),
        *_dropout_arguments(dropout),
        get_num_threads(),
    )
    return (d_queries,) if d_keys_values is None else (d_queries, d_keys_values)


def _split(queries: Array, keys_values: Array | None) -> tuple[Array, Array, Array]:
    """Return Q, K and V as views."""
    if keys_values is None:
        width = queries.shape[1] // 3
        return queries[:, :width], queries[:, width : 2 * width], queries[:, 2 * width :]
    width = queries.shape[1]
    return queries, keys_values[:, :width], keys_values[:, width:]


def _dropout_arguments(dropout: AttentionDropout | None) -> tuple[Any, ...]:
    """Return the kernels' arguments for dropout, or for none."""
    if dropout is None:
        return None, None, None, 0, 0, 0.0
    places = (dropout.query_columns, dropout.key_columns, dropout.examples)
    return *(np.ascontiguousarray(aligned(place)) for place in places), dropout.seed, dropout.stream, dropout.p


attention = Op("attention", _check, cpu=Kernel(_forward, _backward), gpu=on_gpu("attention", is_fresh=True))
"""softmax(Q . Kᵀ / sqrt(D)) . V for every head, each query over the keys of its own sequence.

Parameters
----------
queries : array, float32 (or `stored_type`), shape (T, 3 * C): Q, K and V side by side; or Q alone, (P, C), with
keys_values : array, float32, shape (T, 2 * C): K and V side by side
n_heads : int. Head width D = C / n_heads.
key_starts : array, int32, shape (B + 1,). Sequence b has keys key_starts[b] to key_starts[b + 1].
query_starts : array, int32, shape (B + 1,). The same for the queries; wanted with `keys_values`. Both starts are NumPy arrays.
dropout : AttentionDropout, optional. Drops probabilities.

Returns
-------
out : array, float32, shape (T, C) or (P, C)

Raises
------
TypeError, ValueError
    Dtypes, shapes or starts do not agree.

Notes
-----
Source: Vaswani et al. 2017, eq. 1; online softmax: Milakov & Gimelshein 2018. No [S, S] array in memory.
"""
