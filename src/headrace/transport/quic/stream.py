"""The blocking face of one QUIC stream. See base.Stream."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from headrace.errors import ConnectionLostError
from headrace.transport.pacing import Pace
from headrace.transport.quic.lanes import BLOCK, KIB, MIB, WORD, Inflow

if TYPE_CHECKING:
    from headrace.transport.quic.link import Link

STALL_TIMEOUT: Final = 30.0
RING: Final = MIB  # bytes that wait in aiopquic to be put into packets, for each stream
SPARE: Final = 4 * KIB  # of the ring, kept free for grants: these never wait for bytes
ENOUGH: Final = 64 * KIB  # a block that is not worth waiting for a larger one
NAP_LEAST: Final = 0.0002  # seconds
NAP_MOST: Final = 0.005
BULK: Final = 8  # priorities: the lower goes first; even ones take turns (RFC 9218's incremental)
URGENT: Final = 2


class QuicStream:
    """One QUIC stream as a Stream. The endpoint's lock guards everything that its thread touches."""

    transport = "quic"

    def __init__(self, link: Link, number: int, context: int, *, inflow: Inflow, credit: int) -> None:
        """number: QUIC's stream id. context: aiopquic's state of it. credit: bytes to send before any grant."""
        self.number = number
        self.context = context
        self.pace_in: Pace | None = None
        self.pace_out: Pace | None = None
        self.patient: Callable[[bool], bool] | None = None
        self.bytes_in = 0  # blocks and their words; not QUIC's own, which is told for the whole connection
        self.bytes_out = 0
        self.sent_any = False  # whether the peer can know this stream
        self.closed = False
        self.left, self.left_at = -1, 0.0  # bytes that had left the ring when somebody looked after its close, and when
        self.released = False  # QUIC is done with it; nothing may be sent
        self._link = link
        self._lock = link.endpoint.lock
        self._readable = threading.Condition(self._lock)
        self._writable = threading.Condition(self._lock)
        self._inflow = inflow
        self._credit = credit
        self._ended = False  # the peer's side, in order
        self._refused = False  # the peer takes no more
        self._aborted = False
        self._failure = ""
        self._timeout: float | None = STALL_TIMEOUT
        self._deadline: float | None = None
        self._granted_at = time.monotonic()
        self._then = self._granted_at  # when the ring was last looked at, and how much had left it
        self._sent_then = 0

    # ---- what arrives; called by the endpoint's thread, with the lock --------------------------------------------

    def arrived(self, data: memoryview | None, *, last: bool) -> None:
        """Raises ProtocolError where the peer breaks the rules of lanes."""
        inflow = self._inflow
        if data is not None:
            inflow.feed(data)
            self.bytes_in = inflow.wire
            if granted := inflow.collect():
                self._credit += granted
                self._writable.notify_all()
            if self.closed or self._aborted:
                inflow.drop()
        if last:
            if inflow.between_blocks:
                self._ended = True
            else:
                self.fail("the connection was cut off")
        self._readable.notify_all()

    def refused(self) -> None:
        """The peer asked us to stop sending."""
        self._refused = True
        self._writable.notify_all()

    def drained(self) -> None:
        """Bytes left the ring."""
        self._writable.notify_all()

    def fail(self, reason: str) -> None:
        """The connection is gone, or the peer reset the stream. What arrived before may still be read."""
        self._failure = self._failure or reason
        self._readable.notify_all()
        self._writable.notify_all()

    # ---- sending -------------------------------------------------------------------------------------------------

    def send(self, *parts: bytes | memoryview) -> None:
        waiting = deque(memoryview(part).cast("B") for part in parts if len(part))
        left = sum(map(len, waiting))
        while left:
            count = self._room(min(left, BLOCK))
            if self.pace_out:
                count = self.pace_out.grant(count)
            self._put(_cut(waiting, count), count)
            left -= count

    def _room(self, wanted: int) -> int:
        """Waits until the peer's credit and the ring take some of `wanted` bytes; how many. Only the owner sends, so
        the answer stays true."""
        since, seen = time.monotonic(), (-1, -1)
        while True:
            nap = 0.0
            with self._lock:
                self._check_sending()
                used, sent = self._link.ring(self)
                room = min(RING - SPARE - WORD.size - used, self._credit)
                if room >= min(wanted, ENOUGH) or 0 < room == self._credit:
                    return min(wanted, room)
                if seen != (sent, self._credit):
                    since, seen = time.monotonic(), (sent, self._credit)
                patience = self._patience(since)
                if patience > 0 and self._credit <= 0:
                    self._writable.wait(patience)
                elif patience > 0 and self._link.still_holds(self, used):
                    self._writable.wait(patience)
                    nap = self._half_a_ring()
            if patience <= 0:
                self._stalled(sending=True)
                since = time.monotonic()
            elif nap:
                # The ring has begun to empty. Who went on now would be woken again for each packet that leaves.
                time.sleep(nap)

    def _half_a_ring(self) -> float:
        """Seconds until the ring is half empty, at the rate at which it emptied so far."""
        used, sent = self._link.ring(self)
        now = time.monotonic()
        rate = (sent - self._sent_then) / max(now - self._then, 1e-6)
        self._then, self._sent_then = now, sent
        return min(max((used - RING // 2) / max(rate, 1.0), NAP_LEAST), NAP_MOST)

    def _put(self, pieces: list[memoryview], count: int) -> None:
        block = b"".join([WORD.pack(count), *pieces])
        self._push(block)
        with self._lock:
            self._credit -= count
        self.bytes_out += len(block)

    def _push(self, data: bytes) -> None:
        since = time.monotonic()
        while True:
            with self._lock:
                self._check_sending()
                if self._link.push(self, data):
                    self.sent_any = True
                    return
                patience = self._patience(since)
            if patience <= 0:
                self._stalled(sending=True)
                since = time.monotonic()
            # Thousands of commands wait for picoquic's thread. It does not say when it has taken them.
            time.sleep(min(NAP_MOST, max(patience, NAP_LEAST)))

    def _check_sending(self) -> None:
        if self._aborted:
            raise ConnectionLostError("the connection was aborted")
        if self.closed:
            raise ConnectionLostError("this side has closed the connection")
        if self._failure:
            raise ConnectionLostError(self._failure)
        if self._refused or self.released:
            raise ConnectionLostError("the other side has closed the connection")

    # ---- receiving -----------------------------------------------------------------------------------------------

    def recv_into(self, into: memoryview) -> int:
        if not into:
            return 0
        if self.pace_in:
            into = into[: self.pace_in.portion(len(into))]
        since = time.monotonic()
        while True:
            with self._lock:
                if self._aborted:
                    raise ConnectionLostError("the connection was aborted")
                if self.closed:
                    raise ConnectionLostError("this side has closed the connection")
                filled = self._inflow.take(into)
                self._grant()
                if filled:
                    break
                if self._ended:
                    return 0
                if self._failure:
                    raise ConnectionLostError(self._failure)
                patience = self._patience(since)
                if patience > 0:
                    self._readable.wait(patience)
                    continue
            self._stalled(sending=False)
            since = time.monotonic()
        if self.pace_in:
            self.pace_in.pay(filled)
        return filled

    def _grant(self) -> None:
        """Grants what is due."""
        count = self._inflow.due()
        if not count or self._ended or self._failure or self.released:
            return
        if self._link.owes(self):  # a peer that takes nothing gets no further grants, and the host keeps none for it
            return
        self._link.push_word(self, self._inflow.grant(count))
        now = time.monotonic()
        rtt = self._link.rtt()
        # Half a window within two round trips: it is the window that holds the sender up.
        if rtt and now - self._granted_at < 2 * rtt:
            self._inflow.grow()
        self._granted_at = now

    # ---- waiting -------------------------------------------------------------------------------------------------

    def _patience(self, since: float) -> float:
        """Seconds to wait on, for a wait without progress since then; not positive: they are over."""
        now = time.monotonic()
        left = threading.TIMEOUT_MAX if self._timeout is None else since + self._timeout - now
        return left if self._deadline is None else min(left, self._deadline - now)

    def _stalled(self, *, sending: bool) -> None:
        """A timeout ran out; ConnectionLostError unless somebody said that waiting goes on."""
        if self._deadline is not None:
            raise ConnectionLostError("the other side took too long")
        if self.patient is None or not self.patient(sending):
            what = "the other side took nothing" if sending else "nothing arrived"
            raise ConnectionLostError(f"{what} for {self._timeout:.0f} s")

    def set_timeout(self, seconds: float | None) -> None:
        self._timeout = seconds

    def set_deadline(self, seconds: float | None) -> None:
        self._deadline = None if seconds is None else time.monotonic() + seconds

    def rtt(self) -> float | None:
        with self._lock:
            return self._link.rtt()

    def losses(self) -> None:
        """picoquic keeps that to itself."""

    # ---- the end -------------------------------------------------------------------------------------------------

    def hurry(self) -> None:
        """What is sent here goes before what other streams of the connection send: listings and small reads."""
        with self._lock:
            self._link.prioritise(self, URGENT)

    def close(self) -> None:
        """Returns at once; what was sent and the end travel on until the connection closes."""
        with self._lock:
            if self.closed:
                return
            self.closed = True
            self._inflow.drop()
            if not self._aborted:
                self._link.finish(self, unread=not self._ended)

    def abort(self) -> None:
        with self._lock:
            if self._aborted:
                return
            self._aborted = True
            self._inflow.drop()
            if not self.closed:
                self._link.reset(self)
            self._readable.notify_all()
            self._writable.notify_all()


def _cut(waiting: deque[memoryview], count: int) -> list[memoryview]:
    """The first `count` bytes of the parts, taken off them."""
    pieces = []
    while count:
        part = waiting[0]
        pieces.append(part[:count])
        count -= len(pieces[-1])
        if len(pieces[-1]) == len(part):
            waiting.popleft()
        else:
            waiting[0] = part[len(pieces[-1]) :]
    return pieces
