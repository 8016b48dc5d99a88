"""The suite of benchmarks stands beside the package, in the root of the repository."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.checkpoint import checkpoint  # noqa: E402
from benchmarks.peers import Setting  # noqa: E402


@pytest.fixture(scope="session")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    """A small checkpoint that the suite made."""
    cache = tmp_path_factory.mktemp("benchmarks")
    return Setting(checkpoint(cache, "mini"), cache / "peers-mini", 1, "mini")
