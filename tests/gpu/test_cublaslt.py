"""Linear through cuBLASLt: the real nvmath-python, with stand-ins for what wants a driver; and on a GPU, if there is one."""

import ctypes
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from gpu.emulator import Emulator
from gpu.test_runtime import columns
from lucid._gpu import cublaslt, runtime
from lucid._gpu.libraries import BOUNDS, CUBLASLT, SWITCH
from lucid._gpu.runtime import dtype_of
from lucid.ops.linear import linear

HALVES = ["float16", "bfloat16"]
Array = Any


class StandIn:
    """cuBLASLt as its manual describes it, as far as plans use it; if `is_wrong`, without what epilogues do."""

    def __init__(self, lt: Any) -> None:
        self.lt, self.alive, self.n_made, self.n_products, self.is_wrong, self.n_found = lt, {}, 0, 0, False, 1

    def make(self, *what: Any) -> int:
        self.n_made += 1
        self.alive[self.n_made] = list(what)
        return self.n_made

    def destroy(self, description: int) -> None:
        del self.alive[description]

    def set(self, kind: str) -> Any:
        def set_attribute(description: int, attribute: int, buffer: int, n_bytes: int) -> None:
            dtype = np.dtype(getattr(self.lt, f"get_{kind}_attribute_dtype")(attribute))
            assert n_bytes == dtype.itemsize
            value = np.frombuffer((ctypes.c_char * n_bytes).from_address(buffer), dtype)[0]
            self.alive[description].append((int(attribute), int(value)))

        return set_attribute

    def heuristic(
        self, handle: int, description: int, a: int, b: int, c: int, d: int, preference: int, n: int, results: int, count: int
    ) -> None:
        assert (handle, n) == (77, 1)
        assert all(layout in self.alive for layout in (description, a, b, c, d))
        wishes, names = dict(self.alive[preference]), self.lt.MatmulPreferenceAttribute
        assert wishes[names.MAX_WORKSPACE_BYTES] == 32 << 20
        assert wishes[names.REDUCTION_SCHEME_MASK] == self.lt.ReductionScheme.COMPUTE_TYPE
        assert all(wishes[names[f"MIN_ALIGNMENT_{x}_BYTES"]] in (2, 4, 8, 16, 32, 64, 128, 256) for x in "ABCD")
        found = np.frombuffer((ctypes.c_char * 96).from_address(results), self.lt.matmul_heuristic_result_dtype)
        found["workspace_size"], found["algo"]["data_"] = 512, 5
        ctypes.cast(count, ctypes.POINTER(ctypes.c_int))[0] = self.n_found

    def matmul(
        self, handle: int, description: int, alpha: int, a: int, a_layout: int, b: int, b_layout: int, beta: int, c: int, c_layout: int,
        d: int, d_layout: int, algorithm: int, workspace: int, n_bytes: int, stream: int,
    ) -> None:  # fmt: skip
        assert (handle, n_bytes, stream, c, c_layout) == (77, 512, 0, d, d_layout)
        assert [ctypes.cast(p, ctypes.POINTER(ctypes.c_float))[0] for p in (alpha, beta)] == [1, 0]
        assert ctypes.cast(algorithm, ctypes.POINTER(ctypes.c_uint64))[0] == 5
        compute, scale, *attributes = self.alive[description]
        assert (compute, scale) == (68, 0)  # sums in float32, no TF32
        names, known = self.lt.MatmulDescAttribute, dict(attributes)

        def matrix(place: int, layout: int) -> Array:
            kind, n_rows, n_columns, stride = self.alive[layout]
            return columns(place, n_rows, n_columns, stride, kind)

        of_a, of_b, of_d = matrix(a, a_layout), matrix(b, b_layout), matrix(d, d_layout)
        of_a, of_b = of_a.T if known[names.TRANSA] else of_a, of_b.T if known[names.TRANSB] else of_b
        of_a, of_b = of_a.astype(np.float32), of_b.astype(np.float32)
        of_bias = np.dtype(of_d.dtype)  # the type of D, unless it is set
        n = of_d.shape[0] if known[names.EPILOGUE] == self.lt.Epilogue.BIAS else of_d.shape[1]
        vector = np.frombuffer((ctypes.c_char * (n * of_bias.itemsize)).from_address(known[names.BIAS_POINTER]), of_bias)
        product = of_a @ of_b
        if known[names.EPILOGUE] == self.lt.Epilogue.BIAS:
            product += 0 if self.is_wrong else vector.astype(np.float32)[:, None]
        else:
            assert known[names.EPILOGUE] == self.lt.Epilogue.BGRADB
            vector[...] = 0 if self.is_wrong else of_b.sum(axis=0)
        of_d[...] = product.astype(of_d.dtype)
        self.n_products += 1


@pytest.fixture
def lt() -> Any:
    """nvmath-python's binding, which can be imported without a driver."""
    return pytest.importorskip("nvmath.bindings", reason="nvmath-python is not installed: pip install 'lucid-bert[gpu-fast]'").cublasLt


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """cuBLASLt is asked for, and nothing is known of it."""
    monkeypatch.setenv(SWITCH, "cublaslt")
    _forget()
    yield monkeypatch
    _forget()


def _forget() -> None:
    CUBLASLT.forget()
    cublaslt._handle.cache_clear()
    cublaslt._plans.clear()


@pytest.fixture
def stand_in(lt: Any, fresh: pytest.MonkeyPatch, emulated: Emulator) -> StandIn:
    it = StandIn(lt)
    functions = {"create": lambda: 77, "matmul_algo_get_heuristic": it.heuristic, "matmul": it.matmul}
    for kind in ("matmul_desc", "matmul_preference", "matrix_layout"):
        functions |= {f"{kind}_create": it.make, f"{kind}_destroy": it.destroy, f"{kind}_set_attribute": it.set(kind)}
    for name, function in functions.items():
        assert callable(getattr(lt, name))
        fresh.setattr(lt, name, function)
    return it


SHAPES = [((5, 24, 16), None), ((70, 32, 48), (16, 48)), ((3, 8, 8), (0, 3)), ((1, 16, 8), None)]


def _results(
    rng: np.random.Generator, dtype: str, shape: tuple[int, int, int], part: Any, offset: int = 0
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """y and all gradients, with cuBLASLt and without."""
    m, k, n = shape
    x, weight = (_some(rng, dtype, offset, *sizes) for sizes in ((m, k), (n, k)))
    bias = runtime.xp.asarray(rng.standard_normal(n).astype(np.float32))
    kernel = linear.gpu()  # type: ignore[misc]
    found = []
    d_y = None
    for is_asked in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(SWITCH, "cublaslt" if is_asked else "0")
            y, saved = kernel.forward(x, weight, bias, columns=part, keep=True)
            d_y = _some(rng, dtype, offset, *y.shape) if d_y is None else d_y
            d_x, d_weight, d_bias, d_residual = kernel.backward(saved, d_y)
            assert d_residual is None
            found.append(tuple(array.get() for array in (y, d_x, d_weight, d_bias)))
    return found[0], found[1]


def _some(rng: np.random.Generator, dtype: str, offset: int, n_rows: int, n_columns: int) -> Array:
    """A matrix within a wider one."""
    return runtime.xp.asarray(rng.standard_normal((n_rows, n_columns + offset)).astype(dtype_of(dtype)))[:, :n_columns]


def _assert_near(got: tuple[Array, ...], want: tuple[Array, ...]) -> None:
    for name, g, w in zip(("y", "d_x", "d_weight", "d_bias"), got, want, strict=True):
        assert (g.shape, g.dtype) == (w.shape, w.dtype), name
        g, w = g.astype(np.float64), w.astype(np.float64)
        assert np.linalg.norm(g - w) <= BOUNDS[want[0].dtype.name] / 2 * np.linalg.norm(w), name


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("offset", [0, 8])
@pytest.mark.parametrize(("shape", "part"), SHAPES)
def test_plans_describe_the_products(
    shape: tuple[int, int, int], part: Any, offset: int, dtype: str, stand_in: StandIn, rng: np.random.Generator
) -> None:
    _assert_near(*_results(rng, dtype, shape, part, offset))
    assert CUBLASLT.used() == [f"cublaslt: ('{kind}', '{dtype}')" for kind in ("product + bias", "gradients of weight and bias")]
    assert stand_in.n_products == 4  # two of them for the check


@pytest.mark.parametrize("dtype", HALVES)
def test_a_wrong_epilogue_is_noticed(dtype: str, stand_in: StandIn, rng: np.random.Generator) -> None:
    stand_in.is_wrong = True
    with pytest.warns(UserWarning, match="cublaslt is not used for .*WrongError: (x . Wᵀ|the gradient of the bias)") as warned:
        got, want = _results(rng, dtype, *SHAPES[1])
    assert len(warned) == 2
    assert [x.tobytes() for x in got] == [x.tobytes() for x in want]
    assert CUBLASLT.used() == []


def test_no_kernel_for_a_shape(stand_in: StandIn, rng: np.random.Generator) -> None:
    stand_in.n_found = 0
    with pytest.warns(UserWarning, match="NotImplementedError: cuBLASLt has no kernel for Problem"):
        got, want = _results(rng, "float16", *SHAPES[0])
    assert [x.tobytes() for x in got] == [x.tobytes() for x in want]


def test_plans_are_kept_and_given_back(stand_in: StandIn, fresh: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    fresh.setattr(cublaslt, "MOST_PLANS", 3)
    weight, bias = _some(rng, "bfloat16", 0, 8, 16), runtime.xp.asarray(np.ones(8, np.float32))

    def forward(m: int) -> None:
        linear.gpu().forward(runtime.xp.asarray(np.ones((m, 16), dtype_of("bfloat16"))), weight, bias, keep=False)  # type: ignore[misc]

    for m in range(4, 12):
        forward(m)
    assert len(cublaslt._plans) == 3
    assert len(stand_in.alive) == 3 * 5  # a product, three matrices, a preference


def test_a_plan_is_used_with_another_bias(stand_in: StandIn, rng: np.random.Generator) -> None:
    x, d_y, d_weight = _some(rng, "float16", 0, 5, 8), _some(rng, "float16", 0, 5, 16), runtime.empty((16, 8))
    found = [cublaslt.weight_gradient(factor * d_y, x, d_weight) for factor in (np.float16(1), np.float16(2))]
    assert len(cublaslt._plans) == 2  # one of them for the check
    one, two = (array.get() for array in found)
    assert np.allclose(two, 2 * one)
    assert np.allclose(one, d_y.get().astype(np.float32).sum(axis=0), atol=1e-5)


def test_alignment() -> None:
    class At:
        def __init__(self, place: int) -> None:
            self.data = type("Pointer", (), {"ptr": place})

    assert [cublaslt._alignment(At(place)) for place in (512, 256, 48, 2)] == [256, 256, 16, 2]


def test_nvmath_has_what_plans_use(lt: Any) -> None:
    """Names and numbers of the real package."""
    assert (lt.Epilogue.BIAS, lt.Epilogue.BGRADB, lt.ReductionScheme.COMPUTE_TYPE) == (4, 512, 2)
    assert [int(lt.MatmulDescAttribute[name]) for name in ("TRANSA", "TRANSB", "EPILOGUE", "BIAS_POINTER")] == [3, 4, 7, 8]
    assert lt.matmul_heuristic_result_dtype.fields["algo"][1] == 0  # plans give the address of the result as that of the algorithm
    signatures = {
        "matmul": "light_handle compute_desc alpha a adesc b bdesc beta c cdesc d ddesc algo workspace workspace_size_in_bytes stream",
        "matmul_algo_get_heuristic": "light_handle operation_desc adesc bdesc cdesc ddesc preference requested_algo_count "
        "heuristic_results_array return_algo_count",
        "matmul_desc_create": "compute_type scale_type",
        "matrix_layout_create": "type rows cols ld",
        "matmul_desc_set_attribute": "matmul_desc attr buf size_in_bytes",
    }
    for name, arguments in signatures.items():
        first = getattr(lt, name).__doc__.partition(")")[0].partition("(")[2]
        assert [part.split()[-1] for part in first.split(",")] == arguments.split(), name


# On a GPU


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(("shape", "part"), [*SHAPES[:2], ((1000, 768, 2304), None), ((1000, 768, 2304), (768, 2304))])
def test_on_a_gpu(gpu: Any, lt: Any, fresh: Any, shape: Any, part: Any, dtype: str, rng: np.random.Generator) -> None:
    _assert_near(*_results(rng, dtype, shape, part))
    assert len(CUBLASLT.used()) == 2
