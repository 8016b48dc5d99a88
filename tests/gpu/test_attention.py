"""Attention of the GPU, emulated: the cases of the CPU's within bounds, half precision on tensor cores, dropout, bits, geometry."""

from typing import Any

import numpy as np
import pytest
from cases import CASES, Case
from gradients.cases import CASES as GRADIENT_CASES
from gradients.cases import Case as GradientCase
from gradients.cases import assert_within, normal

from gpu.emulator import Emulator
from lucid._gpu import attention as on_gpu
from lucid._gpu import runtime
from lucid.ops.attention import AttentionDropout, attention
from lucid.ops.attention_map import attention_map

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
