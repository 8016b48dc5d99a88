"""The corruption of masked language modelling: which tokens are asked for, and what stands in their place."""

from typing import Any

import numpy as np

from lucid._ext import kernels
from lucid.ops.op import Array, Kernel, Op, on_gpu, want
from lucid.random import Purpose, check_seed, stream
from lucid.threads import threads_for


def _check(
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
) -> None:
    want("mlm_mask", "ids", ids, np.int64, (None,))
    want("mlm_mask", "may_mask", may_mask, np.uint8, ids.shape)
    want("mlm_mask", "columns", columns, np.int32, ids.shape)
    want("mlm_mask", "examples", examples, np.int32, ids.shape)
    want("mlm_mask", "special_ids", special_ids, np.int32, (None,))
    check_seed(seed)
    for name, n, most in (
        ("vocab_size", vocab_size, 1 << 31),
        ("mask_token_id", mask_token_id, None),
        ("ignore_index", ignore_index, None),
        ("epoch", epoch, 1 << 16),
    ):
        if isinstance(n, bool) or not hasattr(n, "__index__"):
            raise TypeError(f"mlm_mask: {name} must be an integer, not {type(n).__name__}")
        if most is not None and not 0 <= n < most:
            raise ValueError(f"mlm_mask: {name} must lie between 0 and {most - 1}, not {n}")
    if not -(1 << 63) <= ignore_index < 1 << 63:
        raise ValueError(f"mlm_mask: ignore_index must be a 64-bit integer, not {ignore_index}")
    for name, p in (
        ("mlm_probability", mlm_probability),
        ("mask_replace_prob", mask_replace_prob),
        ("random_replace_prob", random_replace_prob),
    ):
        if not 0 <= p <= 1:
            raise ValueError(f"{name} must lie between 0 and 1, not {p}")
    if mask_replace_prob + random_replace_prob > 1 + 1e-12:
        raise ValueError(f"mask_replace_prob + random_replace_prob must not exceed 1, they make {mask_replace_prob + random_replace_prob}")
    if not 0 <= mask_token_id < vocab_size:
        raise IndexError(f"mask_token_id {mask_token_id} is outside the vocabulary, [0, {vocab_size})")
    if len(special_ids) and (special_ids[0] < 0 or special_ids[-1] >= vocab_size or (special_ids[1:] <= special_ids[:-1]).any()):
        raise ValueError("mlm_mask: special_ids must be sorted, distinct and within the vocabulary")
    if len(special_ids) >= vocab_size and random_replace_prob > 0:
        raise ValueError("mlm_mask: every word is special: there is no random word to draw. Set random_replace_prob=0.")


def _forward(
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
) -> tuple[tuple[Array, Array], Any]:
    masked_ids, labels = np.empty_like(ids), np.empty_like(ids)
    kernels.mlm_mask_forward(
        np.ascontiguousarray(ids),
        np.ascontiguousarray(may_mask),
        np.ascontiguousarray(columns),
        np.ascontiguousarray(examples),
        np.ascontiguousarray(special_ids),
        vocab_size,
        mask_token_id,
        seed,
        stream(Purpose.MLM_MASK, epoch=epoch),
        mlm_probability,
        mask_replace_prob,
        min(random_replace_prob, 1 - mask_replace_prob),
        ignore_index,
        masked_ids,
        labels,
        threads_for(len(ids)),
    )
    return (masked_ids, labels), None


mlm_mask = Op("mlm_mask", _check, cpu=Kernel(_forward, None), gpu=on_gpu("mlm_mask", backward=None, purpose=int(Purpose.MLM_MASK)))
"""Choose tokens with `mlm_probability`; replace the chosen by [MASK], a random word, or themselves.

Parameters
----------
ids : array, int64, shape (n,)
may_mask : array, uint8, shape (n,). 0 where a token is never chosen (special, padding).
columns, examples : array, int32, shape (n,). Which token of which example it is.
special_ids : array, int32, shape (any,), sorted. Never drawn as a random word.
vocab_size, mask_token_id : int
seed : int. Philox key.
mlm_probability, mask_replace_prob, random_replace_prob : float in [0, 1]; the last two sum to at most 1
ignore_index : int. Label of a token that was not chosen.
epoch : int, 0 to 65535

Returns
-------
masked_ids, labels : array, int64, shape (n,)

Raises
------
IndexError
    mask_token_id lies outside the vocabulary.
TypeError, ValueError
    Dtypes, shapes or probabilities do not fit.

Notes
-----
Source: Devlin et al. 2019, section 3.1. A token's fate depends on (seed, epoch, example, column) alone.
"""
