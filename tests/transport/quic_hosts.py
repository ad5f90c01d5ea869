"""What tests of QUIC share: a host that answers by rule, and clients of it."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from headrace.errors import ConnectionLostError
from headrace.transport.identity import Identity
from headrace.transport.quic.client import QuicConnection
from headrace.transport.quic.listener import QuicListener
from headrace.transport.quic.stream import QuicStream

from .contract import PATIENCE


def free_udp_port() -> int:
    """A port that was free for UDP, on all addresses, a moment ago."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.bind(("::", 0))
        port: int = sock.getsockname()[1]
        return port


class Host:
    """A QUIC host. `take` gives the streams that clients open, one after the other."""

    def __init__(self, identity: Identity, *, bind: str = "127.0.0.1", port: int = 0, **more: Any) -> None:
        self.identity = identity
        self.port = port or free_udp_port()
        self.offered: queue.SimpleQueue[QuicStream] = queue.SimpleQueue()
        self.listener = QuicListener(port=self.port, bind=bind, identity=identity, on_stream=self._offer, **more)

    def _offer(self, stream: QuicStream, address: str) -> None:
        stream.set_timeout(PATIENCE)
        self.offered.put(stream)

    def take(self) -> QuicStream:
        return self.offered.get(timeout=PATIENCE)

    @contextlib.contextmanager
    def client(self, home: Path, *, host: str = "127.0.0.1", port: int = 0, **more: Any) -> Iterator[QuicConnection]:
        more.setdefault("pin", self.identity.fingerprint)
        connection = QuicConnection((host, port or self.port), certificates=home, **more)
        try:
            yield connection
        finally:
            connection.abort()
            connection.close()

    def pair(self, connection: QuicConnection) -> tuple[QuicStream, QuicStream]:
        """The two ends of a new stream, the client's first."""
        near = connection.open_stream()
        near.set_timeout(PATIENCE)
        near.send(b"?")  # a stream begins with its first bytes
        far = self.take()
        assert far.recv_into(memoryview(bytearray(1))) == 1
        return near, far


@contextlib.contextmanager
def hosting(identity: Identity, **more: Any) -> Iterator[Host]:
    host = Host(identity, **more)
    try:
        yield host
    finally:
        host.listener.stop()


def in_background(run: Callable[[], None]) -> threading.Thread:
    """A thread that may lose its connection at any time."""

    def guarded() -> None:
        with contextlib.suppress(ConnectionLostError):
            run()

    thread = threading.Thread(target=guarded, daemon=True)
    thread.start()
    return thread


def echo(stream: QuicStream) -> None:
    """Sends back what comes, until the stream ends."""
    buffer = memoryview(bytearray(64 * 1024))
    with contextlib.suppress(ConnectionLostError):
        while count := stream.recv_into(buffer):
            stream.send(buffer[:count])
    stream.close()
