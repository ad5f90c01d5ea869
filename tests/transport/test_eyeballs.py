"""Racing a host's addresses. Real sockets on loopback; silent addresses are full listen queues."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator

import pytest

from headrace.transport import eyeballs
from headrace.transport.eyeballs import Address, connect, resolve


def listener(address: str = "127.0.0.1", family: socket.AddressFamily = socket.AF_INET) -> socket.socket:
    return socket.create_server((address, 0), family=family)


def entry_of(sock: socket.socket) -> Address:
    return socket.AddressFamily(sock.family), sock.getsockname()


@contextlib.contextmanager
def silent() -> Iterator[Address]:
    """An address that answers no SYN: its queue of connections is full."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.socket())
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(3):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                filler.connect(server.getsockname())
        yield entry_of(server)


def refused() -> Address:
    with listener() as sock:
        return entry_of(sock)


def test_the_first_that_answers_wins() -> None:
    with listener() as server:
        sock, entry = connect([entry_of(server)], 5)
        with sock, server.accept()[0] as peer:
            assert sock.getblocking()
            peer.sendall(b"x")
            assert sock.recv(1) == b"x"
            assert entry == entry_of(server)


def test_a_silent_address_costs_one_delay() -> None:
    with silent() as nobody, listener() as server:
        started = time.monotonic()
        sock, entry = connect([nobody, entry_of(server)], 5)
        sock.close()
        assert entry == entry_of(server)
        assert eyeballs.ATTEMPT_DELAY * 0.9 < time.monotonic() - started < 2


def test_a_refused_address_costs_no_delay() -> None:
    with listener() as server:
        started = time.monotonic()
        sock, entry = connect([refused(), entry_of(server)], 5)
        sock.close()
        assert entry == entry_of(server)
        assert time.monotonic() - started < eyeballs.ATTEMPT_DELAY


@pytest.mark.slow
def test_what_failed_is_told_and_a_refusal_says_most() -> None:
    with pytest.raises(ConnectionRefusedError):
        connect([refused()], 5)
    with silent() as nobody, pytest.raises(TimeoutError):
        connect([refused(), nobody], 0.4)
    unroutable: Address = (socket.AF_INET6, ("::ffff:0:0:1", 9, 0, 99))
    with pytest.raises(ConnectionRefusedError):
        connect([refused(), unroutable], 5)
    with pytest.raises(OSError):
        connect([], 1)


def test_the_race_can_be_given_up() -> None:
    with silent() as nobody:
        started = time.monotonic()
        with pytest.raises(TimeoutError):
            connect([nobody], 30, stop=lambda: time.monotonic() - started > 0.2)
        assert time.monotonic() - started < 2


def test_nothing_is_left_open() -> None:
    with silent() as nobody, listener() as server:
        before = _descriptors()
        connect([nobody, entry_of(server)], 5)[0].close()
        with pytest.raises(TimeoutError):
            connect([nobody], 0.05)
        assert _descriptors() == before


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_families_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    six, four = socket.AF_INET6, socket.AF_INET
    answers = [(six, f"::{n}") for n in (1, 2)] + [(four, f"10.0.0.{n}") for n in (1, 2, 3)]
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda *a, **k: [(family, 1, 6, "", (text, 9)) for family, text in answers * 2]
    )
    assert [address[0] for _, address in resolve("name", 9)] == ["::1", "10.0.0.1", "::2", "10.0.0.2", "10.0.0.3"]
