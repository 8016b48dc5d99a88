"""Attention on the GPU: on tensor cores where types, head width and alignment allow it, else in a plain form."""

from functools import lru_cache
from typing import Any

import numpy as np

from lucid._gpu import runtime
from lucid._gpu.runtime import Array

TILE = 64  # rows of a block, in both sources
SLICE = 64  # columns of a block's result in the plain form
THREADS = 256  # of a block in the plain form
MMA_THREADS = 128
MMA_WIDTHS = (32, 64, 128)


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
    width = out.shape[1] // n_heads
    if out.size == 0:
        return
    q, k, v = (runtime.rows_contiguous(x) for x in (q, k, v))
    is_mma = takes_mma((q, k, v), width) and is_counted(key_columns, key_starts)
    tiles = runtime.place(tiles_of(query_starts.tobytes(), key_starts.tobytes()))
    arguments = _arguments(
        q, k, v, query_starts, key_starts, tiles, n_heads, width, scale, query_columns, key_columns, examples, key, stream, p_drop, is_mma
    )
    _launch("attention_forward", is_mma, q, tiles, n_heads, width, (*arguments, out, lse), forward_bytes(width))


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
    width = k.shape[1] // n_heads
    if k.size == 0:
        return
    q, k, v = (runtime.rows_contiguous(x) for x in (q, k, v))
    is_mma = takes_mma((q, k, v, out, d_out, d_q, d_k, d_v), width) and is_counted(key_columns, key_starts)
    delta = runtime.empty(lse.shape)
    query_tiles = runtime.place(tiles_of(query_starts.tobytes(), key_starts.tobytes()))
    key_tiles = runtime.place(tiles_of(key_starts.tobytes(), query_starts.tobytes()))
    for kernel, tiles, more in (
        ("attention_backward_queries", query_tiles, (lse, *((out,) if is_mma else ()), d_out, delta, d_q, _stride(d_q))),
        ("attention_backward_keys", key_tiles, (lse, d_out, delta, d_k, _stride(d_k), d_v, _stride(d_v))),
    ):
        arguments = _arguments(
            q, k, v, query_starts, key_starts, tiles, n_heads, width, scale, query_columns, key_columns, examples, key, stream, p_drop, is_mma
        )
        _launch(kernel, is_mma, q, tiles, n_heads, width, (*arguments, *more), backward_bytes(width))


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
    return np.ascontiguousarray(np.stack([sequences, own[sequences] + TILE * places], axis=1)[order], np.int32)


def takes_mma(arrays: tuple[Array, ...], width: int) -> bool:
    """Return whether tensor cores can do it: 16-bit numbers, a head width that is compiled, rows at multiples of 16 bytes."""
    return width in MMA_WIDTHS and all(
        array.itemsize == 2
        and array.strides[0] % 16 == 0
        and (array.size == 0 or array.__cuda_array_interface__["data"][0] % 16 == 0)  # an empty one has no address
        for array in arrays
    )


def is_counted(key_columns: Array | None, key_starts: Array) -> bool:
    """Return whether columns count the keys of each sequence: then four neighbours share a block of random numbers."""
    if key_columns is None:
        return True
    counted = np.arange(key_starts[-1], dtype=np.int32) - np.repeat(key_starts[:-1], np.diff(key_starts))
    return isinstance(key_columns, np.ndarray) and np.array_equal(key_columns, counted)


def forward_bytes(width: int) -> int:
    """Return the shared memory of a block of `attention_mma.cu` forward: a tile of Q, and two each of K and V."""
    return 2 * width * (TILE + 4 * TILE)


def backward_bytes(width: int) -> int:
    """Return the shared memory of a block of `attention_mma.cu` backward: two tiles of its own, and four of the other side."""
    return 2 * width * (2 * TILE + 4 * (32 if width == 128 else TILE))


# Launches


def _launch(
    kernel: str, is_mma: bool, q: Array, tiles: Array, n_heads: int, width: int, arguments: tuple[Any, ...], shared: int
) -> None:
    if is_mma:
        name, grid = f"{kernel}<{runtime.c_type(q)}, {width}>", len(tiles) * n_heads
        runtime.launch("attention_mma", name, grid, MMA_THREADS, arguments, shared=shared)
    else:
        slices = (len(tiles) * n_heads, runtime.blocks(width, SLICE))
        runtime.launch("attention", f"{kernel}<{runtime.c_type(q)}>", slices, THREADS, arguments)


def _arguments(
    q: Array,
    k: Array,
    v: Array,
    query_starts: Array,
    key_starts: Array,
    tiles: Array,
    n_heads: int,
    width: int,
    scale: float,
    query_columns: Array | None,
    key_columns: Array | None,
    examples: Array | None,
    key: int,
    stream: int,
    p_drop: float,
    is_mma: bool,
) -> tuple[Any, ...]:
    """Return what all kernels take first, as their ATTENTION_ARGUMENTS say."""
    query_starts, key_starts = (runtime.place(starts) for starts in (query_starts, key_starts))
    query_columns, key_columns, examples = (
        None if array is None else runtime.place(array) for array in (query_columns, key_columns, examples)
    )
    sizes = (np.int32(n_heads), *(() if is_mma else (np.int32(width),)), np.float32(scale))
    columns = (query_columns, *(() if is_mma else (key_columns,)), examples)
    numbers = (np.uint64(key), np.uint32(stream), np.uint32(int(p_drop * 2**32)), np.float32(1.0 / (1.0 - p_drop)))
    return q, _stride(q), k, _stride(k), v, _stride(v), query_starts, key_starts, tiles, *sizes, *columns, *numbers


def _stride(rows: Array) -> np.int64:
    """Return the distance of two rows, in numbers."""
    return np.int64(rows.strides[0] // rows.itemsize)
