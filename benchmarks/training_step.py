"""A training step of BERT-base beside transformers' eager form: time, peak memory, and a table of what lives when.

    python benchmarks/training_step.py [--batch 8] [--length 128] [--layers 12] [--rounds 3]

Each measurement is a process of its own, since memory that one frees another would find. The processes of the two take turns; a time
is the smallest of all steps, and what counts is their ratio. `--table` prints sizes alone.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

P_DROP, P_LABEL = 0.1, 0.15
MB = 1e6


def settings(layers: int) -> dict[str, Any]:
    """Return what differs from BERT-base's configuration."""
    return {"num_hidden_layers": layers, "hidden_dropout_prob": P_DROP, "attention_probs_dropout_prob": P_DROP}


def make_batch(batch: int, length: int) -> tuple[Any, Any]:
    """Return ids and labels: full rows, 15 % labelled."""
    import numpy as np

    rng = np.random.default_rng(0)
    ids = rng.integers(1000, 30000, (batch, length))
    labels = np.full(ids.shape, -100)
    labels.reshape(-1)[rng.permutation(ids.size)[: round(P_LABEL * ids.size)]] = 5000
    return ids, labels


# One process


def resident() -> float:
    """Return the MB that are resident now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MB


def peak() -> float:
    """Return the most MB that were resident since `forget_peak`."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / MB


def forget_peak() -> None:
    """Let the kernel start a new peak."""
    Path("/proc/self/clear_refs").write_text("5")


class Lucid:
    """The step, part by part."""

    def __init__(self, layers: int, n_threads: int | None, is_recomputed: bool) -> None:
        import lucid
        from lucid.models import bert_for_masked_lm_base
        from lucid.optim import AdamW

        self.imported = resident()
        lucid.manual_seed(0)
        lucid.set_num_threads(n_threads)
        self.model = bert_for_masked_lm_base(**settings(layers))
        self.model.bert.encoder.is_recomputed = is_recomputed
        self.optimizer = AdamW(self.model, lr=1e-5, max_grad_norm=1.0)

    def inputs(self, ids: Any, labels: Any) -> tuple[Any, Any]:
        """Return the batch as this side takes it."""
        return ids, labels

    def forward(self, ids: Any, labels: Any) -> Any:
        """Return the loss."""
        return self.model.get_loss(labels, ids)

    def update(self, loss: Any) -> None:
        """Clip, update, and forget the gradients."""
        self.optimizer.step(loss)
        self.optimizer.zero_grad()


class Transformers:
    """The same for the reference."""

    def __init__(self, layers: int, n_threads: int | None, is_recomputed: bool) -> None:
        os.environ["HF_HUB_OFFLINE"] = "1"
        import torch
        import transformers

        self.imported = resident()
        self.torch = torch
        torch.manual_seed(0)
        if n_threads:
            torch.set_num_threads(n_threads)
        self.model = transformers.BertForMaskedLM(transformers.BertConfig(**settings(layers), attn_implementation="eager")).train()
        if is_recomputed:
            self.model.gradient_checkpointing_enable()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5)

    def inputs(self, ids: Any, labels: Any) -> tuple[Any, Any]:
        """Return the batch as this side takes it."""
        return self.torch.from_numpy(ids), self.torch.from_numpy(labels)

    def forward(self, ids: Any, labels: Any) -> Any:
        """Return the loss."""
        return self.model(input_ids=ids, labels=labels).loss

    def update(self, loss: Any) -> None:
        """Clip, update, and forget the gradients."""
        self.torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


def measure(which: str, args: argparse.Namespace) -> dict[str, Any]:
    """Take steps; the first one, which makes moments and fills caches, is not counted."""
    side = {"lucid": Lucid, "transformers": Transformers}[which](args.layers, args.threads, args.recompute)
    ids, labels = side.inputs(*make_batch(args.batch, args.length))
    seconds: dict[str, list[float]] = {"forward": [], "backward": [], "update": [], "step": []}
    marks = {"imported": side.imported}
    for step in range(args.steps + 1):
        if step == 1:
            marks["between steps"] = resident()
            forget_peak()
        begin = time.perf_counter()
        loss = side.forward(ids, labels)
        after_forward = time.perf_counter()
        marks["after forward"] = resident()
        loss.backward()
        after_backward = time.perf_counter()
        marks["peak of forward and backward"], marks["after backward"] = peak(), resident()
        begin_update = time.perf_counter()
        side.update(loss)
        end = time.perf_counter()
        if step:
            parts = after_forward - begin, after_backward - after_forward, end - begin_update
            for name, value in zip(seconds, (*parts, sum(parts)), strict=True):
                seconds[name].append(value)
    marks["peak of the step"] = peak()
    return {"seconds": seconds, "marks": marks, "loss": loss.detach().item()}


# What lives when


def table(batch: int, length: int, layers: int, is_recomputed: bool) -> list[tuple[str, str, float]]:
    """Return (what, when it is there, MB) for lucid, from sizes alone."""
    from lucid.models import BERTConfig
    from lucid.ops.decoder import ROWS_AT_ONCE, WORDS_AT_ONCE

    config = BERTConfig.base(**settings(layers))
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


def show_table(args: argparse.Namespace) -> None:
    """Print both."""
    rows = table(args.batch, args.length, args.layers, args.recompute)
    print("\n| what | when | MB |\n| --- | --- | --- |")
    for what, when, mb in rows:
        print(f"| {what} | {when} | {mb:.1f} |")
    print("\n| moment | arrays, MB |\n| --- | --- |")
    for moment, mb in peaks(rows).items():
        print(f"| {moment} | {mb:.0f} |")


# Both


def main() -> None:
    """Run the processes in turn, and print tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("batch", 8), ("length", 128), ("layers", 12), ("steps", 3), ("rounds", 3), ("threads", None)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--recompute", action="store_true", help="keep only the state before each layer")
    parser.add_argument("--table", action="store_true", help="print sizes alone")
    parser.add_argument("--measure", choices=["lucid", "transformers"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure, args)))
        return
    show_table(args)
    if args.table:
        return
    found: dict[str, list[dict[str, Any]]] = {"lucid": [], "transformers": []}
    for n in range(args.rounds):
        for which in ("lucid", "transformers") if n % 2 == 0 else ("transformers", "lucid"):
            command = [sys.executable, __file__, "--measure", which, *sys.argv[1:]]
            found[which].append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]))
    best = {
        which: {name: min(t for run in runs for t in run["seconds"][name]) for name in ("forward", "backward", "update", "step")}
        for which, runs in found.items()
    }
    print("\n| smallest of all, s | lucid | transformers, eager | ratio |\n| --- | --- | --- | --- |")
    for name in best["lucid"]:
        ours, theirs = best["lucid"][name], best["transformers"][name]
        print(f"| {name} | {ours:.3f} | {theirs:.3f} | {ours / theirs:.2f} |")
    print("\n| resident, MB | lucid | transformers, eager |\n| --- | --- | --- |")
    for mark in found["lucid"][0]["marks"]:
        ours, theirs = (max(run["marks"][mark] for run in found[which]) for which in ("lucid", "transformers"))
        print(f"| {mark} | {ours:.0f} | {theirs:.0f} |")
    print("\nlosses", {which: [round(run["loss"], 4) for run in runs] for which, runs in found.items()})


if __name__ == "__main__":
    main()
