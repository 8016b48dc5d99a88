"""Options: TOML there and back, and what of it matters when a run is resumed."""

from dataclasses import asdict, replace

import pytest

from lucid.errors import FormatError
from lucid.training.options import PretrainOptions, read_toml

FULL = PretrainOptions(
    data=('a "quoted" name.txt', "ü\\x.txt", "line\nbreak"),
    validation=("v.txt",),
    out="run",
    from_checkpoint="org/name",
    epochs=1.5,
    lr=1e-5,
    dropout=0.0,
    eval_tokens=5,
)


def test_toml_there_and_back(tmp_path):
    path = tmp_path / "x.toml"
    path.write_text(FULL.to_toml(), encoding="utf-8")
    assert PretrainOptions(**read_toml(path)) == FULL
    assert "from = " in FULL.to_toml() and "size" not in FULL.to_toml()


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("lr = ", "is not TOML"),
        ("rate = 1", "there is no option 'rate'; there are data,"),
        ("lr = true", "lr must be float, not True"),
        ("steps = 1.5", "steps must be int, not 1.5"),
        ("data = [1]", "data must be a list of str, not"),
        ("out = 3", "out must be str, not 3"),
        ("[data]\nx = 1", "data must be a list of str"),
    ],
)
def test_bad_toml(tmp_path, text, match):
    (tmp_path / "x.toml").write_text(text)
    with pytest.raises(FormatError, match=match):
        read_toml(tmp_path / "x.toml")


def test_friendly_toml(tmp_path):
    (tmp_path / "x.toml").write_text('data = "one.txt"\nmax-length = 64\nlr = 1\nfrom = "x"\n')
    assert read_toml(tmp_path / "x.toml") == {"data": ("one.txt",), "max_length": 64, "lr": 1.0, "from_checkpoint": "x"}


def test_what_is_worked_out():
    resolved = FULL.resolved(50)
    assert (resolved.steps, resolved.epochs, resolved.eval_every, resolved.save_every, resolved.lr) == (50, None, 5, 5, 1e-5)
    assert FULL.resolved(3).save_every == 1 and FULL.resolved(1_000_000).save_every == 1000
    assert replace(FULL, lr=None).resolved(5).lr == 5e-5
    assert replace(FULL, lr=None, from_checkpoint=None, size="tiny").resolved(5).lr == 5e-4


def test_what_may_differ():
    other = asdict(replace(FULL, threads=3, keep=9, out="y", save_every=1, lr=1e-4, masking="span"))
    assert FULL.differences(other) == ["lr", "masking"]
