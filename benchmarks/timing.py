"""Taking turns, and keeping to a time box."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

Clock = Callable[[], float]
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "processor": time.process_time}


@dataclass
class TimeBox:
    """So many seconds from now on."""

    seconds: float
    clock: Clock = time.monotonic
    begin: float = field(init=False)

    def __post_init__(self) -> None:
        self.begin = self.clock()

    @property
    def remaining(self) -> float:
        """Seconds left, 0 when there are none."""
        return max(0.0, self.seconds - (self.clock() - self.begin))

    def share(self, weight: float, of: float) -> TimeBox:
        """Return a box with `weight` / `of` of the seconds that are left."""
        return TimeBox(self.remaining * weight / of, self.clock)


@dataclass(frozen=True)
class Turns:
    """Times of several that took turns.

    Attributes
    ----------
    seconds : for each name, the seconds of its calls, in order
    n_rounds, wanted : int. Rounds that were made, and that were wanted.
    failed : for each name that gave up, what it said
    """

    seconds: dict[str, list[float]]
    n_rounds: int
    wanted: int
    failed: dict[str, Exception]


def take_turns(turns: Mapping[str, Callable[[], list[float]]], box: TimeBox, n_rounds: int, least: int = 2) -> Turns:
    """Let each take its turn, round after round, so that a slow minute of the machine is everybody's.

    Parameters
    ----------
    turns : for each name, a function that makes calls and returns their seconds
    box : TimeBox
        No round begins that would likely end outside it, once `least` are made.
    n_rounds : int. The most.
    least : int. Rounds that are made in any case.

    Notes
    -----
    Every second round goes backwards: nobody is always the one after the slowest. One that raises is out of the
    rounds that follow; the others go on.
    """
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    failed: dict[str, Exception] = {}
    longest = 0.0
    made = 0
    while made < n_rounds and (made < least or box.remaining > longest):
        begin = box.clock()
        for name in list(turns)[:: 1 if made % 2 == 0 else -1]:
            if name in failed:
                continue
            try:
                seconds[name] += turns[name]()
            except Exception as error:
                failed[name] = error
        longest = max(longest, box.clock() - begin)
        made += 1
    return Turns(seconds, made, n_rounds, failed)


@dataclass(frozen=True)
class Times:
    """What is reported of many times."""

    minimum: float
    median: float
    n: int

    @classmethod
    def of(cls, seconds: list[float]) -> Times:
        """Return the summary of at least one time."""
        return cls(min(seconds), statistics.median(seconds), len(seconds))
