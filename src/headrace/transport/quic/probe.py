"""Does UDP pass, and does a QUIC host listen there? One datagram, one round trip, and only the standard library.

A QUIC host answers a long-header packet of a version that it does not know with Version Negotiation (RFC 9000,
section 6). It keeps no state for that.
"""

from __future__ import annotations

import errno
import os
import selectors
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

OPEN: Final = "open"  # a QUIC host answered
REJECTED: Final = "rejected"  # the network or the host said that nobody is there
SILENT: Final = "silent"  # nothing came back

SIZE: Final = 1200  # bytes; hosts ignore smaller ones (RFC 9000, section 14.1)
RESERVED_VERSION: Final = 0x1A2A3A4A  # 0x?a?a?a?a forces version negotiation (section 15)
RESEND: Final = 0.25  # seconds to the second datagram; then twice as long each time
_ID_LENGTH: Final = 8
_MAX_ID: Final = 20  # bytes of a connection id in QUIC's version 1
_VERSION_1: Final = b"\0\0\0\1"
_MAX_DATAGRAM: Final = 2048
_UNREACHABLE: Final = (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EACCES, errno.EPERM)


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """outcome: `open`, `rejected` or `silent`. rtt: seconds, when open. reason: one phrase, for people."""

    outcome: str
    rtt: float | None
    reason: str


class Probe:
    """One address being asked. The caller waits until `fileno` is readable or `due` passes, then calls `step`."""

    def __init__(
        self,
        address: tuple[str, int],
        *,
        clock: Callable[[], float] = time.monotonic,
        entropy: Callable[[int], bytes] = os.urandom,
    ) -> None:
        """address: an IP literal, or a name whose first address is taken. Never raises: see `result`."""
        self._clock = clock
        self._ours, self._theirs = entropy(_ID_LENGTH), entropy(_ID_LENGTH)
        self._packet = _packet(self._theirs, self._ours, entropy)
        self.started = clock()
        self._gap = RESEND
        self._sent: list[float] = []
        self._sock: socket.socket | None = None
        self.result: ProbeResult | None = None
        self.due = self.started  # when `step` wants to be called even if nothing came
        try:
            family, kind, proto, _, where = socket.getaddrinfo(*address, type=socket.SOCK_DGRAM)[0]
            self._sock = socket.socket(family, kind, proto)
            self._sock.setblocking(False)
            self._sock.connect(where)
        except (OSError, OverflowError, UnicodeError) as why:
            self._failed(why)

    def fileno(self) -> int:
        """-1 once there is a result."""
        return self._sock.fileno() if self._sock else -1

    def step(self) -> ProbeResult | None:
        """Sends what is due and looks at what came. Does not block. The result, once there is one."""
        try:
            while self._sock and not self.result and self._look(self._sock):
                pass
            if self._sock and not self.result and self._clock() >= self.due:
                self._sock.send(self._packet)
                self._sent.append(self._clock())
                self.due = self._sent[-1] + self._gap
                self._gap *= 2
        except BlockingIOError:
            self.due = self._clock() + RESEND
        except OSError as why:
            self._failed(why)
        return self.result

    def _look(self, sock: socket.socket) -> bool:
        """Whether a datagram was there. A connected socket gives those of its peer only, and ICMP's answers."""
        try:
            datagram = sock.recv(_MAX_DATAGRAM)
        except BlockingIOError:
            return False
        if is_answer(datagram, ours=self._ours, theirs=self._theirs):
            # Which of the datagrams is answered cannot be told; the last one gives the lower bound.
            self._end(ProbeResult(OPEN, max(self._clock() - self._sent[-1], 1e-6), "a QUIC host answered"))
        return True

    def _failed(self, why: Exception) -> None:
        number = getattr(why, "errno", None)
        reason = getattr(why, "strerror", None) or str(why)
        if isinstance(why, socket.gaierror) or number in _UNREACHABLE:
            self._end(ProbeResult(REJECTED, None, reason))
        else:
            self._end(ProbeResult(SILENT, None, reason))

    def _end(self, result: ProbeResult) -> None:
        self.result = result
        self.close()

    def close(self) -> None:
        if self._sock:
            self._sock.close()
            self._sock = None


def probe(
    address: tuple[str, int], *, timeout: float = 2.0, clock: Callable[[], float] = time.monotonic
) -> ProbeResult:
    """Asks once, and again while nothing comes. Blocks for `timeout` seconds at most. Never raises for the network."""
    asking = Probe(address, clock=clock)
    end = clock() + timeout
    try:
        while asking.step() is None:
            left = min(end, asking.due) - clock()
            if clock() >= end:
                return ProbeResult(SILENT, None, f"no answer for {timeout:.1f} s")
            with selectors.DefaultSelector() as selector:  # select takes no descriptor above 1023
                selector.register(asking, selectors.EVENT_READ)
                selector.select(max(left, 0))
        assert asking.result is not None
        return asking.result
    finally:
        asking.close()


def _packet(theirs: bytes, ours: bytes, entropy: Callable[[int], bytes]) -> bytes:
    head = struct.pack("!BI", 0xC0, RESERVED_VERSION)
    head += bytes([len(theirs)]) + theirs + bytes([len(ours)]) + ours
    return head + entropy(SIZE - len(head))


def answer_to(datagram: bytes) -> bytes | None:
    """What a QUIC host says to `datagram` if that is a probe: Version Negotiation. None: it is something else.

    For the moment before the QUIC library is loaded. The answer is smaller than the question, so it amplifies nothing.
    """
    if len(datagram) < SIZE or not datagram[0] & 0x80 or datagram[1:5] in (b"\0\0\0\0", _VERSION_1):
        return None
    end_theirs = 6 + datagram[5]
    end_ours = end_theirs + 1 + datagram[min(end_theirs, SIZE - 1)]
    if datagram[5] > _MAX_ID or end_ours > end_theirs + 1 + _MAX_ID:
        return None
    theirs, ours = datagram[5:end_theirs], datagram[end_theirs:end_ours]
    return bytes([0xC0]) + b"\0\0\0\0" + ours + theirs + _VERSION_1


def is_answer(datagram: bytes, *, ours: bytes, theirs: bytes) -> bool:
    """Whether it is Version Negotiation for our packet: version 0, and our two connection ids the other way round."""
    echo = bytes([len(ours)]) + ours + bytes([len(theirs)]) + theirs
    versions = len(datagram) - 5 - len(echo)
    return (
        len(datagram) >= 5
        and datagram[0] & 0x80 != 0
        and datagram[1:5] == b"\0\0\0\0"
        and datagram[5 : 5 + len(echo)] == echo
        and versions > 0
        and versions % 4 == 0
    )
