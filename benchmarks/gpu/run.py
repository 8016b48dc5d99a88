"""Running the cases: answers are checked against the reference first, then the sides take turns."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.cases import CHECKED, ON_REQUEST, OURS, GpuCase
from benchmarks.gpu.results import CaseResult, Results, Row
from benchmarks.peers import Setting
from benchmarks.processes import PeerError, Worker
from benchmarks.timing import TimeBox, take_turns

ROUNDS = 5
MODULE = "benchmarks.gpu.worker"
SECONDS_FOR_TURNS = 30.0
"""Of a case; what is left after that is for getting the next ones ready, since compiling takes longest."""
BOUNDS = {"hidden": (1e-5, 2e-2), "loss": (1e-5, 2e-2), "gradient_norm": (1e-4, 2e-2), "loss_with_dropout": (0.05, 0.05)}
"""Most relative distance from the reference, in float32 and in bfloat16."""


class WrongAnswerError(Exception):
    """A side answers something else than the reference."""


def distances(answer: Mapping[str, Any], reference: Mapping[str, Any]) -> dict[str, float]:
    """Return for each number or array ||answer - reference|| / ||reference||; a loss with dropout is compared with that without.

    Raises
    ------
    WrongAnswerError
        A shape differs, or there is nothing to compare.
    """
    found = {}
    for name, value in answer.items():
        wanted = np.asarray(reference[name.removesuffix("_with_dropout")], np.float64)
        got = np.asarray(value, np.float64)
        if got.shape != wanted.shape:
            raise WrongAnswerError(f"{name} has shape {got.shape}, the reference {wanted.shape}")
        found[name] = float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))
    if not found:
        raise WrongAnswerError("nothing that can be compared")
    return found


def check(found: Mapping[str, float], is_float32: bool) -> None:
    """Raise WrongAnswerError if a distance is beyond its bound, or no number."""
    for name, distance in found.items():
        bound = BOUNDS[name][0 if is_float32 else 1]
        if not distance <= bound:
            raise WrongAnswerError(f"{name}: {distance:.2g} from the reference, the bound is {bound:g}")


class Run:
    """One run.

    Parameters
    ----------
    sides : list of str. Those that are timed.
    setting : Setting
    box : TimeBox
    results : Results. Filled while it goes on.
    is_quick : bool. On the CPU.
    say : function that is told what is going on
    """

    def __init__(self, sides: Sequence[str], setting: Setting, box: TimeBox, results: Results, is_quick: bool, say: Callable[[str], None]):
        self.sides, self.setting, self.box, self.results, self.is_quick, self.say = sides, setting, box, results, is_quick, say

    def cases(self, some: Sequence[GpuCase]) -> None:
        """Run cases, one after the other, while there is time."""
        with ExitStack() as stack:
            workers: dict[str, Worker] = {}
            for case in some:
                if self.box.remaining == 0:
                    self.results.left_out.append(f"{case.name}: the time box of {self.box.seconds:.0f} s was empty")
                    continue
                self.say(case.title)
                for name in ("reference", *CHECKED, *self._timed(case)):
                    if name not in workers:
                        workers[name] = stack.enter_context(Worker(name, self.setting, module=MODULE))
                self._case(case, workers)

    def _timed(self, case: GpuCase) -> list[str]:
        return [name for name in (*case.sides, *ON_REQUEST) if name in self.sides]

    def _case(self, case: GpuCase, workers: Mapping[str, Worker]) -> None:
        result = CaseResult(case)
        self.results.cases.append(result)
        timed = self._timed(case)
        with tempfile.TemporaryDirectory() as folder:
            answers = self._answers(case, {name: workers[name] for name in ("reference", *CHECKED, *timed)}, Path(folder))
        reference = answers.pop("reference")
        for name, answer in answers.items():
            row = Row(name)
            result.rows.append(row)
            try:
                if isinstance(reference, PeerError):
                    raise WrongAnswerError(f"there is no reference: {reference}")
                if isinstance(answer, PeerError):
                    raise answer
                row.distances = distances(answer, reference)
                # On the CPU lucid knows float32 alone.
                check(row.distances, is_float32=name in CHECKED or (self.is_quick and name.startswith(OURS)))
            except WrongAnswerError as error:
                row.note = f"refused, wrong answer: {error}"
            except PeerError as error:
                row.note = f"failed: {error}"
        self._time([row for row in result.rows if row.side in timed and not row.note], workers, result)
        for row in result.rows:
            self.say(f"  {row.side}: {row.note or (f'{row.median * 1e3:.2f} ms' if row.median else 'right')}")

    def _answers(self, case: GpuCase, workers: Mapping[str, Worker], folder: Path) -> dict[str, Any]:
        """Let all get ready and answer; return answers, or what went wrong.

        One after the other, or two training steps would not fit into the memory; but for those that compile, which take longest.
        """

        def answer(name: str) -> Any:
            path = folder / f"{name}.npz"
            try:
                workers[name].patience = max(1.0, self.box.remaining)
                workers[name].call("prepare", case=case.name, is_quick=self.is_quick)
                workers[name].call("answer", path=str(path))
            except PeerError as error:
                return error
            with np.load(path) as arrays:
                return dict(arrays)

        slow = [name for name in workers if name.startswith("compile")]
        answers = {name: answer(name) for name in workers if name not in slow}
        with ThreadPoolExecutor(max(1, len(slow))) as pool:
            return {**answers, **dict(zip(slow, pool.map(answer, slow), strict=True))}

    def _time(self, rows: Sequence[Row], workers: Mapping[str, Worker], result: CaseResult) -> None:
        def turn_of(row: Row) -> Callable[[], list[float]]:
            def turn() -> list[float]:
                found = workers[row.side].call("turn")
                row.libraries = found.get("libraries", [])
                row.peak_bytes = max(row.peak_bytes or 0, found["peak_bytes"] or 0) or None
                return found["seconds"]  # type: ignore[no-any-return]

            return turn

        box = TimeBox(min(SECONDS_FOR_TURNS, self.box.remaining))
        turns = take_turns({row.side: turn_of(row) for row in rows}, box, 2 if self.is_quick else ROUNDS)
        result.n_rounds = turns.n_rounds
        for row in rows:
            if row.side in turns.failed:
                row.note = f"failed: {turns.failed[row.side]}"
            else:
                row.seconds = turns.seconds[row.side]
        if not self.is_quick:
            self._kernels([row for row in rows if not row.note], workers, result)

    def _kernels(self, rows: Sequence[Row], workers: Mapping[str, Worker], result: CaseResult) -> None:
        for row in rows:
            try:
                row.kernels = [tuple(one) for one in workers[row.side].call("kernels")["kernels"]]
            except PeerError as error:
                self.results.left_out.append(f"{result.case.name}: the kernels of {row.side}: {error}")
