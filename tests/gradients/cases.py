"""The calls whose gradients are tested, and how far from the reference a float32 gradient may be.

A bound is derived, element by element in float64, from how the kernels add; none is a flat tolerance. `U` is half an
ulp of 1.0: what one rounding costs, relative to its result. A bound takes the gradient of the result, then the op's own
arguments, and returns one bound for each array.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from gradients import reference
from lucid import threads
from lucid.autograd import apply
from lucid.device import is_on_gpu
from lucid.ops.activation import activation
from lucid.ops.attention import AttentionDropout, attention
from lucid.ops.cross_entropy import cross_entropy
from lucid.ops.decoder import decoder_cross_entropy, decoder_loss
from lucid.ops.dropout import dropout
from lucid.ops.embedding import embedding
from lucid.ops.layer_norm import layer_norm
from lucid.ops.linear import PackedWeight, linear
from lucid.ops.op import Op, RowsGradient
from lucid.ops.reshape import reshape
from lucid.ops.rows import gather_rows, scatter_rows
from lucid.ops.total import scale, total
from lucid.random import Purpose, stream
from lucid.tensor import Tensor

Array = Any
Rng = np.random.Generator
Bounds = tuple[Array | None, ...]

U = 2.0**-24
THREAD_COUNTS = (1, 2, 3, 8)

# Where the kernels cut their sums.
CHAIN, KEY_BLOCK, QUERY_BLOCK, ROW_LANES, NORM_ROWS, WORDS_AT_ONCE, ROWS_AT_ONCE = 256, 192, 32, 16, 64, 4608, 1024

EXP_ERROR = 1.2e-7
SLOPE_ERROR = 2.1e-7
"""Of `activation_slope` in lucid/_ext/elementary.pyx, absolute; ReLU's is exact. Asserted over a sweep in test_ops.py."""
CURVATURE = 0.8
"""The largest second derivative of any activation (GELU, at 0)."""


# Bounds


def gamma(n_roundings: Array) -> Array:
    """Relative error of `n_roundings` roundings in a row (Higham 2002, lemma 3.1)."""
    return n_roundings * U / (1 - n_roundings * U)


def depth(k: int, block: int = CHAIN) -> int:
    """Roundings of a sum of k products cut into blocks: its own, those of its block, one addition per block."""
    return min(k, block) + -(-k // block) + 2


def product_bound(a: Array, b: Array, block: int = CHAIN) -> Array:
    """|error| of a . b."""
    return gamma(depth(a.shape[1], block)) * (np.abs(a) @ np.abs(b))


def activation_bound(d_y: Array, x: Array, *, name: str, of_x: Array | float = 0.0) -> Bounds:
    (d_x,) = reference.activation(x, name=name)[1](d_y)
    if name == "relu":
        return (np.where(np.abs(x) <= of_x, np.abs(d_y), 0) * np.sign(of_x),)
    return (np.abs(d_y) * (CURVATURE * of_x + SLOPE_ERROR) + U * np.abs(d_x),)


def linear_bound(
    d_y: Array,
    x: Array,
    weight: Array,
    bias: Array | None = None,
    residual: Array | None = None,
    *,
    activation: str | None = None,
    columns: Any = None,
) -> Bounds:
    rows = slice(*(columns or (0, len(weight))))
    x, weight = x.astype(np.float64), weight.astype(np.float64)
    d_z, of_d_z = d_y.astype(np.float64), np.zeros(d_y.shape)
    if activation is not None:
        z = x @ weight[rows].T + (0 if bias is None else bias[rows])
        of_z = product_bound(x, weight[rows].T) * (1 + U) + U * np.abs(z)
        (of_d_z,) = activation_bound(d_y, z, name=activation, of_x=of_z)
        (d_z,) = reference.activation(z, name=activation)[1](d_y)
    size = np.abs(d_z) + of_d_z
    bounds = np.zeros(weight.shape), np.zeros(len(weight))
    bounds[0][rows] = product_bound(size.T, x) + of_d_z.T @ np.abs(x)
    bounds[1][rows] = of_d_z.sum(axis=0) + U * np.abs(d_z.sum(axis=0)) + 2.0**-50 * size.sum(axis=0)
    of_x = product_bound(size, weight[rows]) + of_d_z @ np.abs(weight[rows])
    return of_x, bounds[0], None if bias is None else bounds[1], None if residual is None else np.zeros(d_y.shape)


def layer_norm_bound(
    d_y: Array, x: Array, gain: Array, bias: Array, residual: Array | None = None, *, eps: float, of_total: Array | float = 0.0
) -> Bounds:
    total = x.astype(np.float64) + (0 if residual is None else residual)
    if residual is not None:
        of_total = U * np.abs(total)
    of_sum = gamma(-(-x.shape[1] // ROW_LANES) + 4 + 2)  # a lane's chain, the tree that joins lanes, the division
    mean = total.mean(axis=1, keepdims=True)
    of_mean = np.mean(of_sum * np.abs(total) + of_total, axis=1, keepdims=True)
    centred = total - mean
    of_centred = (of_total + of_mean) * (1 + U) + U * np.abs(centred)
    variance = np.mean(centred**2, axis=1, keepdims=True)
    of_variance = np.mean((2 * np.abs(centred) + of_centred) * of_centred, axis=1, keepdims=True) + 2 * of_sum * variance
    relative = of_variance / (variance + eps) + 2 * U
    rstd = 1 / np.sqrt(variance + eps)
    of_rstd = rstd * (1 / np.sqrt(1 - np.minimum(relative, 0.5)) - 1 + 3 * U)
    normal = centred * rstd
    of_normal = of_centred * (rstd + of_rstd) + np.abs(centred) * of_rstd + U * np.abs(normal)
    # d_x = rstd * (g - mean(g) - normal * mean(g * normal))
    g = d_y.astype(np.float64) * gain
    g_mean, gn_mean = g.mean(axis=1, keepdims=True), (g * normal).mean(axis=1, keepdims=True)
    of_g_mean = (of_sum + 2 * U) * np.abs(g).mean(axis=1, keepdims=True)
    of_gn_mean = ((of_sum + 4 * U) * np.abs(g * normal) + np.abs(g) * of_normal).mean(axis=1, keepdims=True)
    of_inside = U * np.abs(g) + of_g_mean + np.abs(normal) * of_gn_mean + of_normal * (np.abs(gn_mean) + of_gn_mean)
    of_inside = of_inside + 3 * U * (np.abs(g) + np.abs(g_mean) + np.abs(normal * gn_mean))
    inside = g - g_mean - normal * gn_mean
    of_x = (rstd + of_rstd) * of_inside + of_rstd * np.abs(inside) + 2 * U * np.abs(rstd * inside)
    of_rows = gamma(min(len(x), NORM_ROWS) + 2)  # the parts are joined in float64
    of_gain = (np.abs(d_y) * (of_normal + of_rows * np.abs(normal))).sum(axis=0)
    return of_x, of_gain, of_rows * np.abs(d_y.astype(np.float64)).sum(axis=0), None if residual is None else of_x


def embedding_bound(
    d_y: Array,
    words: Array,
    positions: Array,
    types: Array,
    gain: Array,
    bias: Array,
    *,
    ids: Array,
    position_ids: Array,
    type_ids: Array,
    eps: float,
) -> Bounds:
    terms = words[ids].astype(np.float64), positions[position_ids].astype(np.float64), types[type_ids].astype(np.float64)
    of_total = gamma(2) * sum(np.abs(term) for term in terms)
    of_x, of_gain, of_bias, _ = layer_norm_bound(d_y, sum(terms), gain, bias, eps=eps, of_total=of_total)
    d_total = reference.layer_norm(sum(terms), gain, bias, eps=eps)[1](d_y)[0]
    tables = []
    for table, index in ((words, ids), (positions, position_ids), (types, type_ids)):
        bound = np.zeros(table.shape)
        for row in set(index.tolist()):
            tokens = index == row
            bound[row] = of_x[tokens].sum(axis=0) + gamma(tokens.sum()) * (np.abs(d_total) + of_x)[tokens].sum(axis=0)
        tables.append(bound)
    return (*tables, of_gain, of_bias)


def attention_bound(
    d_out: Array,
    queries: Array,
    keys_values: Array | None = None,
    *,
    n_heads: int,
    key_starts: Array,
    query_starts: Array | None = None,
    dropout: AttentionDropout | None = None,
) -> Bounds:
    if keys_values is None:
        q, k, v = np.split(queries.astype(np.float64), 3, axis=1)
        query_starts = key_starts
    else:
        q = queries.astype(np.float64)
        k, v = np.split(keys_values.astype(np.float64), 2, axis=1)
    width = q.shape[1] // n_heads
    of_q, of_k, of_v = np.zeros(q.shape), np.zeros(k.shape), np.zeros(v.shape)
    for b in range(len(key_starts) - 1):
        rows, keys = slice(query_starts[b], query_starts[b + 1]), slice(key_starts[b], key_starts[b + 1])
        for head in range(n_heads) if rows.start < rows.stop else ():
            at = slice(head * width, (head + 1) * width)
            keep = reference.attention_keep(dropout, b, head, rows, keys) if dropout is not None else 1.0
            bounds = _head_bound(q[rows, at], k[keys, at], v[keys, at], d_out[rows, at].astype(np.float64), keep)
            of_q[rows, at], of_k[keys, at], of_v[keys, at] = bounds
    if keys_values is None:
        return np.concatenate([of_q, of_k, of_v], axis=1) + 1e-37, None
    return of_q + 1e-37, np.concatenate([of_k, of_v], axis=1) + 1e-37  # an exponential below the smallest normal float32 is 0


def _head_bound(q: Array, k: Array, v: Array, d_o: Array, keep: Array | float) -> tuple[Array, Array, Array]:
    n_keys, width = k.shape
    factor, n_blocks = 1 / math.sqrt(width), -(-n_keys // KEY_BLOCK)
    s = q @ k.T * factor
    top = s.max(axis=1, keepdims=True)
    lse = top + np.log(np.exp(s - top).sum(axis=1, keepdims=True))
    p = np.exp(s - lse)
    of_s = product_bound(q, k.T) * factor + 2 * U * np.abs(s)
    # Forward: the log-sum-exp.
    of_exponent = of_s + (1 + n_blocks) * U * (top - s) + EXP_ERROR
    of_sum = (p * of_exponent).sum(axis=1, keepdims=True) * 1.01 + gamma(min(n_keys, KEY_BLOCK) + 4 * n_blocks + 20)
    of_lse = of_sum + 3 * U * (np.abs(lse) + np.abs(top) + np.abs(lse - top))
    # Backward.
    of_p = p * np.expm1(of_s + of_lse + U * np.abs(s - lse) + EXP_ERROR)
    d_p = (d_o @ v.T) * keep
    of_d_p = product_bound(d_o, v.T) * keep + 2 * U * np.abs(d_p)
    # delta = sum(P dP) / sum(P): what all of a row's P have in common falls out.
    delta = (p * d_p).sum(axis=1, keepdims=True)
    of_delta = (p * of_d_p + of_p * np.abs(d_p - delta) + gamma(-(-KEY_BLOCK // ROW_LANES) + 8) * p * np.abs(d_p)).sum(
        axis=1, keepdims=True
    )
    of_delta = of_delta * (1 + of_p.sum(axis=1, keepdims=True)) + gamma(-(-KEY_BLOCK // ROW_LANES) + 8) * np.abs(delta)
    of_difference = of_d_p + of_delta + U * np.abs(d_p - delta)
    d_s = factor * p * (d_p - delta)
    of_d_s = factor * ((p + of_p) * of_difference + of_p * np.abs(d_p - delta)) + 4 * U * np.abs(d_s)
    a, of_a = p * keep, (of_p + 2 * U * p) * keep
    d_s_size = np.abs(d_s) + of_d_s
    return (
        of_d_s @ np.abs(k) + product_bound(d_s_size, k, KEY_BLOCK),
        of_d_s.T @ np.abs(q) + product_bound(d_s_size.T, q, QUERY_BLOCK),
        of_a.T @ np.abs(d_o) + product_bound((a + of_a).T, d_o, QUERY_BLOCK),
    )


def _softmax_gradient_bound(d_losses: Array, logits: Array, labels: Array, of_logits: Array | float = 0.0) -> Array:
    """Of (exp(logits - lse) - onehot) * d_losses; a label below 0 gives an exact 0."""
    logits = logits.astype(np.float64)
    top = logits.max(axis=1, keepdims=True, initial=-np.inf)
    lse = top + np.log(np.exp(logits - top).sum(axis=1, keepdims=True))
    p = np.exp(logits - lse)
    of_exponent = of_logits + U * (top - logits) + EXP_ERROR
    of_lse = (p * of_exponent).sum(axis=1, keepdims=True) * 1.01 + gamma(384 // ROW_LANES + 8) + U * np.abs(lse)
    of_p = p * np.expm1(of_logits + of_lse + U * np.abs(logits - lse) + EXP_ERROR)
    # Two roundings of the difference and the product; p below the smallest normal float32 is 0.
    bound = np.abs(d_losses.astype(np.float64))[:, None] * (of_p + 2 * U * np.maximum(p, _onehot(labels, p.shape)) + 1.2e-38)
    return np.where(labels[:, None] >= 0, bound, 0)


def _onehot(labels: Array, shape: tuple[int, int]) -> Array:
    return labels[:, None] == np.arange(shape[1])


def cross_entropy_bound(d_losses: Array, logits: Array, *, labels: Array, ignore_index: int = -100) -> Bounds:
    return (_softmax_gradient_bound(d_losses, logits, np.where(labels == ignore_index, -1, labels)),)


def decoder_cross_entropy_bound(d_losses: Array, x: Array, weight: Array, bias: Array | None = None, *, labels: Array) -> Bounds:
    x, weight = x.astype(np.float64), weight.astype(np.float64)
    logits, _ = reference.linear(x, weight, bias)
    of_logits = product_bound(x, weight.T) * (1 + U) + U * np.abs(logits)
    of_d = _softmax_gradient_bound(d_losses, logits, labels, of_logits)
    (d,) = reference.cross_entropy(logits, labels=labels)[1](d_losses)
    size = np.abs(d) + of_d
    of_x = of_d @ np.abs(weight) + gamma(depth(len(weight)) + -(-len(weight) // WORDS_AT_ONCE)) * (size @ np.abs(weight))
    of_weight = of_d.T @ np.abs(x) + product_bound(size.T, x)
    return of_x, of_weight, None if bias is None else of_d.sum(axis=0) + U * np.abs(d.sum(axis=0)) + 2.0**-50 * size.sum(axis=0)


def decoder_loss_bound(d_y: Array, x: Array, weight: Array, bias: Array | None = None, *, labels: Array, divisor: float) -> Bounds:
    """Two roundings more: of 1 / divisor, and of the product with d_y; and rows are added in float32 from one group to the next."""
    d_losses = np.full(len(x), float(d_y) / divisor)
    of = decoder_cross_entropy_bound(d_losses, x, weight, bias, labels=labels)
    wanted = reference.decoder_loss(x.astype(np.float64), weight, bias, labels=labels, divisor=divisor)[1](d_y)
    logits = reference.linear(x.astype(np.float64), weight, bias)[0]
    (d,) = reference.cross_entropy(logits, labels=labels)[1](d_losses)
    of_groups = (len(x) // ROWS_AT_ONCE) * U * np.abs(d).sum(axis=0)
    return tuple(
        None if bound is None else bound * (1 + 4 * U) + 3 * U * np.abs(want) + (of_groups if i == 2 else 0)
        for i, (bound, want) in enumerate(zip(of, wanted, strict=True))
    )


def gather_rows_bound(d_y: Array, x: Array, *, rows: Array) -> Bounds:
    size, count = np.zeros(x.shape), np.bincount(rows, minlength=len(x))[:, None]
    np.add.at(size, rows, np.abs(d_y))
    return (gamma(np.maximum(count - 1, 0)) * size,)


def one_rounding_of(function: Callable[..., Any]) -> Callable[..., Bounds]:
    """Bound what is d_y times constants: one rounding of the constant, one of the product."""

    def bound(d_y: Array, *arrays: Array, **params: Any) -> Bounds:
        return tuple(2 * U * np.abs(d) for d in function(*arrays, **params)[1](d_y))

    return bound


def exact(d_y: Array, *arrays: Array, **params: Any) -> Bounds:
    return (0.0,) * len(arrays)


# The table


@dataclass(frozen=True)
class Call:
    """The arguments of one call, in order and by name; the one named `packed` is handed over as a PackedWeight."""

    arrays: dict[str, Any]
    params: dict[str, Any]
    packed: str | None = None

    def run(self, op: Op, *, keep: bool = True) -> tuple[Any, Any]:
        arrays = {name: PackedWeight.pack(array) if name == self.packed else array for name, array in self.arrays.items()}
        return op.run(*arrays.values(), keep=keep, **self.params)

    def map(self, change: Callable[[np.ndarray], np.ndarray]) -> Call:
        """Change every array, those inside an AttentionDropout too."""

        def apply(value: Any) -> Any:
            if isinstance(value, AttentionDropout):
                return dataclasses.replace(value, **{f.name: apply(getattr(value, f.name)) for f in dataclasses.fields(value)})
            return change(value) if isinstance(value, np.ndarray) else value

        return Call({n: apply(v) for n, v in self.arrays.items()}, {n: apply(v) for n, v in self.params.items()}, self.packed)


@dataclass(frozen=True)
class Case:
    op: Op
    label: str
    build: Callable[[Rng], Call]
    bound: Callable[..., Bounds]

    def __str__(self) -> str:
        return f"{self.op.name}-{self.label}"

    @property
    def size(self) -> int:
        """Numbers in its arrays."""
        return sum(array.size for array in self.build(np.random.default_rng(0)).arrays.values() if array is not None)

    def reference(self, call: Call) -> tuple[Array, reference.Back]:
        result: tuple[Array, reference.Back] = getattr(reference, self.op.name)(*call.arrays.values(), **call.params)
        return result


def gradients(op: Op, call: Call, d_out: Array) -> tuple[Array | None, ...]:
    """Run forward and backward; one dense gradient for each array, None where there is none."""
    _, saved = call.run(op)
    found = op.cpu.backward(saved, d_out)  # type: ignore[misc]
    dense = [g.dense() if isinstance(g, RowsGradient) else g for g in found]
    return (*dense, *(None,) * (len(call.arrays) - len(dense)))


def assert_other_gradients_are_refused(op: Op, arrays: Iterable[Any], params: dict[str, Any]) -> None:
    """Assert that what an op left on the tape takes no gradient of another shape, type or device, and then the right one."""
    tensors = [Tensor(a, requires_grad=True) if hasattr(a, "dtype") and a.dtype.kind in "fV" else a for a in arrays]
    out = apply(op, *tensors, **params)
    array, node = out.array, out.node
    for shape in ((array.shape[0] - 1 if array.ndim else 1, *array.shape[1:]), (*array.shape, 1)):
        with pytest.raises(ValueError, match=f"{op.name}: d_out must have shape"):
            node.run(np.zeros_like(array, shape=shape))
    for dtype in {np.float64, np.float32, np.float16, np.int32} - {array.dtype.type}:
        with pytest.raises(TypeError, match=f"{op.name}: d_out must be {array.dtype}"):
            node.run(np.zeros_like(array, dtype=dtype))
    with pytest.raises(TypeError, match=f"{op.name}: d_out must be an array"):
        node.run(out.tolist())
    if is_on_gpu(array):
        with pytest.raises(TypeError, match=f"{op.name}: d_out is on the cpu, the result on the gpu"):
            node.run(np.zeros(array.shape, array.dtype))
    node.run(np.zeros_like(array))


def assert_within(got: Array, want: Array, bound: Array | float, what: str) -> None:
    """Assert |got - want| <= bound in every element, and that everything is finite."""
    assert got.shape == want.shape, f"{what}: shape {got.shape}, want {want.shape}"
    assert got.dtype == np.float32, f"{what}: {got.dtype}"
    error, bound = np.abs(got.astype(np.float64) - want), np.broadcast_to(bound, want.shape)
    is_wrong = ~((error <= bound) | (got == want))
    if is_wrong.any():
        at = tuple(int(i) for i in np.argwhere(is_wrong)[0])
        raise AssertionError(
            f"{what}: {is_wrong.sum()} of {want.size} wrong; first at {at}: {got[at]!r}, want {want[at]!r} within {bound[at]:.3g}"
        )


def for_each_thread_count(call: Callable[[], Any]) -> list[Any]:
    """Make the same call with 1, 2, 3 and 8 threads, however small the work, and return the results."""
    grain, chosen, results = threads.GRAIN, threads._chosen, []
    try:
        threads.GRAIN = 0
        for n in THREAD_COUNTS:
            threads.set_num_threads(n)
            results.append(call())
    finally:
        threads.GRAIN = grain
        threads.set_num_threads(chosen)
    return results


def normal(rng: Rng, *shape: int, scale: float = 1.0) -> Array:
    return np.asarray(scale * rng.standard_normal(shape), np.float32)


def integers(rng: Rng, low: int, high: int, n: int) -> Array:
    return rng.integers(low, high, n).astype(np.int32)


def starts_of(lengths: tuple[int, ...]) -> Array:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


def _activation(name: str, *shape: int) -> Case:
    def build(rng: Rng) -> Call:
        return Call({"x": normal(rng, *shape, scale=3)}, {"name": name})

    return Case(activation, f"{name}-{shape}", build, activation_bound)


def _linear(
    m: int, n: int, k: int, epilogue: str = "", activation: str | None = None, columns: tuple[int, int] | None = None, packed: bool = False
) -> Case:
    """`epilogue` names what there is: "b" a bias, "r" a residual."""

    def build(rng: Rng) -> Call:
        width = n if columns is None else columns[1] - columns[0]
        arrays = {
            "x": normal(rng, m, k),
            "weight": normal(rng, n, k, scale=k**-0.5),
            "bias": normal(rng, n) if "b" in epilogue else None,
            "residual": normal(rng, m, width) if "r" in epilogue else None,
        }
        return Call(arrays, {"activation": activation, "columns": columns}, "weight" if packed else None)

    extras = [epilogue, activation or "", str(columns or ""), "packed" if packed else ""]
    return Case(linear, "-".join([f"{m}x{n}x{k}", *filter(None, extras)]), build, linear_bound)


def _layer_norm(n_rows: int, width: int, residual: bool = False, offset: float = 0.0, eps: float = 1e-12) -> Case:
    def build(rng: Rng) -> Call:
        arrays = {"x": normal(rng, n_rows, width) + np.float32(offset), "gain": normal(rng, width), "bias": normal(rng, width)}
        return Call({**arrays, "residual": normal(rng, n_rows, width) if residual else None}, {"eps": eps})

    label = f"{n_rows}x{width}{'-residual' if residual else ''}{f'-offset {offset}' if offset else ''}"
    return Case(layer_norm, label, build, layer_norm_bound)


def _embedding(n_tokens: int, width: int, n_words: int, n_positions: int = 7, n_types: int = 2, packed: bool = False) -> Case:
    def build(rng: Rng) -> Call:
        tables = {"words": normal(rng, n_words, width), "positions": normal(rng, n_positions, width), "types": normal(rng, n_types, width)}
        ids = {
            "ids": integers(rng, 0, n_words, n_tokens),
            "position_ids": integers(rng, 0, n_positions, n_tokens),
            "type_ids": integers(rng, 0, n_types, n_tokens),
        }
        norm = {"gain": normal(rng, width), "bias": normal(rng, width)}
        return Call({**tables, **norm}, {**ids, "eps": 1e-12}, "words" if packed else None)

    label = f"{n_tokens}x{width}-of-{n_words}{'-packed' if packed else ''}"
    return Case(embedding, label, build, embedding_bound)


def _attention(
    n_heads: int,
    head_width: int,
    lengths: tuple[int, ...],
    asked: tuple[int, ...] | None = None,
    p: float | None = None,
    scale: float = 1.0,
) -> Case:
    """`asked` gives the number of queries of every sequence, where they are not the sequence itself."""

    def build(rng: Rng) -> Call:
        width, n_keys = n_heads * head_width, sum(lengths)
        n_queries = n_keys if asked is None else sum(asked)
        if asked is None:
            arrays = {"queries": normal(rng, n_keys, 3 * width, scale=scale), "keys_values": None}
        else:
            arrays = {"queries": normal(rng, n_queries, width, scale=scale), "keys_values": normal(rng, n_keys, 2 * width, scale=scale)}
        drop = None
        if p is not None:
            key_columns = np.concatenate([np.arange(n) for n in lengths]).astype(np.int32)
            query_columns = key_columns if asked is None else integers(rng, 0, 512, n_queries)
            examples = integers(rng, 0, 1 << 30, len(lengths))
            drop = AttentionDropout(p, 2**63 + 11, stream(Purpose.ATTENTION_DROPOUT, 3, 2), query_columns, key_columns, examples)
        starts = {"key_starts": starts_of(lengths), "query_starts": None if asked is None else starts_of(asked)}
        return Call(arrays, {"n_heads": n_heads, **starts, "dropout": drop})

    extras = [f"asked {asked}" if asked else "", f"p {p}" if p is not None else "", f"scale {scale}" if scale != 1 else ""]
    return Case(attention, "-".join([f"{n_heads}x{head_width}-{lengths}", *filter(None, extras)]), build, attention_bound)


def _labels(rng: Rng, n: int, n_words: int) -> Array:
    labels = integers(rng, 0, n_words, n)
    labels[:2] = (0, n_words - 1)[: len(labels)]
    return labels


def _cross_entropy(n_rows: int, n_words: int, scale: float = 1.0, is_ignored: bool = False) -> Case:
    def build(rng: Rng) -> Call:
        labels = _labels(rng, n_rows, n_words)
        if is_ignored:
            labels[::2] = -100
        return Call({"logits": normal(rng, n_rows, n_words, scale=scale)}, {"labels": labels})

    label = f"{n_rows}x{n_words}{f'-scale {scale}' if scale != 1 else ''}{'-ignored' if is_ignored else ''}"
    return Case(cross_entropy, label, build, cross_entropy_bound)


def _decoder_cross_entropy(n_rows: int, n_words: int, width: int, bias: bool = True, packed: bool = False) -> Case:
    def build(rng: Rng) -> Call:
        arrays = {"x": normal(rng, n_rows, width), "weight": normal(rng, n_words, width, scale=width**-0.5)}
        labels = _labels(rng, n_rows, n_words)
        return Call({**arrays, "bias": normal(rng, n_words) if bias else None}, {"labels": labels}, "weight" if packed else None)

    label = f"{n_rows}x{n_words}x{width}{'-bias' if bias else ''}{'-packed' if packed else ''}"
    return Case(decoder_cross_entropy, label, build, decoder_cross_entropy_bound)


def _decoder_loss(n_rows: int, n_words: int, width: int, divisor: float, bias: bool = True) -> Case:
    def build(rng: Rng) -> Call:
        call = _decoder_cross_entropy(n_rows, n_words, width, bias).build(rng)
        return Call(call.arrays, {**call.params, "divisor": divisor})

    label = f"{n_rows}x{n_words}x{width}{'-bias' if bias else ''}-over {divisor}"
    return Case(decoder_loss, label, build, decoder_loss_bound)


def _dropout(n_rows: int, width: int, p: float) -> Case:
    def build(rng: Rng) -> Call:
        tokens = {"columns": integers(rng, 0, 512, n_rows), "examples": integers(rng, 0, 1 << 30, n_rows)}
        return Call(
            {"x": normal(rng, n_rows, width)},
            {"p": p, "seed": 2**64 - 1, "stream": stream(Purpose.FEED_FORWARD_DROPOUT, 11, 65535), **tokens},
        )

    return Case(dropout, f"{n_rows}x{width}-p {p}", build, one_rounding_of(reference.dropout))


def _gather_rows(n_rows: int, width: int, n_taken: int) -> Case:
    def build(rng: Rng) -> Call:
        return Call({"x": normal(rng, n_rows, width)}, {"rows": integers(rng, 0, n_rows, n_taken)})

    return Case(gather_rows, f"{n_taken}-of-{n_rows}x{width}", build, gather_rows_bound)


def _scatter_rows(n_rows: int, width: int, n_given: int) -> Case:
    def build(rng: Rng) -> Call:
        rows = np.sort(rng.permutation(n_rows)[:n_given]).astype(np.int32)
        return Call({"x": normal(rng, n_given, width)}, {"rows": rows, "n_rows": n_rows})

    return Case(scatter_rows, f"{n_given}-to-{n_rows}x{width}", build, exact)


def _simple(op: Op, x_shape: tuple[int, ...], bound: Callable[..., Bounds], **params: Any) -> Case:
    def build(rng: Rng) -> Call:
        return Call({"x": normal(rng, *x_shape)}, params)

    extras = "-".join(f"{name} {value}" for name, value in params.items())
    return Case(op, f"{x_shape}-{extras}", build, bound)


CASES: tuple[Case, ...] = (
    # The first case of an op is the one that error tests start from, and the one that finite differences check.
    _activation("gelu", 5, 7),
    *(_activation(name, 3, 1021) for name in ("gelu_new", "gelu_pytorch_tanh", "relu", "silu", "swish", "tanh")),
    _activation("gelu", 0),
    _activation("gelu", 1),
    _activation("gelu", 2, 3, 5),
    _activation("gelu", 5, 3072),
    _linear(5, 11, 7, "br", "gelu"),
    _linear(0, 5, 3, "br"),
    _linear(5, 0, 3, "br"),
    _linear(1, 1, 1, "br"),
    _linear(1, 1, 1031, "b"),
    _linear(2, 23, 3),
    _linear(3, 24, 4, "r"),
    _linear(4, 25, 255, "b", "relu"),
    _linear(5, 47, 256, "br", "gelu_new"),
    _linear(6, 48, 257, "b", "silu"),
    _linear(7, 49, 259, "b", "tanh", packed=True),
    _linear(521, 13, 31, "b"),
    _linear(1031, 29, 17, "r", "gelu"),
    _linear(7, 1021, 33, "br", columns=(5, 1000)),
    _linear(7, 1021, 33, "br", "gelu", columns=(17, 18), packed=True),
    _linear(7, 31, 33, "br", columns=(20, 20)),
    _linear(129, 768, 768, "br"),
    _linear(6, 3072, 768, "b", "gelu"),
    _linear(7, 768, 3072, "b"),
    _layer_norm(5, 7, residual=True),
    *(_layer_norm(n_rows, width) for n_rows, width in ((0, 8), (3, 1), (1, 2), (3, 7), (5, 8), (4, 15), (4, 16), (2, 17), (3, 1021))),
    *(_layer_norm(n_rows, 24, residual=True) for n_rows in (63, 64, 65, 257)),
    _layer_norm(129, 768, residual=True),
    _layer_norm(3, 3072, offset=10.0),
    _layer_norm(4, 129, offset=1000.0, eps=1e-5),
    _layer_norm(6, 128, offset=-3.0, residual=True, eps=1e-3),
    _embedding(9, 5, 11, n_positions=5),
    _embedding(0, 8, 5),
    _embedding(1, 1, 1, n_positions=1, n_types=1, packed=True),
    _embedding(13, 26, 1021, packed=True),
    _embedding(521, 31, 53, n_positions=512),
    _embedding(129, 768, 251, n_positions=512),
    _attention(2, 3, (2, 4, 3), asked=(1, 3, 2), p=0.3),
    _attention(1, 1, (1,)),
    _attention(2, 3, (0, 0)),
    _attention(2, 13, (5, 0, 6, 7)),
    _attention(2, 13, (5, 0, 6, 7), asked=(0, 0, 9, 1)),
    _attention(2, 5, (3, 4), asked=(0, 0)),
    _attention(3, 26, (33, 1, 31)),
    _attention(3, 26, (33, 1, 31), p=0.5),
    _attention(1, 24, (24, 25, 23), p=0.1),
    _attention(2, 25, (191, 192, 193)),
    _attention(2, 25, (193,), asked=(37,), p=0.1),
    _attention(2, 8, (385, 30), p=0.1),
    _attention(1, 96, (40,)),
    _attention(4, 16, (200, 30), scale=3.0),
    _attention(12, 64, (65, 7), p=0.1),
    _cross_entropy(5, 11, is_ignored=True),
    *(_cross_entropy(*shape) for shape in ((0, 3), (1, 1), (3, 2), (4, 16), (2, 383), (2, 384), (3, 385), (7, 1021))),
    _cross_entropy(3, 30522, scale=3.0),
    _cross_entropy(5, 1021, scale=40.0),
    _decoder_cross_entropy(5, 11, 7),
    _decoder_cross_entropy(0, 31, 7),
    _decoder_cross_entropy(1, 1, 1, bias=False),
    _decoder_cross_entropy(6, 383, 26),
    _decoder_cross_entropy(7, 385, 26, bias=False, packed=True),
    _decoder_cross_entropy(129, 1021, 26, packed=True),
    _decoder_cross_entropy(5, 4609, 31),
    _decoder_cross_entropy(3, 9291, 31),
    _decoder_cross_entropy(7, 1021, 768),
    _decoder_loss(5, 11, 7, 5),
    _decoder_loss(0, 31, 7, 1),
    _decoder_loss(1, 1, 1, 3, bias=False),
    _decoder_loss(7, 385, 26, 7, bias=False),
    _decoder_loss(3, 9291, 31, 1),
    _decoder_loss(1024, 385, 5, 1024),
    _decoder_loss(1031, 771, 9, 1031),
    _decoder_loss(7, 1021, 768, 100.0),
    _dropout(5, 7, 0.3),
    *(_dropout(*case) for case in ((0, 8, 0.1), (1, 1, 0.5), (7, 5, 0.0), (129, 768, 0.1), (3, 1021, 0.999))),
    _gather_rows(7, 3, 5),
    _gather_rows(7, 31, 0),
    _gather_rows(129, 768, 300),
    _scatter_rows(7, 3, 5),
    _scatter_rows(7, 31, 0),
    _scatter_rows(7, 31, 7),
    _scatter_rows(300, 768, 129),
    _simple(total, (11,), one_rounding_of(reference.total), divisor=7),
    _simple(total, (0,), one_rounding_of(reference.total), divisor=1),
    _simple(scale, (5, 7), one_rounding_of(reference.scale), factor=-1.7),
    _simple(scale, (), one_rounding_of(reference.scale), factor=0.3),
    _simple(reshape, (5, 6), exact, shape=(3, 10)),
    _simple(reshape, (5, 6), exact, shape=(30,)),
)


def cases_of(op: Op) -> list[Case]:
    return [case for case in CASES if case.op is op]
