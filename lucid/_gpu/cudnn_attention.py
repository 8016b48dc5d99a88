"""Attention by cuDNN, through the graphs of nvidia-cudnn-frontend: packed sequences, forward and backward.

For 16-bit numbers without dropout, whose random numbers would not be lucid's. Rows of sequences are not copied or padded: a tensor of
a graph is (sequence, head, token, number), and where each sequence begins comes with the call. Graphs are built for sizes rounded up,
since building takes long; sequences that are then too many are empty.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from typing import Any

import numpy as np

from lucid._gpu import runtime
from lucid._gpu.libraries import CUDNN, check_near
from lucid._gpu.runtime import Array, address

LENGTH_STEP, LEAST_SEQUENCES, LEAST_TOKENS = 64, 8, 1024
WIDEST_HEAD = 128
QUERY_SIDE = ("q", "out", "lse", "d_out", "d_q")
"""Arrays with a row for each query; the others have one for each key."""
CHECKED = ((70, 0, 1, 64), 2)  # lengths and heads of the case that is done both ways


def does(arrays: Mapping[str, Array | None], query_starts: Array, key_starts: Array, n_heads: int, scale: float) -> bool:
    """Do what `attention_forward` and `attention_backward` of `lucid._gpu.attention` do without dropout; return whether it was done.

    Parameters
    ----------
    arrays : their arrays by name: q, k, v, out and lse, which may be None; for backward also d_out, d_q, d_k and d_v.
    query_starts, key_starts, n_heads, scale : theirs
    """
    if not CUDNN.is_asked_for:
        return False
    given = {name: array for name, array in arrays.items() if array is not None}
    dtype, width = given["q"].dtype, given["q"].shape[1] // n_heads
    if not _fits(given, query_starts, key_starts, width):
        return False
    is_backward = "d_out" in given
    kind = ("gradients of attention" if is_backward else "attention", dtype.name, width)
    work = partial(_run, given, query_starts, key_starts, n_heads, scale)
    return CUDNN.does(kind, partial(_check, is_backward, dtype, width), work)


def _fits(arrays: Mapping[str, Array], query_starts: Array, key_starts: Array, width: int) -> bool:
    """Return whether a call is one for cuDNN.

    It wants rows at multiples of 16 bytes, and offsets that 32 bits hold; heads of other widths than multiples of 16 have a known issue
    (its source says). Nothing is known of what it writes as the gradient of keys
    that nobody asks.
    """
    halves = [array for name, array in arrays.items() if name != "lse"]
    return bool(
        width % 16 == 0
        and 0 < width <= WIDEST_HEAD
        and all(x.itemsize == 2 and x.strides[0] % 16 == 0 and address(x) % 16 == 0 for x in halves)
        and all(len(x) * x.strides[0] < 2**31 for x in halves)
        and np.array_equal(np.diff(query_starts) > 0, np.diff(key_starts) > 0)
    )


def _check(is_backward: bool, dtype: Any, width: int) -> None:
    """Raise unless cuDNN finds for a few sequences what lucid's own kernels find."""
    from lucid._gpu import attention

    plain: Any = attention
    lengths, n_heads = CHECKED
    starts = np.cumsum([0, *lengths]).astype(np.int32)
    sequences = starts, starts, n_heads, 1 / np.sqrt(width)
    rng, n_tokens, size = np.random.default_rng(0), sum(lengths), n_heads * width
    qkv, d_out = (runtime.xp.asarray(rng.standard_normal((n_tokens, n)).astype(np.float32).astype(dtype)) for n in (3 * size, size))
    q, k, v = plain.split(qkv, None)
    given = {"q": q, "k": k, "v": v}

    def results() -> dict[str, Array]:
        if is_backward:
            return dict(zip(("d_q", "d_k", "d_v"), plain.split(runtime.empty(qkv.shape, dtype), None), strict=True))
        return {"out": runtime.empty(d_out.shape, dtype), "lse": runtime.empty((n_tokens, n_heads))}

    out, lse = runtime.empty(d_out.shape, dtype), runtime.empty((n_tokens, n_heads))
    no_dropout = None, None, None, 0, 0, 0.0
    plain.attention_forward(q, k, v, *sequences, out, lse, *no_dropout)
    wanted, found = {"out": out, "lse": lse}, results()
    if is_backward:
        given, wanted = given | wanted | {"d_out": d_out}, results()
        plain.attention_backward(q, k, v, *sequences, lse, out, d_out, *wanted.values(), *no_dropout)
    _run(given | found, *sequences)
    for name, array in wanted.items():
        check_near(f"{name} of attention", found[name], array)


# Sizes


@dataclass(frozen=True, slots=True)
class Size:
    """What a graph is built for.

    Attributes
    ----------
    device : int
    dtype : str
    n_heads, width : int. Heads, and numbers of one.
    scale : float. Of the products of Q and K.
    n_sequences : int. At least as many as there are.
    query_length, key_length : int. At least the longest.
    n_queries, n_keys : int. At least all of them; for cuDNN's scratch memory in backward, else 0.
    strides : tuple of (name, int). Every array, and how many numbers its rows are apart; with "d_out" it is backward.
    """

    device: int
    dtype: str
    n_heads: int
    width: int
    scale: float
    n_sequences: int
    query_length: int
    key_length: int
    n_queries: int
    n_keys: int
    strides: tuple[tuple[str, int], ...]

    @property
    def offsets(self) -> list[tuple[bool, int]]:
        """Which offsets there are: of queries or keys, in rows so many numbers apart."""
        return sorted({(name in QUERY_SIDE, stride) for name, stride in self.strides})


def rounded(n: int, least: int) -> int:
    """Return the first of least, 2 * least, 4 * least... that is at least n."""
    return least << (max(1, -(-n // least)) - 1).bit_length()


def size_of(arrays: Mapping[str, Array], query_starts: Array, key_starts: Array, n_heads: int, scale: float, device: int) -> Size:
    """Return the size of graph that a call wants: another length, number of sequences or of tokens nearby wants the same."""
    is_backward = "d_out" in arrays
    query_length, key_length = (-(-int(np.diff(starts).max()) // LENGTH_STEP) * LENGTH_STEP for starts in (query_starts, key_starts))
    n_queries, n_keys = (rounded(int(starts[-1]), LEAST_TOKENS) if is_backward else 0 for starts in (query_starts, key_starts))
    q = arrays["q"]
    strides = tuple((name, x.strides[0] // x.itemsize) for name, x in arrays.items())
    return Size(
        device, q.dtype.name, n_heads, q.shape[1] // n_heads, float(scale), rounded(len(key_starts) - 1, LEAST_SEQUENCES),
        query_length, key_length, n_queries, n_keys, strides,
    )  # fmt: skip


@lru_cache(maxsize=64)  # the layers of a model ask for the same
def table_of(query_starts: bytes, key_starts: bytes, n_sequences: int, offsets: tuple[tuple[bool, int], ...]) -> np.ndarray[Any, Any]:
    """Return what a graph wants to know of sequences.

    Parameters
    ----------
    query_starts, key_starts : bytes of arrays, int32, shape (B + 1,)
    n_sequences : int. At least B; the others are empty.
    offsets : of `Size`

    Returns
    -------
    table : array, int32, shape (2 + len(offsets), n). Numbers of queries and of keys; then where each sequence begins, one row for each
        of `offsets`, and as the last where all end. Rows begin at multiples of 256 bytes.
    """
    queries, keys = (np.frombuffer(starts, np.int32) for starts in (query_starts, key_starts))
    queries, keys = (np.pad(starts, (0, n_sequences + 1 - len(starts)), mode="edge") for starts in (queries, keys))
    table = np.zeros((2 + len(offsets), -(-(n_sequences + 1) // 64) * 64), np.int32)
    table[:2, :n_sequences] = np.diff(queries), np.diff(keys)
    for row, (is_query_side, stride) in zip(table[2:], offsets, strict=True):
        row[: n_sequences + 1] = stride * (queries if is_query_side else keys)
    table.flags.writeable = False  # others get the same array
    return table


# cuDNN


def graph_of(size: Size, **options: Any) -> tuple[Any, dict[Any, Any]]:
    """Return cuDNN's graph, not built yet, and its tensors: by the names of arrays, by `offsets`, "query_lengths" and "key_lengths".

    `options` are more of those of ``cudnn.pygraph``: a handle.
    """
    import cudnn

    half, real = {"float16": cudnn.data_type.HALF, "bfloat16": cudnn.data_type.BFLOAT16}[size.dtype], cudnn.data_type.FLOAT
    graph = cudnn.pygraph(io_data_type=half, intermediate_data_type=real, compute_data_type=real, **options)
    tensors: dict[Any, Any] = {}
    for name, n in (("query_lengths", 0), ("key_lengths", 0), *((pair, 1) for pair in size.offsets)):
        shape = [size.n_sequences + n, 1, 1, 1]
        tensors[name] = graph.tensor(name=str(name), dim=shape, stride=[1, 1, 1, 1], data_type=cudnn.data_type.INT32)

    strides = dict(size.strides)

    def layout(name: str) -> tuple[list[int], list[int], Any]:
        """Return shape, strides and offsets of an array; a row has a number for each head, or the numbers of each head."""
        length, width = size.query_length if name in QUERY_SIDE else size.key_length, 1 if name == "lse" else size.width
        shape = [size.n_sequences, size.n_heads, length, width]
        return shape, [length * strides[name], width, strides[name], 1], tensors[name in QUERY_SIDE, strides[name]]

    def given(name: str) -> Any:
        shape, strides, offsets = layout(name)
        data_type = real if name == "lse" else half
        tensors[name] = graph.tensor(name=name, dim=shape, stride=strides, data_type=data_type, ragged_offset=offsets)
        return tensors[name]

    def wanted(name: str, tensor: Any) -> None:
        shape, strides, offsets = layout(name)
        tensor.set_output(True).set_dim(shape).set_stride(strides).set_ragged_offset(offsets).set_data_type(real if name == "lse" else half)
        tensors[name] = tensor

    lengths = {"use_padding_mask": True, "seq_len_q": tensors["query_lengths"], "seq_len_kv": tensors["key_lengths"]}
    sources = {name: given(name) for name in ("q", "k", "v")}
    if "d_out" in strides:
        gradients = graph.sdpa_backward(
            name="attention_backward", **sources, o=given("out"), dO=given("d_out"), stats=given("lse"), attn_scale=size.scale, **lengths,
            max_total_seq_len_q=size.n_queries, max_total_seq_len_kv=size.n_keys, use_deterministic_algorithm=True,
        )  # fmt: skip
        for name, tensor in zip(("d_q", "d_k", "d_v"), gradients, strict=True):
            wanted(name, tensor)
    else:
        out, lse = graph.sdpa(name="attention", **sources, attn_scale=size.scale, generate_stats="lse" in strides, **lengths)
        wanted("out", out)
        if "lse" in strides:
            wanted("lse", lse)
    return graph, tensors


@cache
def _handle(device: int) -> Any:
    """Return cuDNN's handle for the device, which is the current one."""
    import cudnn

    return cudnn.create_handle()


@lru_cache(maxsize=64)
def _built(size: Size) -> tuple[Any, dict[Any, Any], int]:
    """Return a graph that can run, its tensors, and the bytes of scratch memory that it wants."""
    import cudnn

    graph, tensors = graph_of(size, handle=_handle(size.device))
    graph.build([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
    return graph, tensors, int(graph.get_workspace_size())


def _run(arrays: Mapping[str, Array], query_starts: Array, key_starts: Array, n_heads: int, scale: float) -> None:
    """Run a graph, built before or now, on the current stream."""
    import cudnn

    device, stream = runtime.stream()
    size = size_of(arrays, query_starts, key_starts, n_heads, scale, device)
    graph, tensors, workspace_bytes = _built(size)
    offsets = tuple(size.offsets)
    table = runtime.place(table_of(query_starts.tobytes(), key_starts.tobytes(), size.n_sequences, offsets))
    places = {tensors[name]: address(table) + row * table.strides[0] for row, name in enumerate(("query_lengths", "key_lengths", *offsets))}
    places |= {tensors[name]: address(array) for name, array in arrays.items()}
    workspace = runtime.empty((max(1, workspace_bytes),), np.uint8)
    cudnn.set_stream(handle=_handle(device), stream=stream)
    graph.execute(places, address(workspace), handle=_handle(device))
