"""Every Stream keeps the contract; and what is TLS's and TCP's own."""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import ssl
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final
from unittest import mock

import pytest

from headrace.errors import CertificateChangedError, ConnectionLostError, ProtocolError, UnreachableError
from headrace.protocol.messages import KIB
from headrace.transport import tcp
from headrace.transport.identity import Identity
from headrace.transport.tcp import TcpStream, client_context, server_context
from headrace.transport.tcp_client import TcpConnection

from .contract import PATIENCE, Connect, StreamContract, pool, receive, receive_all
from .memory import Faults, MemoryStream, memory_pair

SECRET: Final = bytes(range(64))

__all__ = ["pool"]  # a fixture


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return Identity.load_or_create(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def other_identity(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return Identity.load_or_create(tmp_path_factory.mktemp("other"))


class FaultySocket(socket.socket):
    """A socket with the faults of the in-memory stream, for encrypted bytes. Takes `sock` over."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock.family, sock.type, sock.proto, fileno=sock.detach())
        self.piece: int | None = None
        self.left: int | None = None

    def send(self, data: Any, flags: int = 0) -> int:
        if self.left is None:
            return super().send(data, flags)
        count = super().send(data[: self.left], flags) if self.left else 0
        self.left -= count
        if not self.left:
            self.shutdown(socket.SHUT_RDWR)
        if not count:
            raise BrokenPipeError("cut, as the test wants it")
        return count

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        return super().recv_into(buffer, nbytes or self.piece or 0, flags)


def two_sockets() -> tuple[socket.socket, socket.socket]:
    """Connected on loopback, with small buffers: back-pressure comes early."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * KIB)
        near = socket.create_connection(listener.getsockname())
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * KIB)
        far, _ = listener.accept()
    near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return near, far


def connect_tls(
    sockets: tuple[socket.socket, socket.socket], identity: Identity, faults: Faults | None = None
) -> tuple[TcpStream, TcpStream]:
    """A client and a server after the TLS handshake. The faults begin then."""
    near, far = (FaultySocket(sock) for sock in sockets)
    client = TcpStream(near, client_context(), server=False, timeout=PATIENCE)
    server = TcpStream(far, server_context(str(identity.file)), server=True, timeout=PATIENCE)
    shaking = threading.Thread(target=server.handshake)
    shaking.start()
    client.handshake()
    shaking.join()
    if faults:
        near.left, far.piece = faults.cut_after, faults.piece
    return client, server


class TestMemory(StreamContract):
    @pytest.fixture
    def connect(self) -> Connect:
        return memory_pair


class TestTlsOverSocketPair(StreamContract):
    @pytest.fixture
    def connect(self, identity: Identity) -> Iterator[Connect]:
        with contextlib.ExitStack() as stack:

            def make(faults: Faults | None = None) -> tuple[TcpStream, TcpStream]:
                pair = connect_tls(socket.socketpair(), identity, faults)
                for stream in pair:
                    stack.callback(stream.close)
                    stack.callback(stream.abort)
                return pair

            yield make


class TestSealedOverLoopback(StreamContract):
    @pytest.fixture
    def connect(self, identity: Identity) -> Iterator[Connect]:
        with contextlib.ExitStack() as stack:

            def make(faults: Faults | None = None) -> tuple[TcpStream, TcpStream]:
                pair = connect_tls(two_sockets(), identity, faults)
                for stream in pair:
                    stream.seal(SECRET)
                    stack.callback(stream.close)
                    stack.callback(stream.abort)
                return pair

            yield make

    def test_bytes_that_came_close_behind_the_handshake_are_read(self, identity: Identity) -> None:
        client, server = connect_tls(two_sockets(), identity)
        try:
            server.send(b"the last words inside TLS")
            server.seal(SECRET)
            server.send(b"the first outside")
            assert receive(client, 25) == b"the last words inside TLS"
            client.seal(SECRET)
            assert receive(client, 17) == b"the first outside"
        finally:
            client.abort()
            server.abort()
            client.close()
            server.close()

    def test_a_peer_that_goes_on_with_tls_is_refused(self, identity: Identity) -> None:
        client, server = connect_tls(two_sockets(), identity)
        try:
            server.send(b"one, two")
            assert receive(client, 3) == b"one"
            with pytest.raises(ProtocolError, match="went on with TLS"):
                client.seal(SECRET)
            with pytest.raises(ProtocolError, match="already"):
                server.seal(SECRET)
                server.seal(SECRET)
        finally:
            client.abort()
            server.abort()
            client.close()
            server.close()


class TestTlsOverLoopback(StreamContract):
    @pytest.fixture
    def connect(self, identity: Identity) -> Iterator[Connect]:
        with contextlib.ExitStack() as stack:

            def make(faults: Faults | None = None) -> tuple[TcpStream, TcpStream]:
                pair = connect_tls(two_sockets(), identity, faults)
                for stream in pair:
                    stack.callback(stream.close)
                    stack.callback(stream.abort)
                return pair

            yield make

    def test_loopback_has_a_round_trip_time(self, connect: Connect) -> None:
        near, far = connect()
        near.send(b"there")
        assert receive(far, 5) == b"there"
        if not hasattr(socket, "TCP_INFO"):
            pytest.skip("this system does not tell")
        seconds = near.rtt()
        assert isinstance(seconds, float)
        assert 0 < seconds < 1


# ---- the in-memory stream's own means --------------------------------------------------------------------------------


def test_what_is_held_arrives_when_the_test_says_so() -> None:
    near, far = memory_pair()
    far.set_timeout(0.01)
    near.send(b"early ")
    near.hold()
    near.send(b"late")
    assert near.sent() == b"early "
    assert receive(far, 6) == b"early "
    with pytest.raises(ConnectionLostError):
        receive(far, 1)
    near.release()
    assert receive(far, 4) == b"late"


def test_a_cut_from_outside_leaves_what_arrived() -> None:
    near, far = memory_pair()
    near.send(b"abc")
    near.cut()
    assert receive(far, 3) == b"abc"
    for stream in (near, far):
        with pytest.raises(ConnectionLostError):
            stream.recv_into(memoryview(bytearray(1)))
        with pytest.raises(ConnectionLostError):
            stream.send(b"x")


def test_a_cut_after_the_end_changes_nothing() -> None:
    near, far = memory_pair()
    near.close()
    far.cut()
    assert isinstance(far, MemoryStream)
    assert receive_all(far) == b""


# ---- TLS -------------------------------------------------------------------------------------------------------------


def test_both_ends_agree_on_tls_1_3_and_headrace(identity: Identity) -> None:
    client, server = connect_tls(socket.socketpair(), identity)
    assert client.speaks_headrace
    assert server.speaks_headrace
    assert client._tls and server._tls
    assert client._tls.tls.version() == server._tls.tls.version() == "TLSv1.3"
    assert client.fingerprint == identity.fingerprint
    assert server.fingerprint == b""  # clients show none
    client.close()
    server.close()


def test_the_server_refuses_tls_1_2(identity: Identity, pool: ThreadPoolExecutor) -> None:
    near, far = socket.socketpair()
    server = TcpStream(far, server_context(str(identity.file)), server=True)
    shaking = pool.submit(server.handshake)
    with pytest.warns(DeprecationWarning):
        old = client_context()
        old.minimum_version = ssl.TLSVersion.TLSv1_2
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        old.options |= ssl.OP_NO_TLSv1_3
    with pytest.raises(ssl.SSLError) as told, old.wrap_socket(near):
        pass
    assert "VERSION" in str(told.value.reason)  # it is told why
    with pytest.raises(ssl.SSLError):
        shaking.result(PATIENCE)
    server.close()


def test_the_client_refuses_tls_1_2(identity: Identity, pool: ThreadPoolExecutor) -> None:
    near, far = socket.socketpair()
    old = server_context(str(identity.file))
    old.minimum_version = ssl.TLSVersion.TLSv1_2
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    server = TcpStream(far, old, server=True)
    shaking = pool.submit(server.handshake)
    client = TcpStream(near, client_context(), server=False)
    with pytest.raises(ssl.SSLError):
        client.handshake()
    with pytest.raises(ssl.SSLError):
        shaking.result(PATIENCE)
    client.close()
    server.close()


def test_a_tampered_record_is_a_lost_connection(identity: Identity) -> None:
    client, server = connect_tls(socket.socketpair(), identity)
    client._sock.send(b"\x17\x03\x03\x00\x20" + bytes(32))
    with pytest.raises(ConnectionLostError, match="encrypted"):
        receive(server, 1)
    client.abort()
    client.close()
    server.close()


class JumpingClock:
    """Stands in for the `time` module: each look at it is four seconds later than the last."""

    def __init__(self) -> None:
        self._now = 1000.0

    def monotonic(self) -> float:
        self._now += 4.0
        return self._now


def test_the_tls_handshake_has_a_deadline_however_the_other_side_dribbles(
    identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every byte comes within the timeout, the handshake as a whole does not."""
    near, far = socket.socketpair()
    monkeypatch.setattr(tcp, "time", JumpingClock())
    near.send(b"\x16\x03\x01\x01\x00\x01\x00")  # the beginning of a ClientHello
    dribbling = FaultySocket(far)
    dribbling.piece = 1
    server = TcpStream(dribbling, server_context(str(identity.file)), server=True)
    with pytest.raises(TimeoutError):
        server.handshake(10.0)
    assert server.bytes_in <= 3
    server.close()
    near.close()


def test_a_deadline_ends_a_receive_however_the_other_side_dribbles(
    identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, server = connect_tls(socket.socketpair(), identity, Faults(piece=1))
    monkeypatch.setattr(tcp, "time", JumpingClock())
    before = server.bytes_in
    client.send(b"a record of more bytes than there is time for")
    server.set_deadline(30.0)
    with pytest.raises(ConnectionLostError, match="took too long"):
        receive(server, 1)
    assert 0 < server.bytes_in - before < 10
    server.set_deadline(None)
    assert receive(server, 8) == b"a record"
    client.close()
    server.close()


def test_a_deadline_ends_a_receive_that_gets_nothing(identity: Identity) -> None:
    client, server = connect_tls(socket.socketpair(), identity)
    server.set_timeout(None)
    server.set_deadline(0.02)
    with pytest.raises(ConnectionLostError, match="took too long"):
        receive(server, 1)
    client.close()
    server.close()


def test_closing_before_the_handshake_is_harmless(identity: Identity) -> None:
    near, far = socket.socketpair()
    server = TcpStream(far, server_context(str(identity.file)), server=True)
    server.close()
    assert near.recv(10) == b""
    near.close()


# ---- TCP -------------------------------------------------------------------------------------------------------------


class Listener:
    """Accepts on loopback, each connection on a thread of its own."""

    def __init__(self, answer: Callable[[socket.socket], None]) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._answer = answer
        self._threads = [threading.Thread(target=self._accept)]
        self._sockets: list[socket.socket] = []
        self._over = threading.Event()
        self.address: tuple[str, int] = self._listener.getsockname()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self._sockets.append(sock)
            self._threads.append(threading.Thread(target=self._serve, args=(sock,)))
            self._threads[-1].start()

    def _serve(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError, ConnectionLostError):  # ssl.SSLError is an OSError
            self._answer(sock)

    def __enter__(self) -> Listener:
        self._threads[0].start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join(PATIENCE)
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE)
        for sock in self._sockets:
            sock.close()


def echo(identity: Identity, *, alpn: str = tcp.ALPN) -> Callable[[socket.socket], None]:
    """A headrace host as far as TLS goes; what comes goes back."""

    def answer(sock: socket.socket) -> None:
        context = server_context(str(identity.file))
        context.set_alpn_protocols([alpn])
        stream = TcpStream(sock, context, server=True)
        stream.handshake()
        buffer = memoryview(bytearray(1000))
        while count := stream.recv_into(buffer):
            stream.send(buffer[:count])
        stream.close()

    return answer


def test_a_connection_opens_streams_to_one_certificate(identity: Identity) -> None:
    with Listener(echo(identity)) as host:
        connection = TcpConnection(host.address, pin=identity.fingerprint)
        assert connection.fingerprint == identity.fingerprint
        assert connection.address == host.address
        assert connection.transport == "tcp"
        streams = [connection.open_stream() for _ in range(3)]
        for number, stream in enumerate(streams):
            stream.send(b"%d" % number)
            assert receive(stream, 1) == b"%d" % number
            assert stream.fingerprint == identity.fingerprint
        assert connection.bytes_wire == sum(stream.bytes_in + stream.bytes_out for stream in streams) > 1000
        for stream in streams:
            stream.close()


def test_a_connection_holds_no_stream_that_was_closed_and_still_counts_its_bytes(identity: Identity) -> None:
    with Listener(echo(identity)) as host:
        connection = TcpConnection(host.address, pin=identity.fingerprint)
        stream = connection.open_stream()
        stream.close()
        old, total = weakref.ref(stream), stream.bytes_in + stream.bytes_out
        del stream
        further = connection.open_stream()
        gc.collect()
        assert old() is None
        assert connection.bytes_wire == total + further.bytes_in + further.bytes_out
        further.close()


def test_a_first_stream_that_nobody_took_ends_with_the_connection(identity: Identity) -> None:
    """Of the transport that lost the race nobody may ever want a stream."""
    ended = threading.Event()

    def answer(sock: socket.socket) -> None:
        echo(identity)(sock)
        ended.set()

    with Listener(answer) as host:
        connection = TcpConnection(host.address, pin=None)
        connection.close()
        connection.close()
        assert ended.wait(PATIENCE)


def test_a_first_stream_that_the_host_ended_meanwhile_is_replaced(identity: Identity) -> None:
    ended = threading.Event()

    def hang_up(sock: socket.socket) -> None:
        stream = TcpStream(sock, server_context(str(identity.file)), server=True)
        stream.handshake()
        stream.close()
        ended.set()

    answers = [hang_up, echo(identity)]
    with Listener(lambda sock: answers.pop(0)(sock)) as host:
        connection = TcpConnection(host.address, pin=identity.fingerprint)
        assert ended.wait(PATIENCE)
        stream = connection.open_stream()
        stream.send(b"x")
        assert receive(stream, 1) == b"x"
        stream.close()


def test_another_certificate_than_the_pinned_one_is_refused(identity: Identity, other_identity: Identity) -> None:
    with Listener(echo(identity)) as host, pytest.raises(CertificateChangedError) as refusal:
        TcpConnection(host.address, pin=other_identity.fingerprint)
    assert refusal.value.exit_code == 4
    assert identity.fingerprint.hex()[:16] in refusal.value.message
    assert other_identity.fingerprint.hex()[:16] in refusal.value.message


def test_without_a_pin_the_first_certificate_is_kept_to(identity: Identity, other_identity: Identity) -> None:
    answers = [echo(identity), echo(other_identity)]
    with Listener(lambda sock: answers.pop(0)(sock)) as host:
        connection = TcpConnection(host.address, pin=None)
        first = connection.open_stream()
        with pytest.raises(CertificateChangedError):
            connection.open_stream()
        first.close()


def banner(sock: socket.socket) -> None:
    sock.send(b"SSH-2.0-OpenSSH_9.9\r\n")
    sock.recv(1000)


def web_page(sock: socket.socket) -> None:
    sock.recv(1000)
    sock.send(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
    sock.shutdown(socket.SHUT_RDWR)


def hang_up(sock: socket.socket) -> None:
    sock.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("answer", [banner, web_page, hang_up])
def test_what_is_not_headrace_is_said_to_be_so(answer: Callable[[socket.socket], None]) -> None:
    with Listener(answer) as host, pytest.raises(UnreachableError, match="is not headrace") as refusal:
        TcpConnection(host.address, pin=None)
    assert f"127.0.0.1:{host.address[1]}" in refusal.value.message


@pytest.mark.parametrize("alpn", ["h2", "headrac", "headrace/2"])
def test_tls_of_something_else_is_not_headrace(identity: Identity, alpn: str) -> None:
    with Listener(echo(identity, alpn=alpn)) as host, pytest.raises(UnreachableError, match="is not headrace"):
        TcpConnection(host.address, pin=None)


def test_an_old_tls_is_not_headrace(identity: Identity) -> None:
    def answer(sock: socket.socket) -> None:
        context = server_context(str(identity.file))
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        TcpStream(sock, context, server=True).handshake()

    with Listener(answer) as host, pytest.raises(UnreachableError):
        TcpConnection(host.address, pin=None)


def test_who_accepts_and_says_nothing_is_given_up(identity: Identity) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(UnreachableError):
        TcpConnection(listener.getsockname(), pin=None, timeout=0.1)


def test_a_closed_port_is_unreachable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
    with pytest.raises(UnreachableError, match=f"nobody listens on 127.0.0.1:{address[1]}") as refusal:
        TcpConnection(address, pin=None)
    assert refusal.value.exit_code == 5


@pytest.mark.parametrize(
    ("why", "message"),
    [
        (socket.gaierror(-2, "Name or service not known"), "no host named nowhere"),
        (TimeoutError("timed out"), "nowhere:7420 does not answer"),
        (ConnectionRefusedError(111, "Connection refused"), "nobody listens on nowhere:7420"),
        (OSError(113, "No route to host"), r"nowhere:7420 cannot be reached \(No route to host\)"),
        (UnicodeError("label empty or too long"), "nowhere:7420 cannot be reached"),
        (OverflowError("connect(): port must be 0-65535."), "nowhere:7420 cannot be reached"),
    ],
)
def test_every_reason_why_nobody_can_be_reached_has_a_sentence(
    monkeypatch: pytest.MonkeyPatch, why: Exception, message: str
) -> None:
    def fail(*arguments: object, **more: object) -> None:
        raise why

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(UnreachableError, match=message):
        TcpConnection(("nowhere", 7420), pin=None)


def test_abort_ends_what_waits_on_any_stream(identity: Identity, pool: ThreadPoolExecutor) -> None:
    with Listener(echo(identity)) as host:
        connection = TcpConnection(host.address, pin=None)
        streams = [connection.open_stream(), connection.open_stream()]
        waiting = [pool.submit(stream.recv_into, memoryview(bytearray(1))) for stream in streams]
        connection.abort()
        for result in waiting:
            with pytest.raises(ConnectionLostError):
                result.result(PATIENCE)
        with pytest.raises(ConnectionLostError):
            connection.open_stream()
        for stream in streams:
            stream.close()


def test_sockets_are_tuned_for_bulk() -> None:
    near, far = two_sockets()
    assert tcp.is_loopback(near)
    tcp.tune(near, loopback=True)
    assert near.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert near.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    tcp.tune(far, loopback=False)  # where the kernel has no BBR this changes nothing, and does not fail
    near.close()
    far.close()


@pytest.mark.parametrize(
    ("peer", "own", "near"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("::ffff:127.0.0.1", "::ffff:127.0.0.1", True),
        ("::1", "::1", True),
        ("192.0.2.7", "192.0.2.7", True),
        ("192.0.2.7", "192.0.2.8", False),
        ("2001:db8::7", "2001:db8::8", False),
    ],
)
def test_a_peer_on_this_machine(peer: str, own: str, near: bool) -> None:
    """By whichever of its addresses."""
    sock = mock.Mock(
        family=socket.AF_INET6, **{"getpeername.return_value": (peer, 1), "getsockname.return_value": (own, 2)}
    )
    assert tcp.is_loopback(sock) == near


def test_an_identity_file_is_what_the_server_context_takes(tmp_path: Path) -> None:
    identity = Identity.load_or_create(tmp_path)
    assert server_context(str(identity.file)).minimum_version is ssl.TLSVersion.TLSv1_3


# ---- lent to another process -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def connect_sealed(identity: Identity) -> Iterator[tuple[TcpStream, TcpStream]]:
    """Client and host, sealed."""
    client, server = connect_tls(two_sockets(), identity)
    for stream in (client, server):
        stream.seal(SECRET)
    yield client, server
    for stream in (client, server):
        stream.abort()
        stream.close()


@pytest.fixture
def sealed_pair(identity: Identity) -> Iterator[tuple[TcpStream, TcpStream]]:
    with connect_sealed(identity) as pair:
        yield pair


def lend(server: TcpStream) -> TcpStream:
    """As another process has it: by a descriptor of its own."""
    return TcpStream.resumed(socket.socket(fileno=os.dup(server.fileno())), server.lend(), timeout=PATIENCE)


def test_a_lent_stream_goes_on_and_comes_back(sealed_pair: tuple[TcpStream, TcpStream]) -> None:
    client, server = sealed_pair
    server.send(b"one")
    client.send(b"what")
    assert receive(server, 2) == b"wh"  # the rest was opened and not taken
    other = lend(server)
    assert receive(other, 2) == b"at"
    other.send(b"two")
    state = other.lend()
    other.close()  # without a goodbye: it is not over
    server.go_on(state)
    client.send(b"more")
    assert receive(server, 4) == b"more"
    server.send(b"three")
    server.close()
    assert receive_all(client) == b"onetwothree"


def test_whoever_lent_a_stream_says_nothing_on_it(sealed_pair: tuple[TcpStream, TcpStream]) -> None:
    """Its next record would have a number that the other process uses, too."""
    client, server = sealed_pair
    other = lend(server)
    server.close()
    other.send(b"still here")
    assert receive(client, 10) == b"still here"
    other.close()
    assert receive_all(client) == b""


def test_whoever_lent_a_stream_can_abort_it(sealed_pair: tuple[TcpStream, TcpStream]) -> None:
    client, server = sealed_pair
    other = lend(server)
    server.abort()
    for waiting in (other, client):
        with pytest.raises(ConnectionLostError):
            receive(waiting, 1)
    other.close()


def test_only_a_sealed_stream_can_be_lent(identity: Identity) -> None:
    client, server = connect_tls(two_sockets(), identity)
    with pytest.raises(ProtocolError):
        server.lend()
    for stream in (client, server):
        stream.abort()
        stream.close()
