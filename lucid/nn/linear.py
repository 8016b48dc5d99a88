"""Linear: y = x . Wᵀ + b."""

from __future__ import annotations

from lucid.autograd import apply
from lucid.nn.init import Initializer, zeros
from lucid.nn.module import Module
from lucid.nn.parameter import Parameter
from lucid.ops.linear import linear
from lucid.tensor import Tensor


class Linear(Module):
    """Y = activation(X . Wᵀ + b) + residual.

    Parameters
    ----------
    in_features, out_features : int
    initializer : of the weight (out_features, in_features); the bias starts at 0
    """

    def __init__(self, in_features: int, out_features: int, initializer: Initializer) -> None:
        super().__init__()
        self.weight = Parameter((out_features, in_features), initializer)
        self.bias = Parameter((out_features,), zeros)

    def forward(
        self,
        x: Tensor,
        *,
        activation: str | None = None,
        residual: Tensor | None = None,
        columns: tuple[int, int] | None = None,
    ) -> Tensor:
        """Return y (M, out_features) for x (M, in_features); with `columns` only those outputs."""
        weight, bias = self.value(self.weight, packed=True), self.value(self.bias)
        y: Tensor = apply(linear, x, weight, bias, residual, activation=activation, columns=columns)
        return y

    def extra_repr(self) -> str:
        """Return the two widths."""
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}, bias=True"
