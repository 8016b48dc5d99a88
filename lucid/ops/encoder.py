"""The layers of an encoder in one call, for inference."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lucid._ext import kernels
from lucid.ops.activation import ACTIVATIONS
from lucid.ops.attention import want_keys, want_starts
from lucid.ops.linear import PackedWeight, want_weight
from lucid.ops.op import Array, Kernel, Op, empty, rows_contiguous, want, want_ids
from lucid.threads import GRAIN, get_num_threads


@dataclass(frozen=True, slots=True, eq=False)
class LayerWeights:
    """What a layer multiplies with; checked when it is made.

    Attributes
    ----------
    n_heads : int
    activation : str. A name in `lucid.ops.activation.ACTIVATIONS`.
    qkv, qkv_bias : PackedWeight (3 * C, C), array (3 * C,). Queries, keys and values, one below the other.
    dense, dense_bias : (C, C), (C,)
    attention_gain, attention_bias, attention_eps : (C,), (C,), float. LayerNorm behind attention.
    dense_in, in_bias : (F, C), (F,)
    dense_out, out_bias : (C, F), (C,)
    gain, bias, eps : (C,), (C,), float. LayerNorm behind the feed-forward.
    kernel : the same for the kernel

    Raises
    ------
    TypeError
        An array is not float32, or a weight not packed.
    ValueError
        Shapes do not agree, the activation is unknown, or an eps is not positive.
    """

    n_heads: int
    activation: str
    qkv: PackedWeight
    qkv_bias: Array
    dense: PackedWeight
    dense_bias: Array
    attention_gain: Array
    attention_bias: Array
    attention_eps: float
    dense_in: PackedWeight
    in_bias: Array
    dense_out: PackedWeight
    out_bias: Array
    gain: Array
    bias: Array
    eps: float
    kernel: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        want("encoder", "gain", self.gain, np.float32, (None,))
        want("encoder", "in_bias", self.in_bias, np.float32, (None,))
        width, inner = len(self.gain), len(self.in_bias)
        if width == 0 or inner == 0:
            raise ValueError(f"encoder: gain and in_bias tell the widths, {width} and {inner}: they must be at least 1")
        if self.n_heads < 1 or width % self.n_heads:
            raise ValueError(f"encoder: width {width} must be a multiple of n_heads {self.n_heads}")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"encoder: activation {self.activation!r} is unknown; known: {', '.join(ACTIVATIONS)}")
        for name, n, k in (("qkv", 3 * width, width), ("dense", width, width), ("dense_in", inner, width), ("dense_out", width, inner)):
            weight = getattr(self, name)
            if not isinstance(weight, PackedWeight):
                raise TypeError(f"encoder: {name} must be a PackedWeight, not {type(weight).__name__}")
            if want_weight("encoder", name, weight) != (n, k):
                raise ValueError(f"encoder: {name} must have shape ({n}, {k}), not {weight.shape}")
        for name, n in (("qkv_bias", 3 * width), ("dense_bias", width), ("out_bias", width)):
            want("encoder", name, getattr(self, name), np.float32, (n,))
        for name in ("attention_gain", "attention_bias", "bias"):
            want("encoder", name, getattr(self, name), np.float32, (width,))
        for name in ("attention_eps", "eps"):
            if not np.float32(getattr(self, name)) > 0:
                raise ValueError(f"encoder: {name} must be positive, not {getattr(self, name)}")
        kernel = kernels.EncoderLayer(
            self.n_heads,
            1.0 / np.sqrt(width // self.n_heads),
            ACTIVATIONS[self.activation],
            self.qkv.panels,
            rows_contiguous(self.qkv_bias),
            self.dense.panels,
            rows_contiguous(self.dense_bias),
            rows_contiguous(self.attention_gain),
            rows_contiguous(self.attention_bias),
            self.attention_eps,
            self.dense_in.panels,
            rows_contiguous(self.in_bias),
            self.dense_out.panels,
            rows_contiguous(self.out_bias),
            rows_contiguous(self.gain),
            rows_contiguous(self.bias),
            self.eps,
        )
        object.__setattr__(self, "kernel", kernel)


def _check(x: Array, *, layers: Sequence[LayerWeights], starts: Array, rows: Array | None = None, row_starts: Array | None = None) -> None:
    want("encoder", "x", x, np.float32, (None, None))
    n_tokens, width = x.shape
    if not isinstance(layers, (tuple, list)) or not layers:
        raise TypeError(f"encoder: layers must be a list of LayerWeights, one at least, not {layers!r:.60}")
    for layer in layers:
        if type(layer) is not LayerWeights:
            raise TypeError(f"encoder: layers must hold LayerWeights, not {type(layer).__name__}")
        if len(layer.gain) != width:
            raise ValueError(f"encoder: x has width {width}, and one of the layers {len(layer.gain)}")
    want_starts("encoder", "starts", starts, n_tokens)
    if rows is None:
        if row_starts is not None:
            raise ValueError("encoder: row_starts without rows")
        return
    want("encoder", "rows", rows, np.int32, (None,))
    want_ids("encoder", "rows", rows, n_tokens)
    if (rows[1:] <= rows[:-1]).any():
        raise ValueError("encoder: rows must rise, each named once")
    if row_starts is None:
        raise TypeError("encoder: rows want row_starts, an array that tells whose they are, not None")
    want_starts("encoder", "row_starts", row_starts, len(rows))
    want_keys("encoder", "row_starts and starts", row_starts, starts)
    if (np.searchsorted(rows, starts) != row_starts).any():
        raise ValueError("encoder: rows must lie in the sequences that row_starts gives them to")


def _forward(
    x: Array, *, layers: Sequence[LayerWeights], starts: Array, rows: Array | None = None, row_starts: Array | None = None, keep: bool
) -> tuple[Array, Any]:
    n_tokens, width = x.shape
    out = empty(x.shape if rows is None else (len(rows), width))
    if out.size:
        inner = max([len(layer.in_bias) for layer in layers])
        scratch = empty((n_tokens * (width + max(4 * width, inner)),))
        kernels.encoder_forward(
            [layer.kernel for layer in layers],
            np.ascontiguousarray(x),
            np.ascontiguousarray(starts),
            None if rows is None else np.ascontiguousarray(rows),
            None if row_starts is None else np.ascontiguousarray(row_starts),
            scratch,
            out if rows is None else empty(x.shape),
            out,
            get_num_threads(),
            GRAIN,
        )
    return out, None


encoder = Op("encoder", _check, cpu=Kernel(_forward, None), gpu=None)
"""Layers of BERT, each h = LayerNorm(x + dense(attention(x))), then LayerNorm(h + dense_out(activation(dense_in(h)))).

Parameters
----------
x : array, float32, shape (T, C)
layers : list of LayerWeights, one at least
starts : array, int32, shape (B + 1,). The rows of sequence b are starts[b] to starts[b + 1].
rows : array, int32, shape (P,), rising, optional. The rows of x that the last layer is to return: keys and values are made of all, the rest
    of those.
row_starts : array, int32, shape (B + 1,). Those of sequence b are rows[row_starts[b]] to rows[row_starts[b + 1]].

Returns
-------
y : array, float32, shape (T, C), or (P, C)

Raises
------
TypeError
    An array is not float32, or `layers` not what it should be.
ValueError
    Shapes do not agree.
IndexError
    A row is none of x.

Notes
-----
Source: Devlin et al. 2019, after Vaswani et al. 2017, section 3.1. The bits are those of `linear`, `attention` and `layer_norm` one
after the other; what is saved is Python between them. No dropout, no gradient, no GPU.
"""
