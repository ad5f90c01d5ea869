"""Where the time of streams goes: each moment of a stream belongs to one stage.

A stage is entered by `with` and left again; in between, what the outer one had is not counted for it. Whoever uses the
stream enters stages, one thread at a time; any thread may read what was counted so far.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

STAGES: Final = ("disk", "hash", "sending", "waiting", "receiving", "rest")


class Spent(NamedTuple):
    """Seconds by stage; those of several streams add up, so they may be more than have passed.

    disk: reading or writing files. hash: computing hashes. sending: giving bytes to the transport, encryption and rate
    limits included. waiting: for the other side's next message. receiving: the bytes that belong to one. rest: what is
    none of these.
    """

    disk: float = 0.0
    hash: float = 0.0
    sending: float = 0.0
    waiting: float = 0.0
    receiving: float = 0.0
    rest: float = 0.0

    @property
    def total(self) -> float:
        """Seconds in all."""
        return sum(self)

    def plus(self, other: Spent) -> Spent:
        """The sums, stage by stage."""
        return Spent(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))

    def since(self, earlier: Spent) -> Spent:
        """What came after `earlier`, never below 0."""
        return Spent(*(max(0.0, mine - theirs) for mine, theirs in zip(self, earlier, strict=True)))


class Stage:
    """One stage of one stream; a context manager. seconds: what was spent there, until it was last left."""

    __slots__ = ("_clock", "_times", "seconds")

    def __init__(self, times: StreamTimes) -> None:
        self._times = times
        self._clock = times.clock
        self.seconds = 0.0

    def __enter__(self) -> None:
        times, now = self._times, self._clock()
        outer = times.stage
        outer.seconds += now - times.since
        times.since = now
        times.outer.append(outer)
        times.stage = self

    def __exit__(self, kind: object, why: object, trace: object) -> None:
        times, now = self._times, self._clock()
        self.seconds += now - times.since
        times.since = now
        times.stage = times.outer.pop()


class StreamTimes:
    """The stages of one stream. clock: in seconds.

    stage, since, outer are for Stage: where the time goes now, since when, and what goes on after that.
    """

    __slots__ = (*STAGES, "clock", "outer", "since", "stage")

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self.disk = Stage(self)
        self.hash = Stage(self)
        self.sending = Stage(self)
        self.waiting = Stage(self)
        self.receiving = Stage(self)
        self.rest = Stage(self)
        self.outer: list[Stage] = []
        self.stage = self.rest
        self.since = clock()

    def lap(self, stage: Stage) -> None:
        """All since the last change belonged to `stage`. For a small request, where to enter stages and to leave them
        would take a tenth of the time: what leads to a stage counts as part of it."""
        now = self.clock()
        stage.seconds += now - self.since
        self.since = now

    def settle(self) -> None:
        """Counts the stage that lasts up to now."""
        now = self.clock()
        self.stage.seconds += now - self.since
        self.since = now

    def count(self, elsewhere: Spent) -> None:
        """Instead of the time that went by here since the last moment that was counted: what another process spent on
        the stream."""
        for stage, seconds in zip(STAGES, elsewhere, strict=True):
            getattr(self, stage).seconds += seconds
        self.since = self.clock()

    def spent(self) -> Spent:
        """What was counted so far: a stage that lasts is counted when it is left. It never goes back."""
        return Spent(
            self.disk.seconds,
            self.hash.seconds,
            self.sending.seconds,
            self.waiting.seconds,
            self.receiving.seconds,
            self.rest.seconds,
        )


class Ledger:
    """What several streams spent together, while they counted for it. Thread-safe; holds those that count now."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._over = Spent()
        self._open: dict[int, tuple[StreamTimes, Spent]] = {}
        self._last = 0

    @contextlib.contextmanager
    def counting(self, times: StreamTimes) -> Iterator[None]:
        """What the stream spends while the block runs counts. For the thread that uses the stream."""
        times.settle()
        with self._lock:
            self._last += 1
            number = self._last
            self._open[number] = (times, times.spent())
        try:
            yield
        finally:
            times.settle()
            with self._lock:
                _, before = self._open.pop(number)
                self._over = self._over.plus(times.spent().since(before))

    def spent(self) -> Spent:
        """So far; it never goes back."""
        with self._lock:
            total = self._over
            for times, before in self._open.values():
                total = total.plus(times.spent().since(before))
        return total
