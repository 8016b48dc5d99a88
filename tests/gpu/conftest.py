"""The emulated GPU as a fixture, a real one too, and what tests say where there is none."""

import os
from collections.abc import Iterator
from typing import Any

import pytest

from gpu.emulator import Emulator, has_compiler
from lucid._gpu import libraries, runtime

_emulators: list[Emulator] = []
IS_REQUIRED = os.environ.get("LUCID_REQUIRE_GPU", "0") == "1"


def missing_gpu() -> str | None:
    """Return why there is no GPU here, or None."""
    try:
        runtime.status()
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


def real_gpu() -> Any:
    """Return CuPy's runtime; skip without a GPU, or fail if ``LUCID_REQUIRE_GPU=1``."""
    why = missing_gpu()
    if why is not None:
        (pytest.fail if IS_REQUIRED else pytest.skip)(f"no GPU here: {why}")
    return runtime.backend()


@pytest.fixture
def emulated(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    """An emulated GPU in CuPy's place."""
    if not has_compiler():
        pytest.skip("the emulator wants a g++")
    if not _emulators:
        cache = getattr(request.config, "cache", None)
        _emulators.append(Emulator(tmp_path_factory.mktemp("kernels") if cache is None else cache.mkdir("emulated_kernels")))
    emulator = _emulators[0]
    emulator.xp.n_free = emulator.xp.n_bytes
    before = runtime.set_backend(emulator)
    yield emulator
    emulator.is_reversed = False
    runtime.set_backend(before)


@pytest.fixture(autouse=True)
def no_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without NVIDIA's libraries, whatever the environment asks for; what is tested here is lucid's own."""
    monkeypatch.delenv(libraries.SWITCH, raising=False)


@pytest.fixture
def gpu() -> Any:
    """A real GPU."""
    return real_gpu()


@pytest.fixture(params=["emulated", "gpu"])
def device(request: pytest.FixtureRequest) -> Any:
    """The emulated GPU, then the real one."""
    return request.getfixturevalue(request.param)
