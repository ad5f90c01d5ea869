"""Which transport carries the chunks: rules on measurements, without a clock."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

SETTLE: Final = (
    1.5  # seconds of chunks before the other transport is tried: a slow start is over, short ones end before
)
TRIAL: Final = 3.0  # seconds for which both carry chunks; the first half of it is a start, too
BETTER: Final = 1.25  # times the rate of one connection: what the other must reach
WORSE: Final = 0.5  # of what the other can: when to try it again
WATCH: Final = 3.0  # seconds over which a rate is looked at later
REST: Final = 10.0  # seconds after a trial; doubles with each one that changed nothing
LONGEST_REST: Final = 300.0
WORTH: Final = 8.0  # seconds that the rest would still take: what a trial is worth it for
# The same for the first trial where the link is full. It gains little there and costs half a second: the lanes that it
# pushes aside take that long to fill what it leaves.
WORTH_FULL: Final = 60.0


@dataclass(frozen=True, slots=True)
class _Point:
    """What had been delivered at a time, by transport."""

    now: float
    delivered: Mapping[str, int]


class TransportChoice:
    """The choice of one transfer. Thread-safe: one thread observes, and those that find a transport broken say so.

    transport: what carries the chunks. trying: what is tried beside it, or None. reason: why transport is what it is.

    other: what else could be had; None: nothing. ceiling: bytes a second from which `other` cannot win, whatever the
    path is like.
    """

    def __init__(self, transport: str, other: str | None, *, ceiling: float = math.inf) -> None:
        self.transport = transport
        self.other = other
        self.trying: str | None = None
        self.reason = ""
        self._lock = threading.Lock()
        self._ceiling = ceiling
        self._began: float | None = None  # when the first bytes came
        self._points: list[_Point] = []
        self._trial_began = 0.0
        self._middle: _Point | None = None  # of the trial
        self._next_trial = -math.inf
        self._rest = REST
        self._known: dict[str, float] = {}  # bytes a second that a transport reached when it was last tried

    def could(self, other: str) -> None:
        """There is another one after all: what was asked about it came late."""
        with self._lock:
            self.other = self.other or other

    def lanes(self, connections: int) -> dict[str, int]:
        """How many lanes each transport should have, where `connections` are wanted."""
        with self._lock:
            return {self.transport: connections} | ({self.trying: 1} if self.trying else {})

    def observe(
        self, now: float, delivered: Mapping[str, int], left: int | None, connections: int, *, full: bool = False
    ) -> None:
        """One measurement. now: seconds of a clock that does not go back; delivered: bytes so far, by transport; left:
        bytes that are still to come, None while that is unknown; connections: on `transport` now; full: bytes wait on
        the path."""
        with self._lock:
            self._observe(_Point(now, dict(delivered)), left, connections, WORTH_FULL if full else WORTH)

    def failed(self, transport: str) -> None:
        """No lane of that transport can be had any more."""
        with self._lock:
            if self.other is None:
                return
            if transport == self.trying:
                self.trying = None
                self._rest_after(self._trial_began, changed=False)
            elif transport == self.transport:
                self._move(self.other, "the connection broke")

    # ---- the rules; each with the lock held ------------------------------------------------------------------------

    def _observe(self, point: _Point, left: int | None, connections: int, worth: float) -> None:
        if self.other is None:
            return
        now = point.now
        if self._began is None:
            if sum(point.delivered.values()):
                self._began, self._points = now, [point]
            return
        if self.trying:
            self._try(point, left, max(1, connections))
            return
        self._points.append(point)
        while len(self._points) > 2 and self._points[1].now <= now - WATCH:
            self._points.pop(0)
        if now - self._began >= SETTLE and now >= self._next_trial and now - self._points[0].now >= SETTLE:
            self._consider(point, left, worth)

    def _consider(self, point: _Point, left: int | None, worth: float) -> None:
        assert self.other is not None
        rate = _rate(self._points[0], point, self.transport)
        if not rate or rate >= self._ceiling:
            return
        known = self.other in self._known
        if left is not None and left / rate < (WORTH if known else worth):
            return
        if known and rate >= WORSE * max(self._known.values()):
            return
        self.trying = self.other
        self._trial_began = point.now
        self._middle = None
        self._points = [point]

    def _try(self, point: _Point, left: int | None, connections: int) -> None:
        """Both at once, so that the trial costs nothing on a path that either fills; each lane's rate is compared."""
        assert self.trying is not None
        if not self._middle:
            if point.now - self._trial_began >= TRIAL / 2:
                self._middle = point
            return
        if point.now - self._trial_began < TRIAL:
            return
        tried = self.trying
        old = _rate(self._middle, point, self.transport) / connections
        new = _rate(self._middle, point, tried)
        self._known = {self.transport: old * connections, tried: new * connections}
        self.trying = None
        if left is not None and left < TRIAL * (old * connections + new):
            self._rest_after(point.now, changed=False)  # the end is near: a lane may have had nothing to do
        elif new > BETTER * old:
            self._move(tried, f"it is faster: {_mb(new)} against {_mb(old)} MB/s on one connection")
            self._rest_after(point.now, changed=True)
        else:
            self.reason = f"{tried} is not faster: {_mb(new)} against {_mb(old)} MB/s on one connection"
            self._rest_after(point.now, changed=False)
        self._points = [point]

    def _move(self, to: str, why: str) -> None:
        self.transport, self.other = to, self.transport
        self.trying = None
        self._ceiling = math.inf  # of the one that was left behind nothing is known
        self.reason = why
        self._points = self._points[-1:]

    def _rest_after(self, now: float, *, changed: bool) -> None:
        self._rest = REST if changed else min(2 * self._rest, LONGEST_REST)
        self._next_trial = now + self._rest


def _rate(since: _Point, now: _Point, transport: str) -> float:
    took = now.now - since.now
    return (now.delivered.get(transport, 0) - since.delivered.get(transport, 0)) / took if took > 0 else 0.0


def _mb(rate: float) -> str:
    return f"{rate / 1e6:.1f}"
