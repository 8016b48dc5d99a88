"""Schedules at their corners."""

import json
import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from lucid.nn import Parameter, init
from lucid.optim import AdamW, Schedule


def optimizer(lr: float = 1.0, lr_of_second: float = 0.5) -> AdamW:
    first, second = Parameter((3,), init.zeros), Parameter((3,), init.zeros)
    return AdamW([{"params": [first]}, {"params": [second], "lr": lr_of_second}], lr=lr)


def factors(n_warmup: int, n_steps: int, decay: str, final: float, steps: list[int]) -> list[float]:
    schedule = Schedule(optimizer(), n_warmup, n_steps, decay, final)
    return [schedule.factor(step) for step in steps]


@pytest.mark.parametrize("decay", ["linear", "cosine", "constant"])
def test_the_warm_up_is_linear_and_its_last_step_has_the_peak(decay: str) -> None:
    assert factors(4, 10, decay, 0.0, [1, 2, 3, 4]) == [0.25, 0.5, 0.75, 1.0]
    assert factors(1, 10, decay, 0.0, [1]) == [1.0]
    assert factors(10, 10, decay, 0.0, [10]) == [1.0]


@pytest.mark.parametrize("final", [0.0, 0.1, 1.0])
def test_linear(final: float) -> None:
    got = factors(2, 10, "linear", final, [2, 3, 6, 9, 10, 11, 1000])
    share = [1, 7 / 8, 1 / 2, 1 / 8, 0, 0, 0]
    assert got == pytest.approx([final + (1 - final) * s for s in share], abs=1e-15)


@pytest.mark.parametrize("final", [0.0, 0.1, 1.0])
def test_cosine(final: float) -> None:
    got = factors(2, 10, "cosine", final, [2, 4, 6, 8, 10, 11, 1000])
    share = [1, (1 + math.sqrt(0.5)) / 2, 1 / 2, (1 - math.sqrt(0.5)) / 2, 0, 0, 0]
    assert got == pytest.approx([final + (1 - final) * s for s in share], abs=1e-15)


def test_constant() -> None:
    assert factors(2, 10, "constant", 0.0, [1, 2, 3, 10, 11, 1000]) == [0.5, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_without_warm_up_the_first_step_is_already_on_the_way_down(decay: str) -> None:
    got = factors(0, 4, decay, 0.0, [1, 2, 3, 4])
    assert got == pytest.approx([0.75, 0.5, 0.25, 0] if decay == "linear" else [(1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2, 0])


@pytest.mark.parametrize("decay", ["linear", "cosine", "constant"])
def test_after_a_run_that_is_all_warm_up(decay: str) -> None:
    assert factors(5, 5, decay, 0.2, [5, 6, 7]) == ([1, 1, 1] if decay == "constant" else [1, 0.2, 0.2])


@pytest.mark.parametrize("decay", ["linear", "cosine", "constant"])
def test_rates_never_rise_after_the_peak_nor_leave_their_range(decay: str) -> None:
    got = factors(3, 50, decay, 0.05, list(range(3, 70)))
    assert all(a >= b for a, b in pairwise(got))
    assert all(0.05 - 1e-15 <= f <= 1 for f in got)


def test_step_sets_the_rates_of_the_step_to_come() -> None:
    made = optimizer(lr=2.0, lr_of_second=0.5)
    schedule = Schedule(made, 2, 4)
    seen = []
    for _ in range(5):
        rate = schedule.step()
        seen.append([group["lr"] for group in made.groups])
        assert rate == seen[-1][0]
        made._parameters["0.0"].grad = np.ones(3, np.float32)
        made.step()
    assert seen == [[1.0, 0.25], [2.0, 0.5], [1.0, 0.25], [0.0, 0.0], [0.0, 0.0]]


def test_a_step_asked_for_twice_is_the_same_step() -> None:
    made = optimizer()
    schedule = Schedule(made, 4, 8)
    assert schedule.step() == schedule.step() == 0.25


def test_the_rate_follows_from_the_step_count_alone() -> None:
    """A restored optimizer needs nothing of the schedule that went before."""
    made = optimizer()
    schedule = Schedule(made, 4, 8, "cosine")
    made.n_steps = 5
    resumed = optimizer()
    resumed.n_steps = 5
    assert Schedule(resumed, 4, 8, "cosine").step() == schedule.step()


@pytest.mark.parametrize("decay", ["linear", "cosine", "constant"])
def test_a_restored_schedule_goes_on_with_the_same_rates(decay: str) -> None:
    """Even on an optimizer whose rates have been lowered before, and made with other numbers."""
    made = optimizer(lr=2.0, lr_of_second=0.5)
    schedule = Schedule(made, 3, 11, decay, 0.25)
    made.n_steps = 7
    schedule.step()
    state = json.loads(json.dumps(schedule.state_dict()))
    resumed = optimizer(lr=0.1, lr_of_second=0.2)
    other = Schedule(resumed, 0, 5)
    other.load_state_dict(state)
    assert other.state_dict() == schedule.state_dict()
    for n in range(14):
        made.n_steps = resumed.n_steps = n
        assert other.step() == schedule.step()
        assert [group["lr"] for group in resumed.groups] == [group["lr"] for group in made.groups]


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"n_warmup": -1}, ValueError),
        ({"n_steps": 2}, ValueError),
        ({"decay": "slow"}, ValueError),
        ({"final": 2.0}, ValueError),
        ({"peaks": [1.0]}, ValueError),
        ({"peaks": [1.0, -1.0]}, ValueError),
        ({"peaks": [1.0, math.nan]}, ValueError),
        ({"peaks": None}, TypeError),
        ({}, KeyError),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(changes: dict[str, Any], error: type[Exception]) -> None:
    schedule = Schedule(optimizer(), 3, 11)
    before = schedule.state_dict()
    state = {**before, "n_warmup": 4, **changes}
    if not changes:
        del state["peaks"]
    with pytest.raises(error):
        schedule.load_state_dict(state)
    assert schedule.state_dict() == before


@pytest.mark.parametrize(("n_warmup", "n_steps"), [(-1, 10), (11, 10), (0, 0), (0, -5)])
def test_bad_lengths(n_warmup: int, n_steps: int) -> None:
    with pytest.raises(ValueError, match="n_warmup"):
        Schedule(optimizer(), n_warmup, n_steps)


@pytest.mark.parametrize("decay", ["", "Linear", "exponential", None])
def test_bad_decay(decay: str) -> None:
    with pytest.raises(ValueError, match="decay must be one of linear, cosine, constant"):
        Schedule(optimizer(), 1, 10, decay)


@pytest.mark.parametrize("final", [-0.1, 1.1, math.nan])
def test_bad_final(final: float) -> None:
    with pytest.raises(ValueError, match="final"):
        Schedule(optimizer(), 1, 10, "linear", final)


@pytest.mark.parametrize("n_warmup", [0, 3])
@pytest.mark.parametrize("step", [0, -1])
def test_steps_count_from_1(n_warmup: int, step: int) -> None:
    with pytest.raises(ValueError, match="count from 1"):
        Schedule(optimizer(), n_warmup, 10).factor(step)
