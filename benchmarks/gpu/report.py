"""From the results of a GPU to Markdown and to the terminal: one text for both."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.gpu.cases import CHECKED, ON_REQUEST, OURS, SIDES
from benchmarks.gpu.results import CaseResult, Results, Row


def markdown(results: Results) -> str:
    """Return the whole report."""
    parts = ["# lucid beside PyTorch on a GPU", _machine(results), _explained(results), summary(results)]
    listed = "\n".join(f"- {name}: {about}" for name, about in {**SIDES, **ON_REQUEST, **CHECKED}.items())
    parts += ["## Every side", sides_table(results), listed]
    for result in results.cases:
        for row in result.rows:
            if row.libraries:
                parts += [f"## {result.case.title}: what libraries did", "\n".join(f"- {what}" for what in row.libraries)]
            if row.kernels:
                parts += [f"## {result.case.title}: where {row.side} spends a call", kernels_table(row)]
    if results.left_out:
        parts += ["## Left out", "\n".join(f"- {what}" for what in results.left_out)]
    return "\n\n".join(parts) + "\n"


def _machine(results: Results) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in results.versions.items() if version)
    lines = [results.device, versions]
    if results.ceilings:
        lines.append(
            f"Measured: a product of 8192 x 8192 bfloat16 matrices at {results.ceilings.flops / 1e12:.0f} TFLOP/s, "
            f"a copy at {results.ceilings.bytes / 1e12:.2f} TB/s."
        )
    lines.append(f"Answers were compared with {results.reference}. The run took {results.seconds / 60:.1f} minutes.")
    return "\n".join(f"- {line}" for line in lines)


def _explained(results: Results) -> str:
    return (
        "Times are medians by the device's clock, calls made without waiting between them. Ratios are lucid's time divided by the "
        "other's: below 1 lucid is faster. The floor of the arithmetic has every operation at the rate of the large product, the serial "
        "one has products at that rate and between them memory read and written at the rate of the copy."
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (heads, ["---"] * len(heads), *rows))


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.2f} ms"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def summary(results: Results) -> str:
    """Return the table of ratios, floors and aims."""
    asked = {row.side for result in results.cases for row in result.rows if row.side in ON_REQUEST}
    others = [name for name in (*SIDES, *ON_REQUEST) if name != OURS and (name in SIDES or name in asked)]
    heads = (
        "case",
        "lucid",
        "M tokens/s",
        *(f"lucid / {name}" for name in others),
        "arithmetic floor",
        "serial floor",
        "lucid / serial floor",
        "of the product's rate",
        "aim",
        "reached",
    )
    return _table(heads, [_summary_row(results, result, others) for result in results.cases])


def _summary_row(results: Results, result: CaseResult, others: Sequence[str]) -> tuple[str, ...]:
    ours, floors = result.median(OURS), results.floors(result.case)
    verdicts = result.verdicts()
    arithmetic, serial = floors.get("arithmetic"), floors.get("serial")
    return (
        result.case.title,
        _ms(ours),
        _number(result.case.inputs.n_tokens / ours / 1e6 if ours else None, ".2f"),
        *(_number(result.ratio(name), ".2f") for name in others),
        _ms(arithmetic),
        _ms(serial),
        _number(ours / serial if ours and serial else None, ".2f"),
        _number(arithmetic / ours if ours and arithmetic else None, ".0%"),
        "; ".join(verdicts) or "-",
        ", ".join({True: "yes", False: "no", None: "not measured"}[verdict] for verdict in verdicts.values()) or "-",
    )


def sides_table(results: Results) -> str:
    """Return the table of everybody's times and distances."""
    heads = ("case", "side", "median", "minimum", "calls", "memory", "distance from the reference")
    return _table(heads, [_side_row(result, row) for result in results.cases for row in result.rows])


def _side_row(result: CaseResult, row: Row) -> tuple[str, ...]:
    return (
        result.case.title,
        row.side,
        _ms(row.median) if not row.note else row.note.replace("|", "/"),
        _ms(min(row.seconds, default=None)),
        str(len(row.seconds)) if row.seconds else "-",
        f"{row.peak_bytes / 1e9:.1f} GB" if row.peak_bytes else "-",
        ", ".join(f"{name} {distance:.1e}" for name, distance in row.distances.items()) or "-",
    )


def kernels_table(row: Row) -> str:
    """Return the table of the kernels that a call spends most time in."""
    return _table(("kernel", "launches", "time"), [(f"`{name[:100]}`", str(n), f"{1e3 * s:.3f} ms") for name, n, s in row.kernels])
