"""Random numbers without state: a value is named by what it is for.

Every number comes from Philox4x32-10 (Salmon et al. 2011) under a 64-bit seed, at the counter
(element // 4, token position, example, purpose 8 bits | layer 8 bits | epoch 16 bits). It depends on
nothing else: not on threads, batch, device or history.

The only state is a pair of integers: the seed of `manual_seed` and the number of calls made under it.
A call that is given ``seed=None`` takes the next call number.
"""

import os
import threading
from enum import IntEnum

from lucid._ext import kernels
from lucid.threads import in_forked_child


class Purpose(IntEnum):
    """What a random number is for: the top 8 bits of the counter's last word."""

    CALL = 1
    MLM_MASK = 2
    EMBEDDING_DROPOUT = 3
    ATTENTION_DROPOUT = 4
    ATTENTION_OUTPUT_DROPOUT = 5
    FEED_FORWARD_DROPOUT = 6
    INITIALISATION = 7


_lock = threading.Lock()
_seed: int = int.from_bytes(os.urandom(8), "little")
_calls: int = 0


def _renew_lock() -> None:
    # Another thread may have held it when this process was forked: nobody would ever release it.
    global _lock
    _lock = threading.Lock()


in_forked_child(_renew_lock)


def check_seed(seed: int) -> int:
    """Return `seed` as an int in [0, 2^64).

    Raises
    ------
    TypeError
        It is not an integer.
    ValueError
        It is out of range.
    """
    if isinstance(seed, bool) or not hasattr(seed, "__index__"):
        raise TypeError(f"a seed is an integer from 0 to 2**64 - 1, not {type(seed).__name__}")
    seed = seed.__index__()
    if not 0 <= seed < 1 << 64:
        raise ValueError(f"a seed is an integer from 0 to 2**64 - 1, not {seed}")
    return seed


def manual_seed(seed: int) -> None:
    """Set the seed from which every later call without a seed of its own draws; restarts the call numbers.

    Parameters
    ----------
    seed : int, 0 to 2**64 - 1
    """
    set_state(seed, 0)


def get_state() -> tuple[int, int]:
    """Return (seed, calls made under it): all there is to save."""
    with _lock:
        return _seed, _calls


def set_state(seed: int, calls: int) -> None:
    """Restore what `get_state` returned."""
    global _seed, _calls
    seed = check_seed(seed)
    with _lock:
        _seed, _calls = seed, check_seed(calls)


def resolve_seed(seed: int | None) -> int:
    """Return `seed` itself, or for None a seed made of the next call number."""
    global _calls
    if seed is not None:
        return check_seed(seed)
    with _lock:
        call, _calls = _calls, (_calls + 1) % (1 << 64)
        key = _seed
    low, high, _, _ = kernels.philox_block(call & 0xFFFFFFFF, call >> 32, 0, stream(Purpose.CALL), key)
    return int(low | high << 32)


def stream(purpose: Purpose, layer: int = 0, epoch: int = 0) -> int:
    """Return the last word of a counter."""
    return (int(purpose) & 0xFF) << 24 | (int(layer) & 0xFF) << 16 | int(epoch) & 0xFFFF
