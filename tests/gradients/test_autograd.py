"""The tape: when it records, what it refuses, what it adds up, what it lets go."""

import asyncio
import copy
import gc
import itertools
import threading
import tracemalloc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import lucid
from gradients.models import digest, gradients_of, make_batch, make_model, relative
from lucid import Tensor, enable_grad, gradcheck, no_grad
from lucid.autograd import apply, is_grad_enabled, recompute
from lucid.models import BERT, BERTConfig
from lucid.nn import LayerNorm, Linear, Parameter, init
from lucid.ops.activation import activation
from lucid.ops.layer_norm import layer_norm
from lucid.ops.linear import linear
from lucid.ops.op import Kernel, Op, RowsGradient
from lucid.ops.reshape import reshape
from lucid.ops.rows import gather_rows
from lucid.ops.total import scale, total

Array = Any
Loss = Callable[..., Tensor]


def leaf(*shape: int, seed: int = 0) -> Tensor:
    return Tensor(np.random.default_rng(seed).standard_normal(shape).astype(np.float32), requires_grad=True)


def parameter(*shape: int, seed: int = 0) -> Parameter:
    return Parameter(shape, init.normal(1.0, seed))


def summed(x: Tensor) -> Tensor:
    return apply(total, apply(reshape, x, shape=(x.size,)), divisor=1.0)  # type: ignore[no-any-return]


def act(x: Tensor, name: str = "tanh") -> Tensor:
    return apply(activation, x, name=name)  # type: ignore[no-any-return]


# no_grad


def test_a_context_records_nothing() -> None:
    x = leaf(3)
    with no_grad():
        assert not is_grad_enabled()
        y = x * 2.0
    assert is_grad_enabled()
    assert y.node is None
    assert not y.requires_grad
    assert (x * 2.0).node is not None


def test_a_decorator_records_nothing() -> None:
    @no_grad()
    def twice(x: Tensor) -> Tensor:
        """Double it."""
        return x * 2.0

    assert twice(leaf(3)).node is None
    assert twice(leaf(3)).node is None
    assert twice.__doc__ == "Double it."
    assert is_grad_enabled()


def test_nesting() -> None:
    seen = []
    again = no_grad()
    with no_grad():
        with enable_grad():
            seen.append(is_grad_enabled())
            with again:
                with again:  # the same one twice
                    seen.append(is_grad_enabled())
                seen.append(is_grad_enabled())
            seen.append(is_grad_enabled())
        seen.append(is_grad_enabled())
    assert seen == [True, False, False, True, False]
    assert is_grad_enabled()


def test_enable_grad_records_inside_no_grad() -> None:
    x = leaf(3)
    with no_grad(), enable_grad():
        y = summed(x * 3.0)
    y.backward()
    assert np.array_equal(x.grad, np.full(3, 3, np.float32))


@pytest.mark.parametrize("mode", [no_grad, enable_grad])
def test_an_exception_inside_restores_what_was_before(mode: Any) -> None:
    @mode()
    def fail() -> None:
        raise KeyError("inside")

    for outer in (no_grad, enable_grad):
        with outer():
            before = is_grad_enabled()
            with pytest.raises(KeyError):
                fail()
            assert is_grad_enabled() == before
            with pytest.raises(KeyError), mode():
                raise KeyError("inside")
            assert is_grad_enabled() == before
    assert is_grad_enabled()


def test_it_is_the_calling_thread_that_does_not_record() -> None:
    seen = []
    with no_grad():
        thread = threading.Thread(target=lambda: seen.append((is_grad_enabled(), (leaf(3) * 2.0).node is not None)))
        thread.start()
        thread.join()
        assert not is_grad_enabled()
    assert seen == [(True, True)]


def test_threads_inside_one_decorated_function_do_not_mix_up_what_was_before() -> None:
    """One thread comes recording, the other not; they leave in the order in which they came, as nesting would not."""
    first_is_in, second_is_in, first_is_out = threading.Event(), threading.Event(), threading.Event()
    after: dict[str, bool] = {}

    @no_grad()
    def inside(mine: threading.Event, other: threading.Event) -> None:
        mine.set()
        assert other.wait(10)

    def first() -> None:
        inside(first_is_in, second_is_in)
        after["first"] = is_grad_enabled()
        first_is_out.set()

    def second() -> None:
        with no_grad():
            assert first_is_in.wait(10)
            inside(second_is_in, first_is_out)
            after["second, inside"] = is_grad_enabled()
        after["second"] = is_grad_enabled()

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert after == {"first": True, "second, inside": False, "second": True}


def test_generators_and_coroutines_are_refused() -> None:
    def generator() -> Any:
        yield is_grad_enabled()

    async def coroutine() -> bool:
        return is_grad_enabled()

    async def both() -> Any:
        yield is_grad_enabled()

    for function in (generator, coroutine, both):
        with pytest.raises(TypeError, match="use it inside"):
            no_grad()(function)

    async def inside() -> bool:
        with no_grad():
            return is_grad_enabled()

    assert not asyncio.run(inside())


# What is recorded


def test_only_what_wants_a_gradient_is_recorded() -> None:
    x = Tensor(np.ones(3, np.float32))
    assert (x * 2.0).node is None
    x.requires_grad = True
    y = x * 2.0
    assert y.requires_grad
    assert y.detach().node is None
    assert (y.detach() * 2.0).node is None
    with pytest.raises(RuntimeError, match="not recorded"):
        y.detach().backward()


def test_an_op_without_a_gradient_is_not_recorded() -> None:
    round_ = Op("round", lambda x: None, cpu=Kernel(lambda x, *, keep: (np.round(x), None), None), gpu=None)
    assert apply(round_, leaf(3)).node is None


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int64, np.bool_])
def test_only_float32_has_gradients(dtype: Any) -> None:
    with pytest.raises(TypeError, match="float32"):
        Tensor(np.ones(3, dtype), requires_grad=True)


def test_eval_mode_and_no_grad_record_nothing_of_a_model() -> None:
    model, batch = _model_and_batch()
    assert model.get_loss(**batch).node is not None
    with no_grad():
        assert model.get_loss(**batch).node is None
    model.eval()
    loss = model.get_loss(**batch)
    assert loss.node is None
    with pytest.raises(RuntimeError, match=r"train mode \(model.train\(\)\)"):
        loss.backward()
    assert all(p.grad is None for p in model.parameters())


def test_predictions_in_train_mode_record_nothing() -> None:
    """A recorded one would hold every activation until its end."""
    model, batch = _model_and_batch(num_hidden_layers=6, vocab_size=97)
    batch["input_ids"] %= 97
    inputs = {name: array for name, array in batch.items() if name != "labels"}

    def peak() -> int:
        model.predict_token_ids(**inputs)
        tracemalloc.start()
        model.predict_token_ids(**inputs)
        bytes_ = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return bytes_

    packed = max(4 * p.size for p in model.parameters())  # in train mode a weight is packed for each product
    trained = peak()
    model.eval()
    assert trained <= peak() + 2 * packed


def test_the_loss_has_the_same_bits_with_a_tape_and_without() -> None:
    for tied in (True, False):
        model, batch = _model_and_batch(tie_word_embedding=tied, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
        with_tape = model.get_loss(**batch, seed=3)
        with no_grad():
            without = model.get_loss(**batch, seed=3)
        assert with_tape.numpy().tobytes() == without.numpy().tobytes()


# Going back


def test_numbers() -> None:
    x = leaf(5)
    summed(act(x) * 2.0).backward()
    np.testing.assert_allclose(x.grad, 2 * (1 - np.tanh(x.numpy().astype(np.float64)) ** 2), rtol=1e-5)


def test_gradients_add_up_until_they_are_forgotten() -> None:
    x = leaf(5)
    for n in (1, 2, 3):
        summed(x * 2.0).backward()
        assert np.array_equal(x.grad, np.full(5, 2 * n, np.float32))
    x.grad = None
    summed(x * 2.0).backward()
    assert np.array_equal(x.grad, np.full(5, 2, np.float32))


def test_a_diamond() -> None:
    """Both ways from x are summed before going on behind x: f = tanh(3x) + ... through one node twice."""
    x, weight = leaf(4, 3), leaf(3, 3, seed=1)
    h = x * 3.0
    y = apply(linear, h, weight, None, h)  # W h + h
    z = apply(linear, y, weight, None, h)  # W (W h + h) + h
    summed(z).backward()
    w = weight.numpy().astype(np.float64)
    ones = np.ones((4, 3))
    want = 3 * (ones @ w @ w + ones @ w + ones)
    np.testing.assert_allclose(x.grad, want, rtol=1e-5)
    h64 = 3 * x.numpy().astype(np.float64)
    np.testing.assert_allclose(weight.grad, ones.T @ (h64 @ w.T + h64) + (ones @ w).T @ h64, rtol=1e-5)


def test_each_node_runs_once_in_a_deep_ladder_of_diamonds() -> None:
    """2^40 paths lead back to x."""
    n_runs = itertools.count()

    def back(saved: Any, d_y: Array) -> tuple[Array, Array]:
        next(n_runs)
        return d_y / 2, d_y / 2

    join = Op("join", lambda a, b: None, cpu=Kernel(lambda a, b, *, keep: ((a + b) / 2, None), back), gpu=None)
    x = leaf(3)
    y = x
    for _ in range(40):
        y = apply(join, y, y)
    summed(y).backward()
    assert next(n_runs) == 40
    assert np.array_equal(x.grad, np.ones(3, np.float32))


def test_one_tensor_in_two_places_of_one_op() -> None:
    x, gain, bias = leaf(4, 6), leaf(6, seed=1), leaf(6, seed=2)
    summed(act(apply(layer_norm, x, gain, bias, x, eps=1e-5))).backward()
    doubled = leaf(4, 6)
    summed(act(apply(layer_norm, doubled * 2.0, Tensor(gain.array), Tensor(bias.array), eps=1e-5))).backward()
    np.testing.assert_allclose(x.grad, doubled.grad, rtol=1e-4, atol=1e-6)


def test_a_gradient_of_rows_reaches_leaves_and_inner_tensors() -> None:
    take = Op(
        "take",
        lambda x: None,
        cpu=Kernel(lambda x, *, keep: (x[1:3], x.shape), lambda shape, d_y: (RowsGradient(slice(1, 3), d_y, shape),)),
        gpu=None,
    )
    x = leaf(4, 2)
    for n, source in enumerate((x, x, x * 1.0, x * 1.0), start=1):
        summed(apply(take, source)).backward()
        assert np.array_equal(x.grad, n * np.array([[0, 0], [1, 1], [1, 1], [0, 0]], np.float32))
    y = x * 1.0
    summed(apply(linear, apply(take, y), Tensor(np.eye(2, dtype=np.float32)), None, apply(take, y))).backward()
    assert np.array_equal(x.grad, 6 * np.array([[0, 0], [1, 1], [1, 1], [0, 0]], np.float32))


def test_backward_takes_a_gradient_for_what_is_no_number() -> None:
    x = leaf(2, 3)
    y = x * 2.0
    with pytest.raises(ValueError, match=r"shape \(2, 3\)"):
        y.backward()
    for wrong in (np.ones((3, 2)), np.ones(6), np.ones(())):
        with pytest.raises(ValueError, match=r"shape \(2, 3\), not"):
            y.backward(wrong)
    assert x.grad is None
    d_y = np.arange(6, dtype=np.float64).reshape(2, 3)
    y.backward(d_y.tolist())
    assert x.grad.dtype == np.float32
    assert np.array_equal(x.grad, 2 * d_y)


def test_a_gradient_is_nobody_elses_array() -> None:
    x = leaf(6)
    d_y = np.ones((2, 3), np.float32)
    apply(reshape, x, shape=(2, 3)).backward(d_y)
    d_y[:] = 7
    assert np.array_equal(x.grad, np.ones(6, np.float32))
    held = x.grad
    summed(x * 1.0).backward()
    assert np.array_equal(held, np.ones(6, np.float32))


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_a_sum_of_gradients_is_made_in_place_where_it_is_the_tensors_own(shape: tuple[int, ...]) -> None:
    x = leaf(*shape)
    for n in range(1, 5):
        held = x.grad
        (x * 2.0).backward(np.ones(shape))
        assert isinstance(x.grad, np.ndarray) and np.array_equal(x.grad, np.full(shape, 2 * n, np.float32))
        assert (x.grad is held) == (n >= 3)
    theirs = np.ones(shape, np.float32)
    x.grad = theirs
    (x * 2.0).backward(np.ones(shape))
    assert np.array_equal(theirs, np.ones(shape))
    assert np.array_equal(x.grad, np.full(shape, 3, np.float32))


def test_the_word_table_takes_the_losss_gradient_without_a_copy() -> None:
    """The looked-up rows are added into it: no second table at the end of backward."""
    model, batch = _model_and_batch(vocab_size=20_011, hidden_size=24, num_hidden_layers=1, intermediate_size=32)
    size = model.get_input_embeddings().weight.size * 4
    tracemalloc.start()
    try:
        loss = model.get_loss(**batch)
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        loss.backward()
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert before > size
    assert peak < 0.5 * size


def test_rows_are_never_added_to_an_array_of_others() -> None:
    table = parameter(4, 2)
    theirs = np.ones((4, 2), np.float32)
    table.grad = theirs
    table.accumulate(RowsGradient(slice(1, 3), np.ones((2, 2), np.float32), (4, 2)))
    assert (theirs == 1).all()
    held = table.grad
    table.accumulate(RowsGradient(slice(1, 3), np.ones((2, 2), np.float32), (4, 2)))
    assert table.grad is held
    assert np.array_equal(held, [[1, 1], [3, 3], [3, 3], [1, 1]])


def test_a_wrong_backward_is_named() -> None:
    def op(d_x: Any) -> Op:
        return Op("mine", lambda x: None, cpu=Kernel(lambda x, *, keep: (x * 1, None), lambda saved, d_y: (d_x,)), gpu=None)

    x = leaf(2, 3)
    with pytest.raises(ValueError, match=r"\(3, 2\).*\(2, 3\)"):
        summed(apply(op(np.ones((3, 2), np.float32)), x)).backward()
    with pytest.raises(ValueError, match="d_out must have shape"):
        summed(apply(op(np.ones((3, 2), np.float32)), act(x))).backward()
    with pytest.raises(TypeError, match="d_out must be float32"):
        summed(apply(op(np.ones((2, 3))), act(x))).backward()
    assert x.grad is None


def test_no_gradient_through_an_input_is_none() -> None:
    nothing = Op("nothing", lambda x: None, cpu=Kernel(lambda x, *, keep: (x * 1, None), lambda saved, d_y: (None,)), gpu=None)
    x = leaf(3)
    summed(apply(nothing, act(x))).backward()
    assert x.grad is None


# What is refused


def test_a_tape_is_used_once() -> None:
    x = leaf(3)
    loss = summed(act(x))
    loss.backward()
    held = np.array(x.grad)
    with pytest.raises(RuntimeError, match="used before: run forward again"):
        loss.backward()
    assert np.array_equal(x.grad, held)


def test_a_part_of_a_tape_is_used_once_and_nothing_is_half_done() -> None:
    x, late = leaf(3), leaf(1, 3, seed=1)
    trunk = act(x)
    first, second = summed(trunk), summed(apply(linear, apply(reshape, trunk, shape=(1, 3)), late))
    first.backward()
    held = np.array(x.grad)
    with pytest.raises(RuntimeError, match=r"used before.*\(activation\)"):
        second.backward()
    assert np.array_equal(x.grad, held)
    assert late.grad is None


@pytest.mark.parametrize("is_frozen", [False, True])
def test_a_parameter_written_between_forward_and_backward_is_noticed(is_frozen: bool) -> None:
    x, weight, other = leaf(4, 3), parameter(3, 3), parameter(3, 3, seed=1)
    weight.requires_grad = not is_frozen
    writes: list[Callable[[], object]] = [
        lambda: weight.assign(np.zeros((3, 3))),
        lambda: weight.assign(weight.array),
        lambda: weight.write().__enter__().__setitem__(0, 1.0),
    ]
    for write in writes:
        loss = summed(apply(linear, apply(linear, x, weight), other))
        write()
        with pytest.raises(RuntimeError, match=r"parameter of linear, of shape \(3, 3\), was written between forward and backward"):
            loss.backward()
        assert x.grad is None and weight.grad is None and other.grad is None
    summed(apply(linear, x, weight)).backward()
    assert x.grad is not None


def test_reading_a_parameter_or_changing_its_layout_is_no_writing() -> None:
    x, weight = leaf(4, 3), parameter(3, 3)
    want = leaf(4, 3)
    summed(apply(linear, want, weight)).backward()
    loss = summed(apply(linear, x, weight))
    weight.packed()
    weight.row_major()
    assert weight.array.shape == (3, 3)
    loss.backward()
    assert np.array_equal(x.grad, want.grad)


def test_a_step_between_forward_and_backward_is_noticed() -> None:
    model, batch = _model_and_batch()
    optimizer = lucid.optim.AdamW(model)
    model.get_loss(**batch).backward()
    stale = model.get_loss(**batch)
    optimizer.step()
    model.zero_grad()
    with pytest.raises(RuntimeError, match="written between forward and backward"):
        stale.backward()
    assert all(p.grad is None for p in model.parameters())


def test_a_parameter_can_be_read_while_it_is_written() -> None:
    weight = parameter(3, 3)
    before = np.array(weight.array)
    done = threading.Event()

    def write() -> None:
        with weight.write() as values:
            values[0] = weight.array[1]
            weight.packed()
            values[1] = 5
        done.set()

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    assert done.wait(10), "a parameter waits for itself"
    assert np.array_equal(weight.array, [before[1], [5, 5, 5], before[2]])


def test_two_threads_going_back_lose_nothing() -> None:
    weight, n_times = parameter(64, 64), 200
    x = np.ones((1, 64), np.float32)

    def work() -> None:
        for _ in range(n_times):
            summed(apply(linear, Tensor(x), weight)).backward()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert np.array_equal(weight.grad, np.full((64, 64), 4 * n_times, np.float32))


# What is let go


def test_an_array_that_no_backward_reads_is_free_at_once() -> None:
    x = leaf(100)
    between = x * 2.0  # `scale` reads its factor alone
    watched = weakref.ref(between.array)
    loss = summed(between * 3.0)
    del between
    assert watched() is None
    loss.backward()
    assert np.array_equal(x.grad, np.full(100, 6, np.float32))


def test_arrays_are_free_as_backward_goes() -> None:
    """What a node read is gone before the next node runs, and all of it before backward returns."""
    x = leaf(100)
    watched: list[weakref.ref[Any]] = []
    alive: list[int] = []

    def back(saved: Array, d_y: Array) -> tuple[Array]:
        alive.append(sum(ref() is not None for ref in watched))
        return (d_y * saved,)

    square = Op("half square", lambda x: None, cpu=Kernel(lambda x, *, keep: (x * x / 2, x), back), gpu=None)
    y = x
    for _ in range(5):
        y = apply(square, y)
        watched.append(weakref.ref(y.array))
    gc.disable()
    try:
        loss = summed(y)
        del y
        loss.backward()
    finally:
        gc.enable()
    # The first to go back reads x_4: x_1 to x_4 are alive, x_5 is not; and so on, one fewer each time.
    assert alive == [4, 3, 2, 1, 0]
    assert loss.node is not None and not loss.node.targets


def test_a_loss_that_is_still_held_holds_no_activations() -> None:
    model, batch = _model_and_batch()
    model.get_loss(**batch).backward()
    model.zero_grad()
    tracemalloc.start()
    loss = model.get_loss(**batch)
    held = tracemalloc.get_traced_memory()[0]
    loss.backward()
    model.zero_grad()
    left = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held > 1_000_000
    assert left < 0.05 * held


def test_a_tape_that_is_never_used_is_freed_without_the_garbage_collector() -> None:
    model, batch = _model_and_batch()
    model.bert.encoder.is_recomputed = True
    gc.collect()
    gc.disable()
    try:
        tracemalloc.start()
        loss = model.get_loss(**batch)
        held = tracemalloc.get_traced_memory()[0]
        del loss
        left = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
        gc.enable()
    assert left < 0.1 * held


# Recomputation


@pytest.mark.parametrize("p", [0.0, 0.2])
def test_recomputed_layers_give_the_same_bits(p: float) -> None:
    model, batch = _model_and_batch(hidden_dropout_prob=p, attention_probs_dropout_prob=p)
    results = []
    for is_recomputed in (False, True):
        model.bert.encoder.is_recomputed = is_recomputed
        model.zero_grad()
        loss = model.get_loss(**batch, seed=9)
        loss.backward()
        results.append((loss.numpy().tobytes(), digest(gradients_of(model).values())))
    assert results[0] == results[1]


def test_recomputed_layers_hold_less() -> None:
    model, batch = _model_and_batch(num_hidden_layers=6)
    held = []
    for is_recomputed in (False, True):
        model.bert.encoder.is_recomputed = is_recomputed
        model.get_loss(**batch).backward()
        model.zero_grad()
        tracemalloc.start()
        loss = model.get_loss(**batch)
        held.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
        del loss
    assert held[1] < 0.4 * held[0]


def test_a_parameter_inside_a_recomputed_layer_is_watched() -> None:
    model, batch = _model_and_batch()
    model.bert.encoder.is_recomputed = True
    loss = model.get_loss(**batch)
    weight = model.bert.encoder.layer[0].feed_forward.dense_in.weight
    weight.assign(np.array(weight.array) * 2)
    with pytest.raises(RuntimeError, match="parameter of recompute"):
        loss.backward()
    assert all(p.grad is None for p in model.parameters())


def test_recompute_records_nothing_where_nothing_is_wanted() -> None:
    calls: list[bool] = []

    def function(x: Tensor) -> Tensor:
        calls.append(is_grad_enabled())
        return act(x)

    assert recompute(function, Tensor(np.ones(3, np.float32))).node is None
    with no_grad():
        assert recompute(function, leaf(3)).node is None
    assert calls == [True, False]
    x, want = leaf(3), leaf(3)
    summed(recompute(function, x)).backward()
    assert calls == [True, False, False, True]
    summed(act(want)).backward()
    assert np.array_equal(x.grad, want.grad)


# Whole models


def _model_and_batch(**overrides: Any) -> tuple[Any, dict[str, Array]]:
    model = make_model(**overrides)
    return model, make_batch(model)


def test_a_model_without_labels_has_gradients_of_zero() -> None:
    model, batch = _model_and_batch()
    batch["labels"][:] = -100
    for reduction in ("mean", "sum"):
        model.zero_grad()
        loss = model.get_loss(**batch, reduction=reduction)
        assert float(loss) == 0
        loss.backward()
        for name, p in model.named_parameters():
            assert p.grad is not None and not p.grad.any(), name


def test_a_model_without_tokens_has_gradients_of_zero() -> None:
    model = make_model()
    ids = np.zeros((2, 3), np.int64)
    model.get_loss(np.full((2, 3), -100), ids, attention_mask=ids).backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("is_tied", [True, False])
def test_every_parameter_gets_a_gradient(is_tied: bool) -> None:
    model, batch = _model_and_batch(tie_word_embedding=is_tied)
    model.get_loss(**batch).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.any(), name
        assert p.grad.shape == p.shape and p.grad.dtype == np.float32 and np.isfinite(p.grad).all(), name


def test_a_tied_table_gets_both_gradients_once() -> None:
    tied, batch = _model_and_batch()
    untied = make_model(tie_word_embedding=False)
    untied.load_state_dict({**tied.state_dict(), "cls.predictions.decoder.weight": tied.get_input_embeddings().weight.array})
    for model in (tied, untied):
        model.get_loss(**batch).backward()
    whole, parts = gradients_of(tied), gradients_of(untied)
    of_decoder, name = parts.pop("cls.predictions.decoder.weight"), "bert.embeddings.word_embeddings.weight"
    of_embedding = parts.pop(name)
    assert of_decoder.any() and of_embedding.any()
    assert np.array_equal(whole.pop(name), of_decoder + of_embedding)
    assert whole.keys() == parts.keys()
    assert all(np.array_equal(whole[key], parts[key]) for key in whole)


def test_frozen_parameters_get_none_and_change_no_other() -> None:
    model, batch = _model_and_batch()
    model.get_loss(**batch).backward()
    want = gradients_of(model)
    model.zero_grad()
    frozen = {name for name, _ in model.named_parameters() if "embeddings" in name or "layer.0" in name or name.endswith("dense.bias")}
    for name, p in model.named_parameters():
        p.requires_grad = name not in frozen
    model.get_loss(**batch).backward()
    for name, p in model.named_parameters():
        if name in frozen:
            assert p.grad is None, name
        else:
            assert np.array_equal(p.grad, want[name]), name
    for p in model.parameters():
        p.requires_grad = False
    assert model.get_loss(**batch).node is None


def test_the_loss_makes_no_gradient_of_a_frozen_word_table() -> None:
    """It is the largest array of a step, made in forward already."""
    model, batch = _model_and_batch()
    table = model.cls.predictions.decoder.weight

    def gradients_held() -> int:
        return sum(g is not None and g.shape == table.shape for g in model.get_loss(**batch).node.saved)

    assert gradients_held() == 1
    table.requires_grad = False
    assert gradients_held() == 0
    losses = model.get_loss(**batch, reduction=None)
    losses.backward(np.ones(losses.shape, np.float32))
    assert table.grad is None and model.cls.predictions.decoder.bias.grad.any()


@pytest.mark.parametrize("sizes", [(1, 3), (2, 2), (1, 1, 1, 1)])
def test_micro_batches_weighted_by_labels_make_the_whole_step(sizes: tuple[int, ...]) -> None:
    """The mean over the labels of the step, not the mean of means: their counts differ."""
    model, batch = _model_and_batch()
    batch["labels"][1] = -100  # a sequence without any
    whole = model.get_loss(**batch)
    whole.backward()
    want = gradients_of(model)
    model.zero_grad()
    n_labels = int((batch["labels"] != -100).sum())
    loss, begin = 0.0, 0
    for size in sizes:
        part = {name: array[begin : begin + size] for name, array in batch.items()}
        share = model.get_loss(**part, reduction="sum") / n_labels
        share.backward()
        loss, begin = loss + float(share), begin + size
    assert loss == pytest.approx(float(whole), rel=1e-6)
    got = gradients_of(model)
    for name in want:
        if not name.endswith("qkv.bias"):  # a third of it has a true gradient of 0
            assert relative(got[name], want[name]) < 2e-6, name


@pytest.mark.parametrize("reduction", ["mean", "sum", None])
def test_reductions_have_their_gradients(reduction: str | None) -> None:
    model, batch = _model_and_batch()
    model.get_loss(**batch, reduction="sum").backward()
    want = gradients_of(model)
    model.zero_grad()
    loss = model.get_loss(**batch, reduction=reduction)
    if reduction is None:
        loss.backward(np.ones(loss.shape))
    else:
        loss.backward()
    n_labels = int((batch["labels"] != -100).sum())
    for name, d in gradients_of(model).items():
        assert relative(d * (n_labels if reduction == "mean" else 1), want[name]) < 1e-6, name


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_gradient_of_inputs_embeds(mode: str) -> None:
    model, batch = _model_and_batch()
    getattr(model, mode)()
    table = model.get_input_embeddings().weight.array
    embeds = Tensor(table[batch.pop("input_ids")], requires_grad=True)
    model.get_loss(**batch, inputs_embeds=embeds).backward()
    assert embeds.grad.shape == embeds.shape
    is_real = batch["attention_mask"] == 1
    assert not embeds.grad[~is_real].any()
    assert (np.abs(embeds.grad[is_real]).max(axis=1) > 0).all()
    if mode == "eval":
        assert all(p.grad is None for p in model.parameters())

    def loss(values: Tensor) -> Tensor:
        return model.get_loss(**batch, inputs_embeds=values)

    for seed in range(3):
        assert gradcheck(loss, embeds, step=3e-3, seed=seed) < 1e-3  # embeddings are small numbers, of 0.05


def test_gradient_of_inputs_embeds_is_that_of_the_looked_up_rows() -> None:
    model, batch = _model_and_batch()
    model.get_loss(**batch).backward()
    table = model.get_input_embeddings().weight
    d_decoder = np.array(table.grad)
    model.zero_grad()
    ids = batch.pop("input_ids")
    embeds = Tensor(table.array[ids], requires_grad=True)
    model.get_loss(**batch, inputs_embeds=embeds).backward()
    d_lookups = np.zeros(table.shape)
    np.add.at(d_lookups, ids.reshape(-1), embeds.grad.reshape(-1, table.shape[1]).astype(np.float64))
    assert relative(table.grad + d_lookups, d_decoder) < 1e-6


def test_inputs_embeds_that_could_lose_their_gradient_are_refused() -> None:
    model, batch = _model_and_batch()
    ids = batch.pop("input_ids")
    embeds = Tensor(np.asarray(model.get_input_embeddings().weight.array)[ids].astype(np.float64))
    embeds.requires_grad = True
    with pytest.raises(TypeError, match="float32"):
        model.get_loss(**batch, inputs_embeds=embeds)


def test_the_backbone_has_gradients_through_both_outputs() -> None:
    config = BERTConfig.base(**{**make_model().config.__dict__, "add_pooling_layer": True})
    model, batch = BERT(config), make_batch(make_model())
    del batch["labels"]
    sequence, pooled = model(**batch)  # type: ignore[misc]
    assert pooled is not None
    d_sequence = np.random.default_rng(1).standard_normal(sequence.shape)
    d_sequence[batch["attention_mask"] == 1] = 0  # padding is no output: its gradient goes nowhere
    sequence.backward(d_sequence)
    assert all(not p.grad.any() for p in model.parameters() if p.grad is not None)
    model.zero_grad()
    _, pooled = model(**batch)  # type: ignore[misc]
    assert pooled is not None
    summed(pooled).backward()
    assert model.pooler is not None and model.pooler.dense.weight.grad.any()
    assert model.embeddings.word_embeddings.weight.grad.any()


# gradcheck


def test_gradcheck_passes_what_is_right() -> None:
    norm, dense = LayerNorm(7, 1e-5), Linear(7, 5, init.normal(0.5, 0))

    def function(x: Tensor) -> Tensor:
        return summed(dense(norm(x), activation="gelu"))

    assert gradcheck(function, leaf(4, 7)) < 1e-3
    assert gradcheck(lambda a, b: summed(apply(linear, a, b)), leaf(4, 7), leaf(3, 7, seed=1)) < 1e-3
    assert gradcheck(lambda x: summed(apply(gather_rows, x, rows=np.array([0, 2, 2], np.int32))), leaf(4, 7)) < 1e-3


@pytest.mark.parametrize("factor", [-1.0, 0.0, 0.9, 1.1])
def test_gradcheck_refuses_what_is_wrong(factor: float) -> None:
    wrong = Op(
        "wrong",
        lambda x: None,
        cpu=Kernel(lambda x, *, keep: (np.tanh(x), x), lambda x, d_y: ((factor * d_y * (1 - np.tanh(x) ** 2)).astype(np.float32),)),
        gpu=None,
    )
    with pytest.raises(AssertionError, match="gradcheck"):
        gradcheck(lambda x: summed(apply(wrong, x)), leaf(4, 7))


def test_gradcheck_refuses_a_lost_gradient_and_a_nan() -> None:
    def lost(a: Tensor, b: Tensor) -> Tensor:
        return summed(apply(linear, a, b.detach()))

    with pytest.raises(AssertionError, match="gradcheck"):
        gradcheck(lost, leaf(4, 7), leaf(3, 7, seed=1))
    with pytest.raises(AssertionError, match="gradcheck"):
        gradcheck(lambda x: summed(apply(scale, x, factor=float("nan"))), leaf(3))


def test_gradcheck_leaves_its_inputs_alone() -> None:
    x = leaf(3)
    before = x.numpy().copy()
    gradcheck(lambda x: summed(act(x)), x)
    assert x.grad is None
    assert np.array_equal(x.numpy(), before)


# Tensors


@pytest.mark.parametrize("factor", [2, 2.0, np.float64(2), np.float32(2), np.int64(2)])
def test_numpys_numbers_leave_products_on_the_tape(factor: Any) -> None:
    x = Tensor(np.ones(3, np.float32), requires_grad=True)
    for product in (factor * x, x * factor, x / (1 / factor)):
        x.grad = None
        product.backward(np.ones(3))
        np.testing.assert_array_equal(x.grad, np.full(3, 2.0))


def test_a_copy_shares_no_gradient() -> None:
    x = Tensor(np.ones(3, np.float32), requires_grad=True)
    for _ in range(2):
        (x * 3.0).backward(np.ones(3))
    copied = copy.copy(x)
    (copied * 3.0).backward(np.ones(3))
    (x * 3.0).backward(np.ones(3))
    np.testing.assert_array_equal(copied.grad, np.full(3, 9.0))
    np.testing.assert_array_equal(x.grad, np.full(3, 9.0))
