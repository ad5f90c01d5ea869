"""QUIC connections: trust, limits, hostile peers, lost ones, and the end of everything."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import random
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from headrace.errors import CertificateChangedError, ConnectionLostError, RefusedError, UnreachableError
from headrace.transport.identity import Identity
from headrace.transport.pacing import Limit
from headrace.transport.quic import unavailable

from .contract import NOISE, PATIENCE, receive, receive_all

if reason := unavailable():
    pytest.skip(reason, allow_module_level=True)

from headrace.transport.quic import binding, endpoint
from headrace.transport.quic.client import QuicConnection
from headrace.transport.quic.lanes import FIRST_TO_CLIENT, FIRST_TO_HOST, KIB, MIB
from headrace.transport.quic.listener import Limits

from .quic_hosts import Host, echo, free_udp_port, hosting, in_background


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return Identity.load_or_create(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def other_identity(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return Identity.load_or_create(tmp_path_factory.mktemp("other"))


@pytest.fixture
def host(identity: Identity) -> Iterator[Host]:
    with hosting(identity) as running:
        yield running


def wait_until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"waited in vain: {what}"
        time.sleep(0.005)


# ---- trust -----------------------------------------------------------------------------------------------------------


def test_first_contact_asks_for_the_certificate_and_keeps_it(host: Host, tmp_path: Path) -> None:
    certificates = tmp_path / "home" / "certificates"
    with host.client(certificates, pin=None) as connection:
        assert connection.fingerprint == host.identity.fingerprint
        near, far = host.pair(connection)
        far.send(b"hello")
        assert receive(near, 5) == b"hello"
    kept = certificates / f"{host.identity.fingerprint.hex()}.pem"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert stat.S_IMODE(certificates.stat().st_mode) == 0o700
    assert kept.read_text() in host.identity.file.read_text()
    assert host.listener.counters["quic_connections"] == 2  # one that asked, one that was verified


def test_a_known_host_is_dialled_once_and_a_reconnect_resumes(host: Host, tmp_path: Path) -> None:
    with host.client(tmp_path):
        pass
    # One for the certificate, one that is verified; the host may hear of the second a moment after the client does.
    wait_until(lambda: host.listener.counters["quic_connections"] == 2, "the host to count both")
    before = 2
    with host.client(tmp_path) as connection:
        assert connection.resumed
        near, far = host.pair(connection)
        far.send(b"again")
        assert receive(near, 5) == b"again"
    assert host.listener.counters["quic_connections"] == before + 1
    tickets = tmp_path / f"{host.identity.fingerprint.hex()}.tickets"
    assert stat.S_IMODE(tickets.stat().st_mode) == 0o600


def test_a_damaged_file_of_a_certificate_is_asked_for_again(host: Host, tmp_path: Path) -> None:
    kept = tmp_path / f"{host.identity.fingerprint.hex()}.pem"
    kept.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    with host.client(tmp_path) as connection:
        assert connection.fingerprint == host.identity.fingerprint
    assert kept.read_text() in host.identity.file.read_text()


def test_another_certificate_than_the_pinned_one_is_refused(
    host: Host, other_identity: Identity, tmp_path: Path
) -> None:
    with pytest.raises(CertificateChangedError, match="shows another certificate"):
        QuicConnection(("127.0.0.1", host.port), pin=other_identity.fingerprint, certificates=tmp_path)
    assert not list(tmp_path.iterdir())  # nothing of a refused host is kept
    assert host.offered.empty()


def test_a_known_certificate_and_a_host_with_the_same_name_and_another_key(
    identity: Identity, other_identity: Identity, tmp_path: Path
) -> None:
    """The certificate is on disk, so the connection is verified at once; every host's name is the same."""
    with hosting(identity) as host, host.client(tmp_path):
        pass
    with hosting(other_identity) as impostor:
        with pytest.raises(CertificateChangedError):
            QuicConnection(("127.0.0.1", impostor.port), pin=identity.fingerprint, certificates=tmp_path)
        assert impostor.offered.empty()


def test_who_shows_the_right_certificate_without_its_key_gets_nowhere(
    identity: Identity, other_identity: Identity, tmp_path: Path
) -> None:
    """Certificates are public: somebody in between can send the host's, but cannot prove it."""
    with hosting(other_identity) as impostor:
        with hosting(identity) as host:
            impostor.listener._certificate = host.listener._certificate
        for pin in (identity.fingerprint, None):
            with pytest.raises(RefusedError, match="cannot be verified"):
                QuicConnection(("127.0.0.1", impostor.port), pin=pin, certificates=tmp_path)
        assert impostor.offered.empty()


@pytest.mark.parametrize("shown", [b"", b"x", b"x" * (16 * KIB + 1), b"x" * (200 * KIB)])
def test_a_host_that_sends_no_certificate_is_none(host: Host, tmp_path: Path, shown: bytes) -> None:
    host.listener._certificate = shown
    with pytest.raises(UnreachableError):
        QuicConnection(("127.0.0.1", host.port), pin=None, certificates=tmp_path, timeout=3)
    assert not list(tmp_path.iterdir())


# ---- nobody there ----------------------------------------------------------------------------------------------------


def test_a_port_that_nobody_listens_on_is_told_at_once(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(UnreachableError, match="nobody listens"):
        QuicConnection(("127.0.0.1", free_udp_port()), pin=None, certificates=tmp_path)
    assert time.monotonic() - started < 3


def test_who_never_answers_is_given_up(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        started = time.monotonic()
        with pytest.raises(UnreachableError, match="does not answer"):
            QuicConnection(sock.getsockname(), pin=None, certificates=tmp_path, timeout=0.5)
        assert 0.4 < time.monotonic() - started < 3


def test_a_name_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UnreachableError, match="no host named"):
        QuicConnection(("no-such-host.invalid", 1), pin=None, certificates=tmp_path)


@pytest.mark.slow
def test_a_name_whose_first_address_does_not_answer(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.3", 0))
        addresses = [(socket.AF_INET, silent.getsockname()), (socket.AF_INET, ("127.0.0.1", host.port))]
        monkeypatch.setattr("headrace.transport.eyeballs.resolve", lambda *of: addresses)
        with host.client(tmp_path, host="two.invalid", timeout=2.0) as connection:
            host.pair(connection)


def test_without_aiopquic_the_reason_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "aiopquic._binding._transport", None)
    binding.load.cache_clear()
    try:
        why = unavailable()
        assert why is not None
        assert "aiopquic" in why
        with pytest.raises(binding.UnavailableError, match="aiopquic"):
            QuicConnection(("127.0.0.1", 1), pin=None, certificates=tmp_path)
    finally:
        binding.load.cache_clear()


def test_an_aiopquic_that_lacks_something_is_refused() -> None:
    class Module:
        class TransportContext:
            start = None

        stream_ctx_create = stream_ctx_destroy = None

    with pytest.raises(AttributeError, match="has no stop"):
        binding.Native(Module)


# ---- back-pressure ---------------------------------------------------------------------------------------------------


def test_a_receiver_that_does_not_read_stops_the_sender_and_nobody_else(host: Host, tmp_path: Path) -> None:
    with host.client(tmp_path) as connection:
        near, far = host.pair(connection)
        sending = in_background(lambda: far.send(*[NOISE] * 20))  # 100 MiB
        wait_until(lambda: near._inflow.waiting >= FIRST_TO_CLIENT, "the window to fill")
        before = connection.path().bytes_in
        other, other_far = host.pair(connection)
        in_background(lambda: echo(other_far))
        for start in range(0, 4 * MIB, 64 * KIB):  # the same connection carries others meanwhile
            other.send(NOISE[start : start + 64 * KIB])
            assert receive(other, 64 * KIB) == NOISE[start : start + 64 * KIB]
        assert sending.is_alive()
        assert near._inflow.waiting == FIRST_TO_CLIENT
        assert far.bytes_out < FIRST_TO_CLIENT + 64 * KIB
        assert connection.path().bytes_in - before < 6 * MIB
        assert receive(near, 5 * MIB) == NOISE
        near.abort()
        sending.join(PATIENCE)
        assert not sending.is_alive()


def test_a_slow_reader_keeps_a_small_window(host: Host, tmp_path: Path) -> None:
    with host.client(tmp_path) as connection:
        near, far = host.pair(connection)
        in_background(lambda: far.send(NOISE))
        for _ in range(40):
            receive(near, 32 * KIB)
            time.sleep(0.01)
        assert near._inflow.window == FIRST_TO_CLIENT
        near.abort()


def test_who_has_no_room_for_grants_holds_nobody_else_up_and_gets_no_more(host: Host, tmp_path: Path) -> None:
    with host.client(tmp_path) as one, host.client(tmp_path) as other:
        near, far = host.pair(one)
        endpoint = host.listener._endpoint
        with endpoint.lock:
            endpoint.soon(lambda: False, far)  # as when its peer takes nothing that it was sent
        second_near, second_far = host.pair(other)
        in_background(lambda: second_near.send(bytes(MIB)))
        assert receive(second_far, MIB) == bytes(MIB)
        in_background(lambda: near.send(bytes(MIB)))
        assert receive(far, FIRST_TO_HOST - 1) == bytes(FIRST_TO_HOST - 1)
        with endpoint.lock:
            assert len(endpoint._owed[far]) == 1
            assert not far._inflow.waiting


def test_a_client_that_sends_more_than_granted_loses_its_connection(host: Host, tmp_path: Path) -> None:
    with host.client(tmp_path) as connection:
        near, far = host.pair(connection)
        near._credit = 10 * MIB  # it does not keep to the rules
        with pytest.raises(ConnectionLostError):
            for _ in range(100):
                near.send(NOISE[: FIRST_TO_HOST + 1])
        with pytest.raises(ConnectionLostError, match="more than it was granted"):
            receive_all(far)
        assert far._inflow.waiting <= FIRST_TO_HOST
    assert host.listener.counters["quic_rules_broken"] == 1


def test_a_client_may_open_no_streams_of_another_kind(host: Host, tmp_path: Path) -> None:
    with host.client(tmp_path) as connection:
        link = connection._link
        with link.endpoint.lock:
            link._pushed(2, link._new_context(), b"unidirectional", last=False)
        wait_until(lambda: link.closed is not None, "the host to close the connection")
    assert host.listener.counters["quic_rules_broken"] == 1


def test_limits_are_kept_in_both_directions(host: Host, tmp_path: Path) -> None:
    with host.client(tmp_path, limit=Limit(4 * MIB)) as connection:
        near, far = host.pair(connection)
        in_background(lambda: echo(far))
        started = time.monotonic()
        sending = in_background(lambda: near.send(NOISE[: 2 * MIB]))
        assert receive(near, 2 * MIB) == NOISE[: 2 * MIB]
        assert time.monotonic() - started > 0.35
        sending.join(PATIENCE)


# ---- many ------------------------------------------------------------------------------------------------------------


def test_many_streams_one_after_the_other(host: Host, tmp_path: Path) -> None:
    with host.client(tmp_path) as connection:
        for number in range(300):
            near, far = host.pair(connection)
            near.send(b"%d" % number)
            near.close()
            assert receive_all(far) == b"%d" % number
            far.close()
        wait_until(lambda: not connection._link.streams, "the streams to be given back")
        wait_until(lambda: len(connection._link._contexts) <= 1, "aiopquic's states of them to be freed")


def test_more_streams_than_may_be_open_wait_for_their_turn(identity: Identity, tmp_path: Path) -> None:
    with hosting(identity, limits=Limits(streams=4)) as host, host.client(tmp_path) as connection:
        first = [host.pair(connection) for _ in range(4)]
        late = connection.open_stream()
        late.send(b"late")
        with pytest.raises(queue.Empty):
            host.offered.get(timeout=0.2)
        for near, far in first:
            near.close()
            far.close()
        far = host.take()
        assert receive(far, 4) == b"late"


def test_many_streams_at_once_carry_their_own_bytes(host: Host, tmp_path: Path) -> None:
    with host.client(tmp_path) as connection:
        pairs = [host.pair(connection) for _ in range(24)]
        got: dict[int, bytes] = {}

        def fetch(number: int) -> None:
            got[number] = receive(pairs[number][0], 200 * KIB)

        threads = [in_background(lambda number=number: fetch(number)) for number in range(24)]  # type: ignore[misc]
        for number, (_, far) in enumerate(pairs):
            far.send(NOISE[number * 1000 : number * 1000 + 200 * KIB])
        for thread in threads:
            thread.join(PATIENCE)
        assert got == {number: NOISE[number * 1000 : number * 1000 + 200 * KIB] for number in range(24)}


def test_one_address_may_have_so_many_connections(identity: Identity, tmp_path: Path) -> None:
    with hosting(identity, limits=Limits(per_address=2)) as host, contextlib.ExitStack() as stack:
        kept = [stack.enter_context(host.client(tmp_path)) for _ in range(2)]
        with pytest.raises((UnreachableError, ConnectionLostError)):  # the host's word may come before or after
            third = stack.enter_context(host.client(tmp_path))
            wait_until(lambda: third._link.closed is not None, "the third to be turned away")
            third.open_stream()
        assert host.listener.counters["quic_refused_address"] == 1
        for connection in kept:
            host.pair(connection)


def test_a_connection_without_streams_is_closed_after_a_while(identity: Identity, tmp_path: Path) -> None:
    now = [0.0]
    with hosting(identity, clock=lambda: now[0] + time.monotonic()) as host, host.client(tmp_path) as connection:
        wait_until(lambda: host.listener.counters["quic_connections"] == 2, "the host to see the handshake's end")
        now[0] = 100.0
        wait_until(lambda: connection._link.closed is not None, "the host to close it")
        assert host.listener.counters["quic_idle"] == 1


@contextlib.contextmanager
def deaf(connection: QuicConnection) -> Iterator[None]:
    """The client's thread takes nothing any more; its QUIC goes on to answer."""
    with connection._dial.endpoint.lock:
        yield


@pytest.mark.parametrize("others", [True, False])
def test_what_a_peer_does_not_take_is_not_kept_for_it(
    identity: Identity, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: bool
) -> None:
    """The host closed the stream; what it sent before stays in a ring of 1 MiB."""
    monkeypatch.setattr("headrace.transport.quic.client.STREAM_WINDOW", 64 * KIB)
    now = [0.0]
    with hosting(identity, clock=lambda: now[0]) as host, host.client(tmp_path) as connection:
        _near, far = host.pair(connection)
        other = host.pair(connection)[1] if others else None
        (link,) = host.listener._endpoint.links.values()
        with deaf(connection):
            far.send(bytes(MIB - 64 * KIB))
            before = -1
            while before < 4 * KIB or link.ring(far)[1] != before:  # until the peer's window is full
                before = link.ring(far)[1]
                time.sleep(0.3)
            far.close()
            kept = link.ring(far)[0]
            now[0] = 5.0
            wait_until(lambda: far.left_at == 5.0, "the host to look")
            now[0] = 24.0
            looked = host.listener._endpoint.rounds
            wait_until(lambda: host.listener._endpoint.rounds > looked + 1, "the host to look again")
            assert link.ring(far)[0] == kept > 512 * KIB
            now[0] = 26.0
            wait_until(lambda: host.listener.counters["quic_streams_given_up"] == 1, "the stream to be given up")
            if other:
                wait_until(lambda: link.ring(far)[0] == 0, "what waited to be dropped")
                assert link.closed is None
            else:
                wait_until(lambda: link.closed is not None, "the connection to be closed")
        if other:
            other.send(b"still here")


def test_only_the_bound_address_is_served(identity: Identity, tmp_path: Path) -> None:
    with hosting(identity, bind="127.0.0.2") as host:
        with pytest.raises((ConnectionLostError, UnreachableError)):
            QuicConnection(("127.0.0.1", host.port), pin=None, certificates=tmp_path, timeout=3)
        assert host.listener.counters["quic_refused_bind"] == 1
        with host.client(tmp_path, host="127.0.0.2") as connection:
            host.pair(connection)


# ---- hostile packets -------------------------------------------------------------------------------------------------


def test_garbage_is_dropped_in_silence(host: Host, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    noise = random.Random(7)
    with host.client(tmp_path) as connection, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        near, far = host.pair(connection)
        sock.connect(("127.0.0.1", host.port))
        with caplog.at_level(logging.INFO):
            for number in range(2000):
                data = noise.randbytes(noise.choice([1, 20, 100, 1200, 1400]))
                if number % 3 == 0:
                    data = bytes([0xC0 | data[0]]) + b"\0\0\0\1" + data  # looks like a handshake
                with contextlib.suppress(OSError):
                    sock.send(data)
            far.send(b"still here")
            assert receive(near, 10) == b"still here"
        assert not caplog.records
        assert host.listener.connections <= 1 + 64


def initial_packet(tmp_path: Path) -> bytes:
    """The first packet of a client's handshake."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(PATIENCE)

        def dial() -> None:
            with contextlib.suppress(UnreachableError):
                QuicConnection(sock.getsockname(), pin=None, certificates=tmp_path, timeout=0.3)

        dialling = threading.Thread(target=dial)
        dialling.start()
        while (packet := sock.recv(2000))[1:5] != b"\0\0\0\1":
            pass
        dialling.join()
        return packet


@pytest.mark.slow
def test_handshakes_that_never_end_leave_others_alone(identity: Identity, tmp_path: Path) -> None:
    """Beyond 64 of them picoquic answers with Retry, which costs it nothing."""
    now = [0.0]
    packet = initial_packet(tmp_path)
    with hosting(identity, clock=lambda: now[0] + time.monotonic()) as host, host.client(tmp_path) as connection:
        near, far = host.pair(connection)
        in_background(lambda: echo(far))
        with contextlib.ExitStack() as stack:
            socks = [stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(200)]
            for sock in socks:
                sock.connect(("127.0.0.1", host.port))
                sock.settimeout(PATIENCE)
                sock.send(packet)
                near.send(b"x")
                assert receive(near, 1) == b"x"
            kinds = [sock.recv(2000)[0] >> 4 & 3 for sock in socks]
        assert kinds.count(3) >= 100  # Retry
        assert host.listener.connections <= 1 + 65
        with host.client(tmp_path) as late:
            host.pair(late)
        now[0] = 15.0
        wait_until(lambda: host.listener.connections <= 1, "the half-open ones to be given up")
        assert host.listener.counters["quic_handshakes_slow"] >= 60


# ---- the network changes ---------------------------------------------------------------------------------------------


class Relay:
    """A NAT: what it forwards comes from a port of its own, which `rebind` changes."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._front = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._front.bind(("127.0.0.1", 0))
        self._lock = threading.Lock()
        self._client: tuple[str, int] | None = None
        self._open = True
        self._back = self._bound("127.0.0.1")
        in_background(self._forth)

    @property
    def port(self) -> int:
        port: int = self._front.getsockname()[1]
        return port

    def _bound(self, address: str) -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind((address, 0))
        sock.connect(self._target)
        in_background(lambda: self._back_and(sock))
        return sock

    def rebind(self, address: str) -> None:
        with self._lock:
            old, self._back = self._back, self._bound(address)
        old.close()

    def _forth(self) -> None:
        with contextlib.suppress(OSError):
            while self._open:
                data, self._client = self._front.recvfrom(65536)
                with self._lock:
                    self._back.send(data)

    def _back_and(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while self._open:
                data = sock.recv(65536)
                if self._client:
                    self._front.sendto(data, self._client)

    def close(self) -> None:
        self._open = False
        for sock in (self._front, self._back):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()


def test_a_nat_that_changes_its_port_and_its_address_is_survived(host: Host, tmp_path: Path) -> None:
    with contextlib.closing(Relay(("127.0.0.1", host.port))) as relay:
        with host.client(tmp_path, port=relay.port) as connection:
            near, far = host.pair(connection)
            in_background(lambda: echo(far))
            for address in ("127.0.0.1", "127.0.0.5", "127.0.0.1"):
                relay.rebind(address)
                near.send(b"where am I")
                assert receive(near, 10) == b"where am I"
        assert host.listener.counters["quic_connections"] == 1 + 1  # the first one asked for the certificate


@pytest.mark.slow
def test_an_address_of_our_own_that_is_gone_ends_the_connection(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """picoquic goes on to send from the old one; to dial anew takes less than to wait for its idle timeout."""
    with host.client(tmp_path) as connection:
        near, _far = host.pair(connection)
        gone = threading.Event()
        ways: list[str | None] = [None, "127.0.0.9", "127.0.0.1"]  # none at all may be a short gap
        monkeypatch.setattr("headrace.transport.quic.client.is_ours", lambda address: not gone.is_set())
        monkeypatch.setattr(
            "headrace.transport.quic.client.source_address", lambda where: ways.pop(0) if ways else "192.0.2.9"
        )
        wait_until(lambda: not ways, "the route to be looked at")
        assert connection._link.closed is None
        gone.set()
        with pytest.raises(ConnectionLostError, match="address changed"):
            near.recv_into(memoryview(bytearray(1)))


# ---- the end ---------------------------------------------------------------------------------------------------------


def test_a_host_that_stops_ends_its_streams(identity: Identity, tmp_path: Path) -> None:
    with hosting(identity) as host, host.client(tmp_path) as connection:
        near, far = host.pair(connection)
        threading.Timer(0.1, host.listener.stop).start()
        with pytest.raises(ConnectionLostError, match="ended the connection"):
            near.recv_into(memoryview(bytearray(1)))
        with pytest.raises(ConnectionLostError):
            far.send(b"x")
        with pytest.raises(ConnectionLostError):
            connection.open_stream()


def test_a_client_that_closes_has_sent_everything(host: Host, tmp_path: Path) -> None:
    connection = QuicConnection(("127.0.0.1", host.port), pin=host.identity.fingerprint, certificates=tmp_path)
    near, far = host.pair(connection)
    got: list[bytes] = []

    def read() -> None:
        got.append(receive_all(far))
        far.close()

    reading = in_background(read)
    near.send(NOISE[: 3 * MIB])
    near.close()
    connection.close()
    connection.close()
    reading.join(PATIENCE)
    assert got == [NOISE[: 3 * MIB]]
    wait_until(lambda: not host.listener.connections, "the host to hear of the end")
    assert connection.bytes_wire > 3 * MIB


def test_abort_from_another_thread_ends_every_stream(host: Host, tmp_path: Path) -> None:
    with host.client(tmp_path) as connection:
        pairs = [host.pair(connection) for _ in range(3)]
        threading.Timer(0.1, connection.abort).start()
        for near, far in pairs:
            with pytest.raises(ConnectionLostError):
                near.recv_into(memoryview(bytearray(1)))
            with pytest.raises(ConnectionLostError):
                receive_all(far)
        with pytest.raises(ConnectionLostError):
            connection.open_stream()


CLIENT = """
    import sys, time
    from pathlib import Path
    from headrace.transport.quic.client import QuicConnection
    connection = QuicConnection(("127.0.0.1", {port}), pin=None, certificates=Path({home!r}))
    stream = connection.open_stream()
    stream.send(b"?")
    stream.recv_into(memoryview(bytearray(1)))
    print("connected", flush=True)
    {end}
"""


def client_process(host: Host, home: Path, end: str) -> subprocess.Popen[str]:
    code = textwrap.dedent(CLIENT).format(port=host.port, home=str(home), end=end)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_what_is_urgent_does_not_wait_behind_bulk(host: Host, tmp_path: Path) -> None:
    """Both on one connection: an answer of a few bytes, asked for while the other stream sends what it can."""
    with host.client(tmp_path) as connection:
        near, far = host.pair(connection)
        in_background(lambda: far.send(*[NOISE] * 40))
        asking, answering = host.pair(connection)
        answering.hurry()
        in_background(lambda: echo(answering))
        got = 0
        buffer = memoryview(bytearray(64 * KIB))
        arrived: list[int] = []  # bytes of bulk that came while each answer was on its way
        for _ in range(20):
            asking.send(b"now")
            answer = in_background(lambda: arrived.append(len(receive(asking, 3))))
            before = got
            while answer.is_alive():
                got += near.recv_into(buffer)
            arrived[-1] = got - before
            answer.join()
        near.abort()
        counters = far._link.endpoint.native_context.counters
        assert counters["set_priority_rejected"] == 0
        assert sorted(arrived)[10] < MIB  # less than what waits in the bulk stream's ring


@pytest.mark.parametrize("end", ["sys.exit(3)", "raise SystemExit(3)", "del connection, stream; sys.exit(3)"])
def test_a_program_that_just_ends_does_so_cleanly(host: Host, tmp_path: Path, end: str) -> None:
    with client_process(host, tmp_path, end) as client:
        far = host.take()
        with contextlib.suppress(ConnectionLostError):
            far.send(b"!" * MIB)  # more comes than it reads
        out, err = client.communicate(timeout=20)
    assert (client.returncode, out, err) == (3, "connected\n", "")
    with pytest.raises(ConnectionLostError):
        receive_all(far)  # told by the program's exit, long before the idle timeout


def test_a_program_that_ends_while_its_endpoint_starts_does_so_cleanly(
    host: Host, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The interpreter's exit stops all endpoints there are, also one whose thread is about to start."""

    class Exiting:
        def add(self, one: endpoint.Endpoint) -> None:
            one.stop()

        def discard(self, one: endpoint.Endpoint) -> None: ...

    monkeypatch.setattr(endpoint, "_LIVE", Exiting())
    with pytest.raises(UnreachableError, match="this program ends"):
        host.client(tmp_path, pin=host.identity.fingerprint).__enter__()


@pytest.mark.slow
def test_a_client_that_is_killed_is_found_out(
    identity: Identity, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "IDLE_TIMEOUT", 1.0)
    monkeypatch.setattr(endpoint, "KEEP_ALIVE", 0.3)
    with hosting(identity) as host, client_process(host, tmp_path, "time.sleep(60)") as client:
        far = host.take()
        far.set_timeout(None)  # nothing else would end the wait
        far.send(b"!")
        assert client.stdout is not None
        assert client.stdout.readline() == "connected\n"
        os.kill(client.pid, signal.SIGKILL)
        with pytest.raises(ConnectionLostError):
            receive_all(far)
        wait_until(lambda: not host.listener.connections, "the connection to go")


@pytest.mark.slow
def test_keep_alive_holds_a_quiet_connection(
    identity: Identity, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "IDLE_TIMEOUT", 0.8)
    monkeypatch.setattr(endpoint, "KEEP_ALIVE", 0.2)
    with hosting(identity) as host, host.client(tmp_path) as connection:
        near, far = host.pair(connection)
        time.sleep(2.0)
        far.send(b"!")
        assert receive(near, 1) == b"!"


def test_the_path_is_told(host: Host, tmp_path: Path) -> None:
    with host.client(tmp_path) as connection:
        near, far = host.pair(connection)
        before = connection.path()
        in_background(lambda: far.send(NOISE))
        receive(near, 5 * MIB)
        wait_until(lambda: connection.path().bytes_in > before.bytes_in + 5 * MIB, "the figures to move")
        after = connection.path()
        assert after.sent > before.sent
        assert after.window > 0
        assert 0 < after.rtt < 10
        wait_until(lambda: far._link.path().bytes_out > 5 * MIB, "the host's figures to move")
        host_side = far._link.path()
        assert 0 <= host_side.lost < host_side.sent


def test_a_sender_waits_for_room_for_its_commands(host: Host, tmp_path: Path) -> None:
    """aiopquic takes 2,048 commands before its thread gets to them; a flood of small messages must not lose any."""
    with host.client(tmp_path) as connection:
        near, far = host.pair(connection)
        got: list[bytes] = []
        reading = in_background(lambda: got.append(receive(far, 6000)))
        for _ in range(6000):
            near.send(b".")
        reading.join(PATIENCE)
        assert got == [b"." * 6000]


def test_a_host_that_begins_to_listen_a_moment_later_is_reached(identity: Identity, tmp_path: Path) -> None:
    """A share gives its reserved UDP port to the library; for some milliseconds nobody has it."""
    port = free_udp_port()
    with contextlib.ExitStack() as stack:
        begin = threading.Timer(0.08, lambda: stack.enter_context(hosting(identity, port=port)))
        begin.start()
        connection = QuicConnection(("127.0.0.1", port), pin=None, certificates=tmp_path)
        connection.close()
        begin.join()
    assert connection.fingerprint == identity.fingerprint
