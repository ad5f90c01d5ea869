"""Echo requests through a `netlab`, to see how long its queue is while something else goes through it.

The far kernel answers, and the near one notes when an answer arrived: a busy machine does not pass for a long queue.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from types import TracebackType
from typing import Final, Self

from headrace.bench.netlab import Lab

EVERY: Final = 0.05  # seconds: 20 a second are nothing to the link
LAST: Final = 2.0  # seconds for the last answers
_REQUEST, _REPLY = 8, 0  # RFC 792
_HEAD: Final = struct.Struct("!BBHHHQ")  # type, code, checksum, identifier, sequence number; when it was sent
_TIMESTAMPNS: Final = 35  # SO_TIMESTAMPNS and SCM_TIMESTAMPNS, asm-generic/socket.h
_TIMESPEC: Final = struct.Struct("=qq")
_IP_LENGTH_AT: Final = 0  # in an IPv4 header: its own length, in words of 4 bytes, in the lower half


class Ping:
    """Sends them from a to b, from entering the block to leaving it."""

    def __init__(self, lab: Lab, every: float = EVERY) -> None:
        """every: seconds."""
        self._to = lab.b.address
        self._every = every
        with lab.a.inside():
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        self._socket.setsockopt(socket.SOL_SOCKET, _TIMESTAMPNS, 1)
        self._id = os.getpid() & 0xFFFF
        self._over = threading.Event()
        self._answers: list[tuple[float, float]] = []  # when it was sent, by time.monotonic; seconds
        self.sent = 0
        self._thread = threading.Thread(target=self._run, name="bench-ping", daemon=True)

    def between(self, start: float, end: float) -> list[float]:
        """Round trips in seconds of those that were sent in between, by time.monotonic, and answered by now."""
        return [seconds for sent, seconds in list(self._answers) if start <= sent < end]

    def _run(self) -> None:
        until = None
        following = time.monotonic()
        while until is None or time.monotonic() < until:
            now = time.monotonic()
            if self._over.is_set():
                until = until or now + LAST
                if len(self._answers) == self.sent:
                    return
                following = now + self._every
            elif now >= following:
                self._send()
                following += self._every
            self._socket.settimeout(max(0.001, following - time.monotonic()))
            try:
                data, extra, _, _ = self._socket.recvmsg(2048, 64)
            except TimeoutError:
                continue
            self._note(data, extra)

    def _send(self) -> None:
        self.sent += 1
        packet = request(self._id, self.sent & 0xFFFF, time.time_ns())
        self._socket.sendto(packet, (self._to, 0))

    def _note(self, data: bytes, extra: list[tuple[int, int, bytes]]) -> None:
        sent = sent_at(data, self._id)
        if sent is None:
            return
        for level, kind, value in extra:
            if (level, kind) == (socket.SOL_SOCKET, _TIMESTAMPNS):
                seconds, nanoseconds = _TIMESPEC.unpack(value[: _TIMESPEC.size])
                took = (seconds * 10**9 + nanoseconds - sent) / 1e9
                self._answers.append((time.monotonic() - (time.time_ns() - sent) / 1e9, took))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, why: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        self._socket.close()


def request(identifier: int, number: int, now: int) -> bytes:
    """An ICMP echo request that says when it was sent, in nanoseconds since 1970."""
    blank = _HEAD.pack(_REQUEST, 0, 0, identifier, number, now)
    return _HEAD.pack(_REQUEST, 0, checksum(blank), identifier, number, now)


def sent_at(packet: bytes, identifier: int) -> int | None:
    """When the request was sent that this IPv4 packet answers; None where it is something else."""
    header = (packet[_IP_LENGTH_AT] & 0xF) * 4 if packet else 0
    if len(packet) < header + _HEAD.size:
        return None
    kind, _, _, whose, _, sent = map(int, _HEAD.unpack_from(packet, header))
    return sent if (kind, whose) == (_REPLY, identifier) else None


def checksum(data: bytes) -> int:
    """RFC 1071. data: of even length."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
