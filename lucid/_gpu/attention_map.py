"""Attention probabilities on the GPU, written out."""

from typing import Any

import numpy as np

from lucid._gpu import runtime
from lucid._gpu.runtime import Array

WARPS = 4  # of a block; each has a query


def forward(qkv: Array, *, n_heads: int, starts: Array, columns: Array, length: int, keep: bool) -> tuple[Array, Any]:
    """Do what `lucid.ops.attention_map` says."""
    width = qkv.shape[1] // (3 * n_heads)
    maps = runtime.xp.zeros((len(starts) - 1, n_heads, length, length), np.float32)
    sequences = np.repeat(np.arange(len(starts) - 1, dtype=np.int32), np.diff(starts))
    runtime.launch(
        "attention_map",
        f"attention_map<{runtime.c_type(qkv)}>",
        (runtime.blocks(len(sequences), WARPS), n_heads),
        WARPS * 32,
        (
            runtime.contiguous(qkv),
            runtime.place(starts),
            runtime.place(sequences),
            runtime.place(columns),
            np.int32(len(sequences)),
            np.int32(n_heads),
            np.int32(width),
            np.int32(length),
            np.float32(1 / np.sqrt(max(1, width))),
            maps,
        ),
    )
    return maps, None
