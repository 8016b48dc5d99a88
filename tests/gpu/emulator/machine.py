"""The emulated GPU: launches, products, and what stands in CuPy's place."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from gpu.emulator.arrays import ArrayModule, DeviceArray
from gpu.emulator.compiler import build
from lucid._gpu import runtime

FOLDER = Path(runtime.__file__).parent
PAGE = mmap.PAGESIZE
GUARD = 16 * PAGE  # around an array, that may not be touched
FILL = 0xA5


class KernelError(RuntimeError):
    """What a kernel did that it may not do."""


class Emulator:
    """A GPU on the CPU.

    Parameters
    ----------
    folder : Path. For compiled kernels.
    sources : Path. Where the ``.cu`` files are.

    Attributes
    ----------
    is_reversed : bool. Run blocks and threads in the other order, each warp as far ahead as it may, and copy to shared memory at
        once: no result may depend on it.
    n_launches : int
    """

    def __init__(self, folder: Path, sources: Path = FOLDER) -> None:
        self.folder, self.sources = folder, sources
        self.xp = ArrayModule()
        self.is_reversed = False
        self.n_launches = 0
        self._libraries: dict[str, tuple[ctypes.CDLL, tuple[str, ...]]] = {}

    def status(self) -> str:
        """Name the GPU."""
        return "an emulated GPU"

    def memory(self) -> tuple[int, int]:
        """Return free bytes and all bytes."""
        return self.xp.n_free, self.xp.n_bytes

    def stream(self) -> tuple[int, int]:
        """Return the first device, and the default stream."""
        return 0, 0

    def launch(self, source: str, kernel: str, grid: Sequence[int], block: Sequence[int], args: Sequence[Any], shared: int) -> None:
        """Run a kernel; see `lucid._gpu.runtime.launch`.

        Raises
        ------
        TypeError
            The arguments are not those of the kernel.
        KernelError
            The kernel went wrong; the message says where.
        """
        library, kernels = self._library(source)
        if kernel not in kernels:
            raise KernelError(f"{source}.cu names no kernel {kernel} in its KERNEL lines; it names {', '.join(kernels)}")
        number = kernels.index(kernel)
        buffer = ctypes.create_string_buffer(4096)
        library[f"parameters_{number}"](buffer)
        _check_arguments(kernel, args, buffer.value.decode().split())
        if shared > 227 << 10:
            raise KernelError(f"{kernel}: {shared} bytes of shared memory are more than an H100 has")
        self.n_launches += 1
        with _guarded([arg.host for arg in args if isinstance(arg, DeviceArray)]) as regions:
            values = [_value(arg, regions) for arg in args]
            pointers = (ctypes.c_void_p * len(args))(*(ctypes.addressof(value) for value in values))
            address = ctypes.c_void_p()
            status = library[f"run_{number}"](
                (ctypes.c_uint * 6)(*grid, *block), ctypes.c_size_t(shared), pointers, int(self.is_reversed), buffer,
                ctypes.c_size_t(len(buffer)), ctypes.byref(address),
            )  # fmt: skip
            if status:
                raise KernelError(f"{kernel}: {buffer.value.decode()}{_where(address.value, regions)}")
            for region in regions:
                region.check(kernel)

    def _library(self, source: str) -> tuple[ctypes.CDLL, tuple[str, ...]]:
        if source not in self._libraries:
            path = self.sources / f"{source}.cu"
            kernels = runtime.kernels_in(path.read_text())
            self._libraries[source] = build(path, kernels, self.folder), kernels
        return self._libraries[source]

    def read_later(self, array: DeviceArray) -> Callable[[], np.ndarray]:
        """Copy an array as it is now; nobody waits for the copy alone."""
        values = array.host.copy()
        return lambda: values

    def gemm(self, a: Any, b: Any, out: Any, transpose_a: bool, transpose_b: bool, beta: float) -> None:
        """Multiply in float32; see `lucid._gpu.runtime.gemm`."""
        for x in (a, b, out):
            if not isinstance(x, DeviceArray):
                raise TypeError(f"gemm: a {type(x).__name__} is not on the GPU")
            if x.ndim != 2 or (x.shape[1] > 1 and x.strides[1] != x.itemsize):
                raise TypeError(f"gemm: shape {x.shape}, strides {x.strides}: want two axes, columns side by side")
        if a.dtype != b.dtype or out.dtype not in (a.dtype, np.float32):
            raise TypeError(f"gemm: cuBLAS does not multiply {a.dtype} by {b.dtype} into {out.dtype}")
        left, right = (x.host.astype(np.float32) for x in (a, b))
        product = (left.T if transpose_a else left) @ (right.T if transpose_b else right)
        if product.shape != out.shape:
            raise TypeError(f"gemm: a product of shape {product.shape} into {out.shape}")
        if beta:
            product += np.float32(beta) * out.host.astype(np.float32)
        out.host[...] = product


def _check_arguments(kernel: str, args: Sequence[Any], parameters: list[str]) -> None:
    if len(args) != len(parameters):
        raise TypeError(f"{kernel}: {len(args)} arguments for {len(parameters)} parameters")
    for i, (arg, parameter) in enumerate(zip(args, parameters, strict=True)):
        if arg is None:
            kind = "pointer"
            is_right = parameter.startswith("*")
        elif isinstance(arg, DeviceArray):
            kind = f"array of {arg.dtype}"
            is_right = parameter.startswith("*") and parameter.strip("*c") in (_kind(arg.dtype), "v1")
        elif isinstance(arg, np.generic):
            kind = f"{arg.dtype} by value"
            is_right = parameter == _kind(arg.dtype)
        else:
            kind, is_right = f"{type(arg).__name__}, neither on the GPU nor a NumPy number", False
        if not is_right:
            raise TypeError(f"{kernel}: argument {i} is a {kind}, the kernel wants {parameter} (*: pointer; c: const; kind; bytes)")


def _kind(dtype: np.dtype[Any]) -> str:
    return "b2" if dtype.name == "bfloat16" else "?1" if dtype.kind == "b" else f"{dtype.kind}{dtype.itemsize}"


def _value(arg: Any, regions: list[_Region]) -> Any:
    if arg is None:
        return ctypes.c_void_p(0)
    if isinstance(arg, DeviceArray):
        return ctypes.c_void_p(next((r.moved(arg.host) for r in regions if r.holds(arg.host)), 0))
    return ctypes.create_string_buffer(arg.tobytes(), arg.dtype.itemsize)


class _Region:
    """A range of the memory of arrays, copied to where the page behind it may not be touched."""

    def __init__(self, begin: int, end: int) -> None:
        self.begin, self.size = begin, end - begin
        self.n_bytes = -(-(self.size + 16) // PAGE) * PAGE
        self.base = _libc.mmap(
            None, self.n_bytes + 2 * GUARD, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0
        )
        _libc.mprotect(self.base, GUARD, 0)
        _libc.mprotect(self.base + GUARD + self.n_bytes, GUARD, 0)
        self.end = self.base + GUARD + self.n_bytes
        last = self.end - self.size
        self.start = last - (last - begin) % 16  # as far from a multiple of 16 bytes as it was
        ctypes.memset(self.base + GUARD, FILL, self.n_bytes)
        ctypes.memmove(self.start, begin, self.size)

    def holds(self, array: np.ndarray) -> bool:
        return self.begin <= array.ctypes.data < self.begin + self.size

    def moved(self, array: np.ndarray) -> int:
        return self.start + array.ctypes.data - self.begin

    def check(self, kernel: str) -> None:
        """Raise if something was written around the region."""
        before = ctypes.string_at(self.base + GUARD, self.start - self.base - GUARD)
        after = ctypes.string_at(self.start + self.size, self.end - self.start - self.size)
        if before.strip(bytes([FILL])) or after.strip(bytes([FILL])):
            raise KernelError(f"{kernel}: something was written right before or behind an array")

    def close(self, *, keep: bool) -> None:
        if keep:
            ctypes.memmove(self.begin, self.start, self.size)
        _libc.munmap(self.base, self.n_bytes + 2 * GUARD)


_libc = ctypes.CDLL(None)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


@contextmanager
def _guarded(arrays: list[np.ndarray]) -> Iterator[list[_Region]]:
    """Give the memory of arrays as guarded copies; what was written there is written back if nothing went wrong."""
    ranges: list[list[int]] = []
    for begin, end in sorted(np.lib.array_utils.byte_bounds(array) for array in arrays if array.size):
        if ranges and begin < ranges[-1][1]:
            ranges[-1][1] = max(ranges[-1][1], end)
        else:
            ranges.append([begin, end])
    regions = [_Region(begin, end) for begin, end in ranges]
    is_fine = False
    try:
        yield regions
        is_fine = True
    finally:
        for region in regions:
            region.close(keep=is_fine)


def _where(address: int | None, regions: list[_Region]) -> str:
    if address is None or not regions:
        return ""
    region = min(regions, key=lambda r: min(abs(address - r.start), abs(address - r.start - r.size)))
    behind = address - region.start - region.size
    if abs(behind) > 1 << 30:
        return ""
    return f": {behind} bytes behind the end of an array" if behind >= 0 else f": {region.start - address} bytes before an array"
