"""Dropout of activations."""

from __future__ import annotations

from typing import Any, Protocol

from lucid.autograd import apply
from lucid.nn.module import Module
from lucid.ops.dropout import dropout
from lucid.random import Purpose, stream
from lucid.tensor import Tensor


class Tokens(Protocol):
    """What dropout must know of the rows that it works on."""

    seed: int | None
    places: Any
    token_examples: Any


class Dropout(Module):
    """Set each number to 0 with probability `p` and divide the others by 1 - p (Srivastava et al. 2014).

    Parameters
    ----------
    p : float in [0, 1)
    purpose, layer : name the random numbers, so that every dropout of a model has its own
    """

    def __init__(self, p: float, purpose: Purpose, layer: int = 0) -> None:
        super().__init__()
        self.p = p
        self.stream = stream(purpose, layer)

    def forward(self, x: Tensor, tokens: Tokens) -> Tensor:
        """Return x with numbers dropped; x itself in eval mode or where `tokens` carries no seed."""
        if not self.training or self.p == 0 or tokens.seed is None:
            return x
        y: Tensor = apply(dropout, x, p=self.p, seed=tokens.seed, stream=self.stream, columns=tokens.places, examples=tokens.token_examples)
        return y

    def extra_repr(self) -> str:
        """Return p."""
        return f"p={self.p:g}"
