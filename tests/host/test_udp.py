"""A share's UDP side: the same port number as TCP, and TCP alone where it cannot be had."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from headrace.errors import UsageError
from headrace.host import udp
from headrace.host.server import ShareServer
from headrace.transport.quic import binding, unavailable
from headrace.transport.quic.probe import OPEN, probe


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    folder = tmp_path / "shared"
    folder.mkdir()
    (folder / "file").write_bytes(b"content")
    return folder


def wait_until(condition: Callable[[], object], what: str, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited in vain: {what}"
        time.sleep(0.01)


def reachable(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port), timeout=5):
        return True


@pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))
def test_a_share_listens_by_both_on_one_number(shared: Path, tmp_path: Path) -> None:
    with ShareServer([shared], port=0, home=tmp_path / "home") as server:
        assert server.transports == ("tcp", "quic")
        wait_until(lambda: probe(("127.0.0.1", server.port), timeout=0.3).outcome == OPEN, "QUIC to answer")
        assert reachable(server.port)
    assert probe(("127.0.0.1", server.port), timeout=1).outcome != OPEN


@pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))
def test_who_asks_before_quic_is_loaded_is_answered_at_once(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loading, go_on = threading.Event(), threading.Event()
    load = binding.load

    def slow() -> object:
        loading.set()
        assert go_on.wait(10)
        return load()

    monkeypatch.setattr(binding, "load", slow)
    with ShareServer([shared], port=0, home=tmp_path / "home") as server:
        for _ in range(3):  # the first one makes it load
            assert probe(("127.0.0.1", server.port), timeout=5).outcome == OPEN
        assert loading.wait(10)
        assert probe(("127.0.0.1", server.port), timeout=5).outcome == OPEN
        go_on.set()
        wait_until(lambda: server._udp and server._udp.listening, "QUIC to listen")
        wait_until(lambda: probe(("127.0.0.1", server.port), timeout=0.3).outcome == OPEN, "QUIC to answer")


def test_tcp_alone_where_that_is_asked_for(shared: Path, tmp_path: Path) -> None:
    with ShareServer([shared], port=0, home=tmp_path / "home", transports={"tcp"}) as server:
        assert server.transports == ("tcp",)
        assert reachable(server.port)
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.bind(("::", server.port))  # nobody has it


@pytest.mark.parametrize("transports", [set(), {"quic"}, {"tcp", "pigeon"}])
def test_transports_that_make_no_sense(shared: Path, tmp_path: Path, transports: set[str]) -> None:
    with pytest.raises(UsageError):
        ShareServer([shared], port=0, home=tmp_path / "home", transports=transports)


def test_a_udp_port_in_use_is_told_once_and_counted(
    shared: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = udp.FALLBACKS["no_quic"]
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as taken:
        taken.bind(("::", 0))
        port = taken.getsockname()[1]
        with caplog.at_level(logging.WARNING), ShareServer([shared], port=port, home=tmp_path / "home") as server:
            assert server.transports == ("tcp",)
            assert reachable(port)
    assert udp.FALLBACKS["no_quic"] == before + 1
    assert [record.levelname for record in caplog.records if "QUIC" in record.message] == ["WARNING"]


def test_port_0_finds_one_that_is_free_for_both(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused: list[int] = []
    reserve = udp._reserve

    def busy_at_first(bind: str, port: int) -> socket.socket:
        if len(refused) < 3:
            refused.append(port)
            raise OSError(98, "Address already in use")
        return reserve(bind, port)

    monkeypatch.setattr(udp, "_reserve", busy_at_first)
    server = ShareServer([shared], port=0, home=tmp_path / "home")
    try:
        assert len(set(refused)) == 3
        assert server.port not in refused
        assert server.transports == ("tcp", "quic")
    finally:
        server.stop()


def test_without_aiopquic_a_share_goes_on_by_tcp(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing() -> binding.Native:
        raise binding.UnavailableError("QUIC needs the package aiopquic, which is not installed")

    monkeypatch.setattr(binding, "load", missing)
    with caplog.at_level(logging.WARNING), ShareServer([shared], port=0, home=tmp_path / "home") as server:
        wait_until(lambda: server.transports == ("tcp",), "the reason to be known")
        assert reachable(server.port)
        assert "aiopquic" in caplog.text
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.bind(("::", server.port))  # given back: clients hear at once that nobody listens


def test_start_does_not_wait_for_quic(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loading, go_on = threading.Event(), threading.Event()

    def slow() -> binding.Native:
        loading.set()
        go_on.wait(10)
        raise binding.UnavailableError("never mind")

    monkeypatch.setattr(binding, "load", slow)
    with ShareServer([shared], port=0, home=tmp_path / "home") as server:
        assert loading.wait(10)
        assert reachable(server.port)
        go_on.set()


def test_a_share_that_stops_before_quic_is_up(shared: Path, tmp_path: Path) -> None:
    for _ in range(3):
        server = ShareServer([shared], port=0, home=tmp_path / "home")
        server.start()
        server.stop()
        server.stop()
    assert not [thread for thread in threading.enumerate() if thread.name == "headrace-udp"]
