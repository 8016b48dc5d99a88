"""CPU kernels: the build of them that suits this machine, as `kernels`.

The same sources are compiled once per instruction set. The best one that the CPU can run is chosen at
import; the environment variable ``LUCID_ISA`` (a name from `_cpu.instruction_sets`) overrides the choice,
and raises where it cannot run.
"""

import importlib
import os
from types import ModuleType

from lucid._ext import _cpu as _cpu


def _choose() -> tuple[str, ModuleType]:
    runnable = _cpu.instruction_sets()
    name = os.environ.get("LUCID_ISA") or runnable[0]
    if name not in runnable:
        raise ImportError(f"LUCID_ISA={name!r} cannot run on this CPU; it can run: {', '.join(runnable)}. Unset LUCID_ISA to use the best.")
    return name, importlib.import_module(f"lucid._ext._kernels_{name}")


instruction_set, kernels = _choose()
"""Name of the instruction set in use, and the module of kernels compiled for it."""

has_openmp: bool = _cpu.has_openmp()
