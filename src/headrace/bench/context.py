"""What every case of a suite is given: where to work, who takes part, how long it may take."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from headrace.bench.measure import Result
from headrace.bench.process import BenchError

LINES: Final = 3  # of a failure that a row shows
WORDS: Final = 80  # characters: a command line can be long, and says little


@dataclass(frozen=True, slots=True)
class Bench:
    """folder: an existing one, the case's own. peers: those that take part, by name. rounds: at most. ends: when the
    case should be over, by time.monotonic; a round that has begun is finished. calls: whether system calls are counted
    as well, in a run more of each row."""

    folder: Path
    quick: bool
    peers: frozenset[str]
    rounds: int
    ends: float
    calls: bool
    tell: Callable[[str], None]

    def within(self, folder: Path, seconds: float) -> Bench:
        """For one case."""
        return replace(self, folder=folder, ends=min(self.ends, time.monotonic() + seconds))

    def size(self, full: int, quick: int) -> int:
        """The one for this suite."""
        return quick if self.quick else full


def note_failure(result: Result, why: BenchError) -> None:
    """For `measure.compare`: the row says so and the others go on."""
    result.samples.clear()
    result.missing = f"failed: {short(why)}"


def short(why: BenchError) -> str:
    """The first words of what went wrong, and the last lines of what the program said."""
    first, *said = [line.strip() for line in str(why).splitlines() if line.strip()] or ["it said nothing"]
    return " ... ".join([first if len(first) <= WORDS or not said else f"{first[:WORDS]}...", *said[-LINES:]])[:400]
