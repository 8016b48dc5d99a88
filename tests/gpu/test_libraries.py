"""Libraries in place of lucid's own kernels: when they are asked, and what happens when they are missing, wrong or out of memory."""

import sys
from typing import Any

import numpy as np
import pytest

from gpu.emulator import Emulator
from lucid._gpu import cublaslt, cudnn_attention, runtime
from lucid._gpu.libraries import CUBLASLT, CUDNN, SWITCH, Library, WrongError, asked_for, check_near
from lucid.ops.attention import AttentionDropout, attention
from lucid.ops.linear import linear
from lucid.random import Purpose, stream


@pytest.fixture(autouse=True)
def nothing_tried() -> Any:
    CUBLASLT.forget(), CUDNN.forget()
    yield
    CUBLASLT.forget(), CUDNN.forget()


@pytest.mark.parametrize(
    ("value", "names"),
    [("0", set()), ("", set()), ("1", {"cublaslt", "cudnn"}), ("cudnn", {"cudnn"}), (" cublaslt, cudnn", {"cublaslt", "cudnn"})],
)
def test_the_switch(value: str, names: set[str]) -> None:
    assert asked_for(value) == names


def test_a_name_that_is_none() -> None:
    with pytest.raises(ValueError, match="LUCID_GPU_LIBRARIES='cudn': want 0, 1 or some of cublaslt,cudnn"):
        asked_for("cudn")


class Work:
    """What is asked of a library, and how often; it raises what it is given."""

    def __init__(self, *errors: Exception | None) -> None:
        self.errors, self.n = list(errors), 0

    def __call__(self) -> None:
        self.n += 1
        error = self.errors.pop(0) if self.errors else None
        if error is not None:
            raise error


def test_a_library_that_nobody_asked_for_is_not_touched() -> None:
    check, work = Work(), Work()
    assert not Library("cudnn").does("kind", check, work)
    assert check.n == work.n == 0


def test_a_library_is_checked_once_for_each_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "cudnn")
    library, check, work = Library("cudnn"), Work(), Work()
    assert all(library.does(kind, check, work) for kind in ("one", "one", "two"))
    assert (check.n, work.n) == (2, 3)
    assert (library.used(), library.refused()) == (["cudnn: one", "cudnn: two"], [])


@pytest.mark.parametrize("error", [WrongError("out is 3 from"), RuntimeError("CUDNN_STATUS_NOT_SUPPORTED")])
def test_a_library_that_fails_its_check_is_never_used(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setenv(SWITCH, "1")
    library, check, work = Library("cudnn"), Work(error), Work()
    with pytest.warns(UserWarning, match=rf"^LUCID_GPU_LIBRARIES: cudnn is not used for kind \({type(error).__name__}: {error}\)$"):
        assert not library.does("kind", check, work)
    assert not library.does("kind", check, work)
    assert (check.n, work.n) == (1, 0)
    assert (library.used(), library.refused()) == ([], [f"cudnn: not kind ({type(error).__name__}: {error})"])


def test_a_library_that_fails_later_is_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "1")
    library, check, work = Library("cudnn"), Work(), Work(None, RuntimeError("no plan"))
    assert library.does("kind", check, work)
    with pytest.warns(UserWarning, match="no plan"):
        assert not library.does("kind", check, work)
    assert not library.does("kind", check, work)
    assert (check.n, work.n) == (1, 2)


def test_within_the_check_work_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "1")
    library, seen = Library("cudnn"), []
    assert library.does("kind", lambda: seen.append(library.does("kind", Work(), Work())), Work())
    assert seen == [False]


def test_no_room_is_not_the_librarys_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "1")
    library, work = Library("cudnn"), Work(MemoryError("no room"))
    with pytest.raises(MemoryError, match="no room"):
        library.does("kind", Work(), work)
    assert library.does("kind", Work(), work)


def test_nearness(emulated: None) -> None:
    want = np.ones(4, np.float32)
    check_near("y", want + np.float32(1e-5), want)
    for wrong in (want * 2, np.full(4, np.nan, np.float32)):
        with pytest.raises(WrongError, match="y is"):
            check_near("y", wrong, want)


# The places of dispatch


def _half(rng: np.random.Generator, *shape: int) -> Any:
    return runtime.xp.asarray(rng.standard_normal(shape).astype(np.float16))


@pytest.mark.parametrize(("name", "library"), [("nvmath.bindings", CUBLASLT), ("cudnn", CUDNN)])
def test_a_library_that_is_not_installed(
    name: str, library: Library, emulated: Emulator, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    """A warning says what to install, and the results are lucid's own."""

    def results() -> tuple[bytes, bytes]:
        y = linear.gpu().forward(x, weight, bias, keep=False)[0]  # type: ignore[misc]
        out = attention.gpu().forward(qkv, n_heads=2, key_starts=starts, keep=False)[0]  # type: ignore[misc]
        return y.get().tobytes(), out.get().tobytes()

    x, weight, bias = _half(rng, 5, 16), _half(rng, 8, 16), runtime.xp.asarray(np.ones(8, np.float32))
    qkv, starts = _half(rng, 9, 3 * 64), np.array([0, 4, 9], np.int32)
    want = results()
    monkeypatch.setenv(SWITCH, library.name)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.warns(UserWarning, match=rf"{library.name} is not used for .*{name}.*; pip install 'lucid-bert\[gpu-fast\]'\)$") as warned:
        assert results() == want
        assert results() == want
    assert len(warned) == 1
    assert library.used() == []


def test_what_is_not_for_a_library_does_not_come_to_it(
    emulated: Emulator, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    """float32, activations, residuals; dropout, odd heads, and keys that nobody asks."""
    monkeypatch.setenv(SWITCH, "1")
    asked: list[Any] = []
    monkeypatch.setattr(Library, "does", lambda self, kind, check, work: asked.append(kind))
    x, weight, bias = _half(rng, 5, 16), _half(rng, 8, 16), runtime.xp.asarray(np.ones(8, np.float32))
    forward, backward = linear.gpu().forward, linear.gpu().backward  # type: ignore[misc]
    in_float32 = [array.astype(np.float32) for array in (x, weight)]
    for arrays, params in (
        ((*in_float32, bias), {}),
        ((x, weight, bias), {"activation": "gelu"}),
        ((x, weight), {}),
    ):
        y, saved = forward(*arrays, **params, keep=True)
        backward(saved, y)
    forward(x, weight, bias, y.astype(np.float16), keep=False)
    kernel = attention.gpu()  # type: ignore[misc]
    starts = np.array([0, 4, 9], np.int32)
    for array in (_half(rng, 9, 3 * 64).astype(np.float32), _half(rng, 9, 3 * 16)):
        out, saved = kernel.forward(array, n_heads=2, key_starts=starts, keep=True)
        kernel.backward(saved, out)
    some = {"query_starts": np.array([0, 2, 2], np.int32), "key_starts": starts}
    out, saved = kernel.forward(_half(rng, 2, 64), _half(rng, 9, 128), n_heads=2, **some, keep=True)
    kernel.backward(saved, out)
    columns = np.array([*range(4), *range(5)], np.int32)
    dropout = AttentionDropout(0.1, 3, stream(Purpose.ATTENTION_DROPOUT, 0, 0), columns, columns, np.arange(2, dtype=np.int32))
    out, saved = kernel.forward(_half(rng, 9, 3 * 64), n_heads=2, key_starts=starts, dropout=dropout, keep=True)
    kernel.backward(saved, out)
    assert asked == []
    forward(x, weight, bias, keep=False)
    kernel.forward(_half(rng, 9, 3 * 64), n_heads=2, key_starts=starts, keep=False)
    assert asked == [("product + bias", "float16"), ("attention", "float16", 32)]
    assert (cublaslt.CUBLASLT, cudnn_attention.CUDNN) == (CUBLASLT, CUDNN)
