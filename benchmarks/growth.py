"""How the cost of lucid's encoder grows with tokens, width and threads, beside the floors of the machine.

    python -m benchmarks.growth [--seconds 120] [--threads N] [--out DIR]

Writes growth.json and growth.png. Widths take turns, so that a slow minute is everybody's; the minimum of all rounds counts.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import Peak
from benchmarks.timing import CLOCKS, TimeBox, take_turns

_BASE = (12, 768)
_LENGTHS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_WIDTHS = (128, 256, 384, 512, 768, 1024)
_WIDTH_SHAPE = (8, 128)


def flops(n_layers: int, width: int, n_sequences: int, length: int) -> float:
    """Return the operations of an encoder: products with its weights, and attention's."""
    return n_layers * (24.0 * n_sequences * length * width**2 + 4.0 * n_sequences * length**2 * width)


def _encoder(n_layers: int, width: int) -> Any:
    from lucid.models import BERT, BERTConfig

    return BERT(BERTConfig.sized(n_layers, width, add_pooling_layer=False)).eval()


def _call(model: Any, n_sequences: int, length: int, n_threads: int) -> Callable[[], list[float]]:
    import lucid

    ids = np.random.default_rng(0).integers(1000, 30000, (n_sequences, length))

    def call() -> list[float]:
        lucid.set_num_threads(n_threads)
        model(ids)
        seconds = []
        for _ in range(max(1, 64 // ids.size)):
            begin = CLOCKS["wall"]()
            model(ids)
            seconds.append(CLOCKS["wall"]() - begin)
        return seconds

    return call


def measure(n_threads: int, seconds: float) -> dict[str, Any]:
    """Return the machine's peak and a list of measured points: layers, width, sequences, length, threads, operations, seconds."""
    from lucid import _ext

    isa = _ext.instruction_set
    peaks = {n: Peak([isa], n) for n in sorted({2**i for i in range(n_threads.bit_length())} | {n_threads})}
    base = _encoder(*_BASE)
    shapes = {(*_BASE, 1, length, n): _call(base, 1, length, n) for length in _LENGTHS for n in peaks}
    for width in _WIDTHS:
        shapes[_BASE[0], width, *_WIDTH_SHAPE, n_threads] = _call(_encoder(_BASE[0], width), *_WIDTH_SHAPE, n_threads)
    for n in peaks:
        shapes[*_BASE, *_WIDTH_SHAPE, n] = _call(base, *_WIDTH_SHAPE, n)
    for peak in peaks.values():
        peak.measure()
    times = take_turns({json.dumps(key): call for key, call in shapes.items()}, TimeBox(seconds), n_rounds=20).seconds
    for peak in peaks.values():
        peak.measure()
    names = ("layers", "width", "sequences", "length", "threads")
    points = [{**dict(zip(names, key, strict=True)), "flops": flops(*key[:4]), "seconds": min(times[json.dumps(key)])} for key in shapes]
    return {
        "instruction_set": isa,
        "gflops": {n: peak.gflops[isa] for n, peak in peaks.items() if peak.is_known},
        "read_gb_s": {n: peak.read_gb_s for n, peak in peaks.items() if peak.is_known},
        "points": points,
    }


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw the time of a call over tokens, and the share of the peak over tokens, width and threads."""
    from matplotlib.figure import Figure

    most = max(point["threads"] for point in found["points"])
    one_by_one = [point for point in found["points"] if point["sequences"] == 1]
    wide = sorted((p for p in found["points"] if p["sequences"] > 1 and p["threads"] == most), key=lambda p: p["width"])
    figure = Figure(figsize=(14, 4.2))
    time, share, width = (figure.add_subplot(1, 3, i) for i in (1, 2, 3))
    for n in sorted({p["threads"] for p in one_by_one}):
        points = [p for p in one_by_one if p["threads"] == n]
        lengths = [p["length"] for p in points]
        label = f"{n} thread{'s' if n > 1 else ''}"
        (line,) = time.plot(lengths, [1e3 * p["seconds"] for p in points], "o-", label=label)
        if n in found["gflops"]:
            weights = 4.0 * 12 * _BASE[0] * _BASE[1] ** 2
            floor = [max(p["flops"] / found["gflops"][n], weights / found["read_gb_s"][n]) / 1e6 for p in points]
            time.plot(lengths, floor, ":", color=line.get_color(), label=f"floor, {label}")
            share.plot(lengths, [100 * p["flops"] / p["seconds"] / 1e9 / found["gflops"][n] for p in points], "o-", label=label)
    time.set(xscale="log", yscale="log", xlabel="tokens of one sequence", ylabel="ms", title="BERT-base encoder")
    share.set(xscale="log", xlabel="tokens of one sequence", ylabel="% of the FMA peak", ylim=(0, 100), title="BERT-base encoder")
    if most in found["gflops"]:
        shares = [100 * p["flops"] / p["seconds"] / 1e9 / found["gflops"][most] for p in wide]
        width.plot([p["width"] for p in wide], shares, "o-", label=f"{most} threads")
    width.set(
        xlabel="hidden width", ylabel="% of the FMA peak", ylim=(0, 100), title=f"12 layers, {_WIDTH_SHAPE[0]} x {_WIDTH_SHAPE[1]} tokens"
    )
    for axes in (time, share, width):
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure, write, draw."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.growth", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=120, help="for all calls; two rounds are made in any case")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="the most; 1, 2, 4 and so on are measured")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="the folder for growth.json and growth.png")
    args = parser.parse_args()
    found = measure(args.threads, args.seconds)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "growth.json").write_text(json.dumps(found, indent=1) + "\n")
    draw(found, args.out / "growth.png")
    for p in found["points"]:
        peak = found["gflops"].get(p["threads"])
        of_peak = f"{100 * p['flops'] / p['seconds'] / 1e9 / peak:5.1f} %" if peak else ""
        print(f"width {p['width']:4}  {p['sequences']} x {p['length']:3}  {p['threads']} threads  {1e3 * p['seconds']:8.1f} ms  {of_peak}")


if __name__ == "__main__":
    main()
