"""One datagram says whether UDP passes and a QUIC host listens."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.transport.identity import Identity
from headrace.transport.quic import unavailable
from headrace.transport.quic.probe import (
    OPEN,
    REJECTED,
    RESERVED_VERSION,
    SILENT,
    SIZE,
    Probe,
    _packet,
    answer_to,
    is_answer,
    probe,
)


def test_open(tmp_path: Path) -> None:
    if reason := unavailable():
        pytest.skip(reason)
    from .quic_hosts import hosting

    with hosting(Identity.load_or_create(tmp_path)) as host:
        result = probe(("127.0.0.1", host.port), timeout=5)
    assert result.outcome == OPEN
    assert result.rtt is not None
    assert 0 < result.rtt < 5


def test_rejected() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    result = probe(("127.0.0.1", port), timeout=5)
    assert (result.outcome, result.rtt) == (REJECTED, None)
    assert "refused" in result.reason.lower()


def test_silent_and_asked_more_than_once() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        assert probe(sock.getsockname(), timeout=0.4).outcome == SILENT
        first, second = sock.recv(2000), sock.recv(2000)
    assert len(first) == SIZE
    assert first == second
    assert first[1:5] == RESERVED_VERSION.to_bytes(4, "big")


def test_who_answers_something_else_is_silent() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        asking = Probe(sock.getsockname())
        try:
            assert asking.step() is None
            _, who = sock.recvfrom(2000)
            for wrong in (b"", b"\x80", b"HTTP/1.1 400 Bad Request\r\n\r\n", bytes(1200)):
                sock.sendto(wrong, who)
            assert asking.step() is None
        finally:
            asking.close()


def test_a_name_that_is_none_is_rejected() -> None:
    assert probe(("no-such-host.invalid", 1)).outcome == REJECTED
    assert probe(("127.0.0.1", 1 << 20)).outcome in (REJECTED, SILENT)


def test_it_is_sent_again_when_the_clock_says_so() -> None:
    now = 0.0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        asking = Probe(sock.getsockname(), clock=lambda: now)
        try:
            sent = []
            for tick in range(120):  # a second and a fifth
                now = tick / 100
                asking.step()
                try:
                    sock.recv(2000)
                    sent.append(now)
                except BlockingIOError:
                    pass
        finally:
            asking.close()
    assert sent == [0.0, 0.25, 0.75]


OURS, THEIRS = b"o" * 8, b"t" * 8
ANSWER = b"\xc0\0\0\0\0\x08" + OURS + b"\x08" + THEIRS + b"\0\0\0\1"


@pytest.mark.parametrize(
    ("datagram", "good"),
    [
        (ANSWER, True),
        (ANSWER + b"\x6b\x33\x43\xcf", True),
        (ANSWER[:-4], False),  # no version at all
        (ANSWER[:-1], False),
        (b"\x40" + ANSWER[1:], False),  # a short header
        (ANSWER[:1] + b"\0\0\0\1" + ANSWER[5:], False),
        (ANSWER.replace(OURS, b"x" * 8), False),
        (ANSWER.replace(THEIRS, b"x" * 8), False),
        (b"", False),
    ],
)
def test_only_version_negotiation_for_our_own_packet_is_an_answer(datagram: bytes, good: bool) -> None:
    assert is_answer(datagram, ours=OURS, theirs=THEIRS) is good


def test_nothing_heavy_is_imported_for_it() -> None:
    code = (
        "import sys, headrace.transport.quic, headrace.transport.quic.probe, headrace.host.server, "
        "headrace.transport.adaptive\n"
        "heavy = {'asyncio', 'aiopquic', 'certifi'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


ids = st.binary(max_size=20)


@given(ids, ids)
def test_a_probe_is_answered_as_the_library_would(theirs: bytes, ours: bytes) -> None:
    packet = _packet(theirs, ours, lambda count: bytes(count))
    answer = answer_to(packet)
    assert answer is not None
    assert is_answer(answer, ours=ours, theirs=theirs)
    assert len(answer) < len(packet)


@given(st.binary(max_size=60), st.integers(0, 1300))
def test_nothing_else_is(start: bytes, size: int) -> None:
    datagram = start.ljust(size, b"\0")
    answer = answer_to(datagram)
    if size < SIZE or not start or start[0] < 0x80 or start[1:5] in (b"", b"\0\0\0\0", b"\0\0\0\1"):
        assert answer is None
    if answer is not None:
        assert len(answer) <= 5 + 2 * 21 + 4


def test_it_works_where_a_thousand_descriptors_are_open(tmp_path: Path) -> None:
    """select takes none above 1023."""
    program = """
import os, resource, socket, threading
from pathlib import Path
resource.setrlimit(resource.RLIMIT_NOFILE, (2048, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
from headrace.errors import UnreachableError
from headrace.transport.adaptive import connect
from headrace.transport.quic.probe import probe
with socket.socket() as sock:
    sock.bind(("127.0.0.1", 0))
    port = sock.getsockname()[1]
held = [os.open("/dev/null", os.O_RDONLY) for _ in range(1100)]
assert probe(("127.0.0.1", port), timeout=0.3).outcome != "open"
try:
    connect(("127.0.0.1", port), pin=None, certificates=Path("."))
except UnreachableError as why:
    print(why.message)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False
    )
    assert "nobody listens" in done.stdout, done.stderr
    assert not done.stderr
