"""The command line of the suite."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.checkpoint import DEFAULT_CACHE, checkpoint
from benchmarks.peers import PEERS, Peer, Setting, chosen
from benchmarks.results import OURS, Results
from benchmarks.workloads import Workload, workloads

_HERE = Path(__file__).resolve().parent
_EXAMPLES = """\
examples
  python -m benchmarks                                    everything; writes tables and charts to benchmarks/results
  python -m benchmarks --quick                            lucid beside NumPy on a small model, in seconds; writes nothing
  python -m benchmarks --workloads W1,W2 --out build/w    two workloads, results in a folder of your own
  python -m benchmarks --peers openvino,onnxruntime-fused lucid and two peers
  python -m benchmarks --workloads kernels                lucid's kernels alone, beside the FMA peak
  LUCID_ISA=avx512 python -m benchmarks                   with other kernels of lucid's
  python -m benchmarks --threads 1 --cpu-time             on a machine that is busy with other work

What it does: every peer runs in a process of its own, with one number of threads. Its answer is compared with the reference
before it is timed; a wrong one is refused. Then the peers take turns. Cold starts are new processes. The first run makes a
BERT-base with random weights (438 MB), and what the peers make of it (about 6 GB), in the cache folder; later runs find it.

"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of arguments."""
    listed = [f"  {one.name:<20}{'only if named: ' if one.is_optional else ''}{one.about}" for one in PEERS]
    told = [f"  {one.name:<20}{one.title}: {', '.join(case.label for case in one.cases)}" for one in workloads()]
    told.append(f"  {'kernels':<20}lucid's kernels one by one, beside the machine's peak")
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Run lucid beside other ways to run BERT on this CPU, and say how fast each is.",
        epilog=_EXAMPLES + "workloads\n" + "\n".join(told) + "\n\npeers\n" + "\n".join(listed),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workloads", metavar="W1,W2", help="names, separated by commas; default: all")
    parser.add_argument("--peers", metavar="A,B", help="names, separated by commas; lucid always runs; default: all that are installed")
    parser.add_argument("--quick", action="store_true", help="a small model, small inputs, lucid and NumPy unless --peers says otherwise")
    parser.add_argument("--threads", type=int, metavar="N", help="threads for everyone; default: lucid's default, the CPUs of this process")
    parser.add_argument("--cpu-time", action="store_true", help="count processor time, not the wall clock's; wants --threads 1")
    parser.add_argument("--minutes", type=float, default=30.0, metavar="M", help="time box; repetitions are cut to keep it (default: 30)")
    parser.add_argument("--cache", type=Path, metavar="DIR", default=DEFAULT_CACHE, help="what is made once")
    parser.add_argument("--out", type=Path, metavar="DIR", help="for results; default: benchmarks/results, and none with --quick")
    return parser


def _workloads(names: str | None, is_quick: bool) -> tuple[list[Workload], bool]:
    """Return the chosen workloads, and whether kernels are timed one by one.

    Raises
    ------
    KeyError
        There is none of that name.
    """
    known = {one.name: one for one in workloads(is_quick)}
    if names is None:
        return list(known.values()), not is_quick
    wanted = [name.strip() for name in names.split(",")]
    for name in wanted:
        if name not in known and name != "kernels":
            raise KeyError(f"no workload {name!r}; there are: {', '.join([*known, 'kernels'])}")
    return [one for name, one in known.items() if name in wanted], "kernels" in wanted


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; return 0, 1 if lucid was refused or failed somewhere, 2 if the arguments make no sense."""
    args = parser().parse_args(arguments)
    if args.cpu_time and args.threads != 1:
        print("--cpu-time adds up the time of all threads, those that wait included: it wants --threads 1", file=sys.stderr)
        return 2
    try:
        from lucid import get_num_threads
    except ImportError as error:
        print(f"lucid has no kernels here ({error}): `pip install -e .` in the repository builds them", file=sys.stderr)
        return 2
    try:
        some, with_kernels = _workloads(args.workloads, args.quick)
        peers = chosen(None if args.peers is None else [name.strip() for name in args.peers.split(",")], args.quick)
    except KeyError as error:
        print(error.args[0], file=sys.stderr)
        return 2

    from benchmarks.machine import Peak, facts
    from benchmarks.report import lines_of
    from benchmarks.run import Run
    from benchmarks.timing import TimeBox

    n_threads = args.threads or get_num_threads()
    size = "mini" if args.quick else "base"
    args.cache.mkdir(parents=True, exist_ok=True)
    clock = "processor" if args.cpu_time else "wall"
    setting = Setting(checkpoint(args.cache, size), args.cache / f"peers-{size}", n_threads, size, clock)
    setting.cache.mkdir(exist_ok=True)

    packages = {name for one in peers for name in one.packages}
    results = Results(facts(n_threads, [*packages, "threadpoolctl"]), is_quick=args.quick, clock=clock)
    results.checkpoint_bytes = (setting.folder / "model.safetensors").stat().st_size
    results.left_out += [f"{one.name}: not installed: {', '.join(one.missing)}" for one in peers if one.missing]
    results.left_out += [f"{one.name}: runs only if it is named" for one in PEERS if one.is_optional and one not in peers]
    used = results.machine["instruction_set"]
    peak = Peak([] if args.quick else [name for name in results.machine["instruction_sets"] if name in (used, "avx512")], n_threads)

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    ready = _with_files([one for one in peers if not one.missing], setting, results.left_out, say)
    begin = time.monotonic()
    run = Run(ready, setting, TimeBox(60 * args.minutes), results, args.quick, say)
    peak.measure()
    try:
        if with_kernels:
            run.kernels(peak)
        run.workloads(some, peak)
    except KeyboardInterrupt:
        results.left_out.append("what would have come next: interrupted")
    results.peak_gflops, results.read_gb_s = peak.gflops, peak.read_gb_s
    results.seconds = time.monotonic() - begin
    out = args.out or (None if args.quick else _HERE / "results")
    if out is not None:
        _write(results, out)
    print("\n".join(lines_of(results)))
    if out is not None:
        print(f"\nresults: {out / 'results.md'}")
    return 1 if results.wrong([OURS]) else 0


def _with_files(peers: Sequence[Peer], setting: Setting, left_out: list[str], say: Callable[[str], None]) -> list[Peer]:
    """Make the files of peers that are missing; return the peers that have theirs. Outside the time box: it is done once."""
    ready = []
    for one in peers:
        say(f"files of {one.name}")
        try:
            one.make_files(setting)
        except Exception as error:
            left_out.append(f"{one.name}: its files could not be made: {type(error).__name__}: {error}")
        else:
            ready.append(one)
    return ready


def _write(results: Results, out: Path) -> None:
    from benchmarks.peers import version
    from benchmarks.report import markdown

    out.mkdir(parents=True, exist_ok=True)
    text = markdown(results)
    if version("matplotlib"):
        from benchmarks.charts import draw

        charts = draw(results, out)
        text = text.replace("\n## ", "\n" + "".join(f"![{path.stem}]({path.name})\n\n" for path in charts) + "## ", 1)
    else:
        results.left_out.append("charts: matplotlib is not installed")
    (out / "results.json").write_text(json.dumps(results.as_json(), indent=1) + "\n")
    (out / "results.md").write_text(text)


if __name__ == "__main__":
    sys.exit(main())
