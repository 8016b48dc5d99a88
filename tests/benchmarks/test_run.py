import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import __main__ as command
from benchmarks.machine import Peak
from benchmarks.peers import Setting, peer, version
from benchmarks.processes import PeerError, Worker, run_cold
from benchmarks.results import Results
from benchmarks.run import Run
from benchmarks.timing import TimeBox
from benchmarks.workloads import find, workloads

ROOT = Path(__file__).resolve().parents[2]


def run(setting: Setting, seconds: float = 60.0) -> Run:
    results = Results({"instruction_set": "avx2"})
    return Run([peer("lucid"), peer("numpy")], setting, TimeBox(seconds), results, True, lambda text: None)


def test_a_right_answer_passes_and_a_wrong_one_is_refused(setting: Setting, tmp_path: Path) -> None:
    case = find("W2", "4x48", is_quick=True)
    one = run(setting)
    wanted = one._reference_answer("W2", case, tmp_path)
    with Worker("lucid", setting) as worker:
        right = one._checked(worker, "W2", case, wanted, tmp_path)
        wanted["hidden"][3, 47, 5] += 0.01 * np.abs(wanted["hidden"]).max()
        wrong = one._checked(worker, "W2", case, wanted, tmp_path)
    assert right.note == ""
    assert 0 <= right.error < 1
    assert wrong.note.startswith("refused, wrong answer: hidden")
    assert wrong.error is None
    assert wrong.seconds == []


def test_a_peer_with_too_many_threads_is_refused(setting: Setting, tmp_path: Path) -> None:
    if version("threadpoolctl") is None:
        pytest.skip("threadpoolctl is not installed: pools are not seen")
    case = find("W2", "1x16", is_quick=True)
    one = run(setting)
    wanted = one._reference_answer("W2", case, tmp_path)
    with Worker("numpy", Setting(setting.folder, setting.cache, 2, "mini")) as worker:
        row = one._checked(worker, "W2", case, wanted, tmp_path)
    if not row.pools or max(pool["threads"] for pool in row.pools) < 2:
        pytest.skip("NumPy's BLAS has one thread here")
    assert row.note.startswith("refused, more than 1 threads")


def test_a_peer_that_fails_says_why(setting: Setting) -> None:
    with Worker("numpy", setting) as worker:
        with pytest.raises(PeerError, match="AttributeError: 'NumpyPeer' object has no attribute 'training_step'"):
            worker.call("prepare", workload="W5", case="2x32", is_quick=True)
        worker.call("prepare", workload="W2", case="1x16", is_quick=True)  # it is still there
        worker.process.kill()
        with pytest.raises(PeerError, match="its process ended with -9"):
            worker.call("turn")


def test_a_peer_that_does_not_answer_is_given_up(setting: Setting) -> None:
    with Worker("numpy", setting, patience=0.0) as worker, pytest.raises(PeerError, match="no answer within 0 s"):
        worker.call("prepare", workload="W2", case="1x16", is_quick=True)


def test_a_cold_program_that_fails_says_why() -> None:
    with pytest.raises(PeerError, match="ended with 1: ValueError: no such model"):
        run_cold("raise ValueError('no such model')", "a [MASK]", 1)


def test_cold_memory_is_the_programs_own() -> None:
    seconds, small = run_cold("IDS, SCORES = [1], [0.5]", "a [MASK]", 1)
    # What is reserved and never touched is no memory.
    program = "import mmap\nm = mmap.mmap(-1, 10**9)\nIDS, SCORES = [len(bytearray(100_000_000))], [0.5]"
    _, large = run_cold(program, "a [MASK]", 1)
    assert seconds > 0
    assert 100e6 < large["peak_bytes"] - small["peak_bytes"] + 1e6 < 110e6


def test_an_empty_time_box_leaves_out_and_says_so(setting: Setting) -> None:
    one = run(setting, seconds=0.0)
    one.workloads(workloads(is_quick=True), Peak([], 1))
    assert one.results.cases == []
    assert [text.split(":")[0] for text in one.results.left_out] == [w.name for w in workloads()]


def test_a_box_that_runs_out_within_a_workload_leaves_out_its_other_cases(setting: Setting) -> None:
    one = run(setting)
    (workload,) = (w for w in workloads(is_quick=True) if w.name == "W2")
    one.box = TimeBox(0.0)
    one._warm(workload, one.peers, TimeBox(60.0))
    assert one.results.cases == []
    assert one.results.left_out == ["W2 1x16: the time box was empty", "W2 4x48: the time box was empty"]


def test_a_small_time_box_cuts_rounds_and_says_so(setting: Setting) -> None:
    one = run(setting)
    (workload,) = (w for w in workloads(is_quick=True) if w.name == "W3a")
    one._warm(workload, one.peers, TimeBox(0.0))
    (case,) = one.results.cases
    assert (case.n_rounds, case.wanted_rounds) == (2, 3)
    assert one.results.left_out == ["W3a 1 sentence: 2 of 3 rounds, for time"]


def test_the_quick_run(setting: Setting, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", "--cache", str(setting.folder.parent), "--out", str(out)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    data = json.loads((out / "results.json").read_text())
    assert [case["workload"] for case in data["cases"]] == ["W1", "W1", "W2", "W2", "W3a", "W3b", "W4", "W5", "W7"]
    for case in data["cases"]:
        for row in case["rows"]:
            assert row["note"] == ""
            assert row["error"] < 1
            assert min(row["seconds"]) > 0
        assert [row["peer"] for row in case["rows"]] == (["lucid"] if case["workload"] in ("W5", "W7") else ["lucid", "numpy"])
    text = (out / "results.md").read_text()
    assert str(ROOT) not in text + (out / "results.json").read_text()
    assert "W3b" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--peers", "tensorflow"], "no peer 'tensorflow'; there are: lucid, transformers"),
        (["--workloads", "W1,W6"], "no workload 'W6'; there are: W1, W2"),
    ],
)
def test_names_that_are_unknown(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(arguments) == 2
    assert said in capsys.readouterr().err


def test_help_names_every_peer_and_workload() -> None:
    text = command.parser().format_help()
    for name in ("openvino-rows", "torch-compile", "W3b", "kernels", "--minutes", "LUCID_ISA"):
        assert name in text


def test_without_a_reference_a_case_is_left_out(setting: Setting, tmp_path: Path) -> None:
    broken = Setting(tmp_path, setting.cache, 1, "mini")  # a folder without a checkpoint
    one = run(broken)
    one.workloads([w for w in workloads(is_quick=True) if w.name in ("W3a", "W7")], Peak([], 1))
    assert one.results.cases == []
    assert [text.split(": there is no reference")[0] for text in one.results.left_out] == ["W3a 1 sentence", "W7 1 sentence"]
