"""How work is cut for the GPU: plain arithmetic."""

import numpy as np
import pytest

from lucid._gpu.adamw import CHUNK, UPDATE, chunks_of
from lucid._gpu.embedding import TOKENS_AT_ONCE, segments_of
from lucid._gpu.layer_norm import held_size, warps_of
from lucid._gpu.runtime import SHARED_WITHOUT_ASKING, blocks


def test_blocks() -> None:
    assert [blocks(n, 4) for n in (0, 1, 4, 5)] == [0, 1, 1, 2]


@pytest.mark.parametrize(
    ("width", "itemsize", "size"), [(1, 4, 128), (128, 4, 128), (129, 4, 256), (768, 4, 768), (768, 2, 768), (769, 2, 1024)]
)
def test_a_row_fills_whole_warps(width: int, itemsize: int, size: int) -> None:
    assert held_size(width, itemsize) == size


@pytest.mark.parametrize(("n_bytes", "n_warps"), [(512, 8), (6144, 8), (6145, 7), (49152, 1), (100_000, 1)])
def test_warps_share_a_blocks_memory(n_bytes: int, n_warps: int) -> None:
    assert warps_of(n_bytes) == n_warps
    assert n_warps == 1 or n_warps * n_bytes <= SHARED_WITHOUT_ASKING


@pytest.mark.parametrize("n", [1, 63, 64, 65, 1000])
@pytest.mark.parametrize("n_rows", [1, 2, 700])
def test_segments(n: int, n_rows: int) -> None:
    """Each token is in one piece, pieces are of one row and short, and tokens keep their order."""
    ids = np.random.default_rng(n).integers(0, n_rows, n).astype(np.int32)
    rows, order, pieces, starts = segments_of(ids)
    assert np.array_equal(rows, np.unique(ids))
    assert np.array_equal(order, np.argsort(ids, kind="stable"))
    assert pieces[0] == starts[0] == 0
    assert pieces[-1] == n
    assert starts[-1] == len(pieces) - 1
    assert 1 <= np.diff(pieces).min() <= np.diff(pieces).max() <= TOKENS_AT_ONCE
    for s, row in enumerate(rows):
        assert set(ids[order[pieces[starts[s]] : pieces[starts[s + 1]]]]) == {row}


def test_chunks() -> None:
    assert chunks_of([1, CHUNK, 0, 2 * CHUNK + 1]).tolist() == [[0, 0], [1, 0], [3, 0], [3, 1], [3, 2]]
    assert chunks_of([]).shape == (0, 2)


def test_a_row_of_the_table_is_the_kernels_struct() -> None:
    assert UPDATE.itemsize == 5 * 8 + 8 + 3 * 4 + 4
    assert [UPDATE.fields[name][1] for name in ("weight", "copy", "n", "keep", "copy_is_half")] == [0, 32, 40, 48, 60]  # type: ignore[index]
