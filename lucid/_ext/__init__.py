"""CPU kernels: the build of them that suits this machine, as `kernels`.

The same sources are compiled once per instruction set. The best one that the CPU can run is chosen at
import; the environment variable ``LUCID_ISA`` (a name from `_cpu.instruction_sets`) overrides the choice,
and raises where it cannot run.
"""

import importlib
import os
from pathlib import Path
from types import ModuleType

try:
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
    return name, importlib.import_module(f"lucid._ext._kernels_{name}")


instruction_set, kernels = _choose()
"""Name of the instruction set in use, and the module of kernels compiled for it."""

has_openmp: bool = _cpu.has_openmp()
