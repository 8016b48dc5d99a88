"""lucid's dropout masks for another framework: Philox in NumPy, by the counter that DESIGN.md and docs/ops/dropout.md name."""

from typing import Any

import numpy as np
import torch
from gradients.reference import philox4x32_10

from lucid.random import Purpose, stream

Array = Any


def keep_mask(p: float, seed: int, stream: int, positions: Array, examples: Array, first: Array, n: int) -> Array:
    """(number >= p) / (1 - p) for elements first to first + n - 1, first a multiple of 4; the others broadcast in front."""
    block = np.arange(-(-n // 4))
    counter = np.broadcast_arrays(
        *(np.asarray(a, np.uint64) for a in (first[..., None] // 4 + block, positions[..., None], examples[..., None], stream))
    )
    words = np.stack(philox4x32_10(counter, (np.uint64(seed & 0xFFFFFFFF), np.uint64(seed >> 32))), axis=-1)
    numbers = words.reshape(*words.shape[:-2], -1)[..., :n]
    return ((numbers >= int(p * 2**32)) / (1 - p)).astype(np.float32)


class Masks:
    """What stands in for `torch.nn.functional.dropout`: lucid's masks, in the order in which BERT asks for them.

    A token's place is its number among the real ones of its row; what padding gets does not matter.
    """

    def __init__(self, config: Any, seed: int, attention_mask: Array) -> None:
        self.seed, self.n_heads, self.n_calls = seed, config.num_attention_heads, 0
        self.places = np.maximum(np.cumsum(attention_mask, axis=1) - 1, 0)
        self.purposes = [(Purpose.EMBEDDING_DROPOUT, 0)]
        for layer in range(config.num_hidden_layers):
            for purpose in (Purpose.ATTENTION_DROPOUT, Purpose.ATTENTION_OUTPUT_DROPOUT, Purpose.FEED_FORWARD_DROPOUT):
                self.purposes.append((purpose, layer))

    def __call__(self, x: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
        assert training and not inplace
        purpose, layer = self.purposes[self.n_calls]
        self.n_calls += 1
        if p == 0:
            return x
        n = x.shape[-1]
        if purpose == Purpose.ATTENTION_DROPOUT:  # (B, H, query, key): element head * 65536 + key's place, position query's place
            n_examples, n_heads = x.shape[:2]
            assert n_heads == self.n_heads
            first = np.arange(n_heads)[None, :, None] * 65536
            examples, positions = np.arange(n_examples)[:, None, None], self.places[:, None, :]
            by_place = keep_mask(p, self.seed, stream(purpose, layer), positions, examples, first, n)
            mask = np.take_along_axis(by_place, np.broadcast_to(self.places[:, None, None, :], by_place.shape), axis=3)
        else:  # (B, S, C): element channel
            first, examples = np.zeros((1, 1), np.int64), np.arange(len(x))[:, None]
            mask = keep_mask(p, self.seed, stream(purpose, layer), self.places, examples, first, n)
        return x * torch.from_numpy(mask)
