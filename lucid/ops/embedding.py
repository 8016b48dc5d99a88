"""The input of BERT: word + position + segment vectors, normalised."""

from typing import Any

import numpy as np

from lucid._ext import kernels
from lucid.ops.layer_norm import norm_backward
from lucid.ops.linear import PackedWeight, want_weight
from lucid.ops.op import Array, Kernel, Op, RowsGradient, empty, stored_type, want, want_ids
from lucid.threads import threads_for


def _check(
    words: PackedWeight | Array,
    positions: Array,
    types: Array,
    gain: Array,
    bias: Array,
    *,
    ids: Array,
    position_ids: Array,
    type_ids: Array,
    eps: float,
) -> None:
    n_words, width = want_weight("embedding", "words", words)
    dtype = stored_type(words)
    want("embedding", "positions", positions, dtype, (None, width))
    want("embedding", "types", types, dtype, (None, width))
    want("embedding", "gain", gain, np.float32, (width,))
    want("embedding", "bias", bias, np.float32, (width,))
    want("embedding", "ids", ids, np.int32, (None,))
    n_tokens = len(ids)
    for name, index, limit in (
        ("ids", ids, n_words),
        ("position_ids", position_ids, positions.shape[0]),
        ("type_ids", type_ids, types.shape[0]),
    ):
        want("embedding", name, index, np.int32, (n_tokens,))
        want_ids("embedding", name, index, limit)
    if not np.float32(eps) > 0:
        raise ValueError(f"embedding: eps must be positive, not {eps}")


def _forward(
    words: PackedWeight | Array,
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
    is_packed = isinstance(words, PackedWeight)
    y = empty((len(ids), words.shape[1]))
    total = empty(y.shape) if keep else None
    mean, rstd = empty((2, len(ids))) if keep else (None, None)
    kernels.embedding_forward(
        (words.panels if is_packed else np.ascontiguousarray(words)).reshape(-1),
        is_packed,
        np.ascontiguousarray(ids),
        np.ascontiguousarray(positions),
        np.ascontiguousarray(position_ids),
        np.ascontiguousarray(types),
        np.ascontiguousarray(type_ids),
        np.ascontiguousarray(gain),
        np.ascontiguousarray(bias),
        eps,
        y,
        total,
        mean,
        rstd,
        threads_for(y.size),
    )
    if not keep:
        return y, None
    tables = ((words.shape, ids), (positions.shape, position_ids), (types.shape, type_ids))
    return y, (total, gain, mean, rstd, tables)


def _table_gradient(d_rows: Array, ids: Array, shape: tuple[int, ...]) -> RowsGradient:
    """Return the gradient of a table: for each row that was looked up, the sum over its tokens, in token order."""
    order = np.argsort(ids, kind="stable").astype(np.int32)
    rows, starts = np.unique(ids[order], return_index=True)
    values = empty((len(rows), shape[1]))
    kernels.sum_segments(d_rows, order, np.append(starts, len(ids)).astype(np.int32), values, threads_for(d_rows.size))
    return RowsGradient(rows, values, shape)


def _backward(saved: tuple[Any, ...], d_y: Array) -> tuple[Any, ...]:
    total, gain, mean, rstd, tables = saved
    d_total, d_gain, d_bias = norm_backward(total, gain, mean, rstd, d_y)
    return (*(_table_gradient(d_total, ids, shape) for shape, ids in tables), d_gain, d_bias)


def _on_gpu() -> Kernel:
    from lucid._gpu import embedding as gpu

    def backward(saved: tuple[Any, ...], d_y: Array) -> tuple[Any, ...]:
        *tables, d_gain, d_bias = gpu.backward(saved, d_y)
        return (*(RowsGradient(*table) for table in tables), d_gain, d_bias)

    return Kernel(gpu.forward, backward)


embedding = Op("embedding", _check, cpu=Kernel(_forward, _backward), gpu=_on_gpu)
"""y[t] = LayerNorm(words[ids[t]] + positions[position_ids[t]] + types[type_ids[t]]).

Parameters
----------
words : PackedWeight or array, float32, shape (V, C)
positions, types : array, float32, shape (any, C)
gain, bias : array, float32, shape (C,)
ids, position_ids, type_ids : array, int32, shape (T,)
eps : float, > 0

Returns
-------
y : array, float32, shape (T, C)

Raises
------
IndexError
    An id is outside its table.
TypeError, ValueError
    Dtypes or shapes do not agree.

Notes
-----
Source: Devlin et al. 2019, figure 2.
"""
