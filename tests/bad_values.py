"""Making right values wrong: what `bad_calls.py` does to the arguments of its calls."""

import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import lucid
from lucid.ops.linear import PackedWeight

Rng = np.random.Generator
Spoiler = Callable[[Rng, Any], Any]
NAN, INF = float("nan"), float("inf")
EDGES = (-(2**63), -(2**31), -100, -1, 0, 1, 2, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 2**70, 10**30)
NUMBERS = (*EDGES, 0.15, 0.5, -0.1, 1.1, 1e-300, 1e300, 5e-324, -0.0, NAN, INF, -INF, True, np.float32(0.5), np.float64(NAN), np.int8(3))
DTYPES = "i1 u1 i2 u2 i4 u4 i8 u8 f2 f4 f8 g c8 ? O U3 S3 >i4 >i8 >u8 >f4 M8[s] m8[s]".split()


class Lying:
    """Something that calls itself an array and is none."""

    dtype, shape, ndim, size = np.dtype(np.float32), (2, 3), 2, 6


class ArrayOnly:
    """Something that gives an array when NumPy asks for one."""

    def __init__(self, values: Any) -> None:
        self.values = values

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return np.array(self.values, dtype)


class DLPackOnly:
    """Something that gives its memory away, and nothing else."""

    def __init__(self, values: Any) -> None:
        self.values = values

    def __dlpack__(self, **options: Any) -> Any:
        return self.values.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.values.__dlpack_device__()


def one(rng: Rng, *things: Any) -> Any:
    return things[int(rng.integers(len(things)))]


# fmt: off
def junk(rng: Rng) -> Any:
    """Return something that is hardly ever right."""
    return one(
        rng, None, True, 0, -1, 1.5, NAN, 2**63, 2**70, 3 + 4j, "", "b c", "the sun", "\ud800", b"ab", bytearray(4), [], [[]], (), {},
        set(), frozenset([1]), object(), int, np.ndarray, np.float32, Lying(), lambda: None, (i for i in range(3)), range(4), [1, [2, 3]],
        [[1, 2], [3]], [["a"]], [None], [[None]], {"input_ids": 1}, np.array("text"), np.array(["a", "b"]), np.array([None, 1]),
        np.zeros((2, 3), object), np.zeros(3, "M8[s]"), np.zeros((2, 2), [("a", "i4")]), np.zeros((2, 3), complex), np.zeros(0),
        np.zeros((0, 3)), np.zeros((2, 3)), np.float32(1), np.array(1), memoryview(b"abcd"), array.array("i", [1, 2]), 1e400,
        ArrayOnly(np.zeros((2, 3), np.int64)), DLPackOnly(np.ones((2, 3))), lucid.Tensor([[1, 2, 3]]), lucid.Tensor(1.5), Path("x"),
        slice(None), Ellipsis,
    )
# fmt: on


def instead(*others: Any) -> Spoiler:
    """Return a spoiler that puts one of these in the place of a value, or junk."""
    return lambda rng, value: one(rng, *others, value) if rng.random() < 0.8 else junk(rng)


# -------------------------------------------------------------------------------------------------- arrays


def unaligned(a: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.frombuffer(b"\0" + a.tobytes(), np.uint8)[1:].view(a.dtype).reshape(a.shape)


def read_only(a: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    view = a.copy()
    view.flags.writeable = False
    return view


LAYOUTS: tuple[Spoiler, ...] = (
    lambda rng, a: np.asfortranarray(a),
    lambda rng, a: np.repeat(a, 2, axis=0)[::2],
    lambda rng, a: np.repeat(a, 3, axis=-1)[..., ::3],
    lambda rng, a: a[::-1],
    lambda rng, a: a[..., ::-1],
    lambda rng, a: read_only(a),
    lambda rng, a: np.broadcast_to(a[:1], a.shape),
    lambda rng, a: a.T,
    lambda rng, a: unaligned(a),
    lambda rng, a: np.lib.stride_tricks.as_strided(a, a.shape, (0,) * a.ndim),
    lambda rng, a: np.ma.array(a, mask=rng.random(a.shape) < 0.5),
    lambda rng, a: np.matrix(a) if a.ndim == 2 else a.view(np.recarray),
    lambda rng, a: a.view(np.memmap),
    lambda rng, a: lucid.Tensor(a),
)


def relaid(rng: Rng, a: np.ndarray[Any, Any]) -> Any:
    """Return the same numbers, or views of them, in another layout."""
    return a if a.ndim == 0 or a.size == 0 else one(rng, *LAYOUTS)(rng, a)


def reranked(rng: Rng, a: np.ndarray[Any, Any]) -> Any:
    """Return an array of another shape."""
    if a.ndim == 0:
        return a[None]
    shorter = (a[1:], a[..., 1:], a[:0], a[..., :0], a.reshape(-1), a.sum())
    return one(rng, a[None], a[..., None], np.concatenate([a, a]), np.concatenate([a, a], -1), np.zeros((), a.dtype), *shorter)


def retyped(rng: Rng, a: np.ndarray[Any, Any]) -> Any:
    """Return an array of another type."""
    return a.astype(one(rng, *DTYPES))


def contained(rng: Rng, a: np.ndarray[Any, Any]) -> Any:
    """Return the numbers in something other than an array."""
    nested = a.tolist()
    itself: list[Any] = [1]
    itself.append(itself)
    holders = (
        nested,
        (nested,),
        [nested, None],
        [nested, "a"],
        [[nested]],
        [nested, [nested]],
        {"ids": nested},
        str(nested),
        itself,
        iter([nested]),
    )
    return one(rng, *holders, a.tobytes(), memoryview(np.ascontiguousarray(a)), ArrayOnly(a), DLPackOnly(a))


def huge(rng: Rng, a: np.ndarray[Any, Any]) -> Any:
    """Return an array that takes no memory, and for which nobody may take any."""
    far, rest = 1 << 40, max(1, a.ndim) - 1
    shapes = (
        (1 << 20,) * (rest + 1),
        (far, *(1,) * rest),
        (*(1,) * rest, far),
        (0, *(far,) * rest),
        (*(far,) * rest, 0),
        (1 << 31, *(1,) * rest),
    )
    try:
        return np.broadcast_to(np.zeros((), a.dtype), one(rng, *shapes))
    except ValueError:  # more than NumPy can address
        return np.broadcast_to(np.zeros((), a.dtype), (1 << 15,) * (rest + 1))


def poisoned(rng: Rng, a: np.ndarray[Any, Any]) -> Any:
    """Return the array with one value that does not belong."""
    a = np.array(a)
    if a.size == 0 or a.dtype.kind not in "iuf":
        return a
    bad: Any = one(rng, NAN, INF, -INF, 3e38, -3e38, 1e-45, 0.0)
    if a.dtype.kind != "f":
        info = np.iinfo(a.dtype)
        near = (*EDGES, info.min, info.max, *range(5, 45, 5))
        bad = one(rng, *(i for i in near if info.min <= i <= info.max))
    a[tuple(int(rng.integers(n)) for n in a.shape)] = bad
    return a


def spoiled(rng: Rng, value: Any) -> Any:
    """Return an array with something wrong, or only odd, about it."""
    for _ in range(int(rng.integers(1, 3))):
        if type(value) is not np.ndarray or is_huge(value):
            break
        change = one(
            rng, *(poisoned,) * 4, *(relaid,) * 3, reranked, reranked, retyped, retyped, contained, huge, lambda rng, value: junk(rng)
        )
        try:
            value = change(rng, value)
        except (TypeError, ValueError, OverflowError, RuntimeError):  # no such array
            return junk(rng)
    return value


def is_huge(a: np.ndarray[Any, Any]) -> bool:
    return max(a.size, *a.shape, 0) > 10**6


def small(rng: Rng, value: Any) -> Any:
    """Spoil an array, but not so that a function which returns as much would rightly want terabytes."""
    value = spoiled(rng, value)
    return None if isinstance(value, np.ndarray) and is_huge(value) else value


def spoiled_weight(rng: Rng, weight: PackedWeight) -> Any:
    """Return a packed weight that is not what it says, or none."""
    n, k = weight.shape
    p = weight.panels
    shapes = (
        (n, k),
        (n + 1000, k),
        (n * 1000, k),
        (n, k + 1),
        (n, 10 * k),
        (1, k),
        (0, k),
        (n, 0),
        (n,),
        (n, k, 1),
        (-n, k),
        (2.5, k),
        (1 << 40, k),
        None,
    )
    layouts = (
        p,
        p,
        p,
        p[:1],
        p[:0],
        p[:, :1],
        p[:, :, :1],
        p[0],
        p.astype("f8"),
        p.reshape(-1),
        None,
        p.tolist(),
        np.asfortranarray(p),
        p[::-1],
    )
    if rng.random() < 0.3:
        return one(rng, junk(rng), weight.unpack(), small(rng, weight.unpack()))
    return PackedWeight(one(rng, "float32", "int8", None), one(rng, *layouts, lucid.Tensor(p)), None, one(rng, *shapes))  # type: ignore[arg-type]


def by_kind(rng: Rng, value: Any) -> Any:
    """Spoil an argument of an op by what it is."""
    if isinstance(value, PackedWeight):
        return spoiled_weight(rng, value)
    if isinstance(value, np.ndarray):
        is_matrix = value.dtype == np.float32 and value.ndim == 2
        return PackedWeight.pack(value) if is_matrix and rng.random() < 0.1 else small(rng, value)
    return instead(*NUMBERS)(rng, value)


def is_finite(value: Any) -> bool:
    """Whether the numbers in an argument are such that a result must be finite, too."""
    if isinstance(value, PackedWeight):
        return is_finite(value.panels)
    if isinstance(value, dict):
        return all(map(is_finite, value.values()))
    if isinstance(value, (int, float)):
        return isinstance(value, int) or abs(value) <= 1e6
    if isinstance(value, DLPackOnly):
        value = value.values
    if isinstance(value, (list, tuple, memoryview)) or hasattr(value, "__array__"):
        try:
            value = np.asarray(value)
        except Exception:
            return False
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "biu" or (
            value.dtype.kind == "f" and (is_huge(value) or bool((np.abs(value.astype("f8")) <= 1e6).all()))
        )
    return True
