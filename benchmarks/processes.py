"""Starting workers and cold programs, and talking to them."""

from __future__ import annotations

import json
import os
import resource
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.peers import Setting

ROOT = Path(__file__).resolve().parent.parent
# The environment may name a BLAS kernel for another machine; numpy and others are to pick their own. And an installed package
# has its bytecode, so the sources here are to keep theirs.
_FORGOTTEN = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "PYTHONDONTWRITEBYTECODE")
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")


class PeerError(Exception):
    """A peer could not do what it was asked, or its process ended."""


def environment(n_threads: int) -> dict[str, str]:
    """Return the environment of every process: all thread pools have one size."""
    kept = {name: value for name, value in os.environ.items() if name not in _FORGOTTEN}
    kept["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), kept.get("PYTHONPATH"))))
    return {**kept, **dict.fromkeys(_THREADS, str(n_threads)), "HF_HUB_OFFLINE": "1"}


def in_own_process(function: Callable[..., None], *arguments: Any) -> None:
    """Call a function of a module in a process of its own: what it needs once is not to stay in memory."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        pool.submit(function, *arguments).result()


class Worker:
    """A peer in a process of its own; see `benchmarks.worker`. To be used in a `with` statement.

    Parameters
    ----------
    name : str
    setting : Setting
    patience : float. Seconds until an answer is given up.
    module : str. What the process runs.
    """

    def __init__(self, name: str, setting: Setting, patience: float = 300.0, module: str = "benchmarks.worker") -> None:
        self.name = name
        self.patience = patience
        self.said = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.said,
            env=environment(setting.n_threads),
            bufsize=0,
        )
        self._send({**asdict(setting), "folder": str(setting.folder), "cache": str(setting.cache)})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _send(self, request: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
        except BrokenPipeError as error:
            raise PeerError(self._last_words()) from error

    def call(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Make a request and return its answer.

        Raises
        ------
        PeerError
            The peer raised an error, its process ended, or nothing came within `patience`.
        """
        self._send({"do": do, **arguments})
        answer = json.loads(self._line())
        if "error" in answer:
            raise PeerError(answer["error"])
        return answer  # type: ignore[no-any-return]

    def _line(self) -> bytes:
        assert self.process.stdout is not None
        end = time.monotonic() + self.patience
        line = b""
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, end - time.monotonic()))
            part = os.read(self.process.stdout.fileno(), 1 << 16) if ready else b""
            if not ready:
                self.process.kill()
                raise PeerError(f"no answer within {self.patience:.0f} s")
            if not part:
                raise PeerError(self._last_words())
            line += part
        return line

    def _last_words(self) -> str:
        code = self.process.wait()
        self.said.seek(0)
        lines = self.said.read().decode(errors="replace").strip().splitlines()
        return f"its process ended with {code}: {lines[-1] if lines else 'it said nothing'}"

    def close(self) -> None:
        """End the process."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.said.close()


_LAST_LINE = """
import json
status = open("/proc/self/status").read()
print(json.dumps({"ids": IDS, "scores": SCORES, "peak_bytes": int(status.split("VmHWM:")[1].split()[0]) * 1024}))
"""


def run_cold(program: str, text: str, n_threads: int, clock: str = "wall", patience: float = 120.0) -> tuple[float, dict[str, Any]]:
    """Run a program in a new process; return the seconds from its start to its end, and what it found.

    Parameters
    ----------
    program : str. Python that reads TEXT and sets IDS and SCORES.
    text : str. With one [MASK].
    n_threads : int
    clock : str, a name in `benchmarks.timing.CLOCKS`
    patience : float. Seconds until it is given up.

    Raises
    ------
    PeerError
        It failed.
    """
    source = f"TEXT = {text!r}\n{program}\n{_LAST_LINE}"
    env = environment(n_threads)
    of_children = clock == "processor"
    begin = _processor_time_of_children() if of_children else time.perf_counter()
    try:
        done = subprocess.run([sys.executable, "-c", source], env=env, capture_output=True, text=True, timeout=patience)
    except subprocess.TimeoutExpired as error:
        raise PeerError(f"no end within {patience:.0f} s") from error
    taken = (_processor_time_of_children() if of_children else time.perf_counter()) - begin
    if done.returncode:
        raise PeerError(f"its process ended with {done.returncode}: {(done.stderr.strip().splitlines() or ['it said nothing'])[-1]}")
    return taken, json.loads(done.stdout.splitlines()[-1])


def _processor_time_of_children() -> float:
    """Return the seconds that children ran which have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
