"""What is asked of CuPy, in its place a stand-in that writes it down: cuBLAS's columns, names, options, null pointers."""

import ctypes
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gpu.emulator.arrays import DeviceArray
from lucid._gpu import runtime
from lucid._gpu.runtime import CuPy, dtype_of

TYPES = {0: "float32", 2: "float16", 14: "bfloat16"}


def columns(pointer: int, n_rows: int, n_columns: int, stride: int, kind: int) -> np.ndarray:
    """The matrix at an address as cuBLAS sees it: column by column."""
    dtype = dtype_of(TYPES[kind])
    n_bytes = (stride * (n_columns - 1) + n_rows) * dtype.itemsize
    flat = np.frombuffer((ctypes.c_char * n_bytes).from_address(pointer), dtype)
    return np.lib.stride_tricks.as_strided(flat, (n_rows, n_columns), (dtype.itemsize, stride * dtype.itemsize))


def gemm_ex(handle, trans_a, trans_b, m, n, k, alpha, a, a_type, lda, b, b_type, ldb, beta, c, c_type, ldc, compute, algo) -> None:  # type: ignore[no-untyped-def]
    """cublasGemmEx, as its manual says: C = alpha op(A) op(B) + beta C, column by column."""
    assert (handle, compute, algo) == (77, 68, -1)
    of_a = columns(a, *((k, m) if trans_a else (m, k)), lda, a_type).astype(np.float32)
    of_b = columns(b, *((n, k) if trans_b else (k, n)), ldb, b_type).astype(np.float32)
    factor, add = (ctypes.cast(p, ctypes.POINTER(ctypes.c_float))[0] for p in (alpha, beta))
    of_c = columns(c, m, n, ldc, c_type)
    of_c[...] = factor * (of_a.T if trans_a else of_a) @ (of_b.T if trans_b else of_b) + (add * of_c.astype(np.float32) if add else 0)


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> CuPy:
    """CuPy's backend with a CuPy of ours."""
    for name in ("cupy_backends", "cupy_backends.cuda"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    libraries = ModuleType("cupy_backends.cuda.libs")
    libraries.cublas = SimpleNamespace(gemmEx=gemm_ex)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cupy_backends.cuda.libs", libraries)
    backend = object.__new__(CuPy)
    device = SimpleNamespace(get_cublas_handle=lambda: 77)
    backend.xp = SimpleNamespace(cuda=SimpleNamespace(device=device, runtime=SimpleNamespace(getDevice=lambda: 0)))
    backend._kernels = {}
    return backend


def test_the_stream_is_cupys(cupy: CuPy) -> None:
    cupy.xp.cuda.runtime.getDevice = lambda: 3
    cupy.xp.cuda.get_current_stream = lambda: SimpleNamespace(ptr=77)
    assert cupy.stream() == (3, 77)


@pytest.mark.parametrize("beta", [0.0, 1.0, 0.5])
@pytest.mark.parametrize("dtypes", [("float32", "float32"), ("bfloat16", "bfloat16"), ("bfloat16", "float32"), ("float16", "float32")])
@pytest.mark.parametrize("is_strided", [False, True])
@pytest.mark.parametrize(("transpose_a", "transpose_b"), [(False, False), (False, True), (True, False), (True, True)])
@pytest.mark.parametrize("shape", [(5, 7, 3), (1, 7, 3), (5, 1, 3), (5, 7, 1), (1, 1, 1)])
def test_cublas_is_asked_for_the_product(
    cupy: CuPy, shape: tuple[int, int, int], transpose_a: bool, transpose_b: bool, is_strided: bool, dtypes: tuple[str, str], beta: float
) -> None:
    m, n, k = shape
    rng = np.random.default_rng(3)

    def matrix(n_rows: int, n_columns: int, dtype: str) -> DeviceArray:
        wide = rng.standard_normal((n_rows, n_columns + 4 * is_strided)).astype(dtype_of(dtype))
        return DeviceArray(wide[:, :n_columns])

    a, b = matrix(*((k, m) if transpose_a else (m, k)), dtypes[0]), matrix(*((n, k) if transpose_b else (k, n)), dtypes[0])
    out = matrix(m, n, dtypes[1])
    left, right, before = (x.host.astype(np.float64) for x in (a, b, out))
    cupy.gemm(a, b, out, transpose_a, transpose_b, beta)
    want = (left.T if transpose_a else left) @ (right.T if transpose_b else right) + beta * before
    assert np.allclose(out.host.astype(np.float64), want, atol=1e-5 if dtypes[1] == "float32" else 6e-2)


def test_kernels_are_compiled_once_and_launched(cupy: CuPy, monkeypatch: pytest.MonkeyPatch) -> None:
    made, launched = [], []

    class Function:
        max_dynamic_shared_size_bytes, shared_size_bytes = 48 << 10, 0

        def __call__(self, grid: Any, block: Any, args: Any, shared_mem: int) -> None:
            launched.append((grid, block, args, shared_mem, self.max_dynamic_shared_size_bytes))

    def raw_module(**options: Any) -> Any:
        made.append(options)
        return SimpleNamespace(get_function=lambda name: Function() if name == "take_rows<float>" else None)

    cupy.xp.RawModule = raw_module
    monkeypatch.setattr(cupy, "_options", lambda: ("-std=c++17",))
    before = runtime.set_backend(cupy)
    try:
        for shared in (0, 100_000):
            runtime.launch("rows", "take_rows<float>", 5, (32, 2), (None, np.int32(3)), shared=shared)
        runtime.launch("rows", "take_rows<float>", (5, 0), 32, ())
    finally:
        runtime.set_backend(before)
    assert len(made) == 1
    assert made[0]["name_expressions"] == ["take_rows<float>"]
    assert "__global__ void take_rows" in made[0]["code"]
    grids, blocks, args, shared, most = zip(*launched, strict=True)
    assert (grids, blocks, shared) == (((5, 1, 1),) * 2, ((32, 2, 1),) * 2, (0, 100_000))
    assert most == (48 << 10, 100_000)  # more than a block has unasked is asked for
    assert args[0][0].dtype == np.uint64
    assert args[0][0] == 0
