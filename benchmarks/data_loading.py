"""What the data costs: one pass of tokenising, and a batch beside the training step that it feeds.

    python benchmarks/data_loading.py FILES... --tokenizer DIR [--size base] [--batch-tokens 1024] [--batches 200]

Each measurement is a process of its own. The pass is made over all files, and over the last alone:
memory is to be the same.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def measure_pass(files: list[str], tokenizer_folder: str) -> dict[str, Any]:
    """Tokenise, and return seconds, tokens, bytes and the peak of memory in MB."""
    from lucid.data import find_sources, prepare_corpus
    from lucid.data.sources import TextLines
    from lucid.text import BERTTokenizerFast

    tokenizer = BERTTokenizerFast.from_pretrained(tokenizer_folder)
    sources = find_sources(files)
    tokenizer.encode_pieces(["to start the threads"] * 10)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    with tempfile.TemporaryDirectory() as cache:
        begin, begin_cpu = time.perf_counter(), time.process_time()
        corpus = prepare_corpus(sources, tokenizer, cache)
        seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - begin_cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        begin = time.perf_counter()
        prepare_corpus(sources, tokenizer, cache)
        again = time.perf_counter() - begin
    n_bytes = sum(len(text.encode()) + 1 for text in TextLines(sources))
    return {
        "MB of text": n_bytes / 1e6,
        "tokens": corpus.n_pieces,
        "seconds": seconds,
        "CPU seconds": cpu_seconds,
        "seconds again": again,
        "MB before": before,
        "MB at the peak": peak,
    }


def measure_share(args: argparse.Namespace) -> dict[str, Any]:
    """Return milliseconds of a batch for each way of masking, and seconds of a training step on such a batch."""
    from lucid.data import Batches, Examples, Masker, Masking, Place, find_sources, prepare_corpus
    from lucid.models import BERTConfig, BERTForMaskedLM
    from lucid.optim import AdamW, Schedule
    from lucid.text import BERTTokenizerFast
    from lucid.training import Trainer
    from lucid.training.options import SIZES

    tokenizer = BERTTokenizerFast.from_pretrained(args.tokenizer)
    with tempfile.TemporaryDirectory() as cache:
        corpus = prepare_corpus(find_sources(args.files[-1:]), tokenizer, cache)
        examples = Examples(corpus, 126, tokenizer.continues_word)
        found: dict[str, Any] = {}
        for strategy in ("token", "word", "span"):
            batches = Batches(examples, tokenizer, Masker(Masking(strategy), tokenizer), args.batch_tokens, 0)
            place, times = Place(), []
            for _ in range(args.batches):
                begin = time.perf_counter()
                place = batches.at(place).end
                times.append(time.perf_counter() - begin)
            found[f"ms of a batch, {strategy}"] = sorted(times)[len(times) // 2] * 1e3
        model = BERTForMaskedLM(BERTConfig.sized(*SIZES[args.size], vocab_size=tokenizer.vocab_size, add_pooling_layer=False))
        optimizer = AdamW(model)
        trainer = Trainer(model, optimizer, Schedule(optimizer, 1, 10), batches)
        steps = []
        for _ in range(3):
            begin = time.perf_counter()
            trainer.advance()
            steps.append(time.perf_counter() - begin)
    found["seconds of a step"] = min(steps)
    found["share, per cent"] = max(found[f"ms of a batch, {s}"] for s in ("token", "word", "span")) / min(steps) / 10
    return found


def main() -> None:
    """Print both as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--size", default="base")
    parser.add_argument("--batch-tokens", type=int, default=1024)
    parser.add_argument("--batches", type=int, default=200)
    parser.add_argument("--measure", choices=["pass", "share"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure_pass(args.files, args.tokenizer) if args.measure == "pass" else measure_share(args)))
        return
    smaller = args.files[-1:] if len(args.files) > 1 else []
    for what, files in (("pass", args.files), ("pass", smaller), ("share", args.files)):
        if files:
            command = [sys.executable, str(Path(__file__)), "--measure", what, *files, "--tokenizer", args.tokenizer]
            command += ["--size", args.size, "--batch-tokens", str(args.batch_tokens), "--batches", str(args.batches)]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            print("\n".join(f"{name:<22} {value:,.2f}" for name, value in found.items()) + "\n")


if __name__ == "__main__":
    main()
