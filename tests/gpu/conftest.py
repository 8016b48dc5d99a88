"""The emulated GPU as a fixture, and what tests that need a real one say where there is none."""

from collections.abc import Iterator

import pytest

from gpu.emulator import Emulator, has_compiler
from lucid._gpu import runtime

_emulators: list[Emulator] = []


@pytest.fixture
def emulated(request: pytest.FixtureRequest) -> Iterator[Emulator]:
    """An emulated GPU in CuPy's place."""
    if not has_compiler():
        pytest.skip("the emulator wants a g++")
    if not _emulators:
        _emulators.append(Emulator(request.config.cache.mkdir("emulated_kernels")))
    emulator = _emulators[0]
    before = runtime.set_backend(emulator)
    yield emulator
    emulator.is_reversed = False
    runtime.set_backend(before)
