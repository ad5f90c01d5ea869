"""Streams over QUIC keep the contract, on loopback; and what is QUIC's own about them."""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from headrace.transport.identity import Identity
from headrace.transport.quic import unavailable

from .contract import PATIENCE, Connect, StreamContract, pool, receive
from .memory import Faults

if reason := unavailable():
    pytest.skip(reason, allow_module_level=True)

from headrace.errors import ConnectionLostError
from headrace.transport.quic.client import QuicConnection
from headrace.transport.quic.lanes import FIRST_TO_CLIENT, LARGEST_CLIENT_WINDOW, MIB
from headrace.transport.quic.listener import QuicListener
from headrace.transport.quic.stream import QuicStream

from .quic_hosts import free_udp_port

__all__ = ["pool"]  # a fixture


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return Identity.load_or_create(tmp_path_factory.mktemp("home"))


@dataclass
class Pair:
    """A host and a client's connection to it. `streams` makes two ends of a stream, the client's first."""

    listener: QuicListener
    connection: QuicConnection
    offered: queue.SimpleQueue[QuicStream] = field(default_factory=queue.SimpleQueue)

    def streams(self) -> tuple[QuicStream, QuicStream]:
        near = self.connection.open_stream()
        near.set_timeout(PATIENCE)
        near.send(b"?")  # a stream begins with its first bytes
        far = self.offered.get(timeout=PATIENCE)
        far.set_timeout(PATIENCE)
        assert receive(far, 1) == b"?"
        return near, far


@contextlib.contextmanager
def pair(identity: Identity, home: Path) -> Iterator[Pair]:
    offered: queue.SimpleQueue[QuicStream] = queue.SimpleQueue()
    port = free_udp_port()
    listener = QuicListener(
        port=port, bind="127.0.0.1", identity=identity, on_stream=lambda stream, address: offered.put(stream)
    )
    try:
        connection = QuicConnection(("127.0.0.1", port), pin=identity.fingerprint, certificates=home)
        try:
            yield Pair(listener, connection, offered)
        finally:
            connection.abort()
            connection.close()
    finally:
        listener.stop()


@pytest.fixture(scope="module")
def both(identity: Identity, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """One connection for many tests: each has streams of its own."""
    with pair(identity, tmp_path_factory.mktemp("certificates")) as connected:
        yield connected


def harm(stream: QuicStream, faults: Faults, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `stream` sends from here on arrives in pieces, or is cut."""
    push = stream._push
    left = faults.cut_after

    def faulty(data: bytes) -> None:
        nonlocal left
        piece = faults.piece or len(data)
        for start in range(0, len(data), piece):
            part = data[start : start + piece]
            if left is not None and len(part) > left:
                push(part[:left])
                stream.abort()
                raise ConnectionLostError("cut, as the test wants it")
            left = None if left is None else left - len(part)
            push(part)

    monkeypatch.setattr(stream, "_push", faulty)


class TestFromTheClient(StreamContract):
    @pytest.fixture
    def connect(self, both: Pair, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connect]:
        with contextlib.ExitStack() as stack:

            def make(faults: Faults | None = None) -> tuple[QuicStream, QuicStream]:
                near, far = both.streams()
                for stream in (near, far):
                    stack.callback(stream.close)
                    stack.callback(stream.abort)
                if faults:
                    harm(near, faults, monkeypatch)
                return near, far

            yield make


class TestFromTheHost(StreamContract):
    @pytest.fixture
    def connect(self, both: Pair, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connect]:
        with contextlib.ExitStack() as stack:

            def make(faults: Faults | None = None) -> tuple[QuicStream, QuicStream]:
                far, near = both.streams()
                for stream in (near, far):
                    stack.callback(stream.close)
                    stack.callback(stream.abort)
                if faults:
                    harm(near, faults, monkeypatch)
                return near, far

            yield make
