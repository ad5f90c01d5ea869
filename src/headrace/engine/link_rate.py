"""How fast a stream takes what is sent on it: an estimate from how long sending blocks. No clock, no socket.

A send returns when the kernel has the bytes, not when they have left. So only sends that blocked say anything: the
buffer was full before and after them, and what was sent left in the time since the last one ended, whatever else was
done meanwhile. On a busy machine a few sends take long for want of a core, so the word of most of the last ones counts.

While they do not block, because what is compressed is little, the old figure stands. After a while of that the rate is
`None`, unknown, until so much was sent as it is that any buffer would have been full.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from headrace.protocol.messages import MIB

BLOCKED: Final = 0.5  # of the time since the last send: who waited that long waited for the link
SPAN: Final = 0.25  # seconds of work that count, the latest
LEAST: Final = 3  # sends that count, however long they took
EVIDENCE: Final = 0.1  # seconds; a client that was busy for less than that is no slow link
PATIENCE: Final = 0.25  # seconds without blocked sends, after which the link is tried; doubled where that was in vain
MOST_PATIENCE: Final = 16.0
TRIAL: Final = 16 * MIB  # bytes; more than a kernel keeps for one connection


class LinkRate:
    """The rate of one stream, in bytes a second. One owner thread; times are in seconds of any clock."""

    def __init__(self, expected: float | None = None) -> None:
        """expected: until something was measured."""
        self._known = expected
        self._latest: deque[tuple[int, float, bool]] = deque()  # bytes, seconds of work, blocked
        self._bytes = self._blocked = 0  # in those
        self._seconds = 0.0
        self._since = 0.0
        self._quiet = 0.0  # seconds of work without blocked sends
        self._trial = 0  # bytes still to be sent before it is over
        self._patience = PATIENCE

    @property
    def rate(self) -> float | None:
        """None: not known, or being tried: what is sent now should be as much as possible."""
        return None if self._trial > 0 else self._known

    def begin(self, now: float) -> None:
        """There is something to send from here on; until now the stream was idle, or did something else."""
        self._since = max(self._since, now)

    def sent(self, count: int, began: float, ended: float) -> None:
        """`count` bytes were handed over in that time."""
        worked = ended - self._since
        self._since = ended
        if count <= 0 or worked <= 0:
            return
        self._add(count, worked, blocked=ended - began >= BLOCKED * worked)
        if 2 * self._blocked <= len(self._latest):
            self._passed(count, worked)
            return
        self._quiet = 0.0
        if self._seconds < EVIDENCE:
            return
        self._known = self._bytes / self._seconds
        if self._trial > 0:
            self._trial = 0
            self._patience = min(2 * self._patience, MOST_PATIENCE)

    def _add(self, count: int, worked: float, *, blocked: bool) -> None:
        latest = self._latest
        latest.append((count, worked, blocked))
        self._bytes += count
        self._seconds += worked
        self._blocked += blocked
        while len(latest) > LEAST and self._seconds - latest[0][1] > SPAN:
            count, worked, blocked = latest.popleft()
            self._bytes -= count
            self._seconds -= worked
            self._blocked -= blocked

    def _passed(self, count: int, worked: float) -> None:
        if self._trial > 0:
            self._trial -= count
            if self._trial <= 0:  # faster than whatever is sent
                self._known = None
                self._patience = PATIENCE
            return
        self._quiet += worked
        if self._quiet >= self._patience and self._known is not None:
            self._quiet = 0.0
            self._trial = TRIAL
            self._latest.clear()  # what comes now is of another kind
            self._bytes = self._blocked = 0
            self._seconds = 0.0
