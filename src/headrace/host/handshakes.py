"""Connections that are not in yet: few of them for each address, so that nobody keeps others out by dialling."""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Final, Protocol

PER_ADDRESS: Final = 64  # a client opens one lane after the other; many clients behind one address are in within this
ALL: Final = 192  # under the fewest connections that a share takes with 1,024 descriptors
SAY_EVERY: Final = 60.0  # seconds between two warnings


class Abortable(Protocol):
    """A connection that another thread can end."""

    def abort(self) -> None:
        """Whoever waits on it fails at once."""


class Handshakes:
    """Those under way, by address. Thread-safe.

    Where there are too many, the oldest one of that address (or of all) ends. Refusing the newest instead would let
    whoever opens connections and says nothing keep out everybody who comes later.
    """

    def __init__(
        self,
        warn: Callable[[str], None],
        *,
        per_address: int = PER_ADDRESS,
        in_all: int = ALL,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """warn: is told, at most once a minute, how many were ended and whose."""
        self._warn = warn
        self._per_address, self._in_all = per_address, in_all
        self._clock = clock
        self._lock = threading.Lock()
        self._pending: OrderedDict[Abortable, str] = OrderedDict()
        self._by_address: Counter[str] = Counter()
        self._warned: float | None = None
        self._since = 0
        self.ended = 0  # so far

    def begin(self, connection: Abortable, address: str) -> None:
        """`connection` shakes hands from now on, until `over`."""
        with self._lock:
            oldest = self._too_many(address)
            if oldest is not None:
                self._forget(oldest)
                self.ended += 1
                self._since += 1
                self._say(address)
            self._pending[connection] = address
            self._by_address[address] += 1
        if oldest is not None:
            oldest.abort()

    def over(self, connection: Abortable) -> None:
        """It is in, or it ended. May be called again."""
        with self._lock:
            self._forget(connection)

    def __len__(self) -> int:
        return len(self._pending)

    def _too_many(self, address: str) -> Abortable | None:
        """The one that has to go before another from `address` may come."""
        if self._by_address[address] >= self._per_address:
            return next(one for one, whose in self._pending.items() if whose == address)
        return next(iter(self._pending)) if len(self._pending) >= self._in_all else None

    def _forget(self, connection: Abortable) -> None:
        address = self._pending.pop(connection, None)
        if address is not None:
            self._by_address[address] -= 1
            if not self._by_address[address]:
                del self._by_address[address]

    def _say(self, address: str) -> None:
        now = self._clock()
        if self._warned is None or now - self._warned >= SAY_EVERY:
            self._warned = now
            self._warn(
                f"{self._since} connections that said too little were ended, the latest because of {address}: "
                "more were open than one peer needs"
            )
            self._since = 0
