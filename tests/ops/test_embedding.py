"""The input of BERT beyond the case table: packed word tables, bits of a token, what backward reads."""

from types import ModuleType
from typing import Any

import numpy as np
import pytest
from cases import ROWS, cases_of, integers, normal

from lucid.ops.embedding import embedding
from lucid.ops.layer_norm import layer_norm
from lucid.ops.linear import PackedWeight

Array = Any


def _problem(rng: np.random.Generator, n_tokens: int, width: int, n_words: int = 251) -> tuple[list[Array], dict[str, Any]]:
    arrays = [normal(rng, n_words, width), normal(rng, 512, width), normal(rng, 2, width), normal(rng, width), normal(rng, width)]
    ids = {"ids": n_words, "position_ids": 512, "type_ids": 2}
    return arrays, {**{name: integers(rng, 0, limit, n_tokens) for name, limit in ids.items()}, "eps": 1e-12}


@pytest.mark.parametrize("n_rows", ROWS)
@pytest.mark.parametrize("width", [1, 31, 768])
def test_a_token_has_the_same_bits_beside_any_others(width: int, n_rows: int, rng: np.random.Generator) -> None:
    arrays, params = _problem(rng, max(ROWS), width)
    whole = embedding(*arrays, **params)
    for begin in range(0, max(ROWS) - n_rows + 1, 13):
        rows = slice(begin, begin + n_rows)
        part = {name: value[rows] if name != "eps" else value for name, value in params.items()}
        assert np.array_equal(embedding(*arrays, **part), whole[rows])


@pytest.mark.parametrize("width", [1, 7, 31, 768])
@pytest.mark.parametrize("n_words", [1, 23, 24, 25, 251])
def test_a_packed_word_table_gives_the_same_bits(n_words: int, width: int, rng: np.random.Generator) -> None:
    (words, *others), params = _problem(rng, 29, width, n_words)
    params["ids"][:2] = 0, n_words - 1
    assert np.array_equal(embedding(PackedWeight.pack(words), *others, **params), embedding(words, *others, **params))


@pytest.mark.parametrize("width", [1, 31, 768])
def test_it_is_the_layer_norm_of_the_sum(width: int, rng: np.random.Generator) -> None:
    (words, positions, types, gain, bias), params = _problem(rng, 29, width)
    total = words[params["ids"]] + types[params["type_ids"]] + positions[params["position_ids"]]
    assert np.array_equal(embedding(words, positions, types, gain, bias, **params), layer_norm(total, gain, bias, eps=1e-12))


@pytest.mark.parametrize("is_packed", [False, True])
def test_the_kernel_leaves_the_sums_for_backward(is_packed: bool, kernels: ModuleType, rng: np.random.Generator) -> None:
    (words, positions, types, gain, bias), params = _problem(rng, 29, 31)
    table = words.reshape(-1)
    if is_packed:
        panels = np.empty((-(-len(words) // kernels.panel_width), 31, kernels.panel_width), np.float32)
        kernels.pack_rows(words, panels, 1)
        table = panels.reshape(-1)
    y, without, total = (np.empty((29, 31), np.float32) for _ in range(3))
    mean, rstd = np.empty((2, 29), np.float32)
    indices = params["ids"], positions, params["position_ids"], types, params["type_ids"]
    kernels.embedding_forward(table, is_packed, *indices, gain, bias, 1e-12, y, total, mean, rstd, 1)
    kernels.embedding_forward(table, is_packed, *indices, gain, bias, 1e-12, without, None, None, None, 1)
    assert np.array_equal(total, words[params["ids"]] + types[params["type_ids"]] + positions[params["position_ids"]])
    assert np.array_equal(y, without)
    np.testing.assert_allclose(mean, total.mean(axis=1), atol=1e-6)
    np.testing.assert_allclose(rstd, 1 / total.std(axis=1), rtol=1e-5)


def test_the_message_tells_the_id_its_place_and_the_limit(rng: np.random.Generator) -> None:
    call = cases_of(embedding)[0].build(rng)
    ids = call.params["ids"].copy()
    ids[5] = 1000
    with pytest.raises(IndexError, match=r"ids\[5\] is 1000, outside \[0, 53\)"):
        call.replace(ids=ids).run(embedding)
