"""What a run found, as data: rows of measurements, and the comparisons that are drawn from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.aims import Aim, Figures
from benchmarks.timing import Times

OURS, THEIRS = "lucid", "transformers"


@dataclass
class Row:
    """One peer in one case.

    Attributes
    ----------
    workload, case, peer : str
    seconds : list of float. Of its calls; empty if it was refused or failed.
    error : float or None. Distance of its answer from the reference, as a share of the bound.
    note : str. Why there is no time.
    memory_bytes : float or None. Most memory of its process, where that is measured.
    parts : seconds of the parts of a step, of each call
    marks : MB resident at the moments of a step, the most of all calls
    pools : sizes of its thread pools, as seen from outside
    """

    workload: str
    case: str
    peer: str
    seconds: list[float] = field(default_factory=list)
    error: float | None = None
    note: str = ""
    memory_bytes: float | None = None
    parts: dict[str, list[float]] = field(default_factory=dict)
    marks: dict[str, float] = field(default_factory=dict)
    pools: list[dict[str, Any]] = field(default_factory=list)

    @property
    def times(self) -> Times | None:
        """Minimum and median, None where there is no time."""
        return Times.of(self.seconds) if self.seconds else None


@dataclass
class CaseResult:
    """All peers in one case.

    Attributes
    ----------
    workload, title, case : str
    flops : float. That the answer takes at least.
    aim : Aim
    rows : list of Row
    n_rounds, wanted_rounds : int
    load : float. Processes that wanted to run while it was timed; the suite's own count as well.
    """

    workload: str
    title: str
    case: str
    flops: float
    aim: Aim
    rows: list[Row] = field(default_factory=list)
    n_rounds: int = 0
    wanted_rounds: int = 0
    load: float = 0.0

    def row(self, peer: str) -> Row | None:
        """Return a peer's row, if it has a time."""
        return next((row for row in self.rows if row.peer == peer and row.seconds), None)

    @property
    def best_peer(self) -> Row | None:
        """The fastest of those that are not lucid, by the minimum."""
        others = [row for row in self.rows if row.peer != OURS and row.seconds]
        return min(others, key=lambda row: min(row.seconds), default=None)

    def figures(self, peak_gflops: float | None, checkpoint_bytes: int) -> Figures:
        """Return what the aims speak of: ratios of minima."""
        ours, theirs, best = self.row(OURS), self.row(THEIRS), self.best_peer
        if ours is None:
            return Figures()
        least = min(ours.seconds)
        memory = ours.memory_bytes
        return Figures(
            best_peer=least / min(best.seconds) if best else None,
            transformers=least / min(theirs.seconds) if theirs else None,
            peak=self.flops / least / 1e9 / peak_gflops if peak_gflops else None,
            seconds=Times.of(ours.seconds).median,
            memory=memory / theirs.memory_bytes if memory and theirs and theirs.memory_bytes else None,
            memory_of_checkpoint=memory / checkpoint_bytes if memory else None,
        )


@dataclass
class Results:
    """A whole run.

    Attributes
    ----------
    machine : facts of the machine, with versions
    peak_gflops : for each instruction set, the measured FMA peak of all threads
    read_gb_s : float. Measured read bandwidth of all threads, 0 where it is not known.
    checkpoint_bytes : int
    reference : str. What answers were compared with.
    cases : list of CaseResult
    kernels : list of dicts of `benchmarks.kernels.KernelTime`
    left_out : list of str. What was not run, and why.
    seconds : float. That the run took.
    is_quick : bool
    clock : str. What times are: the wall clock's, or the processor's.
    """

    machine: dict[str, Any]
    peak_gflops: dict[str, float] = field(default_factory=dict)
    read_gb_s: float = 0.0
    checkpoint_bytes: int = 0
    reference: str = ""
    cases: list[CaseResult] = field(default_factory=list)
    kernels: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    seconds: float = 0.0
    is_quick: bool = False
    clock: str = "wall"

    @property
    def own_peak(self) -> float | None:
        """The FMA peak of the instruction set that lucid used."""
        return self.peak_gflops.get(self.machine.get("instruction_set", ""))

    def figures(self, case: CaseResult) -> Figures:
        """Return the figures of a case."""
        return case.figures(self.own_peak, self.checkpoint_bytes)

    def as_json(self) -> dict[str, Any]:
        """Return everything, with what is drawn from it."""
        data = asdict(self)
        for case, plain in zip(self.cases, data["cases"], strict=True):
            figures = self.figures(case)
            plain["figures"] = asdict(figures)
            plain["verdicts"] = case.aim.verdicts(figures)
            plain["best_peer"] = case.best_peer.peer if case.best_peer else None
        return data

    def wrong(self, peers: Sequence[str]) -> list[Row]:
        """Return the rows of these peers that have no time."""
        return [row for case in self.cases for row in case.rows if row.peer in peers and not row.seconds]
