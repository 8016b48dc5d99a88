"""Bar charts of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.results import OURS, Results

_OURS, _THEIRS = "#c2410c", "#94a3b8"


def draw(results: Results, folder: Path) -> list[Path]:
    """Write the charts that the results have data for, as PNG, and return their paths."""
    import matplotlib

    matplotlib.use("Agg")
    files = []
    if any(case.row(OURS) for case in results.cases):
        files.append(_peers(results, folder / "peers.png"))
    if results.kernels and results.own_peak:
        files.append(_kernels(results, folder / "kernels.png"))
    return files


def _save(figure: Any, path: Path) -> Path:
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    return path


def _peers(results: Results, path: Path) -> Path:
    """Draw everybody's time in every case, lucid's as 1."""
    from matplotlib.figure import Figure

    cases = [case for case in results.cases if case.row(OURS)]
    columns = 3
    rows = -(-len(cases) // columns)
    figure = Figure(figsize=(5 * columns, 2.6 * rows))
    for i, case in enumerate(cases):
        axes = figure.add_subplot(rows, columns, i + 1)
        ours = case.row(OURS)
        assert ours is not None
        bars = sorted((row for row in case.rows if row.seconds), key=lambda row: min(row.seconds), reverse=True)
        values = [min(row.seconds) / min(ours.seconds) for row in bars]
        drawn = axes.barh([row.peer for row in bars], values, color=[_OURS if row.peer == OURS else _THEIRS for row in bars])
        axes.bar_label(drawn, [f"{value:.2f}" for value in values], padding=2, fontsize=8)
        axes.axvline(1, color="black", linewidth=0.6)
        axes.set_xlim(0, 1.15 * max(values))
        axes.set_title(f"{case.workload}  {case.case}  ({min(ours.seconds) * 1e3:.0f} ms)", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"Time, lucid = 1 (shorter is faster); {results.machine['cpu']}, {results.machine['n_threads']} thread(s)", fontsize=11)
    return _save(figure, path)


def _kernels(results: Results, path: Path) -> Path:
    """Draw each kernel's share of the FMA peak, or of the read bandwidth, whichever limits it more."""
    from matplotlib.figure import Figure

    names, values, colours = [], [], []
    for one in reversed(results.kernels):
        of_peak = one["flops"] / one["seconds"] / 1e9 / (results.own_peak or 1)
        of_reading = one["n_bytes"] / one["seconds"] / 1e9 / results.read_gb_s
        names.append(f"{one['name']}  {one['label']}")
        values.append(100 * max(of_peak, of_reading))
        colours.append(_OURS if of_peak >= of_reading else _THEIRS)
    figure = Figure(figsize=(9, 0.26 * len(names) + 1))
    axes = figure.add_subplot()
    drawn = axes.barh(names, values, color=colours)
    axes.bar_label(drawn, [f"{value:.0f}" for value in values], padding=2, fontsize=7)
    axes.axvline(100, color="black", linewidth=0.6)
    axes.set_xlabel("per cent of the FMA peak (orange) or of the read bandwidth (grey), the larger of both", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.margins(y=0.01)
    axes.spines[["top", "right"]].set_visible(False)
    return _save(figure, path)
