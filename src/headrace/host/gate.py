"""Small reads first: what sends bulk asks this between two pieces, and lets waiting small reads go before it.

A small read is some tenths of a millisecond of work. Behind threads that hash, seal and send 4 MiB at a time it waits
for a core and for the interpreter's lock much longer than that. So bulk stands still meanwhile, within two bounds:

- A sender is held up at most 10 ms at once after a time of rest, and 40 % of the time. That is at most half of any
  100 ms, whatever the readers do.
- A read that is not answered within 10 ms, because its client takes nothing or its disk is slow, holds nobody up any
  more. Of what a connection reads by small reads, 8 MiB a second go first; what is above that is bulk itself.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final

SMALL: Final = 128 * 1024  # bytes; what reads at most so much goes first
PIECE: Final = 1024 * 1024  # bytes of bulk between two questions: half a millisecond of sealing, as many system calls

PAUSE_SHARE: Final = 0.4  # of the time
PAUSE_DEPTH: Final = 0.01  # seconds; with the share it makes at most 0.05 of any 0.1
NAP: Final = 0.0005  # seconds between two looks whether the small reads are done; for less nobody lies down
STUCK: Final = 0.01  # seconds

SMALL_RATE: Final = 8 * 1024 * 1024.0  # bytes a second
SMALL_DEPTH: Final = 1024 * 1024.0  # bytes


class Allowance:
    """So much at once, and so much a second after that. No clock, no thread: `now` is in seconds."""

    __slots__ = ("_at", "_depth", "_level", "_rate")

    def __init__(self, rate: float, depth: float, now: float) -> None:
        self._rate = rate
        self._depth = depth
        self._level = depth
        self._at = now

    def left(self, now: float) -> float:
        """What may be spent. Below 0 where more was spent than there was."""
        self._level = min(self._depth, self._level + (now - self._at) * self._rate)
        self._at = now
        return self._level

    def spend(self, amount: float) -> None:
        """After `left`."""
        self._level -= amount


class Gate:
    """One for each share. Thread-safe.

    waiting: how many small reads are being answered. Bulk looks at it without a lock: 0 is the usual case, and whoever
    comes a moment later is seen before the next piece. latest: when the last one came, by `clock`; None: none did.
    pauses, paused: how often bulk stood still, and seconds in all.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        """clock: in seconds; sleep: for so many of them."""
        self.waiting = 0
        self.latest: float | None = None
        self.pauses = 0
        self.paused = 0.0
        self.clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._entered: dict[int, float] = {}  # by number, in the order of coming
        self._last = 0

    def reader(self) -> Reader:
        """For the small reads of one connection."""
        return Reader(self, self.clock)

    def sender(self) -> Sender:
        """For the bulk of one connection."""
        return Sender(self, self.clock)

    def enter(self) -> int:
        """A small read begins. The number is for `leave`."""
        with self._lock:
            self._last = number = self._last + 1
            self._entered[number] = self.latest = self.clock()
            self.waiting += 1
        return number

    def leave(self, number: int) -> None:
        """It was handed to the stream, or failed."""
        with self._lock:
            del self._entered[number]
            self.waiting -= 1

    def stand_still(self, longest: float) -> float:
        """Blocks while a small read waits that came less than STUCK ago, `longest` seconds at most. Seconds it took.

        It naps and looks, and nobody wakes it: to wake six senders at once would cost the reader more than it gained.
        """
        began = now = self.clock()
        while (left := min(began + longest, self._newest() + STUCK) - now) > 0:
            self._sleep(min(left, NAP))
            now = self.clock()
        with self._lock:
            self.pauses += 1
            self.paused += now - began
        return now - began

    def _newest(self) -> float:
        """When the last of those came that wait; long ago where nobody does."""
        with self._lock:
            return self._entered[next(reversed(self._entered))] if self._entered else float("-inf")


class Reader:
    """The small reads of one connection; a context manager for each. One owner thread."""

    __slots__ = ("_allowance", "_clock", "_gate", "_number")

    def __init__(self, gate: Gate, clock: Callable[[], float]) -> None:
        self._gate = gate
        self._clock = clock
        self._allowance = Allowance(SMALL_RATE, SMALL_DEPTH, clock())
        self._number = 0

    def reading(self, size: int) -> Reader:
        """For `with`: the read goes first while the block runs, unless the connection read too much. size: bytes."""
        if self._allowance.left(self._clock()) > 0:
            self._allowance.spend(size)
            self._number = self._gate.enter()
        return self

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, why: BaseException | None, trace: TracebackType | None
    ) -> None:
        number, self._number = self._number, 0
        if number:
            self._gate.leave(number)


class Sender:
    """The bulk of one connection. One owner thread."""

    __slots__ = ("_allowance", "_clock", "_gate")

    def __init__(self, gate: Gate, clock: Callable[[], float]) -> None:
        self._gate = gate
        self._clock = clock
        self._allowance = Allowance(PAUSE_SHARE, PAUSE_DEPTH, clock())

    def give_way(self) -> None:
        """Between two pieces, where `gate.waiting`: lets small reads go first, within this sender's bounds."""
        longest = self._allowance.left(self._clock())
        if longest >= NAP:
            self._allowance.spend(self._gate.stand_still(longest))
