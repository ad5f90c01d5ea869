"""A Stream in memory, whose timing and faults a test decides. It keeps the contract of transport.base."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from headrace.errors import ConnectionLostError
from headrace.transport.pacing import Pace

CAPACITY: Final = 64 * 1024


@dataclass
class Faults:
    """What befalls the bytes that one side sends.

    piece: at most so many arrive at once. cut_after: the connection is gone, both ways, once so many were sent.
    """

    piece: int | None = None
    cut_after: int | None = None


class _Way:
    """One direction. All of it is guarded by the connection's condition."""

    def __init__(self, faults: Faults, capacity: int) -> None:
        self.faults = faults
        self.capacity = capacity
        self.arrived = bytearray()
        self.held = bytearray()
        self.holding = False
        self.ended = False  # in order, by the sender
        self.gone = False  # nobody reads any more


class MemoryStream:
    """One end. See `memory_pair`."""

    transport = "memory"

    def __init__(self, changed: threading.Condition, outward: _Way, inward: _Way) -> None:
        self.bytes_in = 0
        self.bytes_out = 0
        self.pace_in: Pace | None = None
        self.pace_out: Pace | None = None
        self.patient: Callable[[bool], bool] | None = None
        self._changed = changed
        self._out = outward
        self._in = inward
        self._timeout: float | None = 10.0
        self._aborted = False
        self._closed = False
        self._cut = False
        self.peer: MemoryStream

    # ---- base.Stream ---------------------------------------------------------------------------------------------

    def send(self, *parts: bytes | memoryview) -> None:
        for part in parts:
            view = memoryview(part)
            while view:
                view = view[self._send_some(view) :]

    def _send_some(self, view: memoryview) -> int:
        way = self._out
        with self._changed:
            self._wait(lambda: self._broken or way.gone or self._room(), "the other side took nothing")
            if self._broken or way.gone:
                raise ConnectionLostError("the connection broke while sending")
            left = len(view) if way.faults.cut_after is None else way.faults.cut_after - self.bytes_out
            count = min(len(view), self._room(), left)
            (way.held if way.holding else way.arrived).extend(view[:count])
            self.bytes_out += count
            self._changed.notify_all()
            if count == left and way.faults.cut_after is not None:
                self._cut_both()
                if count < len(view):
                    raise ConnectionLostError("the connection broke while sending")
            return count

    def recv_into(self, into: memoryview) -> int:
        way = self._in
        with self._changed:
            self._wait(lambda: self._aborted or self._cut or way.arrived or way.ended, "nothing arrived")
            if self._aborted:
                raise ConnectionLostError("the stream was aborted")
            count = min(len(into), len(way.arrived), way.faults.piece or len(into))
            if not count:
                if self._cut:
                    raise ConnectionLostError("the connection was cut off")
                return 0
            into[:count] = way.arrived[:count]
            del way.arrived[:count]
            self.bytes_in += count
            self._changed.notify_all()
            return count

    def set_timeout(self, seconds: float | None) -> None:
        self._timeout = seconds

    def set_deadline(self, seconds: float | None) -> None:
        """Nothing here takes that long."""

    def losses(self) -> None:
        """Nothing is ever sent again."""

    def rtt(self) -> float | None:
        return None

    def close(self) -> None:
        with self._changed:
            if not self._closed and not self._broken:
                self._out.ended = True
            self._closed = True
            self._in.gone = True
            self._changed.notify_all()

    def abort(self) -> None:
        with self._changed:
            self._aborted = True
            self._cut_both()

    # ---- for tests -------------------------------------------------------------------------------------------------

    def hold(self) -> None:
        """What is sent from now on stays on its way until `release`."""
        with self._changed:
            self._out.holding = True

    def release(self) -> None:
        with self._changed:
            self._out.holding = False
            self._out.arrived += self._out.held
            self._out.held.clear()
            self._changed.notify_all()

    def cut(self) -> None:
        """The network is gone. What arrived before can still be read."""
        with self._changed:
            self._cut_both()

    def sent(self) -> bytes:
        """What lies at the other end, unread."""
        with self._changed:
            return bytes(self._out.arrived)

    @property
    def _broken(self) -> bool:
        return self._aborted or self._cut

    def _room(self) -> int:
        return self._out.capacity - len(self._out.arrived) - len(self._out.held)

    def _cut_both(self) -> None:
        for end in (self, self.peer):
            end._cut = end._cut or not end._in.ended
        self._changed.notify_all()

    def _wait(self, ready: Callable[[], object], what: str) -> None:
        if not self._changed.wait_for(lambda: bool(ready()), self._timeout):
            raise ConnectionLostError(f"{what} for {self._timeout} s")


def memory_pair(
    faults: Faults | None = None, back: Faults | None = None, *, capacity: int = CAPACITY
) -> tuple[MemoryStream, MemoryStream]:
    """Two connected ends. faults: of what the first one sends; back: of what the second one does.

    capacity: bytes that may lie unread in each direction before the sender has to wait.
    """
    changed = threading.Condition()
    there, here = _Way(faults or Faults(), capacity), _Way(back or Faults(), capacity)
    near, far = MemoryStream(changed, there, here), MemoryStream(changed, here, there)
    near.peer, far.peer = far, near
    return near, far
