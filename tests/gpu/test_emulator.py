"""The emulator runs right kernels right, and notices what wrong ones do."""

import numpy as np
import pytest

from gpu.emulator import DeviceArray, Emulator, KernelError
from gpu.emulator.machine import FOLDER
from lucid._gpu import runtime
from lucid._gpu.runtime import C_TYPES, c_type, dtype_of, launch, xp

KERNELS = FOLDER.parents[1] / "tests" / "gpu" / "emulator" / "kernels"


@pytest.fixture
def machine(emulated: Emulator) -> Emulator:
    return emulated


@pytest.fixture
def small(emulated: Emulator, monkeypatch: pytest.MonkeyPatch) -> Emulator:
    """An emulator of the kernels beside this file."""
    monkeypatch.setattr(emulated, "sources", KERNELS)
    return emulated


def numbers(*shape: int, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(5).standard_normal(shape).astype(dtype_of(dtype))


@pytest.mark.parametrize("is_reversed", [False, True])
@pytest.mark.parametrize("dtype", C_TYPES)
def test_every_type(small: Emulator, dtype: str, is_reversed: bool) -> None:
    small.is_reversed = is_reversed
    x = numbers(1000, dtype=dtype)
    y = xp.empty(1000, x.dtype)
    launch("right", f"double_all<{c_type(y)}>", 8, 128, (xp.asarray(x), y, np.int32(1000), np.float32(1.7)))
    assert y.get().tobytes() == (x.astype(np.float32) * np.float32(1.7)).astype(x.dtype).tobytes()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_conversions_round_as_numpy(small: Emulator, dtype: str) -> None:
    """Every number of the type comes back, and what lies between two goes to the nearer one, ties to the even one."""
    every = np.arange(1 << 16, dtype=np.uint16).view(dtype_of(dtype))
    y = xp.empty(1 << 16, every.dtype)
    launch("right", f"double_all<{c_type(y)}>", 64, 1024, (xp.asarray(every), y, np.int32(1 << 16), np.float32(1)))
    is_nan = np.isnan(every.astype(np.float32))
    assert np.array_equal(y.get()[~is_nan].view(np.uint16), every[~is_nan].view(np.uint16))
    assert np.isnan(y.get()[is_nan].astype(np.float32)).all()
    for factor in (1 + 2.0**-9, 1 + 2.0**-12, 2.0**-13, 3.0, 1e-3):
        launch("right", f"double_all<{c_type(y)}>", 64, 1024, (xp.asarray(every), y, np.int32(1 << 16), np.float32(factor)))
        with np.errstate(over="ignore", invalid="ignore"):
            want = (every.astype(np.float32) * np.float32(factor)).astype(every.dtype)
        assert np.array_equal(y.get()[~is_nan].view(np.uint16), want[~is_nan].view(np.uint16)), factor


def test_barriers_and_shuffles(small: Emulator) -> None:
    x, sums = numbers(5, 96), xp.empty(5)
    launch("right", "block_sums", 5, 96, (xp.asarray(x), sums))
    assert np.allclose(sums.get(), x.sum(axis=1), atol=1e-5)


def test_a_copy_arrives_when_it_is_waited_for(small: Emulator) -> None:
    x, before, after = numbers(256), xp.empty(64), xp.empty(64)
    launch("right", "copy_late", 1, 64, (xp.asarray(x), before, after), shared=1024)
    assert (before.get() == -1).all()
    assert np.array_equal(after.get(), np.roll(x[::4], -1))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_tensor_core(small: Emulator, dtype: str) -> None:
    a, b, c = numbers(16, 16, dtype=dtype), numbers(8, 16, dtype=dtype)[::-1].copy(), numbers(16, 8)
    sums = xp.asarray(c)
    launch("right", f"multiply<{C_TYPES[dtype]}>", 1, 32, (xp.asarray(a), xp.asarray(b), sums))
    assert np.allclose(sums.get(), c + a.astype(np.float64) @ b.astype(np.float64).T, atol=1e-6)


def test_matrices_are_loaded_transposed(small: Emulator) -> None:
    x, y = np.arange(256, dtype=np.uint16), xp.empty(256, np.uint16)
    launch("right", "load_transposed", 1, 32, (xp.asarray(x), y))
    assert np.array_equal(y.get().reshape(4, 8, 8), x.reshape(4, 8, 8).transpose(0, 2, 1))


@pytest.mark.parametrize(
    ("kernel", "block", "more", "says"),
    [
        ("read_beyond", 32, (np.int32(64),), r"memory that is not the kernel's.*thread \(0, 0, 0\).*bytes behind the end of an array"),
        ("write_before", 32, (), "memory that is not the kernel's.*bytes before an array"),
        ("split_barrier", 64, (), r"threads of a block wait at the barriers of lines \d+ and \d+"),
        ("lonely_shuffle", 32, (), "lanes wait for others of their warp"),
        ("part_of_a_warp", 32, (), "whole warps only"),
        ("part_of_a_warp", 33, (), "whole warps only"),
        ("beyond_shared", 32, (), r"undefined behaviour.*thread \(31, 0, 0\)"),
        ("beyond_dynamic", 32, (), r"memory that is not the kernel's.*thread \(31, 0, 0\)"),
        ("spoil_around", 1, (), "right before or behind an array"),
    ],
)
def test_what_a_kernel_may_not_do(small: Emulator, kernel: str, block: int, more: tuple, says: str) -> None:
    y = xp.zeros(64, np.float32)
    args = (xp.zeros(64, np.float32), y, *more) if kernel == "read_beyond" else (y,)
    with pytest.raises(KernelError, match=says):
        launch("wrong", kernel, 1, block, args, shared=128)
    launch("right", "double_all<float>", 1, 64, (y, y, np.int32(64), np.float32(1)))  # and life goes on


@pytest.mark.parametrize(
    "args",
    [
        (np.zeros(8, np.float32), None, np.int32(8), np.float32(1)),
        (None, None, 8, np.float32(1)),
        (None, None, np.int64(8), np.float32(1)),
        (None, None, np.int32(8), np.float64(1)),
        (None, np.int64(0), np.int32(8), np.float32(1)),
        (None, None, np.int32(8)),
        "double",
    ],
)
def test_arguments_of_other_types_are_refused(small: Emulator, args: tuple) -> None:
    if args == "double":
        args = (xp.zeros(8, np.float64), None, np.int32(8), np.float32(1))
    with pytest.raises(TypeError, match="double_all"):
        launch("right", "double_all<float>", 1, 8, args)


def test_an_unnamed_kernel(small: Emulator) -> None:
    with pytest.raises(KernelError, match="KERNEL lines"):
        launch("right", "double_all<double>", 1, 8, ())


def test_arrays_are_not_numpys(emulated: Emulator) -> None:
    x = xp.asarray(np.arange(6, dtype=np.float32).reshape(2, 3))
    assert isinstance(x, DeviceArray)
    for mix in (
        lambda: np.asarray(x),
        lambda: x + np.ones(3),
        lambda: np.ones(3) + x,
        lambda: x[np.array([0])],
        lambda: np.add(x, x, out=np.ones((2, 3))),
    ):
        with pytest.raises(TypeError):
            mix()
    assert isinstance(x.sum(), DeviceArray)
    assert isinstance(np.zeros_like(x), DeviceArray)
    n = DeviceArray.n_reads
    assert float((2 * x)[1, 2]) == 10
    assert DeviceArray.n_reads == n + 1


def test_small_arrays_are_copied_once(emulated: Emulator) -> None:
    host = np.arange(5, dtype=np.int32)
    copy = runtime.place(host)
    assert runtime.place(host) is copy
    assert runtime.place(copy) is copy
    host[0] = 7
    assert np.array_equal(runtime.place(host).get(), host)


def test_each_gpu_and_stream_has_its_own_copy_of_small_arrays(emulated: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    host = np.arange(5, dtype=np.int32)
    copies = []
    for where in 2 * [(0, 0), (1, 0), (1, 77)]:
        monkeypatch.setattr(emulated, "stream", lambda where=where: where)
        copies.append(runtime.place(host))
    assert len(set(map(id, copies))) == 3
    assert all(a is b for a, b in zip(copies[:3], copies[3:], strict=True))
    n_held = len(runtime._placed)
    del host
    assert len(runtime._placed) == n_held - 3  # all go with the array


@pytest.mark.parametrize("beta", [0.0, 1.0, 0.5])
@pytest.mark.parametrize("transpose_a", [False, True])
@pytest.mark.parametrize("transpose_b", [False, True])
def test_gemm(emulated: Emulator, transpose_a: bool, transpose_b: bool, beta: float) -> None:
    a, b, out = numbers(5, 7), numbers(7, 3), numbers(5, 3)
    given = [xp.asarray(x.T.copy() if is_transposed else x) for x, is_transposed in ((a, transpose_a), (b, transpose_b))]
    got = runtime.gemm(*given, xp.asarray(out), transpose_a=transpose_a, transpose_b=transpose_b, beta=beta)
    assert np.allclose(got.get(), a @ b + beta * out, atol=1e-5)
