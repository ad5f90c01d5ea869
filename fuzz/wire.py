"""A connection whose other end says exactly the bytes of one input, and what it is answered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from headrace.errors import ConnectionLostError
from headrace.transport.framed import MessageStream
from headrace.transport.pacing import Pace

MOST_SENT: Final = 64 * 1024 * 1024


class SaidStream:
    """Implements transport.base.Stream: reads end with the input, in the order that they would over a network.

    sent: what this side said. piece: bytes that arrive at once, at most.
    """

    transport = "memory"

    def __init__(self, said: bytes, piece: int = 1 << 20) -> None:
        self.sent = bytearray()
        self.bytes_in = self.bytes_out = 0
        self.pace_in: Pace | None = None
        self.pace_out: Pace | None = None
        self.patient: Callable[[bool], bool] | None = None
        self._said = memoryview(said)
        self._piece = piece

    def send(self, *parts: bytes | memoryview) -> None:
        for part in parts:
            self.sent += part
        if len(self.sent) > MOST_SENT:
            raise ConnectionLostError("nobody reads that much")

    def recv_into(self, into: memoryview) -> int:
        count = min(len(into), len(self._said), self._piece)
        into[:count] = self._said[:count]
        self._said = self._said[count:]
        self.bytes_in += count
        return count

    def set_timeout(self, seconds: float | None) -> None: ...

    def set_deadline(self, seconds: float | None) -> None: ...

    def rtt(self) -> float | None:
        return None

    def losses(self) -> tuple[int, int] | None:
        return None

    def close(self) -> None: ...

    def abort(self) -> None: ...


def session(said: bytes) -> tuple[MessageStream, SaidStream]:
    """After the handshake."""
    stream = SaidStream(said)
    messages = MessageStream(stream)
    messages.enter_session()
    return messages, stream
