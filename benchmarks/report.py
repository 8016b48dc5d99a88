"""From results to Markdown and to the terminal: one text for both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.peers import PEERS
from benchmarks.results import OURS, THEIRS, CaseResult, Results, Row
from benchmarks.training import MB, PARTS, show_table

CLOCK_NOTES = {"wall": "", "processor": " Times are processor times: other work on the machine is not in them."}


def markdown(results: Results) -> str:
    """Return the whole report."""
    parts = [
        "# lucid beside its peers",
        _machine(results),
        "## Where lucid stands",
        _explained(results),
        summary(results),
        "## Every peer",
        peers_table(results),
        _who(results),
    ]
    steps = [case for case in results.cases if any(row.marks for row in case.rows)]
    for case in steps:
        parts += [f"## {case.title}: {case.case}", steps_text(case)]
    if steps and not results.is_quick:
        parts += ["What lives when in lucid's step, from sizes alone (12 layers, 8 x 128):", show_table(8, 128)]
    if results.kernels:
        note = "Beside the read bandwidth: what a kernel reads and writes at least. Above 100 % it came from a cache."
        parts += ["## lucid's kernels", note, kernels_table(results)]
    if results.left_out:
        parts += ["## Left out", "\n".join(f"- {what}" for what in results.left_out)]
    return "\n\n".join(parts) + "\n"


def _who(results: Results) -> str:
    """Return what the names of the peers that ran stand for."""
    ran = {row.peer for case in results.cases for row in case.rows}
    return "\n".join(f"- {one.name}: {one.about}" for one in PEERS if one.name in ran)


def _machine(results: Results) -> str:
    m = results.machine
    versions = ", ".join(f"{name} {version}" for name, version in m["versions"].items() if version)
    peak = ", ".join(f"{name} {rate:.0f}" for name, rate in results.peak_gflops.items())
    lines = [
        f"{m['cpu']} (family/model {m['cpu_family_model']}), {m['cpus']} CPUs, {m['memory_gib']} GiB, {m['system']}.",
        f"Flags: {', '.join(m['flags'])}.",
        f"Threads for everyone: {m['n_threads']}. lucid runs its {m['instruction_set']} kernels"
        + (f" (LUCID_ISA={m['lucid_isa']})." if m["lucid_isa"] else ", its default here."),
        f"Measured FMA peak, GFLOP/s: {peak}; read bandwidth {results.read_gb_s:.0f} GB/s."
        if peak
        else "No gcc: the FMA peak was not measured.",
        f"Python {m['python']}; {versions}.",
        f"Answers were compared with {results.reference}. The run took {results.seconds / 60:.1f} minutes.",
    ]
    return "\n".join(f"- {line}" for line in lines)


def _explained(results: Results) -> str:
    other = [name for name in results.peak_gflops if name != results.machine["instruction_set"]]
    peak = f"the FMA peak of {results.machine['instruction_set']}" + (f" ({', '.join(other)}: see above)" if other else "")
    return (
        "Times are the smallest of all calls; an aim in seconds is judged by the median."
        f"{CLOCK_NOTES[results.clock]} Ratios are lucid's time divided by the other's: "
        "smaller is better, below 1 lucid is faster. "
        f"Per cent of the peak: operations without padding, each layer for every token, by time, beside {peak}."
    )


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds:.2f} s" if seconds >= 10 else f"{seconds * 1e3:.4g} ms"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _per_cent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def summary(results: Results) -> str:
    """Return the table of ratios and aims."""
    heads = (
        "workload",
        "case",
        "lucid",
        "best peer",
        "lucid / best peer",
        "lucid / transformers",
        "of FMA peak",
        "memory",
        "aim",
        "reached",
    )
    return _table(heads, [_summary_row(results, case) for case in results.cases])


def _summary_row(results: Results, case: CaseResult) -> tuple[str, ...]:
    figures, ours, best = results.figures(case), case.row(OURS), case.best_peer
    verdicts = case.aim.verdicts(figures).values()
    return (
        case.workload,
        case.case,
        _seconds(min(ours.seconds) if ours else None),
        f"{best.peer} {_seconds(min(best.seconds))}" if best else "-",
        _ratio(figures.best_peer),
        _ratio(figures.transformers),
        _per_cent(figures.peak),
        f"{ours.memory_bytes / MB:.0f} MB" if ours and ours.memory_bytes else "-",
        str(case.aim) or "-",
        ", ".join({True: "yes", False: "no", None: "not measured"}[verdict] for verdict in verdicts) or "-",
    )


def peers_table(results: Results) -> str:
    """Return the table of everybody's times."""
    heads = ("workload", "case", "peer", "minimum", "median", "calls", "memory", "distance from the reference", "lucid / it")
    return _table(heads, [_peer_row(case, row) for case in results.cases for row in case.rows])


def _peer_row(case: CaseResult, row: Row) -> tuple[str, ...]:
    ours, times = case.row(OURS), row.times
    if times is None:
        return (case.workload, case.case, row.peer, row.note.replace("|", "/"), "-", "-", "-", "-", "-")
    return (
        case.workload,
        case.case,
        row.peer,
        _seconds(times.minimum),
        _seconds(times.median),
        str(times.n),
        f"{row.memory_bytes / MB:.0f} MB" if row.memory_bytes else "-",
        "-" if row.error is None else f"{row.error:.1%} of the bound",
        _ratio(min(ours.seconds) / times.minimum if ours else None),
    )


def steps_text(case: CaseResult) -> str:
    """Return the tables of a training step."""
    return f"{_table(*step_parts(case))}\n\n{_table(*step_marks(case))}"


def step_parts(case: CaseResult) -> tuple[Sequence[str], list[tuple[str, ...]]]:
    """Return the table of the parts of a training step: the smallest time of each."""
    rows = [row for row in case.rows if row.parts]
    return ("part", *(row.peer for row in rows)), [(part, *(_seconds(min(row.parts[part])) for row in rows)) for part in PARTS]


def step_marks(case: CaseResult) -> tuple[Sequence[str], list[tuple[str, ...]]]:
    """Return the table of memory at the moments of a training step."""
    rows = [row for row in case.rows if row.marks]
    moments = list(rows[0].marks)
    return ("resident, MB", *(row.peer for row in rows)), [(moment, *(f"{row.marks[moment]:.0f}" for row in rows)) for moment in moments]


def kernels_table(results: Results) -> str:
    """Return the table of kernels."""
    heads = ("kernel", "sizes", "time", "GFLOP/s", "of FMA peak", "GB/s", "of read bandwidth")
    rows = []
    for one in results.kernels:
        gflops, gb_s = one["flops"] / one["seconds"] / 1e9, one["n_bytes"] / one["seconds"] / 1e9
        rows.append(
            (
                one["name"],
                one["label"],
                f"{one['seconds'] * 1e6:.4g} us",
                f"{gflops:.4g}",
                _per_cent(gflops / results.own_peak if results.own_peak else None),
                f"{gb_s:.3g}",
                _per_cent(gb_s / results.read_gb_s if results.read_gb_s else None),
            )
        )
    return _table(heads, rows)


def lines_of(results: Results) -> Iterator[str]:
    """Yield what the terminal shows: the summary, who was refused, what was left out."""
    yield _aligned(summary(results))
    for case in results.cases:
        for row in case.rows:
            if row.note:
                yield f"{case.workload} {case.case}, {row.peer}: {row.note}"
    if THEIRS not in {row.peer for case in results.cases for row in case.rows}:
        yield "transformers did not run: the column of ratios to it is empty."
    yield from (f"left out: {what}" for what in results.left_out)


def _aligned(table: str) -> str:
    """Return a Markdown table with columns as wide as their widest cell."""
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()]
    widths = [max(len(row[i]) for row in rows if set(row[i]) != {"-"} or len(row[i]) == 1) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(("-" * width if cell == "---" else cell.ljust(width)) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
