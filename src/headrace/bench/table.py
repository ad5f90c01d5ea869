"""A suite's results for people."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Final

from headrace.bench.report import columns, spread
from headrace.bench.results import Case, Report, Row

HEAD: Final = ("", "median (min..max)", "headrace x", "% of limit", "CPU s", "RSS MB", "calls/MiB", "runs")


def about(report: Report) -> str:
    """What was not run and why, on what machine all was, and what has to be known about the figures."""
    skipped = [f"- {case.name}: {case.skipped}" for case in report.cases if case.skipped]
    facts = report.machine
    machine = (
        f"{facts['cpu']}, {facts['cores']} cores, Linux {facts['kernel']}, Python {facts['python']},"
        f" {' '.join(filter(None, (facts['headrace'], facts['commit'])))},"
        f" load {facts['load']} before and {facts.get('load_after', '?')} after"
    )
    return "\n".join([*(["Skipped", *skipped, ""] if skipped else []), machine, *(f"- {one}" for one in report.notes)])


def of_case(case: Case) -> str:
    """A line a row."""
    first = next((row for row in case.rows if row.kind == "headrace" and row.values), None)
    best = limit(case)
    rows: list[Sequence[str]] = [[f"{case.name}, {case.unit}", *HEAD[1:]]]
    for row in case.rows:
        if not row.values:
            rows.append([row.name, row.missing.splitlines()[0] if row.missing else "-"])
            continue
        ratio = spread(case.times(first, row), 2) if first and row is not first else "-"
        share = f"{100 * case.times(row, best).median:.0f}" if best and row.kind != "limit" else "-"
        digits = 0 if row.spread.median >= 100 else 2
        rows.append([row.name, spread(row.spread, digits), ratio, share, *_cost(row), str(len(row.values))])
    return f"{case.title}\n{columns(rows)}"


def limit(case: Case) -> Row | None:
    """The best of the limits: what is possible."""
    found = [row for row in case.rows if row.kind == "limit" and row.values]
    return (max if case.more else min)(found, key=lambda row: median(row.values)) if found else None


def _cost(row: Row) -> tuple[str, str, str]:
    cpu = f"{median(row.client_cpu):.2f} + {median(row.server_cpu):.2f}"
    rss = f"{median(row.client_rss) / 1e6:.0f} + {median(row.server_rss) / 1e6:.0f}"
    return cpu, rss, "-" if row.calls is None else f"{row.calls:.1f}"
