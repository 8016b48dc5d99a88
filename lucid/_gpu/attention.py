"""Attention on the GPU: on tensor cores where types, head width and alignment allow it, else in a plain form; or by cuDNN, if asked for."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from lucid._gpu import attention_mma, cudnn_attention, runtime
from lucid._gpu.attention_mma import TILE
from lucid._gpu.runtime import Array

SLICE = 64  # columns of a block's result in the plain form
THREADS = 256  # of a block in the plain form


def forward(
    queries: Array,
    keys_values: Array | None = None,
    *,
    n_heads: int,
    key_starts: Array,
    query_starts: Array | None = None,
    dropout: Any = None,
    keep: bool,
) -> tuple[Array, Any]:
    """Do what `lucid.ops.attention` says. Starts are NumPy arrays: the grid is made from them."""
    queries, keys_values = (None if x is None else runtime.rows_contiguous(x) for x in (queries, keys_values))
    q, k, v = split(queries, keys_values)
    out = runtime.empty(q.shape, queries.dtype)
    lse = runtime.empty((q.shape[0], n_heads)) if keep else None
    query_starts = key_starts if query_starts is None else query_starts
    scale = 1.0 / np.sqrt(max(1, q.shape[1] // n_heads))
    attention_forward(q, k, v, query_starts, key_starts, n_heads, scale, out, lse, *_dropout_arguments(dropout))
    return out, (queries, keys_values, query_starts, key_starts, n_heads, lse, out, dropout) if keep else None


def backward(saved: tuple[Any, ...], d_out: Array) -> tuple[Array, ...]:
    """Return the gradients of the arrays of `forward`."""
    queries, keys_values, query_starts, key_starts, n_heads, lse, out, dropout = saved
    q, k, v = split(queries, keys_values)
    d_queries = runtime.empty(queries.shape, queries.dtype)
    d_keys_values = None if keys_values is None else runtime.empty(keys_values.shape, queries.dtype)
    scale = 1.0 / np.sqrt(max(1, q.shape[1] // n_heads))
    attention_backward(
        q,
        k,
        v,
        query_starts,
        key_starts,
        n_heads,
        scale,
        lse,
        out,
        runtime.contiguous(d_out),
        *split(d_queries, d_keys_values),
        *_dropout_arguments(dropout),
    )
    return (d_queries,) if d_keys_values is None else (d_queries, d_keys_values)


def split(queries: Array, keys_values: Array | None) -> tuple[Array, Array, Array]:
    """Return Q, K and V as views of what `lucid.ops.attention` takes."""
    if keys_values is None:
        width = queries.shape[1] // 3
        return queries[:, :width], queries[:, width : 2 * width], queries[:, 2 * width :]
    width = queries.shape[1]
    return queries, keys_values[:, :width], keys_values[:, width:]


def _dropout_arguments(dropout: Any) -> tuple[Any, ...]:
    if dropout is None:
        return None, None, None, 0, 0, 0.0
    return dropout.query_columns, dropout.key_columns, dropout.examples, dropout.seed, dropout.stream, dropout.p


def attention_forward(
    q: Array,
    k: Array,
    v: Array,
    query_starts: Array,
    key_starts: Array,
    n_heads: int,
    scale: float,
    out: Array,
    lse: Array | None,
    query_columns: Array | None,
    key_columns: Array | None,
    examples: Array | None,
    key: int,
    stream: int,
    p_drop: float,
) -> None:
    """As `lucid._ext.kernels.attention_forward`; `lse` is float32 for every type."""
    if out.size == 0:
        return
    arrays = {"q": q, "k": k, "v": v, "out": out, "lse": lse}
    if key_columns is None and cudnn_attention.does(arrays, query_starts, key_starts, n_heads, scale):
        return
    is_mma = attention_mma.fits((q, k, v, out), out.shape[1] // n_heads, key_columns, key_starts)
    places = query_columns, key_columns, examples
    call = _call(is_mma, q, k, v, query_starts, key_starts, n_heads, scale, places, key, stream, p_drop)
    call.launch(
        "attention_forward",
        tiles_of(query_starts.tobytes(), key_starts.tobytes()),
        out,
        lse,
        shared=attention_mma.forward_bytes(call.width),
    )


def attention_backward(
    q: Array,
    k: Array,
    v: Array,
    query_starts: Array,
    key_starts: Array,
    n_heads: int,
    scale: float,
    lse: Array,
    out: Array,
    d_out: Array,
    d_q: Array,
    d_k: Array,
    d_v: Array,
    query_columns: Array | None,
    key_columns: Array | None,
    examples: Array | None,
    key: int,
    stream: int,
    p_drop: float,
) -> None:
    """As `lucid._ext.kernels.attention_backward`, with one argument more: `out` is what forward returned."""
    if k.size == 0:
        return
    arrays = {"q": q, "k": k, "v": v, "out": out, "lse": lse, "d_out": d_out, "d_q": d_q, "d_k": d_k, "d_v": d_v}
    if key_columns is None and cudnn_attention.does(arrays, query_starts, key_starts, n_heads, scale):
        return
    is_mma = attention_mma.fits((q, k, v, out, d_out, d_q, d_k, d_v), k.shape[1] // n_heads, key_columns, key_starts)
    places = query_columns, key_columns, examples
    call = _call(is_mma, q, k, v, query_starts, key_starts, n_heads, scale, places, key, stream, p_drop)
    delta = runtime.empty(lse.shape)
    query_tiles, key_tiles = (
        tiles_of(own.tobytes(), others.tobytes()) for own, others in ((query_starts, key_starts), (key_starts, query_starts))
    )
    of_out = (out,) if is_mma else ()  # the plain form makes delta of something better
    shared = attention_mma.backward_bytes(call.width)
    call.launch("attention_backward_queries", query_tiles, lse, *of_out, d_out, delta, d_q, _stride(d_q), shared=shared)
    shared = attention_mma.backward_keys_bytes(call.width)
    call.launch("attention_backward_keys", key_tiles, lse, d_out, delta, d_k, _stride(d_k), d_v, _stride(d_v), shared=shared)


# Geometry


@lru_cache(maxsize=64)  # the layers of a model ask for the same
def tiles_of(starts: bytes, other_starts: bytes) -> np.ndarray[Any, Any]:
    """Return the tiles of all sequences: a block of threads for each, and for each head.

    Parameters
    ----------
    starts : bytes of an array, int32, shape (B + 1,). Where the tiled rows of each sequence begin.
    other_starts : bytes of an array, int32, shape (B + 1,). The same for the rows that a block walks over.

    Returns
    -------
    tiles : array, int32, shape (n, 2). A sequence and the first row of a tile. Those with the longest walk come first, so that
        no long one begins when the others are done.
    """
    own, others = np.frombuffer(starts, np.int32), np.frombuffer(other_starts, np.int32)
    n_tiles = -(-np.diff(own) // TILE)
    sequences = np.repeat(np.arange(len(n_tiles)), n_tiles)
    places = np.arange(len(sequences)) - np.repeat(np.cumsum(n_tiles) - n_tiles, n_tiles)
    order = np.argsort(-np.diff(others)[sequences], kind="stable")
    tiles = np.ascontiguousarray(np.stack([sequences, own[sequences] + TILE * places], axis=1)[order], np.int32)
    tiles.flags.writeable = False  # others get the same array
    return tiles


# Launches


@dataclass(frozen=True, slots=True)
class _Call:
    """What the kernels of one call have in common; `arguments` are their ATTENTION_ARGUMENTS after the tiles."""

    is_mma: bool
    dtype: str
    n_heads: int
    width: int
    arguments: tuple[Any, ...]

    def launch(self, kernel: str, tiles: Array, *more: Any, shared: int) -> None:
        """Run a kernel: a block for each tile and head; in the plain form also for each slice of columns."""
        arguments = (runtime.place(tiles), *self.arguments, *more)
        grid = (len(tiles) * self.n_heads, 1 if self.is_mma else runtime.blocks(self.width, SLICE))
        if self.is_mma:
            runtime.launch("attention_mma", f"{kernel}<{self.dtype}, {self.width}>", grid, attention_mma.THREADS, arguments, shared=shared)
        else:
            runtime.launch("attention", f"{kernel}<{self.dtype}>", grid, THREADS, arguments)


def _call(
    is_mma: bool,
    q: Array,
    k: Array,
    v: Array,
    query_starts: Array,
    key_starts: Array,
    n_heads: int,
    scale: float,
    places: tuple[Array | None, ...],
    key: int,
    stream: int,
    p_drop: float,
) -> _Call:
    width = k.shape[1] // n_heads
    rows = [argument for x in (q, k, v) for argument in (x, _stride(x))]
    starts = (runtime.place(query_starts), runtime.place(key_starts))
    sizes = (np.int32(n_heads), *(() if is_mma else (np.int32(width),)), np.float32(scale))
    query_columns, key_columns, examples = (None if place is None else runtime.place(place) for place in places)
    columns = (query_columns, *(() if is_mma else (key_columns,)), examples)
    numbers = (np.uint64(key), np.uint32(stream), np.uint32(int(p_drop * 2**32)), np.float32(1.0 / (1.0 - p_drop)))
    return _Call(is_mma, runtime.c_type(q), n_heads, width, (*rows, *starts, *sizes, *columns, *numbers))


def _stride(rows: Array) -> np.int64:
    """Return the distance of two rows, in numbers."""
    return np.int64(rows.strides[0] // rows.itemsize)
