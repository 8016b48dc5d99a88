"""The shuffled order: a bijection, well mixed, the same everywhere."""

import numpy as np
import pytest

from lucid.data import Permutation


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 10, 64, 99, 100, 101, 1000, 4096, 65_537])
def test_it_is_a_bijection(n):
    for seed in (0, 1, 2**64 - 1):
        assert sorted(Permutation(n, seed)(np.arange(n)).tolist()) == list(range(n))


def test_large_domains_are_cheap():
    n = 2**31
    values = Permutation(n, 3)(np.array([0, 1, n - 2, n - 1]))
    assert len(set(values.tolist())) == 4 and values.min() >= 0 and values.max() < n


def test_a_place_is_what_it_is_whatever_is_asked_with_it():
    permutation = Permutation(1000, 5)
    whole = permutation(np.arange(1000))
    assert [int(permutation(i)[0]) for i in (0, 1, 500, 999)] == whole[[0, 1, 500, 999]].tolist()
    assert np.array_equal(permutation(np.arange(300, 400)), whole[300:400])
    assert np.array_equal(Permutation(1000, 5)(np.arange(1000)), whole)


def test_it_is_recorded():
    """A change of the order would break the resumption of runs."""
    assert Permutation(10, 42)(np.arange(10)).tolist() == RECORDED


RECORDED = [0, 8, 3, 4, 9, 6, 2, 7, 1, 5]


def test_it_mixes():
    n, n_seeds = 20, 4000
    tables = np.stack([Permutation(n, seed)(np.arange(n)) for seed in range(n_seeds)])
    counts = np.stack([np.bincount(tables[:, place], minlength=n) for place in range(n)])
    # Chi-squared of 20 x 20 cells, (n - 1)^2 degrees of freedom: mean 361, standard deviation 27.
    assert ((counts - n_seeds / n) ** 2 / (n_seeds / n)).sum() < 361 + 5 * 27
    follows = ((tables[:, 1:] - tables[:, :-1]) % n == 1).mean()
    assert abs(follows - 1 / n) < 0.005
    big = Permutation(100_000, 1)(np.arange(100_000))
    assert abs(np.corrcoef(big[:-1], big[1:])[0, 1]) < 0.015 and abs(np.corrcoef(big, np.arange(100_000))[0, 1]) < 0.015


def test_bad_arguments():
    for n in (0, -1, 2**31 + 1):
        with pytest.raises(ValueError, match="n must lie between"):
            Permutation(n, 0)
    with pytest.raises(IndexError, match=r"outside \[0, 5\)"):
        Permutation(5, 0)([5])
    with pytest.raises(IndexError, match="outside"):
        Permutation(5, 0)([-1])
