"""Two results of `headrace bench` beside each other: what got better or worse beyond noise.

Absolute figures depend on the machine and its day. So each row of headrace's is first divided, round by round, by one
that both results have and that headrace has no part in: the case's own best limit, else a peer. Where both lack one,
the figures themselves are compared, and the line says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from headrace.bench.noise import Estimate, Verdict, ratio
from headrace.bench.report import columns
from headrace.bench.results import Case, Report, Row
from headrace.bench.table import limit

BAND: Final = 0.10  # a change of less is no news, however sure it is
CPU: Final = ", CPU"
_WORDS: Final[dict[Verdict, str]] = {"better": "better", "worse": "WORSE", "noise": "within noise"}


@dataclass(frozen=True, slots=True)
class Change:
    """times: how many times as good B is as A. by: the row that both were divided by, or empty."""

    case: str
    row: str
    times: Estimate
    by: str

    def verdict(self, band: float = BAND) -> Verdict:
        """Beyond 1 ± band as a whole interval, or noise."""
        return self.times.verdict(band)


def changes(before: Report, now: Report) -> list[Change]:
    """Of all rows of headrace's that both have, in the order of `now`: how good it is, then what CPU it takes."""
    found = []
    for case in now.cases:
        old = before.case(case.name)
        if old is not None and case.rows and old.unit == case.unit and _alike(old, case):
            found += list(_of_case(old, case))
    return found


def _alike(old: Case, new: Case) -> bool:
    """A case of another size is another case: start-up weighs differently in it."""
    return old.size == new.size


def _of_case(old: Case, new: Case) -> Iterator[Change]:
    reference = _reference(old, new)
    for row in new.rows:
        was = old.row(row.name)
        if row.kind != "headrace" or not row.values or was is None:
            continue
        for suffix, of, more in (("", _values, new.more), (CPU, _cpu, False)):
            if not (all(of(row)) and all(of(was))):
                continue
            theirs = _relative(was, reference[0] if reference else None, of)
            ours = _relative(row, reference[1] if reference else None, of)
            times = ratio(ours, theirs) if more else ratio(theirs, ours)
            yield Change(new.name, row.name + suffix, times, reference[1].name if reference else "")


def _reference(old: Case, new: Case) -> tuple[Row, Row] | None:
    """The row that both have: a limit, else a peer. It took CPU time, or its CPU time would divide nothing."""
    best = limit(new)
    candidates = [best] if best else []
    candidates += [row for row in new.rows if row.kind != "headrace" and row.values]
    for row in candidates:
        was = old.row(row.name)
        if was is not None and all(was.cpu) and all(row.cpu):
            return was, row
    return None


def _values(row: Row) -> list[float]:
    return row.values


def _cpu(row: Row) -> list[float]:
    return row.cpu


def _relative(row: Row, reference: Row | None, of: Callable[[Row], list[float]]) -> list[float]:
    if reference is None:
        return list(of(row))
    return [mine / its for mine, its in zip(of(row), of(reference), strict=False)]


def table(found: list[Change], band: float) -> str:
    """A line a change."""
    rows = [["case", "row", "B is x as good as A (95 %)", "verdict", "by"]]
    for change in found:
        verdict = _WORDS[change.verdict(band)]
        rows.append([change.case, change.row, str(change.times), verdict, change.by or "the figures themselves"])
    return columns(rows)
