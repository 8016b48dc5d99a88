"""Dropout of activations, by counter-based random numbers."""

from typing import Any

import numpy as np

from lucid._ext import kernels
from lucid.ops.op import Array, Kernel, Op, empty, on_gpu, stored_type, want, want_stream
from lucid.random import check_seed
from lucid.threads import threads_for


def _check(x: Array, *, p: float, seed: int, stream: int, columns: Array, examples: Array) -> None:
    want("dropout", "x", x, stored_type(x), (None, None))
    want("dropout", "columns", columns, np.int32, (x.shape[0],))
    want("dropout", "examples", examples, np.int32, (x.shape[0],))
    check_seed(seed)
    want_stream("dropout", "stream", stream)
    if not 0 <= p < 1:
        raise ValueError(f"dropout: p must lie in [0, 1), not {p}")


def _forward(x: Array, *, p: float, seed: int, stream: int, columns: Array, examples: Array, keep: bool) -> tuple[Array, Any]:
    y = empty(x.shape)
    kernels.dropout_forward(
        np.ascontiguousarray(x), y, np.ascontiguousarray(columns), np.ascontiguousarray(examples), seed, stream, p, threads_for(x.size)
    )
    return y, {"p": p, "seed": seed, "stream": stream, "columns": columns, "examples": examples}


def _backward(saved: dict[str, Any], d_y: Array) -> tuple[Array]:
    # The same numbers are dropped, the others scaled alike: the mask is named, not stored.
    return (_forward(d_y, **saved, keep=False)[0],)


dropout = Op("dropout", _check, cpu=Kernel(_forward, _backward), gpu=on_gpu("dropout"))
"""y = x / (1 - p), or 0 with probability p.

Parameters
----------
x : array, float32, shape (T, C)
p : float in [0, 1)
seed : int. Philox key.
stream : int. Last word of the counter, from `lucid.random.stream`.
columns, examples : array, int32, shape (T,). Which token of which example a row is.

Returns
-------
y : array, float32, shape (T, C)

Notes
-----
Source: Srivastava et al. 2014, inverted. Row t, channel c depends on (seed, stream, examples[t],
columns[t], c) alone.
"""
