"""The weights of the fused layers: refused when they are made, since the kernel reads them without asking."""

import dataclasses
import math
import signal
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cases import layer_weights

from lucid.ops.encoder import LayerWeights, encoder
from lucid.ops.linear import PackedWeight

PACKED = ("qkv", "dense", "dense_in", "dense_out")
VECTORS = ("qkv_bias", "dense_bias", "attention_gain", "attention_bias", "in_bias", "out_bias", "gain", "bias")
SIZED_BY_ANOTHER = {"gain": "width 14", "in_bias": "dense_in"}  # what the message speaks of, where it is not the vector


@pytest.fixture
def weights(rng: np.random.Generator) -> LayerWeights:
    return layer_weights(rng, 3, 15, 31)


def wrong_values() -> dict[str, tuple[str, Callable[[Any], Any], type[Exception]]]:
    wrong: dict[str, tuple[str, Callable[[Any], Any], type[Exception]]] = {}
    for name in PACKED:
        wrong[f"{name}, not packed"] = (name, lambda weight: weight.unpack(), TypeError)
        wrong[f"{name}, a number less"] = (name, lambda weight: PackedWeight.pack(weight.unpack()[:, :-1]), ValueError)
        wrong[f"{name}, a row less"] = (name, lambda weight: PackedWeight.pack(weight.unpack()[:-1]), ValueError)
    for name in VECTORS:
        wrong[f"{name}, cut"] = (name, lambda vector: vector[:-1], ValueError)
        wrong[f"{name}, empty"] = (name, lambda vector: vector[:0], ValueError)
        wrong[f"{name}, float64"] = (name, lambda vector: vector.astype(np.float64), TypeError)
        wrong[f"{name}, a list"] = (name, lambda vector: vector.tolist(), TypeError)
    for name in ("attention_eps", "eps"):
        for eps in (0.0, -1e-12, math.nan):
            wrong[f"{name}, {eps}"] = (name, lambda _, eps=eps: eps, ValueError)
    for n_heads in (0, -1, 4):
        wrong[f"n_heads, {n_heads}"] = ("n_heads", lambda _, n=n_heads: n, ValueError)
    for activation in ("gelu_fast", "exp"):
        wrong[f"activation, {activation}"] = ("activation", lambda _, name=activation: name, ValueError)
    return wrong


@pytest.mark.parametrize("case", wrong_values())
def test_wrong_weights_are_refused_by_name(case: str, weights: LayerWeights) -> None:
    name, change, error = wrong_values()[case]
    message = SIZED_BY_ANOTHER.get(name, name) if case.endswith(", cut") else name
    with pytest.raises(error, match=rf"^encoder: .*{message}"):
        dataclasses.replace(weights, **{name: change(getattr(weights, name))})


def test_the_weights_stay_while_they_are_used(weights: LayerWeights, rng: np.random.Generator) -> None:
    """The kernel's pointers keep their arrays, of which this is the last that anybody else holds."""
    x, starts = rng.standard_normal((7, 15)).astype(np.float32), np.array([0, 7], np.int32)
    before = encoder(x, layers=[weights], starts=starts).tobytes()
    kernel = weights.kernel
    twin = dataclasses.replace(weights)
    del weights
    object.__setattr__(twin, "kernel", kernel)
    for name in (*PACKED, *VECTORS):
        object.__setattr__(twin, name, getattr(layer_weights(rng, 3, 15, 31), name))
    assert encoder(x, layers=[twin], starts=starts).tobytes() == before


class Interrupted(Exception):
    pass


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers here")
def test_a_signal_is_heard_between_two_layers(weights: LayerWeights, rng: np.random.Generator) -> None:
    """Of 60,000 layers, in which nobody else asks for signals."""

    def interrupt(*_: Any) -> None:
        raise Interrupted

    x, starts = rng.standard_normal((64, 15)).astype(np.float32), np.array([0, 64], np.int32)
    begin = time.perf_counter()
    encoder(x, layers=[weights] * 600, starts=starts)
    whole = 100 * (time.perf_counter() - begin)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        begin = time.perf_counter()
        signal.setitimer(signal.ITIMER_REAL, whole / 20)
        with pytest.raises(Interrupted):
            encoder(x, layers=[weights] * 60_000, starts=starts)
        assert time.perf_counter() - begin < whole / 2
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
