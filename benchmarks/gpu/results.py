"""What a run on a GPU found, as data, and the comparisons that are drawn from it."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.gpu.cases import OURS, Ceilings, GpuCase, arithmetic_floor, serial_floor


@dataclass
class Row:
    """One side in one case.

    Attributes
    ----------
    side : str
    seconds : list of float. Of its calls; empty if it was refused, failed or is only compared.
    distances : for each number of its answer, how far from the reference it is, relative
    note : str. Why there is no time.
    peak_bytes : int or None. Most memory of the device.
    kernels : list of (name, launches, seconds). Of one call, where that was asked for.
    libraries : list of str. What libraries did in place of lucid's own kernels, and what they did not.
    """

    side: str
    seconds: list[float] = field(default_factory=list)
    distances: dict[str, float] = field(default_factory=dict)
    note: str = ""
    peak_bytes: int | None = None
    kernels: list[tuple[str, int, float]] = field(default_factory=list)
    libraries: list[str] = field(default_factory=list)

    @property
    def median(self) -> float | None:
        """The median of its calls."""
        return statistics.median(self.seconds) if self.seconds else None


@dataclass
class CaseResult:
    """All sides in one case."""

    case: GpuCase
    rows: list[Row] = field(default_factory=list)
    n_rounds: int = 0

    def median(self, side: str) -> float | None:
        """Return the median of a side's calls, None if it has no time."""
        return next((row.median for row in self.rows if row.side == side), None)

    def ratio(self, side: str) -> float | None:
        """Return lucid's median divided by a side's."""
        ours, theirs = self.median(OURS), self.median(side)
        return None if ours is None or theirs is None else ours / theirs

    def verdicts(self) -> dict[str, bool | None]:
        """Return for each aim whether it is reached; None where it was not measured."""
        found: dict[str, bool | None] = {}
        for side, most in self.case.ratios.items():
            ratio = self.ratio(side)
            found[f"at most {most:g} of {side}"] = None if ratio is None else ratio <= most
        if self.case.seconds is not None:
            ours = self.median(OURS)
            found[f"at most {self.case.seconds * 1e3:g} ms"] = None if ours is None else ours <= self.case.seconds
        return found


@dataclass
class Results:
    """A whole run.

    Attributes
    ----------
    device : str. What `lucid.gpu_status` says.
    versions : for each package its version, None where it is not installed
    size : str. Name of the model's size.
    ceilings : Ceilings or None. Of this device; None where they were not measured.
    reference : str. What answers were compared with.
    cases : list of CaseResult
    left_out : list of str. What was not run, and why.
    seconds : float. That the run took.
    """

    device: str
    versions: dict[str, str | None]
    size: str
    ceilings: Ceilings | None = None
    reference: str = ""
    cases: list[CaseResult] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def floors(self, case: GpuCase) -> dict[str, float]:
        """Return the seconds that a case takes at least: by its arithmetic, and with the passes over memory between products."""
        if self.ceilings is None:
            return {}
        kinds = {"arithmetic": arithmetic_floor, "serial": serial_floor}
        return {name: floor(case, self.size, self.ceilings) for name, floor in kinds.items()}

    @property
    def is_right(self) -> bool:
        """Whether lucid answered every case that was run, and rightly."""
        ours = [row for result in self.cases for row in result.rows if row.side.startswith(OURS)]
        return bool(ours) and not any(row.note for row in ours)

    def as_json(self) -> dict[str, Any]:
        """Return everything, with what is drawn from it."""
        data = asdict(self)
        for result, plain in zip(self.cases, data["cases"], strict=True):
            plain["floors"] = self.floors(result.case)
            plain["medians"] = {row.side: row.median for row in result.rows if row.seconds}
            plain["ratios"] = {row.side: result.ratio(row.side) for row in result.rows if row.seconds and row.side != OURS}
            plain["verdicts"] = result.verdicts()
        return data
