"""How far a transfer is: rate, time left and percent from the engine's counters, and the line that shows them."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any, Final

from headrace.cli.text import clock, counted, human_rate, human_size
from headrace.engine.progress import Totals

RATE_WINDOW: Final = 5.0  # seconds over which the shown rate is averaged


@dataclass(frozen=True, slots=True)
class View:
    """One moment of a transfer.

    done: bytes that are here, fetched or found. rate: bytes of files that came, a second, over the last RATE_WINDOW
    seconds.
    percent, left (seconds): None as long as they would be guesses.
    """

    totals: Totals
    done: int
    rate: float
    percent: int | None
    left: float | None


class Meter:
    """Turns snapshots into views; remembers those of the last RATE_WINDOW seconds. One owner thread."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque([(0.0, 0)])

    def look(self, totals: Totals) -> View:
        """totals: a later snapshot than the one before."""
        came = totals.bytes_received + totals.bytes_saved
        self._samples.append((totals.seconds, came))
        while len(self._samples) > 2 and self._samples[1][0] <= totals.seconds - RATE_WINDOW:
            self._samples.popleft()
        since, before = self._samples[0]
        span = totals.seconds - since
        rate = (came - before) / span if span > 0 else 0.0
        # A file that changed and came twice counts twice.
        done = min(totals.bytes, came + totals.bytes_reused)
        percent = left = None
        if totals.planned:
            # Not 100 before the end: files still have to be finished and renamed.
            percent = min(99, 100 * done // totals.bytes) if totals.bytes else None
            left = (totals.bytes - done) / rate if rate > 0 and done < totals.bytes else None
        return View(totals, done, rate, percent, left)


def progress_line(view: View) -> str:
    """For the bottom of a terminal: ` 43 %  1.2 of 2.8 GiB …`."""
    totals = view.totals
    if totals.planned:
        parts = [f"{view.percent:3d} %"] if view.percent is not None else []
        parts.append(f"{human_size(view.done)} of {human_size(totals.bytes)}")
        parts.append(f"{totals.files_done:,} of {counted(totals.files, 'file')}")
    else:
        parts = [human_size(view.done), f"{totals.files_done:,} of {totals.files:,} files so far"]
    if totals.files_failed:
        parts.append(f"{totals.files_failed:,} failed")
    parts.append(human_rate(view.rate))
    if view.left is not None:
        parts.append(f"{clock(view.left)} left")
    return "  ".join(parts)


def progress_event(view: View) -> dict[str, Any]:
    """The `progress` event."""
    totals = view.totals
    return {
        "event": "progress",
        "files": totals.files,
        "files_done": totals.files_done,
        "files_failed": totals.files_failed,
        "bytes": totals.bytes,
        "bytes_done": view.done,
        "bytes_received": totals.bytes_received,
        "bytes_saved": totals.bytes_saved,
        "bytes_reused": totals.bytes_reused,
        "planned": totals.planned,
        "seconds": round(totals.seconds, 3),
        "rate": round(view.rate),
        "seconds_left": None if view.left is None else round(view.left, 1),
    }
