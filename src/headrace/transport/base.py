"""The face that every transport shows. `tcp` implements it; QUIC will."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from headrace.transport.pacing import Pace


class Stream(Protocol):
    """Bytes both ways, in order. One owner thread at a time; only `abort` may be called by another.

    Every method that waits gives up after the stream's timeout without progress. Failures are ConnectionLostError.
    """

    transport: str  # "tcp" or "quic"
    bytes_in: int  # bytes that arrived on the wire, encryption included where that can be told
    bytes_out: int
    pace_in: Pace | None  # rate limits; None: none
    pace_out: Pace | None
    # Asked with True while sending, False while receiving, when a timeout has run out: whether to go on waiting.
    patient: Callable[[bool], bool] | None

    def send(self, *parts: bytes | memoryview) -> None:
        """Blocks until all parts were handed to the transport. The caller may reuse the buffers afterwards."""

    def recv_into(self, into: memoryview) -> int:
        """Blocks until there are bytes; how many were put into `into`. 0: the peer closed the stream in order."""

    def set_timeout(self, seconds: float | None) -> None:
        """The longest wait without progress; None waits for ever (a dead peer is still found by keep-alive)."""

    def set_deadline(self, seconds: float | None) -> None:
        """Receiving fails when so many seconds are over from now, however many bytes came; None: no such end."""

    def rtt(self) -> float | None:
        """The transport's current estimate of the round-trip time in seconds, where it has one."""

    def losses(self) -> tuple[int, int] | None:
        """Segments that were sent so far, and how many of them were sent again; None where nobody tells."""

    def close(self) -> None:
        """Orderly: tells the peer, then frees everything. May be called again."""

    def abort(self) -> None:
        """From any thread: makes the owner's pending and later calls fail at once. The owner still closes."""


class ClearStream(Stream, Protocol):
    """A Stream that can also carry what both sides agreed to send in the clear."""

    def send_file(self, *, head: bytes, fd: int, offset: int, count: int, buffer: memoryview) -> int:
        """Sends `head`, then `count` bytes of a file in the clear; how many there were. The rest is zeros."""

    def recv_clear_into(self, into: memoryview) -> int:
        """As `recv_into`, for what the peer sends by `send_file`."""


class Connection(Protocol):
    """One peer, any number of streams. Thread-safe."""

    transport: str  # "tcp" or "quic"
    fingerprint: bytes  # SHA-256 of the certificate that the peer proved to own
    address: tuple[str, int]

    def open_stream(self, *, bulk: bool = False) -> Stream:
        """A new stream to the same peer. bulk: it gives way to others. Raises UnreachableError, CertificateChangedError
        and, where the connection itself broke, ConnectionLostError."""

    def abort(self) -> None:
        """Aborts every stream that this connection opened, and those that it will."""

    def close(self) -> None:
        """After its streams were closed: says goodbye, where the transport has one of its own."""

    @property
    def bytes_wire(self) -> int:
        """Bytes on the wire so far, both directions, all streams."""
