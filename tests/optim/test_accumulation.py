"""A step over several micro-batches: the mean over the labels of the step, not the mean of the micro-batches' means."""

import math
from typing import Any

import numpy as np
import pytest
from gradients.cases import for_each_thread_count
from gradients.models import digest, gradients_of, make_batch, make_model, relative, weights_of

from lucid.optim import AdamW, NonFiniteError

Array = Any
Batch = dict[str, Array]
SIZES = [(1, 5), (3, 3), (2, 1, 3), (1, 1, 1, 1, 1, 1)]
"""How six sequences are cut; the one at 2 has no label, and is a micro-batch of its own in two of these."""


def uneven_batch(model: Any, seed: int = 5) -> Batch:
    batch = make_batch(model, 6, 37, seed=seed)
    batch["labels"][2] = -100
    batch["labels"][4:, ::2] = -100
    return batch


def cut(batch: Batch, sizes: tuple[int, ...]) -> list[Batch]:
    ends = np.cumsum(sizes)
    return [{name: array[end - size : end] for name, array in batch.items()} for end, size in zip(ends, sizes, strict=True)]


def count(batch: Batch) -> int:
    return int((batch["labels"] != -100).sum())


def accumulate(model: Any, optimizer: AdamW, parts: list[Batch], seed: int = 0) -> tuple[float, float]:
    """The loop of the README; give the mean loss and the norm."""
    optimizer.zero_grad()
    total, n_labels = 0.0, 0
    for i, part in enumerate(parts):
        loss = model.get_loss(**part, reduction="sum", seed=seed + i)
        total += optimizer.check_loss(loss, batch=i)
        loss.backward()
        n_labels += count(part)
    norm = optimizer.step(divisor=n_labels)
    return total / max(1, n_labels), norm


def at_once(model: Any, optimizer: AdamW, batch: Batch) -> tuple[float, float]:
    optimizer.zero_grad()
    loss = model.get_loss(**batch)
    loss.backward()
    return float(loss), optimizer.step(loss)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_micro_batches_have_the_gradients_of_one_batch(sizes: tuple[int, ...]) -> None:
    model, whole = make_model(), make_model()
    batch = uneven_batch(model)
    parts = cut(batch, sizes)
    assert len({count(part) for part in parts}) > 1
    optimizer = AdamW(model)
    mean, norm = accumulate(model, optimizer, parts)
    want_mean, want_norm = at_once(whole, AdamW(whole), batch)
    assert mean == pytest.approx(want_mean, rel=1e-6)
    assert norm == pytest.approx(want_norm, rel=1e-6)
    got, want = gradients_of(model), gradients_of(whole)
    for name in want:
        if not name.endswith("qkv.bias"):  # a third of it has a true gradient of 0
            assert relative(got[name] / count(batch), want[name]) < 2e-6, name


def test_the_mean_of_means_is_something_else() -> None:
    """What the divisor is for: with unequal counts, dividing each micro-batch by its own is off by far more than rounding."""
    model, whole = make_model(), make_model()
    batch = uneven_batch(model)
    parts = cut(batch, (1, 5))
    for part in parts:
        (model.get_loss(**part) / len(parts)).backward()
    whole.get_loss(**batch).backward()
    name = "bert.encoder.layer.0.feed_forward.dense_in.weight"
    assert relative(gradients_of(model)[name], gradients_of(whole)[name]) > 1e-2


@pytest.mark.parametrize("max_grad_norm", [None, 0.1])
def test_micro_batches_make_the_steps_of_one_batch(max_grad_norm: float | None) -> None:
    """Three steps, other batches and other cuts in each; clipping sees the divided gradients."""
    model, whole = make_model(), make_model()
    start = weights_of(model)
    settings: dict[str, Any] = {"lr": 1e-3, "eps": 1e-3, "max_grad_norm": max_grad_norm}  # eps: no gradient of 0 becomes a step of lr
    optimizer, other = AdamW(model, **settings), AdamW(whole, **settings)
    for step, sizes in enumerate(SIZES[:3]):
        batch = uneven_batch(model, seed=step)
        _, norm = accumulate(model, optimizer, cut(batch, sizes))
        assert norm == pytest.approx(at_once(whole, other, batch)[1], rel=1e-5)
        assert max_grad_norm is None or norm > max_grad_norm
    for (name, _), before, got, want in zip(model.named_parameters(), start, weights_of(model), weights_of(whole), strict=True):
        if not name.endswith("qkv.bias"):
            assert relative(got - before, want - before) < 1e-4, name


@pytest.mark.parametrize("n_parts", [1, 3])
def test_a_step_without_any_label_is_that_of_gradients_of_0(n_parts: int) -> None:
    model, whole = make_model(), make_model()
    batch = make_batch(model, 3)
    empty = {**batch, "labels": np.full_like(batch["labels"], -100)}
    optimizer, other = AdamW(model), AdamW(whole)
    for m, o in ((model, optimizer), (whole, other)):
        at_once(m, o, batch)
    assert accumulate(model, optimizer, cut(empty, (3,) if n_parts == 1 else (1, 1, 1))) == (0.0, 0.0)
    assert at_once(whole, other, empty) == (0.0, 0.0)
    assert digest(weights_of(model)) == digest(weights_of(whole))
    assert optimizer.n_steps == other.n_steps == 2


def test_micro_batches_without_labels_add_nothing() -> None:
    model, other = make_model(), make_model()
    batch = uneven_batch(model)
    with_empty = cut(batch, (1, 1, 1, 3))
    assert count(with_empty[2]) == 0
    got = accumulate(model, AdamW(model), with_empty)
    assert got == accumulate(other, AdamW(other), with_empty[:2] + with_empty[3:])
    assert digest(weights_of(model)) == digest(weights_of(other))


def test_one_hash_for_any_number_of_threads() -> None:
    def run() -> str:
        model = make_model(hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
        optimizer = AdamW(model, lr=1e-3, max_grad_norm=0.5)
        seen = [accumulate(model, optimizer, cut(uneven_batch(model), (2, 1, 3)), seed=10 * step) for step in range(2)]
        return digest([np.array(seen), *gradients_of(model).values(), *weights_of(model)])

    assert len(set(for_each_thread_count(run))) == 1


def test_a_divisor_of_1_changes_no_bit() -> None:
    model, other = make_model(), make_model()
    batch = make_batch(model)
    for m, divisor in ((model, {}), (other, {"divisor": 1})):
        m.get_loss(**batch).backward()
        AdamW(m, max_grad_norm=0.1).step(**divisor)
    assert digest(weights_of(model)) == digest(weights_of(other))


def test_a_micro_batch_with_a_bad_loss_is_named() -> None:
    model = make_model()
    optimizer = AdamW(model)
    assert optimizer.check_loss(1.5) == 1.5
    at_once(model, optimizer, make_batch(model))
    before = digest(weights_of(model))
    for value in (math.nan, math.inf, -math.inf):
        with pytest.raises(NonFiniteError, match=f"the loss is {value} in step 2, batch 3: no weight was touched"):
            optimizer.check_loss(np.float32(value), batch=3)
    assert digest(weights_of(model)) == before
    assert optimizer.n_steps == 1


@pytest.mark.parametrize("divisor", [-1, math.nan, math.inf])
def test_a_divisor_out_of_range_touches_nothing(divisor: float) -> None:
    model = make_model()
    optimizer = AdamW(model)
    model.get_loss(**make_batch(model)).backward()
    before = digest(weights_of(model))
    with pytest.raises(ValueError, match="AdamW: divisor must be finite and at least 0"):
        optimizer.step(divisor=divisor)
    assert digest(weights_of(model)) == before
    assert optimizer.n_steps == 0
