"""How many tokens the GPU has room for, said where it had none for a batch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from lucid.autograd import backward_within, is_grad_enabled
from lucid.device import DeviceMemoryError, gpu_memory, is_out_of_memory
from lucid.models.bert.config import BERTConfig
from lucid.models.bert.packing import PackedBatch, TokenRows
from lucid.ops.decoder import ROWS_AT_ONCE


@contextmanager
def room_for(model: Any, batch: PackedBatch, rows: TokenRows | None = None, *, has_logits: bool = False) -> Iterator[None]:
    """Say which batch the GPU had no room for, and how many tokens it may have: inside, and in the backward of what is recorded inside.

    Parameters
    ----------
    model : BERT or BERTForMaskedLM
    batch : PackedBatch
    rows : TokenRows, optional. The tokens that the head is asked for, some at a time.
    has_logits : bool. The logits of all tokens are wanted.

    Raises
    ------
    DeviceMemoryError
        CuPy found no memory.
    """
    is_training = model.training and is_grad_enabled()
    n_rows = batch.n_tokens if has_logits else 0 if rows is None else len(rows.index)
    said = partial(_said, model, batch, n_rows, has_logits=has_logits, is_training=is_training)
    with said(), backward_within(said):
        yield


@contextmanager
def _said(model: Any, batch: PackedBatch, n_rows: int, *, has_logits: bool, is_training: bool) -> Iterator[None]:
    try:
        yield
    except MemoryError as error:
        found = error.__cause__ if isinstance(error, DeviceMemoryError) else error  # of a part, which knew less
        if not isinstance(found, MemoryError) or not is_out_of_memory(found):
            raise
        (n_sequences, length), n_tokens = batch.shape, batch.n_tokens
        parameters = list(model.parameters())
        itemsize = max((p.operand_type.itemsize for p in parameters if len(p.shape) > 1), default=4)
        _, capacity = gpu_memory()
        # Value and copy; in training a gradient and two moments as well.
        held = sum(p.size for p in parameters) * (4 + (itemsize if itemsize < 4 else 0) + (12 if is_training else 0))
        is_recomputed = getattr(model, "bert", model).encoder.is_recomputed
        fits = tokens_that_fit(
            capacity - held,
            model.config,
            itemsize,
            is_training=is_training,
            is_recomputed=is_recomputed,
            row_share=n_rows / max(1, n_tokens),
            has_logits=has_logits,
        )
        advice = ""
        if is_training:
            advice = ", and add gradients up over several batches" + ("" if is_recomputed else ", or let layers be recomputed")
        raise DeviceMemoryError(
            f"the GPU has no room for this batch of {n_sequences} x {length}, {n_tokens:,} tokens: {found} Of its "
            f"{capacity / 1e9:.1f} GB, the model takes {held / 1e9:.1f}; about {fits:,} tokens at once may fit: give fewer{advice}"
        ) from found


def tokens_that_fit(
    free: float,
    config: BERTConfig,
    itemsize: int,
    *,
    is_training: bool,
    is_recomputed: bool = False,
    row_share: float = 0.0,
    has_logits: bool = False,
) -> int:
    """Return about how many tokens have room at once.

    Parameters
    ----------
    free : float. Bytes that the model leaves.
    config, itemsize, is_training, is_recomputed : as for `bytes_of_token`
    row_share : float, 0 to 1. Share of the tokens that the head is asked for.
    has_logits : bool. Their logits are wanted, not only made some rows at a time.
    """
    of_token = float(bytes_of_token(config, itemsize, is_training=is_training, is_recomputed=is_recomputed))
    of_row = row_share * bytes_of_row(config, itemsize, is_training=is_training, has_logits=has_logits)
    of_logits = 0 if has_logits else bytes_of_logits(config, itemsize, is_training=is_training)
    if is_training:  # what the encoder keeps is there when the head is run
        fits = _most(free, of_token + of_row, row_share, of_logits)
    else:  # one after the other
        fits = min(free / of_token, _most(free, of_row, row_share, of_logits))
    return int(max(0.0, fits))


def _most(free: float, of_token: float, row_share: float, of_logits: int) -> float:
    """Return the largest n with n * of_token + min(n * row_share, ROWS_AT_ONCE) * of_logits <= free."""
    if not of_token:
        return math.inf
    return max(free / (of_token + row_share * of_logits), (free - ROWS_AT_ONCE * of_logits) / of_token)


def bytes_of_token(config: BERTConfig, itemsize: int, *, is_training: bool, is_recomputed: bool = False) -> int:
    """Return about how many bytes of the GPU a token takes in the encoder.

    Parameters
    ----------
    config : BERTConfig
    itemsize : int. Bytes of a number of the matrices.
    is_training : bool. Whether backward is to follow: a layer then keeps its input, Q, K and V, their mixture, and what goes into
        each LayerNorm, the feed-forward's activation and out of it; and one layer's gradients come and go. Else, one layer's
        are there at a time.
    is_recomputed : bool. Whether of all layers but one the input alone is kept.
    """
    width, inner = config.hidden_size, config.intermediate_size
    of_layer = 8 * width + 2 * inner
    if not is_training:
        return itemsize * of_layer
    n_layers = config.num_hidden_layers
    return itemsize * (n_layers * width + 2 * of_layer if is_recomputed else (n_layers + 1) * of_layer)


def bytes_of_row(config: BERTConfig, itemsize: int, *, is_training: bool, has_logits: bool) -> int:
    """Return about how many bytes of the GPU a token takes in the head, without the logits that are there for some rows at a time.

    In training: what goes into the head, into its activation, into and out of its LayerNorm, and the gradients of two of these at
    a time. Logits that are wanted stand there twice, of the packed and of the padded batch; in training their gradients as well.
    """
    n_logits = (4 if is_training else 2) * config.vocab_size if has_logits else 0
    return itemsize * ((6 if is_training else 3) * config.hidden_size + n_logits)


def bytes_of_logits(config: BERTConfig, itemsize: int, *, is_training: bool) -> int:
    """Return how many bytes of the GPU the logits of a row take while they are there: float32, and their gradients where these are not."""
    return config.vocab_size * (4 + (itemsize if is_training and itemsize < 4 else 0))
