"""One peer in a process of its own: it reads requests, a line of JSON each, and answers them likewise.

    python -m benchmarks.worker PEER < requests > answers

``reference`` and ``reference-numpy`` are peers here, too. Whatever libraries print goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import peers
from benchmarks.timing import CLOCKS
from benchmarks.training import first_step, timed_step
from benchmarks.workloads import Case, Task, find

# Calls that are shorter than this are repeated within a turn.
TURN_SECONDS = 0.3
MOST_CALLS = 10
# The first calls of a turn find caches as others left them: they are not counted if they are short.
SHORT_SECONDS = 0.15


class Session:
    """A peer, and what it was last asked to prepare."""

    def __init__(self, name: str, setting: peers.Setting) -> None:
        self.name = name
        self.setting = setting
        self.peer = self._make(name)
        self.clock = CLOCKS[setting.clock]
        self.run: Any = None
        self.task = Task.LOGITS

    def _make(self, name: str) -> Any:
        if name == "reference":
            return peers.peer("transformers").load().Reference(name, self.setting)
        if name == "reference-numpy":
            return peers.peer("numpy").load().Reference(name, self.setting)
        return peers.peer(name).make(self.setting)

    def prepare(self, workload: str, case: str, is_quick: bool) -> dict[str, Any]:
        """Load what a case needs."""
        found = find(workload, case, is_quick)
        self.run = None
        self.task = found.task
        self.run = getattr(self.peer, self.task.value)(found)
        return {}

    def prepare_step(self, batch: int, length: int, is_recomputed: bool) -> dict[str, Any]:
        """Load what a training step of any size needs, check it alone, and take the first."""
        self.task = Task.TRAINING_STEP
        self.run = self.peer.training_step(Case(f"{batch}x{length}", self.task, (length,) * batch))
        if is_recomputed:
            self.run.recompute()
        return first_step(self.run)

    def answer(self, path: str) -> dict[str, Any]:
        """Answer once and write it to a file; later calls are warm."""
        if self.task is Task.TRAINING_STEP and hasattr(self.run, "check"):
            answer = self.run.check() if self.name.startswith("reference") else first_step(self.run)
        else:
            answer = self.run()
        np.savez(path, allow_pickle=False, **{key: np.asarray(value) for key, value in answer.items()})
        return {}

    def turn(self) -> dict[str, Any]:
        """Make some calls and return their seconds."""
        if self.task is Task.TRAINING_STEP:
            parts, marks = timed_step(self.run, self.clock)
            return {"seconds": [sum(parts.values())], "parts": parts, "marks": marks}
        seconds: list[float] = []
        is_first = True
        while not seconds or (sum(seconds) < TURN_SECONDS and len(seconds) < MOST_CALLS):
            begin = self.clock()
            answer = self.run()
            taken = self.clock() - begin
            del answer
            if not (is_first and taken < SHORT_SECONDS):
                seconds.append(taken)
            is_first = False
        return {"seconds": seconds}

    def pools(self) -> dict[str, Any]:
        """Return the sizes of the thread pools that can be seen from outside; none without threadpoolctl."""
        if peers.version("threadpoolctl") is None:
            return {"pools": []}
        from threadpoolctl import threadpool_info

        found = [{"library": Path(pool["filepath"]).name.split("-")[0], "threads": pool["num_threads"]} for pool in threadpool_info()]
        return {"pools": found}

    def cold_program(self, name: str) -> dict[str, Any]:
        """Return the program of a peer's cold start; what it reads is made where it is missing."""
        return {"program": peers.peer(name).load().cold_start(name, self.setting)}

    def kernels(self, seconds: float) -> dict[str, Any]:
        """Time lucid's kernels one by one."""
        from benchmarks.kernels import time_kernels

        return {"kernels": time_kernels(self.setting, seconds, self.clock)}


def serve(make: Callable[[str, peers.Setting], Any]) -> None:
    """Let methods of what `make` returns answer requests until standard input ends; it is made with the first, which may fail."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries may print
    begin = json.loads(sys.stdin.readline())
    setting = peers.Setting(Path(begin["folder"]), Path(begin["cache"]), begin["n_threads"], begin["size"], begin["clock"])
    session: Any = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if session is None:
                session = make(sys.argv[1], setting)
            result = getattr(session, request.pop("do"))(**request)
        except Exception as error:
            result = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(result), file=answers)


if __name__ == "__main__":
    serve(Session)
