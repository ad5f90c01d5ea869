"""Rate limits: token buckets that may be shared by many streams and changed while they are in use."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final, Protocol

DEPTH: Final = 0.05  # seconds of the rate that may be sent at once: no 100 ms ever hold more than 1.5 times the rate
QUANTUM: Final = 0.02  # seconds of the rate that one caller gets at a time, so that many share it evenly
SMALLEST: Final = 1024  # bytes; a grant is worth a system call even at a few KiB/s
LARGEST: Final = 128 * 1024  # bytes; what was granted at a high rate is no burst when a low one begins meanwhile
SHORTEST: Final = 0.002  # seconds of the rate; a grant at several GB/s may be larger than that


class Bucket:
    """So many bytes a second for whoever asks, in the order of asking. Thread-safe.

    The clock is in seconds; `sleep` waits. Both are injected in tests.
    """

    def __init__(
        self,
        rate: float | None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """rate: bytes a second; None: no limit. ValueError unless it is positive."""
        self._clock = clock
        self._sleep = sleep
        self._state = threading.Lock()
        self._rate: float | None = None
        # Bytes since the beginning. What was earned is at most DEPTH seconds ahead of what was promised; who was
        # promised bytes goes when they are earned. So they go in the order in which they asked, without a queue.
        self._promised = 0.0
        self._earned = 0.0
        self._filled = clock()
        self.rate = rate

    @property
    def rate(self) -> float | None:
        """Bytes a second; None: no limit. May be set at any time, also while others wait."""
        return self._rate

    @rate.setter
    def rate(self, rate: float | None) -> None:
        if rate is not None and not rate > 0:
            raise ValueError("a rate limit must be positive")
        with self._state:
            self._fill()
            self._rate = rate
            # Whoever waits now may go when there is no limit any more, and leaves no debt to the next one.
            self._earned = self._promised if rate is None else min(self._earned, self._most())

    def grant(self, wanted: int) -> int:
        """How many of `wanted` bytes may go now, at least one. Blocks until some may. What is not used is given back
        by `refund`."""
        portion = self.portion(wanted)
        self.pay(portion)
        return portion

    def portion(self, wanted: int) -> int:
        """As much of `wanted` as one caller should take at a time. Does not block."""
        rate = self._rate
        if rate is None:
            return wanted
        return min(wanted, max(SMALLEST, int(min(rate * QUANTUM, max(LARGEST, rate * SHORTEST)))))

    def pay(self, count: int) -> None:
        """For `count` bytes that go now, or came already: blocks for as long as the limit says."""
        if self._rate is None:  # the usual case takes no lock
            return
        with self._state:
            self._promised += count
            mine = self._promised
        while True:
            with self._state:
                rate = self.rate
                self._fill()
                missing = mine - self._earned
            if rate is None or missing < 1:  # a fraction of a byte is nothing to wait for
                return
            self._sleep(min(missing / rate, DEPTH))  # not longer: the rate may be changed meanwhile

    def refund(self, unused: int) -> None:
        """Gives back what a grant did not use: the next ones go earlier by that."""
        if unused and self._rate is not None:
            with self._state:
                self._earned = min(self._earned + unused, self._most())

    def _most(self) -> float:
        return self._promised + (0.0 if self._rate is None else max(SMALLEST, self._rate * DEPTH))

    def _fill(self) -> None:
        now = self._clock()
        if self._rate is not None:
            self._earned = min(self._earned + (now - self._filled) * self._rate, self._most())
        self._filled = now


class Pace:
    """Several limits at once: those of everybody and of one peer, say. A stream asks this.

    Buckets without a limit, the usual ones, are not called: a small request asks four times.
    """

    def __init__(self, *buckets: Bucket) -> None:
        self._buckets = buckets

    @property
    def rate(self) -> float | None:
        """Bytes a second: the lowest of them; None: no limit."""
        return min((rate for bucket in self._buckets if (rate := bucket.rate) is not None), default=None)

    @property
    def limited(self) -> bool:
        """Whether there is any limit now."""
        for bucket in self._buckets:  # noqa: SIM110  # a generator takes three times as long
            if bucket._rate is not None:
                return True
        return False

    def grant(self, wanted: int) -> int:
        """As Bucket.grant: what every limit allows."""
        for bucket in self._buckets:
            if bucket._rate is not None:
                break
        else:
            return wanted
        portion = self.portion(wanted)
        self.pay(portion)
        return portion

    def portion(self, wanted: int) -> int:
        """As Bucket.portion: the smallest of them."""
        for bucket in self._buckets:
            if bucket._rate is not None:
                wanted = bucket.portion(wanted)
        return wanted

    def pay(self, count: int) -> None:
        """As Bucket.pay, to each."""
        for bucket in self._buckets:
            if bucket._rate is not None:
                bucket.pay(count)

    def refund(self, unused: int) -> None:
        """As Bucket.refund."""
        if not unused:
            return
        for bucket in self._buckets:
            bucket.refund(unused)


class Paced(Protocol):
    """What can be paced: a Stream."""

    pace_in: Pace | None
    pace_out: Pace | None


class Limit:
    """A limit for both directions, of one stream or many: so many bytes a second in, and as many out. Thread-safe."""

    def __init__(self, rate: float | None) -> None:
        """rate: as Bucket's, for each direction. ValueError unless it is positive."""
        self.on_change: Callable[[], None] | None = None  # called after the rate was set
        self.inward = Bucket(rate)
        self.outward = Bucket(rate)

    @property
    def rate(self) -> float | None:
        """Bytes a second in each direction; None: no limit. May be set at any time."""
        return self.outward.rate

    @rate.setter
    def rate(self, rate: float | None) -> None:
        self.inward.rate = rate
        self.outward.rate = rate
        if self.on_change:
            self.on_change()


def pace(stream: Paced, *limits: Limit) -> None:
    """From here on `stream` keeps to all of `limits`, and to no earlier ones."""
    stream.pace_in = Pace(*(limit.inward for limit in limits))
    stream.pace_out = Pace(*(limit.outward for limit in limits))
