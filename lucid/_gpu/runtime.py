"""What the GPU's kernels stand on: arrays, launches, products. The only file that knows CuPy.

CuPy is imported when something here is first used. Tests put an emulator in its place (`set_backend`): it runs the same
CUDA source on the CPU.
"""

from __future__ import annotations

import itertools
import re
import threading
import weakref
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

Array = Any

C_TYPES = {"float32": "float", "float16": "__half", "bfloat16": "__nv_bfloat16"}
"""Types of stored numbers, as NumPy and as CUDA call them. Arithmetic is in float32."""

OPTIONS = ("-std=c++17",)
SHARED_WITHOUT_ASKING = 48 << 10  # bytes of shared memory that a block may have unasked

_FOLDER = Path(__file__).parent


class Backend(Protocol):
    """What `runtime` needs of CuPy, or of the emulator."""

    xp: Any
    """The array module, with the functions of NumPy."""

    def launch(self, source: str, kernel: str, grid: tuple[int, ...], block: tuple[int, ...], args: Sequence[Any], shared: int) -> None:
        """Run a kernel."""

    def gemm(self, a: Array, b: Array, out: Array, transpose_a: bool, transpose_b: bool, beta: float) -> None:
        """Multiply."""

    def read_later(self, array: Array) -> Callable[[], np.ndarray[Any, Any]]:
        """Start copying an array to the host."""

    def status(self) -> str:
        """Say what device there is."""

    def memory(self) -> tuple[int, int]:
        """Return how many bytes are free, and how many there are."""

    def stream(self) -> tuple[int, int]:
        """Return the number of the device, and the address of the stream that work is queued on."""


class CuPy:
    """CuPy on the current CUDA device."""

    def __init__(self) -> None:
        import cupy

        self.xp = cupy
        self._kernels: dict[tuple[int, str, str], Any] = {}

    def launch(self, source: str, kernel: str, grid: tuple[int, ...], block: tuple[int, ...], args: Sequence[Any], shared: int) -> None:
        """Run a kernel on the current stream; it is compiled when it is first used on a device."""
        key = (self.xp.cuda.runtime.getDevice(), source, kernel)
        function = self._kernels.get(key)
        if function is None:
            module = self.xp.RawModule(code=source_text(source), options=self._options(), name_expressions=[kernel])
            function = self._kernels[key] = module.get_function(kernel)
        if shared + function.shared_size_bytes > SHARED_WITHOUT_ASKING and function.max_dynamic_shared_size_bytes < shared:
            function.max_dynamic_shared_size_bytes = shared
        # CuPy passes a NumPy number by value, and None not at all: a null pointer is a 64-bit zero.
        function(grid, block, tuple(np.uint64(0) if arg is None else arg for arg in args), shared_mem=shared)

    def _options(self) -> tuple[str, ...]:
        from cuda.pathfinder import find_nvidia_header_directory

        folder = find_nvidia_header_directory("cudart")  # of NVIDIA's wheels, where there is no toolkit
        return OPTIONS if folder is None else (*OPTIONS, f"-I{folder}")

    def gemm(self, a: Array, b: Array, out: Array, transpose_a: bool, transpose_b: bool, beta: float) -> None:
        """Multiply with cuBLAS, which thinks in columns: it is asked for outᵀ = bᵀ . aᵀ.

        CuPy's own `matmul` would do for two axes, but not add to `out`, nor give float32 for half-precision factors.
        """
        from cupy_backends.cuda.libs import cublas

        (m, n), k = out.shape, a.shape[0 if transpose_a else 1]
        factors = np.array([1, beta], np.float32)
        one, add = factors.ctypes.data, factors.ctypes.data + 4
        handle = self.xp.cuda.device.get_cublas_handle()
        cublas.gemmEx(
            handle,
            int(transpose_b),  # CUBLAS_OP_N is 0, CUBLAS_OP_T is 1
            int(transpose_a),
            n,
            m,
            k,
            one,
            b.data.ptr,
            CUDA_TYPES[b.dtype.name],
            row_stride(b),
            a.data.ptr,
            CUDA_TYPES[a.dtype.name],
            row_stride(a),
            add,
            out.data.ptr,
            CUDA_TYPES[out.dtype.name],
            row_stride(out),
            COMPUTE_32F,
            _GEMM_DEFAULT,
        )

    def read_later(self, array: Array) -> Callable[[], np.ndarray[Any, Any]]:
        """Start copying an array to the host, behind what is queued now; what is queued later need not be waited for."""
        import cupyx

        values: np.ndarray[Any, Any] = cupyx.empty_pinned(array.shape, array.dtype)
        array.get(out=values, blocking=False)
        event = self.xp.cuda.Event(disable_timing=True)
        event.record()

        def wait() -> np.ndarray[Any, Any]:
            event.synchronize()
            return values

        return wait

    def status(self) -> str:
        """Name the GPU, and the versions of CuPy and CUDA."""
        runtime = self.xp.cuda.runtime
        name = runtime.getDeviceProperties(runtime.getDevice())["name"].decode()
        version = runtime.runtimeGetVersion()
        return f"{name}, CuPy {self.xp.__version__}, CUDA {version // 1000}.{version % 1000 // 10}"

    def memory(self) -> tuple[int, int]:
        """Return the device's free bytes, with what the pool holds unused, and all its bytes, or those that the pool may take."""
        pool = self.xp.get_default_memory_pool()
        free, n_bytes = self.xp.cuda.runtime.memGetInfo()
        return free + pool.free_bytes(), pool.get_limit() or n_bytes

    def stream(self) -> tuple[int, int]:
        """Return the number of the current device, and the address of its current stream."""
        return self.xp.cuda.runtime.getDevice(), self.xp.cuda.get_current_stream().ptr


CUDA_TYPES = {"float32": 0, "float16": 2, "bfloat16": 14}  # cudaDataType
COMPUTE_32F, _GEMM_DEFAULT = 68, -1  # cublasComputeType_t: sums in float32, no TF32; cublasGemmAlgo_t

_backend: Backend | None = None
_lock = threading.Lock()


def backend() -> Backend:
    """Return CuPy, or what stands in its place.

    Raises
    ------
    ImportError
        CuPy is not installed, or not whole.
    """
    global _backend
    if _backend is None:
        with _lock:
            if _backend is None:
                _backend = CuPy()
    return _backend


def set_backend(replacement: Backend | None) -> Backend | None:
    """Put something in CuPy's place, or with None CuPy back; return what was there."""
    global _backend
    before, _backend = _backend, replacement
    _placed.clear()
    return before


class _ArrayModule:
    """The array module, looked up at each use: nothing is imported before."""

    def __getattr__(self, name: str) -> Any:
        return getattr(backend().xp, name)


xp: Any = _ArrayModule()
"""CuPy, or what stands in its place: ``xp.zeros``, ``xp.asarray`` and the like."""


def status() -> str:
    """Say what GPU there is.

    Raises
    ------
    Exception
        ImportError without CuPy, and of CuPy's own where there is no driver or no GPU.
    """
    return backend().status()


def memory() -> tuple[int, int]:
    """Return how many bytes of the GPU are free, and how many there are."""
    return backend().memory()


def stream() -> tuple[int, int]:
    """Return the number of the device, and the address of the stream that work is queued on."""
    return backend().stream()


def address(array: Array) -> int:
    """Return where an array begins in the GPU's memory."""
    return int(array.data.ptr)


def dtype_of(name: str) -> np.dtype[Any]:
    """Return a type of stored numbers by name, a key of `C_TYPES`; NumPy has bfloat16 from ml_dtypes."""
    if name == "bfloat16":
        import ml_dtypes

        name = ml_dtypes.bfloat16
    dtype: np.dtype[Any] = np.dtype(name)
    return dtype


def c_type(array: Array) -> str:
    """Return how CUDA calls the type of an array's numbers."""
    return C_TYPES[array.dtype.name]


def empty(shape: tuple[int, ...], dtype: Any = np.float32) -> Array:
    """Return an array whose values are not set."""
    return xp.empty(shape, dtype)


def contiguous(array: Array) -> Array:
    """Return `array` row by row in memory, copied only if it lies otherwise."""
    return xp.ascontiguousarray(array)


def row_stride(array: Array) -> int:
    """Return the distance of two rows of a matrix whose columns lie side by side, in elements; at least its width."""
    return int(max(array.strides[0] // array.itemsize, array.shape[1], 1))


def rows_contiguous(array: Array) -> Array:
    """Return a matrix with unit stride along its rows, copied only if it has another."""
    if array.size == 0 or (array.strides[1] == array.itemsize and array.strides[0] >= array.shape[1] * array.itemsize):
        return array
    return contiguous(array)


_placed: dict[tuple[int, int, int], tuple[Any, Array, Array]] = {}


def place(array: Array) -> Array:
    """Return a small array of indices on the GPU: itself if it is there, else a copy.

    The layers of a model are handed the same arrays over and over: the copy is kept while the array lives, and used again
    if the array's values are the same: on the same device, and on the same stream, since another would not wait for it.
    """
    if not isinstance(array, np.ndarray):
        return array
    key = (*backend().stream(), id(array))
    held = _placed.get(key)
    if held is not None and held[0]() is array and np.array_equal(held[1], array):
        return held[2]
    values = np.array(array, order="C")
    copy = xp.asarray(values)
    _placed[key] = (weakref.ref(array, lambda _: _placed.pop(key, None)), values, copy)
    return copy


def launch(
    source: str, kernel: str, grid: Sequence[int] | int, block: Sequence[int] | int, args: Sequence[Any], *, shared: int = 0
) -> None:
    """Run a kernel on the current stream; nothing where the grid is empty.

    Parameters
    ----------
    source : str. ``lucid/_gpu/<source>.cu``.
    kernel : str. Its name, with template arguments if it has some: "layer_norm_forward<float>"; one of `kernels_of`.
    grid, block : int, or up to three of them. Numbers of blocks, and of threads in a block.
    args : arrays on the GPU, None for a null pointer, and NumPy numbers of exactly the kernel's types
    shared : int. Bytes of dynamic shared memory.
    """
    blocks, threads = _triple(grid), _triple(block)
    if 0 not in blocks:
        backend().launch(source, kernel, blocks, threads, args, shared)


def _triple(n: Sequence[int] | int) -> tuple[int, int, int]:
    x, y, z, *_ = (*((n,) if isinstance(n, int) else n), 1, 1)
    return int(x), int(y), int(z)


def read_later(array: Array) -> Callable[[], np.ndarray[Any, Any]]:
    """Start copying an array to the host; return the function that waits for that, not for what is queued later, and returns the copy."""
    return backend().read_later(array)


def gemm(a: Array, b: Array, out: Array | None = None, *, transpose_a: bool = False, transpose_b: bool = False, beta: float = 0.0) -> Array:
    """Return out = a . b + beta * out, summed in float32.

    Parameters
    ----------
    a : array, shape (M, K), or (K, M) with `transpose_a`; rows contiguous, any distance apart
    b : array of the same type, shape (K, N), or (N, K) with `transpose_b`
    out : array, shape (M, N), of that type or float32; without it, a new one of a's type
    beta : float. 0 ignores what is in `out`.

    Notes
    -----
    Two axes only: CuPy 14 multiplies stacks of float16 matrices in float32, and of bfloat16 wrongly.
    """
    if out is None:
        out = empty((a.shape[int(transpose_a)], b.shape[0 if transpose_b else 1]), a.dtype)
    if out.size == 0:
        return out
    if a.shape[0 if transpose_a else 1] == 0:  # a sum of nothing
        out[...] = beta * out if beta else 0
        return out
    backend().gemm(a, b, out, transpose_a, transpose_b, beta)
    return out


def blocks(n: int, size: int) -> int:
    """Return how many blocks of `size` hold `n`."""
    return -(-n // size)


# The sources


def sources() -> list[str]:
    """Return the names of all ``.cu`` files here."""
    return sorted(path.stem for path in _FOLDER.glob("*.cu"))


@cache
def source_text(source: str) -> str:
    """Return a ``.cu`` file with the ``.cuh`` files of this folder that it includes, each once, in their places."""
    seen: set[str] = set()

    def text_of(name: str) -> str:
        def included(match: re.Match[str]) -> str:
            if match[1] in seen:
                return ""
            seen.add(match[1])
            return text_of(match[1])

        return re.sub(r'^#include "(.+)"$', included, (_FOLDER / name).read_text(), flags=re.MULTILINE)

    return text_of(f"{source}.cu").replace("#pragma once", "")


def kernels_of(source: str) -> tuple[str, ...]:
    """Return the kernels of a ``.cu`` file, as `launch` wants them; see `kernels_in`."""
    return kernels_in(source_text(source))


def kernels_in(text: str) -> tuple[str, ...]:
    """Return the kernels that a source names.

    In lines like these; T stands for every type of `C_TYPES`, braces for one of what is inside::

        // KERNEL adamw_step
        // KERNEL layer_norm_forward<T>
        // KERNEL attention_forward<{__half, __nv_bfloat16}, {32, 64, 128}>
    """
    found: list[str] = []
    for line in re.findall(r"^// KERNEL (.+)$", text, re.MULTILINE):
        parts = re.split(r"\{(.+?)\}", re.sub(r"\bT\b", "{" + ", ".join(C_TYPES.values()) + "}", line.strip()))
        choices = [[part] if i % 2 == 0 else re.split(r",\s*", part) for i, part in enumerate(parts)]
        found.extend("".join(choice) for choice in itertools.product(*choices))
    return tuple(found)
