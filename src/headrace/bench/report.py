"""Tables for people, JSON for programs."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from headrace.bench.measure import Result, Sample, Spread
from headrace.bench.peers import HEADRACE
from headrace.bench.process import NotInstalledError
from headrace.bench.sshd import program


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
    """What the figures depend on."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "headrace": _first_line(*HEADRACE, "--version"),
        "ssh": _first_line("ssh", "-V"),
        "rsync": _first_line("rsync", "--version"),
        "load": load(),
    }


def load() -> float:
    """How many threads wanted to run, on average over the last minute."""
    return round(os.getloadavg()[0], 2)


def machine_line(facts: dict[str, Any]) -> str:
    """The facts for people. A load of more than the cores makes the absolute figures too low."""
    return (
        f"{facts['cpu']}, {facts['cores']} cores, Linux {facts['kernel']}, Python {facts['python']}; "
        f"{facts['headrace']}; {facts['ssh']}; {facts['rsync']}\n"
        f"load average {facts['load']} before, {load()} after, of {facts['cores']} cores"
        " (both ends run on these; what else the machine did slows every row)"
    )


def save(file: Path, bench: str, facts: dict[str, Any], results: Sequence[Result], notes: Sequence[str]) -> None:
    """Everything, every run included."""
    what = {
        "bench": bench,
        "when": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "machine": facts | {"load_after": load()},
        "notes": list(notes),
        "results": [asdict(result) | {"rates": result.rates} for result in results],
    }
    file.write_text(json.dumps(what, indent=1) + "\n")


def tell(line: str) -> None:
    """One line about how far the benchmark is."""
    print(line, file=sys.stderr, flush=True)


def _cpu_model() -> str:
    try:
        found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found.group(1) if found else platform.machine()


def _first_line(name: str, *arguments: str) -> str:
    """What a program says of its version."""
    try:
        said = subprocess.run([program(name), *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except NotInstalledError:
        return f"no {name}"
    lines = (said.stdout + said.stderr).strip().splitlines()
    return " ".join(lines[0].split()) if lines else f"{name} of unknown version"
