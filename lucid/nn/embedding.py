"""Embedding: a table of vectors."""

from __future__ import annotations

from typing import Any

from lucid.nn.init import Initializer
from lucid.nn.module import Module
from lucid.nn.parameter import Parameter


class Embedding(Module):
    """A table of `n_rows` vectors; the op that looks rows up is the caller's, fused with what follows.

    Parameters
    ----------
    n_rows, width : int
    initializer : of the table
    """

    def __init__(self, n_rows: int, width: int, initializer: Initializer) -> None:
        super().__init__()
        self.weight = Parameter((n_rows, width), initializer)

    def table(self) -> Any:
        """Return the table for looking rows up: the parameter in train mode, else a constant in whatever layout is there."""
        return self.value(self.weight) if self.training else self.weight.table()

    def extra_repr(self) -> str:
        """Return the table's shape."""
        return f"{self.weight.shape[0]}, {self.weight.shape[1]}"
