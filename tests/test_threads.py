"""Threads and instruction sets: who decides, what survives a fork, and that no result depends on either."""

import hashlib
import importlib
import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import CASES, Case, attention, decoder_top_k, linear

from lucid import _ext, threads
from lucid._ext import _cpu
from lucid.threads import get_num_threads, set_num_threads, threads_for

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def _default_threads() -> Iterator[None]:
    yield
    set_num_threads(None)


def _outputs(case: Case) -> list[Any]:
    result = case.build(np.random.default_rng(1)).run(case.op)
    return list(result) if isinstance(result, tuple) else [result]


def _hash_of_everything() -> str:
    """Of the results of every case, with as many threads as are set."""
    digest = hashlib.sha256()
    for case in CASES:
        for array in _outputs(case):
            digest.update(array.tobytes())
    return digest.hexdigest()


def _python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
    base = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "LUCID_ISA")}
    return subprocess.run(
        [sys.executable, "-c", code], env={**base, "PYTHONPATH": path, **environment}, capture_output=True, text=True, timeout=120
    )


def _printed(code: str, **environment: str) -> str:
    done = _python(code, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# The number


@pytest.mark.parametrize("n", [1, 2, 3, 1024, np.int64(5)])
def test_the_number_that_is_set_is_used(n: int) -> None:
    set_num_threads(n)
    assert get_num_threads() == n
    assert threads_for(threads.GRAIN) == n
    assert threads_for(threads.GRAIN - 1) == 1
    set_num_threads(None)
    assert get_num_threads() >= 1


@pytest.mark.parametrize(("n", "error"), [*((n, ValueError) for n in (0, -1, 1025)), *((n, TypeError) for n in (1.0, "2", True, [1]))])
def test_a_number_that_is_none_is_refused(n: Any, error: type[Exception]) -> None:
    set_num_threads(3)
    with pytest.raises(error, match="set_num_threads"):
        set_num_threads(n)
    assert get_num_threads() == 3


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": ""}, None),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_the_quota_of_the_control_group(files: dict[str, str], cpus: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(threads, "Path", lambda path: Path(path.replace("/sys/fs/cgroup", str(tmp_path))))
    assert threads._cgroup_cpus() == cpus


def test_the_quota_limits_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_cgroup_limit", 1)
    assert get_num_threads() == 1
    monkeypatch.setattr(threads, "_cgroup_limit", 4096)
    assert get_num_threads() == _cpu.openmp_threads()


@pytest.mark.parametrize("n", [1, 2, 3, 64])
def test_omp_num_threads_is_respected_up_to_the_cpus_of_the_process(n: int) -> None:
    usable = min(n, len(os.sched_getaffinity(0)), threads._cgroup_limit or n)
    assert _printed("from lucid.threads import get_num_threads; print(get_num_threads())", OMP_NUM_THREADS=str(n)) == str(usable)


_COUNT = """
import os
import numpy as np
from lucid.ops.linear import linear
from lucid.threads import set_num_threads
set_num_threads({n})
x = np.ones((300, 300), np.float32)
before = len(os.listdir("/proc/self/task"))
linear(x, x)
print(1 + len(os.listdir("/proc/self/task")) - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux") or not _ext.has_openmp, reason="counts the threads in /proc")
@pytest.mark.parametrize("n", [1, 2, 5])
def test_kernels_run_on_as_many_threads_as_are_set(n: int) -> None:
    """Else every test of equal bits for any number of threads would compare one thread with itself."""
    assert _printed(_COUNT.format(n=n)) == str(n)


# Bits


def test_one_hash_for_any_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process with the grain of 0, and in others by OMP_NUM_THREADS with the grain as it is."""
    want = _hash_of_everything()
    code = "from test_threads import _hash_of_everything; print(_hash_of_everything())"
    assert _printed(code, OMP_NUM_THREADS="1", LUCID_ISA=_ext.instruction_set) == want
    assert _printed(code, OMP_NUM_THREADS="2", LUCID_ISA=_ext.instruction_set) == want
    monkeypatch.setattr(threads, "GRAIN", 0)
    for n in (1, 3, 8):
        set_num_threads(n)
        assert _hash_of_everything() == want


def test_two_python_threads_at_once_give_the_same_bits() -> None:
    cases = [case for case in CASES if case.op in (linear, attention, decoder_top_k)]
    want = [[array.tobytes() for array in _outputs(case)] for case in cases]
    results: list[list[list[bytes]]] = [[], []]

    def work(into: list[list[bytes]]) -> None:
        into.extend([array.tobytes() for array in _outputs(case)] for case in cases)

    workers = [threading.Thread(target=work, args=(into,)) for into in results]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert results == [want, want]


# Fork


def _in_child(sender: Any) -> None:
    sender.send((get_num_threads(), _hash_of_everything()))
    sender.close()


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_neither_hangs_nor_changes_a_bit() -> None:
    set_num_threads(2)
    want = _hash_of_everything()  # OpenMP's threads are running now
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_in_child, args=(sender,))
    child.start()
    sender.close()
    try:
        assert receiver.poll(60), "the child hangs"
        assert receiver.recv() == (1, want)
        child.join(60)
        assert child.exitcode == 0
    finally:
        child.kill()
        child.join()
    assert get_num_threads() == 2
    assert _hash_of_everything() == want  # and the parent goes on


# Instruction sets


_ALL_OUTPUTS = """
import sys
import numpy as np
from test_threads import CASES, _outputs
np.savez(sys.stdout.buffer, **{f"{i}.{j}": array for i, case in enumerate(CASES) for j, array in enumerate(_outputs(case))})
"""


@pytest.mark.skipif(len(_cpu.instruction_sets()) < 2, reason="this CPU runs one instruction set only")
def test_instruction_sets_agree(tmp_path: Path) -> None:
    """Within 1e-6 of the largest output of the call; what is no float exactly."""
    results = {}
    for name in _cpu.instruction_sets():
        code = _ALL_OUTPUTS.replace("sys.stdout.buffer", repr(str(tmp_path / name)))
        _printed(code, LUCID_ISA=name)
        with np.load(tmp_path / f"{name}.npz") as arrays:
            results[name] = dict(arrays)
    best, *others = results.values()
    wrong = {}
    for other in others:
        for key, a in best.items():
            difference = np.abs(a.astype(np.float64) - other[key]).max(initial=0)
            allowed = 1e-6 * np.abs(a).max(initial=0) if a.dtype == np.float32 else 0
            if not difference <= allowed:
                wrong[f"{CASES[int(key.split('.')[0])]}, output {key.split('.')[1]}"] = f"{difference:.3g} > {allowed:.3g}"
    assert not wrong


@pytest.mark.parametrize("name", _cpu.instruction_sets())
def test_lucid_isa_chooses(name: str) -> None:
    code = "from lucid import _ext; print(_ext.instruction_set, _ext.kernels.__name__)"
    assert _printed(code, LUCID_ISA=name) == f"{name} lucid._ext._kernels_{name}"


def test_without_lucid_isa_the_best_is_chosen() -> None:
    code = "from lucid import _ext; print(_ext.instruction_set)"
    assert _printed(code) == _printed(code, LUCID_ISA="") == _cpu.instruction_sets()[0]


def test_an_instruction_set_that_cannot_run_is_refused() -> None:
    done = _python("import lucid._ext", LUCID_ISA="nonsense")
    assert done.returncode != 0
    assert "ImportError: LUCID_ISA='nonsense' cannot run on this CPU; it can run: " in done.stderr


def test_builds_have_the_same_entries() -> None:
    builds = [importlib.import_module(f"lucid._ext._kernels_{name}") for name in _cpu.instruction_sets()]
    entries = [{name: getattr(value, "__doc__", None) for name, value in vars(build).items() if callable(value)} for build in builds]
    assert all(entry == entries[0] for entry in entries)


def test_show_config_tells_instruction_set_and_threads(capsys: pytest.CaptureFixture[str]) -> None:
    set_num_threads(3)
    threads.show_config()
    rows = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    assert rows["instruction set"].strip().startswith(_ext.instruction_set)
    assert rows["threads"].strip().startswith("3 ")
