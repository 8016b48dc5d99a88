"""What the machine is, and the most that it can do: fused multiply-adds, and bytes read from memory.

No name of a host, and no path, is recorded.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.processes import environment

_SOURCE = Path(__file__).with_name("peak.c")
# For each of lucid's instruction sets, how the peak is compiled.
_BUILDS = {
    "baseline": ["-DWIDTH=16", "-march=x86-64"],
    "avx2": ["-DWIDTH=32", "-march=x86-64-v3"],
    "avx512": ["-DWIDTH=64", "-march=x86-64-v4"],
    "neon": ["-DWIDTH=16"],
}
_FLAGS = (
    "sse4_2",
    "avx",
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512_vnni",
    "avx512_bf16",
    "amx_tile",
    "asimd",
    "bf16",
    "i8mm",
)
# Much more than any cache.
_BYTES_READ = 1 << 29


def facts(n_threads: int, packages: Sequence[str]) -> dict[str, Any]:
    """Return the processor, threads and versions."""
    from benchmarks.peers import version
    from lucid import _ext
    from lucid._ext import _cpu

    described = _cpu_info()
    flags = described.get("flags", described.get("Features", "")).split()
    return {
        "cpu": described.get("model name", platform.machine()),
        "cpu_family_model": f"{described.get('cpu family', '?')}/{described.get('model', '?')}",
        "flags": [flag for flag in _FLAGS if flag in flags],
        "cpus": len(os.sched_getaffinity(0)),
        "n_threads": n_threads,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "instruction_set": _ext.instruction_set,
        "instruction_sets": list(_cpu.instruction_sets()),
        "lucid_isa": os.environ.get("LUCID_ISA"),
        "versions": {package: version(package) for package in ("lucid-bert", *sorted(set(packages)))},
    }


def _cpu_info() -> dict[str, str]:
    """Return what the system says of the first processor."""
    try:
        text = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}


def load_average() -> float:
    """Return how many processes wanted to run in the last minute: others' work beside this."""
    return round(os.getloadavg()[0], 2)


class Peak:
    """The measured peak of the machine; nothing where there is no gcc.

    Attributes
    ----------
    gflops : for each instruction set, GFLOP/s of all threads
    read_gb_s : float. GB/s of all threads, from memory.
    """

    def __init__(self, instruction_sets: Sequence[str], n_threads: int) -> None:
        self.instruction_sets = [name for name in instruction_sets if name in _BUILDS]
        self.n_threads = n_threads
        self.gflops: dict[str, float] = {}
        self.read_gb_s = 0.0

    @property
    def is_known(self) -> bool:
        """Whether there is a measurement."""
        return bool(self.gflops)

    def measure(self) -> None:
        """Measure, and keep what is higher than before: other work on a machine only ever slows it down."""
        compiler = shutil.which("gcc")
        if compiler is None:
            return
        with tempfile.TemporaryDirectory() as folder:
            for name in self.instruction_sets:
                program = str(Path(folder, name))
                command = [compiler, "-O3", "-fopenmp", "-ffp-contract=fast", *_BUILDS[name], str(_SOURCE), "-o", program]
                if subprocess.run(command, capture_output=True).returncode:
                    continue
                self.gflops[name] = max(self.gflops.get(name, 0.0), self._run(program, "fma"))
                self.read_gb_s = max(self.read_gb_s, self._run(program, "read", str(_BYTES_READ)))

    def _run(self, *command: str) -> float:
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment(self.n_threads))
        return float(done.stdout)

    def share(self, flops: float, seconds: float, instruction_set: str) -> float | None:
        """Return the share of the FMA peak, None where it is not known."""
        peak = self.gflops.get(instruction_set)
        return flops / seconds / 1e9 / peak if peak else None
