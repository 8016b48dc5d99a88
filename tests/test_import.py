"""`import lucid` leaves the process as it was."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lucid._ext import has_openmp

ROOT = Path(__file__).resolve().parents[1]

_CODE = """
import os, signal, sys, threading, warnings
import numpy as np
import tokenizers

def state():
    tiny = np.float32(1e-40)  # a subnormal number: lost where a library told the CPU to flush them to zero
    return {
        "environment": dict(os.environ),
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "subnormal": (float(tiny * np.float32(0.5)), float(np.float32(1e-30) * np.float32(1e-10))),
        "threads": (len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 0, threading.active_count()),
        "warnings": list(warnings.filters),
        "numpy errors": np.geterr(),
        "folder": os.getcwd(),
        "path": list(sys.path),
    }

before = state()
import lucid, lucid.models, lucid.optim, lucid.cli
after = state()
print([name for name in before if before[name] != after[name]], before["subnormal"][0] > 0 and before["subnormal"][1] > 0)
"""


def test_nothing_of_the_process_is_changed() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "LUCID_ISA"}
    done = subprocess.run([sys.executable, "-c", _CODE], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[] True", done.stdout + done.stderr


def test_sources_without_kernels_say_so(tmp_path: Path) -> None:
    package = tmp_path / "lucid"
    shutil.copytree(ROOT / "lucid", package, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", "import lucid.models"], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "the kernels are not built: run `pip install -e .` there, or start Python in another folder" in done.stderr


@pytest.mark.skipif(not has_openmp or sys.platform != "linux", reason="built without OpenMP, or not with GCC's")
@pytest.mark.parametrize(("said", "found"), [({}, "3000"), ({"GOMP_SPINCOUNT": "77"}, "77"), ({"OMP_WAIT_POLICY": "active"}, None)])
def test_waiting_threads_soon_sleep(said: dict[str, str], found: str | None) -> None:
    """libgomp prints what it has read."""
    spoken = {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}
    environment = {name: value for name, value in os.environ.items() if name not in spoken} | said | {"OMP_DISPLAY_ENV": "verbose"}
    done = subprocess.run([sys.executable, "-c", "import lucid.models"], env=environment, capture_output=True, text=True, timeout=60)
    count = re.search(r"GOMP_SPINCOUNT = '(\d+)'", done.stderr)
    if count is None:
        pytest.skip("this OpenMP is not GCC's")
    assert count[1] == found if found else count[1] != "3000"
