"""Draw the curve of the three stages over the hours of their steps: curve.py LOG... CURVE.png."""

import json
import lzma
import sys
from pathlib import Path

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot

*logs, picture = map(Path, sys.argv[1:])
figure, (losses, accuracies) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
hours = 0.0
for number, path in enumerate(logs):
    with lzma.open(path, "rt") as file:
        rows = [json.loads(line) for line in file]
    evaluations = []
    for row in rows:
        if "validation" in row:
            evaluations.append((hours, row["validation"]["perplexity"]["mean"], row["validation"]["accuracy"]["mean"]))
        else:
            hours += row["seconds"] / 3600
    times, perplexities, shares = zip(*evaluations, strict=True)
    label = path.name.removesuffix(".jsonl.xz")
    losses.plot(times, perplexities, f"C{number}.-", label=label)
    accuracies.plot(times, shares, f"C{number}.-", label=label)
losses.set(xlabel="hours", ylabel="perplexity of masked words, validation", yscale="log")
accuracies.set(xlabel="hours", ylabel="accuracy of masked words, validation")
for axes in (losses, accuracies):
    axes.grid(alpha=0.3, which="both")
    axes.legend(title="stage")
figure.savefig(picture, dpi=120)
