"""A run that is stopped anywhere and resumed ends as one that never was: the same bits."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from lucid.data import Place
from lucid.threads import set_num_threads
from lucid.training import Checkpoints, load_model, restore
from lucid.training.run import put_together

from .conftest import losses, sixteen_steps, weights


@pytest.fixture(scope="module")
def run(materials, tmp_path_factory):
    return put_together(sixteen_steps(materials, tmp_path_factory.mktemp("resume")))


def begin(run):
    return run.trainer(run.new_model())


def finish(trainer, n_steps=16):
    steps = []
    while trainer.n_steps < n_steps:
        steps.append(trainer.advance())
    return [step for step in steps if step is not None]


def state_of(trainer):
    """Return everything that goes on, as bytes."""
    state = trainer.optimizer.state_dict()
    arrays = {f"weight.{path}": parameter.numpy() for path, parameter in trainer.model.named_parameters()}
    arrays |= {f"{kind}.{path}": array for kind in ("m", "v") for path, array in state[kind].items()}
    arrays |= {f"gradient.{path}": p.grad for path, p in trainer.model.named_parameters() if p.grad is not None}
    return {name: np.array(array).tobytes() for name, array in arrays.items()}, state["n_updates"], trainer.place, trainer.losses


@pytest.fixture(scope="module")
def whole(run):
    """The steps of an uninterrupted run, its last state, and the places where its steps begin."""
    set_num_threads(1)
    trainer = begin(run)
    places, steps = [], []
    while trainer.n_steps < 16:
        if not trainer.losses:
            places.append(trainer.place)
        steps.append(trainer.advance())
    return [step for step in steps if step is not None], state_of(trainer), places


def test_the_run_is_what_it_is_meant_to_be(whole, run):
    """Dropout is on, an epoch ends within a step and at least twice, losses fall, and the weights of all tensors move."""
    steps, (arrays, _, place), places = whole[0], whole[1][:3], whole[2]
    assert run.config.hidden_dropout_prob == run.config.attention_probs_dropout_prob == 0.1
    assert place.epoch >= 2
    ends_within = [a.epoch != b.epoch and b.example > 0 for a, b in pairwise(places)]
    assert any(ends_within)
    assert np.mean([step.loss for step in steps[-4:]]) < np.mean([step.loss for step in steps[:4]])
    before = state_of(begin(run))[0]
    assert all(arrays[name] != before[name] for name in before)


@pytest.mark.parametrize("k", range(16))
def test_resume_after_every_step(run, whole, tmp_path, k):
    """Stopped before step k + 1, after its first, second and third batch; each time other threads go on."""
    steps, wanted, _ = whole
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    trainer, found = begin(run), []
    while (trainer.n_steps, len(trainer.losses)) < (k, k % 4):
        found.append(trainer.advance())
    before = state_of(trainer)
    checkpoints.save(trainer, {"corpus": "x"})
    checkpoint = checkpoints.newest()
    assert checkpoint is not None
    set_num_threads({13: 2, 15: 3}.get(k, 1))
    resumed = run.trainer(load_model(checkpoint))
    restore(resumed, checkpoint)
    assert state_of(resumed) == before
    found = [step for step in found if step is not None] + finish(resumed)
    assert found == steps and state_of(resumed) == wanted


def test_stopped_twice_within_one_step(run, whole, tmp_path):
    steps, wanted, _ = whole
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    trainer, found = begin(run), []
    for _ in range(23):
        found.append(trainer.advance())
    for n_more in (1, 0, 1, 1, 50):  # the third goes over the end of a step
        checkpoints.save(trainer, {})
        checkpoint = checkpoints.newest()
        trainer = run.trainer(load_model(checkpoint))
        restore(trainer, checkpoint)
        for _ in range(n_more):
            if trainer.n_steps < 16:
                found.append(trainer.advance())
    assert [step for step in found if step is not None] == steps and state_of(trainer) == wanted
    assert [folder.name for folder in checkpoints._folders()][::-1] == [
        "step-00000005-3",
        "step-00000006",
        "step-00000006-1",
        "step-00000006-2",
    ]


def test_the_place_of_a_run_is_a_place_not_a_count(run, whole):
    """A trainer that is put at a place reads what the run read there."""
    trainer = begin(run)
    trainer.place = whole[2][9]
    assert trainer.advance() is None
    assert trainer._batches_of_step[0].place == whole[2][9] > Place(0, 0)


def test_threads_do_not_matter(options, uninterrupted, tmp_path):
    from lucid.training import pretrain

    assert pretrain(replace(options, threads=3)).n_steps == 16
    assert weights(Path(options.out) / "model") == weights(uninterrupted / "model")
    assert losses(Path(options.out)) == [record for record in losses(uninterrupted) if "validation" not in record]
