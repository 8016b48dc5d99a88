"""Attention through cuDNN: graphs of the real frontend, run by a stand-in that reads what they say; and on a GPU, if there is one."""

import ctypes
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from gpu.emulator import Emulator
from lucid._gpu import cudnn_attention, runtime
from lucid._gpu.cudnn_attention import Size, graph_of, rounded, size_of, table_of
from lucid._gpu.libraries import BOUNDS, CUDNN, SWITCH
from lucid._gpu.runtime import dtype_of
from lucid.ops.attention import attention

HALVES = ["float16", "bfloat16"]
Array = Any

PROBLEMS = [((70, 1, 0, 64), None), ((5,), None), ((66, 131), (3, 130)), ((130, 0, 3, 7), (67, 0, 2, 2))]
"""Lengths, and queries asked for (None: all)."""


@pytest.fixture
def cudnn() -> Any:
    """The frontend, which can be imported without a driver, and without cuDNN."""
    return pytest.importorskip("cudnn", reason="nvidia-cudnn-frontend is not installed: pip install 'lucid-bert[gpu-fast]'")


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """cuDNN is asked for, and nothing is known of it."""
    monkeypatch.setenv(SWITCH, "cudnn")
    _forget()
    yield monkeypatch
    _forget()


def _forget() -> None:
    CUDNN.forget()
    for cached in (cudnn_attention._handle, cudnn_attention._built):
        getattr(cached, "cache_clear", lambda: None)()


class StandIn:
    """Runs graphs: it finds every number where shape, strides and offsets of its tensor say that it is."""

    def __init__(self) -> None:
        self.sizes: list[Size] = []
        self.n_runs, self.stream, self.error = 0, None, 0.0

    def built(self, size: Size) -> tuple[Any, dict[Any, Any], int]:
        self.sizes.append(size)
        self.size = size
        _, self.tensors = graph_of(size)
        return self, self.tensors, 0

    def set_stream(self, handle: int, stream: int) -> None:
        assert handle == 77
        self.stream = stream

    def execute(self, places: dict[Any, int], workspace: int, handle: int) -> None:
        assert (handle, self.stream) == (77, 0)
        assert set(places) == set(self.tensors.values())
        assert workspace % 16 == 0
        self.places, self.n_runs = places, self.n_runs + 1
        for b in range(self.size.n_sequences):
            n_queries, n_keys = (int(self.numbers(self.tensors[name])[b]) for name in ("query_lengths", "key_lengths"))
            assert n_queries <= self.size.query_length
            assert n_keys <= self.size.key_length
            if n_queries:
                self.one(b, n_queries, n_keys)
        if self.size.n_queries:
            ends = [int(self.numbers(self.tensors[name].ragged_offset)[-1]) // dict(self.size.strides)[name] for name in ("q", "k")]
            assert ends[0] <= self.size.n_queries
            assert ends[1] <= self.size.n_keys

    def numbers(self, tensor: Any) -> Array:
        assert self.places[tensor] % 16 == 0
        n = tensor.get_dim()[0]
        return np.frombuffer((ctypes.c_char * (4 * n)).from_address(self.places[tensor]), np.int32)

    def rows(self, name: str, b: int, n: int) -> Array:
        """The first n rows of a sequence, (heads, n, width)."""
        tensor = self.tensors[name]
        dtype = np.dtype(np.float32) if name == "lse" else dtype_of(self.size.dtype)
        (_, n_heads, _, width), (_, *strides) = tensor.get_dim(), tensor.get_stride()
        place = self.places[tensor] + int(self.numbers(tensor.ragged_offset)[b]) * dtype.itemsize
        last = sum((size - 1) * stride for size, stride in zip((n_heads, n, width), strides, strict=True))
        flat = np.frombuffer((ctypes.c_char * ((last + 1) * dtype.itemsize)).from_address(place), dtype)
        return np.lib.stride_tricks.as_strided(flat, (n_heads, n, width), [stride * dtype.itemsize for stride in strides])

    def one(self, b: int, n_queries: int, n_keys: int) -> None:
        q = self.rows("q", b, n_queries).astype(np.float64)
        k, v = (self.rows(name, b, n_keys).astype(np.float64) for name in "kv")
        scores = self.size.scale * q @ k.swapaxes(1, 2)
        lse = np.log(np.exp(scores).sum(axis=2, keepdims=True))
        if "d_out" not in self.tensors:
            self.rows("out", b, n_queries)[...] = np.exp(scores - lse) @ v + self.error
            if "lse" in self.tensors:
                self.rows("lse", b, n_queries)[...] = lse
            return
        assert np.allclose(self.rows("lse", b, n_queries), lse, atol=1e-2)
        out, d_out = (self.rows(name, b, n_queries).astype(np.float64) for name in ("out", "d_out"))
        p = np.exp(scores - self.rows("lse", b, n_queries))
        d_scores = p * (d_out @ v.swapaxes(1, 2) - (out * d_out).sum(axis=2, keepdims=True))
        self.rows("d_q", b, n_queries)[...] = self.size.scale * d_scores @ k + self.error
        self.rows("d_k", b, n_keys)[...] = self.size.scale * d_scores.swapaxes(1, 2) @ q
        self.rows("d_v", b, n_keys)[...] = p.swapaxes(1, 2) @ d_out


@pytest.fixture
def stand_in(cudnn: Any, fresh: pytest.MonkeyPatch, emulated: Emulator) -> StandIn:
    it = StandIn()
    fresh.setattr(cudnn_attention, "_built", it.built)
    fresh.setattr(cudnn_attention, "_handle", lambda device: 77)
    fresh.setattr(cudnn, "set_stream", it.set_stream)
    return it


def _results(
    rng: np.random.Generator, dtype: str, lengths: tuple[int, ...], asked: tuple[int, ...] | None, width: int = 32, n_heads: int = 2
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """The output and all gradients, with cuDNN and without."""
    size, n_keys, n_queries = n_heads * width, sum(lengths), sum(asked or lengths)
    shapes = [(n_keys, 3 * size)] if asked is None else [(n_queries, size), (n_keys, 2 * size)]
    arrays = [runtime.xp.asarray(rng.standard_normal(shape).astype(dtype_of(dtype))) for shape in shapes]
    d_out = runtime.xp.asarray(rng.standard_normal((n_queries, size)).astype(dtype_of(dtype)))
    params = {"n_heads": n_heads, "key_starts": np.cumsum([0, *lengths]).astype(np.int32)}
    if asked is not None:
        params["query_starts"] = np.cumsum([0, *asked]).astype(np.int32)
    kernel = attention.gpu()  # type: ignore[misc]
    found = []
    for is_asked in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(SWITCH, "cudnn" if is_asked else "0")
            out, saved = kernel.forward(*arrays, **params, keep=True)
            assert kernel.forward(*arrays, **params, keep=False)[0].get().tobytes() == out.get().tobytes()
            found.append(tuple(array.get() for array in (out, *kernel.backward(saved, d_out))))
    return found[0], found[1]


def _assert_near(got: tuple[Array, ...], want: tuple[Array, ...]) -> None:
    for name, g, w in zip(("out", "d_queries", "d_keys_values"), got, want, strict=False):
        assert (g.shape, g.dtype) == (w.shape, w.dtype), name
        bound = BOUNDS[w.dtype.name] / 2
        g, w = g.astype(np.float64), w.astype(np.float64)
        assert np.linalg.norm(g - w) <= bound * np.linalg.norm(w), name
        assert np.abs(g - w).max() <= bound * max(1, np.abs(w).max()), name


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_graphs_find_every_number(problem: Any, dtype: str, stand_in: StandIn, rng: np.random.Generator) -> None:
    _assert_near(*_results(rng, dtype, *problem))
    assert CUDNN.used() == [f"cudnn: ('{kind}', '{dtype}', 32)" for kind in ("attention", "gradients of attention")]
    assert stand_in.n_runs == 3 + 2  # and the checks


@pytest.mark.parametrize("dtype", HALVES)
def test_wrong_numbers_are_noticed(dtype: str, stand_in: StandIn, rng: np.random.Generator) -> None:
    stand_in.error = 0.1
    with pytest.warns(UserWarning, match="cudnn is not used for .*WrongError: (out|d_q) of attention is") as warned:
        got, want = _results(rng, dtype, *PROBLEMS[0])
    assert len(warned) == 2
    assert [x.tobytes() for x in got] == [x.tobytes() for x in want]
    assert CUDNN.used() == []


def test_what_cudnn_left_can_be_used_without_it(stand_in: StandIn, fresh: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    """Forward by cuDNN, backward by lucid's own kernels: log(sum exp) is left the same way."""
    kernel = attention.gpu()  # type: ignore[misc]
    qkv = runtime.xp.asarray(rng.standard_normal((40, 3 * 64)).astype(np.float16))
    found = []
    for value in ("cudnn", "0"):
        fresh.setenv(SWITCH, value)
        out, saved = kernel.forward(qkv, n_heads=2, key_starts=np.array([0, 33, 40], np.int32), keep=True)
        fresh.setenv(SWITCH, "0")
        found.append((out.get(), kernel.backward(saved, out)[0].get()))
    _assert_near(*found)


# Sizes


def test_rounded() -> None:
    assert [rounded(n, 8) for n in (0, 1, 8, 9, 16, 17, 256, 257)] == [8, 8, 8, 16, 16, 32, 256, 512]


def _size(lengths: list[int], asked: list[int] | None = None, *, is_backward: bool = False) -> Size:
    starts = [np.cumsum([0, *x]).astype(np.int32) for x in (lengths if asked is None else asked, lengths)]
    names = ("q", "k", "v", "out", "lse", *(("d_out", "d_q", "d_k", "d_v") if is_backward else ()))
    arrays = {name: np.zeros((9, 2 if name == "lse" else 64), np.float32 if name == "lse" else np.float16) for name in names}
    return size_of(arrays, *starts, n_heads=2, scale=0.5, device=1)


def test_sizes_nearby_share_a_graph() -> None:
    one = _size([100, 3, 128])
    assert one == _size([65, 128, 1, 1, 1, 1, 1, 70])
    assert one != _size([129])
    assert one != _size([128] * 9)
    assert one != _size([128], [64])
    assert (one.n_sequences, one.query_length, one.key_length, one.n_queries, one.n_keys) == (8, 128, 128, 0, 0)
    both = _size([500, 600], [3, 4], is_backward=True)
    assert (both.query_length, both.key_length, both.n_queries, both.n_keys) == (64, 640, 1024, 2048)
    assert both == _size([600, 600], [3, 4], is_backward=True)
    assert (one.device, one.dtype, one.n_heads, one.width, one.scale) == (1, "float16", 2, 32, 0.5)


def test_the_table_of_sequences() -> None:
    queries, keys = np.array([0, 2, 2, 5], np.int32), np.array([0, 4, 4, 10], np.int32)
    table = table_of(queries.tobytes(), keys.tobytes(), 8, ((False, 20), (True, 2), (True, 10)))
    assert table.strides[0] % 256 == 0
    assert table[:, :9].tolist() == [
        [2, 0, 3, 0, 0, 0, 0, 0, 0],
        [4, 0, 6, 0, 0, 0, 0, 0, 0],
        [0, 80, 80, 200, 200, 200, 200, 200, 200],
        [0, 4, 4, 10, 10, 10, 10, 10, 10],
        [0, 20, 20, 50, 50, 50, 50, 50, 50],
    ]
    assert table is table_of(queries.tobytes(), keys.tobytes(), 8, ((False, 20), (True, 2), (True, 10)))


# The frontend

PACKED = {"q": 2304, "k": 2304, "v": 2304, "out": 768, "lse": 12}
APART = {"q": 768, "k": 1536, "v": 1536, "out": 768, "lse": 12}


def _bert(dtype: str, strides: dict[str, int], *, is_backward: bool, has_lse: bool = True) -> Size:
    if is_backward:
        strides = {**strides, "d_out": 768, **{f"d_{name}": strides[name] for name in "qkv"}}
    strides = {name: stride for name, stride in strides.items() if has_lse or name != "lse"}
    n = 1024 * is_backward
    return Size(0, dtype, 12, 64, 0.125, 8, 64, 128, n, 2 * n, tuple(strides.items()))


def test_a_graph_says_where_numbers_are(cudnn: Any) -> None:
    size = _bert("bfloat16", PACKED, is_backward=True)
    graph, tensors = graph_of(size)
    assert [node.node_type.name for node in graph.nodes] == ["SDPA_BWD"]
    assert graph.nodes[0].params["use_deterministic_algorithm"] is True
    assert graph.nodes[0].params["max_total_seq_len_kv"] == 2048
    assert size.offsets == [(False, 2304), (True, 12), (True, 768), (True, 2304)]
    layouts = {name: (tuple(tensors[name].get_dim()), tuple(tensors[name].get_stride())) for name in dict(size.strides)}
    assert layouts["q"] == layouts["d_q"] == ((8, 12, 64, 64), (64 * 2304, 64, 2304, 1))
    assert layouts["k"] == layouts["d_v"] == ((8, 12, 128, 64), (128 * 2304, 64, 2304, 1))
    assert layouts["out"] == layouts["d_out"] == ((8, 12, 64, 64), (64 * 768, 64, 768, 1))
    assert layouts["lse"] == ((8, 12, 64, 1), (64 * 12, 1, 12, 1))
    assert tensors["d_k"].ragged_offset is tensors[False, 2304]
    assert tensors["lse"].ragged_offset is tensors[True, 12]
    assert (tensors["lse"].get_data_type(), tensors["d_q"].get_data_type()) == (cudnn.data_type.FLOAT, cudnn.data_type.BFLOAT16)
    assert tuple(tensors["key_lengths"].get_dim()) == (8, 1, 1, 1)
    assert tuple(tensors[True, 12].get_dim()) == (9, 1, 1, 1)


@pytest.mark.parametrize("architecture", [90, 100])
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("strides", [PACKED, APART], ids=["packed", "apart"])
@pytest.mark.parametrize(("is_backward", "has_lse"), [(False, False), (False, True), (True, True)])
def test_the_frontend_takes_the_graphs(
    cudnn: Any, is_backward: bool, has_lse: bool, strides: dict[str, int], dtype: str, architecture: int
) -> None:
    """Its own rules for H100 and B200, which it applies with cuDNN's version."""
    try:
        cudnn.backend_version()
    except RuntimeError as error:
        pytest.skip(f"cuDNN is not installed: pip install nvidia-cudnn-cu13 ({error})")
    graph, _ = graph_of(_bert(dtype, strides, is_backward=is_backward, has_lse=has_lse), sm_version=architecture)
    graph.validate()


# On a GPU


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("problem", [*PROBLEMS, ((128,) * 40, None), ((500, 3, 512, 77), None)], ids=str)
def test_on_a_gpu(gpu: Any, cudnn: Any, fresh: Any, problem: Any, dtype: str, rng: np.random.Generator) -> None:
    """Near to lucid's own kernels, the same bits twice, and used: a warning would be an error."""
    state = rng.bit_generator.state
    got, want = _results(rng, dtype, *problem, width=64, n_heads=12)
    _assert_near(got, want)
    assert len(CUDNN.used()) == 2
    rng.bit_generator.state = state
    assert [x.tobytes() for x in _results(rng, dtype, *problem, width=64, n_heads=12)[0]] == [x.tobytes() for x in got]
