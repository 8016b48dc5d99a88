"""The log and what is drawn of it."""

import json

import pytest

from lucid.training.curves import can_draw, draw_curves
from lucid.training.log import Log

RECORDS = [
    {"step": 0, "validation": {"loss": {"mean": 3.0, "low": 2.9, "high": 3.1}}},
    {"step": 1, "loss": 3.0},
    {"step": 2, "loss": 2.9},
    {"step": 2, "validation": {"loss": {"mean": 2.5, "low": 2.4, "high": 2.6}}},
    {"step": 3, "loss": 2.8},
    {"step": 4, "error": "the loss is nan"},
]


@pytest.fixture
def log(tmp_path):
    made = Log(tmp_path / "log.jsonl")
    for record in RECORDS:
        made.write(record)
    return made


def test_it_reads_what_it_wrote(log):
    assert log.read() == RECORDS
    assert [json.loads(line) for line in log.path.read_text().splitlines()] == RECORDS


@pytest.mark.parametrize(("step", "evaluated", "kept"), [(3, 2, 5), (2, 2, 4), (2, 0, 3), (0, -1, 0), (9, 9, 6)])
def test_rewind(log, step, evaluated, kept):
    log.rewind(step, evaluated)
    assert log.read() == RECORDS[:kept]
    log.write({"step": 7, "loss": 1.0})
    assert log.read() == [*RECORDS[:kept], {"step": 7, "loss": 1.0}]


def test_a_line_that_was_cut_short(log):
    log.path.write_text(log.path.read_text() + '{"step": 5, "lo')
    assert log.read() == RECORDS
    log.rewind(9, 9)
    log.write({"step": 5, "loss": 1.0})
    assert log.read()[-1] == {"step": 5, "loss": 1.0} and len(log.read()) == 7
    Log(log.path.with_name("none")).rewind(0, 0)
    assert Log(log.path.with_name("none")).read() == []


def test_curves(log, tmp_path):
    if not can_draw():
        pytest.skip("matplotlib is not installed")
    path = tmp_path / "curve.png"
    draw_curves(log.read(), path)
    assert path.read_bytes().startswith(b"\x89PNG") and len(path.read_bytes()) > 5000
    draw_curves([], path)
    assert path.read_bytes().startswith(b"\x89PNG") and [p.name for p in tmp_path.iterdir() if "new" in p.name] == []
