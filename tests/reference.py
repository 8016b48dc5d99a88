"""What each op computes, in float64 NumPy, and how far from it a kernel may be: slow, short, and independent of lucid."""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

Array = Any

MASK_32 = 0xFFFFFFFF
MLM_MASK_PURPOSE = 2  # as lucid.random.Purpose.MLM_MASK; a number of the file format, so written out


# Activations

erf = np.vectorize(math.erf, otypes=[np.float64])
erfc = np.vectorize(math.erfc, otypes=[np.float64])


def _gelu(x: Array) -> Array:
    return 0.5 * x * erfc(-x / math.sqrt(2))


def _gelu_new(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _silu(x: Array) -> Array:
    return x * np.exp(-np.logaddexp(0, -x))


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": _gelu,
    "gelu_new": _gelu_new,
    "gelu_pytorch_tanh": _gelu_new,
    "relu": lambda x: np.maximum(x, 0),
    "silu": _silu,
    "swish": _silu,
    "tanh": np.tanh,
    "exp": np.exp,
    "erf": erf,
}


def activation(x: Array, *, name: str) -> Array:
    return ACTIVATIONS[name](np.asarray(x, np.float64))


# Products and normalisation


def linear(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    residual: Array | None = None,
    *,
    activation: str | None = None,
    columns: tuple[int, int] | None = None,
) -> Array:
    begin, end = columns or (0, len(weight))
    y = x.astype(np.float64) @ weight[begin:end].astype(np.float64).T
    if bias is not None:
        y = y + bias[begin:end]
    if activation is not None:
        y = ACTIVATIONS[activation](y)
    return y if residual is None else y + residual


def layer_norm(x: Array, gain: Array, bias: Array, residual: Array | None = None, *, eps: float) -> Array:
    x = x.astype(np.float64) + (0 if residual is None else residual)
    centred = x - x.mean(axis=1, keepdims=True)
    variance = (centred**2).mean(axis=1, keepdims=True)
    return gain * centred / np.sqrt(variance + eps) + bias


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
) -> Array:
    total = words[ids].astype(np.float64) + positions[position_ids] + types[type_ids]
    return layer_norm(total, gain, bias, eps=eps)


# Attention


class Head(NamedTuple):
    """One head of one sequence: `rows` and `columns` are its place in the output."""

    rows: slice
    columns: slice
    q: Array
    k: Array
    v: Array
    scores: Array
    weights: Array  # the softmax of the scores
    keep: Array  # 0 where dropout takes a weight, else 1 / (1 - p)


def attention_heads(
    queries: Array, keys_values: Array | None, n_heads: int, key_starts: Array, query_starts: Array | None, dropout: Any
) -> Iterator[Head]:
    if keys_values is None:
        q, k, v = np.split(queries.astype(np.float64), 3, axis=1)
        query_starts = key_starts
    else:
        q = queries.astype(np.float64)
        k, v = np.split(keys_values.astype(np.float64), 2, axis=1)
    width = q.shape[1] // n_heads
    for b in range(len(key_starts) - 1):
        rows, keys = slice(query_starts[b], query_starts[b + 1]), slice(key_starts[b], key_starts[b + 1])
        if rows.start == rows.stop:
            continue
        for head in range(n_heads):
            columns = slice(head * width, (head + 1) * width)
            scores = q[rows, columns] @ k[keys, columns].T / math.sqrt(width)
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            weights /= weights.sum(axis=1, keepdims=True)
            keep = np.ones_like(weights)
            if dropout is not None:
                element = head * 65536 + dropout.key_columns[None, keys]
                number = random_numbers(element, dropout.query_columns[rows, None], dropout.examples[b], dropout.stream, dropout.seed)
                keep = (number >= int(dropout.p * 2**32)) / (1 - dropout.p)
            yield Head(rows, columns, q[rows, columns], k[keys, columns], v[keys, columns], scores, weights, keep)


def attention(
    queries: Array,
    keys_values: Array | None = None,
    *,
    n_heads: int,
    key_starts: Array,
    query_starts: Array | None = None,
    dropout: Any = None,
) -> Array:
    out = np.zeros((len(queries), queries.shape[1] if keys_values is not None else queries.shape[1] // 3))
    for head in attention_heads(queries, keys_values, n_heads, key_starts, query_starts, dropout):
        out[head.rows, head.columns] = (head.weights * head.keep) @ head.v
    return out


# Losses and the vocabulary


def log_sum_exp(logits: Array) -> Array:
    logits = logits.astype(np.float64)
    top = logits.max(axis=1)
    return top + np.log(np.exp(logits - top[:, None]).sum(axis=1))


def cross_entropy(logits: Array, *, labels: Array, ignore_index: int = -100) -> Array:
    is_ignored = labels == ignore_index
    at = np.where(is_ignored, 0, labels)
    return np.where(is_ignored, 0, log_sum_exp(logits) - logits[np.arange(len(logits)), at])


def decoder_cross_entropy(x: Array, weight: Array, bias: Array | None = None, *, labels: Array) -> Array:
    return cross_entropy(linear(x, weight, bias), labels=labels)


def decoder_loss(x: Array, weight: Array, bias: Array | None = None, *, labels: Array, divisor: float) -> Array:
    return total(decoder_cross_entropy(x, weight, bias, labels=labels), divisor=divisor)


def top_k(logits: Array, k: int) -> tuple[Array, Array]:
    """The k largest of every row, falling; equal values by rising column."""
    ids = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(logits, ids, axis=1), ids


def decoder_top_k(x: Array, weight: Array, bias: Array | None = None, *, k: int) -> tuple[Array, Array, Array]:
    logits = linear(x, weight, bias)
    return *top_k(logits, k), log_sum_exp(logits)


# Rows


def gather_rows(x: Array, *, rows: Array) -> Array:
    return np.stack([x[row] for row in rows]) if len(rows) else np.zeros((0, x.shape[1]))


def scatter_rows(x: Array, *, rows: Array, n_rows: int) -> Array:
    y = np.zeros((n_rows, x.shape[1]))
    for at, row in enumerate(rows):
        y[row] = x[at]
    return y


# Random numbers


def philox4x32_10(counter: Sequence[Any], key: Sequence[Any]) -> tuple[Any, Any, Any, Any]:
    """Salmon et al. 2011, section 3.3 and table 2; on Python integers, or on uint64 arrays element by element."""
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


def dropout(x: Array, *, p: float, seed: int, stream: int, columns: Array, examples: Array) -> Array:
    """Exact: a kept value is one float32 product."""
    number = random_numbers(np.arange(x.shape[1])[None], columns[:, None], examples[:, None], stream, seed)
    return np.where(number >= int(p * 2**32), x * np.float32(1 / (1 - p)), np.float32(0))


def mlm_mask(
    ids: Array,
    *,
    may_mask: Array,
    columns: Array,
    examples: Array,
    special_ids: Array,
    vocab_size: int,
    mask_token_id: int,
    seed: int,
    mlm_probability: float = 0.15,
    mask_replace_prob: float = 0.8,
    random_replace_prob: float = 0.1,
    ignore_index: int = -100,
    epoch: int = 0,
) -> tuple[Array, Array]:
    """Token by token in Python integers: words 0, 1, 2 of a token's block say whether, what, and which word."""
    ordinary_words = sorted(set(range(vocab_size)) - set(special_ids.tolist()))
    masked_ids, labels = [], []
    for word, may, column, example in zip(ids.tolist(), may_mask.tolist(), columns.tolist(), examples.tolist(), strict=True):
        counter = (0, column & MASK_32, example & MASK_32, MLM_MASK_PURPOSE << 24 | epoch)
        whether, what, which, _ = philox4x32_10(counter, (seed & MASK_32, seed >> 32))
        if not may or whether >= int(mlm_probability * 2**32):
            masked_ids.append(word)
            labels.append(ignore_index)
            continue
        labels.append(word)
        if what < int(mask_replace_prob * 2**32):
            masked_ids.append(mask_token_id)
        elif what < int(min(mask_replace_prob + random_replace_prob, 1) * 2**32):
            masked_ids.append(ordinary_words[which * len(ordinary_words) >> 32])
        else:
            masked_ids.append(word)
    return np.array(masked_ids, np.int64).reshape(-1), np.array(labels, np.int64).reshape(-1)


# How far from it a kernel may be. Every bound is derived, element by element, from how the kernels add; none is a flat tolerance.

U = 2.0**-24  # half an ulp of 1.0: what one rounding costs, relative to its result
CHAIN, KEY_BLOCK, VOCABULARY_BLOCK, ROW_LANES = 256, 192, 384, 16  # where the kernels cut their sums


def gamma(n_roundings: Array) -> Array:
    """Relative error of `n_roundings` roundings in a row (Higham 2002, lemma 3.1)."""
    return n_roundings * U / (1 - n_roundings * U)


def product_depth(k: int) -> int:
    """Roundings that a product of K goes through: its own, those of its chain, and one addition per later chain."""
    return min(k, CHAIN) + -(-k // CHAIN) + 2


def product_bound(x: Array, weight: Array) -> Array:
    """|error| of x . weightᵀ: K_eff * eps * (|x| . |weight|ᵀ)."""
    return gamma(product_depth(x.shape[1])) * (np.abs(x).astype(np.float64) @ np.abs(weight).astype(np.float64).T)


STEEPEST = 1.13
"""The largest slope of any activation (GELU, near 1.4)."""


def activation_bound(x: Array, *, name: str) -> Array:
    """What lucid/_ext/elementary.pyx claims of exp, erf and tanh; of the others, 2e-7 * max(1, |y|), and that ReLU is exact.

    Of an x that is no float32, too: its rounding is the caller's affair.
    """
    y = np.abs(activation(x, name=name))
    if name in RELATIVE_ERRORS:
        return RELATIVE_ERRORS[name] * y + 2.0**-149
    return 0 * y if name == "relu" else 2e-7 * np.maximum(1, y)


RELATIVE_ERRORS = {"exp": 1.0e-7, "erf": 1.2e-7, "tanh": 1.8e-7}


def linear_bound(
    x: Array, weight: Array, bias: Array | None = None, residual: Array | None = None, *, activation: str | None = None, columns: Any = None
) -> Array:
    begin, end = columns or (0, len(weight))
    error = product_bound(x, weight[begin:end])
    if bias is not None:
        error = error * (1 + U) + U * np.abs(linear(x, weight, bias, columns=columns))
    if activation is not None:
        error = STEEPEST * error + activation_bound(linear(x, weight, bias, columns=columns), name=activation)
    if residual is not None:
        error = error * (1 + U) + U * np.abs(linear(x, weight, bias, residual, activation=activation, columns=columns))
    return error


def layer_norm_bound(
    x: Array, gain: Array, bias: Array, residual: Array | None = None, *, eps: float, input_error: Array | float = 0.0
) -> Array:
    total = x.astype(np.float64) + (0 if residual is None else residual)
    if residual is not None:
        input_error = U * np.abs(total)
    depth = gamma(-(-x.shape[1] // ROW_LANES) + 4 + 2)  # a lane's chain, the tree that joins lanes, the division
    mean = total.mean(axis=1, keepdims=True)
    of_mean = np.mean(depth * np.abs(total) + input_error, axis=1, keepdims=True)
    centred = total - mean
    of_centred = (input_error + of_mean) * (1 + U) + U * np.abs(centred)
    variance = np.mean(centred**2, axis=1, keepdims=True)
    of_variance = np.mean((2 * np.abs(centred) + of_centred) * of_centred, axis=1, keepdims=True) + 2 * depth * variance
    relative = of_variance / (variance + eps) + 2 * U  # of variance + eps
    rstd = 1 / np.sqrt(variance + eps)
    of_rstd = rstd * (1 / np.sqrt(1 - np.minimum(relative, 0.5)) - 1 + 3 * U)
    error = np.abs(gain) * (of_centred * (rstd + of_rstd) + np.abs(centred) * of_rstd) * (1 + 2 * U)
    return error + 2 * U * np.abs(gain * centred * rstd) + U * np.abs(gain * centred * rstd + bias)


def embedding_bound(
    words: Array, positions: Array, types: Array, gain: Array, bias: Array, *, ids: Array, position_ids: Array, type_ids: Array, eps: float
) -> Array:
    terms = words[ids].astype(np.float64), positions[position_ids].astype(np.float64), types[type_ids].astype(np.float64)
    return layer_norm_bound(sum(terms), gain, bias, eps=eps, input_error=gamma(2) * sum(np.abs(term) for term in terms))


def attention_bound(
    queries: Array,
    keys_values: Array | None = None,
    *,
    n_heads: int,
    key_starts: Array,
    query_starts: Array | None = None,
    dropout: Any = None,
) -> Array:
    bound = np.zeros_like(attention(queries, keys_values, n_heads=n_heads, key_starts=key_starts, query_starts=query_starts))
    for head in attention_heads(queries, keys_values, n_heads, key_starts, query_starts, dropout):
        n_keys, width = head.k.shape
        n_blocks = -(-n_keys // KEY_BLOCK)
        scores = product_bound(head.q, head.k) / math.sqrt(width) + 2 * U * np.abs(head.scores)
        # An exponential is wrong by what its argument is, the sum by their mean, the rest is sums and rescaling.
        exponent = scores + (1 + n_blocks) * U * (head.scores.max(axis=1, keepdims=True) - head.scores) + 1.2e-7
        mean = (head.weights * exponent).sum(axis=1, keepdims=True)
        relative = np.expm1(exponent + mean) + gamma(min(n_keys, KEY_BLOCK) + 4 * n_blocks + 20)
        bound[head.rows, head.columns] = (head.weights * head.keep * relative) @ np.abs(head.v)
    return bound + 1e-37  # an exponential below the smallest normal float32 is 0


def _loss_error(logits: Array, loss: Array, of_logits: Array | float = 0.0) -> Array:
    logits = logits.astype(np.float64)
    probabilities = np.exp(logits - log_sum_exp(logits)[:, None])
    of_exponent = of_logits + U * (logits.max(axis=1, keepdims=True) - logits) + 1.2e-7
    return (probabilities * of_exponent).sum(axis=1) * 1.01 + gamma(VOCABULARY_BLOCK // ROW_LANES + 8) + U * np.abs(loss)


def cross_entropy_bound(logits: Array, *, labels: Array, ignore_index: int = -100) -> Array:
    loss = cross_entropy(logits, labels=labels, ignore_index=ignore_index)
    return np.where(labels == ignore_index, 0, _loss_error(logits, loss))


def decoder_cross_entropy_bound(x: Array, weight: Array, bias: Array | None = None, *, labels: Array) -> Array:
    logits, of_logits = linear(x, weight, bias), linear_bound(x, weight, bias)
    loss = cross_entropy(logits, labels=labels)
    return _loss_error(logits, loss, of_logits) + of_logits[np.arange(len(x)), labels]


def decoder_loss_bound(x: Array, weight: Array, bias: Array | None = None, *, labels: Array, divisor: float) -> Array:
    bound = decoder_cross_entropy_bound(x, weight, bias, labels=labels).sum() / divisor
    return np.asarray(bound + U * np.abs(decoder_loss(x, weight, bias, labels=labels, divisor=divisor)))


def decoder_top_k_bound(x: Array, weight: Array, bias: Array | None = None, *, k: int) -> tuple[Array, Array, Array]:
    """The i-th largest of numbers that are each wrong by at most e is wrong by at most the largest e. Ids are not bounded here."""
    logits, of_logits = linear(x, weight, bias), linear_bound(x, weight, bias)
    lse = log_sum_exp(logits)
    return np.broadcast_to(of_logits.max(axis=1, keepdims=True), (len(x), k)), np.inf, _loss_error(logits, lse, of_logits)


def total(x: Array, *, divisor: float) -> Array:
    return np.asarray(x.astype(np.float64).sum() / divisor)


def scale(x: Array, *, factor: float) -> Array:
    return x * np.float32(factor)


def reshape(x: Array, *, shape: tuple[int, ...]) -> Array:
    return x.reshape(shape)


def encoder(x: Array, *, layers: Any, starts: Array, rows: Array | None = None, row_starts: Array | None = None) -> Array:
    for i, w in enumerate(layers):
        qkv = linear(x, w.qkv.unpack(), w.qkv_bias)
        context = attention(qkv, n_heads=w.n_heads, key_starts=starts)
        if rows is not None and i == len(layers) - 1:
            x, context = x[rows], context[rows]
        h = layer_norm(linear(context, w.dense.unpack(), w.dense_bias), w.attention_gain, w.attention_bias, x, eps=w.attention_eps)
        inner = linear(h, w.dense_in.unpack(), w.in_bias, activation=w.activation)
        x = layer_norm(linear(inner, w.dense_out.unpack(), w.out_bias), w.gain, w.bias, h, eps=w.eps)
    return x


def attention_map(qkv: Array, *, n_heads: int, starts: Array, columns: Array, length: int) -> Array:
    """Softmax(Q . Kᵀ / sqrt(D)) at (query column, key column), pair by pair."""
    width = qkv.shape[1] // 3
    depth = width // n_heads
    q, k = qkv[:, :width].astype(np.float64), qkv[:, width : 2 * width].astype(np.float64)
    maps = np.zeros((len(starts) - 1, n_heads, length, length))
    for b, (begin, end) in enumerate(pairwise(starts)):
        for head in range(n_heads):
            at = slice(head * depth, (head + 1) * depth)
            for i in range(begin, end):
                weights = np.exp(k[begin:end, at] @ q[i, at] / np.sqrt(depth))
                maps[b, head, columns[i], columns[begin:end]] = weights / weights.sum()
    return maps
