"""What attention on tensor cores can do, and what a block of it takes."""

from __future__ import annotations

import numpy as np

from lucid._gpu.runtime import Array

TILE = 64  # rows of a block
THREADS = 128
WIDTHS = (32, 64, 128)  # of heads


def fits(arrays: tuple[Array, ...], width: int, key_columns: Array | None, key_starts: Array) -> bool:
    """Return whether `attention_mma.cu` can do it.

    It wants 16-bit numbers, a head width that is compiled, rows at multiples of 16 bytes, and where there is dropout keys that
    are counted from the start of their sequence.
    """
    return (
        width in WIDTHS
        and all(array.itemsize == 2 and array.strides[0] % 16 == 0 and _address(array) % 16 == 0 for array in arrays)
        and (key_columns is None or is_counted(key_columns, key_starts))
    )


def is_counted(columns: Array, starts: Array) -> bool:
    """Return whether `columns` counts the rows of each sequence: then four neighbours share a block of random numbers."""
    counted = np.arange(starts[-1], dtype=np.int32) - np.repeat(starts[:-1], np.diff(starts))
    return isinstance(columns, np.ndarray) and np.array_equal(columns, counted)


def _address(array: Array) -> int:
    return int(array.__cuda_array_interface__["data"][0]) if array.size else 0


def forward_bytes(width: int) -> int:
    """Return the shared memory of a block, forward: a tile of Q, and two each of K and V, in numbers of 2 bytes."""
    return 2 * width * (TILE + 4 * TILE)


def backward_bytes(width: int) -> int:
    """Return the shared memory of a block, backward by queries: two tiles of its own, and two each of K and V."""
    return 2 * width * (2 * TILE + 4 * others(width))


def backward_keys_bytes(width: int) -> int:
    """Return the shared memory of a block, backward by keys: as much, and three numbers of 4 bytes for each query of two tiles."""
    return backward_bytes(width) + 3 * 4 * 2 * others(width)


def others(width: int) -> int:
    """Return how many rows of the other side a block has at once in backward: OTHERS of the source."""
    return 32 if width == 128 else TILE
