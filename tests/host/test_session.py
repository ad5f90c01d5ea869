"""One connection from the host's side, over real TLS: who gets in, what it costs, what is told."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import pytest

from headrace.engine.buffers import BufferPool
from headrace.errors import (
    ConnectionLostError,
    CredentialUnknownError,
    HeadraceError,
    NoCommonVersionError,
    ProtocolError,
    ShareLockedError,
    WrongCodeError,
)
from headrace.host import session
from headrace.host.guesses import GuessLimit
from headrace.host.limits import HANDSHAKE_TIMEOUT, Limits
from headrace.host.session import Event, Share, serve
from headrace.protocol.codes import Code
from headrace.protocol.frames import PREFIX
from headrace.protocol.messages import (
    CHUNK_SIZE,
    ROLE_CONTROL,
    ROLE_DATA,
    AuthPake,
    Chunk,
    Data,
    Error,
    GetChunk,
    Goodbye,
    Hello,
    Ping,
    Pong,
    Read,
    Stat,
    StatReply,
    Walk,
)
from headrace.protocol.session import Agreed, ClientHandshake, Versions
from headrace.storage.tree import SharedTree
from headrace.transport import tcp
from headrace.transport.framed import MessageStream
from headrace.transport.identity import Identity
from headrace.transport.tcp import TcpStream, client_context, server_context
from headrace.transport.trust import Peers

CODE: Final = Code.parse("7k2m-xq4c-9dht")
WRONG: Final = Code.parse("7k2m-xq4c-9dhv")
ADDRESS: Final = "192.0.2.7"
PATIENCE: Final = 10.0
LONG: Final = b"/".join([b"x" * 255] * 16)  # more than a frame of the handshake may hold


@dataclass
class Host:
    """A share, and the connections that were made to it. events: what it told."""

    share: Share
    context: ssl.SSLContext
    events: list[Event] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)
    open: list[TcpStream] = field(default_factory=list)
    now: float = 1000.0

    def connect(self, address: str = ADDRESS, **changed: Any) -> TcpStream:
        """A stream to it, before TLS; a thread of the host serves the other end."""
        near, far = socket.socketpair()
        there = TcpStream(far, self.context, server=True)
        share = replace(self.share, **changed)
        thread = threading.Thread(target=serve, args=(there, share, address))
        self.threads.append(thread)
        thread.start()
        here = TcpStream(near, client_context(), server=False, timeout=PATIENCE)
        self.open += [here, there]
        return here

    def greet(self, stream: TcpStream | None = None, **handshake: Any) -> tuple[MessageStream, Agreed]:
        """A session with it. handshake: what is other than a client with the right code would have it."""
        stream = stream or self.connect()
        stream.handshake()
        facts: dict[str, Any] = {
            "fingerprint": stream.fingerprint,
            "entropy": os.urandom,
            "code": CODE,
            "agent": "test 1",
        }
        client = ClientHandshake(**facts | handshake)
        messages = MessageStream(stream)
        messages.send_all(client.start())
        while client.agreed is None:
            message, payload = messages.expect()
            assert payload == 0
            messages.send_all(client.receive(message))
        messages.enter_session()
        return messages, client.agreed

    def settled(self) -> list[Event]:
        """What was told, once every session is over."""
        for thread in self.threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()
        return self.events


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return Identity.load_or_create(tmp_path_factory.mktemp("home"))


@pytest.fixture
def host(tmp_path: Path, identity: Identity) -> Iterator[Host]:
    folder = tmp_path / "footage"
    folder.mkdir()
    (folder / "small").write_bytes(b"headwater\n")
    (folder / "big").write_bytes(bytes(range(256)) * (CHUNK_SIZE // 256))
    events: list[Event] = []
    with SharedTree.open([folder]) as tree:
        share = Share(
            tree=tree,
            code=CODE,
            identity=identity,
            peers=Peers(tmp_path / "home"),
            guesses=GuessLimit(lambda: found.now),
            agent="headrace test",
            on_event=events.append,
        )
        found = Host(share, server_context(str(identity.file)), events)
        yield found
        for stream in found.open:
            stream.abort()
        for thread in found.threads:
            thread.join(PATIENCE)
        for stream in found.open:
            stream.close()


def goodbye(messages: MessageStream) -> None:
    messages.send(Goodbye())
    messages.close()


# ---- getting in ----------------------------------------------------------------------------------------------------


def test_first_contact_with_the_code(host: Host) -> None:
    messages, agreed = host.greet()
    assert agreed.keys
    assert (agreed.version, agreed.share, agreed.name, agreed.agent) == (8, "7k2m", "footage", "headrace test")
    assert host.share.peers.credential(agreed.peer, CODE) == agreed.keys.credential
    messages.send(Stat(1, b"small"))
    answer, _ = messages.expect()
    assert isinstance(answer, StatReply)
    assert answer.entry.size == 10
    goodbye(messages)
    (record,) = host.share.peers.all()
    assert record.label == f"test 1 from {ADDRESS}"
    assert host.share.guesses.wrong_total == 0


def test_later_connections_with_the_credential(host: Host) -> None:
    messages, first = host.greet()
    assert first.keys
    known: dict[str, Any] = {"code": None, "peer": first.peer, "credential": first.keys.credential}
    for role in (ROLE_CONTROL, ROLE_DATA):
        other, agreed = host.greet(**known, role=role)
        assert agreed.peer == first.peer
        assert agreed.keys is None
        other.send(Ping(1))
        assert other.expect() == (Pong(1), 0)
        goodbye(other)
    goodbye(messages)


@pytest.mark.parametrize("versions", [Versions(7, 7), Versions(8, 8), Versions(7, 9)])
def test_the_highest_common_phase_is_taken(host: Host, versions: Versions) -> None:
    messages, agreed = host.greet(versions=versions)
    assert agreed.version == min(8, versions.high)
    messages.send(Read(1, b"small", 0, 100))
    assert messages.expect() == (Data(1), 10)
    messages.skip_payload()
    goodbye(messages)


def test_requests_right_behind_the_handshake_are_answered(host: Host) -> None:
    _, first = host.greet()
    assert first.keys
    stream = host.connect()
    stream.handshake()
    client = ClientHandshake(
        fingerprint=stream.fingerprint, entropy=os.urandom, peer=first.peer, credential=first.keys.credential
    )
    messages = MessageStream(stream)
    messages.send_all([*client.start(), *[Stat(number, LONG) for number in range(1, 4)], Ping(9)])
    while client.agreed is None:
        client.receive(messages.expect()[0])
    messages.enter_session()
    answers = [messages.expect()[0] for _ in range(4)]
    assert [answer.id for answer in answers] == [1, 2, 3, 9]  # type: ignore[attr-defined]
    assert [type(answer) for answer in answers] == [Error, Error, Error, Pong]
    goodbye(messages)


# ---- not getting in ------------------------------------------------------------------------------------------------


def test_a_wrong_code_is_refused_and_counted(host: Host) -> None:
    with pytest.raises(WrongCodeError):
        host.greet(code=WRONG)
    assert host.settled() == [
        {"event": "error", "code": "wrong_code", "message": "the code is wrong", "address": ADDRESS}
    ]
    assert host.share.guesses.wrong_total == 1
    assert host.share.peers.all() == []


def test_a_guess_that_is_broken_off_counts_as_wrong(host: Host) -> None:
    """Who has the host's element may know by now whether the guess was right."""
    stream = host.connect()
    stream.handshake()
    client = ClientHandshake(fingerprint=stream.fingerprint, entropy=os.urandom, code=WRONG)
    messages = MessageStream(stream)
    messages.send_all(client.start())
    messages.expect()
    messages.expect()
    stream.abort()
    host.settled()
    assert host.share.guesses.wrong_total == 1


def test_a_guess_before_the_hosts_element_does_not_count(host: Host) -> None:
    """It may be a bad line or a faulty client; nothing was learnt."""
    for element in (b"", b"A" + bytes(32), b"B" * 33):
        stream = host.connect()
        stream.handshake()
        messages = MessageStream(stream)
        messages.send_all([Hello((7, 8), [], ""), AuthPake(element)])
        messages.expect()
        answer, _ = messages.expect()
        assert isinstance(answer, Error)
        assert answer.code == "protocol"
    host.settled()
    assert host.share.guesses.wrong_total == 0


def test_ten_wrong_codes_lock_but_paired_peers_still_get_in(host: Host) -> None:
    messages, paired = host.greet()
    assert paired.keys
    goodbye(messages)
    for _ in range(10):
        host.share.guesses.started(ADDRESS)
        host.share.guesses.wrong(ADDRESS)
    with pytest.raises(ShareLockedError, match="60 s"):
        host.greet()
    again, agreed = host.greet(code=None, peer=paired.peer, credential=paired.keys.credential)
    assert agreed.peer == paired.peer
    goodbye(again)
    host.now += 60
    goodbye(host.greet()[0])
    assert {"locked"} == {event["code"] for event in host.settled() if event["event"] == "error"}


def test_a_locked_share_says_for_how_long(host: Host) -> None:
    for _ in range(10):
        host.share.guesses.started(ADDRESS)
        host.share.guesses.wrong(ADDRESS)
    stream = host.connect()
    stream.handshake()
    messages = MessageStream(stream)
    messages.send_all(ClientHandshake(fingerprint=stream.fingerprint, entropy=os.urandom, code=CODE).start())
    messages.expect()
    answer, _ = messages.expect()
    assert isinstance(answer, Error)
    assert (answer.id, answer.code, answer.retry_after) == (0, "locked", 60)
    assert messages.receive() is None, "the host closes in order"


@pytest.mark.parametrize("changed", [{"peer": b"q" * 16}, {"credential": b"x" * 32}, {"peer": b""}])
def test_an_unknown_credential_is_refused_and_costs_no_guess(host: Host, changed: dict[str, Any]) -> None:
    messages, paired = host.greet()
    assert paired.keys
    goodbye(messages)
    known: dict[str, Any] = {"code": None, "peer": paired.peer, "credential": paired.keys.credential}
    with pytest.raises(CredentialUnknownError):
        host.greet(**known | changed)
    assert host.share.guesses.wrong_total == 0


def test_a_pairing_with_an_earlier_code_of_the_share_is_not_known(host: Host) -> None:
    messages, paired = host.greet()
    assert paired.keys
    goodbye(messages)
    with pytest.raises(CredentialUnknownError):
        host.greet(host.connect(code=WRONG), code=None, peer=paired.peer, credential=paired.keys.credential)


def test_no_common_version_names_both_ranges(host: Host) -> None:
    with pytest.raises(NoCommonVersionError, match=r"7 to 8.*9 to 12"):
        host.greet(versions=Versions(9, 12))
    (event,) = host.settled()
    assert (event["event"], event["code"]) == ("error", "version")


def test_somebody_in_between_learns_nothing_from_a_right_code(host: Host) -> None:
    """The client saw another certificate, so its key is another one."""
    with pytest.raises(WrongCodeError):
        host.greet(fingerprint=b"m" * 32)
    host.settled()
    assert host.share.guesses.wrong_total == 1


@pytest.mark.parametrize(
    "first",
    [
        [Ping(1)],
        [Stat(1, b"")],
        [Hello((7, 8), [], ""), Ping(1)],
        [Hello((7, 8), [], ""), Hello((7, 8), [], "")],
        [Hello((7, 8), [], "", "root")],
        [Hello((7, 8), ["f"] * 1000, "")],
    ],
)
def test_out_of_turn_ends_the_handshake(host: Host, first: list[Any]) -> None:
    stream = host.connect()
    stream.handshake()
    messages = MessageStream(stream)
    messages.enter_session()  # our own limits
    messages.send_all(first)
    answers = []
    while received := messages.receive():
        answers.append(received[0])
    assert isinstance(answers[-1], Error)
    assert answers[-1].code == "protocol"
    host.settled()
    assert host.share.guesses.wrong_total == 0


@pytest.mark.parametrize("raw", [PREFIX.pack(5000, 0), PREFIX.pack(10, 1), PREFIX.pack(3, 0) + b"\xc1" * 3])
def test_frames_that_break_the_limits_of_the_handshake(host: Host, raw: bytes) -> None:
    stream = host.connect()
    stream.handshake()
    stream.send(raw)
    answer, _ = MessageStream(stream).expect()
    assert isinstance(answer, Error)
    assert (answer.id, answer.code) == (0, "protocol")
    assert [event["code"] for event in host.settled()] == ["protocol"]


# ---- those who do not come to the point ------------------------------------------------------------------------------


def test_who_says_nothing_is_dropped(host: Host) -> None:
    host.connect(limits=Limits(handshake=0.05))
    assert host.settled() == []


class Clock:
    """Stands in for the `time` module of the transport; a test moves it."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(tcp, "time", clock)
    return clock


def test_who_dribbles_is_dropped_when_its_time_is_over(host: Host, clock: Clock) -> None:
    """A byte now and then is progress for each single wait, but the handshake as a whole has a deadline."""
    stream = host.connect()
    stream.handshake()
    messages = MessageStream(stream)
    messages.send(Hello((7, 8), [], ""))
    messages.expect()
    stream.send(PREFIX.pack(4096, 0))
    clock.now += HANDSHAKE_TIMEOUT - 0.1
    stream.send(b"\x80")
    clock.now += 0.2
    with contextlib.suppress(ConnectionLostError):  # it may have seen the time already
        stream.send(b"\x80")
    assert messages.receive() is None
    assert host.settled() == []


def test_who_stops_in_the_middle_of_a_guess_has_spent_it(host: Host, clock: Clock) -> None:
    stream = host.connect()
    stream.handshake()
    messages = MessageStream(stream)
    messages.send_all(ClientHandshake(fingerprint=stream.fingerprint, entropy=os.urandom, code=CODE).start())
    messages.expect()
    messages.expect()
    clock.now += HANDSHAKE_TIMEOUT + 1
    stream.send(b"\0")
    assert messages.receive() is None
    host.settled()
    assert host.share.guesses.wrong_total == 1


def test_a_session_may_be_idle_for_as_long_as_it_likes(
    host: Host, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "STALL_TIMEOUT", 0.01)
    messages, _ = host.greet()
    messages.send(Ping(1))
    assert messages.expect() == (Pong(1), 0)
    clock.now += 1_000_000
    stream = host.open[-1]
    asked: list[bool] = []
    patient = stream.patient
    assert patient

    def count(sending: bool) -> bool:
        asked.append(sending)
        return patient(sending)

    stream.patient = count
    while len(asked) < 5:  # so many timeouts of the host's
        time.sleep(0.001)
    messages.send(Ping(2))
    assert messages.expect() == (Pong(2), 0)
    assert not any(asked)
    goodbye(messages)


@pytest.mark.parametrize("others_wait", [False, True])
def test_who_takes_nothing_is_borne_unless_others_wait_for_the_buffer(
    host: Host, monkeypatch: pytest.MonkeyPatch, others_wait: bool
) -> None:
    monkeypatch.setattr(session, "STALL_TIMEOUT", 0.01)
    pool = BufferPool(CHUNK_SIZE)
    messages, _ = host.greet(host.connect(buffers=pool))
    messages.send(GetChunk(2, b"big", b"", 0, CHUNK_SIZE))
    while not pool.figures().in_use:
        time.sleep(0.001)
    waiting = threading.Thread(target=lambda: pool.acquire(CHUNK_SIZE).release())
    if others_wait:
        waiting.start()
        waiting.join(PATIENCE)
        assert not waiting.is_alive(), "the buffer did not come back"
        with pytest.raises(ConnectionLostError):
            messages.expect()
            messages.read_payload(memoryview(bytearray(CHUNK_SIZE)))
    else:
        for _ in range(20):
            time.sleep(0.01)  # several timeouts; a pause is what is tested
        answer, size = messages.expect()
        assert isinstance(answer, Chunk)
        messages.read_payload(memoryview(bytearray(size)))
        goodbye(messages)


@pytest.mark.parametrize("noise", [b"", b"GET / HTTP/1.1\r\n\r\n", bytes(1000), b"\x16\x03\x01\xff\xff" + bytes(100)])
def test_what_is_not_tls_is_nobodys_business(host: Host, noise: bytes) -> None:
    stream = host.connect()
    stream._sock.send(noise)
    stream._sock.shutdown(socket.SHUT_WR)
    assert host.settled() == []


# ---- in session ----------------------------------------------------------------------------------------------------


def test_a_goodbye_and_a_close_end_a_session_alike(host: Host) -> None:
    for end in (goodbye, MessageStream.close, MessageStream.abort):
        messages, agreed = host.greet()
        end(messages)
        events = host.settled()
        peer = {"agent": "test 1", "protocol": 8, "peer": agreed.peer.hex()[:8], "address": ADDRESS}
        assert events == [
            {"event": "peer", "state": "connected", **peer},
            {"event": "peer", "state": "gone", **peer},
        ]
        events.clear()


def test_what_was_fetched_is_told_at_the_end(host: Host) -> None:
    messages, first = host.greet()
    assert first.keys
    known: dict[str, Any] = {"code": None, "peer": first.peer, "credential": first.keys.credential}
    lane, _ = host.greet(**known, role=ROLE_DATA)
    messages.send(Stat(1, b"small"))
    answer, _ = messages.expect()
    assert isinstance(answer, StatReply)
    for number in range(1, 4):
        lane.send(GetChunk(number, b"small", answer.entry.version, 0, 10))
        _, size = lane.expect()
        lane.skip_payload()
        assert size == 10
    goodbye(lane)
    goodbye(messages)
    events = host.settled()
    (transfer,) = [event for event in events if event["event"] == "transfer"]
    assert transfer["bytes"] == 30
    assert transfer["seconds"] >= 0
    assert transfer["peer"] == first.peer.hex()[:8]
    peers = [event["state"] for event in events if event["event"] == "peer"]
    assert peers == ["connected", "gone"], "a data connection is no peer of its own"


def test_an_error_to_one_request_does_not_end_the_session(host: Host) -> None:
    messages, _ = host.greet()
    messages.send(Stat(1, b"nothing"))
    answer, _ = messages.expect()
    assert isinstance(answer, Error)
    assert (answer.id, answer.code) == (1, "not_found")
    messages.send(Ping(2))
    assert messages.expect() == (Pong(2), 0)
    goodbye(messages)
    assert "error" not in {event["event"] for event in host.settled()}


@pytest.mark.parametrize("kind", ["bulk in phase 7", "payload", "path", "no request", "no frame"])
def test_breaking_the_rules_ends_the_session_with_a_reason(host: Host, kind: str) -> None:
    messages, _ = host.greet(versions=Versions(7, 7))
    if kind == "bulk in phase 7":
        messages.send(Walk(1, b""))
    elif kind == "payload":
        messages.send(Ping(1), b"x")
    elif kind == "path":
        messages.send(Stat(1, b"../.."))
    elif kind == "no request":
        messages.send(Pong(1))
    else:
        messages.stream.send(b"\xff" * 8)
    with contextlib.suppress(ConnectionLostError):  # it may have closed already
        messages.send(Ping(2))
    answer, _ = messages.expect()
    assert isinstance(answer, Error)
    assert (answer.id, answer.code) == (0, "protocol")
    assert messages.receive() is None
    assert [event["code"] for event in host.settled() if event["event"] == "error"] == ["protocol"]
    assert [event["state"] for event in host.events if event["event"] == "peer"] == ["connected", "gone"]


def test_many_at_once_do_not_mix(host: Host) -> None:
    failed: list[BaseException] = []

    def talk(number: int) -> None:
        try:
            messages, _ = host.greet(agent=f"client {number}")
            for step in range(1, 20):
                messages.send_all([Ping(number * 100 + step), Stat(number * 100 + step, b"small")])
                assert messages.expect() == (Pong(number * 100 + step), 0)
                answer, _ = messages.expect()
                assert isinstance(answer, StatReply)
                assert answer.id == number * 100 + step
            goodbye(messages)
        except BaseException as why:  # noqa: BLE001  # raised where the test can see it
            failed.append(why)

    clients = [threading.Thread(target=talk, args=(number,)) for number in range(1, 5)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    assert failed == []
    states = [event["state"] for event in host.settled() if event["event"] == "peer"]
    assert sorted(states) == ["connected"] * 4 + ["gone"] * 4
    assert len(host.share.peers.all()) == 4


def test_secrets_are_in_no_event_and_no_log(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(0)
    messages, agreed = host.greet()
    assert agreed.keys
    goodbye(messages)
    with contextlib.suppress(HeadraceError):
        host.greet(code=WRONG)
    said = repr(host.settled()) + caplog.text
    for secret in (CODE.secret, WRONG.secret, agreed.keys.credential.hex(), repr(agreed.keys.credential)[2:-1]):
        assert secret not in said


def test_over_loopback(host: Host) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    thread = threading.Thread(target=serve, args=(TcpStream(far, host.context, server=True), host.share, ADDRESS))
    host.threads.append(thread)
    thread.start()
    messages, agreed = host.greet(TcpStream(near, client_context(), server=False))
    assert agreed.name == "footage"
    messages.send(Ping(1))
    assert messages.expect() == (Pong(1), 0)
    goodbye(messages)
    host.settled()


def test_an_abort_from_the_host_ends_a_session(host: Host) -> None:
    """As when the share stops."""
    messages, _ = host.greet()
    host.open[-1].abort()
    with pytest.raises(ConnectionLostError):
        messages.expect()
    host.settled()
    messages.close()


def test_a_client_that_breaks_off_in_the_middle_of_a_request(host: Host) -> None:
    messages, _ = host.greet()
    messages.stream.send(PREFIX.pack(100, 0) + b"half")
    messages.close()
    assert [event["event"] for event in host.settled()] == ["peer", "peer"]


def test_the_client_refuses_a_host_that_answers_out_of_turn(host: Host) -> None:
    """The other half of the same rule, as the client's machine has it."""
    stream = host.connect()
    stream.handshake()
    client = ClientHandshake(fingerprint=stream.fingerprint, entropy=os.urandom, code=CODE)
    client.start()
    with pytest.raises(ProtocolError):
        client.receive(Pong(1))
