"""The loss over the steps, as a picture."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def can_draw() -> bool:
    """Return whether matplotlib is installed."""
    from importlib.util import find_spec

    return find_spec("matplotlib") is not None


def draw_curves(records: list[dict[str, Any]], path: Path) -> None:
    """Draw the training loss, raw and smoothed, and the validation loss with its confidence interval.

    Parameters
    ----------
    records : from `Log.read`
    path : Path. A PNG; replaced whole.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    steps = [record for record in records if "loss" in record]
    evaluations = [record for record in records if "validation" in record]
    figure = Figure(figsize=(8, 4.5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    if steps:
        numbers, losses = [record["step"] for record in steps], [record["loss"] for record in steps]
        axes.plot(numbers, losses, color="#9db8d9", linewidth=0.6, label="training, each step")
        axes.plot(numbers, _smoothed(losses), color="#1f4e8c", linewidth=1.6, label="training, smoothed")
    if evaluations:
        found = [record["validation"]["loss"] for record in evaluations]
        numbers, means = [record["step"] for record in evaluations], [loss["mean"] for loss in found]
        errors = [[loss["mean"] - loss["low"] for loss in found], [loss["high"] - loss["mean"] for loss in found]]
        axes.errorbar(numbers, means, yerr=errors, color="#c0392b", marker="o", markersize=4, capsize=3, label="validation, 95 %")
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per masked word)")
    axes.grid(alpha=0.3)
    if steps or evaluations:
        axes.legend()
    new = path.with_name(path.name + ".new")
    figure.savefig(new, format="png")
    os.replace(new, path)


def _smoothed(losses: list[float]) -> list[float]:
    """Return the running mean with weights that fall off over a fiftieth of the curve."""
    keep = 1 - 1 / max(1.0, len(losses) / 50)
    smooth, value, weight = [], 0.0, 0.0
    for loss in losses:
        value, weight = keep * value + (1 - keep) * loss, keep * weight + (1 - keep)
        smooth.append(value / weight)
    return smooth
