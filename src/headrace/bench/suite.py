"""The suites: which cases there are, and running them one after the other, however each of them ends."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from headrace.bench import facts, table
from headrace.bench.context import Bench, short
from headrace.bench.copies import COPIES, SWEEPS
from headrace.bench.mounts import unmount_below
from headrace.bench.netlab import LabError
from headrace.bench.process import BenchError
from headrace.bench.reading import FIRST, READS
from headrace.bench.results import Case, Report
from headrace.bench.workspace import MIB, free, workspace

QUICK_SECONDS: Final = 74.0  # when no further case of the quick suite begins
RESERVE: Final = 512 * MIB  # bytes that are left free: a full disk would stop others as well
QUICK_ROUNDS: Final = 3
FULL_ROUNDS: Final = 5


class Planned(Protocol):
    """A case before it is run."""

    @property
    def name(self) -> str: ...
    def needs(self, bench: Bench) -> int:
        """Bytes of room."""

    def why_not(self) -> str:
        """Why this machine cannot run it, or nothing."""

    def run(self, bench: Bench) -> Case:
        """Raises BenchError."""


# By name, seconds that it shall take at most in the quick suite, after which no round begins. In the order in which
# they are run: what says most comes first.
QUICK: Final = {
    "bulk": 22.0,
    "reads-idle": 8.0,
    "small-files": 6.0,
    "wan": 9.0,
    "first-byte": 3.0,
    "changed": 5.0,
    "scrub": 5.0,
    "reads-loaded": 8.0,
}
FULL_SECONDS: Final = 240.0  # of each case of the full suite
_PLANNED: Final[tuple[Planned, ...]] = (*COPIES, FIRST, *READS, *SWEEPS)
CASES: Final = {case.name: case for case in _PLANNED}
FULL: Final = tuple(CASES)


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the caller of `run` wants. only: names of cases; None: all of the suite. rounds: None: the suite's own."""

    suite: str
    peers: frozenset[str]
    folder: Path
    only: Sequence[str] | None = None
    rounds: int | None = None
    calls: bool = False


def run(wishes: Wishes, tell: Callable[[str], None], show: Callable[[str], None]) -> Report:
    """One suite. tell: how far it is. show: each table, once it is there.

    A case that fails is skipped and says why; only what stops all of them is raised: BenchError.
    """
    quick = wishes.suite == "quick"
    began = time.monotonic()
    names = list(wishes.only or (QUICK if quick else FULL))
    report = Report(wishes.suite, time.strftime("%Y-%m-%dT%H:%M:%S%z"), facts.machine(), [], notes(quick))
    ends = began + QUICK_SECONDS if quick and not wishes.only else float("inf")
    rounds = wishes.rounds or (QUICK_ROUNDS if quick else FULL_ROUNDS)
    for number, name in enumerate(names, 1):
        tell(f"{name} ({number} of {len(names)})")
        bench = Bench(wishes.folder, quick, wishes.peers, rounds, ends, wishes.calls, tell)
        seconds = QUICK.get(name, FULL_SECONDS) if quick and not wishes.only else FULL_SECONDS
        case = one(CASES[name], bench, seconds)
        if case.skipped:
            tell(f"{name}: skipped, {case.skipped}")
        else:
            show(table.of_case(case))
        report.cases.append(case)
    report.machine["load_after"] = facts.load()
    return report


def one(planned: Planned, bench: Bench, seconds: float) -> Case:
    """One case in a folder of its own, or why it was skipped. Raises what is no BenchError, once all is removed."""
    began = time.monotonic()
    if bench.ends <= began:
        return Case(planned.name, "", "", True, skipped="no time is left; --only runs it, or --suite full")
    if why := planned.why_not():
        return Case(planned.name, "", "", True, skipped=why)
    try:
        with room(planned.needs(bench), bench.folder) as folder:
            case = planned.run(bench.within(folder, seconds))
    except LabError as why_not:
        return Case(planned.name, "", "", True, skipped=short(why_not))
    except BenchError as why_not:
        return Case(planned.name, "", "", True, skipped=f"failed: {short(why_not)}")
    case.seconds = round(time.monotonic() - began, 1)
    return case


@contextlib.contextmanager
def room(needed: int, where: Path) -> Iterator[Path]:
    """A folder in `where` for one case, with nothing mounted below it when it goes. Raises BenchError."""
    if free(where) < needed + RESERVE:
        raise BenchError(
            f"{where} has {free(where) / MIB:,.0f} MiB free; it needs {needed / MIB:,.0f}"
            f" and leaves {RESERVE / MIB:,.0f}"
        )
    with workspace(needed, where) as folder:
        try:
            yield folder
        finally:
            unmount_below(folder)


def failed(report: Report) -> list[str]:
    """What went wrong of headrace's own: the names of cases and rows."""
    found = []
    for case in report.cases:
        if case.skipped.startswith("failed"):
            found.append(case.name)
        found += [f"{case.name}: {row.name}" for row in case.rows if row.kind == "headrace" and row.missing]
    return found


def notes(quick: bool) -> list[str]:
    """What a reader of the figures has to know."""
    return [
        "Wall time of whole commands, start-up and connecting included. Every copy was compared with its source.",
        "headrace x: times as good as that row, round by round (A B A B), median and range. Above 1 headrace is ahead.",
        "headrace: hashes remembered, client paired; headrace-cold: first contact, nothing hashed;"
        " headrace-clear: --data-plane clear on both ends; headrace-7: the baseline protocol.",
        "scp-gcm: with aes128-gcm. rsync-daemon and nfs-ganesha (by libnfs): not encrypted. curl-https: from nginx,"
        " or from Python where that is missing. sshfs: mount, cp, unmount. wormhole: with a mailbox server of its own.",
        "cp, sendfile, iperf3, bare TCP: limits, not competitors. % of limit: of the best of them that was measured.",
        "CPU s: getting + serving end, one round, median. RSS: the sum of the peaks of all processes of that end.",
        "scp, sshfs and rclone take part in one round only where there are many files: they take too long.",
        *(
            [
                "The quick suite is small: start-up weighs more than in --suite full. In it only headrace has a round"
                " that is not counted, and scp, rclone, wormhole and headrace-cold have one round, at most."
            ]
            if quick
            else []
        ),
    ]
