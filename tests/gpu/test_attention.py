"""Attention of the GPU, emulated: the cases of the CPU's within bounds, half precision on tensor cores, dropout, bits, geometry."""

from typing import Any

import numpy as np
import pytest
from cases import CASES, Case
from gradients import reference as gradient_reference
from gradients.cases import CASES as GRADIENT_CASES
from gradients.cases import Case as GradientCase
from gradients.cases import assert_within, normal

from gpu.emulator import Emulator
from lucid._gpu import attention as on_gpu
from lucid._gpu import runtime
from lucid.ops.attention import AttentionDropout, attention
from lucid.ops.attention_map import attention_map
from lucid.random import Purpose, stream

Array = Any


def _placed(call: Any) -> list[Any]:
    return [None if array is None else runtime.xp.asarray(array) for array in call.arrays.values()]


@pytest.fixture(autouse=True)
def bounds_of_its_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bounds count blocks of keys and of queries: those of the GPU are smaller."""
    monkeypatch.setattr("reference.KEY_BLOCK", on_gpu.TILE)
    monkeypatch.setattr("gradients.cases.KEY_BLOCK", on_gpu.TILE)


# Against float64


@pytest.mark.parametrize("case", [case for case in CASES if case.op in (attention, attention_map)], ids=str)
def test_forward(case: Case, emulated: Emulator, rng: np.random.Generator) -> None:
    call = case.build(rng)
    got, _ = case.op.run(*_placed(call), keep=False, **call.params)
    case.check(got.get(), call)


@pytest.mark.parametrize("case", [case for case in GRADIENT_CASES if case.op is attention], ids=str)
def test_gradients(case: GradientCase, emulated: Emulator, rng: np.random.Generator) -> None:
    call = case.build(rng)
    out, saved = attention.run(*_placed(call), keep=True, **call.params)
    d_out = normal(rng, *out.shape)
    got = attention.gpu().backward(saved, runtime.xp.asarray(d_out))
    want = case.reference(call)[1](d_out)
    bounds = case.bound(d_out, *call.arrays.values(), **call.params)
    for name, g, w, bound in zip(call.arrays, got, want, bounds, strict=False):
        assert_within(g.get(), w, bound, name)


# Tensor cores

HALF = ("float16", "bfloat16")
ROUNDING = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
# Heads, width, lengths, queries asked (None: all), dropout. Lengths around tiles of 64 and of 32, and empty sequences.
ON_TENSOR_CORES = [
    (2, 64, (70, 1, 0, 64), None, None),
    (2, 64, (66, 131), None, 0.3),
    (2, 64, (130, 0, 3, 7), (67, 0, 0, 2), 0.1),
    (2, 32, (65, 5), None, 0.1),
    (2, 128, (33, 66), None, 0.1),
    (1, 128, (97, 3), (5, 0), None),
]


def _problem(
    rng: np.random.Generator, dtype: str, n_heads: int, head_width: int, lengths: tuple[int, ...], asked: Any, p: float | None
) -> tuple[list[Array], dict[str, Any], Array]:
    """Arrays as they are once stored, the other arguments, and a gradient."""
    width, n_keys, n_queries = n_heads * head_width, sum(lengths), sum(lengths if asked is None else asked)
    shapes = [(n_keys, 3 * width)] if asked is None else [(n_queries, width), (n_keys, 2 * width)]
    stored = runtime.dtype_of(dtype)
    starts = np.cumsum([0, *lengths]).astype(np.int32)
    params: dict[str, Any] = {"n_heads": n_heads, "key_starts": starts, "query_starts": None, "dropout": None}
    columns = np.concatenate([np.arange(n) for n in lengths]).astype(np.int32)
    query_columns = columns
    if asked is not None:
        params["query_starts"] = np.cumsum([0, *asked]).astype(np.int32)
        query_columns = rng.integers(0, 512, n_queries).astype(np.int32)
    if p is not None:
        examples = rng.integers(0, 1 << 30, len(lengths)).astype(np.int32)
        params["dropout"] = AttentionDropout(p, 2**63 + 11, stream(Purpose.ATTENTION_DROPOUT, 3, 2), query_columns, columns, examples)
    return [normal(rng, *shape).astype(stored) for shape in shapes], params, normal(rng, n_queries, width).astype(stored)


def _run(arrays: list[Array], params: dict[str, Any], d_out: Array) -> tuple[Array, ...]:
    """Forward and backward, and back on the host as float64."""
    kernel = attention.gpu()  # type: ignore[misc]
    out, saved = kernel.forward(*map(runtime.xp.asarray, arrays), **params, keep=True)
    plain, _ = kernel.forward(*map(runtime.xp.asarray, arrays), **params, keep=False)
    assert plain.get().tobytes() == out.get().tobytes()
    gradients = kernel.backward(saved, runtime.xp.asarray(d_out))
    return out.get(), *(gradient.get() for gradient in gradients)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the kernels that ran."""
    names: list[str] = []
    launch = runtime.launch

    def noting(source: str, kernel: str, *args: Any, **options: Any) -> None:
        names.append(f"{source}.{kernel}")
        launch(source, kernel, *args, **options)

    monkeypatch.setattr(runtime, "launch", noting)
    return names


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("problem", ON_TENSOR_CORES, ids=str)
@pytest.mark.parametrize("form", ["mma", "plain"])
def test_half_precision(
    form: str, problem: Any, dtype: str, emulated: Emulator, launched: list[str], rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each number within a few roundings of the sizes that were rounded; all together far better."""
    if form == "plain":
        monkeypatch.setattr(on_gpu, "MMA_WIDTHS", ())
    arrays, params, d_out = _problem(rng, dtype, *problem)
    got = _run(arrays, params, d_out)
    assert all(name.startswith("attention_mma." if form == "mma" else "attention.") for name in launched)
    exact = [array.astype(np.float64) for array in arrays]
    out, back = gradient_reference.attention(*exact, **params)
    want = (out, *(d for d in back(d_out.astype(np.float64)) if d is not None))
    u = ROUNDING[dtype]
    for name, g, w in zip(("out", "d_queries", "d_keys_values"), got, want, strict=False):
        g = g.astype(np.float64)
        assert np.isfinite(g).all()
        if g.size:
            assert np.linalg.norm(g - w) < u * np.linalg.norm(w), name
            assert np.abs(g - w).max() < 3 * u * max(1, np.abs(w).max()), name
