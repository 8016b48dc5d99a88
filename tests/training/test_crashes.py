"""A save that is stopped before any of its system calls, or of which any call fails: no checkpoint is lost or mixed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_every_system_call_of_a_save(tmp_path):
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    may_attach = subprocess.run(["strace", "-e", "trace=none", "true"], capture_output=True, text=True)
    if may_attach.returncode:
        pytest.skip(f"strace cannot trace here: {may_attach.stderr.strip()}")
    script = Path(__file__).with_name("crash_points.py")
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run([sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    print("\n", json.dumps(found, indent=1))
    results = found["results"]
    assert found["calls"]["write"] >= 7 and found["calls"]["fsync"] >= 9 and found["calls"]["rename"] >= 2
    for way, count in results.items():
        for bad in ("LOST", "MIXED", "UNSWEPT", "WRONG END"):
            assert not count.get(bad), (way, count)
    n_calls = sum(found["calls"].values())
    assert results["SIGKILL"]["points"] == results["SIGKILL"]["killed"] == n_calls
    assert results["SIGKILL"]["old"] and results["SIGKILL"]["new"]
    assert results["ENOSPC"]["refused"] and results["EIO"]["refused"] and results["RLIMIT_FSIZE"]["old"] == 20
    assert results["a write that wrote nothing, and says 1 byte"]["refused"] == found["calls"]["write"]
