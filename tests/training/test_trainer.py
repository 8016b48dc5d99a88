"""One step: the gradient of the mean over all labels of its batches, and nothing where nothing is asked."""

from dataclasses import replace

import numpy as np
import pytest

from lucid.data import Batch, Place
from lucid.random import epoch_seed
from lucid.training.run import put_together
from lucid.training.trainer import Trainer, pack_batch

from .conftest import sixteen_steps


@pytest.fixture(scope="module")
def run(materials, tmp_path_factory):
    return put_together(replace(sixteen_steps(materials, tmp_path_factory.mktemp("trainer")), mask_share=0.3))


def padded(batches: list[Batch]):
    """Return ids, labels and attention mask of batches as one padded batch."""
    rows = [(b.ids[s:e], b.labels[s:e]) for b in batches for s, e in zip(b.starts[:-1], b.starts[1:], strict=True)]
    longest = max(len(ids) for ids, _ in rows)
    ids, labels, mask = (np.full((len(rows), longest), fill) for fill in (0, -100, 0))
    for i, (row, row_labels) in enumerate(rows):
        ids[i, : len(row)], labels[i, : len(row)], mask[i, : len(row)] = row, row_labels, 1
    return ids, labels, mask


def test_a_step_is_the_mean_over_all_its_labels(run):
    """Four batches of different numbers of labels give the gradient of one large one: here without dropout, by the public methods."""
    model = run.new_model()
    trainer = run.trainer(model)
    batches = trainer._next_batches()
    assert len({batch.n_labels for batch in batches}) > 1
    for module in model.modules():
        if hasattr(module, "p"):
            module.p = 0.0
        if hasattr(module, "p_dropout"):
            module.p_dropout = 0.0
    ids, labels, mask = padded(batches)
    loss = model.get_loss(labels, ids, mask)
    loss.backward()
    wanted = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    seen = {}

    def look(batch, divisor):
        seen.update({name: parameter.grad / np.float32(divisor) for name, parameter in model.named_parameters()})
        return 1.0

    trainer.optimizer.step = look
    for _ in range(3):
        assert trainer.advance() is None
    step = trainer.advance()
    assert step.loss == pytest.approx(float(loss), rel=1e-6)
    assert step.n_labels == (labels != -100).sum() and step.n_tokens == mask.sum()
    for name, gradient in wanted.items():
        assert np.linalg.norm(seen[name] - gradient) <= 1e-5 * np.linalg.norm(gradient) + 1e-8, name


def test_packing_is_what_the_model_does_with_padding(run):
    """Dropout too: by the numbers of the examples, not by their places."""
    model = run.new_model()
    batch = run.batches.at(Place())
    packed, rows, labels = pack_batch(model, batch, seed=batch.seed)
    values = model.losses_of(packed, rows, labels).array
    one = Batch(batch.place, batch.end, batch.seed, batch.numbers[1:2], np.array([0, batch.starts[2] - batch.starts[1]]),
                batch.ids[batch.starts[1] : batch.starts[2]], batch.labels[batch.starts[1] : batch.starts[2]])  # fmt: skip
    packed, alone_rows, alone_labels = pack_batch(model, one, seed=batch.seed)
    alone = model.losses_of(packed, alone_rows, alone_labels).array
    assert np.array_equal(alone, values[rows.starts[1] : rows.starts[2]]) and len(alone)
    model.eval()
    packed, rows, labels = pack_batch(model, batch)
    ids, padded_labels, mask = padded([batch])
    wanted = model.get_loss(padded_labels, ids, mask, reduction="sum")
    assert float(model.losses_of(packed, rows, labels).array.sum(dtype=np.float64)) == pytest.approx(float(wanted), rel=1e-6)


def test_dropout_is_the_epochs(run):
    """Each batch runs under the seed of its epoch, and by the numbers of its examples."""
    for place in (Place(0, 0), Place(3, 0)):
        model = run.new_model()
        trainer = run.trainer(model)
        trainer.place = place
        trainer.advance()
        batches = trainer._batches_of_step
        packed, rows, labels = pack_batch(model, batches[0], seed=epoch_seed(run.options.seed, place.epoch))
        wanted = model.losses_of(packed, rows, labels).array.sum(dtype=np.float64)
        assert trainer.losses == [np.float32(wanted)]


def test_nothing_is_asked(run):
    """A batch without labels adds nothing; a step without any takes its turn and changes no weight."""
    real = run.batches
    blank = replace_labels(real)
    model = run.new_model()
    trainer = Trainer(model, *optimizer_of(run, model), blank, 2)
    before = {name: array.tobytes() for name, array in model.state_dict().items()}
    assert trainer.advance() is None
    step = trainer.advance()
    assert (step.step, step.loss, step.n_labels, step.grad_norm) == (1, 0.0, 0, 0.0) and trainer.n_steps == 1
    assert {name: array.tobytes() for name, array in model.state_dict().items()} == before
    assert trainer.place == real.at(real.at(Place()).end).end


def replace_labels(batches):
    class Blank:
        def at(self, place):
            batch = batches.at(place)
            return replace(batch, labels=np.full_like(batch.labels, -100))

    return Blank()


def optimizer_of(run, model):
    made = run.trainer(model)
    return made.optimizer, made.schedule


def test_epochs_have_other_masks_and_other_dropout(run):
    first, second = run.batches.at(Place(0, 0)), run.batches.at(Place(1, 0))
    assert first.seed != second.seed
    with pytest.raises(ValueError, match="a step has a batch at least"):
        Trainer(run.new_model(), *optimizer_of(run, run.new_model()), run.batches, 0)
