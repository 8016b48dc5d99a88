"""Options and fixtures of the whole suite."""

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TypeVar

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for `import cases` and `import reference`, whatever the import mode

from lucid import threads
from lucid._ext import _cpu

T = TypeVar("T")
THREAD_COUNTS = (1, 2, 3, 8)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--slow"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20_190_524)


@pytest.fixture
def every_size_is_threaded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let small work use threads as well, and put the default number of threads back."""
    monkeypatch.setattr(threads, "GRAIN", 0)
    yield
    threads.set_num_threads(None)


@pytest.fixture(params=THREAD_COUNTS)
def n_threads(request: pytest.FixtureRequest, every_size_is_threaded: None) -> int:
    threads.set_num_threads(request.param)
    return int(request.param)


@pytest.fixture
def for_each_thread_count(every_size_is_threaded: None) -> Callable[[Callable[[], T]], list[T]]:
    """Return a function that makes the same call with 1, 2, 3 and 8 threads and returns the results."""

    def run(call: Callable[[], T]) -> list[T]:
        results = []
        for n in THREAD_COUNTS:
            threads.set_num_threads(n)
            results.append(call())
        return results

    return run


@pytest.fixture(params=_cpu.instruction_sets())
def kernels(request: pytest.FixtureRequest) -> ModuleType:
    """The kernels as compiled for each instruction set that this CPU can run."""
    return importlib.import_module(f"lucid._ext._kernels_{request.param}")
