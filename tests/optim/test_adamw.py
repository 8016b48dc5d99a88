"""AdamW: against float64 and against torch; groups; what is not finite; state; bad arguments."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from gradients import reference
from gradients.cases import for_each_thread_count
from gradients.models import digest, make_batch, make_model, relative, state_of, weights_of

import lucid
from lucid.nn import Embedding, LayerNorm, Linear, Module, Parameter, init
from lucid.optim import AdamW, NonFiniteError, Schedule, default_groups, grad_norm

Array = Any


class Model(Module):
    """A table, a product, a norm: each kind of parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.table = Embedding(7, 5, init.normal(1.0, 1))
        self.dense = Linear(5, 3, init.normal(1.0, 2))
        self.layer_norm = LayerNorm(3, 1e-5)


def gradients(model: Module, step: int) -> None:
    """Give every parameter a gradient that depends on the step alone."""
    for i, p in enumerate(model.parameters()):
        p.grad = np.random.default_rng([step, i]).standard_normal(p.shape).astype(np.float32)


def follow(model: Module, optimizer: AdamW, steps: Iterable[int]) -> None:
    for step in steps:
        gradients(model, step)
        optimizer.step()


def snapshot(model: Module, optimizer: AdamW) -> str:
    state = optimizer.state_dict()
    arrays = [p.array for p in model.parameters()]
    arrays += [state[kind][name] for kind in ("m", "v") for name in sorted(state[kind])]
    return digest([*arrays, np.array([state["n_steps"], *(state["n_updates"][name] for name in sorted(state["n_updates"]))])])


# Numbers


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.5), (0.8, 0.0)])
def test_ten_steps_against_float64(weight_decay: float, betas: tuple[float, float]) -> None:
    model = Model()
    optimizer = AdamW(model, lr=1e-2, betas=betas, eps=1e-6, weight_decay=weight_decay)
    want = {name: p.numpy().astype(np.float64) for name, p in model.named_parameters()}
    moments = {name: (np.zeros(w.shape), np.zeros(w.shape)) for name, w in want.items()}
    for step in range(1, 11):
        gradients(model, step)
        optimizer.step()
        for name, p in model.named_parameters():
            decay = weight_decay if name.endswith("weight") and "norm" not in name else 0.0
            settings: dict[str, Any] = {"lr": 1e-2, "betas": betas, "eps": 1e-6, "weight_decay": decay, "step": step}
            want[name], *moments_ = reference.adamw(want[name], *moments[name], p.grad.astype(np.float64), **settings)
            moments[name] = (moments_[0], moments_[1])
            np.testing.assert_allclose(p.numpy(), want[name], rtol=2e-6, atol=2e-7, err_msg=f"{name} in step {step}")
    state = optimizer.state_dict()
    for name in want:
        for kind, moment in zip(("m", "v"), moments[name], strict=True):
            np.testing.assert_allclose(state[kind][name], moment, rtol=1e-6, atol=1e-7, err_msg=f"{kind} of {name}")


def test_ten_steps_against_torch() -> None:
    torch = pytest.importorskip("torch")
    model = Model()
    groups = default_groups(model, 0.05)
    optimizer = AdamW(groups, lr=3e-3, betas=(0.9, 0.98), eps=1e-7, max_grad_norm=2.0)
    twins = {name: torch.nn.Parameter(torch.tensor(p.numpy().copy())) for name, p in model.named_parameters()}
    theirs = torch.optim.AdamW(
        [{"params": [twins[name] for name in group["params"]], "weight_decay": group["weight_decay"]} for group in groups],
        lr=3e-3,
        betas=(0.9, 0.98),
        eps=1e-7,
    )
    for step in range(1, 11):
        gradients(model, step)
        if step in (3, 4):
            model.dense.bias.grad = None  # torch leaves such a parameter alone, its count of steps, too
        for name, p in model.named_parameters():
            twins[name].grad = None if p.grad is None else torch.tensor(p.grad)
        norm = optimizer.step()
        assert norm == pytest.approx(float(torch.nn.utils.clip_grad_norm_(list(twins.values()), 2.0)), rel=1e-6)
        theirs.step()
        for name, p in model.named_parameters():
            np.testing.assert_allclose(p.numpy(), twins[name].detach().numpy(), rtol=2e-6, atol=5e-7, err_msg=f"{name} in step {step}")


def test_the_first_step_has_the_size_of_the_rate() -> None:
    """Bias correction: m / sqrt(v) is the gradient's sign."""
    p = Parameter((4,), init.zeros)
    p.grad = np.array([1e-3, -5.0, 1e4, 2.0], np.float32)
    AdamW([p], lr=0.5, weight_decay=0.0).step()
    np.testing.assert_allclose(p.numpy(), [-0.5, 0.5, -0.5, -0.5], rtol=1e-4)


def test_a_parameter_that_is_unfrozen_later_starts_its_own_count() -> None:
    early, late = Parameter((1,), init.zeros), Parameter((1,), init.zeros)
    optimizer = AdamW([early, late], lr=0.1, weight_decay=0.0)
    for _ in range(50):
        early.grad = np.ones(1, np.float32)
        optimizer.step()
    assert not late.numpy().any() and late.version == 0
    early.grad, late.grad = None, np.ones(1, np.float32)
    before = early.numpy().copy()
    optimizer.step()
    assert late.numpy()[0] == pytest.approx(-0.1, rel=1e-5)
    assert np.array_equal(early.numpy(), before)
    assert optimizer.state_dict()["n_updates"] == {"0.0": 50, "0.1": 1}


def test_bits_do_not_depend_on_threads() -> None:
    def run() -> str:
        p = Parameter((70_001,), init.normal(1.0, 3))
        optimizer = AdamW([p], lr=1e-2, max_grad_norm=1.0)
        for step in range(3):
            p.grad = np.random.default_rng(step).standard_normal(p.shape).astype(np.float32)
            optimizer.step()
        return state_of([p])

    assert len(set(for_each_thread_count(run))) == 1


# Groups


def test_decay_spares_biases_and_norms() -> None:
    model = Model()
    decayed, kept = default_groups(model, 0.3)
    assert list(decayed["params"]) == ["table.weight", "dense.weight"]
    assert decayed["weight_decay"] == 0.3
    assert list(kept["params"]) == ["dense.bias", "layer_norm.weight", "layer_norm.bias"]
    assert kept["weight_decay"] == 0.0
    before = {name: p.numpy().copy() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = np.zeros(p.shape, np.float32)
    AdamW(model, lr=0.5, weight_decay=0.3).step()
    for name, p in model.named_parameters():
        factor = np.float32(1 - 0.5 * 0.3) if name in decayed["params"] else np.float32(1)
        np.testing.assert_allclose(p.numpy(), before[name] * factor, rtol=1e-6, err_msg=name)


def test_the_groups_of_a_whole_model_hold_every_parameter_once() -> None:
    model = make_model()
    decayed, kept = default_groups(model)
    assert {**decayed["params"], **kept["params"]} == dict(model.named_parameters())
    assert all(name.endswith(".bias") or "norm" in name for name in kept["params"])
    assert not any(name.endswith(".bias") or "norm" in name for name in decayed["params"])


def test_groups_have_their_own_rates() -> None:
    fast, slow = Parameter((3,), init.ones), Parameter((3,), init.ones)
    optimizer = AdamW([{"params": [fast], "lr": 0.1}, {"params": {"slow": slow}}], lr=0.01, weight_decay=0.0)
    for p in (fast, slow):
        p.grad = np.ones(3, np.float32)
    optimizer.step()
    np.testing.assert_allclose(fast.numpy(), 0.9, rtol=1e-5)
    np.testing.assert_allclose(slow.numpy(), 0.99, rtol=1e-5)
    assert optimizer.state_dict()["m"].keys() == {"0.0", "slow"}


def test_parameters_may_come_as_an_iterator() -> None:
    model = Model()
    optimizer = AdamW(model.parameters(), lr=0.1)
    gradients(model, 1)
    before = [p.numpy().copy() for p in model.parameters()]
    optimizer.step()
    assert all((p.numpy() != b).any() for p, b in zip(model.parameters(), before, strict=True))


def test_zero_grad() -> None:
    model = Model()
    optimizer = AdamW(model)
    gradients(model, 1)
    optimizer.zero_grad()
    assert all(p.grad is None for p in model.parameters())
    gradients(model, 1)
    model.zero_grad()
    assert all(p.grad is None for p in model.parameters())


def test_a_step_changes_the_version_of_what_it_writes_and_the_gradient_of_nothing() -> None:
    model = Model()
    gradients(model, 1)
    held = [p.grad.copy() for p in model.parameters()]
    AdamW(model, max_grad_norm=1e-3).step()
    assert all(p.version == 1 for p in model.parameters())
    assert all(np.array_equal(p.grad, g) for p, g in zip(model.parameters(), held, strict=True))


# Clipping in the step


def test_the_step_clips_by_the_norm_of_all_gradients() -> None:
    clipped, by_hand, free = Model(), Model(), Model()
    for model in (clipped, by_hand, free):
        gradients(model, 1)
    norm = grad_norm(clipped.parameters())
    assert AdamW(clipped, max_grad_norm=norm / 4, eps=1.0).step() == norm
    for p in by_hand.parameters():
        p.grad = p.grad * np.float32(0.25)
    AdamW(by_hand, eps=1.0).step()
    AdamW(free, eps=1.0, max_grad_norm=1.001 * norm).step()
    plain = Model()
    gradients(plain, 1)
    AdamW(plain, eps=1.0).step()
    for a, b, c, d in zip(*(model.parameters() for model in (clipped, by_hand, free, plain)), strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-6, atol=1e-9)
        assert (a.numpy() != d.numpy()).any()
        assert np.array_equal(c.numpy(), d.numpy())


# What is not finite


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["first", "last", "loss"])
def test_what_is_not_finite_touches_nothing_and_is_named(value: float, where: str) -> None:
    model = Model()
    optimizer = AdamW(model, lr=1e-2, max_grad_norm=1.0)
    follow(model, optimizer, [1, 2])
    before, versions = snapshot(model, optimizer), [p.version for p in model.parameters()]
    gradients(model, 3)
    names = {"first": "table.weight", "last": "layer_norm.bias"}
    if where == "loss":
        with pytest.raises(NonFiniteError, match=rf"the loss is {value} in step 3, batch 41: no weight was touched"):
            optimizer.step(lucid.Tensor(np.float32(value)), batch=41)
    else:
        dict(model.named_parameters())[names[where]].grad.reshape(-1)[-1] = value
        with pytest.raises(NonFiniteError, match=rf"gradient of {names[where]} is not finite in step 3, batch shard 7, row 2: no weight"):
            optimizer.step(1.5, batch="shard 7, row 2")
        with pytest.raises(NonFiniteError, match=r"in step 3: "):
            optimizer.step()
    assert snapshot(model, optimizer) == before
    assert [p.version for p in model.parameters()] == versions
    follow(model, optimizer, [3])
    twin = Model()
    fresh = AdamW(twin, lr=1e-2, max_grad_norm=1.0)
    follow(twin, fresh, [1, 2, 3])
    assert snapshot(model, optimizer) == snapshot(twin, fresh)


def test_many_bad_gradients_are_counted() -> None:
    model = Model()
    gradients(model, 1)
    for p in model.parameters():
        p.grad[...] = np.nan
    with pytest.raises(NonFiniteError, match=r"table.weight, dense.weight, dense.bias and 2 others is not finite"):
        AdamW(model).step()


def test_large_gradients_are_finite() -> None:
    """Their squares are too large for float32."""
    p = Parameter((5000,), init.zeros)
    p.grad = np.full(5000, 1e25, np.float32)
    assert AdamW([p], max_grad_norm=1.0).step() == pytest.approx(1e25 * math.sqrt(5000), rel=1e-6)
    assert np.isfinite(p.numpy()).all() and p.numpy().any()


def test_a_loss_of_nan_in_a_whole_step() -> None:
    model = make_model()
    batch = make_batch(model)
    optimizer = AdamW(model, lr=1e-3)
    model.get_loss(**batch).backward()
    optimizer.step()
    before = state_of(model.parameters())
    weight = model.bert.encoder.layer[1].feed_forward.dense_in.bias
    values = np.array(weight.array)
    broken = values.copy()
    broken[5] = np.nan
    weight.assign(broken)
    model.zero_grad()
    loss = model.get_loss(**batch)
    loss.backward()
    with pytest.raises(NonFiniteError, match="the loss is nan in step 2, batch 1"):
        optimizer.step(loss, batch=1)
    with pytest.raises(
        NonFiniteError, match=r"the gradient of bert\.embeddings\.word_embeddings\.weight, .* others is not finite in step 2"
    ):
        optimizer.step(batch=1)
    weight.assign(values)
    assert state_of(model.parameters()) == before


# State


@pytest.mark.parametrize("n_before", [0, 1, 4])
def test_a_restored_optimizer_goes_on_with_the_same_bits(n_before: int) -> None:
    model, twin = Model(), Model()
    optimizer = AdamW(model, lr=1e-2)
    follow(model, optimizer, range(n_before))
    state = optimizer.state_dict()
    twin.load_state_dict(model.state_dict())
    restored = AdamW(twin, lr=1e-2)
    restored.load_state_dict(state)
    follow(model, optimizer, range(n_before, 7))
    follow(twin, restored, range(n_before, 7))
    assert restored.n_steps == optimizer.n_steps == 7
    assert snapshot(model, optimizer) == snapshot(twin, restored)


def test_a_restored_state_is_a_copy() -> None:
    model = Model()
    optimizer, other = AdamW(model), AdamW(model)
    follow(model, optimizer, [1])
    other.load_state_dict(optimizer.state_dict())
    held = {name: m.copy() for name, m in other.state_dict()["m"].items()}
    follow(model, optimizer, [2])
    assert all(np.array_equal(m, held[name]) for name, m in other.state_dict()["m"].items())


def test_loading_goes_back_to_no_moments() -> None:
    model = Model()
    optimizer, fresh = AdamW(model), AdamW(model).state_dict()
    follow(model, optimizer, [1, 2])
    optimizer.load_state_dict(fresh)
    assert optimizer.state_dict() == {"n_steps": 0, "n_updates": {}, "m": {}, "v": {}}


def test_training_resumes_to_the_same_bits() -> None:
    """A whole model, dropout on, a schedule: stop after two steps, go on elsewhere."""
    settings: dict[str, Any] = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "num_hidden_layers": 1}

    def steps(model: Any, optimizer: AdamW, schedule: Schedule, begin: int, end: int) -> None:
        for step in range(begin, end):
            model.zero_grad()
            loss = model.get_loss(**make_batch(model, seed=step), seed=step)
            loss.backward()
            schedule.step()
            optimizer.step(loss)

    def make() -> tuple[Any, AdamW, Schedule]:
        model = make_model(**settings)
        optimizer = AdamW(model, lr=1e-3, max_grad_norm=1.0)
        return model, optimizer, Schedule(optimizer, 2, 6)

    model, optimizer, schedule = make()
    steps(model, optimizer, schedule, 0, 4)
    first, first_optimizer, first_schedule = make()
    steps(first, first_optimizer, first_schedule, 0, 2)
    second, second_optimizer, second_schedule = make()
    second.load_state_dict(first.state_dict())
    second_optimizer.load_state_dict(first_optimizer.state_dict())
    second_schedule.load_state_dict(first_schedule.state_dict())
    steps(second, second_optimizer, second_schedule, 2, 4)
    assert snapshot(second, second_optimizer) == snapshot(model, optimizer)


def _bad_states(state: dict[str, Any]) -> dict[str, tuple[dict[str, Any], type[Exception]]]:
    name = "dense.weight"

    def changed(kind: str, value: Any) -> dict[str, Any]:
        return {**state, kind: {**state[kind], name: value}}

    def without(kind: str) -> dict[str, Any]:
        return {**state, kind: {key: value for key, value in state[kind].items() if key != name}}

    unknown = {kind: {**state[kind], "dense.extra": state[kind][name]} for kind in ("n_updates", "m", "v")}
    return {
        "an unknown path": ({**state, **unknown}, KeyError),
        "m of another shape": (changed("m", np.zeros((5, 3), np.float32)), ValueError),
        "v of another shape": (changed("v", np.zeros(15, np.float32)), ValueError),
        "v of another type": (changed("v", np.zeros((3, 5))), TypeError),
        "m no array": (changed("m", [[0.0]]), TypeError),
        "no m": (without("m"), KeyError),
        "no v": (without("v"), KeyError),
        "no count": (without("n_updates"), KeyError),
        "negative steps": ({**state, "n_steps": -1}, ValueError),
        "a negative count": (changed("n_updates", -1), ValueError),
        "no n_steps": ({key: value for key, value in state.items() if key != "n_steps"}, KeyError),
    }


@pytest.mark.parametrize(
    "kind", _bad_states({"n_steps": 0, "n_updates": {"dense.weight": 0}, "m": {"dense.weight": 0}, "v": {"dense.weight": 0}})
)
def test_a_state_that_does_not_fit_changes_nothing(kind: str) -> None:
    model = Model()
    optimizer = AdamW(model)
    follow(model, optimizer, [1, 2])
    before = snapshot(model, optimizer)
    state, error = _bad_states(optimizer.state_dict())[kind]
    with pytest.raises(error):
        optimizer.load_state_dict(state)
    assert snapshot(model, optimizer) == before


# Bad arguments


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"lr": -1e-3}, "lr"),
        ({"lr": math.nan}, "lr"),
        ({"lr": math.inf}, "lr"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"weight_decay": math.nan}, "weight_decay"),
        ({"eps": 0.0}, "eps"),
        ({"eps": -1e-8}, "eps"),
        ({"eps": math.nan}, "eps"),
        ({"eps": math.inf}, "eps"),
        ({"betas": (1.0, 0.9)}, "betas"),
        ({"betas": (0.9, -0.1)}, "betas"),
        ({"betas": (0.9, math.nan)}, "betas"),
        ({"betas": (0.9,)}, "betas"),
        ({"betas": (0.9, 0.9, 0.9)}, "betas"),
        ({"max_grad_norm": 0.0}, "max_grad_norm"),
        ({"max_grad_norm": math.nan}, "max_grad_norm"),
    ],
)
def test_a_number_out_of_range_is_named(settings: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=f"AdamW: {name} must be"):
        AdamW(Model(), **settings)
    if name in ("lr", "weight_decay"):
        with pytest.raises(ValueError, match=f"AdamW: {name} must be"):
            AdamW([{"params": list(Model().parameters()), **settings}])


@pytest.mark.parametrize("name", ["lr", "weight_decay"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_a_rate_that_was_changed_to_nonsense_touches_nothing(name: str, value: float) -> None:
    model = Model()
    optimizer = AdamW(model)
    follow(model, optimizer, [1])
    before = snapshot(model, optimizer)
    gradients(model, 2)
    optimizer.groups[1][name] = value
    with pytest.raises(ValueError, match=f"AdamW: {name} must be"):
        optimizer.step()
    assert snapshot(model, optimizer) == before


def test_bad_parameters() -> None:
    p, q = Parameter((3,), init.zeros), Parameter((3,), init.zeros)
    for nothing in ([], iter(())):
        with pytest.raises(ValueError, match="no parameters"):
            AdamW(nothing)
    for wrong in ([np.zeros(3)], [lucid.Tensor(np.zeros(3, np.float32))], [{"params": [1.0]}]):
        with pytest.raises(TypeError, match="wants parameters"):
            AdamW(wrong)
    for twice in ([p, p], [{"params": [p]}, {"params": [p]}], [{"params": {"a": p}}, {"params": {"a": q}}]):
        with pytest.raises(ValueError, match="two"):
            AdamW(twice)
    with pytest.raises(TypeError, match="mixed"):
        AdamW([{"params": [p]}, q])
    for group in ({"params": [p], "weigth_decay": 0.1}, {"params": [p], "betas": (0.9, 0.99)}, {"parameters": [p]}):
        with pytest.raises(ValueError, match="a group has params"):
            AdamW([group])


def test_a_step_without_any_gradient_is_a_mistake() -> None:
    optimizer = AdamW(Model())
    with pytest.raises(RuntimeError, match=r"call backward\(\)"):
        optimizer.step()
    assert optimizer.n_steps == 0


@pytest.mark.parametrize(
    ("gradient", "error"), [(np.zeros((5, 3), np.float32), ValueError), (np.zeros((3, 5)), TypeError), ([[0.0] * 5] * 3, TypeError)]
)
def test_a_gradient_that_does_not_fit_is_named_and_nothing_is_half_done(gradient: Any, error: type[Exception]) -> None:
    model = Model()
    optimizer = AdamW(model)
    follow(model, optimizer, [1])
    before = snapshot(model, optimizer)
    gradients(model, 2)
    model.dense.weight.grad = gradient
    with pytest.raises(error, match=r"gradient of dense\.weight"):
        optimizer.step()
    assert snapshot(model, optimizer) == before


# A whole model learns


def test_a_model_learns_its_batch() -> None:
    model = make_model(num_hidden_layers=1)
    batch = make_batch(model)
    optimizer = AdamW(model, lr=5e-3)
    losses = []
    for _ in range(15):
        model.zero_grad()
        loss = model.get_loss(**batch)
        losses.append(float(loss))
        loss.backward()
        optimizer.step(loss)
    assert losses[-1] < 0.2 * losses[0]
    assert (
        relative(
            np.concatenate([w.ravel() for w in weights_of(model)]),
            np.concatenate([w.ravel() for w in weights_of(make_model(num_hidden_layers=1))]),
        )
        > 1e-3
    )
