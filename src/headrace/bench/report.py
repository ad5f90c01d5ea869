"""Tables for people, JSON for programs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from headrace.bench import facts
from headrace.bench.facts import load as load
from headrace.bench.measure import Result, Sample, Spread


@dataclass(frozen=True, slots=True)
class Unit:
    """What rates are shown in. scale: how much of Result.amount makes one of it."""

    name: str
    scale: float


MEGABYTES = Unit("MB/s", 1e6)
FILES = Unit("files/s", 1)


def table(results: Sequence[Result], unit: Unit, references: Sequence[str]) -> str:
    """One line a case. references: the names of the cases that ratios are given to, as far as they were run."""
    by_name = {result.name: result for result in results}
    head = ["case", f"{unit.name} (min..max)", *(f"x {name}" for name in references)]
    rows = [[*head, "CPU s get+serve", "peak RSS MB get+serve"]]
    for result in results:
        if result.missing:
            rows.append([result.name, result.missing])
            continue
        ratios = [result.ratio_to(by_name.get(name)) for name in references]
        rows.append(
            [
                result.name,
                spread(Spread.of([rate / unit.scale for rate in result.rates]), 0),
                *(spread(ratio, 2) if ratio else "-" for ratio in ratios),
                both(result.samples, "client_cpu", "server_cpu", 1, 2),
                both(result.samples, "client_rss", "server_rss", 1e6, 0),
            ]
        )
    return columns(rows)


def spread(values: Spread, digits: int) -> str:
    """median (min..max)"""
    return f"{values.median:,.{digits}f} ({values.low:,.{digits}f}..{values.high:,.{digits}f})"


def both(samples: Sequence[Sample], client: str, server: str, scale: float, digits: int) -> str:
    """The medians of two fields, of the getting and of the serving end."""
    first = median(getattr(sample, client) for sample in samples) / scale
    second = median(getattr(sample, server) for sample in samples) / scale
    return f"{first:.{digits}f} + {second:.{digits}f}"


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Aligned, the first row as the head. A row may end early: its last cell then takes the space that is left."""
    width = len(rows[0])
    widths = [max((len(row[at]) for row in rows if len(row) == width), default=0) for at in range(width)]
    widths[0] = max(len(row[0]) for row in rows)
    lines = ["  ".join(cell.ljust(size) for cell, size in zip(row, widths, strict=False)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * size for size in widths), *lines[1:]])


def machine() -> dict[str, Any]:
    """What the figures depend on, as far as these benchmarks show it."""
    return facts.machine(("ssh", "rsync"))


def machine_line(known: dict[str, Any]) -> str:
    """The facts for people. A load of more than the cores makes the absolute figures too low."""
    return (
        f"{known['cpu']}, {known['cores']} cores, Linux {known['kernel']}, Python {known['python']}; "
        f"{known['headrace']}; {known['ssh']}; {known['rsync']}\n"
        f"load average {known['load']} before, {load()} after, of {known['cores']} cores"
        " (both ends run on these; what else the machine did slows every row)"
    )


def save(file: Path, bench: str, known: dict[str, Any], results: Sequence[Result], notes: Sequence[str]) -> None:
    """Everything, every run included."""
    what = {
        "bench": bench,
        "when": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "machine": known | {"load_after": load()},
        "notes": list(notes),
        "results": [asdict(result) | {"rates": result.rates} for result in results],
    }
    file.write_text(json.dumps(what, indent=1) + "\n")


def tell(line: str) -> None:
    """One line about how far the benchmark is."""
    print(line, file=sys.stderr, flush=True)
