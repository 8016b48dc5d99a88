"""The corruption of masked language modelling on the GPU: the same tokens and words as on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np

from lucid._gpu.runtime import Array, blocks, contiguous, empty, launch, place

THREADS = 256


def mlm_mask_forward(
    ids: Array,
    may_mask: Array,
    columns: Array,
    examples: Array,
    special_ids: Array,
    vocab_size: int,
    mask_token_id: int,
    key: int,
    stream: int,
    p_choose: float,
    p_mask: float,
    p_random: float,
    ignore_index: int,
    masked_ids: Array,
    labels: Array,
) -> None:
    """Fill `masked_ids` and `labels` (n,); see lucid/_ext/mlm_mask.pyx."""
    below = (np.uint64(int(p * 4294967296.0)) for p in (p_choose, p_mask, p_mask + p_random))
    words = np.int32(len(special_ids)), np.int64(vocab_size), np.int64(mask_token_id)
    args = (ids, may_mask, columns, examples, special_ids, *words, np.uint64(key), np.uint32(stream), *below)
    n = len(ids)
    launch("mlm_mask", "mlm_mask_forward", blocks(n, THREADS), THREADS, (*args, np.int64(ignore_index), masked_ids, labels, np.int32(n)))


def forward(
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
    keep: bool,
    purpose: int,
) -> tuple[tuple[Array, Array], Any]:
    """Do what `lucid.ops.mlm_mask` says; `purpose` is the top of the counters' last word."""
    masked_ids, labels = empty(ids.shape, np.int64), empty(ids.shape, np.int64)
    mlm_mask_forward(
        contiguous(ids),
        place(may_mask),
        place(columns),
        place(examples),
        place(special_ids),
        vocab_size,
        mask_token_id,
        seed,
        purpose << 24 | epoch,
        mlm_probability,
        mask_replace_prob,
        min(random_replace_prob, 1 - mask_replace_prob),
        ignore_index,
        masked_ids,
        labels,
    )
    return (masked_ids, labels), None
