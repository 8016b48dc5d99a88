"""AdamW on the GPU beside the CPU's, parameter by parameter."""

from typing import Any

import numpy as np
import pytest

from lucid._gpu.runtime import dtype_of, xp
from lucid.nn import Parameter
from lucid.ops.adamw import gradient_norm, sum_of_squares
from lucid.optim import AdamW, clip_grad_norm
from lucid.tensor import Tensor

SHAPES = [(3,), (1,), (5, 7), (129, 130), (0, 4)]
"""One is more than a chunk of the kernels, one is empty."""


def gradient(step: int, i: int, scale: float) -> np.ndarray:
    return (scale * np.random.default_rng([step, i]).standard_normal(SHAPES[i])).astype(np.float32)


def after(where: str, dtype: str | None, max_grad_norm: float | None, scale: float) -> tuple[list[Parameter], dict[str, Any], list[float]]:
    """Three steps; a parameter that is frozen at first starts a count of its own."""
    parameters = [Parameter(shape, lambda s: np.random.default_rng(len(s)).standard_normal(s).astype(np.float32)) for shape in SHAPES]
    for p in parameters:
        p.move(where, dtype)  # type: ignore[arg-type]
    groups = [{"params": parameters[:2], "weight_decay": 0.0}, {"params": parameters[2:], "weight_decay": 0.5, "lr": 0.05}]
    optimizer, norms = AdamW(groups, lr=0.02, max_grad_norm=max_grad_norm), []
    for step in range(3):
        for i, p in enumerate(parameters):
            _ = p.operand
            p.grad = None if (step, i) == (0, 0) else Tensor(gradient(step, i, scale), device=where).array  # type: ignore[arg-type]
        norms.append(float(optimizer.step(divisor=2)))
    return parameters, optimizer.state_dict(), norms


@pytest.mark.parametrize("dtype", [None, "bfloat16", "float16"])
@pytest.mark.parametrize(("max_grad_norm", "scale"), [(None, 1.0), (1.0, 1.0), (1e9, 1.0), (1.0, 1e25)])
def test_steps_are_the_cpus(device: Any, max_grad_norm: float | None, scale: float, dtype: str | None) -> None:
    """In float64 no square of a gradient overflows."""
    want, want_state, want_norms = after("cpu", None, max_grad_norm, scale)
    got, state, norms = after("gpu", dtype, max_grad_norm, scale)
    assert np.allclose(norms, want_norms, rtol=1e-12)
    assert state["n_updates"] == want_state["n_updates"]
    assert state["n_steps"] == 3
    for kind in ("m", "v"):
        for name, value in want_state[kind].items():
            assert np.allclose(state[kind][name], value, rtol=1e-5, atol=1e-30), (kind, name)
    for g, w in zip(got, want, strict=True):
        assert np.allclose(g.numpy(), w.numpy(), rtol=1e-5, atol=1e-7)
        if dtype is not None and g.ndim > 1:
            copy = Tensor(g.operand).numpy()
            assert copy.dtype == dtype_of(dtype)
            assert copy.tobytes() == g.numpy().astype(copy.dtype).tobytes()  # the optimizer wrote it as well


def test_norms(device: Any) -> None:
    arrays = [gradient(0, i, 3.0) for i in range(len(SHAPES))]
    on_gpu = [xp.asarray(a) for a in arrays]
    assert np.isclose(gradient_norm(on_gpu), gradient_norm(arrays), rtol=1e-12)
    assert np.isclose(sum_of_squares(on_gpu[3]), sum_of_squares(arrays[3]), rtol=1e-12)
    assert gradient_norm([]) == 0


def test_clipping(device: Any) -> None:
    p = Parameter((5, 7), lambda s: np.zeros(s, np.float32))
    p.move("gpu")
    p.grad = xp.asarray(gradient(0, 2, 1.0))
    norm = clip_grad_norm([p], 0.5)
    assert norm > 0.5
    assert p.grad.dtype == np.float32
    assert np.isclose(gradient_norm([p.grad]), 0.5)
