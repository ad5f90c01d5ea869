"""While small reads are about, bulk keeps the queue of its path short: what is slow about a small read is that queue.

Several connections with chunks fill the queue before the narrowest link, and a small read of the same share, whoever
asks, waits behind what lies there: 12 ms at 1 Gbit/s and 1 ms, 60 to 120 ms at 100 Mbit/s and 50 ms. A pause of the
sender changes nothing about it, because the kernel has megabytes in hand. So each bulk connection has the kernel pace
it, a little under what arrives, until the round trip is near its least; then a little faster again, step by step. That
a delay above the least is a queue of our own, and has to go, is the idea of LEDBAT (RFC 6817).

Bulk never starves: nothing goes below half of the best rate that it had, which is forgotten by half in 30 s. A second
after the last small read there is no limit any more.
"""

from __future__ import annotations

from typing import Final, Self

from headrace.transport.shaping import Path, Shaper

RECENT: Final = 1.0  # seconds after a small read in which the next one is expected
PIECE: Final = 128 * 1024  # bytes between two looks, while small reads are about

STEP: Final = 0.03  # seconds between two decisions at least; a round trip where that is longer
IDLE: Final = 5.0  # seconds after which what was measured before says nothing
TARGET: Final = 0.0015  # seconds of queue, at least; a tenth of the least round trip where that is more
SLOWER: Final = 0.85
FASTER: Final = 1.08
LEAST: Final = 256 * 1024.0  # bytes a second
MOST: Final = 1e11  # bytes a second: no limit
HALF_LIFE: Final = 30.0  # seconds
FLOOR: Final = 0.5  # of the best rate


class Courtesy:
    """The rate of one bulk connection. No clock, no socket: `now` is in seconds."""

    def __init__(self) -> None:
        self.rate: float | None = None  # bytes a second that it may send; None: no limit
        self._best = 0.0
        self._at: float | None = None
        self._acked = 0

    def due(self, now: float, least: float) -> bool:
        """Whether `observe` would decide anything. least: the path's least round trip in seconds."""
        return self._at is None or now - self._at >= max(STEP, least)

    def observe(self, now: float, path: Path) -> None:
        """A look at the path while small reads are about; `rate` is what follows from it."""
        since, acked = self._at, self._acked
        self._at, self._acked = now, path.acked
        if since is None or now - since > IDLE:
            return
        seconds = now - since
        if seconds <= 0:
            return
        arrived = (path.acked - acked) / seconds
        self._best = max(arrived, self._best * 0.5 ** (seconds / HALF_LIFE))
        queue, target = path.rtt - path.least, max(TARGET, path.least / 10)
        if queue > target:
            had = arrived if self.rate is None else min(arrived, self.rate)
            self.rate = max(had * SLOWER, self._best * FLOOR, LEAST)
        elif self.rate is not None and queue < target / 2:
            self.rate = self.rate * FASTER if self.rate < MOST else None

    def forget(self) -> None:
        """No small reads any more: no limit, and what was measured is old when they come again."""
        self.rate = None
        self._best = 0.0
        self._at = None


class Shaping:
    """Keeps one connection to what `Courtesy` says. One owner thread."""

    def __init__(self, shaper: Shaper | None) -> None:
        """shaper: None where the connection has none; then nothing happens."""
        self._shaper = shaper
        self._courtesy = Courtesy()
        self._least = 0.0
        self._limited = False

    @classmethod
    def of(cls, stream: object) -> Self:
        """For a stream of any transport. QUIC has priorities instead."""
        find = getattr(stream, "shaper", None)
        return cls(find() if find else None)

    def look(self, now: float, latest: float) -> int:
        """Between two pieces: how many bytes the next may have so that the look after it comes soon; 0: any number.

        latest: when the last small read came. Usually it costs one or two comparisons.
        """
        if self._shaper is None:
            return 0
        if now - latest > RECENT:
            self._end(self._shaper)
            return 0
        if self._courtesy.due(now, self._least):
            path = self._shaper.path()
            if path is not None:
                self._least = path.least
                self._decide(self._shaper, now, path)
        return PIECE

    def _decide(self, shaper: Shaper, now: float, path: Path) -> None:
        before = self._courtesy.rate
        self._courtesy.observe(now, path)
        if self._courtesy.rate != before:
            self._limited = self._courtesy.rate is not None
            shaper.limit(self._courtesy.rate)

    def _end(self, shaper: Shaper) -> None:
        self._courtesy.forget()
        if self._limited:
            self._limited = False
            shaper.limit(None)
