"""Philox, its counters, and the one pair of integers that is state."""

import threading
from typing import Any

import numpy as np
import pytest
import reference
from cases import Rng

from lucid import random
from lucid._ext import kernels
from lucid.random import Purpose, check_seed, epoch_seed, get_state, manual_seed, resolve_seed, set_state, stream

ONES = 0xFFFFFFFF
# Random123's kat_vectors, "philox4x32 10": counter, key, block.
KNOWN = (
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES, ONES, ONES, ONES), (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
)


@pytest.fixture(autouse=True)
def _keep_state() -> Any:
    state = get_state()
    yield
    set_state(*state)


@pytest.mark.parametrize(("counter", "key", "block"), KNOWN)
def test_known_answers(counter: tuple[int, ...], key: tuple[int, int], block: tuple[int, ...]) -> None:
    assert reference.philox4x32_10(counter, key) == block
    assert kernels.philox_block(*counter, key[0] | key[1] << 32) == block


def test_the_kernel_is_the_reference_on_any_counter(rng: Rng) -> None:
    for words in rng.integers(0, 1 << 32, (200, 6)).tolist():
        assert kernels.philox_block(*words[:4], words[4] | words[5] << 32) == reference.philox4x32_10(words[:4], words[4:])


def test_the_reference_gives_arrays_what_it_gives_integers(rng: Rng) -> None:
    words = rng.integers(0, 1 << 32, (6, 50)).astype(np.uint64)
    blocks = reference.philox4x32_10(words[:4], words[4:])
    for i in range(50):
        column = words[:, i].tolist()
        assert tuple(int(word[i]) for word in blocks) == reference.philox4x32_10(column[:4], column[4:])


def test_a_stream_holds_purpose_layer_and_epoch() -> None:
    assert stream(Purpose.MLM_MASK) == reference.MLM_MASK_PURPOSE << 24
    assert stream(Purpose.ATTENTION_DROPOUT, 11, 65535) == 4 << 24 | 11 << 16 | 65535
    streams = {stream(purpose, layer, epoch) for purpose in Purpose for layer in (0, 1, 255) for epoch in (0, 1, 65535)}
    assert len(streams) == len(Purpose) * 9


def test_purposes_keep_their_numbers() -> None:
    """They are part of every result and every checkpoint."""
    assert [(purpose.name, int(purpose)) for purpose in Purpose] == [
        ("CALL", 1),
        ("MLM_MASK", 2),
        ("EMBEDDING_DROPOUT", 3),
        ("ATTENTION_DROPOUT", 4),
        ("ATTENTION_OUTPUT_DROPOUT", 5),
        ("FEED_FORWARD_DROPOUT", 6),
        ("INITIALISATION", 7),
        ("EPOCH", 8),
        ("SHUFFLE", 9),
        ("MLM_SPAN", 10),
    ]


@pytest.mark.parametrize("seed", [0, 1, 2**64 - 1, np.int64(5), np.uint64(2**64 - 1)])
def test_a_seed_is_taken_as_it_is(seed: Any) -> None:
    assert check_seed(seed) == int(seed)
    assert type(check_seed(seed)) is int
    assert resolve_seed(seed) == int(seed)


@pytest.mark.parametrize(
    ("seed", "error"), [(-1, ValueError), (2**64, ValueError), (1.0, TypeError), ("1", TypeError), (True, TypeError), ([1], TypeError)]
)
def test_what_is_no_seed_is_refused(seed: Any, error: type[Exception]) -> None:
    before = get_state()
    for function in (check_seed, resolve_seed, manual_seed):
        with pytest.raises(error, match="seed is an integer"):
            function(seed)
    with pytest.raises(error):
        set_state(0, seed)
    assert get_state() == before


def test_calls_without_a_seed_follow_from_the_manual_seed() -> None:
    manual_seed(17)
    assert get_state() == (17, 0)
    first = [resolve_seed(None) for _ in range(5)]
    assert get_state() == (17, 5)
    assert len(set(first)) == 5
    manual_seed(17)
    assert [resolve_seed(None) for _ in range(5)] == first
    set_state(17, 3)
    assert [resolve_seed(None) for _ in range(2)] == first[3:]
    manual_seed(18)
    assert not {resolve_seed(None) for _ in range(5)} & set(first)


def test_the_seed_of_a_call_is_its_philox_block() -> None:
    set_state(2**64 - 3, 2**32 + 5)
    low, high, _, _ = reference.philox4x32_10((5, 1, 0, 1 << 24), (2**32 - 3, 2**32 - 1))
    assert resolve_seed(None) == low | high << 32


def test_a_seed_that_is_given_takes_no_call_number() -> None:
    manual_seed(3)
    resolve_seed(44)
    assert get_state() == (3, 0)


def test_threads_never_share_a_call_number() -> None:
    manual_seed(1)
    drawn: list[list[int]] = [[] for _ in range(4)]

    def draw(into: list[int]) -> None:
        into.extend(resolve_seed(None) for _ in range(500))

    workers = [threading.Thread(target=draw, args=(into,)) for into in drawn]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len({seed for seeds in drawn for seed in seeds}) == 2000
    assert get_state() == (1, 2000)


def test_the_first_seed_is_not_a_constant() -> None:
    """A new process draws from the system; nothing but `manual_seed` makes runs equal."""
    import subprocess
    import sys

    code = "from lucid import random; print(random.get_state()[0])"
    seeds = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout for _ in range(2)}
    assert len(seeds) == 2
    assert random.get_state()[0] >= 0


def test_epochs_have_seeds_of_their_own() -> None:
    seeds = {epoch_seed(seed, epoch) for seed in (0, 1, 2**64 - 1) for epoch in (0, 1, 2, 1 << 16, 1 << 32, (1 << 40) + 1)}
    assert len(seeds) == 18 and all(0 <= seed < 1 << 64 for seed in seeds)
    assert epoch_seed(7, 3) == 3860571077284224692  # part of every run
    with pytest.raises(ValueError, match="a seed is"):
        epoch_seed(-1, 0)
