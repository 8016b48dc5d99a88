"""Products with what follows them in one kernel, by cuBLASLt through nvmath-python: a bias is added, or its gradient summed.

For 16-bit matrices. cuBLASLt thinks in columns, and so do plans here: a row-major matrix is to it the transposed one. Its GELU is
never used: that is the form with tanh, not BERT's.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np

from lucid._gpu import runtime
from lucid._gpu.libraries import CUBLASLT, check_near
from lucid._gpu.runtime import COMPUTE_32F, CUDA_TYPES, Array, address, row_stride

WORKSPACE_BYTES = 32 << 20
"""The most that cuBLASLt may use beside its results: what NVIDIA recommends for Hopper."""
MOST_PLANS = 256
CHECKED = (72, 64, 96)  # rows, inputs and outputs of the case that is done both ways


def product(x: Array, weight: Array, bias: Array) -> Array | None:
    """Return x . Wᵀ + bias, or None if that is not for cuBLASLt.

    Parameters
    ----------
    x, weight : arrays of one type, shapes (M, K) and (N, K), rows contiguous
    bias : array, float32, shape (N,). It is rounded to the type of x, which cuBLASLt wants.
    """
    if not _fits(x, weight):
        return None
    y = runtime.empty((len(x), len(weight)), x.dtype)
    kind = ("product + bias", x.dtype.name)
    return y if CUBLASLT.does(kind, partial(_check_product, x.dtype), partial(_product, x, weight, bias, y)) else None


def weight_gradient(d_y: Array, x: Array, d_weight: Array) -> Array | None:
    """Write d_yᵀ . x and return the sums of the columns of d_y, or return None if that is not for cuBLASLt.

    Parameters
    ----------
    d_y, x : arrays of one type, shapes (M, N) and (M, K), rows contiguous
    d_weight : array, float32, shape (N, K). Written.
    """
    if not _fits(d_y, x):
        return None
    d_bias = runtime.empty((d_y.shape[1],))
    kind = ("gradients of weight and bias", x.dtype.name)
    work = partial(_weight_gradient, d_y, x, d_weight, d_bias)
    return d_bias if CUBLASLT.does(kind, partial(_check_weight_gradient, x.dtype), work) else None


def _fits(a: Array, b: Array) -> bool:
    return bool(CUBLASLT.is_asked_for and a.dtype == b.dtype and a.itemsize == 2 and a.size and b.size)


def _product(x: Array, weight: Array, bias: Array, y: Array) -> None:
    _multiply(weight, x, y, True, False, "BIAS", bias.astype(y.dtype))


def _weight_gradient(d_y: Array, x: Array, d_weight: Array, d_bias: Array) -> None:
    _multiply(x, d_y, d_weight, False, True, "BGRADB", d_bias)


# The small cases


def _some(dtype: Any, seed: int, *shape: int) -> Array:
    return runtime.xp.asarray(np.random.default_rng(seed).standard_normal(shape).astype(np.float32).astype(dtype))


def _check_product(dtype: Any) -> None:
    m, k, n = CHECKED
    x, weight, bias, y = _some(dtype, 0, m, k), _some(dtype, 1, n, k), _some(np.float32, 2, n), runtime.empty((m, n), dtype)
    _product(x, weight, bias, y)
    want = runtime.gemm(x, weight, runtime.empty((m, n)), transpose_b=True) + bias
    check_near("x . Wᵀ + bias", y, want.astype(dtype))


def _check_weight_gradient(dtype: Any) -> None:
    from lucid._gpu.columns import column_sum

    m, k, n = CHECKED
    d_y, x, d_weight, d_bias = _some(dtype, 0, m, n), _some(dtype, 1, m, k), runtime.empty((n, k)), runtime.empty((n,))
    _weight_gradient(d_y, x, d_weight, d_bias)
    check_near("the gradient of W", d_weight, runtime.gemm(d_y, x, runtime.empty((n, k)), transpose_a=True))
    check_near("the gradient of the bias", d_bias, column_sum(d_y))


# cuBLASLt


@dataclass(frozen=True, slots=True)
class Problem:
    """What a plan is made for: D (m, n) = op(A) . op(B) in columns, and what is done with a vector of bias.

    Attributes
    ----------
    device : int
    m, n, k : int
    transpose_a, transpose_b : bool. Whether A lies as (k, m), and B as (n, k).
    dtype, out_dtype : str. Of A and B, and of D and the vector.
    strides : of A, B and D: from one column to the next, in elements
    alignments : of A, B and D, in bytes
    epilogue : str. A name of `cublasLtEpilogue_t`: BIAS adds the vector (m,) to each column, BGRADB writes B's sums over k, (n,).
    """

    device: int
    m: int
    n: int
    k: int
    transpose_a: bool
    transpose_b: bool
    dtype: str
    out_dtype: str
    strides: tuple[int, int, int]
    alignments: tuple[int, int, int]
    epilogue: str


def _multiply(a: Array, b: Array, out: Array, transpose_a: bool, transpose_b: bool, epilogue: str, vector: Array) -> None:
    """Do a `Problem`; row-major `a` (k, m), or (m, k) if transposed, and `out` (n, m) are A and D in columns."""
    from nvmath.bindings import cublasLt as lt

    device, stream = runtime.stream()
    (n, m), k = out.shape, a.shape[int(transpose_a)]
    strides, alignments = (row_stride(a), row_stride(b), row_stride(out)), (_alignment(a), _alignment(b), _alignment(out))
    problem = Problem(device, m, n, k, transpose_a, transpose_b, a.dtype.name, out.dtype.name, strides, alignments, epilogue)
    plan = _plans.get(problem)
    if plan is None:
        if len(_plans) >= MOST_PLANS:
            del _plans[next(iter(_plans))]
        plan = _plans[problem] = Plan(problem, address(vector))
    plan.point_to(address(vector))
    workspace = runtime.empty((max(1, plan.workspace_bytes),), np.uint8)
    one, zero = _FACTORS.ctypes.data, _FACTORS.ctypes.data + _FACTORS.itemsize
    places = address(a), plan.a, address(b), plan.b, zero, address(out), plan.out, address(out), plan.out
    lt.matmul(_handle(device), plan.description, one, *places, plan.algorithm, address(workspace), plan.workspace_bytes, stream)


_FACTORS = np.array([1, 0], np.float32)
_plans: dict[Problem, Plan] = {}


@cache
def _handle(device: int) -> int:
    """Return cuBLASLt's handle for the device, which is the current one."""
    from nvmath.bindings import cublasLt as lt

    return lt.create()  # type: ignore[no-any-return]


def _alignment(array: Array) -> int:
    """Return the largest power of two, up to 256, that divides an array's address."""
    return min(256, address(array) & -address(array))


class Plan:
    """What cuBLASLt wants to know of a problem, and its answer: all on the host, nobody waits for the GPU.

    Parameters
    ----------
    problem : Problem
    vector : int. Address of some vector of bias; `point_to` changes it.
    """

    def __init__(self, problem: Problem, vector: int) -> None:
        from nvmath.bindings import cublasLt as lt

        self.description = lt.matmul_desc_create(COMPUTE_32F, CUDA_TYPES["float32"])
        made: list[tuple[Any, int]] = [(lt.matmul_desc_destroy, self.description)]
        weakref.finalize(self, _destroy, made).atexit = False
        _set("matmul_desc", self.description, "TRANSA", int(problem.transpose_a))  # CUBLAS_OP_N is 0, CUBLAS_OP_T is 1
        _set("matmul_desc", self.description, "TRANSB", int(problem.transpose_b))
        _set("matmul_desc", self.description, "EPILOGUE", lt.Epilogue[problem.epilogue])
        self.point_to(vector)

        def layout(dtype: str, rows: int, columns: int, stride: int, is_transposed: bool) -> int:
            rows, columns = (columns, rows) if is_transposed else (rows, columns)
            made.append((lt.matrix_layout_destroy, lt.matrix_layout_create(CUDA_TYPES[dtype], rows, columns, stride)))
            return made[-1][1]

        m, n, k = problem.m, problem.n, problem.k
        self.a = layout(problem.dtype, m, k, problem.strides[0], problem.transpose_a)
        self.b = layout(problem.dtype, k, n, problem.strides[1], problem.transpose_b)
        self.out = layout(problem.out_dtype, m, n, problem.strides[2], False)
        preference = lt.matmul_preference_create()
        made.append((lt.matmul_preference_destroy, preference))
        _set("matmul_preference", preference, "MAX_WORKSPACE_BYTES", WORKSPACE_BYTES)
        # Parts of a sum over k are added in float32, never in a 16-bit result.
        _set("matmul_preference", preference, "REDUCTION_SCHEME_MASK", lt.ReductionScheme.COMPUTE_TYPE)
        for name, alignment in zip("ABCD", (*problem.alignments, problem.alignments[2]), strict=True):
            _set("matmul_preference", preference, f"MIN_ALIGNMENT_{name}_BYTES", alignment)
        self._found, n_found = lt.MatmulHeuristicResult(1), np.zeros(1, np.int32)
        matrices = self.a, self.b, self.out, self.out
        handle = _handle(problem.device)
        lt.matmul_algo_get_heuristic(handle, self.description, *matrices, preference, 1, self._found.ptr, n_found.ctypes.data)
        if not n_found[0]:
            raise NotImplementedError(f"cuBLASLt has no kernel for {problem}")
        self.algorithm: int = self._found.ptr  # the struct begins with it
        self.workspace_bytes = int(self._found.workspace_size)

    def point_to(self, vector: int) -> None:
        """Say where the vector of bias is."""
        _set("matmul_desc", self.description, "BIAS_POINTER", vector)


def _set(what: str, description: int, name: str, value: int) -> None:
    """Set an attribute, as a number of the type that nvmath-python says it has."""
    from nvmath.bindings import cublasLt as lt

    attribute = getattr(lt, {"matmul_desc": "MatmulDescAttribute", "matmul_preference": "MatmulPreferenceAttribute"}[what])[name]
    number = np.array(value, getattr(lt, f"get_{what}_attribute_dtype")(attribute))
    getattr(lt, f"{what}_set_attribute")(description, attribute, number.ctypes.data, number.nbytes)


def _destroy(made: list[tuple[Any, int]]) -> None:
    for destroy, description in made:
        destroy(description)
