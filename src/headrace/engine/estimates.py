"""What is made of the measurements: the least round trip, the best rate, whether one connection more helps."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from typing import Final

MAX_CONNECTIONS: Final = 8
START_CONNECTIONS: Final = 2
NOISE: Final = 0.005  # seconds: less than this above the baseline is scheduling, not a queue
BASELINE_WINDOW: Final = 10.0  # seconds
RATE_WINDOW: Final = 1.0  # seconds, or 10 round trips if that is longer
RATE_SPAN: Final = 0.1  # seconds, or a round trip: a shorter stretch measures bursts


class Best:
    """The largest value of a window that moves, to a tenth of it."""

    def __init__(self) -> None:
        self._values: deque[tuple[float, float]] = deque()  # (time, value): ever later, ever smaller

    def add(self, now: float, value: float, window: float, *, keep: bool = False) -> float:
        """The largest now. keep: that one does not leave the window."""
        values = self._values
        while values and values[-1][1] <= value:
            values.pop()
        if not values or now - values[-1][0] >= window / 10:
            values.append((now, value))
        while len(values) > 1 and values[keep][0] < now - window:
            del values[keep]
        return values[0][1]


def _median(values: Iterable[float]) -> float:
    """Of at least one. Not `statistics`: it takes as long to import as many a whole module of ours."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


class RoundTrips:
    """The least round trip of the window, and the median of the last few."""

    def __init__(self) -> None:
        self.baseline: float | None = None
        self.recent: float | None = None
        self.near = -math.inf  # when a sample was last close to the baseline
        self.lost = False  # there was a baseline, and the figure stopped moving
        self.longer = False  # a much longer baseline was accepted; whoever acts on it sets it back
        self._raw: float | None = None
        self._moved = -math.inf
        self._last: deque[float] = deque(maxlen=5)
        self._least = Best()  # of negative round trips

    def add(self, now: float, rtt: float | None, *, keep: bool) -> float | None:
        """The sample, if it says something new. keep: the window drops nothing."""
        if self._moved + BASELINE_WINDOW < now and self.baseline is not None:
            self.baseline = self.recent = None
            self.lost = True
            self._last.clear()
            self._least = Best()
        if rtt is None or not math.isfinite(rtt) or rtt <= 0 or rtt == self._raw:
            return None  # a figure that stands still was not measured anew
        first, self._raw = self._raw is None, rtt
        if first:
            return None  # can be left from the handshake, or an initial guess
        self._moved = now
        self.lost = False
        self._last.append(rtt)
        self.recent = _median(self._last)
        least = -self._least.add(now, -rtt, BASELINE_WINDOW, keep=keep)
        self.longer = self.longer or (self.baseline is not None and least > 1.5 * self.baseline)
        self.baseline = least
        if rtt <= max(1.1 * least, least + NOISE / 5):
            self.near = now
        return rtt

    def restart(self, now: float, rtt: float) -> None:
        """The path is another one, of this length."""
        self._least = Best()
        self.baseline, self.near = -self._least.add(now, -rtt, BASELINE_WINDOW), now


class Rates:
    """Delivery rate: over the latest stretch, and the best of the window."""

    def __init__(self) -> None:
        self.latest = 0.0
        self.best = 0.0
        self._points: deque[tuple[float, int]] = deque()
        self._window = Best()

    def add(self, now: float, delivered: int, rtt: float) -> None:
        points = self._points
        if points and delivered < points[-1][1]:
            points.clear()  # another counter
        span = max(RATE_SPAN, rtt)
        while len(points) > 1 and points[1][0] <= now - span:
            points.popleft()
        if not points or now - points[-1][0] >= span / 32:
            points.append((now, delivered))
        took = now - points[0][0]
        if took < span or delivered <= points[0][1]:
            return  # nothing was delivered: nothing may have been asked for
        self.latest = (delivered - points[0][1]) / took
        self.best = self._window.add(now, self.latest, max(RATE_WINDOW, 10 * rtt))


class Climb:
    """One connection more or fewer, kept if the rate says so: a tenth more for one more, a twentieth less at most for
    one fewer. It is compared with the best of the epochs before, so that a rate that swings does not count."""

    EPOCH: Final = 1.0  # seconds, or 10 round trips
    REST: Final = 30.0  # seconds after a round of trials; doubles while they change nothing
    LONGEST_REST: Final = 480.0

    def __init__(self) -> None:
        self.connections = START_CONNECTIONS
        self._settled = START_CONNECTIONS
        self._step = 1
        self._gained = False  # in this round of trials
        self._rest = self.REST
        self._next_trial = -math.inf
        self._bars: deque[float] = deque(maxlen=3)
        self._settling = True  # the epoch under way is not counted: connections start slowly
        self.epoch: tuple[float, int] | None = None

    def observe(self, now: float, delivered: int, rtt: float, room: int, bloated: bool) -> bool:
        """Whether the number changed. room: no more than this. bloated: the link is full, so one more would only
        lengthen its queue."""
        if self.epoch is None or delivered < self.epoch[1]:
            self.epoch = (now, delivered)
        began, had = self.epoch
        if now - began < max(self.EPOCH, 10 * rtt):
            return False
        self.epoch = (now, delivered)
        if self._settling or delivered == had:
            self._settling = False
            return False
        rate, before = (delivered - had) / (now - began), self.connections
        if self.connections != self._settled:
            self._judge(now, rate)
        else:
            self._bars.append(rate)
            if now >= self._next_trial and len(self._bars) == self._bars.maxlen:
                self._try(now, min(room, MAX_CONNECTIONS), bloated)
        self._settling = self.connections != before
        return self._settling

    def _try(self, now: float, most: int, bloated: bool) -> None:
        if self._step > 0 and (self._settled >= most or bloated):
            self._step = -1
        # On a full link fewer cannot carry more either, and the others take a second to fill what the one leaves free.
        least = START_CONNECTIONS if bloated else 1
        if self._settled + self._step < least:
            self._round_over(now)
        else:
            self.connections = self._settled + self._step

    def _judge(self, now: float, rate: float) -> None:
        if rate >= (1.1 if self._step > 0 else 0.95) * max(self._bars):
            self._gained = True
            self._settled = self.connections
            if self._step > 0:  # going down, the bar stays: small losses must not add up
                self._bars.clear()
            return
        self.connections = self._settled
        if self._step > 0 and not self._gained:
            self._step = -1
            self._bars.clear()
        else:
            self._round_over(now)

    def _round_over(self, now: float) -> None:
        self._rest = self.REST if self._gained else min(2 * self._rest, self.LONGEST_REST)
        self._next_trial = now + self._rest
        self._step, self._gained = 1, False
        self._bars.clear()
