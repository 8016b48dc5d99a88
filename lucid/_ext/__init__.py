"""CPU kernels: the build of them that suits this machine, as `kernels`.

The same sources are compiled once per instruction set. The best one that the CPU can run is chosen at
import; the environment variable ``LUCID_ISA`` (a name from `_cpu.instruction_sets`) overrides the choice,
and raises where it cannot run.
"""

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

# Rounds that a thread of OpenMP spins, waiting for the others, before it sleeps. 3000, some 50 us, outlast what Python does between two
# kernels; libgomp's own 300,000 cost a machine with other work many times what the work does (docs/performance.md).
_SPIN_COUNT = "3000"


@contextmanager
def _short_spin() -> Iterator[None]:
    """Set how long threads spin, for libgomp to read when it is loaded inside, unless the user has said something about it."""
    if "GOMP_SPINCOUNT" in os.environ or "OMP_WAIT_POLICY" in os.environ:
        yield
        return
    os.environ["GOMP_SPINCOUNT"] = _SPIN_COUNT
    try:
        yield
    finally:
        del os.environ["GOMP_SPINCOUNT"]


try:
    with _short_spin():
        from lucid._ext import _cpu as _cpu
except ImportError as error:
    if any(Path(__file__).parent.glob("_cpu.*.so")):  # it is there, and something else is wrong
        raise
    raise ImportError(
        f"lucid is imported from its sources in {Path(__file__).parents[2]}, where the kernels are not built: "
        "run `pip install -e .` there, or start Python in another folder to use the lucid that is installed"
    ) from error


def _choose() -> tuple[str, ModuleType]:
    runnable = _cpu.instruction_sets()
    name = os.environ.get("LUCID_ISA") or runnable[0]
    if name not in runnable:
        raise ImportError(f"LUCID_ISA={name!r} cannot run on this CPU; it can run: {', '.join(runnable)}. Unset LUCID_ISA to use the best.")
    with _short_spin():
        return name, importlib.import_module(f"lucid._ext._kernels_{name}")


instruction_set, kernels = _choose()
"""Name of the instruction set in use, and the module of kernels compiled for it."""

has_openmp: bool = _cpu.has_openmp()
