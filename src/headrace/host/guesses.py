"""Wrong codes cost: after ten the share takes no new peers for a time that doubles with every further ten."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from headrace.errors import ShareLockedError

TRIES: Final = 10
FIRST_LOCK: Final = 60.0  # seconds
LONGEST_LOCK: Final = 24 * 3600.0
MAX_ADDRESSES: Final = 1024

Clock = Callable[[], float]


@dataclass(slots=True)
class _Count:
    """open: guesses under way, which may turn out wrong; they take a try each until they are over."""

    open: int = 0
    wrong: int = 0
    locks: int = 0
    locked_until: float = 0.0

    def wait(self, now: float) -> float:
        """Seconds until a further guess may start; 0: now."""
        if self.locked_until > now:
            return self.locked_until - now
        return 0.0 if self.wrong + self.open < TRIES else 1.0

    def failed(self, now: float) -> float:
        """Counts a wrong guess. The length of the lock that this sets off, in seconds, or 0."""
        self.wrong += 1
        if self.wrong < TRIES:
            return 0.0
        length = min(FIRST_LOCK * 2.0 ** min(self.locks, 100), LONGEST_LOCK)  # no overflow, ever
        self.wrong = 0
        self.locks += 1
        self.locked_until = now + length
        return length


class GuessLimit:
    """Counts guesses for the share and for each address. Thread-safe. clock: monotonic seconds.

    A guess starts when the host is about to send its element: from then on the peer may know whether it was right.
    Whoever started it must end it, with `right` or `wrong`. Guesses that are under way count against the limit, so
    many at once are no way around it. With 40 secret bits and ten guesses before ever longer locks, an attacker who
    keeps at it for a year has tried fewer than 4,000 of 10^12 codes.
    """

    def __init__(
        self,
        clock: Clock = time.monotonic,
        on_lock: Callable[[float], None] = lambda seconds: None,
        *,
        patience: float = 0.0,
    ) -> None:
        """patience: seconds that a guess waits for others to be over, where those that are under way take all tries: a
        hundred machines may be given the right code at the same moment."""
        self._clock = clock
        self._on_lock = on_lock
        self._patience = patience
        self._lock = threading.Condition()
        self._share = _Count()
        self._addresses: OrderedDict[str, _Count] = OrderedDict()
        self.wrong_total = 0

    @property
    def lockouts(self) -> int:
        """How often the share locked itself so far."""
        return self._share.locks

    def locked_for(self, address: str) -> float:
        """Seconds until this address may guess again; 0: now, or as soon as guesses that are under way are over."""
        with self._lock:
            now, own = self._clock(), self._own(address)
            return max(0.0, self._share.locked_until - now, own.locked_until - now)

    def started(self, address: str) -> None:
        """A guess begins; blocks for `patience` at most. Raises ShareLockedError when there is no try left for it."""
        ends = time.monotonic() + self._patience
        with self._lock:
            while wait := self._wait(self._own(address)):
                left = ends - time.monotonic()
                if wait > 1.0 or left <= 0:
                    error = ShareLockedError(
                        f"too many wrong codes: this share takes no new peers for {wait:.0f} s"
                        if wait > 1.0
                        else "too many are being let in at this moment"
                    )
                    error.retry_after = wait
                    raise error
                self._lock.wait(min(left, wait))
            for count in (self._own(address), self._share):
                count.open += 1

    def right(self, address: str) -> None:
        """The guess that this address started proved to have the code; it costs nothing."""
        with self._lock:
            for count in (self._own(address), self._share):
                count.open = max(0, count.open - 1)
            self._lock.notify_all()

    def wrong(self, address: str) -> None:
        """The guess that this address started was wrong, or was not carried through."""
        now = self._clock()
        with self._lock:
            self.wrong_total += 1
            own = self._own(address)
            for count in (own, self._share):
                count.open = max(0, count.open - 1)
            own.failed(now)
            lock = self._share.failed(now)
            self._lock.notify_all()
        if lock:
            self._on_lock(lock)

    def _wait(self, own: _Count) -> float:
        now = self._clock()
        return max(self._share.wait(now), own.wait(now))

    def _own(self, address: str) -> _Count:
        own = self._addresses.setdefault(address, _Count())
        self._addresses.move_to_end(address)
        if len(self._addresses) > MAX_ADDRESSES:
            # The share's own count still holds for those that are forgotten here.
            self._addresses.popitem(last=False)
        return own
