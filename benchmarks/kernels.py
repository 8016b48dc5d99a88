"""lucid's kernels one by one: GFLOP/s beside the FMA peak, GB/s beside the read bandwidth.

What a kernel has to read and write once counts as its bytes. Weights come from memory, as they do in a model: each call takes
the next of several.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from benchmarks.checkpoint import SIZES
from benchmarks.peers import Setting
from benchmarks.texts import N_WORDS
from benchmarks.timing import Clock

# Of the weights that calls go round: more than caches hold.
_WEIGHT_BYTES = 1 << 27
Rng = np.random.Generator


@dataclass(frozen=True)
class Kernel:
    """A call to be timed.

    Attributes
    ----------
    name, label : str. The operation, and its sizes.
    flops, n_bytes : float. What it computes; what it reads and writes at least.
    call : function
    """

    name: str
    label: str
    flops: float
    n_bytes: float
    call: Callable[[], Any]


@dataclass(frozen=True)
class KernelTime:
    """The time of a call."""

    name: str
    label: str
    flops: float
    n_bytes: float
    seconds: float


def time_kernels(setting: Setting, seconds: float, clock: Clock) -> list[dict[str, Any]]:
    """Return the fastest call of each kernel, as dicts of `KernelTime`.

    Parameters
    ----------
    setting : Setting
    seconds : float. For all of them.
    clock : function. What calls are timed with.
    """
    import lucid

    lucid.set_num_threads(setting.n_threads)
    end = time.perf_counter() + seconds
    makers = list(_makers(*SIZES[setting.size]))
    times = []
    for i, make in enumerate(makers):
        kernel = make()
        own = (end - time.perf_counter()) / (len(makers) - i)
        times.append(asdict(KernelTime(kernel.name, kernel.label, kernel.flops, kernel.n_bytes, _fastest(kernel.call, own, clock))))
    return times


def _fastest(call: Callable[[], Any], seconds: float, clock: Clock) -> float:
    """Return the smallest time of a call: three calls at least, the first of them not counted."""
    call()
    best = float("inf")
    end = time.perf_counter() + seconds
    n = 0
    while n < 2 or time.perf_counter() < end:
        begin = clock()
        call()
        best = min(best, clock() - begin)
        n += 1
    return best


def _makers(n_layers: int, width: int) -> Iterator[Callable[[], Kernel]]:
    """Yield functions that make a kernel's inputs: one at a time, for memory's sake."""
    shapes = {"qkv": (width, 3 * width), "dense": (width, width), "dense_in": (width, 4 * width), "dense_out": (4 * width, width)}
    for m, (name, (k, n)) in itertools.product((1, 4, 16, 128, 1024, 4096), shapes.items()):
        yield lambda m=m, name=name, k=k, n=n: _linear(name, m, k, n)  # type: ignore[misc]
    yield lambda: _linear_backward(1024, width, 4 * width)
    for b, s in ((1, 16), (8, 128), (4, 512)):
        yield lambda b=b, s=s: _attention(b, s, width, False)  # type: ignore[misc]
    yield lambda: _attention(8, 128, width, True)
    yield lambda: _layer_norm(1024, width)
    yield lambda: _layer_norm_backward(1024, width)
    yield lambda: _activation(1024, 4 * width)
    yield lambda: _embedding(1024, width)
    for p in (1, 16, 64):
        yield lambda p=p: _top_k(p, width)  # type: ignore[misc]
    yield lambda: _cross_entropy(154, width)
    yield lambda: _adamw(4 * width * width)


def _numbers(rng: Rng, *shape: int) -> Any:
    return rng.standard_normal(shape, np.float32)


def _linear(name: str, m: int, k: int, n: int) -> Kernel:
    from lucid.ops.linear import PackedWeight, linear

    rng = np.random.default_rng(0)
    x, bias, weight = _numbers(rng, m, k), _numbers(rng, n), _numbers(rng, n, k)
    weights = itertools.cycle([PackedWeight.pack(weight) for _ in range(-(-_WEIGHT_BYTES // (4 * n * k)))])
    activation = "gelu" if name == "dense_in" else None
    label = f"{m} x {k} x {n}" + (", GELU" if activation else "")
    return Kernel(
        f"linear ({name})",
        label,
        2.0 * m * k * n,
        4.0 * (k * n + m * k + m * n),
        lambda: linear(x, next(weights), bias, activation=activation),
    )


def _linear_backward(m: int, k: int, n: int) -> Kernel:
    from lucid.ops.linear import linear

    rng = np.random.default_rng(0)
    x, weight, bias, d_y = _numbers(rng, m, k), _numbers(rng, n, k), _numbers(rng, n), _numbers(rng, m, n)
    _, saved = linear.run(x, weight, bias, keep=True)
    backward = linear.cpu.backward
    assert backward is not None
    return Kernel(
        "linear backward", f"{m} x {k} x {n}", 4.0 * m * k * n, 4.0 * (2 * k * n + 2 * m * k + m * n), lambda: backward(saved, d_y)
    )


def _attention(b: int, s: int, width: int, is_backward: bool) -> Kernel:
    from lucid.ops.attention import attention

    rng = np.random.default_rng(0)
    qkv, d_out = _numbers(rng, b * s, 3 * width), _numbers(rng, b * s, width)
    settings = {"n_heads": width // 64, "key_starts": np.arange(0, b * s + 1, s, dtype=np.int32)}
    flops, n_bytes = 4.0 * b * s * s * width, 4.0 * 4 * b * s * width
    if not is_backward:
        return Kernel("attention", f"{b} x {s}", flops, n_bytes, lambda: attention(qkv, **settings))
    _, saved = attention.run(qkv, keep=True, **settings)
    backward = attention.cpu.backward
    assert backward is not None
    # Scores are made again; the gradients of Q, K, V and of the probabilities are a product each.
    return Kernel("attention backward", f"{b} x {s}", 2.5 * flops, 2 * n_bytes, lambda: backward(saved, d_out))


def _layer_norm(t: int, width: int) -> Kernel:
    from lucid.ops.layer_norm import layer_norm

    rng = np.random.default_rng(0)
    x, residual, gain, bias = _numbers(rng, t, width), _numbers(rng, t, width), _numbers(rng, width), _numbers(rng, width)
    return Kernel(
        "layer_norm + residual", f"{t} x {width}", 8.0 * t * width, 12.0 * t * width, lambda: layer_norm(x, gain, bias, residual, eps=1e-12)
    )


def _layer_norm_backward(t: int, width: int) -> Kernel:
    from lucid.ops.layer_norm import layer_norm

    rng = np.random.default_rng(0)
    x, gain, bias, d_y = _numbers(rng, t, width), _numbers(rng, width), _numbers(rng, width), _numbers(rng, t, width)
    _, saved = layer_norm.run(x, gain, bias, keep=True, eps=1e-12)
    backward = layer_norm.cpu.backward
    assert backward is not None
    return Kernel("layer_norm backward", f"{t} x {width}", 12.0 * t * width, 12.0 * t * width, lambda: backward(saved, d_y))


def _activation(t: int, width: int) -> Kernel:
    from lucid.ops.activation import activation

    x = _numbers(np.random.default_rng(0), t, width)
    return Kernel("GELU", f"{t} x {width}", 20.0 * t * width, 8.0 * t * width, lambda: activation(x, name="gelu"))


def _embedding(t: int, width: int) -> Kernel:
    from lucid.ops.embedding import embedding
    from lucid.ops.linear import PackedWeight

    rng = np.random.default_rng(0)
    words = PackedWeight.pack(_numbers(rng, N_WORDS, width))
    positions, types, gain, bias = _numbers(rng, 512, width), _numbers(rng, 2, width), _numbers(rng, width), _numbers(rng, width)
    index = {
        "ids": rng.integers(0, N_WORDS, t, dtype=np.int32),
        "position_ids": np.arange(t, dtype=np.int32) % 128,
        "type_ids": np.zeros(t, np.int32),
    }
    return Kernel(
        "embedding",
        f"{t} x {width}",
        10.0 * t * width,
        8.0 * t * width,
        lambda: embedding(words, positions, types, gain, bias, eps=1e-12, **index),
    )


def _top_k(p: int, width: int) -> Kernel:
    from lucid.ops.decoder import decoder_top_k
    from lucid.ops.linear import PackedWeight

    rng = np.random.default_rng(0)
    x, weight, bias = _numbers(rng, p, width), PackedWeight.pack(_numbers(rng, N_WORDS, width)), _numbers(rng, N_WORDS)
    return Kernel(
        "decoder, best 5 words", f"{p} rows", 2.0 * p * width * N_WORDS, 4.0 * width * N_WORDS, lambda: decoder_top_k(x, weight, bias, k=5)
    )


def _cross_entropy(p: int, width: int) -> Kernel:
    from lucid.ops.decoder import decoder_cross_entropy
    from lucid.ops.linear import PackedWeight

    rng = np.random.default_rng(0)
    x, weight, bias = _numbers(rng, p, width), PackedWeight.pack(_numbers(rng, N_WORDS, width)), _numbers(rng, N_WORDS)
    labels = rng.integers(0, N_WORDS, p, dtype=np.int32)
    return Kernel(
        "decoder, loss",
        f"{p} rows",
        2.0 * p * width * N_WORDS,
        4.0 * width * N_WORDS,
        lambda: decoder_cross_entropy(x, weight, bias, labels=labels),
    )


def _adamw(n: int) -> Kernel:
    from lucid.ops.adamw import adamw_step

    rng = np.random.default_rng(0)
    # Larger than the caches, as all of a model's weights are.
    weight, d_weight, m = (_numbers(rng, 8 * n) for _ in range(3))
    v = np.abs(weight)
    settings: dict[str, Any] = {"lr": 1e-5, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}
    return Kernel("AdamW", f"{8 * n} weights", 15.0 * 8 * n, 28.0 * 8 * n, lambda: adamw_step(weight, d_weight, m, v, step=2, **settings))
