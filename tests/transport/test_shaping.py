"""What the kernel says of a path and does about a rate, on a socket over loopback."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator

import pytest

from headrace.transport.shaping import Shaper, shaper

SO_MAX_PACING_RATE = 47
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux alone has it")


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        near = socket.create_connection(listening.getsockname(), timeout=5)
        far, _ = listening.accept()
    with near, far:
        yield near, far


def rate_of(sock: socket.socket) -> int:
    return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, 8), sys.byteorder)


def test_the_path_of_a_connection(pair: tuple[socket.socket, socket.socket]) -> None:
    near, far = pair
    made = shaper(near)
    assert made is not None
    before = made.path()
    assert before is not None
    near.sendall(bytes(100_000))
    left = 100_000
    while left:
        left -= len(far.recv(left))
    far.sendall(b"all")  # what was sent is acknowledged with this at the latest
    assert near.recv(10) == b"all"
    after = made.path()
    assert after is not None
    assert after.acked - before.acked == 100_000
    assert 0 < after.least <= after.rtt * 1.001 + 1e-6
    assert after.rtt < 1


def test_a_rate_is_set_and_taken_back(pair: tuple[socket.socket, socket.socket]) -> None:
    near, _ = pair
    made = Shaper(near)
    made.limit(1_000_000.7)
    assert rate_of(near) == 1_000_000
    made.limit(20e9)
    assert rate_of(near) == 20_000_000_000
    made.limit(None)
    assert rate_of(near) >= (1 << 63) - 1


def test_a_socket_that_is_closed_says_nothing(pair: tuple[socket.socket, socket.socket]) -> None:
    near, _ = pair
    made = Shaper(near)
    near.close()
    assert made.path() is None
    made.limit(1.0)


def test_another_system_has_nothing_of_the_kind(pair: tuple[socket.socket, socket.socket]) -> None:
    assert shaper(pair[0], platform="darwin") is None
