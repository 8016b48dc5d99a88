"""The command line: `python -m benchmarks.gpu`."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.checkpoint import DEFAULT_CACHE, checkpoint
from benchmarks.gpu.cases import CHECKED, LIBRARIES, ON_REQUEST, OURS, SIDES, Ceilings, cases
from benchmarks.gpu.report import markdown, summary
from benchmarks.gpu.results import Results
from benchmarks.gpu.run import MODULE, Run
from benchmarks.peers import Setting, version
from benchmarks.processes import ROOT, PeerError, Worker
from benchmarks.timing import TimeBox

_PACKAGES = ("lucid-bert", "numpy", "cupy-cuda13x", "cupy-cuda12x", "torch", "transformers", "triton")
_OF_LIBRARIES = ("nvmath-python", "nvidia-cudnn-frontend", "nvidia-cudnn-cu13")
_EXAMPLES = """\
examples
  python -m benchmarks.gpu                                     everything; writes gpu.md and gpu.json to benchmarks/results
  python -m benchmarks.gpu --cases training --sides eager      one case beside one form of PyTorch
  python -m benchmarks.gpu --libraries                         lucid also with cuBLASLt and cuDNN, which must be installed
  python -m benchmarks.gpu --minutes 4 --out build/gpu         shorter, results elsewhere
  python -m benchmarks.gpu --quick                             a small model on the CPU: shows that the suite works, not how fast

What it does: builds lucid's kernels if they are missing, measures what the GPU can do (a product, a copy), and then for each case
compares every answer with PyTorch's in float32 (attention spelled out), refuses the wrong ones, and lets the others take turns.
Each side is a process of its own. Without torch and transformers lucid is compared with itself on the CPU, and runs alone.
It wants a GPU, CuPy and a C compiler; nothing is fetched. The exit code is 1 if lucid failed or was wrong somewhere.

"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of arguments."""
    told = [f"  {one.name:<14}{one.title}" for one in cases().values()]
    listed = [f"  {name:<16}{about}" for name, about in {**SIDES, **ON_REQUEST, **CHECKED}.items()]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description="Run lucid beside PyTorch on one NVIDIA GPU, BERT-base, and say how fast each is.",
        epilog=_EXAMPLES + "cases\n" + "\n".join(told) + "\n\nsides\n" + "\n".join(listed),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cases", metavar="A,B", help="names, separated by commas; default: all")
    parser.add_argument("--sides", metavar="A,B", help="names, separated by commas; lucid always runs; default: all that can")
    parser.add_argument("--libraries", action="store_true", help=f"time {LIBRARIES}, too: lucid with NVIDIA's libraries (docs/gpu.md)")
    parser.add_argument(
        "--quick", action="store_true", help="a small model and small inputs on the CPU; writes nothing unless --out is given"
    )
    parser.add_argument("--minutes", type=float, default=9.0, metavar="M", help="time box for everything but building (default: 9)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads of each side (default: 1)")
    parser.add_argument("--cache", type=Path, metavar="DIR", default=DEFAULT_CACHE, help="for the checkpoint, which is made once")
    parser.add_argument("--out", type=Path, metavar="DIR", help="for results; default: benchmarks/results, and none with --quick")
    return parser


def chosen(names: str | None, known: Sequence[str], what: str) -> list[str]:
    """Return the names of a comma-separated list in the order of `known`; all of them without a list.

    Raises
    ------
    KeyError
        There is none of that name.
    """
    if names is None:
        return list(known)
    wanted = [name.strip() for name in names.split(",")]
    for name in wanted:
        if name not in known:
            raise KeyError(f"no {what} {name!r}; there are: {', '.join(known)}")
    return [name for name in known if name in wanted]


def build() -> None:
    """Build lucid's kernels for the CPU in place if they are missing: the package does not import without."""
    if any((ROOT / "lucid" / "_ext").glob("_cpu*.so")):
        return
    print("building lucid's kernels", file=sys.stderr, flush=True)
    jobs = ["-j", str(len(os.sched_getaffinity(0)))]
    subprocess.run([sys.executable, "setup.py", "-q", "build_ext", "--inplace", *jobs], cwd=ROOT, check=True, stdout=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; return 0, 1 if lucid failed or was wrong somewhere, 2 if the arguments make no sense or there is no GPU."""
    args = parser().parse_args(arguments)
    try:
        some = chosen(args.cases, list(cases()), "case")
        sides = [OURS, *(name for name in chosen(args.sides, list(SIDES), "side") if name != OURS)]
        sides += [LIBRARIES] if args.libraries else []
    except KeyError as error:
        print(error.args[0], file=sys.stderr)
        return 2
    build()
    box = TimeBox(60 * args.minutes)
    begin = time.monotonic()
    size = "mini" if args.quick else "base"
    args.cache.mkdir(parents=True, exist_ok=True)

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    results = Results("the CPU: a trial of the suite", {name: version(name) for name in (*_PACKAGES, *_OF_LIBRARIES)}, size)
    if not args.quick:
        try:
            with Worker(OURS, Setting(args.cache, args.cache, args.threads, size), module=MODULE) as worker:
                found = worker.call("device")
        except PeerError as error:
            say(f"there is no GPU that lucid can use: {error}\n`--quick` tries the suite out on the CPU; docs/gpu.md says how to install.")
            return 2
        results.device, results.ceilings = found["status"], Ceilings(found["flops"], found["bytes"])
    has_torch = bool(version("torch") and version("transformers"))
    results.reference = "transformers, float32, attention spelled out" if has_torch else "lucid on the CPU, float32"
    if not has_torch:
        results.left_out.append("PyTorch: torch or transformers is not installed")
        sides = [name for name in sides if name.startswith(OURS)]
    elif args.quick and args.sides is None:
        results.left_out.append("torch.compile: with --quick it runs only if it is named")
        sides = [name for name in sides if not name.startswith("compile")]
    setting = Setting(checkpoint(args.cache, size), args.cache / f"peers-{size}", args.threads, size)
    run = Run(sides, setting, box, results, args.quick, say)
    try:
        run.cases([case for name, case in cases(args.quick).items() if name in some])
    except KeyboardInterrupt:
        results.left_out.append("what would have come next: interrupted")
    results.seconds = time.monotonic() - begin
    out = args.out or (None if args.quick else ROOT / "benchmarks" / "results")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "gpu.json").write_text(json.dumps(results.as_json(), indent=1) + "\n")
        (out / "gpu.md").write_text(markdown(results))
    print(summary(results))
    for row in (row for result in results.cases for row in result.rows if row.note):
        print(f"{row.side}: {row.note}")
    for what in results.left_out:
        print(f"left out: {what}")
    return 0 if results.is_right else 1


if __name__ == "__main__":
    sys.exit(main())
