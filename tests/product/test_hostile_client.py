"""A client that breaks the rules: it gets nothing that was not shared, and the share goes on."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import headrace
from headrace.errors import ConnectionLostError, CredentialUnknownError, HeadraceError, ShareLockedError
from headrace.host.limits import Limits
from headrace.protocol.codes import Code
from headrace.protocol.frames import encode_frame
from headrace.protocol.messages import (
    CHUNK_SIZE,
    READ_SIZE,
    AuthCredential,
    AuthPake,
    AuthPakeConfirm,
    AuthPakeReply,
    Chunk,
    Data,
    Entry,
    Error,
    GetChunk,
    GetManifest,
    Goodbye,
    Granted,
    Hello,
    List,
    ListPart,
    ManifestPart,
    Message,
    Ping,
    Pong,
    Read,
    Stat,
    StatReply,
    Walk,
    Welcome,
)
from headrace.protocol.pake import client_exchange, credential_proof
from headrace.protocol.session import Versions

from .scripted import Paired, ScriptedClient
from .support import (
    CODE,
    MIB,
    WRONG_CODE,
    Host,
    assert_same_tree,
    finish,
    make_file,
    noise,
    run_get,
    start_get,
    wait_until,
)

SECRET = b"not shared, never to be seen"
HELLO = Hello((7, 8), [], "scripted")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared")
    make_file(folder / "secret", SECRET)
    make_file(folder / "share" / "file", b"content")
    make_file(folder / "share" / "sub" / "big", noise(9 * MIB))
    (folder / "share" / "out").symlink_to(folder)
    (folder / "share" / "leak").symlink_to(folder / "secret")
    os.mkfifo(folder / "share" / "pipe")
    return folder


@pytest.fixture(scope="module")
def host(place: Path) -> Iterator[Host]:
    with Host(place / "share", home=place / "home", options=["-v"]) as host:
        yield host
        assert "Traceback" not in host.stderr, host.stderr


@pytest.fixture(scope="module")
def paired(host: Host) -> Paired:
    with ScriptedClient(host.port) as client:
        return client.pair()


@pytest.fixture
def client(host: Host, paired: Paired) -> Iterator[ScriptedClient]:
    with ScriptedClient(host.port) as client:
        client.come_back(paired)
        yield client


@pytest.fixture(autouse=True)
def still_serving(host: Host, paired: Paired) -> Iterator[None]:
    """After every test: alive, and it answers."""
    yield
    assert host.alive()
    with ScriptedClient(host.port) as client:
        client.come_back(paired)
        assert isinstance(client.ask(Ping(1))[0], Pong)


def content_in(messages: list[Message]) -> bool:
    return any(isinstance(message, StatReply | ListPart | Data | Chunk | ManifestPart) for message in messages)


# ---- paths -------------------------------------------------------------------------------------------------------

BAD_PATHS = [b"../secret", b"..", b"sub/../../secret", b"/etc/passwd", b".", b"./file", b"sub//big", b"file\0", b"sub/"]
BAD_PATHS += [b"x" * 256, b"x/" * 300 + b"x", b"y" * 5000]


def requests_for(path: bytes) -> list[Message]:
    return [
        Stat(1, path),
        List(1, path),
        Walk(1, path),
        Read(1, path, 0, 100),
        GetChunk(1, path, b"", 0, 28),
        GetManifest(1, path, b""),
    ]


@pytest.mark.parametrize("path", BAD_PATHS, ids=[repr(path[:20]) for path in BAD_PATHS])
def test_paths_that_would_lead_out(host: Host, paired: Paired, path: bytes) -> None:
    number = BAD_PATHS.index(path)
    requests = requests_for(path)
    for request in requests if number == 0 else [requests[number % len(requests)]]:
        with ScriptedClient(host.port) as client:
            client.come_back(paired)
            client.send(request)
            said = client.until_closed()
            assert [type(message) for message in said] == [Error], (request, said)
            assert said[0].code == "protocol"  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", [b"out/secret", b"leak", b"out", b"out/share/file", b"pipe", b"nothing", b"file/x"])
def test_paths_through_links_and_other_things(client: ScriptedClient, path: bytes) -> None:
    """Refused one by one; the session goes on."""
    for request in requests_for(path)[1:]:
        answer, payload = client.ask(request)
        assert isinstance(answer, Error), (request, answer)
        assert answer.code == "not_found"
        assert SECRET not in payload
    assert isinstance(client.ask(Stat(9, b"file"))[0], StatReply)


def test_a_folder_that_is_swapped_for_a_link_again_and_again(host: Host, place: Path, client: ScriptedClient) -> None:
    """Whoever can write in the share cannot make the host read outside of it, however well it is timed."""
    share = place / "share"
    (share / "real").mkdir()
    make_file(share / "real" / "secret", b"inside")
    (share / "link").symlink_to(place)
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            for name in ("real", "link"):
                (share / name).rename(share / "spot")
                (share / "spot").rename(share / name)

    swapper = threading.Thread(target=swap)
    swapper.start()
    seen = set()
    try:
        for number in range(1, 600):
            answer, payload = client.ask(Read(number, b"spot/secret", 0, 100))
            seen.add(payload if isinstance(answer, Data) else getattr(answer, "code", ""))
    finally:
        stop.set()
        swapper.join()
        for name in ("spot", "link"):
            with contextlib.suppress(OSError):
                (share / name).unlink()
    assert seen <= {b"inside", "not_found", "changed"}


# ---- order -------------------------------------------------------------------------------------------------------


def wrong_mac(client: ScriptedClient) -> list[Message]:
    exchange = client_exchange(Code.parse(CODE), client.stream.fingerprint, os.urandom)
    return [HELLO, AuthPake(exchange.element), AuthPakeConfirm(bytes(32))]


OUT_OF_ORDER: dict[str, list[Message]] = {
    "a question first": [Stat(1, b"")],
    "a question after Hello": [HELLO, Read(1, b"file", 0, 7)],
    "a confirmation of nothing": [HELLO, AuthPakeConfirm(bytes(32))],
    "Hello twice": [HELLO, HELLO],
    "what only hosts say": [HELLO, Granted(bytes(32), "me"), Stat(1, b"")],
    "a goodbye at once": [Goodbye()],
    "a chunk": [HELLO, Chunk(1, bytes(32))],
    "an error": [Error(0, "internal", "\x1b[2J")],
    "Welcome": [Welcome(8, [], "host", "h3ad"), StatReply(1, Entry(b"x", "f"))],
    "an unknown peer": [HELLO, AuthCredential(bytes(16), bytes(16), bytes(32)), Stat(1, b"")],
    "odd sizes": [HELLO, AuthCredential(b"", b"", b""), Stat(1, b"")],
    "a credential of a MiB": [HELLO, AuthCredential(bytes(16), bytes(MIB), bytes(32))],
    "versions the wrong way round": [Hello((9, 7), [], "x")],
    "versions far off": [Hello((1 << 40, 1 << 41), [], "x")],
    "too many features": [Hello((7, 8), ["x"] * 100, "x")],
    "a long agent": [Hello((7, 8), [], "x" * 1000)],
    "an odd role": [Hello((7, 8), [], "x", role="root")],
    "a SPAKE2 element that is none": [HELLO, AuthPake(bytes(33))],
    "an empty SPAKE2 element": [HELLO, AuthPake(b"")],
}


@pytest.mark.parametrize("case", OUT_OF_ORDER)
def test_out_of_order_before_anybody_was_let_in(host: Host, case: str) -> None:
    with ScriptedClient(host.port) as client:
        client.send(*OUT_OF_ORDER[case], Read(2, b"file", 0, 7), GetChunk(3, b"file", b"", 0, 7))
        said = client.until_closed()
    assert not content_in(said), said
    assert not any(isinstance(message, Granted) for message in said)


def test_questions_behind_a_wrong_proof_are_not_answered(place: Path, tmp_path: Path) -> None:
    with Host(place / "share", home=tmp_path / "host") as host, ScriptedClient(host.port) as client:
        client.send(*wrong_mac(client), Read(1, b"file", 0, 7), GetChunk(2, b"file", b"", 0, 7))
        said = client.until_closed()
        assert [type(message) for message in said] == [Welcome, AuthPakeReply, Error]
        assert said[-1].code == "wrong_code"  # type: ignore[attr-defined]


def test_a_guess_that_is_broken_off_counts(place: Path, tmp_path: Path) -> None:
    """Hanging up before the wrong answer is given is no way around the lock, nor are many at once."""
    with Host(place / "share", home=tmp_path / "host") as host:
        with contextlib.ExitStack() as stack:
            replies = 0
            for _ in range(14):
                client = stack.enter_context(ScriptedClient(host.port))
                exchange = client_exchange(Code.parse(WRONG_CODE), client.stream.fingerprint, os.urandom)
                client.send(HELLO, AuthPake(exchange.element))
                assert isinstance(client.receive()[0], Welcome)
                said = client.receive()[0]
                replies += isinstance(said, AuthPakeReply)
                assert isinstance(said, AuthPakeReply) or (isinstance(said, Error) and said.code == "locked")
            assert replies == 10
        host.wait_event("error", code="locked", retry_after=60.0)
        with pytest.raises(ShareLockedError):
            headrace.connect(f"{CODE}@{host.address}", home=tmp_path / "new")


def test_out_of_order_afterwards(host: Host, paired: Paired) -> None:
    for message in (HELLO, AuthPakeConfirm(bytes(32)), Granted(b"", ""), Chunk(1, bytes(32)), Welcome(8, [], "", "")):
        with ScriptedClient(host.port) as client:
            client.come_back(paired)
            client.send(message)
            said = client.until_closed()
            assert [type(answer) for answer in said] == [Error], (message, said)


def test_bulk_requests_in_phase_7(host: Host, paired: Paired) -> None:
    for request in (Walk(1, b""), GetChunk(1, b"file", b"", 0, 7), GetManifest(1, b"file", b"")):
        with ScriptedClient(host.port) as client:
            assert client.come_back(paired, versions=Versions(7, 7)).version == 7
            client.send(request)
            assert not content_in(client.until_closed())


def test_a_proof_for_another_certificate_is_worth_nothing(host: Host, paired: Paired) -> None:
    """What a host that lies could record, and show here."""
    nonce = os.urandom(16)
    for fingerprint in (os.urandom(32), bytes(32)):
        proof = credential_proof(paired.keys.credential, fingerprint, nonce)
        with ScriptedClient(host.port) as client:
            client.send(HELLO, AuthCredential(paired.keys.peer, nonce, proof), Stat(1, b""))
            said = client.until_closed()
            assert not content_in(said)
            assert said[-1].code == CredentialUnknownError.code  # type: ignore[attr-defined]


# ---- sizes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_",
    [
        Read(1, b"file", 0, READ_SIZE + 1),
        Read(1, b"file", 0, -1),
        Read(1, b"file", -1, 5),
        Read(1, b"file", 0, 1 << 40),
        GetChunk(1, b"sub/big", b"", 0, CHUNK_SIZE + 1),
        GetChunk(1, b"sub/big", b"", 0, 0),
        GetChunk(1, b"sub/big", b"", 0, -5),
        GetChunk(1, b"sub/big", b"", -1, 5),
    ],
    ids=str,
)
def test_ranges_over_the_limits(host: Host, paired: Paired, request_: Message) -> None:
    with ScriptedClient(host.port) as client:
        client.come_back(paired)
        client.send(request_)
        said = client.until_closed()
        assert [type(message) for message in said] == [Error], said


def test_ranges_past_the_end(client: ScriptedClient) -> None:
    for offset, length in ((0, 8), (7, 1), (100, 1), (1 << 62, 5), ((1 << 63) - 1, 4096), ((1 << 64) - 1, 1)):
        answer, _ = client.ask(GetChunk(client.next_id(), b"file", b"", offset, length))
        assert isinstance(answer, Error), answer
        assert answer.code in ("not_found", "changed")
    for offset in (7, 8, 1 << 40, (1 << 63) - 1, (1 << 64) - 1):
        answer, payload = client.ask(Read(client.next_id(), b"file", offset, 100))
        assert isinstance(answer, Data) and payload == b"", (offset, answer)
    answer, payload = client.ask(Read(client.next_id(), b"file", 3, 100))
    assert payload == b"tent"


def test_an_older_version_token(client: ScriptedClient) -> None:
    for version in (bytes(16), b"x", b"x" * 1000):
        answer, _ = client.ask(GetChunk(client.next_id(), b"file", version, 0, 7))
        assert isinstance(answer, Error)
        assert answer.code == "changed"


GARBAGE = {
    "a huge header": struct.pack(">II", 0xFFFFFFFF, 0),
    "a huge payload": struct.pack(">II", 10, 0xFFFFFFFF) + b"0123456789",
    "both": b"\xff" * 4096,
    "no MessagePack": struct.pack(">II", 5, 0) + b"hello",
    "no type": struct.pack(">II", 1, 0) + b"\x80",
    "HTTP": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "nested without end": struct.pack(">II", 4000, 0) + b"\x91" * 4000,
    "a payload": struct.pack(">II", len(encode_frame(Ping(1))) - 8, 3) + encode_frame(Ping(1))[8:] + b"abc",
    "half a frame": struct.pack(">II", 500, 0) + b"half",
}


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("when", ["before", "after"])
def test_garbage(host: Host, paired: Paired, garbage: str, when: str) -> None:
    with ScriptedClient(host.port) as client:
        if when == "after":
            client.come_back(paired)
        client.raw(GARBAGE[garbage])
        if garbage == "half a frame":
            client.stream.close()  # the host is in the middle of a message
            return
        said = client.until_closed()
        assert not content_in(said)


def test_noise_without_tls(host: Host) -> None:
    for data in (b"", b"\0", b"GET / HTTP/1.0\r\n\r\n", noise(5000), b"\x16\x03\x01\xff\xff" + bytes(100)):
        with socket.create_connection(("127.0.0.1", host.port), timeout=5) as sock:
            with contextlib.suppress(OSError):
                sock.sendall(data)
                sock.shutdown(socket.SHUT_WR)
                while sock.recv(4096):
                    pass


def test_unknown_messages_and_fields_are_skipped(client: ScriptedClient) -> None:
    import msgspec

    for fields in ({"type": "future", "id": 1}, {"type": "ping", "id": 5, "more": [1, {"x": None}]}):
        header = msgspec.msgpack.encode(fields)
        client.raw(struct.pack(">II", len(header), 0) + header)
    assert client.receive()[0] == Pong(5)


def test_many_requests_at_once(client: ScriptedClient) -> None:
    """Answers come in the order of the requests, however many are under way."""
    client.send(*[Ping(number) for number in range(2000)])
    for number in range(2000):
        assert client.receive()[0] == Pong(number)


# ---- waiting for nothing -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_client_that_reads_nothing_holds_up_nobody(place: Path, tmp_path: Path) -> None:
    with Host(place / "share", home=tmp_path / "host") as host, ScriptedClient(host.port) as client:
        client.pair()
        entry = client.ask(Stat(1, b"sub/big"))[0]
        assert isinstance(entry, StatReply)
        for number in range(60):
            client.send(GetChunk(number + 2, b"sub/big", entry.entry.version, 0, CHUNK_SIZE))
        run_get(host.address, tmp_path / "dest", home=tmp_path / "home", path="sub").check_ok()
        assert_same_tree(tmp_path / "dest", place / "share" / "sub")
        host.watch_rss()
        assert host.peak_rss < 150 * MIB
        started = time.monotonic()
        host.kill(signal.SIGINT)
        assert host.wait(10) == 130
        assert time.monotonic() - started < 3


@pytest.mark.slow
def test_connections_that_never_finish_the_handshake(host: Host, place: Path, tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        for number in range(200):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", host.port), timeout=5))
            if number % 3 == 1:
                sock.sendall(b"\x16\x03\x01")
            if number % 10 == 2:
                stack.enter_context(ScriptedClient(host.port))
        with start_get(host.address, tmp_path / "dest", home=tmp_path / "home", path="sub") as process:
            finish(process, 10).check_ok()
    assert_same_tree(tmp_path / "dest", place / "share" / "sub")


@pytest.mark.slow
def test_more_silent_connections_than_a_share_takes_keep_nobody_out(
    host: Host, client: ScriptedClient, place: Path, tmp_path: Path
) -> None:
    """Who is in goes on, and who comes meanwhile gets in, from the same address."""
    with contextlib.ExitStack() as stack:
        for number in range(1_200):
            stack.enter_context(socket.create_connection(("127.0.0.1", host.port), timeout=10))
            if number % 400 == 399:
                assert isinstance(client.ask(Ping(number + 1))[0], Pong)
        with start_get(host.address, tmp_path / "dest", home=tmp_path / "home", path="sub") as process:
            finish(process, 30).check_ok()
    assert_same_tree(tmp_path / "dest", place / "share" / "sub")
    assert host.peak_rss < 150 * MIB


@pytest.mark.parametrize("step", ["tcp", "tls", "hello", "half a frame", "pake", "a byte now and then"])
def test_half_a_handshake_and_then_silence(place: Path, tmp_path: Path, step: str) -> None:
    """The host drops it when its time is over; here that is a quarter of a second."""
    limits = Limits(handshake=0.25)
    with headrace.share(place / "share", bind="127.0.0.1", code=CODE, home=tmp_path / "home", limits=limits) as shared:
        if step == "tcp":
            with socket.create_connection(("127.0.0.1", shared.port), timeout=5) as sock:
                assert sock.recv(100) == b""
            return
        with ScriptedClient(shared.port, timeout=5) as client:
            if step == "hello":
                client.send(HELLO)
            elif step == "half a frame":
                client.raw(encode_frame(HELLO)[:-3])
            elif step == "pake":
                exchange = client_exchange(Code.parse(CODE), client.stream.fingerprint, os.urandom)
                client.send(HELLO, AuthPake(exchange.element))
            elif step == "a byte now and then":
                deadline = time.monotonic() + 5
                drip = encode_frame(Hello((7, 8), ["x" * 100] * 30, "x"))
                with contextlib.suppress(HeadraceError):
                    for position in range(len(drip)):
                        assert time.monotonic() < deadline, "the host waits as long as there is a byte now and then"
                        client.stream.send(drip[position : position + 1])
                        threading.Event().wait(0.05)
                return
            started = time.monotonic()
            client.until_closed()
            assert time.monotonic() - started < 3


def test_a_stopped_share_leaves_no_thread_behind(place: Path, tmp_path: Path) -> None:
    before = set(threading.enumerate())
    shared = headrace.share(place / "share", bind="127.0.0.1", code=CODE, home=tmp_path / "home")
    with shared, contextlib.ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(ScriptedClient(shared.port)).pair()
            stack.enter_context(socket.create_connection(("127.0.0.1", shared.port)))
        waiting = stack.enter_context(ScriptedClient(shared.port))
        waiting.pair()
        shared.stop()
        with pytest.raises(ConnectionLostError):
            waiting.ask(Ping(1))
    wait_until(lambda: set(threading.enumerate()) <= before, "the threads to end")
