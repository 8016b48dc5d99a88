"""Applying an operation to tensors."""

from __future__ import annotations

from typing import Any

import numpy as np

from lucid.ops.op import Op
from lucid.tensor import Tensor


def apply(op: Op, *inputs: Any, **params: Any) -> Any:
    """Run `op` on tensors and return tensors.

    Parameters
    ----------
    op : Op
    *inputs : Tensor, Parameter, PackedWeight, array or None
    **params
        Passed to the op as they are.

    Returns
    -------
    Tensor or tuple of Tensor
    """
    result = op(*(x.array if isinstance(x, Tensor) else x for x in inputs), **params)
    if isinstance(result, tuple):
        return tuple(Tensor(np.asarray(array)) for array in result)
    return Tensor(result)
