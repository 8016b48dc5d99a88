"""What lucid is to reach: most of the best peer's time, most of transformers', least share of the FMA peak."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Figures:
    """What was measured for lucid in one case; None where it was not.

    Attributes
    ----------
    best_peer, transformers : float. lucid's time divided by theirs.
    peak : float. Share of the machine's FMA peak, for the instruction set that lucid uses.
    seconds : float
    memory : float. lucid's peak memory divided by transformers'.
    memory_of_checkpoint : float. lucid's peak memory divided by the size of the checkpoint.
    """

    best_peer: float | None = None
    transformers: float | None = None
    peak: float | None = None
    seconds: float | None = None
    memory: float | None = None
    memory_of_checkpoint: float | None = None


@dataclass(frozen=True)
class Aim:
    """The same names, with the most that each may be; for `peak`, the least."""

    best_peer: float | None = None
    transformers: float | None = None
    peak: float | None = None
    seconds: float | None = None
    memory: float | None = None
    memory_of_checkpoint: float | None = None

    def __str__(self) -> str:
        return "; ".join(text for _, text in self._parts())

    def _parts(self) -> list[tuple[str, str]]:
        words = {
            "best_peer": "at most {:g} of the best peer's time",
            "transformers": "at most {:g} of transformers' time",
            "peak": "at least {:.0%} of the FMA peak",
            "seconds": "at most {:g} s",
            "memory": "at most {:g} of transformers' memory",
            "memory_of_checkpoint": "memory at most {:g} times the checkpoint",
        }
        return [(name, text.format(getattr(self, name))) for name, text in words.items() if getattr(self, name) is not None]

    def verdicts(self, found: Figures) -> dict[str, bool | None]:
        """Return for each part of the aim whether it is reached; None where it was not measured."""
        verdicts: dict[str, bool | None] = {}
        for name, text in self._parts():
            value, limit = getattr(found, name), getattr(self, name)
            verdicts[text] = None if value is None else value >= limit if name == "peak" else value <= limit
        return verdicts
