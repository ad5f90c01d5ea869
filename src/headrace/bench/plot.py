"""A result's plots, as SVG and PNG, readable in grey: marks and dashes tell lines apart, hatches tell bars apart.

Needs matplotlib: the extra `headrace[bench]`. Importing this module without it raises ImportError.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib
from matplotlib.artist import Artist
from matplotlib.figure import Figure

from headrace.bench.results import Case, Report, Row

KINDS: Final = {"headrace": ("0.25", ""), "peer": ("0.65", "//"), "limit": ("1.0", "..")}
LINES: Final = (("-", "o"), ("--", "s"), ("-.", "^"), (":", "D"), ("-", "x"), ("--", "v"))
GREYS: Final = ("0.0", "0.4", "0.55", "0.2", "0.65", "0.3")
WIDTH: Final = 7.5  # inches
STYLE: Final[dict[Any, Any]] = {
    "font.size": 9,
    "axes.grid": True,
    "grid.color": "0.85",
    "axes.axisbelow": True,
    "svg.hashsalt": "1",
}


def draw(report: Report, into: Path) -> list[Path]:
    """The files written. Cases that were not run have no plot."""
    into.mkdir(parents=True, exist_ok=True)
    written = []
    with matplotlib.rc_context(STYLE):
        for name, figure in _figures(report):
            for suffix in ("svg", "png"):
                file = into / f"{name}.{suffix}"
                # No date: the same result gives the same file.
                metadata = {"Date": None} if suffix == "svg" else None
                figure.savefig(file, dpi=110, bbox_inches="tight", metadata=metadata)
                written.append(file)
    return written


def _figures(report: Report) -> Iterator[tuple[str, Figure]]:
    for case in report.cases:
        if any(row.values for row in case.rows) and not case.name.startswith(("rtt-", "loss-", "size-", "files-")):
            yield case.name, bars(case)
    sweeps: list[tuple[str, str, str, str, str, Callable[[Case, Row], float]]] = [
        ("rtt-", "rtt_ms", "throughput-by-rtt", "round trip, ms", "MB/s", _value),
        ("loss-", "loss", "throughput-by-loss", "loss, %", "MB/s", _value),
        ("size-", "bytes", "cost-by-size", "bytes", "CPU s, both ends", _cost),
        ("files-", "files", "cost-by-files", "files", "CPU s, both ends", _cost),
    ]
    for prefix, key, name, across, up, figure in sweeps:
        cases = [case for case in report.cases if case.name.startswith(prefix) and case.rows]
        if len(cases) > 1:
            yield name, curves(cases, key, across, up, figure)
    reads = [found for name in ("reads-idle", "reads-loaded") if (found := report.case(name))]
    if any(row.quantiles for one in reads for row in one.rows):
        yield "latency", distribution(reads)


def _value(case: Case, row: Row) -> float:
    return row.spread.median


def _cost(case: Case, row: Row) -> float:
    return sorted(row.cpu)[len(row.cpu) // 2]


def bars(case: Case) -> Figure:
    """Each row's median, with the range of its runs as a line across its end."""
    rows = [row for row in reversed(case.rows) if row.values]
    figure = Figure(figsize=(WIDTH, 0.6 + 0.28 * len(rows)))
    axes = figure.subplots()
    for at, row in enumerate(rows):
        grey, hatch = KINDS[row.kind]
        middle = row.spread
        away = [[middle.median - middle.low], [middle.high - middle.median]]
        axes.barh(at, middle.median, color=grey, edgecolor="black", hatch=hatch, xerr=away, ecolor="0.5", capsize=2)
        axes.annotate(
            f"{middle.median:,.3g}" if middle.median < 1000 else f"{middle.median:,.0f}",
            (middle.high, at),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
        )
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    axes.set_xlabel(f"{case.unit}, median and range; {'more' if case.more else 'less'} is better")
    axes.set_title(case.title, fontsize=9, loc="left")
    axes.margins(x=0.12)
    axes.grid(axis="y", visible=False)
    return figure


def curves(cases: Sequence[Case], key: str, across: str, up: str, of: Callable[[Case, Row], float]) -> Figure:
    """One line a row through the cases. Sizes and numbers of files are on logarithmic axes, with what linear is."""
    figure = Figure(figsize=(WIDTH, 3.6))
    axes = figure.subplots()
    names = list(dict.fromkeys(row.name for case in cases for row in case.rows if row.values))
    scale = 100.0 if key == "loss" else 1.0
    for number, name in enumerate(names):
        points = [(case.at[key] * scale, of(case, row)) for case in cases if (row := case.row(name))]
        line, mark = LINES[number % len(LINES)]
        axes.plot(*zip(*points, strict=True), line, marker=mark, color=GREYS[number % len(GREYS)], label=name)
    if key in ("bytes", "files"):
        axes.set_xscale("log")
        axes.set_yscale("log")
        own = [(case.at[key], of(case, row)) for case in cases if (row := case.row(names[0]))]
        last, cost = own[-1]
        axes.plot(
            [at for at, _ in own], [cost * at / last for at, _ in own], color="0.8", lw=4, zorder=0, label="linear"
        )
    else:
        axes.set_ylim(bottom=0)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.legend(fontsize=8)
    return figure


def distribution(cases: Sequence[Case]) -> Figure:
    """What part of the reads took how long at most, idle and beside copies."""
    figure = Figure(figsize=(WIDTH, 3.8), layout="constrained")
    every = figure.subplots(1, len(cases), sharex=True, sharey=True, squeeze=False)
    styles = {name: number for number, name in enumerate(dict.fromkeys(row.name for one in cases for row in one.rows))}
    lines: dict[str, Artist] = {}
    for axes, case in zip(every[0], cases, strict=True):
        for row in (row for row in case.rows if row.quantiles):
            number = styles[row.name] % len(LINES)
            share = [(one + 1) for one in range(len(row.quantiles))]
            (lines[row.name],) = axes.plot(row.quantiles, share, LINES[number][0], color=GREYS[number])
        axes.set_xscale("log")
        axes.set_title(case.name, fontsize=9, loc="left")
        axes.set_xlabel("ms")
    every[0][0].set_ylabel("% of reads")
    figure.legend(list(lines.values()), list(lines), fontsize=7, loc="outside lower center", ncols=3)
    return figure
