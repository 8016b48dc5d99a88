"""How many threads a kernel may use.

The answer changes no result: every kernel gives the same bits for any number of threads.
"""

import math
import os
from collections.abc import Callable
from pathlib import Path

from lucid import _ext
from lucid._ext import _cpu

# A parallel region costs some microseconds: below this many elements one thread is faster.
GRAIN = 1 << 14

_chosen: int | None = None
_is_forked_child = False


def _cgroup_cpus() -> int | None:
    """CPUs that the control group's quota allows (v2, then v1), or None without a quota."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us").read_text().strip()
            period = Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    try:
        return max(1, math.ceil(int(quota) / int(period))) if int(quota) > 0 else None
    except ValueError:  # "max": no quota
        return None


_cgroup_limit = _cgroup_cpus()


def in_forked_child(action: Callable[[], None]) -> None:
    """Have `action` run in every child that this process forks, before anything else."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=action)


def _use_one_thread() -> None:
    # GCC's OpenMP runtime does not survive fork: its threads are gone, and it waits for them for ever.
    global _is_forked_child
    _is_forked_child = True


in_forked_child(_use_one_thread)


def set_num_threads(n: int | None) -> None:
    """Set the number of threads of every kernel, for the whole process.

    Parameters
    ----------
    n : int, >= 1, or None
        None returns to the default: the smallest of ``OMP_NUM_THREADS`` (or what threadpoolctl set), the
        CPUs that this process may run on, and the control group's CPU quota.

    Raises
    ------
    TypeError
        `n` is not an integer.
    ValueError
        `n` is smaller than 1.

    Notes
    -----
    Results do not depend on it, to the bit. A process that was forked after lucid was in use has one thread,
    whatever is set here.
    """
    global _chosen
    if n is not None:
        if isinstance(n, bool) or not hasattr(n, "__index__"):
            raise TypeError(f"set_num_threads wants an integer or None, not {type(n).__name__}")
        n = n.__index__()
        if not 1 <= n <= 1024:
            raise ValueError(f"set_num_threads wants 1 to 1024 threads, not {n}")
    _chosen = n


def get_num_threads() -> int:
    """Return the number of threads that a large kernel uses now."""
    if _is_forked_child or not _ext.has_openmp:
        return 1
    if _chosen is not None:
        return _chosen
    n: int = _cpu.openmp_threads()
    if hasattr(os, "sched_getaffinity"):
        n = min(n, len(os.sched_getaffinity(0)))
    return min(n, _cgroup_limit) if _cgroup_limit else n


def threads_for(n_elements: int) -> int:
    """Return the threads for a kernel over `n_elements` elements: 1 where a parallel region costs more than it saves."""
    return 1 if n_elements < GRAIN else get_num_threads()


def show_config() -> None:
    """Print version, instruction set, threads and dependencies: the first thing to look at, and to put in a report."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import numpy as np

    from lucid.device import gpu_status

    def installed(package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError:
            return "not installed"

    rows = {
        "lucid": installed("lucid-bert"),
        "instruction set": f"{_ext.instruction_set} (this CPU can run: {', '.join(_cpu.instruction_sets())})",
        "threads": f"{get_num_threads()} ({'OpenMP' if _ext.has_openmp else 'built without OpenMP'}; CPUs {os.cpu_count()}, "
        f"control group {_cgroup_limit or 'no quota'}, OMP_NUM_THREADS {os.environ.get('OMP_NUM_THREADS', 'not set')})",
        "gpu": gpu_status(),
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "numpy": np.__version__,
        "tokenizers": installed("tokenizers"),
        "safetensors": installed("safetensors"),
    }
    width = max(map(len, rows))
    print("\n".join(f"{name:<{width}}  {value}" for name, value in rows.items()))
