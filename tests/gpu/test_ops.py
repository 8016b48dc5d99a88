"""Every op that has a GPU kernel, over the calls that its CPU kernel is tested with: on the emulator, and on a GPU if there is one."""

import importlib
import inspect
import pkgutil
from typing import Any

import numpy as np
import pytest
from cases import CASES, Case, assert_within
from gradients.cases import CASES as GRADIENT_CASES
from gradients.cases import Case as GradientCase
from gradients.cases import assert_other_gradients_are_refused, gamma
from reference import STEEPEST

import lucid.ops
from gpu.cases import ROUNDING, WORSE, dense, host, moved, on_gpu, rounded
from gpu.emulator import DeviceArray, Emulator
from lucid._gpu.columns import ROWS_AT_ONCE
from lucid._gpu.runtime import dtype_of, xp
from lucid.ops.activation import activation
from lucid.ops.dropout import dropout
from lucid.ops.linear import linear
from lucid.ops.mlm_mask import mlm_mask
from lucid.ops.op import Op

MOST = 150_000
"""Numbers of a call that the emulator, thread by thread, does in a second or two."""


def size_of(case: Any) -> int:
    call = case.build(np.random.default_rng(0))
    return sum(a.size for a in (*call.arrays.values(), *call.params.values()) if isinstance(a, np.ndarray))


RUN = [case for case in CASES if case.op.gpu is not None and size_of(case) <= MOST]
BACK = [case for case in GRADIENT_CASES if case.op.gpu is not None and size_of(case) <= MOST]
HALVES = ["float16", "bfloat16"]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20_190_524)


@pytest.mark.parametrize("case", RUN, ids=str)
def test_the_result_is_right(case: Case, device: Any, rng: np.random.Generator) -> None:
    call = case.build(rng)
    got = host(case.op(*on_gpu(call).values(), **call.params))
    want, bound = (f(*call.arrays.values(), **call.params) for f in (case.reference, case.bound))
    if not isinstance(want, tuple):
        got, want, bound = (got,), (want,), (bound,)
    for g, w, b in zip(got, want, bound if isinstance(bound, tuple) else (bound,) * len(want), strict=True):
        assert_within(g, w, WORSE * b)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("case", [case for case in RUN if case.op is not mlm_mask], ids=str)
def test_half_precision_is_right(case: Case, dtype: str, device: Any, rng: np.random.Generator) -> None:
    """The float32 result for the same numbers, rounded once or twice."""
    call = rounded(case.build(rng), dtype)
    result = case.op(*on_gpu(call, dtype).values(), **call.params)
    with np.errstate(over="ignore"):
        want, bound = (f(*call.arrays.values(), **call.params) for f in (case.reference, case.bound))
    step = ROUNDING[dtype]
    for got, w, b in zip(*((x if isinstance(x, tuple) else (x,)) for x in (host(result), want, bound)), strict=True):
        size = np.abs(w)
        scale = size.max(axis=-1, keepdims=True, initial=0) if w.ndim else size  # of what was rounded on the way
        assert_within(got.astype(np.float32), w, WORSE * b + step * (3 * size + scale) + 1e-6)


def d_out_of(case: GradientCase, call: Any, rng: np.random.Generator) -> np.ndarray:
    return np.asarray(rng.standard_normal(np.shape(case.reference(call)[0])), np.float32)


@pytest.mark.parametrize("case", BACK, ids=str)
def test_gradients_are_right(case: GradientCase, device: Any, rng: np.random.Generator) -> None:
    call = case.build(rng)
    d_out = d_out_of(case, call, rng)
    got = gradients(case, call, d_out, "float32")
    want, bounds = case.reference(call)[1](d_out), case.bound(d_out, *call.arrays.values(), **call.params)
    for name, g, w, bound in zip(call.arrays, got, want, bounds, strict=False):
        if call.arrays[name] is None:
            assert g is None, name
            continue
        bound = WORSE * bound
        if case.op is linear and name == "bias":  # the CPU adds it in float64
            begin, end = call.params["columns"] or (0, len(g))
            bound[begin:end] += gamma(ROWS_AT_ONCE) * STEEPEST * np.abs(d_out).sum(axis=0)
        assert_within(g, w, bound)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("case", BACK, ids=str)
def test_half_precision_gradients_are_near(case: GradientCase, dtype: str, device: Any, rng: np.random.Generator) -> None:
    call = rounded(case.build(rng), dtype)
    d_out = d_out_of(case, call, rng)
    d_out = d_out if d_out.ndim < 2 else host(moved(d_out, dtype)).astype(np.float32)
    want = case.reference(call)[1](d_out)
    for name, g, w in zip(call.arrays, gradients(case, call, d_out, dtype), want, strict=False):
        is_constant = call.arrays[name] is None or call.arrays[name].shape[-1:] in ((1,), (2,), (3,))  # but for rounding
        if not is_constant and np.linalg.norm(w) > 1e-3:
            assert np.linalg.norm(g - w) <= 8 * ROUNDING[dtype] * np.linalg.norm(w), name


def gradients(case: GradientCase, call: Any, d_out: np.ndarray, dtype: str) -> list[Any]:
    result, saved = case.op.run(*on_gpu(call, dtype).values(), keep=True, **call.params)
    kernel = case.op.on(result)
    assert kernel.backward is not None
    found = kernel.backward(saved, xp.asarray(d_out.astype(result.dtype)))
    assert all(g is None or g.dtype in (np.float32, dtype_of(dtype)) for g in found if not hasattr(g, "add_to"))
    return [g if g is None else dense(g).astype(np.float32) for g in found]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("op", {case.op.name: case.op for case in BACK}.values(), ids=lambda op: op.name)
def test_a_gradient_of_another_form_is_refused(op: Op, dtype: str, device: Any, rng: np.random.Generator) -> None:
    call = next(case for case in BACK if case.op is op).build(rng)
    assert_other_gradients_are_refused(op, on_gpu(call, dtype).values(), call.params)


@pytest.mark.parametrize("case", [case for case in RUN if case.op in (dropout, mlm_mask)], ids=str)
def test_random_numbers_are_those_of_the_cpu(case: Case, device: Any, rng: np.random.Generator) -> None:
    call = case.build(rng)
    got, want = host(case.op(*on_gpu(call).values(), **call.params)), call.run(case.op)
    for g, w in zip(*((x if isinstance(x, tuple) else (x,)) for x in (got, want)), strict=True):
        assert g.dtype == w.dtype
        assert g.tobytes() == w.tobytes()


@pytest.mark.parametrize("case", [case for case in RUN if size_of(case) <= 20_000], ids=str)
def test_no_result_depends_on_the_order_of_threads(case: Case, emulated: Emulator, rng: np.random.Generator) -> None:
    call = case.build(rng)
    found = []
    for emulated.is_reversed in (False, True):
        found.append(host(case.op(*on_gpu(call).values(), **call.params)))
    for a, b in zip(*((x if isinstance(x, tuple) else (x,)) for x in found), strict=True):
        assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("case", [case for case in BACK if case.size <= 20_000], ids=str)
def test_no_gradient_depends_on_the_order_of_threads(case: GradientCase, emulated: Emulator, rng: np.random.Generator) -> None:
    call = case.build(rng)
    d_out = d_out_of(case, call, rng)
    found = []
    for emulated.is_reversed in (False, True):
        found.append([None if g is None else g.tobytes() for g in gradients(case, call, d_out, "float32")])
    assert found[0] == found[1]


@pytest.mark.parametrize("case", [case for case in BACK if case.size <= 20_000], ids=str)
def test_nobody_waits_for_the_gpu(case: GradientCase, emulated: Emulator, rng: np.random.Generator) -> None:
    call = case.build(rng)
    d_out = d_out_of(case, call, rng)
    arrays, d_out = on_gpu(call), xp.asarray(d_out)
    n = DeviceArray.n_reads
    result, saved = case.op.run(*arrays.values(), keep=True, **call.params)
    case.op.on(result).backward(saved, d_out)  # type: ignore[misc]
    assert DeviceArray.n_reads == n


def test_arrays_of_two_devices_are_refused(emulated: Emulator) -> None:
    from lucid.ops.layer_norm import layer_norm

    x, vector = np.ones((2, 4), np.float32), np.ones(4, np.float32)
    with pytest.raises(TypeError, match="layer_norm: some arrays are on the CPU and some on the GPU"):
        layer_norm(xp.asarray(x), vector, vector, eps=1e-5)


def test_an_activation_of_another_type_is_refused(emulated: Emulator) -> None:
    with pytest.raises(TypeError, match="activation"):
        activation(xp.asarray(np.ones(3)), name="gelu")


def _find_ops() -> dict[str, Op]:
    modules = [importlib.import_module(f"lucid.ops.{info.name}") for info in pkgutil.iter_modules(lucid.ops.__path__)]
    return {value.name: value for module in modules for value in vars(module).values() if isinstance(value, Op)}


ON_THE_CPU_ALONE = {"encoder"}  # it saves Python between kernels, which a GPU does not wait for


def test_ops_of_the_cpu_alone_are_listed() -> None:
    assert {name for name, op in _find_ops().items() if op.gpu is None} == ON_THE_CPU_ALONE


@pytest.mark.parametrize("op", [op for name, op in _find_ops().items() if name not in ON_THE_CPU_ALONE], ids=lambda op: op.name)
def test_every_op_has_a_kernel_that_takes_the_same_arguments(op: Op) -> None:
    assert op.gpu is not None
    kernel = op.gpu()
    bound = getattr(kernel.forward, "keywords", {})
    assert (kernel.backward is None) == (op.cpu.backward is None)

    def arguments(function: Any) -> list[tuple[Any, ...]]:
        return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values() if p.name not in bound]

    assert arguments(kernel.forward) == arguments(op.cpu.forward)
    assert any(case.op is op for case in RUN)
