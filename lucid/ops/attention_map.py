"""Attention probabilities, written out: for looking at them, not for computing with them."""

from typing import Any

import numpy as np

from lucid.ops.attention import want_starts
from lucid.ops.linear import linear
from lucid.ops.op import Array, Kernel, Op, on_gpu, stored_type, want, want_ids


def _check(qkv: Array, *, n_heads: int, starts: Array, columns: Array, length: int) -> None:
    want("attention_map", "qkv", qkv, stored_type(qkv), (None, None))
    want_starts("attention_map", "starts", starts, qkv.shape[0])
    want("attention_map", "columns", columns, np.int32, (qkv.shape[0],))
    want_ids("attention_map", "columns", columns, length)
    if n_heads < 1 or qkv.shape[1] % (3 * n_heads):
        raise ValueError(f"attention_map: width {qkv.shape[1]} must be 3 * n_heads * head width, n_heads {n_heads}")


def _forward(qkv: Array, *, n_heads: int, starts: Array, columns: Array, length: int, keep: bool) -> tuple[Array, Any]:
    n_sequences, width = len(starts) - 1, qkv.shape[1] // 3
    maps = np.zeros((n_sequences, n_heads, length, length), np.float32)
    for b in range(n_sequences):
        tokens = slice(starts[b], starts[b + 1])
        cells = np.ix_(columns[tokens], columns[tokens])
        for head in range(n_heads):
            at = slice(head * width // n_heads, (head + 1) * width // n_heads)
            scores = linear(qkv[tokens, :width][:, at], np.ascontiguousarray(qkv[tokens, width : 2 * width][:, at]))
            if len(scores):
                scores *= np.float32(1 / np.sqrt(width // n_heads))
                scores = np.exp(scores - scores.max(axis=1, keepdims=True))
                maps[b, head][cells] = scores / scores.sum(axis=1, keepdims=True)
    return maps, None


attention_map = Op("attention_map", _check, cpu=Kernel(_forward, None), gpu=on_gpu("attention_map", backward=None))
"""softmax(Q . Kᵀ / sqrt(D)) as arrays of (query column, key column).

Parameters
----------
qkv : array, float32, shape (T, 3 * C): Q, K and V side by side
n_heads : int
starts : array, int32, shape (B + 1,)
columns : array, int32, shape (T,). Where a token stands in its row of the padded batch.
length : int, S

Returns
-------
maps : array, float32, shape (B, H, S, S). Zeros at padding.
"""
