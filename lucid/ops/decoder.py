"""The product with the vocabulary, fused with what is asked of it, so that logits [P, V] never exist."""

from typing import Any

import numpy as np

from lucid._ext import kernels
from lucid.ops.linear import PackedWeight, column_sum, linear, product, want_weight
from lucid.ops.op import Array, Kernel, Op, empty, want, want_ids
from lucid.threads import get_num_threads, threads_for

# Above this, keeping candidates sorted by insertion costs more than sorting whole rows of logits.
_MOST_KEPT = 128
_ROWS_SORTED_AT_ONCE = 16


def _check_product(op: str, x: Array, weight: PackedWeight | Array, bias: Array | None) -> None:
    n_words, width = want_weight(op, "weight", weight)
    if n_words == 0 or width == 0:
        raise ValueError(f"{op}: weight has shape {weight.shape}")
    want(op, "x", x, np.float32, (None, width))
    if bias is not None:
        want(op, "bias", bias, np.float32, (n_words,))


def _packed(weight: PackedWeight | Array) -> PackedWeight:
    return weight if isinstance(weight, PackedWeight) else PackedWeight.pack(weight)


def _check_cross_entropy(x: Array, weight: PackedWeight | Array, bias: Array | None = None, *, labels: Array) -> None:
    _check_product("decoder_cross_entropy", x, weight, bias)
    want("decoder_cross_entropy", "labels", labels, np.int32, (x.shape[0],))
    want_ids("decoder_cross_entropy", "labels", labels, weight.shape[0])


def _cross_entropy(x: Array, weight: PackedWeight | Array, bias: Array | None = None, *, labels: Array, keep: bool) -> tuple[Array, Any]:
    losses = np.empty(x.shape[0], np.float32)
    lse = np.empty(x.shape[0], np.float32)
    kernels.decoder_cross_entropy_forward(
        np.ascontiguousarray(x),
        _packed(weight).panels,
        None if bias is None else np.ascontiguousarray(bias),
        np.ascontiguousarray(labels),
        weight.shape[0],
        losses,
        lse,
        get_num_threads(),
    )
    return losses, (x, weight, bias, labels, lse) if keep else None


# Words whose logits backward makes again at once: 8 MB of them for 512 rows.
_WORDS_AT_ONCE = 4096


def _cross_entropy_backward(saved: tuple[Any, ...], d_losses: Array) -> tuple[Any, ...]:
    """With d = (softmax - onehot) * d_losses, a block of words at a time: d_x = d . W, d_W = dᵀ . x, d_b = sum_p d."""
    x, weight, bias, labels, lse = saved
    want("decoder_cross_entropy", "d_losses", d_losses, np.float32, lse.shape)
    row_major = weight.unpack() if isinstance(weight, PackedWeight) else weight
    d_x = np.zeros(x.shape, np.float32)
    d_weight = empty(weight.shape)
    d_bias = None if bias is None else empty(bias.shape)
    for begin in range(0, weight.shape[0], _WORDS_AT_ONCE):
        words = slice(begin, begin + _WORDS_AT_ONCE)
        d = linear(x, row_major[words], None if bias is None else bias[words])
        kernels.cross_entropy_backward(d, labels, lse, np.ascontiguousarray(d_losses), begin, d, threads_for(d.size))
        product(d, row_major[words], out=d_x)
        d_weight[words] = product(d, x, transpose_a=True)
        if d_bias is not None:
            d_bias[words] = column_sum(d)
    return d_x, d_weight, d_bias


def _check_top_k(x: Array, weight: PackedWeight | Array, bias: Array | None = None, *, k: int) -> None:
    _check_product("decoder_top_k", x, weight, bias)
    if not 1 <= k <= weight.shape[0]:
        raise ValueError(f"decoder_top_k: k must lie between 1 and the {weight.shape[0]} words, not {k}")


def _top_k(
    x: Array, weight: PackedWeight | Array, bias: Array | None = None, *, k: int, keep: bool
) -> tuple[tuple[Array, Array, Array], Any]:
    packed, n_kept = _packed(weight), min(k, _MOST_KEPT)
    values = empty((x.shape[0], n_kept))
    ids = np.empty((x.shape[0], n_kept), np.int32)
    lse = np.empty(x.shape[0], np.float32)
    kernels.decoder_top_k_forward(
        np.ascontiguousarray(x),
        packed.panels,
        None if bias is None else np.ascontiguousarray(bias),
        packed.shape[0],
        values,
        ids,
        lse,
        get_num_threads(),
    )
    if k > n_kept:
        values, ids = empty((x.shape[0], k)), np.empty((x.shape[0], k), np.int32)
        for begin in range(0, x.shape[0], _ROWS_SORTED_AT_ONCE):
            rows = slice(begin, begin + _ROWS_SORTED_AT_ONCE)
            logits = linear(x[rows], packed, bias)
            ids[rows] = np.argsort(-logits, axis=1, kind="stable")[:, :k]
            values[rows] = np.take_along_axis(logits, ids[rows].astype(np.intp), axis=1)
    return (values, ids, lse), None


decoder_cross_entropy = Op("decoder_cross_entropy", _check_cross_entropy, cpu=Kernel(_cross_entropy, _cross_entropy_backward), gpu=None)
"""Cross-entropy of the logits x . Wᵀ + bias, made and used a block of words at a time.

Parameters
----------
x : array, float32, shape (P, C)
weight : PackedWeight or array, float32, shape (V, C)
bias : array, float32, shape (V,), optional
labels : array, int32, shape (P,)

Returns
-------
losses : array, float32, shape (P,). The same bits as `cross_entropy` of `linear`.

Raises
------
IndexError
    A label lies outside [0, V).
TypeError, ValueError
    Dtypes or shapes do not agree.
"""

decoder_top_k = Op("decoder_top_k", _check_top_k, cpu=Kernel(_top_k, None), gpu=None)
"""The k largest of the logits x . Wᵀ + bias in every row; k = 1 is the arg-max.

Parameters
----------
x : array, float32, shape (P, C)
weight : PackedWeight or array, float32, shape (V, C)
bias : array, float32, shape (V,), optional
k : int, 1 to V

Returns
-------
values : array, float32, shape (P, k), falling
ids : array, int32, shape (P, k). Equal logits come by rising id.
lse : array, float32, shape (P,). log(sum_j exp(logit_j)): a probability is exp(value - lse).

Raises
------
TypeError, ValueError
    Dtypes or shapes do not agree, or k is out of range.
"""
