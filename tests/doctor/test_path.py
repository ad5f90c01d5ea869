"""The way to a share, where parts of it fail or never end."""

from __future__ import annotations

import os
import socket
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.cli.processes import Sharing

from headrace.client.session import Session
from headrace.client.target import Target
from headrace.doctor import path
from headrace.errors import ConnectionLostError, SourceChangedError, UnreachableError
from headrace.observe.bottleneck import Breakdown

MIB = 1024 * 1024


@pytest.fixture
def target(sharing: Sharing) -> Target:
    return Target.parse(sharing.target)


@pytest.fixture
def connect(target: Target, home: Path) -> Callable[[], Session]:
    return lambda: Session.connect(target, home=home)


def names(target: Target, connect: Callable[[], Session]) -> list[str]:
    return [step.name for step in path.measure(target, connect)]


def test_without_a_second_connection_tcp_and_tls_are_in_the_handshake(target, connect, monkeypatch):
    monkeypatch.setattr(path, "_split", lambda target: None)
    found = {step.name: step for step in path.measure(target, connect)}

    assert list(found) == ["name", "handshake", "ping", "read", "stream"]
    assert "TCP and TLS are in it" in found["handshake"].text


def test_a_second_connection_that_is_refused_is_no_error():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

    assert path._split(Target("127.0.0.1", port)) is None


def test_a_name_that_cannot_be_resolved_is_for_connecting_to_tell(monkeypatch):
    def fail(*arguments: object, **more: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    def connect() -> Session:
        raise UnreachableError("no host named nowhere")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(UnreachableError, match="nowhere"):
        names(Target("nowhere", 7420), connect)


def test_a_host_that_never_ends_is_left(target, connect, monkeypatch):
    over = threading.Event()
    monkeypatch.setattr(path, "READ_LIMIT", 0.1)
    monkeypatch.setattr(path, "_find", lambda session, where: over.wait(20))

    with pytest.raises(ConnectionLostError, match="takes too long"):
        names(target, connect)
    over.set()


def test_a_file_that_changes_is_skipped(target, connect, monkeypatch):
    def changed(*arguments: object) -> None:
        raise SourceChangedError("a.mov changed")

    monkeypatch.setattr(path, "_read", changed)
    found = {step.name: step for step in path.measure(target, connect)}

    assert found["read"].figures == {"skipped": "a.mov changed"}
    assert found["stream"].figures["sealed"] is None


def test_on_a_slow_path_it_stops_asking(target, connect, monkeypatch):
    monkeypatch.setattr(path, "READ_SECONDS", 0.0)

    # What is asked for before the clock has moved at all would still come: nothing, or the first window.
    found = {step.name: step for step in path.measure(target, connect)}
    assert found["read"].figures.get("bytes", 0) in range(path.IN_FLIGHT[0] + 1)


def test_names_that_are_not_utf_8_are_told_as_in_every_event(tmp_path, home):
    folder = tmp_path / "folder"
    folder.mkdir()
    with open(os.fsencode(folder) + b"/caf\xe9", "wb") as file:
        file.write(os.urandom(4 * MIB))
    with Sharing(folder, home=tmp_path / "host") as share:
        target = Target.parse(share.target)
        steps = {step.name: step for step in path.measure(target, lambda: Session.connect(target, home=home))}

    assert steps["read"].figures["path_b64"] == "Y2Fm6Q=="
    assert "caf\\xe9" in steps["read"].text


def test_where_the_time_of_the_read_went_is_told_last(target, connect, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(path, "WORTH_READING", MIB)
    told: list[Breakdown] = []
    found = {step.name: step for step in path.measure(target, connect, told.append)}

    (breakdown,) = told
    assert sum(row.seconds for row in breakdown.rows) == pytest.approx(found["read"].figures["seconds"], rel=0.01)
    assert {row.name: row.share for row in breakdown.rows}["destination disk"] > 0
    assert [found.name for found in tmp_path.iterdir()] == ["home"]


def test_a_folder_that_takes_nothing_is_no_obstacle(target, connect, monkeypatch):
    def refuse(**more: object) -> None:
        raise PermissionError

    monkeypatch.setattr(path, "WORTH_READING", MIB)
    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    told: list[Breakdown] = []
    assert "read" in names_with(target, connect, told)

    assert {row.name: row.share for row in told[0].rows}["destination disk"] == pytest.approx(0, abs=0.01)


def names_with(target: Target, connect: Callable[[], Session], told: list[Breakdown]) -> list[str]:
    return [step.name for step in path.measure(target, connect, told.append)]
