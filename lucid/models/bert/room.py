"""How many tokens the GPU has room for, said where it had none for a batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lucid.autograd import is_grad_enabled
from lucid.device import DeviceMemoryError, gpu_memory, is_out_of_memory
from lucid.models.bert.config import BERTConfig
from lucid.models.bert.packing import PackedBatch


@contextmanager
def room_for(model: Any, batch: PackedBatch) -> Iterator[None]:
    """Say which batch the GPU had no room for, and how many tokens it may have.

    Raises
    ------
    DeviceMemoryError
        CuPy found no memory inside.
    """
    try:
        yield
    except MemoryError as error:
        if not is_out_of_memory(error):
            raise
        n_sequences, length = batch.shape
        config, is_training = model.config, model.training and is_grad_enabled()
        parameters = list(model.parameters())
        itemsize = max((p.operand.dtype.itemsize for p in parameters if len(p.shape) > 1), default=4)
        _, capacity = gpu_memory()
        # Value and copy; in training a gradient and two moments as well.
        held = sum(p.size for p in parameters) * (4 + (itemsize if itemsize < 4 else 0) + (12 if is_training else 0))
        is_recomputed = model.encoder.is_recomputed
        fits = int(max(0, capacity - held) / bytes_of_token(config, itemsize, is_training=is_training, is_recomputed=is_recomputed))
        advice = ""
        if is_training:
            advice = ", and add gradients up over several batches" + ("" if is_recomputed else ", or let layers be recomputed")
        raise DeviceMemoryError(
            f"the GPU has no room for this batch of {n_sequences} x {length}, {batch.n_tokens:,} tokens: {error} Of its "
            f"{capacity / 1e9:.1f} GB, the model takes {held / 1e9:.1f}; about {fits:,} tokens at once may fit: give fewer{advice}"
        ) from error


def bytes_of_token(config: BERTConfig, itemsize: int, *, is_training: bool, is_recomputed: bool = False) -> int:
    """Return about how many bytes of the GPU a token takes.

    Parameters
    ----------
    config : BERTConfig
    itemsize : int. Bytes of a number of the matrices.
    is_training : bool. Whether backward is to follow: a layer then keeps its input, Q, K and V, their mixture, and what goes into
        each LayerNorm, the feed-forward's activation and out of it. Else, one layer's are there at a time.
    is_recomputed : bool. Whether of all layers but one the input alone is kept.
    """
    width, inner = config.hidden_size, config.intermediate_size
    of_layer = 8 * width + 2 * inner
    if not is_training:
        return itemsize * of_layer
    n_layers = config.num_hidden_layers
    return itemsize * (n_layers * width + 2 * of_layer if is_recomputed else (n_layers + 1) * of_layer)
