"""Nobody there, somebody else there, or somebody who speaks another version."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import headrace
from headrace.errors import ConnectionLostError, ProtocolError, UnreachableError
from headrace.protocol.messages import GetChunk, Message, Stat, Walk
from headrace.protocol.session import Versions
from headrace.transport.framed import MessageStream

from .scripted import Answer, Listener, ScriptedHost, file_entry, tls_server
from .support import CODE, Host, call_get, free_port, make_file, run_get


def test_no_such_path(tmp_path: Path) -> None:
    make_file(tmp_path / "share" / "file", b"content")
    with Host(tmp_path / "share", home=tmp_path / "host") as host:
        for path in ("nothing", "file/below", "nothing/below"):
            result = call_get(host.address, tmp_path / "dest", home=tmp_path / "home", path=path).check_failed(3)
            assert path in result.stderr
        climbing = call_get(host.address, tmp_path / "dest", home=tmp_path / "home", path="../host")
        climbing.check_failed(2)
    assert not (tmp_path / "dest").exists()


def test_no_such_host(tmp_path: Path) -> None:
    result = call_get("no-such-host.invalid:7420", tmp_path / "dest", home=tmp_path / "home").check_failed(5)
    assert "no-such-host.invalid" in result.stderr
    assert not (tmp_path / "dest").exists()


def test_nobody_listens(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    result = run_get(address, tmp_path / "dest", home=tmp_path / "home").check_failed(5)
    assert f"nobody listens on {address}" in result.stderr
    assert result.of("error")[0]["retryable"] is True


def http(sock: socket.socket) -> None:
    sock.recv(4096)
    sock.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
    sock.close()


def ssh(sock: socket.socket) -> None:
    sock.sendall(b"SSH-2.0-OpenSSH_9.7\r\n")
    sock.recv(4096)
    sock.recv(4096)
    sock.close()


def says_nothing(sock: socket.socket) -> None:
    sock.recv(4096)
    threading.Event().wait(30)


def hangs_up(sock: socket.socket) -> None:
    sock.close()


@pytest.mark.parametrize("talk", [http, ssh, hangs_up])
def test_something_that_is_not_tls(talk: Callable[[socket.socket], None], tmp_path: Path) -> None:
    with Listener(talk) as other:
        result = call_get(other.address, tmp_path / "dest", home=tmp_path / "home").check_failed(5)
        assert "not headrace" in result.stderr


@pytest.mark.slow
def test_something_that_says_nothing(tmp_path: Path) -> None:
    with Listener(says_nothing) as silent:
        result = run_get(silent.address, tmp_path / "dest", home=tmp_path / "home", seconds=20).check_failed(5)
        assert 8 < result.seconds < 15


def talk_tls(context: ssl.SSLContext, *answers: bytes) -> Callable[[socket.socket], None]:
    """A TLS server that reads something and answers so, then hangs up."""

    def talk(sock: socket.socket) -> None:
        with contextlib.suppress(OSError), context.wrap_socket(sock, server_side=True) as tls:
            tls.recv(4096)
            for answer in answers:
                tls.sendall(answer)
            with contextlib.suppress(OSError):
                tls.unwrap()

    return talk


def test_tls_that_does_not_speak_headrace(tmp_path: Path) -> None:
    for alpn in (None, "h2"):
        with Listener(talk_tls(tls_server(tmp_path / "other", alpn=alpn), b"hello")) as other:
            result = call_get(other.address, tmp_path / "dest", home=tmp_path / "home").check_failed(5)
            assert "not headrace" in result.stderr


def test_an_older_tls_is_not_spoken(tmp_path: Path) -> None:
    context = tls_server(tmp_path / "other")
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with Listener(talk_tls(context)) as other:
        call_get(other.address, tmp_path / "dest", home=tmp_path / "home").check_failed(5)


GARBAGE = {
    "no MessagePack": struct.pack(">II", 5, 0) + b"hello",
    "another type": struct.pack(">II", 1, 0) + b"\xc0",
    "noise": bytes(range(256)) * 8,
    "a huge header": struct.pack(">II", 0xFFFFFFFF, 0),
    "a huge payload": struct.pack(">II", 10, 0xFFFFFFFF) + b"0123456789",
    "a payload in the handshake": struct.pack(">II", 1, 1) + b"\x00\x00",
    "nothing": b"",
    "half a frame": struct.pack(">II", 100, 0) + b"half",
    "nested without end": struct.pack(">II", 4000, 0) + b"\x91" * 4000,
}


@pytest.mark.parametrize("garbage", GARBAGE)
def test_frames_that_are_none(garbage: str, tmp_path: Path) -> None:
    with Listener(talk_tls(tls_server(tmp_path / "other"), GARBAGE[garbage])) as other:
        with pytest.raises((ProtocolError, UnreachableError)):
            headrace.connect(other.address, code=CODE, home=tmp_path / "home")


def test_a_frame_that_is_none_in_words(tmp_path: Path) -> None:
    with Listener(talk_tls(tls_server(tmp_path / "other"), GARBAGE["a huge header"])) as other:
        result = call_get(other.address, tmp_path / "dest", home=tmp_path / "home").check_failed(1, 5)
        assert "4294967295" in result.stderr
    assert not (tmp_path / "dest").exists()


def test_a_host_that_stops_in_the_handshake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Right certificate, right ALPN, then silence."""
    monkeypatch.setattr("headrace.client.greeting.HANDSHAKE_TIMEOUT", 0.3)

    class Silent(ScriptedHost):
        def let_in(self, messages: MessageStream) -> None:
            messages.expect()
            messages.receive()  # what the client says next, if anything: here it hangs up
            raise ConnectionLostError("enough")

    with Silent(tmp_path / "host") as host, pytest.raises(UnreachableError, match="hung up|nothing arrived"):
        headrace.connect(host.target, home=tmp_path / "home")


@pytest.mark.slow
def test_a_host_that_never_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.client.greeting.STALL_TIMEOUT", 0.3)
    listing = [(b"", [file_entry(b"a", b"content")])]
    for kind in (Stat, Walk, GetChunk):
        answers: dict[type[Message], Answer] = {kind: lambda host, stream, request: None}
        with ScriptedHost(tmp_path / "host", listing, answers=answers) as host:
            with headrace.connect(host.target, home=tmp_path / f"home {kind.__name__}") as remote:
                with pytest.raises(ConnectionLostError, match="nothing arrived"):
                    remote.get("", tmp_path / "dest", retry_for=0)
    assert not (tmp_path / "dest" / "a").exists()


@pytest.mark.parametrize(("ours", "theirs"), [("7", "8"), pytest.param("8", "7", marks=pytest.mark.slow)])
def test_no_common_version(ours: str, theirs: str, tmp_path: Path) -> None:
    make_file(tmp_path / "file", b"content")
    with Host(tmp_path / "file", home=tmp_path / "host", options=["--protocol", theirs]) as host:
        result = call_get(host.address, tmp_path / "dest", "--protocol", ours, home=tmp_path / "home").check_failed(7)
        assert f"the host speaks phase {theirs}, the client {ours}" in result.stderr
        assert result.of("error")[0]["code"] == "version"
        call_get(host.address, tmp_path / "dest", home=tmp_path / "home").check_ok()


def test_a_host_from_the_future_and_one_from_the_past(tmp_path: Path) -> None:
    """Ranges that overlap settle on the highest common phase, others end in one clear error."""
    listing, content = [(b"", [file_entry(b"a", b"content")])], {b"a": b"content"}
    for versions, outcome in ((Versions(8, 12), 0), (Versions(1, 7), 0), (Versions(9, 12), 7), (Versions(1, 6), 7)):
        with ScriptedHost(tmp_path / "host", listing, content, versions=versions) as host:
            dest = tmp_path / str(versions)
            result = call_get(host.address, dest, home=tmp_path / "home", code=CODE).check_clean()
            assert result.exit_code == outcome, result.stderr
            if outcome:
                assert str(versions) in result.stderr
                assert "7 to 8" in result.stderr
            else:
                assert (dest / "a").read_bytes() == b"content"
