import json

import pytest

from benchmarks.aims import Aim, Figures
from benchmarks.report import lines_of, markdown
from benchmarks.results import CaseResult, Results, Row

MACHINE = {
    "cpu": "A CPU",
    "cpu_family_model": "1/2",
    "flags": ["avx2"],
    "cpus": 2,
    "n_threads": 2,
    "memory_gib": 4,
    "system": "Linux",
    "python": "3.11",
    "instruction_set": "avx2",
    "lucid_isa": None,
    "versions": {"numpy": "2"},
}


AIM = Aim(0.75, 0.5, peak=0.9, memory=0.75, memory_of_checkpoint=1.25)


def case() -> CaseResult:
    rows = [
        Row("W1", "8x128", "lucid", [0.4, 0.2, 0.3], 0.01, memory_bytes=600),
        Row("W1", "8x128", "transformers", [0.9, 0.8], 0.02, memory_bytes=1000),
        Row("W1", "8x128", "openvino", [0.25, 0.35, 0.45], 0.02),
        Row("W1", "8x128", "onnxruntime", note="refused, wrong answer: logits | far off"),
    ]
    return CaseResult("W1", "logits", "8x128", 36e9, AIM, rows, 3, 10)


def results(*cases: CaseResult) -> Results:
    return Results(MACHINE, {"avx2": 200.0, "avx512": 400.0}, 20.0, 500, "a reference", list(cases))


def test_ratios_are_of_minima_and_the_peak_is_that_of_the_kernels_in_use() -> None:
    figures = results().figures(case())
    assert figures.best_peer == pytest.approx(0.2 / 0.25)
    assert figures.transformers == pytest.approx(0.2 / 0.8)
    assert figures.peak == pytest.approx(36 / 0.2 / 200)
    assert figures.seconds == 0.3
    assert figures.memory == pytest.approx(0.6)
    assert figures.memory_of_checkpoint == pytest.approx(1.2)
    assert case().best_peer.peer == "openvino"


def test_verdicts() -> None:
    aim = Aim(0.75, 0.5, peak=0.9, seconds=0.5)
    assert list(aim.verdicts(Figures(0.75, 0.51, 0.9, None)).values()) == [True, False, True, None]
    assert list(aim.verdicts(Figures(0.76, 0.5, 0.89, 0.4)).values()) == [False, True, False, True]
    assert str(aim) == (
        "at most 0.75 of the best peer's time; at most 0.5 of transformers' time; at least 90% of the FMA peak; at most 0.5 s"
    )


def test_a_refused_peer_is_never_the_best_and_is_shown() -> None:
    one = case()
    one.rows[2].seconds, one.rows[2].note = [], "refused, wrong answer: bf16"
    text = markdown(results(one))
    assert one.best_peer.peer == "transformers"
    assert "refused, wrong answer: bf16" in text
    assert "refused, wrong answer: logits / far off" in text  # a bar would break the table
    assert any("bf16" in line for line in lines_of(results(one)))


def test_without_lucid_there_is_no_figure_and_the_run_is_wrong() -> None:
    one = case()
    one.rows[0].seconds, one.rows[0].note = [], "refused, wrong answer: logits"
    assert results().figures(one) == Figures()
    assert [row.peer for row in results(one).wrong(["lucid"])] == ["lucid"]
    assert set(one.aim.verdicts(results().figures(one)).values()) == {None}
    assert "refused" in markdown(results(one))


def test_the_table_says_what_was_found() -> None:
    text = markdown(results(case()))
    row = next(line for line in text.splitlines() if line.startswith("| W1 |"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:7] == ["W1", "8x128", "200 ms", "openvino 250 ms", "0.80", "0.25", "90%"]
    assert cells[-1] == "no, yes, yes, yes, yes"
    assert "avx512 400" in text


def test_json_holds_the_numbers_and_what_is_drawn_from_them() -> None:
    data = json.loads(json.dumps(results(case()).as_json()))
    (one,) = data["cases"]
    assert one["rows"][0]["seconds"] == [0.4, 0.2, 0.3]
    assert one["figures"]["best_peer"] == pytest.approx(0.8)
    assert one["best_peer"] == "openvino"
    assert list(one["verdicts"].values()) == [False, True, True, True, True]


def test_without_a_measured_peak_nothing_is_said_of_it() -> None:
    found = results(case())
    found.peak_gflops, found.read_gb_s = {}, 0.0
    found.kernels = [{"name": "linear", "label": "1 x 1", "flops": 2.0, "n_bytes": 4.0, "seconds": 1e-6}]
    assert found.figures(found.cases[0]).peak is None
    assert "the FMA peak was not measured" in markdown(found)
