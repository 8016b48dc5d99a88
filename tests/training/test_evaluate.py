"""Evaluation: the figures of the public methods, on the same masks every time, with an interval that covers."""

import math

import numpy as np
import pytest

from lucid.data import Place
from lucid.models import BERTForMaskedLM
from lucid.threads import set_num_threads
from lucid.training import evaluate
from lucid.training.evaluate import _ratio
from lucid.training.run import put_together

from .conftest import sixteen_steps
from .test_trainer import padded


@pytest.fixture(scope="module")
def batches(materials, tmp_path_factory):
    from dataclasses import replace

    options = sixteen_steps(materials, tmp_path_factory.mktemp("evaluate"))
    run = put_together(replace(options, validation=(str(materials / "validation.txt"),), mask_share=0.3))
    run.validation.n_tokens = 100  # several batches
    return run.validation


@pytest.fixture
def model(uninterrupted):
    return BERTForMaskedLM.from_pretrained(uninterrupted / "model")


def all_of(batches):
    place, found = Place(), []
    while place.epoch == 0:
        found.append(batches.at(place))
        place = found[-1].end
    return found


def test_it_is_what_get_loss_and_get_accuracy_say(model, batches):
    found = evaluate(model, batches)
    ids, labels, mask = padded(all_of(batches))
    assert found.n_labels == (labels != -100).sum() and found.n_examples == len(ids)
    assert found.loss.mean == pytest.approx(float(model.get_loss(labels, ids, mask)), rel=1e-6)
    assert found.accuracy.mean == pytest.approx(float(model.get_accuracy(labels, ids, mask)), abs=1e-7)
    assert 0 < found.accuracy.mean < 1
    for bound in ("mean", "low", "high"):
        assert getattr(found.perplexity, bound) == pytest.approx(math.exp(getattr(found.loss, bound)))


def test_it_is_the_same_every_time(model, batches, every_size_is_threaded):
    found = evaluate(model, batches)
    set_num_threads(2)
    assert evaluate(model.train(), batches) == found  # train mode: no dropout either
    assert model.training and evaluate(model.eval(), batches) is not None and not model.training


def test_a_part(model, batches):
    parts = [evaluate(model, batches, n_batches=n) for n in (1, 2)]
    first, second = all_of(batches)[:2]
    assert parts[0].n_labels == first.n_labels and parts[1].n_labels == first.n_labels + second.n_labels
    seen = []
    whole = evaluate(model, batches, n_batches=10_000, progress=seen.append)
    assert whole == evaluate(model, batches) and sum(seen) == whole.n_examples


def test_given_up(model, batches):
    answers = iter([False, True])
    assert evaluate(model.train(), batches, is_stopped=lambda: next(answers)) is None
    assert model.training


def test_no_word_is_masked(model, batches, monkeypatch):
    monkeypatch.setattr(type(batches._masker), "_chosen", lambda self, ids, *_: np.zeros(len(ids), bool))
    with pytest.raises(ValueError, match=r"no word of \d+ examples is masked"):
        evaluate(model, batches)


def test_the_interval_covers():
    """Examples whose labels are alike, of different sizes: 95 % of the intervals hold the true mean, and naive ones would not."""
    rng = np.random.default_rng(0)
    covered = naive = 0
    n_trials, n_examples = 1000, 200
    for _ in range(n_trials):
        counts = rng.integers(1, 20, n_examples).astype(float)
        means = rng.normal(3.0, 1.0, n_examples)
        sums = counts * means + rng.normal(0, 0.5, n_examples) * np.sqrt(counts)
        found = _ratio(sums, counts)
        covered += found.low <= 3.0 <= found.high
        naive += abs(found.mean - 3.0) <= 1.96 * math.sqrt(1.25 / counts.sum())
    assert 0.93 < covered / n_trials < 0.97 and naive / n_trials < 0.75
    assert _ratio(np.array([2.0]), np.array([1.0])).high == math.inf
