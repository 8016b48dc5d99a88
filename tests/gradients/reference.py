"""Every differentiable op in float64 NumPy, forward and backward: slow, short, and independent of lucid.

A function returns its result and `back`, which turns the gradient of the result into one gradient for each array, in
order; None for an array that was not given. Arguments are those of the op. The derivations are in docs/ops.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Array = Any
Back = Callable[[Array], tuple[Array | None, ...]]

MASK_32 = 0xFFFFFFFF

erf = np.vectorize(math.erf, otypes=[np.float64])


# Activations: value and slope


def _gelu(x: Array) -> tuple[Array, Array]:
    normal = 0.5 * (1 + erf(x / math.sqrt(2)))
    return x * normal, normal + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def _gelu_new(x: Array) -> tuple[Array, Array]:
    a, b = math.sqrt(2 / math.pi), 0.044715
    t = np.tanh(a * (x + b * x**3))
    return 0.5 * x * (1 + t), 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * a * (1 + 3 * b * x * x)


def _relu(x: Array) -> tuple[Array, Array]:
    return np.maximum(x, 0), (x > 0).astype(np.float64)


def _silu(x: Array) -> tuple[Array, Array]:
    s = 1 / (1 + np.exp(-x))
    return x * s, s + x * s * (1 - s)


def _tanh(x: Array) -> tuple[Array, Array]:
    return np.tanh(x), 1 - np.tanh(x) ** 2


ACTIVATIONS: dict[str, Callable[[Array], tuple[Array, Array]]] = {
    "gelu": _gelu,
    "gelu_new": _gelu_new,
    "gelu_pytorch_tanh": _gelu_new,
    "relu": _relu,
    "silu": _silu,
    "swish": _silu,
    "tanh": _tanh,
}


def activation(x: Array, *, name: str) -> tuple[Array, Back]:
    value, slope = ACTIVATIONS[name](x.astype(np.float64))
    return value, lambda d_y: (d_y * slope,)


# Products and normalisation


def linear(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    residual: Array | None = None,
    *,
    activation: str | None = None,
    columns: tuple[int, int] | None = None,
) -> tuple[Array, Back]:
    rows = slice(*(columns or (0, len(weight))))
    x, weight = x.astype(np.float64), weight.astype(np.float64)
    z = x @ weight[rows].T + (0 if bias is None else bias[rows])
    y, slope = (z, 1.0) if activation is None else ACTIVATIONS[activation](z)

    def back(d_y: Array) -> tuple[Array | None, ...]:
        d_z = np.asarray(d_y, np.float64) * slope
        d_weight, d_bias = np.zeros_like(weight), np.zeros(len(weight))
        d_weight[rows] = d_z.T @ x
        d_bias[rows] = d_z.sum(axis=0)
        return d_z @ weight[rows], d_weight, None if bias is None else d_bias, None if residual is None else np.asarray(d_y, np.float64)

    return y + (0 if residual is None else residual), back


def layer_norm(x: Array, gain: Array, bias: Array, residual: Array | None = None, *, eps: float) -> tuple[Array, Back]:
    total = x.astype(np.float64) + (0 if residual is None else residual)
    centred = total - total.mean(axis=1, keepdims=True)
    rstd = 1 / np.sqrt((centred**2).mean(axis=1, keepdims=True) + eps)
    normal = centred * rstd

    def back(d_y: Array) -> tuple[Array | None, ...]:
        g = d_y * gain.astype(np.float64)
        d_total = rstd * (g - g.mean(axis=1, keepdims=True) - normal * (g * normal).mean(axis=1, keepdims=True))
        return d_total, (d_y * normal).sum(axis=0), np.sum(d_y, axis=0, dtype=np.float64), None if residual is None else d_total

    return normal * gain + bias, back


def embedding(
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
) -> tuple[Array, Back]:
    y, norm_back = layer_norm(words[ids].astype(np.float64) + positions[position_ids] + types[type_ids], gain, bias, eps=eps)

    def back(d_y: Array) -> tuple[Array, ...]:
        d_total, d_gain, d_bias, _ = norm_back(d_y)
        tables = []
        for table, index in ((words, ids), (positions, position_ids), (types, type_ids)):
            d_table = np.zeros(table.shape)
            for token, row in enumerate(index):
                d_table[row] += d_total[token]
            tables.append(d_table)
        return (*tables, d_gain, d_bias)

    return y, back


# Attention


def attention(
    queries: Array,
    keys_values: Array | None = None,
    *,
    n_heads: int,
    key_starts: Array,
    query_starts: Array | None = None,
    dropout: Any = None,
) -> tuple[Array, Back]:
    """With P = softmax(S), S = Q Kᵀ / sqrt(D), A = P * keep, O = A V; one head of one sequence after another."""
    if keys_values is None:
        q, k, v = np.split(queries.astype(np.float64), 3, axis=1)
        query_starts = key_starts
    else:
        q = queries.astype(np.float64)
        k, v = np.split(keys_values.astype(np.float64), 2, axis=1)
    width = q.shape[1] // n_heads
    out = np.zeros(q.shape)
    heads = []
    for b in range(len(key_starts) - 1):
        rows, keys = slice(query_starts[b], query_starts[b + 1]), slice(key_starts[b], key_starts[b + 1])
        if rows.start == rows.stop:
            continue
        for head in range(n_heads):
            at = slice(head * width, (head + 1) * width)
            scores = q[rows, at] @ k[keys, at].T / math.sqrt(width)
            p = np.exp(scores - scores.max(axis=1, keepdims=True))
            p /= p.sum(axis=1, keepdims=True)
            keep = attention_keep(dropout, b, head, rows, keys) if dropout is not None else np.ones_like(p)
            out[rows, at] = (p * keep) @ v[keys, at]
            heads.append((rows, keys, at, p, keep))

    def back(d_out: Array) -> tuple[Array | None, ...]:
        d_q, d_k, d_v = np.zeros(q.shape), np.zeros(k.shape), np.zeros(v.shape)
        for rows, keys, at, p, keep in heads:
            d_o = d_out[rows, at].astype(np.float64)
            d_v[keys, at] = (p * keep).T @ d_o
            d_p = (d_o @ v[keys, at].T) * keep
            d_scores = p * (d_p - (p * d_p).sum(axis=1, keepdims=True)) / math.sqrt(width)
            d_q[rows, at] = d_scores @ k[keys, at]
            d_k[keys, at] = d_scores.T @ q[rows, at]
        if keys_values is None:
            return np.concatenate([d_q, d_k, d_v], axis=1), None
        return d_q, np.concatenate([d_k, d_v], axis=1)

    return out, back


def attention_keep(dropout: Any, b: int, head: int, rows: slice, keys: slice) -> Array:
    """0 where a probability is dropped, else 1 / (1 - p): queries `rows` and keys `keys` of sequence b."""
    element = head * 65536 + dropout.key_columns[None, keys]
    number = random_numbers(element, dropout.query_columns[rows, None], dropout.examples[b], dropout.stream, dropout.seed)
    return (number >= int(dropout.p * 2**32)) / (1 - dropout.p)


# Losses


def cross_entropy(logits: Array, *, labels: Array, ignore_index: int = -100) -> tuple[Array, Back]:
    logits = logits.astype(np.float64)
    counts = labels != ignore_index
    at = np.where(counts, labels, 0)
    p = np.exp(logits - logits.max(axis=1, keepdims=True, initial=-np.inf))
    lse = logits.max(axis=1, initial=-np.inf) + np.log(p.sum(axis=1))
    p = p / p.sum(axis=1, keepdims=True)
    rows = np.arange(len(logits))

    def back(d_losses: Array) -> tuple[Array]:
        d = p.copy()
        d[rows, at] -= 1
        return (d * (counts * d_losses.astype(np.float64))[:, None],)

    return np.where(counts, lse - logits[rows, at], 0), back


def decoder_cross_entropy(x: Array, weight: Array, bias: Array | None = None, *, labels: Array) -> tuple[Array, Back]:
    logits, linear_back = linear(x, weight, bias)
    losses, loss_back = cross_entropy(logits, labels=labels)
    return losses, lambda d_losses: linear_back(*loss_back(d_losses))[:3]


def decoder_loss(x: Array, weight: Array, bias: Array | None = None, *, labels: Array, divisor: float) -> tuple[Array, Back]:
    losses, back = decoder_cross_entropy(x, weight, bias, labels=labels)
    loss, total_back = total(losses, divisor=divisor)
    return loss, lambda d_y: back(*total_back(d_y))


def total(x: Array, *, divisor: float) -> tuple[Array, Back]:
    return np.asarray(x.astype(np.float64).sum() / divisor), lambda d_y: (np.full(x.shape, float(d_y) / divisor),)


def scale(x: Array, *, factor: float) -> tuple[Array, Back]:
    return x.astype(np.float64) * factor, lambda d_y: (d_y * np.float64(factor),)


# Rows and shapes


def gather_rows(x: Array, *, rows: Array) -> tuple[Array, Back]:
    def back(d_y: Array) -> tuple[Array]:
        d_x = np.zeros(x.shape)
        for row, d_row in zip(rows, d_y, strict=True):
            d_x[row] += d_row
        return (d_x,)

    return x[rows], back


def scatter_rows(x: Array, *, rows: Array, n_rows: int) -> tuple[Array, Back]:
    y = np.zeros((n_rows, x.shape[1]), x.dtype)
    y[rows] = x
    return y, lambda d_y: (d_y[rows],)


def reshape(x: Array, *, shape: tuple[int, ...]) -> tuple[Array, Back]:
    return x.reshape(shape), lambda d_y: (d_y.reshape(x.shape),)


# Dropout


def philox4x32_10(counter: Sequence[Any], key: tuple[Any, Any]) -> tuple[Any, Any, Any, Any]:
    """Salmon et al. 2011, section 3.3 and table 2, on uint64 arrays element by element."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & MASK_32, (p0 >> 32) ^ c3 ^ k1, p0 & MASK_32
        k0, k1 = (k0 + 0x9E3779B9) & MASK_32, (k1 + 0xBB67AE85) & MASK_32
    return c0, c1, c2, c3


def random_numbers(element: Array, position: Array, example: Array, stream: int, seed: int) -> Array:
    """The 32-bit number of every element, arguments broadcast against each other."""
    element, position, example = np.broadcast_arrays(*(np.asarray(a).astype(np.uint64) for a in (element, position, example)))
    block = philox4x32_10((element // 4, position, example, np.uint64(stream)), (np.uint64(seed & MASK_32), np.uint64(seed >> 32)))
    return np.select([element % 4 == word for word in range(4)], block)


def dropout(x: Array, *, p: float, seed: int, stream: int, columns: Array, examples: Array) -> tuple[Array, Back]:
    number = random_numbers(np.arange(x.shape[1])[None], columns[:, None], examples[:, None], stream, seed)
    keep = (number >= int(p * 2**32)) / (1 - p)
    return x * keep, lambda d_y: (d_y * keep,)


# AdamW


def adamw(
    weight: Array, m: Array, v: Array, d_weight: Array, *, lr: float, betas: tuple[float, float], eps: float, weight_decay: float, step: int
) -> tuple[Array, Array, Array]:
    """Loshchilov & Hutter 2019, algorithm 2, with the schedule multiplier in `lr`: the new weight, m and v."""
    m = betas[0] * m + (1 - betas[0]) * d_weight
    v = betas[1] * v + (1 - betas[1]) * d_weight**2
    m_hat, v_hat = m / (1 - betas[0] ** step), v / (1 - betas[1] ** step)
    return weight - lr * (m_hat / (np.sqrt(v_hat) + eps) + weight_decay * weight), m, v
