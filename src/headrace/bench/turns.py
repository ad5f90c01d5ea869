"""Rows that are not copies, in turn: each does something once a round and says what it took."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from headrace.bench.context import Bench, short
from headrace.bench.process import BenchError, NotInstalledError
from headrace.bench.results import Kind, Row


@dataclass(slots=True)
class Turn:
    """What one round of one row came to. times: of each request, in the case's unit; at least one."""

    times: list[float]
    client_cpu: float = 0.0
    server_cpu: float = 0.0
    client_rss: int = 0
    server_rss: int = 0


@dataclass(slots=True)
class Taker:
    """A row to be. take: does it once; raises BenchError."""

    name: str
    kind: Kind
    take: Callable[[], Turn]
    missing: str = ""
    times: list[float] = field(default_factory=list)


def in_turn(takers: Sequence[Taker], bench: Bench) -> list[Row]:
    """Round after round, after one that is not counted. A row's value is the median of its round's times."""
    rows = {taker.name: Row(taker.name, taker.kind, missing=taker.missing) for taker in takers}
    for number in range(bench.rounds + 1):
        if number > 1 and time.monotonic() > bench.ends:
            bench.tell(f"no time for round {number} of {bench.rounds}")
            break
        bench.tell(f"round {number} of {bench.rounds}" if number else "warm-up, not counted")
        for taker in takers:
            row = rows[taker.name]
            if row.missing:
                continue
            try:
                turn = taker.take()
            except NotInstalledError as why:
                row.missing = f"not installed ({why})"
                continue
            except BenchError as why:
                row.missing, row.failed, row.values = f"failed: {short(why)}", True, []
                continue
            bench.tell(f"  {row.name:<24}{statistics.median(turn.times):8.2f}")
            if number:
                _note(row, turn)
                taker.times += turn.times
    for taker in takers:
        if len(taker.times) > 1:
            rows[taker.name].quantiles = statistics.quantiles(taker.times, n=100, method="inclusive")
    return list(rows.values())


def _note(row: Row, turn: Turn) -> None:
    row.values.append(statistics.median(turn.times))
    row.client_cpu.append(turn.client_cpu)
    row.server_cpu.append(turn.server_cpu)
    row.client_rss.append(turn.client_rss)
    row.server_rss.append(turn.server_rss)
