"""Wrong codes cost: after ten the share takes no new peers for a time that doubles with every further ten."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

TRIES: Final = 10
FIRST_LOCK: Final = 60.0  # seconds
LONGEST_LOCK: Final = 24 * 3600.0
MAX_ADDRESSES: Final = 1024

Clock = Callable[[], float]


@dataclass(slots=True)
class _Count:
    wrong: int = 0
    locks: int = 0
    locked_until: float = 0.0

    def locked_for(self, now: float) -> float:
        return max(0.0, self.locked_until - now)

    def started(self, now: float) -> float:
        """Counts one guess as wrong. The length of the lock that this sets off, in seconds, or 0."""
        self.wrong += 1
        if self.wrong < TRIES:
            return 0.0
        length = min(FIRST_LOCK * 2.0**self.locks, LONGEST_LOCK)
        self.wrong = 0
        self.locks += 1
        self.locked_until = now + length
        return length


class GuessLimit:
    """Counts guesses for the share and for each address. Thread-safe. clock: monotonic seconds.

    A guess counts as wrong from the moment the host's element leaves, because from then on the peer may know whether
    it was right; proving the code takes that one back, and only that one. With 40 secret bits and ten guesses before
    ever longer locks, an attacker who keeps at it for a year has tried fewer than 4,000 of 10^12 codes.
    """

    def __init__(self, clock: Clock = time.monotonic, on_lock: Callable[[float], None] = lambda seconds: None) -> None:
        self._clock = clock
        self._on_lock = on_lock
        self._lock = threading.Lock()
        self._share = _Count()
        self._addresses: OrderedDict[str, _Count] = OrderedDict()
        self.wrong_total = 0

    def locked_for(self, address: str) -> float:
        """Seconds until this address may guess again; 0: now."""
        now = self._clock()
        with self._lock:
            own = self._addresses.get(address)
            return max(self._share.locked_for(now), own.locked_for(now) if own else 0.0)

    def guess_started(self, address: str) -> None:
        now = self._clock()
        with self._lock:
            self.wrong_total += 1
            own = self._addresses.setdefault(address, _Count())
            self._addresses.move_to_end(address)
            while len(self._addresses) > MAX_ADDRESSES:
                self._addresses.popitem(last=False)
            own.started(now)
            lock = self._share.started(now)
        if lock:
            self._on_lock(lock)

    def guess_right(self, address: str) -> None:
        """Takes back the guess that this address started."""
        with self._lock:
            self.wrong_total -= 1
            self._share.wrong = max(0, self._share.wrong - 1)
            if own := self._addresses.get(address):
                own.wrong = max(0, own.wrong - 1)
