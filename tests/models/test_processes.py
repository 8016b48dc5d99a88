"""A whole model in Python threads and in other processes: nothing hangs, and every bit is the same.

Every wait has a limit, so what hangs fails. The recorded checkpoint is small: `GRAIN` is set to 0 in every process, so
that its kernels do use OpenMP's threads.
"""

import functools
import hashlib
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lucid.random
from lucid import _ext, tensor, threads
from lucid.models import BERTForMaskedLM

FOLDER = Path(__file__).parent / "fixtures"
TIMEOUT_S = 60
METHODS = [method for method in ("fork", "forkserver", "spawn") if method in multiprocessing.get_all_start_methods()]
TEXTS = [f"The {word} [MASK] on the {sign} road{sign}" for word in "cat dog bird fish tree house".split() for sign in ".,!?"]

needs_fork = pytest.mark.skipif("fork" not in METHODS, reason="this system has no fork")
needs_openmp = pytest.mark.skipif(not _ext.has_openmp, reason="built without OpenMP: there is one thread everywhere")
# From Python 3.12 on, fork warns where OpenMP's threads run: that it works all the same is what is tested.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


@pytest.fixture(autouse=True)
def _many_threads(every_size_is_threaded: None, monkeypatch: pytest.MonkeyPatch) -> None:
    threads.set_num_threads(3)
    # Workers on fewer CPUs than they have threads together would spend seconds spinning in OpenMP's barriers.
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")


@pytest.fixture
def model() -> BERTForMaskedLM:
    return BERTForMaskedLM.from_pretrained(FOLDER)


def _ids() -> Any:
    return np.random.default_rng(3).integers(0, 120, (8, 24))


def _answers(model: BERTForMaskedLM) -> str:
    """Give a hash of logits, of guesses from texts, and of a loss."""
    digest = hashlib.sha256(np.asarray(model(_ids())).tobytes())
    digest.update(repr(model.fill_mask(TEXTS)).encode())
    digest.update(model.get_loss_from_text(model.tokenizer, TEXTS, seed=1).numpy().tobytes())
    return digest.hexdigest()


def _step(model: BERTForMaskedLM) -> str:
    """Give a hash of the loss and all gradients of a step with dropout, and put eval mode back."""
    model.train().zero_grad()
    loss = model.get_loss(*reversed(model.create_masked_lm_inputs(_ids(), seed=4)), seed=5)
    loss.backward()
    digest = hashlib.sha256(loss.numpy().tobytes())
    for parameter in model.parameters():
        if parameter.grad is not None:
            digest.update(np.asarray(parameter.grad).tobytes())
    model.eval().zero_grad()
    return digest.hexdigest()


def _everything(model: BERTForMaskedLM) -> tuple[str, str]:
    return _answers(model), _step(model)


@functools.cache
def _own_model() -> BERTForMaskedLM:
    """Give a worker's own model, as a start method that copies nothing makes it load one."""
    threads.GRAIN = 0
    threads.set_num_threads(2)
    return BERTForMaskedLM.from_pretrained(FOLDER)


def _everything_of_own_model(_: int) -> tuple[str, str]:
    return _everything(_own_model())


def _everything_with_threads(model: BERTForMaskedLM) -> tuple[str, str]:
    threads.GRAIN = 0
    return _everything(model)


def _threads_of_worker(_: int) -> int:
    return threads.get_num_threads()


def _send(sender: Any, call: Callable[..., Any], *arguments: Any) -> None:
    sender.send(call(*arguments))


@contextmanager
def _child(context: BaseContext, call: Callable[..., Any], *arguments: Any) -> Iterator[Any]:
    """Start a process that makes a call, and give the pipe on which its result comes."""
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, call, *arguments))  # type: ignore[attr-defined]
    process.start()
    sender.close()
    try:
        yield receiver
        process.join(TIMEOUT_S)
        assert process.exitcode == 0
    finally:
        process.kill()
        process.join()
        receiver.close()


def _result_in_child(call: Callable[..., Any], *arguments: Any, method: str = "fork") -> Any:
    with _child(multiprocessing.get_context(method), call, *arguments) as receiver:
        assert receiver.poll(TIMEOUT_S), "the child hangs"
        return receiver.recv()


# Python threads


def test_python_threads_share_one_model_from_its_first_use_on(model: BERTForMaskedLM) -> None:
    """Its weights are not packed yet when all begin."""
    want = _answers(BERTForMaskedLM.from_pretrained(FOLDER))
    start = threading.Barrier(4)

    def work(_: int) -> list[str]:
        start.wait(TIMEOUT_S)
        return [_answers(model) for _ in range(3)]

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(4), timeout=TIMEOUT_S)) == [[want] * 3] * 4


def test_what_one_thread_says_of_gradients_is_not_for_the_other(model: BERTForMaskedLM) -> None:
    """One thread runs the model in no_grad, the other differentiates it at the same time."""
    model.train()
    ids, labels = model.create_masked_lm_inputs(_ids(), seed=4)

    def differentiate() -> bytes:
        loss = model.get_loss(labels, ids, seed=5)
        loss.backward()
        return loss.numpy().tobytes()

    def only_run() -> bytes:
        with lucid.no_grad():
            loss = model.get_loss(labels, ids, seed=5)
            assert loss.node is None
            return loss.numpy().tobytes()

    with ThreadPoolExecutor(2) as pool:
        results = [pool.submit(work) for _ in range(8) for work in (differentiate, only_run)]
        assert len({result.result(TIMEOUT_S) for result in results}) == 1


def test_joblib_threads(model: BERTForMaskedLM) -> None:
    joblib = pytest.importorskip("joblib", reason="joblib is not installed")
    want = _answers(model)
    assert joblib.Parallel(3, backend="threading")(joblib.delayed(_answers)(model) for _ in range(6)) == [want] * 6


# Other processes


@pytest.mark.parametrize("method", METHODS)
def test_workers_that_load_the_model_give_the_same_bits(method: str, model: BERTForMaskedLM) -> None:
    want = _everything(model)  # OpenMP's and the tokenizer's threads are running now
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map_async(_everything_of_own_model, range(4), chunksize=1).get(TIMEOUT_S) == [want] * 4
    assert _everything(model) == want  # and this process goes on


@pytest.mark.parametrize("method", METHODS)
def test_a_model_can_be_sent_to_a_worker(method: str, model: BERTForMaskedLM) -> None:
    want = _everything(model)
    assert _result_in_child(_everything_with_threads, model, method=method) == want


@needs_fork
@needs_openmp
def test_a_forked_child_uses_the_model_of_its_parent_on_one_thread(model: BERTForMaskedLM) -> None:
    want = _everything(model)
    assert _result_in_child(lambda: (threads.get_num_threads(), _everything(model))) == (1, want)
    assert threads.get_num_threads() == 3


@needs_fork
def test_a_child_of_a_child(model: BERTForMaskedLM) -> None:
    want = _everything(model)
    assert _result_in_child(lambda: (_everything(model), _result_in_child(_everything, model))) == (want, want)


@needs_fork
def test_children_of_python_threads_that_run_the_model(model: BERTForMaskedLM) -> None:
    want = _answers(model)

    results: list[list[str]] = [[], [], []]

    def work(into: list[str]) -> None:
        into += [_answers(model), _result_in_child(_answers, model), _answers(model)]

    # Not a pool's: what is forked from a worker of ThreadPoolExecutor tries to join itself when it ends.
    workers = [threading.Thread(target=work, args=(into,), daemon=True) for into in results]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(2 * TIMEOUT_S)
    assert results == [[want] * 3] * 3


@needs_fork
def test_a_child_does_not_wait_for_locks_that_another_thread_held(model: BERTForMaskedLM) -> None:
    """As happens where a thread loads or packs a model, or draws a seed, while the process is forked."""
    want = _everything(model)
    locks = [lucid.random._lock, tensor._accumulating, *(parameter._lock for parameter in model.parameters())]
    are_held, may_go = threading.Event(), threading.Event()

    def hold() -> None:
        for lock in locks:
            lock.acquire()
        are_held.set()
        may_go.wait(2 * TIMEOUT_S)
        for lock in locks:
            lock.release()

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        assert are_held.wait(TIMEOUT_S)
        with _child(multiprocessing.get_context("fork"), lambda: (_everything(model), lucid.random.resolve_seed(None))) as receiver:
            assert receiver.poll(20), "the child hangs"
            assert receiver.recv()[0] == want
            may_go.set()
    finally:
        may_go.set()
        holder.join()
    assert _everything(model) == want


def test_joblib_processes(model: BERTForMaskedLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also that joblib's share of threads for a worker is respected."""
    joblib = pytest.importorskip("joblib", reason="joblib is not installed")
    from joblib.externals.loky import get_reusable_executor

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    want = _everything(model)
    try:
        with joblib.parallel_config(backend="loky", inner_max_num_threads=1):
            parallel = joblib.Parallel(2, timeout=TIMEOUT_S)
            assert parallel(joblib.delayed(_threads_of_worker)(i) for i in range(4)) == [1] * 4
            assert parallel(joblib.delayed(_everything_with_threads)(model) for _ in range(2)) == [want] * 2
            assert parallel(joblib.delayed(_everything_of_own_model)(i) for i in range(4)) == [want] * 4
    finally:
        get_reusable_executor().shutdown(wait=True, kill_workers=True)


@needs_openmp
def test_threadpoolctl_sets_the_number_of_threads() -> None:
    threadpoolctl = pytest.importorskip("threadpoolctl", reason="threadpoolctl is not installed")
    threads.set_num_threads(None)
    before = threads.get_num_threads()
    with threadpoolctl.threadpool_limits(1):
        assert threads.get_num_threads() == 1
    assert threads.get_num_threads() == before


# A seed of one's own


@needs_fork
def test_forked_children_draw_the_same_seeds_until_they_are_told_their_own() -> None:
    assert _result_in_child(lucid.random.resolve_seed, None) == _result_in_child(lucid.random.resolve_seed, None)

    def with_own_seed() -> int:
        lucid.random.manual_seed(os.getpid())
        return lucid.random.resolve_seed(None)

    assert _result_in_child(with_own_seed) != _result_in_child(with_own_seed)
