"""A host that is gone for a while: how long a transfer bears it, and what it says."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

from headrace.errors import ConnectionLostError, EndedByHostError
from headrace.observe.metrics import OUTAGES

log = logging.getLogger("headrace.get")

FIRST_PAUSE: Final = 0.1  # seconds before the first new attempt; doubles
LONGEST_PAUSE: Final = 2.0
SAY_EVERY: Final = 10.0  # seconds between two warnings

Event = dict[str, Any]
T = TypeVar("T")


class Outage:
    """Thread-safe. It begins with the first failure and is over when bytes come again.

    tell: is given `warning` events. stop: ends every wait. limit: seconds without a byte before a transfer gives up; 0
    gives up at once.
    """

    def __init__(
        self,
        tell: Callable[[Event], None],
        stop: threading.Event,
        *,
        limit: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tell = tell
        self._stop = stop
        self._limit = limit
        self._clock = clock
        self._lock = threading.Lock()
        self._began: float | None = None
        self._said = -SAY_EVERY
        self.count = 0  # outages so far

    @property
    def lasts(self) -> bool:
        """Whether one is under way."""
        return self._began is not None

    def ends_it(self, why: ConnectionLostError) -> bool:
        """Whether such a failure is not borne at all."""
        return not self._limit or isinstance(why, EndedByHostError)

    def again(self, why: ConnectionLostError, attempt: int) -> None:
        """Blocks until it is time for another attempt, the `attempt`th after a success. Raises `why` when the host was
        gone for too long or ended it on purpose, or somebody wants to stop."""
        if self.ends_it(why):
            raise why
        now = self._clock()
        with self._lock:
            if self._began is None:
                self._began = now
                self.count += 1
                OUTAGES.add()
                self._say(now, f"the connection broke ({why.message}); trying again for {self._limit:.0f} s")
            left = self._began + self._limit - now
        pause = min(FIRST_PAUSE * 2 ** min(attempt, 10), LONGEST_PAUSE)
        if left <= 0 or self._stop.wait(min(pause, left)):
            raise why

    def over(self) -> None:
        """Bytes came."""
        now = self._clock()
        with self._lock:
            if self._began is None:
                return
            lasted, self._began = now - self._began, None
            if now == self._said or lasted >= 1.0:
                self._say(now, f"the host is back after {lasted:.1f} s; going on", always=True)
            log.info("connected again after %.1f s", lasted)

    def _say(self, now: float, message: str, *, always: bool = False) -> None:
        if always or now - self._said >= SAY_EVERY:
            self._said = now
            self._tell({"event": "warning", "path": "", "message": message})
        else:
            log.debug("%s", message)

    def bear(self, ask: Callable[[], T]) -> T:
        """The answer of `ask`, which is called again each time the connection is lost on it. Raises as `again`."""
        attempt = 0
        while True:
            try:
                answer = ask()
            except ConnectionLostError as why:
                self.again(why, attempt)
                attempt += 1
            else:
                self.over()
                return answer
