"""Running workloads: the reference answers, each peer's answer is checked against it, and then they take turns."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.answers import WrongAnswerError, check
from benchmarks.machine import Peak, load_average
from benchmarks.peers import Peer, Setting, version
from benchmarks.processes import PeerError, Worker, run_cold
from benchmarks.results import OURS, CaseResult, Results, Row
from benchmarks.timing import TimeBox, take_turns
from benchmarks.training import MB
from benchmarks.workloads import TOP_K, Case, Task, Workload

ROUNDS = 10
COLD_ROUNDS = 10
KERNEL_SECONDS = 60
# Threads of one peer may go on spinning for a while after its call; the next one waits that out.
PAUSE_SECONDS = 0.05
Say = Callable[[str], None]


class Run:
    """One run of the suite.

    Parameters
    ----------
    peers : list of Peer
    setting : Setting
    box : TimeBox
    results : Results. Filled while it goes on.
    is_quick : bool
    say : function that is told what is going on
    """

    def __init__(self, peers: Sequence[Peer], setting: Setting, box: TimeBox, results: Results, is_quick: bool, say: Say) -> None:
        self.peers = peers
        self.setting = setting
        self.box = box
        self.results = results
        self.is_quick = is_quick
        self.say = say
        self.reference = "reference" if version("torch") and version("transformers") and not is_quick else "reference-numpy"
        results.reference = "transformers, float32" if self.reference == "reference" else "the suite's own NumPy BERT, float64"

    def workloads(self, workloads: Sequence[Workload], peak: Peak) -> None:
        """Run workloads; the machine's peak is measured again after each."""
        left = sum(one.weight for one in workloads)
        for workload in workloads:
            box = self.box.share(workload.weight, left)
            left -= workload.weight
            if self.box.remaining == 0:
                self.results.left_out.append(f"{workload.name}: the time box of {self.box.seconds:.0f} s was empty")
                continue
            self.say(f"{workload.name}: {workload.title}")
            peers = [one for one in self.peers if workload.name in one.workloads]
            (self._cold if workload.cases[0].task is Task.COLD_START else self._warm)(workload, peers, box)
            peak.measure()

    def kernels(self, peak: Peak) -> None:
        """Time lucid's kernels one by one."""
        self.say("kernels")
        with Worker(OURS, self.setting) as worker:
            self.results.kernels = worker.call("kernels", seconds=min(KERNEL_SECONDS, self.box.remaining / 4))["kernels"]
        peak.measure()

    def _new_case(self, workload: Workload, case: Case) -> CaseResult:
        result = CaseResult(workload.name, workload.title, case.label, case.flops(self.setting.size), case.aim)
        self.results.cases.append(result)
        return result

    def _warm(self, workload: Workload, peers: Sequence[Peer], box: TimeBox) -> None:
        """Time peers that stay: a process for each, for all cases of the workload."""
        with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
            workers = {one.name: stack.enter_context(Worker(one.name, self.setting)) for one in peers}
            for n_left, case in zip(range(len(workload.cases), 0, -1), workload.cases, strict=True):
                if self.box.remaining == 0:
                    self.results.left_out.append(f"{workload.name} {case.label}: the time box was empty")
                    continue
                own = box.share(1, n_left)
                result = self._new_case(workload, case)
                try:
                    wanted = self._reference_answer(workload.name, case, Path(folder))
                except PeerError as error:
                    self._give_up(result, error)
                    continue
                for one in peers:
                    result.rows.append(self._checked(workers[one.name], workload.name, case, wanted, Path(folder)))
                ready = {row.peer: row for row in result.rows if not row.note}
                turns = take_turns({name: turn_of(workers[name], row) for name, row in ready.items()}, own, 3 if self.is_quick else ROUNDS)
                for name, reason in turns.failed.items():
                    ready[name].seconds, ready[name].note = [], f"failed: {reason}"
                self._finish(result, turns.n_rounds, turns.wanted)

    def _finish(self, result: CaseResult, n_rounds: int, wanted: int) -> None:
        result.n_rounds, result.wanted_rounds, result.load = n_rounds, wanted, load_average()
        if n_rounds < wanted:
            self.results.left_out.append(f"{result.workload} {result.case}: {n_rounds} of {wanted} rounds, for time")
        for row in result.rows:
            self.say(f"  {result.case}, {row.peer}: {row.note or f'{min(row.seconds) * 1e3:.1f} ms'}")

    def _give_up(self, result: CaseResult, error: PeerError) -> None:
        self.results.cases.remove(result)
        self.results.left_out.append(f"{result.workload} {result.case}: there is no reference: {error}")

    def _reference_answer(self, workload: str, case: Case, folder: Path) -> dict[str, Any]:
        with Worker(self.reference, self.setting) as worker:
            worker.call("prepare", workload=workload, case=case.label, is_quick=self.is_quick)
            answer = _answer(worker, folder)
        if case.task is Task.TRAINING_STEP:
            answer["loss_with_dropout"] = answer["loss"]
        return answer

    def _checked(self, worker: Worker, workload: str, case: Case, wanted: dict[str, Any], folder: Path) -> Row:
        """Let a peer prepare a case and answer; return its row, with a note if it is out."""
        row = Row(workload, case.label, worker.name)
        try:
            worker.call("prepare", workload=workload, case=case.label, is_quick=self.is_quick)
            row.error = check(case.task, _answer(worker, folder), wanted)
            row.pools = worker.call("pools")["pools"]
        except WrongAnswerError as error:
            row.note = f"refused, wrong answer: {error}"
        except PeerError as error:
            row.note = f"failed: {error}"
        large = [pool for pool in row.pools if pool["threads"] > self.setting.n_threads]
        if large:
            row.note = f"refused, more than {self.setting.n_threads} threads: {large}"
        return row

    def _cold(self, workload: Workload, peers: Sequence[Peer], box: TimeBox) -> None:
        """Time new processes, one for each call."""
        (case,) = workload.cases
        (text,) = case.texts()
        result = self._new_case(workload, case)
        try:
            with tempfile.TemporaryDirectory() as folder:
                wanted = self._reference_answer(workload.name, case, Path(folder))
        except PeerError as error:
            self._give_up(result, error)
            return
        turns = {}
        for one in peers:
            row = Row(workload.name, case.label, one.name)
            result.rows.append(row)
            try:
                with Worker(one.name, self.setting) as worker:
                    program = worker.call("cold_program", name=one.name)["program"]
                # The first run also brings the files into the page cache.
                _, found = run_cold(program, text, self.setting.n_threads, self.setting.clock)
                row.error = check(case.task, _guesses(found), wanted)
            except WrongAnswerError as error:
                row.note = f"refused, wrong answer: {error}"
            except PeerError as error:
                row.note = f"failed: {error}"
            else:
                turns[one.name] = self._cold_turn(program, text, row)
        taken = take_turns(turns, box, 3 if self.is_quick else COLD_ROUNDS)
        for row in result.rows:
            if row.peer in taken.failed:
                row.note = f"failed: {taken.failed[row.peer]}"
            else:
                row.seconds = taken.seconds.get(row.peer, [])
        self._finish(result, taken.n_rounds, taken.wanted)

    def _cold_turn(self, program: str, text: str, row: Row) -> Callable[[], list[float]]:
        def turn() -> list[float]:
            time.sleep(PAUSE_SECONDS)
            seconds, found = run_cold(program, text, self.setting.n_threads, self.setting.clock)
            row.memory_bytes = max(row.memory_bytes or 0, found["peak_bytes"])
            return [seconds]

        return turn


def _answer(worker: Worker, folder: Path) -> dict[str, Any]:
    path = folder / "answer.npz"
    worker.call("answer", path=str(path))
    with np.load(path) as arrays:
        answer = {name: arrays[name] for name in arrays.files}
    path.unlink()
    return answer


def _guesses(found: dict[str, Any]) -> dict[str, Any]:
    return {"ids": np.array([found["ids"][:TOP_K]]), "scores": np.array([found["scores"][:TOP_K]])}


def turn_of(worker: Worker, row: Row) -> Callable[[], list[float]]:
    """Return the function that lets a peer make some calls, and writes what it finds into its row."""

    def turn() -> list[float]:
        time.sleep(PAUSE_SECONDS)
        found = worker.call("turn")
        for part, seconds in found.get("parts", {}).items():
            row.parts.setdefault(part, []).append(seconds)
        for moment, mb in found.get("marks", {}).items():
            row.marks[moment] = max(row.marks.get(moment, 0.0), mb)
        if row.marks:
            row.memory_bytes = row.marks["peak of the step"] * MB
        row.seconds += found["seconds"]
        return list(found["seconds"])

    return turn
