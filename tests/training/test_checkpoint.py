"""Checkpoints: found again, fallen back from, kept and removed; a change of any bit is noticed."""

import os
import random
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lucid.errors import FormatError
from lucid.models import BERTForMaskedLM
from lucid.training import Checkpoints, load_model, pretrain, restore
from lucid.training.run import put_together

from .conftest import losses, sixteen_steps, weights


@pytest.fixture(scope="module")
def run(materials, tmp_path_factory):
    return put_together(sixteen_steps(materials, tmp_path_factory.mktemp("checkpoint")))


@pytest.fixture
def checkpoints(run, tmp_path):
    """Checkpoints of steps 1 and 2, and within step 3."""
    trainer, found = run.trainer(run.new_model()), Checkpoints(tmp_path / "checkpoints")
    for n in range(1, 10):
        trainer.advance()
        if n in (4, 8, 9):
            found.save(trainer, {"note": n})
    return found


def names(checkpoints):
    return sorted(path.name for path in checkpoints.folder.iterdir())


def test_the_newest_is_found(checkpoints):
    assert names(checkpoints) == ["step-00000001", "step-00000002", "step-00000002-1"]
    found = checkpoints.newest()
    assert found.folder.name == "step-00000002-1" and found.facts["note"] == 9
    assert Checkpoints(checkpoints.folder / "nothing").newest() is None


def test_it_is_a_folder_that_others_load(checkpoints, run):
    model = BERTForMaskedLM.from_pretrained(checkpoints.folder / "step-00000002")
    assert model.tokenizer.vocab_size == run.tokenizer.vocab_size and not model.training
    from safetensors.numpy import load_file

    for path in checkpoints.newest().folder.glob("*.safetensors"):
        assert all(array.dtype == np.float32 for array in load_file(path).values())


def test_fall_back(checkpoints):
    (checkpoints.folder / "step-00000002-1" / "training.safetensors").write_bytes(b"x")
    with pytest.warns(UserWarning, match=r"training\.safetensors has 1 bytes, \d+ were written: going on from step-00000002"):
        assert checkpoints.newest().folder.name == "step-00000002"
    (checkpoints.folder / "step-00000002" / "manifest.json").unlink()
    with pytest.warns(UserWarning) as caught:
        assert checkpoints.newest().folder.name == "step-00000001"
    assert len(caught) == 2
    (checkpoints.folder / "step-00000001" / "config.json").unlink()
    with pytest.raises(FormatError, match=r"no checkpoint in .* can be used: .*config\.json is missing"):
        checkpoints.newest()


def test_a_checkpoint_under_another_name(checkpoints):
    os.rename(checkpoints.folder / "step-00000001", checkpoints.folder / "step-00000009")
    with pytest.warns(UserWarning, match="step-00000009 was made by another version of lucid, or renamed"):
        assert checkpoints.newest().folder.name == "step-00000002-1"


def test_keep(checkpoints):
    checkpoints.keep(2, best=1)
    assert names(checkpoints) == ["step-00000001", "step-00000002", "step-00000002-1"]
    checkpoints.keep(1, best=1)
    assert names(checkpoints) == ["step-00000001", "step-00000002-1"]
    checkpoints.keep(1)
    assert names(checkpoints) == ["step-00000002-1"]


def test_a_moment_is_saved_once(checkpoints, run):
    trainer = run.trainer(run.new_model())
    for _ in range(4):
        trainer.advance()
    before = (checkpoints.folder / "step-00000001" / "manifest.json").stat()
    assert checkpoints.save(trainer, {"note": "again"}).name == "step-00000001"
    assert (checkpoints.folder / "step-00000001" / "manifest.json").stat() == before


def test_another_model(checkpoints, run):
    wide = put_together(replace(run.options, size="tiny", max_length=24))
    with pytest.raises(FormatError, match=r"training\.safetensors holds .*, for which the model has no place"):
        restore(wide.trainer(wide.new_model()), checkpoints.newest())


def test_weights_survive_to_the_bit(checkpoints):
    found = checkpoints.newest()
    model = load_model(found)
    again = found.folder.parent / "again"
    model.save_pretrained(again)
    from safetensors.numpy import load_file

    first, second = load_file(found.folder / "model.safetensors"), load_file(again / "model.safetensors")
    assert first.keys() == second.keys() and all(first[name].tobytes() == second[name].tobytes() for name in first)


def damage(data: bytes, rng: random.Random) -> bytes:
    """Flip a bit, or cut the end off."""
    place = rng.randrange(len(data))
    if rng.random() < 0.25:
        return data[:place]
    return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]


@pytest.mark.parametrize("n", [300, pytest.param(int(os.environ.get("LUCID_DAMAGES", "10000")), marks=pytest.mark.slow)])
def test_damage_anywhere_is_noticed(checkpoints, n):
    """A bit flip or truncation at a random place of a random file: always noticed, and the checkpoint before it is taken."""
    folder, rng = checkpoints.folder / "step-00000002-1", random.Random(4)
    files = sorted(folder.iterdir())
    sizes = [path.stat().st_size for path in files]
    detected = 0
    for i in range(n):
        # Half of them where the bytes are, half in each file alike.
        path = rng.choices(files, sizes)[0] if i % 2 else rng.choice(files)
        data = path.read_bytes()
        path.write_bytes(damage(data, rng))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = checkpoints.newest()
        detected += found.folder.name == "step-00000002" and len(caught) == 1
        path.write_bytes(data)
    assert detected == n
    assert checkpoints.newest().folder == folder


def test_a_run_goes_on_from_the_one_before(options, uninterrupted):
    """The newest checkpoint of a run is damaged: with a warning, it goes on from the one before, to the same end.

    What is damaged does not count as kept, and is not in the way of the new checkpoint of its step.
    """
    shorter = replace(options, save_every=5, keep=2)
    pretrain(shorter)
    out = Path(options.out)
    checkpoints = Checkpoints(out / "checkpoints")
    assert names(checkpoints) == ["step-00000015", "step-00000016"]
    path = out / "checkpoints" / "step-00000016" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="going on from step-00000015"):
        pretrain(replace(shorter, keep=1), resume=True)
    kept = names(checkpoints)
    assert kept[0].startswith("damaged-step-00000016-") and kept[1:] == ["step-00000016"]
    assert checkpoints.newest().folder.name == "step-00000016"
    assert weights(out / "model") == weights(uninterrupted / "model")
    assert losses(out) == [record for record in losses(uninterrupted) if "validation" not in record]
