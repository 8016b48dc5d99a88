"""A training step of any size: lucid beside transformers' eager form, with recomputation or without."""

from __future__ import annotations

from contextlib import ExitStack

from benchmarks.answers import check
from benchmarks.peers import Setting
from benchmarks.processes import Worker
from benchmarks.report import steps_text
from benchmarks.results import CaseResult, Row
from benchmarks.run import turn_of
from benchmarks.timing import TimeBox, take_turns
from benchmarks.workloads import NO_AIM, Case, Task

_SIDES = ("lucid", "transformers-eager")


def measure(setting: Setting, batch: int, length: int, n_rounds: int, is_recomputed: bool) -> str:
    """Return tables of the parts' times and of the memory at each moment, as Markdown.

    Raises
    ------
    WrongAnswerError
        The two disagree about the loss or the gradient.
    """
    case = Case(f"{batch}x{length}", Task.TRAINING_STEP, (length,) * batch)
    result = CaseResult("W5", "training step", case.label, case.flops(setting.size), NO_AIM)
    result.rows = [Row("W5", case.label, name) for name in _SIDES]
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(name, setting)) for name in _SIDES]
        ours, theirs = (worker.call("prepare_step", batch=batch, length=length, is_recomputed=is_recomputed) for worker in workers)
        check(case.task, ours, theirs)
        turns = {row.peer: turn_of(worker, row) for worker, row in zip(workers, result.rows, strict=True)}
        taken = take_turns(turns, TimeBox(float("inf")), n_rounds)
    for error in taken.failed.values():
        raise error
    return steps_text(result)
