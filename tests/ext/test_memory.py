"""The memory of results: blocks that wait for a new owner, how many, and that nobody's block is given to another."""

import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from lucid._ext import _memory
from lucid._ext._memory import Memory, kept
from lucid.nn.parameter import Parameter
from lucid.ops.linear import PackedWeight, linear
from lucid.ops.op import empty

Array = Any
MIB = 1 << 20
keeps_blocks = pytest.mark.skipif(_memory.most_bytes_kept == 0, reason="built with AddressSanitizer: no block is kept")


@pytest.fixture
def _one_waits() -> Iterator[None]:
    """A block as large as all that may wait: it drives out the others, and goes itself when the next one comes."""
    Memory(_memory.most_bytes_kept)
    assert kept() == (1, _memory.most_bytes_kept)
    yield
    Memory(_memory.most_bytes_kept)


alone = pytest.mark.usefixtures("_one_waits")


def block(n_bytes: int, *, reuse: bool = True) -> Array:
    return np.frombuffer(Memory(n_bytes, reuse=reuse), np.uint8)  # type: ignore[call-overload]


def address(array: Array) -> int:
    return int(array.ctypes.data)


def let_die(*sizes: int) -> None:
    """Have blocks of these sizes at once, and let the first die first."""
    blocks = [block(size, reuse=False) for size in sizes]
    while blocks:
        del blocks[0]


# One block


@pytest.mark.parametrize("n_bytes", [1, 4, 63, 64, 65, 1000, MIB, 4 * MIB - 1, 4 * MIB, 9 * MIB + 5])
def test_a_block_is_aligned_and_can_be_written_whole(n_bytes: int) -> None:
    for reuse in (True, True, False):
        array = block(n_bytes, reuse=reuse)
        assert len(array) == n_bytes and array.flags.writeable
        assert address(array) % 64 == 0
        array[:] = 0xA5
        assert (array == 0xA5).all()
        del array


def test_results_are_aligned_and_of_the_shape() -> None:
    for shape in ((1,), (3, 5), (0, 4), (7, 1, 2), ()):
        for is_lasting in (False, True):
            array = empty(shape, is_lasting=is_lasting)
            assert (array.shape, array.dtype) == (shape, np.float32)
            assert array.size == 0 or address(array) % 64 == 0


@keeps_blocks
@alone
def test_a_block_is_used_again_when_its_array_dies() -> None:
    first = empty((100, 10))
    place = address(first)
    second = empty((100, 10))
    assert address(second) != place
    del first
    assert kept() == (1, 4000)
    third = empty((1000,))
    assert address(third) == place
    assert kept() == (0, 0)


@keeps_blocks
@alone
def test_the_youngest_of_several_is_taken() -> None:
    arrays = [block(1000, reuse=False) for _ in range(3)]
    places = [address(array) for array in arrays]
    for _ in places:
        del arrays[0]
    taken = [block(1000) for _ in places]
    assert [address(array) for array in taken] == places[::-1]


@keeps_blocks
@alone
def test_a_view_keeps_the_block() -> None:
    array = empty((1000,))
    array[:] = 7
    view = array.reshape(10, 100)[2:5, ::3]
    del array
    assert kept() == (1, _memory.most_bytes_kept)
    empty((1000,))[:] = 8
    assert (view == 7).all()
    before = kept()[0]
    del view
    assert kept() == (before + 1, 8000)


# How close it must fit


@keeps_blocks
@alone
@pytest.mark.parametrize("n_bytes", [800, 8 * MIB])
def test_a_block_may_be_an_eighth_too_large_and_no_more(n_bytes: int) -> None:
    for waiting, fits in ((n_bytes * 9 // 8, True), (n_bytes * 9 // 8 + 1, False), (2 * n_bytes, False), (n_bytes - 1, False)):
        let_die(waiting)
        n_before, bytes_before = kept()
        array = block(n_bytes)
        assert kept() == ((n_before - 1, bytes_before - waiting) if fits else (n_before, bytes_before)), waiting
        del array
        Memory(_memory.most_bytes_kept)  # drives out what is left


@keeps_blocks
@alone
def test_a_block_keeps_its_size_whatever_was_asked_of_it_last() -> None:
    let_die(9000)
    for n_bytes in (8000, 9000, 8500):
        array = block(n_bytes)
        assert kept() == (0, 0)
        del array
        assert kept() == (1, 9000)


@keeps_blocks
@alone
def test_what_lives_long_takes_fresh_memory() -> None:
    weight = np.arange(9600, dtype=np.float32).reshape(96, 100)
    parameter = Parameter(weight.shape, lambda _: weight.copy())
    let_die(weight.nbytes + 1, weight.nbytes, weight.nbytes + 1000)  # each would do for the panels or the row-major array
    waiting = kept()
    panels = parameter.packed().panels
    assert panels.nbytes == weight.nbytes
    assert kept() == waiting
    row_major = parameter.row_major()
    assert kept() == waiting
    assert np.array_equal(row_major, weight)


@keeps_blocks
@alone
def test_panels_of_one_product_are_used_again() -> None:
    x, weight = np.ones((3, 100), np.float32), np.ones((96, 100), np.float32)
    n_bytes = PackedWeight.pack(weight).panels.nbytes
    assert kept() == (1, n_bytes)
    y = linear(x, weight)
    assert kept() == (1, n_bytes), "they were made in other memory, which waits now too"
    assert (y == 100).all()


# How many wait


@keeps_blocks
@alone
def test_no_more_than_sixteen_wait_and_the_oldest_go() -> None:
    assert _memory.most_kept == 16
    sizes = [1000 * n for n in range(1, 20)]
    let_die(*sizes)
    assert kept() == (16, sum(sizes[3:]))
    for n_bytes in sizes[:3]:
        array = block(n_bytes)
        assert kept() == (16, sum(sizes[3:])), "a block that should have gone"
        del array
        let_die(*sizes)
    array = block(sizes[3])
    assert kept() == (15, sum(sizes[4:]))
    del array


@keeps_blocks
@alone
def test_no_more_than_128_mebibytes_wait_and_the_oldest_go() -> None:
    assert _memory.most_bytes_kept == 128 * MIB
    let_die(50 * MIB, 40 * MIB, 38 * MIB)
    assert kept() == (3, 128 * MIB)
    let_die(64)
    assert kept() == (3, 78 * MIB + 64)
    let_die(90 * MIB)
    assert kept() == (2, 90 * MIB + 64)
    let_die(128 * MIB)
    assert kept() == (1, 128 * MIB)


@keeps_blocks
@alone
def test_a_block_that_is_larger_than_all_that_may_wait_is_given_back_and_drives_out_none() -> None:
    let_die(1000, 2000)
    let_die(128 * MIB + 1)
    assert kept() == (2, 3000)


# Nobody's block is another's


def check_owners(seed: int, n_steps: int) -> None:
    """Have blocks come and go; each holds what was written to it, and lies apart from the others."""
    rng = np.random.default_rng(seed)
    owned: dict[int, tuple[Array, int]] = {}
    for step in range(n_steps):
        if len(owned) > 30 or (owned and rng.random() < 0.5):
            array, mark = owned.pop(int(rng.choice(list(owned))))
            assert (array == mark).all(), "another wrote to it"
            del array
        array = block(
            int(rng.choice([1, 60, 500, 520, 4000, 4100, 70_000, 5 * MIB], p=[0.14] * 7 + [0.02])), reuse=bool(rng.random() < 0.8)
        )
        array[:] = mark = seed * 100 + step % 100
        assert not any(np.may_share_memory(array, other) for other, _ in owned.values())
        owned[step] = array, mark
    assert all((array == mark).all() for array, mark in owned.values())


def test_no_block_has_two_owners() -> None:
    check_owners(0, 3000)


def test_no_block_has_two_owners_in_two_threads() -> None:
    failures: list[BaseException] = []

    def run(seed: int) -> None:
        try:
            check_owners(seed, 2000)
        except BaseException as error:
            failures.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=run, args=(seed,)) for seed in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not failures
    n_blocks, n_bytes = kept()
    assert n_blocks <= _memory.most_kept and n_bytes <= _memory.most_bytes_kept


# When memory runs out

WITHOUT_MEMORY = """
import resource
from lucid._ext._memory import Memory, kept
MIB = 1 << 20
def let_die(*sizes):
    blocks = [Memory(size, reuse=False) for size in sizes]
    del blocks
let_die(40 * MIB, 40 * MIB, 40 * MIB)
assert kept() == (3, 120 * MIB), kept()
in_use = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (in_use + 60 * MIB,) * 2)
large = Memory(130 * MIB)                # room only where the blocks lie that wait
assert kept() == (0, 0), kept()
del large
let_die(30 * MIB)
assert kept() == (1, 30 * MIB), kept()
try:
    Memory(1000 * MIB)
except MemoryError as error:
    assert str(error) == f"no memory for {1000 * MIB} bytes", error
else:
    raise AssertionError("there was memory")
assert kept() == (0, 0), kept()          # all were tried
memoryview(Memory(30 * MIB))[:] = bytes(30 * MIB)
"""


@keeps_blocks
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of address space as Linux has them")
def test_blocks_that_wait_are_given_back_before_memory_is_said_to_be_out() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_MEMORY], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


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
