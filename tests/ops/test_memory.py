"""Memory for results: aligned, never shared between arrays that live, used again when one is gone."""

import gc
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from lucid.ops.op import empty


@pytest.mark.parametrize("shape", [(1,), (3, 5), (1024, 768), (1100, 3072)])
def test_rows_begin_on_a_cache_line(shape: tuple[int, ...]) -> None:
    array = empty(shape)
    assert array.shape == shape
    assert array.dtype == np.float32
    assert array.flags.c_contiguous
    assert array.flags.writeable
    assert array.ctypes.data % 64 == 0


def test_no_numbers() -> None:
    assert empty((0, 7)).shape == (0, 7)


def test_memory_is_used_again() -> None:
    array = empty((300, 1000))
    place = array.ctypes.data
    view = array[10:20]
    del array
    assert empty((300, 1000)).ctypes.data != place, "a view still reads it"
    del view
    gc.collect()
    assert empty((299, 1000)).ctypes.data == place


def test_a_small_array_does_not_hold_a_large_block() -> None:
    array = empty((1000, 1000))
    place = array.ctypes.data
    del array
    assert empty((400, 1000)).ctypes.data != place


def test_living_arrays_share_nothing() -> None:
    """Arrays come and go in four threads; each keeps what was written to it."""

    def churn(seed: int) -> None:
        rng = np.random.default_rng(seed)
        living: list[tuple[float, np.ndarray]] = []
        for i in range(2000):
            array = empty((int(rng.integers(1, 40)), int(rng.integers(1, 400))))
            mark = float(seed * 10_000 + i)
            array[:] = mark
            living.append((mark, array))
            if len(living) > 20:
                mark, array = living.pop(int(rng.integers(20)))
                assert (array == mark).all()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(churn, range(4)))


def test_tracemalloc_counts_arrays_and_not_what_waits() -> None:
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        array = empty((1000, 500))
        assert 2_000_000 <= tracemalloc.get_traced_memory()[0] - before < 4_100_000
        del array
        assert tracemalloc.get_traced_memory()[0] - before < 10_000
    finally:
        tracemalloc.stop()
