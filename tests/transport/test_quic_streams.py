"""Streams over QUIC keep the contract, on loopback, in both directions."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest

from headrace.transport.identity import Identity
from headrace.transport.quic import unavailable

from .contract import Connect, StreamContract, pool
from .memory import Faults

if reason := unavailable():
    pytest.skip(reason, allow_module_level=True)

from headrace.errors import ConnectionLostError
from headrace.transport.quic.stream import QuicStream

from .quic_hosts import hosting

__all__ = ["pool"]  # a fixture

MakePair = Callable[[], tuple[QuicStream, QuicStream]]


@pytest.fixture(scope="module")
def make_pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakePair]:
    """One connection for many tests: each has streams of its own."""
    identity = Identity.load_or_create(tmp_path_factory.mktemp("home"))
    with hosting(identity) as host, host.client(tmp_path_factory.mktemp("certificates")) as connection:
        yield lambda: host.pair(connection)


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


@pytest.fixture(params=["client", "host"])
def connect(request: pytest.FixtureRequest, make_pair: MakePair, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connect]:
    with contextlib.ExitStack() as stack:

        def make(faults: Faults | None = None) -> tuple[QuicStream, QuicStream]:
            client, host = make_pair()
            for stream in (client, host):
                stack.callback(stream.close)
                stack.callback(stream.abort)
            near, far = (client, host) if request.param == "client" else (host, client)
            if faults:
                harm(near, faults, monkeypatch)
            return near, far

        yield make


class TestQuic(StreamContract):
    def test_they_say_what_they_are(self, connect: Connect) -> None:
        near, far = connect()
        assert (near.transport, far.transport) == ("quic", "quic")
