"""The suite for a GPU, as far as it can be tried without one: floors, comparisons, tables, arguments, and a run on the CPU."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import run as running
from benchmarks.gpu import worker
from benchmarks.gpu.cases import H100, LIBRARIES, ON_REQUEST, OURS, SIDES, Ceilings, arithmetic_floor, cases, n_parameters, serial_floor
from benchmarks.gpu.report import markdown, summary
from benchmarks.gpu.results import CaseResult, Results, Row
from benchmarks.gpu.run import WrongAnswerError, check, distances
from benchmarks.gpu.sides import SEQUENCES_COMPARED, compared
from benchmarks.peers import Setting
from benchmarks.processes import PeerError
from lucid._gpu import runtime

# What a case takes at least


@pytest.mark.parametrize(
    ("name", "arithmetic", "serial"),  # ms, of BERT-base at 790 TFLOP/s and 3.0 TB/s, counted by hand
    [("encoder", 7.24, 9.1), ("scoring", 7.54, 9.4), ("training", 22.6, 27.9)],
)
def test_floors_of_an_h100(name: str, arithmetic: float, serial: float) -> None:
    case = cases()[name]
    assert arithmetic_floor(case, "base", H100) * 1e3 == pytest.approx(arithmetic, rel=0.005)
    assert serial_floor(case, "base", H100) * 1e3 == pytest.approx(serial, rel=0.01)


def test_floors_follow_the_ceilings_and_the_tokens() -> None:
    full, half = cases()["encoder"], cases()["padded"]
    assert arithmetic_floor(full, "base", Ceilings(H100.flops / 2, 1.0)) == 2 * arithmetic_floor(full, "base", H100)
    assert serial_floor(full, "base", Ceilings(1e30, H100.bytes)) == pytest.approx(2.0e-3, rel=0.01)
    assert arithmetic_floor(half, "base", H100) < 0.51 * arithmetic_floor(full, "base", H100)  # padding is no work


def test_the_page_shows_the_floors_and_targets() -> None:
    page = (command.ROOT / "docs" / "gpu.md").read_text()
    for case in cases().values():
        floors = [f"{1e3 * floor(case, 'base', H100):.1f} ms" for floor in (arithmetic_floor, serial_floor)]
        (row,) = (line for line in page.splitlines() if line.startswith("|") and " | ".join(floors) in line)
        assert all(f"{ratio:.2f}" in row for ratio in case.ratios.values())
        assert case.seconds is None or f"| {case.seconds * 1e3:g} ms |" in row


def test_numbers_of_a_model() -> None:
    assert n_parameters("base") == 109_514_298


def test_cases_are_what_they_are_called() -> None:
    assert [case.inputs.n_tokens for case in cases().values()] == [32768, 32768, 16640, 32768]
    assert cases()["training"].inputs.n_asked == 4915
    assert set(cases()["encoder"].sides) == {OURS, "eager", "compile"}
    assert set(cases()["training"].sides) == set(SIDES)
    assert all(set(case.ratios) < set(case.sides) for case in cases().values())
    assert not any(case.ratios or case.seconds for case in cases(is_quick=True).values())


# Whether an answer is right


def test_distances_are_relative_norms() -> None:
    reference = {"hidden": np.array([[3.0, 4.0]]), "loss": 10.0}
    found = distances({"hidden": np.array([[3.0, 4.5]], np.float32), "loss": 10.1, "loss_with_dropout": 9.0}, reference)
    assert found == pytest.approx({"hidden": 0.1, "loss": 0.01, "loss_with_dropout": 0.1})
    with pytest.raises(WrongAnswerError, match="hidden has shape"):
        distances({"hidden": np.zeros((2, 2))}, reference)
    with pytest.raises(WrongAnswerError, match="nothing"):
        distances({}, reference)


@pytest.mark.parametrize(
    ("distance", "is_float32", "is_right"),
    [(1e-5, True, True), (1.1e-5, True, False), (1e-2, False, True), (2.1e-2, False, False), (float("nan"), False, False)],
)
def test_bounds_follow_the_type(distance: float, is_float32: bool, is_right: bool) -> None:
    if is_right:
        check({"hidden": distance}, is_float32)
    else:
        with pytest.raises(WrongAnswerError, match="hidden"):
            check({"hidden": distance}, is_float32)


def test_hidden_states_are_compared_where_there_are_tokens() -> None:
    lengths = tuple(range(1, 101))
    hidden = np.zeros((100, 100, 2), np.float32)
    for b, n in enumerate(lengths):
        hidden[b, :n], hidden[b, n:] = b + 1, np.nan
    found = compared(hidden, lengths)
    assert found[0, 0] == 1 and found[-1, 0] == 100
    assert len(set(found[:, 0])) == SEQUENCES_COMPARED
    assert np.isfinite(found).all()
    assert len(compared(hidden[:3], lengths[:3])) == 6  # a batch smaller than that counts once


# What is drawn from times


def result(**medians: float) -> CaseResult:
    return CaseResult(cases()["training"], [Row(name.replace("_", "-"), [t * 9, t, t]) for name, t in medians.items()])


def test_ratios_are_of_medians_and_aims_are_judged() -> None:
    one = result(lucid=0.032, eager=0.064, compile=0.045)
    assert one.ratio("eager") == 0.5
    assert one.ratio("compile-rows") is None
    assert one.verdicts() == {
        "at most 0.55 of eager": True,
        "at most 0.7 of compile": False,
        "at most 0.8 of compile-rows": None,
        "at most 33 ms": True,
    }
    assert set(result(eager=0.064).verdicts().values()) == {None}


def test_the_table_has_ratios_floors_and_verdicts() -> None:
    results = Results("a GPU", {"numpy": "2", "torch": None}, "base", H100, "a reference", [result(lucid=0.0333, eager=0.0666)])
    results.cases[0].rows.append(Row("compile", note="refused, wrong answer: loss | far off"))
    line = summary(results).splitlines()[-1]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1:6] == ["33.30 ms", "0.98", "0.50", "-", "-"]
    assert cells[7:11] == ["22.62 ms", "27.96 ms", "1.19", "68%"]
    assert cells[12] == "yes, not measured, not measured, no"
    text = markdown(results)
    assert "refused, wrong answer: loss / far off" in text  # a bar would break the table
    assert "790 TFLOP/s" in text and "3.00 TB/s" in text
    assert {len(line.split("|")) for line in text.splitlines() if line.startswith("| training")} == {15, 9}
    data = json.loads(json.dumps(results.as_json()))
    assert data["cases"][0]["ratios"]["eager"] == 0.5
    assert data["cases"][0]["floors"]["serial"] == pytest.approx(0.02796, rel=1e-3)


def test_without_ceilings_there_are_no_floors() -> None:
    results = Results("the CPU", {}, "base", cases=[result(lucid=0.03)])
    assert results.floors(results.cases[0].case) == {}
    assert "30.00 ms" in summary(results)


def test_a_run_is_right_if_lucid_was() -> None:
    results = Results("a GPU", {}, "base")
    assert not results.is_right  # nothing was run
    results.cases = [result(lucid=0.03, eager=0.06)]
    assert results.is_right
    results.cases[0].rows[1].note = "failed"
    assert results.is_right
    results.cases[0].rows.append(Row("lucid-float32", note="refused"))
    assert not results.is_right


@pytest.mark.parametrize(("seconds", "n"), [(1e-12, 50), (0.01, 50), (0.025, 20), (0.4, 3), (9.0, 3)])
def test_a_turn_is_half_a_second_of_calls(seconds: float, n: int) -> None:
    assert worker.calls_in_a_turn(seconds) == n


class Gpu:
    """As much of CuPy as the ceilings need: NumPy, and a clock on which each product takes 4 ms and each copy 5 ms, after one slow one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.n_calls = 0.0, 0
        self.cuda = SimpleNamespace(Event=self.event, get_elapsed_time=lambda a, b: b.at - a.at)
        self.random = SimpleNamespace(standard_normal=lambda shape, dtype: np.ones(shape, dtype))
        self.empty_like, self.arange = np.empty_like, np.arange
        monkeypatch.setattr(runtime, "gemm", lambda a, b, out: self.work(4.0))

    def event(self) -> SimpleNamespace:
        event = SimpleNamespace(synchronize=lambda: None)
        event.record = lambda: setattr(event, "at", self.now)
        return event

    def copyto(self, target: np.ndarray, source: np.ndarray) -> None:
        assert target.nbytes == source.nbytes
        self.work(5.0)

    def work(self, milliseconds: float) -> None:
        self.n_calls += 1
        self.now += milliseconds * (3 if self.n_calls == 1 else 1)


def test_ceilings_are_rates_of_the_fastest_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "dtype_of", lambda name: np.dtype(np.float16))  # NumPy alone has no bfloat16
    found = worker.ceilings(Gpu(monkeypatch), n=64, n_bytes=800, repeats=3)
    assert found.flops == pytest.approx(2 * 64**3 / 4e-3)
    assert found.bytes == pytest.approx(2 * 800 / 5e-3)  # read and written


# The run


class Puppet:
    """A worker that answers at once, what it is told; `wrong` and `failing` are names of sides, and of what they fail at."""

    wrong: tuple[str, ...] = ()
    failing: tuple[tuple[str, str], ...] = ()
    said: ClassVar[list[tuple[str, str]]] = []

    def __init__(self, name: str, setting: Setting, module: str) -> None:
        self.name, self.patience = name, 0.0

    def __enter__(self) -> "Puppet":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def call(self, do: str, **arguments: Any) -> dict[str, Any]:
        self.said.append((self.name, do))
        if (self.name, do) in self.failing:
            raise PeerError("out of memory")
        if do == "answer":
            np.savez(arguments["path"], loss=11.0 if self.name in self.wrong else 10.0)
        if do == "kernels":
            return {"kernels": [["gemm", 3, 0.5]]}
        libraries = ["cudnn: attention"] if self.name == LIBRARIES else []
        return {"seconds": [0.2, 0.1, 0.3], "peak_bytes": 7, "libraries": libraries}


@pytest.fixture
def puppets(monkeypatch: pytest.MonkeyPatch) -> type[Puppet]:
    monkeypatch.setattr(running, "Worker", Puppet)
    for name, value in (("wrong", ()), ("failing", ()), ("said", [])):
        monkeypatch.setattr(Puppet, name, value)
    return Puppet


def ran(setting: Setting) -> tuple[dict[str, Row], Results]:
    results = Results("a GPU", {}, "base")
    run = running.Run(list(SIDES), setting, running.TimeBox(60.0), results, False, lambda text: None)
    run.cases([cases()["scoring"]])
    (case,) = results.cases
    return {row.side: row for row in case.rows}, results


def test_all_that_are_right_take_turns(puppets: type[Puppet], setting: Setting) -> None:
    rows, results = ran(setting)
    assert list(rows) == ["lucid-float32", *SIDES]
    assert all(
        row.median == 0.2 and row.peak_bytes == 7 and row.kernels == [("gemm", 3, 0.5)] for name, row in rows.items() if name in SIDES
    )
    assert rows["lucid-float32"].seconds == []
    assert results.is_right and results.left_out == []
    # Two training steps would not fit: a side answers when the one before has.
    answering = [name for name, do in puppets.said if do == "answer"]
    assert answering[:5] == ["reference", "lucid-float32", "lucid", "eager", "eager-rows"]
    assert set(answering[5:]) == {"compile", "compile-rows"}
    assert "gemm" in markdown(results)


def test_libraries_are_timed_if_they_are_asked_for(puppets: type[Puppet], setting: Setting, tmp_path: Path) -> None:
    arguments = ["--quick", "--cases", "scoring", "--sides", "lucid", "--cache", str(setting.folder.parent), "--out", str(tmp_path)]
    assert command.main(arguments) == 0
    assert (LIBRARIES, "turn") not in puppets.said
    assert command.main([*arguments, "--libraries"]) == 0
    assert (LIBRARIES, "turn") in puppets.said
    text = (tmp_path / "gpu.md").read_text()
    assert f"lucid / {LIBRARIES}" in text
    assert "what libraries did\n\n- cudnn: attention" in text


def test_a_side_that_is_wrong_is_not_timed(puppets: type[Puppet], setting: Setting) -> None:
    puppets.wrong = ("eager", "lucid-float32")
    rows, results = ran(setting)
    assert rows["eager"].note.startswith("refused, wrong answer: loss: 0.1 from the reference")
    assert ("eager", "turn") not in puppets.said
    assert rows["lucid"].seconds
    assert not results.is_right  # one of lucid's was wrong


@pytest.mark.parametrize("at", ["prepare", "answer", "turn"])
def test_a_side_that_fails_says_so_and_the_others_go_on(at: str, puppets: type[Puppet], setting: Setting) -> None:
    puppets.failing = (("compile", at),)
    rows, results = ran(setting)
    assert rows["compile"].note == "failed: out of memory"
    assert rows["compile"].seconds == []
    assert rows["compile-rows"].seconds and results.is_right


def test_without_a_reference_nothing_is_timed(puppets: type[Puppet], setting: Setting) -> None:
    puppets.failing = (("reference", "answer"),)
    rows, _ = ran(setting)
    assert all("there is no reference: out of memory" in row.note for row in rows.values())
    assert not any(do == "turn" for _, do in puppets.said)


def test_kernels_that_cannot_be_seen_are_left_out(puppets: type[Puppet], setting: Setting) -> None:
    puppets.failing = (("lucid", "kernels"),)
    rows, results = ran(setting)
    assert rows["lucid"].seconds and rows["lucid"].kernels == []
    assert results.left_out == ["scoring: the kernels of lucid: out of memory"]


# The command


def test_names_are_taken_in_their_own_order() -> None:
    assert command.chosen("training, encoder", list(cases()), "case") == ["encoder", "training"]
    assert command.chosen(None, ["a", "b"], "side") == ["a", "b"]


@pytest.mark.parametrize("arguments", [["--cases", "decoding"], ["--sides", "lucid,jax"]])
def test_an_unknown_name_is_refused_with_those_there_are(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(arguments) == 2
    assert (
        f"no {arguments[0].strip('-')[:-1]} '{arguments[1].split(',')[-1]}'; there are: {'encoder' if 'cases' in arguments[0] else 'lucid'}"
        in capsys.readouterr().err
    )


def test_the_help_names_every_case_and_side() -> None:
    text = command.parser().format_help()
    assert all(f"\n  {name} " in text for name in (*cases(), *SIDES, *ON_REQUEST))


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert command.main(["--cache", str(tmp_path)]) == 2
    assert "there is no GPU that lucid can use" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []  # nothing was made for nothing


def test_a_run_on_the_cpu(setting: Setting, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    arguments = ["--quick", "--cases", "training", "--sides", "lucid", "--cache", str(setting.folder.parent), "--out", str(out)]
    assert command.main(arguments) == 0
    data = json.loads((out / "gpu.json").read_text())
    assert [one["case"]["name"] for one in data["cases"]] == ["training"]
    for one in data["cases"]:
        assert [row["side"] for row in one["rows"]] == ["lucid-float32", "lucid"]
        assert one["medians"]["lucid"] > 0
        assert one["rows"][0]["seconds"] == []  # compared, not timed
    assert set(data["cases"][0]["rows"][1]["distances"]) == {"loss", "gradient_norm", "loss_with_dropout"}
    assert "lucid" in capsys.readouterr().out


def test_the_exit_code_says_whether_lucid_was_right(puppets: type[Puppet], setting: Setting, tmp_path: Path) -> None:
    arguments = ["--quick", "--cases", "scoring", "--cache", str(setting.folder.parent), "--out", str(tmp_path)]
    assert command.main(arguments) == 0
    puppets.wrong = ("lucid",)
    assert command.main(arguments) == 1
    assert "refused, wrong answer: loss" in (tmp_path / "gpu.md").read_text()


def test_an_empty_time_box_leaves_out_and_says_so(setting: Setting) -> None:
    results = Results("the CPU", {}, "mini")
    running.Run([OURS], setting, running.TimeBox(0.0), results, True, lambda text: None).cases(list(cases(is_quick=True).values()))
    assert [text.split(":")[0] for text in results.left_out] == list(cases())
    assert results.cases == []
