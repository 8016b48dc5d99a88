"""Small work on one thread: it is faster so, and threads change no bit, which tests of their own show."""

from collections.abc import Iterator

import pytest

import lucid


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    lucid.set_num_threads(1)
    yield
    lucid.set_num_threads(None)
