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
from typing import Any

import numpy as np

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
    EPOCH = 8
    SHUFFLE = 9
    MLM_SPAN = 10


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


def epoch_seed(seed: int, epoch: int) -> int:
    """Return the seed of one pass over the data, for masks, dropout and order; no epoch is too high a number.

    Parameters
    ----------
    seed : int, 0 to 2**64 - 1
    epoch : int, >= 0
    """
    low, high, _, _ = kernels.philox_block(epoch & 0xFFFFFFFF, epoch >> 32, 0, stream(Purpose.EPOCH), check_seed(seed))
    return int(low | high << 32)


def token_words(columns: Any, examples: Any, purpose: Purpose, seed: int) -> np.ndarray[Any, Any]:
    """Return the four random words of each token's own counter, as `mlm_mask` uses them.

    Parameters
    ----------
    columns, examples : integers, shape (n,). Which token of which example it is.
    purpose : Purpose
    seed : int, 0 to 2**64 - 1

    Returns
    -------
    words : array, uint32, shape (n, 4)
    """
    low, high = np.uint64(0xFFFFFFFF), np.uint64(32)
    c0 = np.zeros(len(columns), np.uint64)
    c1, c2 = np.asarray(columns).astype(np.uint64), np.asarray(examples).astype(np.uint64)
    c3 = np.full(len(columns), stream(purpose), np.uint64)
    key = check_seed(seed)
    k0, k1 = key & 0xFFFFFFFF, key >> 32
    for _ in range(10):  # _ext/philox.pyx, for arrays
        p0, p1 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (p1 >> high) ^ c1 ^ np.uint64(k0), p1 & low, (p0 >> high) ^ c3 ^ np.uint64(k1), p0 & low
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=1).astype(np.uint32)
