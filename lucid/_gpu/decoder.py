"""The product with the vocabulary on the GPU, some rows at a time: cross-entropy, its gradients, the k best words.

Logits are float32, whatever x and the weight are: in half precision many would be equal. Their gradients, which go into
products again, have the type of x; those of weight and bias are float32, as the sum over chunks and the optimizer want them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from lucid._gpu.columns import column_sum
from lucid._gpu.cross_entropy import ROW_THREADS, cross_entropy_backward, cross_entropy_both, cross_entropy_forward, stride
from lucid._gpu.runtime import Array, blocks, c_type, contiguous, empty, gemm, launch, place, rows_contiguous, xp
from lucid._gpu.total import total

ROWS_AT_ONCE = 1024
"""Rows whose logits are there at once: 125 MB for BERT's 30,522 words, however many rows there are."""
SCALE_THREADS, MOST_SCALE_BLOCKS = 256, 4096


# Geometry


def row_chunks(n_rows: int) -> list[slice]:
    """Return all rows in slices of at most `ROWS_AT_ONCE`."""
    return [slice(begin, min(n_rows, begin + ROWS_AT_ONCE)) for begin in range(0, n_rows, ROWS_AT_ONCE)]


def padded(n_words: int) -> int:
    """Return the distance of rows of logits: a multiple of 16 bytes in every type, which cuBLAS's fast kernels want."""
    return -(-n_words // 8) * 8


def scale_grid(n: int) -> int:
    """Return the blocks that multiply `n` numbers."""
    return min(MOST_SCALE_BLOCKS, blocks(n, SCALE_THREADS))


# Operations


def cross_entropy(
    x: Array, weight: Array, bias: Array | None = None, *, labels: Array, has_d_weight: bool = True, keep: bool
) -> tuple[Array, Any]:
    """Do what `lucid.ops.decoder.decoder_cross_entropy` says."""
    x, weight, bias, labels = rows_contiguous(x), rows_contiguous(weight), _contiguous(bias), place(labels)
    losses, lse = empty((2, len(x)))
    for rows, logits in _logits(x, weight):
        cross_entropy_forward(logits, bias, labels[rows], losses[rows], lse[rows])
    return losses, (x, weight, bias, labels, lse, has_d_weight) if keep else None


def cross_entropy_gradients(saved: tuple[Any, ...], d_losses: Array) -> tuple[Array | None, ...]:
    """Return the gradients of x, weight and bias; the logits are made again."""
    x, weight, bias, labels, lse, has_d_weight = saved
    d_losses = contiguous(d_losses)

    def of_logits(rows: slice, logits: Array, d: Array) -> None:
        cross_entropy_backward(logits, bias, labels[rows], lse[rows], d_losses[rows], d)

    return _gradients(x, weight, bias, has_d_weight, of_logits)


def loss(
    x: Array, weight: Array, bias: Array | None = None, *, labels: Array, divisor: float, has_d_weight: bool = True, keep: bool
) -> tuple[Array, Any]:
    """Do what `lucid.ops.decoder.decoder_loss` says: with `keep`, the gradients are made while the logits are there."""
    if not keep:
        return total(cross_entropy(x, weight, bias, labels=labels, keep=False)[0], divisor=divisor, keep=False)
    x, weight, bias, labels = rows_contiguous(x), rows_contiguous(weight), _contiguous(bias), place(labels)
    losses = empty((len(x),))

    def of_logits(rows: slice, logits: Array, d: Array) -> None:
        cross_entropy_both(logits, bias, labels[rows], 1.0 / divisor, losses[rows], d)

    gradients = _gradients(x, weight, bias, has_d_weight, of_logits)
    return total(losses, divisor=divisor, keep=False)[0], gradients


def loss_gradients(saved: tuple[Array | None, ...], d_y: Array) -> tuple[Array | None, ...]:
    """Multiply the gradients by that of the loss, in place: the tape runs a backward once."""
    for gradient in saved:
        if gradient is not None:
            scale_in_place(gradient, d_y)
    return saved


def top_k(x: Array, weight: Array, bias: Array | None = None, *, k: int, keep: bool) -> tuple[tuple[Array, Array, Array], Any]:
    """Do what `lucid.ops.decoder.decoder_top_k` says."""
    x, weight, bias = rows_contiguous(x), rows_contiguous(weight), _contiguous(bias)
    values, ids, lse = empty((len(x), k)), empty((len(x), k), np.int32), empty((len(x),))
    for rows, logits in _logits(x, weight):
        decoder_top_k(logits, bias, values[rows], ids[rows], lse[rows])
    return (values, ids, lse), None


def _contiguous(bias: Array | None) -> Array | None:
    return None if bias is None else contiguous(bias)


def _chunk(x: Array, weight: Array, dtype: Any) -> Array:
    """Return an array for the logits of a chunk of rows, values not set, a few columns wider than there are words."""
    return empty((min(len(x), ROWS_AT_ONCE), padded(len(weight))), dtype)


def _logits(x: Array, weight: Array, chunk: Array | None = None) -> Iterator[tuple[slice, Array]]:
    """Yield rows and x . Wᵀ of these rows, every time in the same memory."""
    chunk = _chunk(x, weight, np.float32) if chunk is None else chunk
    for rows in row_chunks(len(x)):
        yield rows, gemm(x[rows], weight, chunk[: rows.stop - rows.start, : len(weight)], transpose_b=True)


def _gradients(
    x: Array, weight: Array, bias: Array | None, has_d_weight: bool, of_logits: Callable[[slice, Array, Array], None]
) -> tuple[Array | None, ...]:
    """Return the gradients of x, weight and bias: d_x = d . W, d_W = dᵀ . x, d_b = sum_p d.

    ``of_logits(rows, logits, d)`` writes d, which are the logits' own places where the types are equal.
    """
    make = empty if len(x) else xp.zeros
    d_x = empty(x.shape, x.dtype)
    d_weight = make(weight.shape, np.float32) if has_d_weight else None
    d_bias = None if bias is None else xp.zeros(bias.shape, np.float32)
    chunk = _chunk(x, weight, np.float32)
    d_chunk = chunk if x.dtype == np.float32 else _chunk(x, weight, x.dtype)
    for rows, logits in _logits(x, weight, chunk):
        d = d_chunk[: len(logits), : len(weight)]
        of_logits(rows, logits, d)
        gemm(d, weight, d_x[rows])
        if d_weight is not None:
            gemm(d, x[rows], d_weight, transpose_a=True, beta=float(rows.start > 0))
        if d_bias is not None:  # of whole rows, which can be read 16 bytes at a time; nothing is in the columns behind
            d_bias += column_sum(d_chunk[: len(logits)])[: len(weight)]
    return d_x, d_weight, d_bias


# Kernels


def decoder_top_k(logits: Array, bias: Array | None, values: Array, ids: Array, lse: Array) -> None:
    """Find the k largest of logits + bias in every row, their words and log(sum exp); equal logits by rising word.

    Parameters
    ----------
    logits : array, float32, shape (P, V). Rows may be apart.
    bias : array, float32, shape (V,), or None
    values, ids : array, float32 and int32, shape (P, k). Written, falling.
    lse : array, float32, shape (P,). Written.
    """
    n_rows, k = ids.shape
    arguments = (logits, stride(logits), bias, np.int32(logits.shape[1]), np.int32(k), values, ids, lse)
    launch("decoder", "decoder_top_k", n_rows, ROW_THREADS, arguments)


def scale_in_place(x: Array, factor: Array) -> None:
    """Multiply a contiguous array of any stored type by a float32 array of one number. Where that is 1, nothing is read."""
    launch("decoder", f"scale_in_place<{c_type(x)}>", scale_grid(x.size), SCALE_THREADS, (x, np.int64(x.size), factor))
