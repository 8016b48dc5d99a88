"""A training step, part by part, in one process: time, memory at each moment, and a table of what lives when.

`python -m benchmarks --workloads W5` measures one size beside every peer; `python -m benchmarks.training` measures others, beside
transformers' eager form, with recomputation too, and prints the table.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any, Protocol

from benchmarks.checkpoint import DEFAULT_CACHE, checkpoint
from benchmarks.timing import Clock
from benchmarks.workloads import P_LABEL

P_DROP = 0.1
LEARNING_RATE, MAX_NORM = 1e-5, 1.0
MB = 1e6
PARTS = ("forward", "backward", "update")


class TrainingStep(Protocol):
    """A model, an optimizer and a batch."""

    imported: float
    """MB that were resident when the library was imported, before there was a model."""

    def check(self) -> dict[str, Any]:
        """Return the loss and the norm of its gradient without dropout, at the first weights; nothing is updated."""

    def recompute(self) -> None:
        """From now on, keep only the state before each layer."""

    def forward(self) -> Any:
        """Return the loss, with dropout."""

    def backward(self, loss: Any) -> None:
        """Make the gradients."""

    def update(self, loss: Any) -> None:
        """Clip, update, and forget the gradients."""


def resident() -> float:
    """Return the MB that are resident now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MB


def peak() -> float:
    """Return the most MB that were resident since `forget_peak`, or since the process began."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / MB


def forget_peak() -> None:
    """Let the operating system start a new peak."""
    Path("/proc/self/clear_refs").write_text("5")


def first_step(side: TrainingStep) -> dict[str, Any]:
    """Return what is checked, and take a step: moments are made, caches are filled."""
    answer = side.check()
    loss = side.forward()
    answer["loss_with_dropout"] = loss.detach().item()
    side.backward(loss)
    side.update(loss)
    return answer


def timed_step(side: TrainingStep, clock: Clock) -> tuple[dict[str, float], dict[str, float]]:
    """Take a step; return seconds of its parts, and MB resident at its moments."""
    marks = {"imported": side.imported, "between steps": resident()}
    forget_peak()
    begin = clock()
    loss = side.forward()
    after_forward = clock()
    marks["after forward"] = resident()
    side.backward(loss)
    after_backward = clock()
    marks["peak of forward and backward"], marks["after backward"] = peak(), resident()
    begin_update = clock()
    side.update(loss)
    end = clock()
    marks["peak of the step"] = peak()
    return dict(zip(PARTS, (after_forward - begin, after_backward - after_forward, end - begin_update), strict=True)), marks


# What lives when


def table(batch: int, length: int, layers: int, is_recomputed: bool) -> list[tuple[str, str, float]]:
    """Return (what, when it is there, MB) for lucid's step of a model as wide as BERT-base, from sizes alone."""
    from lucid.models import BERTConfig
    from lucid.ops.decoder import ROWS_AT_ONCE, WORDS_AT_ONCE

    config = BERTConfig.sized(layers, 768)
    c, f, v, h = config.hidden_size, config.intermediate_size, config.vocab_size, config.num_attention_heads
    t = batch * length
    p = round(P_LABEL * t)
    embeddings = (v + config.max_position_embeddings + config.type_vocab_size + 2) * c
    per_layer = 4 * c * c + 4 * c + 2 * c * f + f + c + 4 * c
    weights = embeddings + layers * per_layer + c * c + 3 * c + v
    a_layer = {
        "hidden state (x of Q, K, V)": t * c,
        "Q, K, V": 3 * t * c,
        "log-sum-exp": t * h,
        "context (x of dense)": t * c,
        "sum before the first LayerNorm": t * c + 2 * t,
        "its result (x of dense_in)": t * c,
        "before the activation": t * f,
        "after it (x of dense_out)": t * f,
        "sum before the second LayerNorm": t * c + 2 * t,
    }
    one_layer = sum(a_layer.values())
    per_layer_kept = t * c if is_recomputed else one_layer
    last = t * c + 2 * t * c + p * (6 * c + 2 * f + h + 4)  # hidden, K and V; of labelled tokens x, Q, context, sums, results
    head = p * (3 * c + c + 4)
    during = "while a layer is run again" if is_recomputed else f"forward to backward, x {layers - 1}"
    rows = [
        ("weights", "always", weights),
        ("moments m and v", "always, after the first step", 2 * weights),
        *((f"a layer: {name}", during, size) for name, size in a_layer.items()),
        ("a layer, together", during, one_layer),
        ("all layers but the last", "forward to backward", (layers - 1) * per_layer_kept),
        ("the last layer: keys and values of all, the rest of labelled tokens", "forward to backward", last),
        ("embeddings: sum before the LayerNorm", "forward to backward", t * c + 2 * t),
        ("head: transform of labelled tokens", "forward to backward", head),
        ("gradient of the word table and of the head's result", "loss to update", v * c + v + p * c),
        ("gradients of the rest", "backward to update, layer by layer", weights - v * c),
        ("of these, a layer's", "backward to update", per_layer),
        ("gradients of a layer's activations", "within backward of that layer", 2 * t * f + 3 * t * c),
        ("a weight in panels", "within one product, forward and backward", c * f),
        (f"logits of labelled tokens, at most {ROWS_AT_ONCE}", "within the loss", min(p, ROWS_AT_ONCE) * v),
        (f"{WORDS_AT_ONCE} words in panels", "within the loss", WORDS_AT_ONCE * c),
    ]
    return [(what, when, 4 * size / MB) for what, when, size in rows]


def peaks(rows: list[tuple[str, str, float]]) -> dict[str, float]:
    """Return the MB of arrays that live at each moment that can be the highest."""
    size = {what: mb for what, _, mb in rows}
    fixed = size["weights"] + size["moments m and v"]
    kept = sum(mb for what, when, mb in rows if when == "forward to backward")
    word_table = size["gradient of the word table and of the head's result"]
    loss = sum(mb for what, when, mb in rows if when == "within the loss")
    layer = size["gradients of a layer's activations"] + size["a weight in panels"]
    again = sum(mb for what, when, mb in rows if what == "a layer, together" and when == "while a layer is run again")
    gradients = word_table + size["gradients of the rest"]
    return {
        "within the loss": fixed + kept + word_table + loss,
        "after forward": fixed + kept + word_table,
        "in backward of the layer before the last": fixed + kept + word_table + again + layer,
        "in backward of the first layer": fixed + gradients - size["of these, a layer's"] + size["a layer, together"] + layer,
        "end of backward, and update": fixed + gradients,
    }


def show_table(batch: int, length: int, layers: int = 12, is_recomputed: bool = False) -> str:
    """Return both as Markdown."""
    rows = table(batch, length, layers, is_recomputed)
    lines = ["| what | when | MB |", "| --- | --- | --- |", *(f"| {what} | {when} | {mb:.1f} |" for what, when, mb in rows)]
    lines += ["", "| moment | arrays, MB |", "| --- | --- |", *(f"| {moment} | {mb:.0f} |" for moment, mb in peaks(rows).items())]
    return "\n".join(lines)


# Other sizes


def parser() -> argparse.ArgumentParser:
    """Return the parser of arguments."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    for name, default, what in (
        ("batch", 8, "sequences"),
        ("length", 128, "tokens of each"),
        ("layers", 12, "of the table; what is measured has 12"),
        ("rounds", 3, "steps that are measured of each, in turns"),
        ("threads", 0, "default: lucid's default"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=what)
    parser.add_argument("--recompute", action="store_true", help="keep only the state before each layer")
    parser.add_argument("--table", action="store_true", help="print sizes alone")
    parser.add_argument("--cache", type=Path, metavar="DIR", default=DEFAULT_CACHE, help="what is made once")
    return parser


def main() -> None:
    """Print the table, and measure lucid beside transformers' eager form."""
    args = parser().parse_args()
    print(show_table(args.batch, args.length, args.layers, args.recompute))
    if args.table:
        return
    from benchmarks.peers import Setting
    from benchmarks.step import measure
    from lucid import get_num_threads

    args.cache.mkdir(parents=True, exist_ok=True)
    setting = Setting(checkpoint(args.cache, "base"), args.cache / "peers-base", args.threads or get_num_threads(), "base")
    print("\n" + measure(setting, args.batch, args.length, args.rounds, args.recompute))


if __name__ == "__main__":
    main()
