"""Chunks that move from one transport to the other in the middle of a transfer. Both are TCP here, to a real share, and
their rates and faults are made up; tests/product/test_long_link.py has the real ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headrace.client.get import GetOptions, Transfer
from headrace.client.session import Session
from headrace.client.target import Target
from headrace.engine import choice
from headrace.errors import CertificateChangedError, HeadraceError, UnreachableError
from headrace.host.server import ShareServer
from headrace.protocol.paths import ROOT
from headrace.transport.adaptive import AdaptiveConnection, Reach
from headrace.transport.base import Connection
from headrace.transport.pacing import Limit
from headrace.transport.tcp_client import TcpConnection

from .support import MIB, make_file, noise

SIZE = 48 * MIB


class Paced(TcpConnection):
    """TCP by another name, at a rate."""

    def __init__(self, name: str, address: tuple[str, int], pin: bytes, rate: float) -> None:
        self.transport = name
        super().__init__(address, pin=pin, limit=Limit(rate))


class Getting:
    """One transfer; `event` is called with each of its events."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, *, tcp: float, quic: float) -> None:
        self.folder = folder
        self.content = noise(SIZE)
        make_file(folder / "file", self.content)
        self.connections: dict[str, Paced] = {}
        self.quic_fails: HeadraceError | None = None
        self.events: list[dict[str, Any]] = []
        for name, seconds in {"SETTLE": 0.3, "TRIAL": 0.6, "WORTH": 0.5, "WATCH": 0.5, "REST": 0.5}.items():
            monkeypatch.setattr(choice, name, seconds)

        def dialer(name: str, rate: float, address: tuple[str, int], pin: bytes) -> Callable[[], Connection]:
            def dial() -> Connection:
                if name == "quic" and self.quic_fails:
                    raise self.quic_fails
                self.connections[name] = Paced(name, address, pin, rate)
                return self.connections[name]

            return dial

        def connect(address: tuple[str, int], *, pin: bytes, **how: object) -> AdaptiveConnection:
            dialers = {"quic": dialer("quic", quic, address, pin), "tcp": dialer("tcp", tcp, address, pin)}
            return AdaptiveConnection(address, dialers, lambda: Reach(rtt=0.0001), head_start=5)

        monkeypatch.setattr("headrace.client.session.connect", connect)

    def run(self, during: Callable[[dict[str, Any]], None] = lambda event: None) -> dict[str, Any]:
        def told(event: dict[str, Any]) -> None:
            self.events.append(event)
            during(event)

        with ShareServer([self.folder / "file"], home=self.folder / "host", bind="127.0.0.1", port=0) as server:
            target = Target.parse(server.target)
            with Session.connect(target, home=self.folder / "home") as session:
                options = GetOptions(connections=2, retry_for=20.0)
                result = Transfer(session, ROOT, self.folder / "dest", options, told).run()
        assert (self.folder / "dest").read_bytes() == self.content
        assert result.failed == 0
        assert result.bytes_received <= SIZE + 16 * MIB
        return {"transport": result.transport, "moves": [e for e in self.events if e["event"] == "transport"]}


@pytest.mark.slow
def test_the_faster_transport_takes_the_chunks_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    got = Getting(tmp_path, monkeypatch, tcp=6e6, quic=20e6).run()
    assert got["transport"] == "quic"
    assert len(got["moves"]) == 1
    assert "faster" in got["moves"][0]["reason"]


@pytest.mark.slow
def test_the_slower_one_is_tried_and_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    getting = Getting(tmp_path, monkeypatch, tcp=12e6, quic=2e6)
    got = getting.run()
    assert (got["transport"], got["moves"]) == ("tcp", [])
    assert "quic" in getting.connections, "it was tried"


@pytest.mark.slow
@pytest.mark.parametrize("why", [CertificateChangedError("another one"), UnreachableError("nobody is there")])
def test_one_that_cannot_even_be_tried_harms_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: HeadraceError
) -> None:
    getting = Getting(tmp_path, monkeypatch, tcp=24e6, quic=24e6)
    getting.quic_fails = why
    got = getting.run()
    assert (got["transport"], got["moves"]) == ("tcp", [])


@pytest.mark.slow
def test_one_that_dies_after_it_won_is_left_for_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    getting = Getting(tmp_path, monkeypatch, tcp=6e6, quic=16e6)

    def kill(event: dict[str, Any]) -> None:
        if event["event"] == "transport" and event["transport"] == "quic":
            getting.quic_fails = UnreachableError("nobody is there any more")
            getting.connections["quic"].abort()

    got = getting.run(kill)
    assert [move["transport"] for move in got["moves"]] == ["quic", "tcp"]
    assert got["transport"] == "tcp"
