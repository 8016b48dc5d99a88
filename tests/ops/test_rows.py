"""Taking rows out and putting them back."""

import numpy as np
import pytest
from cases import integers, normal

from lucid.ops.rows import gather_rows, scatter_rows


@pytest.mark.parametrize(("n_rows", "n_taken"), [(1, 1), (7, 3), (7, 7), (300, 129), (5, 0)])
def test_gathering_undoes_scattering(n_rows: int, n_taken: int, rng: np.random.Generator) -> None:
    x = normal(rng, n_taken, 31)
    rows = np.sort(rng.permutation(n_rows)[:n_taken]).astype(np.int32)
    scattered = scatter_rows(x, rows=rows, n_rows=n_rows)
    assert np.array_equal(gather_rows(scattered, rows=rows), x)
    assert not scattered[np.setdiff1d(np.arange(n_rows), rows)].any()


@pytest.mark.parametrize("n_rows", [3, 5])
def test_scattering_is_the_transpose_of_gathering(n_rows: int, rng: np.random.Generator) -> None:
    """<gather(x), y> = <x, scatter(y)>: each is the other's gradient."""
    rows = np.array([0, 2], np.int32)
    x, y = (rng.integers(-9, 10, shape).astype(np.float32) for shape in ((n_rows, 4), (2, 4)))
    assert (gather_rows(x, rows=rows) * y).sum() == (x * scatter_rows(y, rows=rows, n_rows=n_rows)).sum()


def test_a_row_may_be_gathered_twice_and_backwards(rng: np.random.Generator) -> None:
    x = normal(rng, 5, 3)
    assert np.array_equal(gather_rows(x, rows=np.array([4, 0, 0, 2], np.int32)), np.stack([x[4], x[0], x[0], x[2]]))


def test_what_is_not_finite_is_kept(rng: np.random.Generator) -> None:
    x = np.array([[np.nan, np.inf], [-np.inf, -0.0]], np.float32)
    scattered = scatter_rows(x, rows=np.array([1, 2], np.int32), n_rows=4)
    assert scattered[1:3].tobytes() == x.tobytes()
    assert gather_rows(x, rows=integers(rng, 1, 2, 1)).tobytes() == x[1:].tobytes()
