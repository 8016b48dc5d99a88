"""What every op promises: it has cases, keeps its inputs, gives the same bits however it is called, and refuses bad calls by name."""

import dataclasses
import importlib
import inspect
import math
import pkgutil
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import CASES, Call, Case, cases_of

import lucid.ops.op
from lucid.ops.activation import activation
from lucid.ops.attention import attention
from lucid.ops.attention_map import attention_map
from lucid.ops.cross_entropy import cross_entropy
from lucid.ops.decoder import decoder_cross_entropy, decoder_loss, decoder_top_k
from lucid.ops.dropout import dropout
from lucid.ops.embedding import embedding
from lucid.ops.encoder import encoder
from lucid.ops.layer_norm import layer_norm
from lucid.ops.linear import linear
from lucid.ops.mlm_mask import mlm_mask
from lucid.ops.op import Op
from lucid.ops.reshape import reshape
from lucid.ops.rows import gather_rows, scatter_rows
from lucid.ops.total import scale, total

Array = Any


def _find_ops() -> dict[str, Op]:
    found = {}
    for module_info in pkgutil.iter_modules(lucid.ops.__path__):
        module = importlib.import_module(f"lucid.ops.{module_info.name}")
        found.update({name: value for name, value in vars(module).items() if isinstance(value, Op)})
    return found


OPS = _find_ops()
DECODERS = (decoder_cross_entropy, decoder_loss, decoder_top_k)
EVERY_CASE = pytest.mark.parametrize("case", CASES, ids=str)
EVERY_OP = pytest.mark.parametrize("op", OPS.values(), ids=list(OPS))


def outputs(result: Any) -> tuple[Array, ...]:
    return result if isinstance(result, tuple) else (result,)


def bits(result: Any) -> list[tuple[str, tuple[int, ...], bytes]]:
    return [(array.dtype.str, array.shape, array.tobytes()) for array in outputs(result)]


def arrays_of(call: Call) -> list[Array]:
    found: list[Array] = []
    call.map(lambda array: found.append(array) or array)  # type: ignore[func-returns-value]
    return found


# What there is


def test_ops_are_found() -> None:
    assert {"linear", "attention", "mlm_mask"} <= set(OPS)
    assert all(op.name == name for name, op in OPS.items())


@EVERY_OP
def test_every_op_has_cases_and_bad_calls(op: Op) -> None:
    assert cases_of(op), f"tests/cases.py has no case for {op.name}"
    assert [bad for bad in BAD if bad.op is op], f"tests/ops/test_contract.py has no bad call for {op.name}"


@EVERY_OP
def test_every_op_has_a_page(op: Op) -> None:
    """With the name of the op, its source, and how its gradient is derived, or that it has none."""
    folder = Path(__file__).parents[2] / "docs" / "ops"
    if not folder.is_dir():
        pytest.skip("tests run without the docs beside them")
    pages = {path.stem: path.read_text() for path in folder.glob("*.md")}
    named = [page for page in pages.values() if re.search(rf"\b{op.name}\b", page.splitlines()[0])]
    assert len(named) == 1, f"one page of docs/ops has {op.name} in its title"
    assert re.search(r"^Sources?:", named[0], re.MULTILINE), f"the page of {op.name} names no source"
    assert re.search(r"^## (Backward|Gradients|Forward and backward)", named[0], re.MULTILINE) or not op.is_differentiable, op.name
    stem = next(stem for stem, page in pages.items() if page is named[0])
    assert f"]({stem}.md)" in pages["README"], f"docs/ops/README.md does not list {stem}.md"


@EVERY_OP
def test_check_and_kernels_take_the_same_arguments(op: Op) -> None:
    def arguments(function: Callable[..., Any]) -> list[tuple[Any, ...]]:
        return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]

    keep = ("keep", inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.empty)
    assert arguments(op.cpu.forward) == [*arguments(op.check), keep]


@EVERY_OP
def test_an_array_of_an_unknown_device_is_refused(op: Op) -> None:
    class Elsewhere:
        """Looks like an array, and is none of NumPy's."""

        def __init__(self, array: Array) -> None:
            self.dtype, self.shape, self.size, self.strides = array.dtype, array.shape, array.size, array.strides

    call = cases_of(op)[0].build(np.random.default_rng(0))
    name = next(iter(call.arrays))
    with pytest.raises(TypeError, match=op.name):
        op.on(Elsewhere(call.arrays[name]))


# What every call keeps


@EVERY_CASE
def test_the_result_is_right(case: Case, rng: np.random.Generator) -> None:
    call = case.build(rng)
    case.check(call.run(case.op), call)


@EVERY_CASE
def test_a_result_that_is_a_little_wrong_is_noticed(case: Case, rng: np.random.Generator) -> None:
    """In any one element, by a thousandth of the largest: no bound is so wide that it lets everything pass."""
    call = case.build(rng)
    results = outputs(call.run(case.op))
    is_tuple = len(results) > 1
    for i, result in enumerate(results):
        if result.size == 0 or (case.op is decoder_top_k and i == 1):  # ids of equal logits may differ: tests/ops/test_decoder.py
            continue
        wrong = result.copy()
        at = rng.integers(result.size)
        wrong.reshape(-1)[at] += max(np.abs(result).max() * 1e-3, 1e-3) if result.dtype == np.float32 else 1
        with pytest.raises(AssertionError, match=r"1 of \d+ wrong"):
            case.check((*results[:i], wrong, *results[i + 1 :]) if is_tuple else wrong, call)


@EVERY_CASE
def test_results_are_new_contiguous_arrays_and_inputs_stay(case: Case, rng: np.random.Generator) -> None:
    call = case.build(rng)
    before = [array.tobytes() for array in arrays_of(call)]
    results = outputs(call.run(case.op))
    assert [array.tobytes() for array in arrays_of(call)] == before
    for result in results:
        assert result.dtype in (np.float32, np.int32, np.int64)
        assert result.flags.c_contiguous
        assert result.flags.writeable
        if case.op not in (scatter_rows, reshape):  # which return their input where every number has its place already
            assert not any(np.shares_memory(result, array) for array in arrays_of(call))


@EVERY_CASE
def test_every_output_element_is_written(case: Case, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bits do not depend on what lay in the memory of the result before."""
    call = case.build(rng)
    want = bits(call.run(case.op))
    empty = np.empty

    def dirty(*args: Any, **kwargs: Any) -> Array:
        array = empty(*args, **kwargs)
        array.view(np.uint8).reshape(-1)[:] = 0xA5
        return array

    def dirty_like(array: Array, **_: Any) -> Array:
        return dirty(array.shape, array.dtype)

    monkeypatch.setattr(np, "empty", dirty)
    monkeypatch.setattr(lucid.ops.op, "Memory", lambda n_bytes, **_: bytearray(b"\xa5" * n_bytes))
    monkeypatch.setattr(np, "empty_like", dirty_like)
    assert bits(call.run(case.op)) == want


@EVERY_CASE
def test_bits_do_not_depend_on_the_number_of_threads(
    case: Case, rng: np.random.Generator, for_each_thread_count: Callable[..., list[Any]]
) -> None:
    call = case.build(rng)
    first, *others = for_each_thread_count(lambda: bits(call.run(case.op)))
    assert all(other == first for other in others)


def _read_only(array: Array) -> Array:
    array = array.copy()
    array.flags.writeable = False
    return array


def _every_second(array: Array) -> Array:
    """The same values, two apart along every axis."""
    wide = np.full([2 * n for n in array.shape], 77, array.dtype)
    view = wide[tuple(slice(None, None, 2) for _ in array.shape)]
    view[...] = array
    return view


def _columns_of_a_wider(array: Array) -> Array:
    """Rows contiguous, and far apart."""
    wide = np.full((*array.shape[:-1], array.shape[-1] + 5), 77, array.dtype)
    view = wide[..., 2:-3]
    view[...] = array
    return view


def _reversed(array: Array) -> Array:
    return array[::-1].copy()[::-1]


def _unaligned(array: Array) -> Array:
    view = np.ndarray(array.shape, array.dtype, np.zeros(array.nbytes + 1, np.uint8), offset=1)
    view[...] = array
    return view


LAYOUTS: tuple[Callable[[Array], Array], ...] = (
    _read_only, np.asfortranarray, _every_second, _columns_of_a_wider, _reversed, _unaligned,
)  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__.strip("_"))
@EVERY_CASE
def test_bits_do_not_depend_on_how_arrays_lie(case: Case, layout: Callable[[Array], Array], rng: np.random.Generator) -> None:
    call = case.build(rng)
    assert bits(call.map(layout).run(case.op)) == bits(call.run(case.op))


# What is refused


@EVERY_OP
@pytest.mark.parametrize("wrong", ["list", "None", "dtype", "byte order", "rank"])
def test_a_wrong_array_is_refused_by_name(op: Op, wrong: str, rng: np.random.Generator) -> None:
    call = cases_of(op)[0].build(rng)
    optional = {p.name for p in inspect.signature(op.check).parameters.values() if p.default is None}
    arrays = {name: array for name, array in {**call.arrays, **call.params}.items() if isinstance(array, np.ndarray)}
    for name, array in arrays.items():
        is_fine = {"None": name in optional, "rank": op in (activation, scale, reshape), "byte order": array.itemsize == 1}
        if is_fine.get(wrong):
            continue
        changed = {
            "list": array.tolist(),
            "None": None,
            "dtype": array.astype(np.float64 if array.dtype == np.float32 else np.int16),
            "byte order": array.astype(array.dtype.newbyteorder()),
            "rank": array[None],
        }[wrong]
        with pytest.raises(ValueError if wrong == "rank" else TypeError) as caught:
            call.replace(**{name: changed}).run(op)
        assert re.search(rf"\b{name}\b", str(caught.value)), f"the message does not name {name}: {caught.value}"
        assert re.search(rf"\b{op.name}\b", str(caught.value)), f"the message does not name {op.name}: {caught.value}"


@dataclass(frozen=True)
class Bad:
    """The first case of an op with one argument changed; the message must name that argument, or say `says`."""

    op: Op
    argument: str
    change: Callable[[Any], Any]
    error: type[Exception]
    note: str = ""
    says: str = ""

    def __str__(self) -> str:
        return f"{self.op.name}-{self.argument}{f'-{self.note}' if self.note else ''}"


def _put(value: int, at: int) -> Callable[[Array], Array]:
    def change(array: Array) -> Array:
        array = array.copy()
        array[at] = value
        return array

    return change


def _to(value: Any) -> Callable[[Any], Any]:
    return lambda _: value


def _cut(array: Array) -> Array:
    return array[:-1]


def _narrow(array: Array) -> Array:
    return array[:, :-1]


def _no_columns(array: Array) -> Array:
    return array[:, :0]


def _int32(*values: int) -> Array:
    return np.array(values, np.int32)


def _each(op: Op, argument: str, values: tuple[Any, ...], error: type[Exception]) -> tuple[Bad, ...]:
    return tuple(Bad(op, argument, _to(value), error, str(value)) for value in values)


NOT_PROBABILITIES = (-0.1, 1.5, math.nan, math.inf)
NOT_SEEDS = (-1, 1 << 64)
STARTS = ("key_starts", "query_starts")
DROPOUT_ARRAYS = ("dropout.query_columns", "dropout.key_columns", "dropout.examples")

BAD: tuple[Bad, ...] = (
    Bad(activation, "name", _to("gelu_fast"), ValueError, says="activation"),
    Bad(linear, "x", _narrow, ValueError),
    Bad(linear, "weight", _narrow, ValueError, says="x"),
    Bad(linear, "bias", _cut, ValueError),
    Bad(linear, "residual", _cut, ValueError),
    Bad(linear, "residual", _narrow, ValueError, "narrow"),
    *_each(linear, "activation", ("gelu_fast", "exp"), ValueError),
    *_each(linear, "columns", ((-1, 3), (3, 2), (0, 32)), ValueError),
    Bad(layer_norm, "gain", _cut, ValueError),
    Bad(layer_norm, "bias", _cut, ValueError),
    Bad(layer_norm, "residual", _cut, ValueError),
    *_each(layer_norm, "eps", (0.0, -1e-12, math.nan), ValueError),
    *(Bad(embedding, name, _narrow, ValueError) for name in ("positions", "types")),
    *(Bad(embedding, name, _cut, ValueError) for name in ("gain", "bias", "position_ids", "type_ids")),
    *(Bad(embedding, name, _put(-1, 2), IndexError, "-1") for name in ("ids", "position_ids", "type_ids")),
    *(Bad(embedding, name, _put(limit, 8), IndexError, "limit") for name, limit in (("ids", 53), ("position_ids", 7), ("type_ids", 2))),
    *_each(embedding, "eps", (0.0, -1e-12, math.nan), ValueError),
    Bad(attention, "keys_values", _narrow, ValueError),
    *_each(attention, "n_heads", (4, 0, -3), ValueError),
    *(Bad(attention, name, _to(_int32()), ValueError, "empty") for name in STARTS),
    *(Bad(attention, name, _put(1, 0), ValueError, "not from 0") for name in STARTS),
    *(Bad(attention, name, _put(99, 3), ValueError, "not to the end") for name in STARTS),
    *(Bad(attention, name, _put(99, 1), ValueError, "falling") for name in STARTS),
    Bad(attention, "query_starts", _to(_int32(0, 1, 6)), ValueError, "fewer sequences"),
    Bad(attention, "query_starts", _to(None), ValueError, "missing"),
    Bad(attention, "key_starts", _to(_int32(0, 0, 7, 13)), ValueError, "queries without keys", says="no keys"),
    *(Bad(attention, name, _cut, ValueError) for name in DROPOUT_ARRAYS),
    *(Bad(attention, name, lambda array: array.astype(np.int64), TypeError, "dtype") for name in DROPOUT_ARRAYS),
    *_each(attention, "dropout.p", (*NOT_PROBABILITIES, 1.0), ValueError),
    *_each(attention, "dropout.seed", NOT_SEEDS, ValueError),
    Bad(cross_entropy, "logits", _no_columns, ValueError),
    Bad(cross_entropy, "labels", _cut, ValueError),
    *(Bad(cross_entropy, "labels", _put(label, 0), IndexError, str(label)) for label in (31, -1)),
    *(Bad(op, "x", _narrow, ValueError) for op in DECODERS),
    *(Bad(op, "bias", _cut, ValueError) for op in DECODERS),
    *(Bad(op, "weight", _no_columns, ValueError, "no columns") for op in DECODERS),
    *(Bad(op, "weight", lambda weight: weight[:0], ValueError, "no words") for op in DECODERS),
    *(Bad(op, "labels", _cut, ValueError) for op in (decoder_cross_entropy, decoder_loss)),
    *(Bad(op, "labels", _put(n, 0), IndexError, str(n)) for op in (decoder_cross_entropy, decoder_loss) for n in (31, -1, -100)),
    *_each(decoder_loss, "divisor", (0.0, -1.0, 5e-324, math.nan), ValueError),
    *_each(decoder_top_k, "k", (0, -1, 32), ValueError),
    *(Bad(dropout, name, _cut, ValueError) for name in ("columns", "examples")),
    *_each(dropout, "p", (*NOT_PROBABILITIES, 1.0), ValueError),
    *_each(dropout, "seed", NOT_SEEDS, ValueError),
    *_each(total, "divisor", (0.0, -1.0, 5e-324, math.nan), ValueError),
    *_each(scale, "factor", ("2", None), TypeError),
    *_each(reshape, "shape", ((4, 31), (-1, 5)), ValueError),
    Bad(encoder, "x", lambda x: x[:, :12], ValueError),
    Bad(encoder, "starts", _put(99, 1), ValueError),
    *(Bad(encoder, "rows", _put(row, 0), IndexError, str(row)) for row in (13, -1)),
    Bad(encoder, "rows", lambda rows: rows[::-1], ValueError, "falling"),
    Bad(encoder, "rows", lambda rows: rows[[0, 0, 1, 2, 3, 4]], ValueError, "twice"),
    Bad(encoder, "rows", _cut, ValueError, says="row_starts"),
    Bad(encoder, "rows", lambda rows: np.arange(len(rows), dtype=np.int32), ValueError, "of another sequence"),
    Bad(encoder, "rows", _to(None), ValueError, "none"),
    Bad(encoder, "row_starts", _to(None), TypeError, "none"),
    Bad(encoder, "row_starts", lambda starts: starts[[0, 1, 3]], ValueError, "fewer"),
    Bad(encoder, "row_starts", _put(99, 1), ValueError),
    Bad(encoder, "starts", lambda starts: starts[[0, 0, 2, 3]], ValueError, "no keys"),
    *_each(encoder, "layers", (None, [], "layers", [None]), TypeError),
    *_each(attention_map, "n_heads", (0, -1, 4), ValueError),
    Bad(attention_map, "columns", _cut, ValueError),
    Bad(attention_map, "columns", _put(8, 0), IndexError, "limit"),
    Bad(attention_map, "starts", _put(99, 1), ValueError),
    *(Bad(mlm_mask, name, _cut, ValueError) for name in ("may_mask", "columns", "examples")),
    *_each(mlm_mask, "mlm_probability", NOT_PROBABILITIES, ValueError),
    *_each(mlm_mask, "mask_replace_prob", (*NOT_PROBABILITIES, 0.91), ValueError),
    *_each(mlm_mask, "random_replace_prob", (*NOT_PROBABILITIES, 0.21), ValueError),
    *_each(mlm_mask, "mask_token_id", (-1, 1021), IndexError),
    *_each(mlm_mask, "mask_token_id", (103.5,), TypeError),
    *_each(mlm_mask, "vocab_size", (1021.5,), TypeError),
    *(Bad(mlm_mask, "special_ids", _to(_int32(*ids)), ValueError, str(ids)) for ids in ((-1, 5), (5, 1021), (5, 5), (7, 5))),
    Bad(mlm_mask, "special_ids", _to(_int32(5, 2**31 - 1, -2, 10)), ValueError, "differences wrap around int32"),
    Bad(mlm_mask, "special_ids", _to(np.arange(1021, dtype=np.int32)), ValueError, "every word", says="every word is special"),
    *_each(mlm_mask, "seed", NOT_SEEDS, ValueError),
    *_each(mlm_mask, "epoch", (-1, 65536), ValueError),
    *(Bad(gather_rows, "rows", _put(row, 0), IndexError, str(row)) for row in (7, -1)),
    *(Bad(scatter_rows, "rows", _put(row, 4), IndexError, str(row)) for row in (7, -1)),
    Bad(scatter_rows, "rows", _cut, ValueError),
    Bad(scatter_rows, "rows", lambda rows: rows[::-1], ValueError, "falling"),
    Bad(scatter_rows, "rows", lambda rows: rows[[0, 0, 1, 2, 3]], ValueError, "twice"),
)


@pytest.mark.parametrize("bad", BAD, ids=str)
def test_a_bad_call_is_refused_by_name(bad: Bad, rng: np.random.Generator) -> None:
    call = cases_of(bad.op)[0].build(rng)
    call.run(bad.op)  # well-formed as it stands
    name, _, field = bad.argument.partition(".")
    value = call.params.get(name, call.arrays.get(name))
    value = dataclasses.replace(value, **{field: bad.change(getattr(value, field))}) if field else bad.change(value)
    with pytest.raises(bad.error) as caught:
        call.replace(**{name: value}).run(bad.op)
    assert re.search(rf"\b{bad.says or field or name}\b", str(caught.value)), f"{type(caught.value).__name__}: {caught.value}"
