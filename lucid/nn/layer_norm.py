"""LayerNorm, with the residual sum before it."""

from __future__ import annotations

from lucid.autograd import apply
from lucid.nn.init import ones, zeros
from lucid.nn.module import Module
from lucid.nn.parameter import Parameter
from lucid.ops.layer_norm import layer_norm
from lucid.tensor import Tensor


class LayerNorm(Module):
    """Layer normalisation (Ba et al. 2016) over the last axis.

    Parameters
    ----------
    width : int
    eps : float, > 0. Added to the variance.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = Parameter((width,), ones)
        self.bias = Parameter((width,), zeros)
        self.eps = eps

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Return LayerNorm(x + residual), shapes (T, C)."""
        y: Tensor = apply(layer_norm, x, self.value(self.weight), self.value(self.bias), residual, eps=self.eps)
        return y

    def extra_repr(self) -> str:
        """Return width and eps."""
        return f"{self.weight.shape[0]}, eps={self.eps:g}"
