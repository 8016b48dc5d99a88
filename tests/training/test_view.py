"""What a run shows: a bar on a terminal, plain lines elsewhere."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

from lucid.training.evaluate import Estimate, Evaluation
from lucid.training.trainer import Step
from lucid.training.view import View, describe, duration, progress_view

from .test_pretrain import flags

ROOT = Path(__file__).resolve().parents[2]


def test_plain_lines(capsys, monkeypatch):
    clock = iter([0.0, 1.0, 2.0, 11.5, 12.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    view = View(10, 6)
    for step, loss in ((7, 3.0), (8, 1.0), (9, 1.0), (10, 1.0)):
        view.step(Step(step, 0, loss, 1e-3, 1.0, 100, 10))
    view.close()
    lines = capsys.readouterr().err.splitlines()
    # The first, one after ten seconds, the last.
    assert lines == [
        "step 7 of 10  loss 3.0000  100 tokens/s  3 s left",
        "step 9 of 10  loss 2.8050  26 tokens/s  4 s left",
        "step 10 of 10  loss 2.7147  33 tokens/s  0 s left",
    ]
    with progress_view("tokenise", 100) as progress:
        progress(50, 7)
    assert capsys.readouterr().err == ""


def test_words():
    estimate = Estimate(0.5, 0.25, 0.75)
    assert describe(Evaluation(estimate, Estimate(3.0, 2.0, 4.0), estimate, 1234, 5)) == (
        "validation perplexity 3.00 (2.00 to 4.00), accuracy 0.5000 (0.2500 to 0.7500), 1,234 masked words"
    )
    assert [duration(s) for s in (3, 89, 600, 7200)] == ["3 s", "89 s", "10 min", "2.0 h"]


def test_a_terminal(options, materials):
    """A bar that moves, with lines above it that stay; standard output stays empty."""
    main, terminal = pty.openpty()
    arguments = [*flags(options), "--validation", str(materials / "validation.txt"), "--eval-every", "8"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "120"}
    command = [sys.executable, "-m", "lucid.cli", "pretrain", *arguments]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=terminal) as process:
        os.close(terminal)
        shown = b""
        while True:
            try:
                chunk = os.read(main, 4096)
            except OSError:  # the other end is closed
                break
            if not chunk:
                break
            shown += chunk
        assert process.wait(timeout=60) == 0 and process.stdout.read() == b""
    os.close(main)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert "━" in text and "100%" in text
    assert re.search(r"step 16 of 16  loss \d\.\d{4}  [\d,]+ tokens/s  0 s left", text)
    assert len(re.findall(r"step \d+: validation perplexity", text)) == 3
    assert "16 steps done" in text


def test_a_run_that_has_nothing_left_to_do(capsys):
    view = View(5, 5)
    view.close()
    assert capsys.readouterr().err == ""
