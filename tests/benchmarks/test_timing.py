import pytest

from benchmarks.timing import TimeBox, Times, take_turns


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_box_runs_out_and_never_below_zero() -> None:
    clock = Clock()
    box = TimeBox(10, clock)
    clock.now += 4
    assert box.remaining == 6
    assert box.share(1, 3).remaining == 2
    clock.now += 7
    assert box.remaining == 0


def recorded(clock: Clock, costs: dict[str, float]) -> tuple[list[str], dict]:
    order: list[str] = []

    def turn(name: str):
        def run() -> list[float]:
            order.append(name)
            clock.now += costs[name]
            return [costs[name]]

        return run

    return order, {name: turn(name) for name in costs}


def test_they_take_turns_and_every_second_round_goes_backwards() -> None:
    clock = Clock()
    order, turns = recorded(clock, {"a": 1.0, "b": 2.0, "c": 3.0})
    taken = take_turns(turns, TimeBox(1000, clock), n_rounds=3)
    assert order == ["a", "b", "c", "c", "b", "a", "a", "b", "c"]
    assert taken.seconds == {"a": [1.0] * 3, "b": [2.0] * 3, "c": [3.0] * 3}
    assert (taken.n_rounds, taken.wanted, taken.failed) == (3, 3, {})


@pytest.mark.parametrize(("seconds", "n_rounds"), [(0.0, 2), (14.0, 2), (19.0, 3), (25.0, 4), (1000.0, 10)])
def test_no_round_begins_that_would_end_outside_the_box(seconds: float, n_rounds: int) -> None:
    clock = Clock()
    _, turns = recorded(clock, {"a": 2.0, "b": 4.0})
    taken = take_turns(turns, TimeBox(seconds, clock), n_rounds=10)
    assert taken.n_rounds == n_rounds
    assert clock.now - 100 == 6 * n_rounds
    assert clock.now - 100 <= max(seconds, 12)


def test_one_that_fails_is_out_and_the_others_go_on() -> None:
    clock = Clock()
    _, turns = recorded(clock, {"a": 1.0, "b": 1.0})
    calls = []

    def broken() -> list[float]:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("lost")
        return [0.5]

    taken = take_turns({**turns, "broken": broken}, TimeBox(1000, clock), n_rounds=4)
    assert str(taken.failed["broken"]) == "lost"
    assert len(calls) == 2
    assert len(taken.seconds["a"]) == len(taken.seconds["b"]) == 4


def test_times() -> None:
    assert Times.of([3.0, 1.0, 2.0, 10.0]) == Times(1.0, 2.5, 4)
