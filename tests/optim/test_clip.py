"""The norm of gradients, and limiting it."""

import math
from typing import Any

import numpy as np
import pytest

from lucid.nn import Parameter, init
from lucid.optim import clip_grad_norm, grad_norm

SHAPES = ((3, 5), (7,), (1, 1), (4099,))


def parameters(scale: float = 1.0) -> list[Parameter]:
    rng = np.random.default_rng(2)
    made = [Parameter(shape, init.zeros) for shape in SHAPES]
    for p in made:
        p.grad = (scale * rng.standard_normal(p.shape)).astype(np.float32)
    return made


def norm64(made: list[Parameter]) -> float:
    return math.sqrt(sum(float(np.square(p.grad.astype(np.float64)).sum()) for p in made if p.grad is not None))


@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e25])
def test_the_norm_is_that_of_all_gradients_together(scale: float) -> None:
    made = parameters(scale)
    assert grad_norm(made) == pytest.approx(norm64(made), rel=1e-12)
    made[1].grad = None
    assert grad_norm(made) == pytest.approx(norm64(made), rel=1e-12)
    assert grad_norm(iter(made)) == grad_norm(made)


def test_no_gradient_is_a_norm_of_0() -> None:
    assert grad_norm([]) == 0
    assert grad_norm([Parameter((3,), init.zeros)]) == 0
    assert clip_grad_norm([Parameter((3,), init.zeros)], 1.0) == 0


@pytest.mark.parametrize("share", [0.01, 0.5, 0.999])
def test_gradients_are_scaled_together(share: float) -> None:
    made, before = parameters(), parameters()
    limit = share * norm64(made)
    held = [p.grad for p in made]
    assert clip_grad_norm(iter(made), limit) == pytest.approx(norm64(before), rel=1e-12)
    assert norm64(made) == pytest.approx(limit, rel=1e-6)
    for p, q, array in zip(made, before, held, strict=True):
        assert p.grad.dtype == np.float32
        np.testing.assert_allclose(p.grad, q.grad * share, rtol=1e-6)
        assert np.array_equal(array, q.grad)  # replaced, not written: the array may be someone else's


@pytest.mark.parametrize("share", [1.0001, 10.0, math.inf])
def test_gradients_within_the_limit_stay_as_they_are(share: float) -> None:
    made, before = parameters(), parameters()
    clip_grad_norm(made, share * norm64(made))
    assert all(np.array_equal(p.grad, q.grad) for p, q in zip(made, before, strict=True))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_told_and_nothing_scaled(value: float) -> None:
    made = parameters()
    made[3].grad[7] = value
    held = [p.grad.copy() for p in made]
    assert not math.isfinite(clip_grad_norm(made, 1e-3))
    assert all(np.array_equal(p.grad, h, equal_nan=True) for p, h in zip(made, held, strict=True))


@pytest.mark.parametrize("limit", [0.0, -1.0, math.nan])
def test_a_limit_is_positive(limit: float) -> None:
    with pytest.raises(ValueError, match="max_norm must be positive"):
        clip_grad_norm(parameters(), limit)


def test_against_torch() -> None:
    torch: Any = pytest.importorskip("torch")
    made = parameters()
    twins = [torch.nn.Parameter(torch.zeros(p.shape)) for p in made]
    for p, twin in zip(made, twins, strict=True):
        twin.grad = torch.tensor(p.grad)
    assert clip_grad_norm(made, 3.0) == pytest.approx(float(torch.nn.utils.clip_grad_norm_(twins, 3.0)), rel=1e-6)
    for p, twin in zip(made, twins, strict=True):
        np.testing.assert_allclose(p.grad, twin.grad.numpy(), rtol=2e-6)
