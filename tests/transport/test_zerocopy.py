"""Sending files without a copy: what each platform answers, and what is made of it."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from typing import Any, Final

import pytest

from headrace.errors import ConnectionLostError, UsageError
from headrace.protocol.messages import KIB, MIB
from headrace.transport import tcp, zerocopy
from headrace.transport.identity import Identity
from headrace.transport.tcp import TcpStream
from headrace.transport.zerocopy import Fallbacks, UnsupportedError, by_sendfile, by_transmit_file, platform_send

from .contract import NOISE, PATIENCE, receive
from .test_streams import connect_sealed, two_sockets

SIZE: Final = 3 * MIB + 5


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return Identity.load_or_create(tmp_path_factory.mktemp("home"))


@pytest.fixture
def pair(identity: Identity) -> Iterator[tuple[TcpStream, TcpStream]]:
    with connect_sealed(identity) as pair:
        yield pair


@pytest.fixture
def file() -> Iterator[int]:
    with tempfile.TemporaryFile() as opened:
        opened.write(NOISE[:SIZE])
        opened.flush()
        yield opened.fileno()


@pytest.fixture
def fallbacks(monkeypatch: pytest.MonkeyPatch) -> Fallbacks:
    fresh = Fallbacks()
    monkeypatch.setattr(tcp, "FALLBACKS", fresh)
    return fresh


def receive_clear(stream: TcpStream, size: int) -> bytes:
    got = memoryview(bytearray(size))
    filled = 0
    while filled < size:
        filled += stream.recv_clear_into(got[filled : filled + 300 * KIB])
    return bytes(got)


def exchange(client: TcpStream, server: TcpStream, fd: int, *, offset: int = 0, count: int = SIZE) -> tuple[bytes, int]:
    """The server sends the file between two sealed words; what the client got of it, and what `send_file` said."""
    sent: list[int] = []

    def send() -> None:
        buffer = memoryview(bytearray(100 * KIB))
        sent.append(server.send_file(head=b"head", fd=fd, offset=offset, count=count, buffer=buffer))
        server.send(b"tail")

    thread = threading.Thread(target=send)
    thread.start()
    try:
        assert receive(client, 4) == b"head"
        got = receive_clear(client, count)
        assert receive(client, 4) == b"tail"
    finally:
        thread.join(PATIENCE)
    return got, sent[0]


@pytest.mark.parametrize(("offset", "count"), [(0, SIZE), (1, 1), (MIB - 1, MIB + 7), (SIZE - 3, 3), (0, 0)])
def test_a_range_of_a_file_goes_over_between_sealed_records(
    pair: tuple[TcpStream, TcpStream], file: int, fallbacks: Fallbacks, offset: int, count: int
) -> None:
    got, sent = exchange(*pair, file, offset=offset, count=count)
    assert got == NOISE[offset : offset + count]
    assert sent == count
    assert fallbacks.counts() == {}


def test_a_file_that_got_shorter_is_filled_up_and_the_stream_stays_in_step(
    pair: tuple[TcpStream, TcpStream], file: int
) -> None:
    got, sent = exchange(*pair, file, offset=SIZE - 1000, count=200 * KIB)
    assert sent == 1000
    assert got == NOISE[SIZE - 1000 : SIZE] + bytes(200 * KIB - 1000)


def test_a_disk_error_in_the_middle_is_the_files_not_the_connections(
    pair: tuple[TcpStream, TcpStream], file: int
) -> None:
    def failing(sock: socket.socket, fd: int, offset: int, count: int) -> int:
        if offset >= MIB:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return by_sendfile(sock, fd, offset, min(count, MIB - offset))

    pair[1].zero_copy = failing
    got, sent = exchange(*pair, file)
    assert sent == MIB
    assert got == NOISE[:MIB] + bytes(SIZE - MIB)


@pytest.mark.parametrize("code", [errno.ENOTSUP, errno.EINVAL, errno.ENOSYS, errno.ENOTSOCK])
@pytest.mark.parametrize("after", [0, MIB])
def test_what_sendfile_cannot_do_is_copied(
    pair: tuple[TcpStream, TcpStream],
    file: int,
    fallbacks: Fallbacks,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    after: int,
) -> None:
    real = os.sendfile

    def sendfile(out: int, fd: int, offset: int, count: int) -> int:
        if offset >= after:
            raise OSError(code, os.strerror(code))
        return real(out, fd, offset, min(count, after - offset))

    monkeypatch.setattr(os, "sendfile", sendfile)
    got, sent = exchange(*pair, file)
    assert (got, sent) == (NOISE[:SIZE], SIZE)
    assert fallbacks.counts() == {f"sendfile: {os.strerror(code)}": 1}


def test_partial_counts_and_full_buffers_are_gone_on_from(
    pair: tuple[TcpStream, TcpStream], file: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """macOS: EAGAIN with a count comes out of os.sendfile as that count, without one as BlockingIOError."""
    real, calls = os.sendfile, [0]

    def sendfile(out: int, fd: int, offset: int, count: int) -> int:
        calls[0] += 1
        if calls[0] % 2:
            raise BlockingIOError(errno.EAGAIN, "try again")
        return real(out, fd, offset, min(count, 100 * KIB + 1))

    monkeypatch.setattr(os, "sendfile", sendfile)
    assert exchange(*pair, file) == (NOISE[:SIZE], SIZE)
    assert calls[0] > SIZE // (100 * KIB)


def test_a_system_without_any_of_it_copies(pair: tuple[TcpStream, TcpStream], file: int, fallbacks: Fallbacks) -> None:
    pair[1].zero_copy = None
    assert exchange(*pair, file) == (NOISE[:SIZE], SIZE)
    assert list(fallbacks.counts()) == ["this system has nothing of the kind"]


def test_a_peer_that_takes_nothing_is_given_up(pair: tuple[TcpStream, TcpStream], file: int) -> None:
    server, _ = pair  # this way round the buffers are small
    server.set_timeout(0.05)
    with pytest.raises(ConnectionLostError, match="took nothing"):
        server.send_file(head=b"h", fd=file, offset=0, count=SIZE, buffer=memoryview(bytearray(KIB)))


def test_a_peer_that_takes_nothing_is_borne_as_long_as_nobody_minds(
    pair: tuple[TcpStream, TcpStream], file: int
) -> None:
    server, client = pair
    asked: list[bool] = []

    def patient(sending: bool) -> bool:
        asked.append(sending)
        if len(asked) == 3:
            reader.start()
        return True

    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(receive(client, 1) + receive_clear(client, SIZE)))
    server.set_timeout(0.05)
    server.patient = patient
    server.send_file(head=b"h", fd=file, offset=0, count=SIZE, buffer=memoryview(bytearray(KIB)))
    reader.join(PATIENCE)
    assert got == [b"h" + NOISE[:SIZE]]
    assert asked[:3] == [True, True, True]


def test_a_lost_connection_is_one(pair: tuple[TcpStream, TcpStream], file: int) -> None:
    client, server = pair
    client.abort()
    with pytest.raises(ConnectionLostError):
        for _ in range(10):
            server.send_file(head=b"h", fd=file, offset=0, count=SIZE, buffer=memoryview(bytearray(KIB)))
    with pytest.raises(ConnectionLostError):
        client.recv_clear_into(memoryview(bytearray(1)))


def test_each_reason_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    counted = Fallbacks()
    with caplog.at_level(logging.WARNING, "headrace.zerocopy"):
        for reason in ("a", "b", "a"):
            counted.add(reason)
    assert counted.counts() == {"a": 2, "b": 1}
    assert len(caplog.records) == 2


# ---- by platform ---------------------------------------------------------------------------------------------------


def test_the_platform_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    assert platform_send("linux") is by_sendfile
    assert platform_send("darwin") is by_sendfile
    assert platform_send("win32") is by_transmit_file
    monkeypatch.delattr(os, "sendfile")
    assert platform_send("sunos5") is None


class FakeProactor:
    """What Windows' event loop would do. answers: a count, or what it raises."""

    answers: list[Any]
    closed = 0

    def run_until_complete(self, sending: Any) -> Any:
        loop = asyncio.new_event_loop()
        try:
            return loop.run_until_complete(sending)
        finally:
            loop.close()

    async def sock_sendfile(self, sock: socket.socket, file: Any, offset: int, count: int, *, fallback: bool) -> int:
        assert not fallback
        assert sock.gettimeout() == 0
        assert os.fstat(file.fileno()).st_size == SIZE
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return min(count, int(answer))

    def close(self) -> None:
        type(self).closed += 1


class WindowsFailure(OSError):  # OSError has no `winerror` elsewhere
    def __init__(self, code: int) -> None:
        super().__init__(errno.EINVAL, f"WinError {code}")
        self.winerror = code


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> type[FakeProactor]:
    monkeypatch.setattr(asyncio, "ProactorEventLoop", FakeProactor, raising=False)
    FakeProactor.closed = 0
    return FakeProactor


def test_transmit_file_sends_and_leaves_the_socket_as_it_was(file: int, windows: type[FakeProactor]) -> None:
    near, far = two_sockets()
    near.settimeout(7)
    windows.answers = [1000]
    assert by_transmit_file(near, file, 5, SIZE) == 1000
    assert near.gettimeout() == 7
    assert windows.closed == 1
    near.close()
    far.close()


@pytest.mark.parametrize(
    "why", [asyncio.SendfileNotAvailableError("no"), *[WindowsFailure(code) for code in (10022, 10038, 10045, 87, 50)]]
)
def test_what_transmit_file_cannot_do_is_unsupported(
    file: int, windows: type[FakeProactor], why: BaseException
) -> None:
    near, far = two_sockets()
    windows.answers = [why]
    with pytest.raises(UnsupportedError, match="TransmitFile"):
        by_transmit_file(near, file, 0, SIZE)
    assert windows.closed == 1
    near.close()
    far.close()


def test_a_lost_connection_on_windows_is_one(file: int, windows: type[FakeProactor]) -> None:
    near, far = two_sockets()
    windows.answers = [ConnectionResetError(errno.ECONNRESET, "reset")]
    with pytest.raises(ConnectionResetError):
        by_transmit_file(near, file, 0, SIZE)
    near.close()
    far.close()


def test_transmit_file_elsewhere_is_unsupported(file: int) -> None:
    near, far = two_sockets()
    with pytest.raises(UnsupportedError, match="proactor"):
        by_transmit_file(near, file, 0, SIZE)
    near.close()
    far.close()


def test_the_words_of_the_option() -> None:
    assert zerocopy.wants_clear("clear")
    assert not zerocopy.wants_clear("tls")
    with pytest.raises(UsageError, match="no data plane purple"):
        zerocopy.wants_clear("purple")
