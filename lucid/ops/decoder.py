"""The product with the vocabulary, fused with what is asked of it, so that logits [P, V] never exist."""

from typing import Any

import numpy as np

from lucid._ext import kernels
from lucid.ops.linear import PackedWeight, column_sum, linear, product, want_weight
from lucid.ops.op import Array, Kernel, Op, empty, on_gpu, stored_type, want, want_ids
from lucid.ops.total import total, want_divisor
from lucid.threads import get_num_threads, threads_for

# Above this, keeping candidates sorted by insertion costs more than sorting whole rows of logits.
_MOST_KEPT = 128
_ROWS_SORTED_AT_ONCE = 16


def _check_product(op: str, x: Array, weight: PackedWeight | Array, bias: Array | None) -> None:
    n_words, width = want_weight(op, "weight", weight)
    if n_words == 0 or width == 0:
        raise ValueError(f"{op}: weight has shape {weight.shape}")
    want(op, "x", x, stored_type(weight), (None, width))
    if bias is not None:
        want(op, "bias", bias, np.float32, (n_words,))


def _packed(weight: PackedWeight | Array) -> PackedWeight:
    return weight if isinstance(weight, PackedWeight) else PackedWeight.pack(weight)


def _check_cross_entropy(
    x: Array, weight: PackedWeight | Array, bias: Array | None = None, *, labels: Array, has_d_weight: bool = True
) -> None:
    _check_product("decoder_cross_entropy", x, weight, bias)
    want("decoder_cross_entropy", "labels", labels, np.int32, (x.shape[0],))
    want_ids("decoder_cross_entropy", "labels", labels, weight.shape[0])


def _cross_entropy(
    x: Array, weight: PackedWeight | Array, bias: Array | None = None, *, labels: Array, has_d_weight: bool = True, keep: bool
) -> tuple[Array, Any]:
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
    return losses, (x, weight, bias, labels, lse, has_d_weight) if keep else None


# Words whose logits are made at once, 4608: a multiple of the blocks that a loss is joined of and of the chains of a
# product (256), so that no sum depends on it.
WORDS_AT_ONCE = 12 * kernels.vocabulary_block
# Rows whose logits `decoder_loss` holds until it has made their gradients, a multiple of a chain as well: at most 125 MB for
# BERT's 30,522 words, however many rows there are.
ROWS_AT_ONCE = 1024


def _word_blocks(n_words: int) -> list[slice]:
    return [slice(begin, min(n_words, begin + WORDS_AT_ONCE)) for begin in range(0, n_words, WORDS_AT_ONCE)]


def _spread(
    d: Array, x: Array, row_major: Array, words: slice, d_x: Array, d_weight: Array | None, d_bias: Array | None, *, add: bool = False
) -> None:
    """Hand on the gradient of some words' logits: d_x += d . W, d_W = dᵀ . x, d_b = sum_p d; with `add`, d_W and d_b too are sums."""
    product(d, row_major[words], out=d_x, add=words.start > 0)
    if d_weight is not None:
        product(d, x, transpose_a=True, out=d_weight[words], add=add)
    if d_bias is not None:
        d_bias[words] = d_bias[words] + column_sum(d) if add else column_sum(d)


def _cross_entropy_backward(saved: tuple[Any, ...], d_losses: Array) -> tuple[Any, ...]:
    """With d = (softmax - onehot) * d_losses, a block of words at a time: d_x = d . W, d_W = dᵀ . x, d_b = sum_p d."""
    x, weight, bias, labels, lse, has_d_weight = saved
    d_losses = np.ascontiguousarray(d_losses)
    row_major = weight.unpack() if isinstance(weight, PackedWeight) else weight
    d_x = empty(x.shape)
    d_weight = empty(weight.shape) if has_d_weight and not isinstance(weight, PackedWeight) else None
    d_bias = None if bias is None else empty(bias.shape)
    for words in _word_blocks(weight.shape[0]):
        d = linear(x, weight, bias, columns=(words.start, words.stop))
        kernels.cross_entropy_backward(d, labels, lse, d_losses, words.start, d, threads_for(d.size))
        _spread(d, x, row_major, words, d_x, d_weight, d_bias)
    return d_x, d_weight, d_bias


def _check_loss(
    x: Array, weight: PackedWeight | Array, bias: Array | None = None, *, labels: Array, divisor: float, has_d_weight: bool = True
) -> None:
    _check_product("decoder_loss", x, weight, bias)
    want("decoder_loss", "labels", labels, np.int32, (x.shape[0],))
    want_ids("decoder_loss", "labels", labels, weight.shape[0])
    want_divisor("decoder_loss", divisor)


def _loss(
    x: Array,
    weight: PackedWeight | Array,
    bias: Array | None = None,
    *,
    labels: Array,
    divisor: float,
    has_d_weight: bool = True,
    keep: bool,
) -> tuple[Array, Any]:
    if not keep:
        return total(decoder_cross_entropy(x, weight, bias, labels=labels), divisor=divisor), None
    labels = np.ascontiguousarray(labels)
    row_major = weight.unpack() if isinstance(weight, PackedWeight) else weight
    losses, d_x = np.empty(len(labels), np.float32), empty(x.shape)
    d_weight = np.zeros(weight.shape, np.float32) if has_d_weight and not isinstance(weight, PackedWeight) else None
    d_bias = None if bias is None else np.zeros(bias.shape, np.float32)
    for begin in range(0, len(labels), ROWS_AT_ONCE):
        rows = slice(begin, begin + ROWS_AT_ONCE)
        blocks, lse = _logits(x[rows], weight, bias, labels[rows], losses[rows])
        d_losses = np.full(len(lse), np.float32(1.0 / divisor))
        while blocks:
            words, d = blocks.pop(0)
            kernels.cross_entropy_backward(d, labels[rows], lse, d_losses, words.start, d, threads_for(d.size))
            _spread(d, x[rows], row_major, words, d_x[rows], d_weight, d_bias, add=begin > 0)
            del d  # not beside the logits of the next rows
    return total(losses, divisor=divisor), (d_x, d_weight, d_bias)


def _logits(
    x: Array, weight: PackedWeight | Array, bias: Array | None, labels: Array, losses: Array
) -> tuple[list[tuple[slice, Array]], Array]:
    """Return the logits of some rows by blocks of words, and log(sum exp); fill `losses`."""
    sums = empty((len(x), -(-weight.shape[0] // kernels.vocabulary_block), 2))
    lse = np.empty(len(x), np.float32)
    blocks = []
    for words in _word_blocks(weight.shape[0]):
        logits = linear(x, weight, bias, columns=(words.start, words.stop))
        kernels.logit_sums(logits, labels, words.start, sums, losses, threads_for(logits.size))
        blocks.append((words, logits))
    kernels.join_sums(sums, losses, lse)
    return blocks, lse


def _loss_backward(saved: tuple[Array, Array | None, Array | None], d_y: Array) -> tuple[Array | None, ...]:
    for gradient in saved:
        if gradient is not None and d_y != 1:
            gradient *= d_y  # in place: the tape runs a backward once
    return saved


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


decoder_cross_entropy = Op(
    "decoder_cross_entropy",
    _check_cross_entropy,
    cpu=Kernel(_cross_entropy, _cross_entropy_backward),
    gpu=on_gpu("decoder", "cross_entropy", "cross_entropy_gradients", is_fresh=True),
)
"""Cross-entropy of the logits x . Wᵀ + bias, made and used a block of words at a time.

Parameters
----------
x : array, float32, shape (P, C)
weight : PackedWeight or array, float32, shape (V, C). A `PackedWeight` is a constant: it gets no gradient.
bias : array, float32, shape (V,), optional
labels : array, int32, shape (P,)
has_d_weight : bool. False spares the gradient of the weight, a product and V * C numbers.

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

decoder_loss = Op(
    "decoder_loss",
    _check_loss,
    cpu=Kernel(_loss, _loss_backward, is_fresh=True),
    gpu=on_gpu("decoder", "loss", "loss_gradients", is_fresh=True),
)
"""The sum of `decoder_cross_entropy` over all rows, divided by a number; with a tape, forward makes the gradients.

Parameters
----------
x : array, float32, shape (P, C)
weight : PackedWeight or array, float32, shape (V, C). A `PackedWeight` is a constant: it gets no gradient.
bias : array, float32, shape (V,), optional
labels : array, int32, shape (P,)
divisor : float, >= 1. P for the mean, 1 for the sum.
has_d_weight : bool. False spares the gradient of the weight, a product and V * C numbers.

Returns
-------
loss : array, float32, shape (). The same bits as `total` of `decoder_cross_entropy`, with a tape and without.

Raises
------
IndexError
    A label lies outside [0, V).
TypeError, ValueError
    Dtypes or shapes do not agree, or `divisor` is smaller than 1.

Notes
-----
One number comes out, so its gradients are known up to a factor as soon as the logits are: they are made while the
logits of some rows are there, instead of making these again in backward. Three products instead of four. Backward
multiplies by the factor where it is not 1.
"""

decoder_top_k = Op("decoder_top_k", _check_top_k, cpu=Kernel(_top_k, None), gpu=on_gpu("decoder", "top_k", None))
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
