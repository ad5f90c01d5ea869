"""What a suite found, as it is kept in a file: cases, their rows, every round of each. `compare` and `plot` read it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from headrace.bench.measure import Spread
from headrace.bench.process import BenchError

SCHEMA: Final = 1
MIB: Final = 1 << 20

Kind = Literal["headrace", "peer", "limit"]


class Row(msgspec.Struct):
    """One way of doing what the case is about.

    values: of each counted round, in the case's unit; the rounds of all rows of a case go together. client_cpu,
    server_cpu: CPU seconds of each round; rss: bytes, the sum of the peaks of that end's processes. calls: system
    calls of both ends for each MiB, the whole command, from one run more; None where they were not counted. quantiles:
    where a round is many requests, 0 to 100 % of all of them in the case's unit. missing: why there are no values.
    """

    name: str
    kind: Kind
    values: list[float] = []
    client_cpu: list[float] = []
    server_cpu: list[float] = []
    client_rss: list[int] = []
    server_rss: list[int] = []
    calls: float | None = None
    quantiles: list[float] = []
    missing: str = ""
    failed: bool = False  # it began and went wrong; not merely absent

    @property
    def spread(self) -> Spread:
        """Of a row that has values."""
        return Spread.of(self.values)

    @property
    def cpu(self) -> list[float]:
        """Seconds of both ends, round by round."""
        return [client + server for client, server in zip(self.client_cpu, self.server_cpu, strict=True)]


class Case(msgspec.Struct):
    """more: whether more of the unit is better. size: bytes that one run moves, 0 where that says nothing. at: where
    the case lies on the axes of the plots: bytes, files, rtt_ms, loss. skipped: why it was not run."""

    name: str
    title: str
    unit: str
    more: bool
    rows: list[Row] = []
    size: int = 0
    at: dict[str, float] = {}
    skipped: str = ""
    seconds: float = 0.0

    def row(self, name: str) -> Row | None:
        """The one of that name that has values."""
        return next((row for row in self.rows if row.name == name and row.values), None)

    def times(self, row: Row, other: Row) -> Spread:
        """How many times as good `row` is as `other`, round by round: both runs of a round saw about one machine."""
        pairs = zip(row.values, other.values, strict=False)
        return Spread.of([mine / its if self.more else its / mine for mine, its in pairs])


class Report(msgspec.Struct):
    """One run of a suite."""

    suite: str
    when: str
    machine: dict[str, Any]
    cases: list[Case]
    notes: list[str] = []
    schema: int = SCHEMA

    def case(self, name: str) -> Case | None:
        """The one of that name that was run."""
        return next((case for case in self.cases if case.name == name and case.rows), None)


def save(report: Report, file: Path) -> None:
    """Raises BenchError."""
    try:
        file.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
    except OSError as why:
        raise BenchError(f"{file} cannot be written: {why.strerror}") from why


def load(file: Path) -> Report:
    """Raises BenchError where it is no such file, or one of another schema."""
    try:
        report = msgspec.json.decode(file.read_bytes(), type=Report)
    except OSError as why:
        raise BenchError(f"{file} cannot be read: {why.strerror}") from why
    except msgspec.MsgspecError as why:
        raise BenchError(f"{file} is no result of headrace bench: {why}") from why
    if report.schema != SCHEMA:
        raise BenchError(f"{file} has schema {report.schema}; this headrace reads {SCHEMA}")
    return report
