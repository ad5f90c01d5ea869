"""What a session answers about directories to a client that mounts the share."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.transport.memory import memory_pair

from headrace.errors import ConnectionLostError, ProtocolError
from headrace.host.requests import RequestHandler
from headrace.host.watch import Watcher
from headrace.protocol.messages import (
    MIB,
    Changed,
    Error,
    ListPart,
    Look,
    Looked,
    Message,
    Ping,
    Pong,
    StatFs,
    StatFsReply,
    Watch,
)
from headrace.protocol.paths import MAX_PATH
from headrace.protocol.session import STATFS, WATCH, Agreed
from headrace.storage.manifest import HashCache
from headrace.storage.tree import SharedTree
from headrace.transport.framed import MessageStream

AGREED = Agreed(8, frozenset({WATCH, STATFS}), "a test", "7k2m", "data", b"p" * 16)


class Peer:
    """One connection of a client, and the handler at its other end."""

    def __init__(self, tree: SharedTree, watcher: Watcher, agreed: Agreed = AGREED) -> None:
        near, far = memory_pair(capacity=16 * MIB)
        self.client, self.host = MessageStream(near), MessageStream(far)
        self.client.enter_session()
        self.handler = RequestHandler(tree, HashCache(), self.host, agreed, watcher=watcher)

    def ask(self, request: Message) -> list[Message]:
        self.handler.handle(request)
        self.handler.handle(Ping(99))
        answers: list[Message] = []
        while (message := self.client.expect()[0]) != Pong(99):
            answers.append(message)
        return answers


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root" / "a").mkdir(parents=True)
    for number in range(5):
        (tmp_path / "root" / "a" / f"f{number}").write_bytes(b"x")
    return tmp_path / "root"


@pytest.fixture
def tree(root: Path) -> Iterator[SharedTree]:
    with SharedTree.open([root]) as opened:
        yield opened


@pytest.fixture
def watcher(tree: SharedTree) -> Iterator[Watcher]:
    with contextlib.closing(Watcher(tree)) as made:
        yield made


def names(answers: list[Message]) -> set[bytes]:
    return {entry.name for part in answers if isinstance(part, ListPart) for entry in part.entries}


def test_a_directory_and_what_is_in_it(tree: SharedTree, watcher: Watcher) -> None:
    *parts, end = Peer(tree, watcher).ask(Look(1, b"a"))
    assert names(parts) == {b"f%d" % number for number in range(5)}
    assert all(isinstance(part, ListPart) and part.path == b"a" and not part.last for part in parts)
    assert isinstance(end, Looked)
    assert (end.id, end.entry.name, end.entry.kind, end.watched, end.more) == (1, b"a", "d", False, False)


@pytest.mark.parametrize(("limit", "count", "more"), [(1, 1, True), (4, 4, True), (5, 5, False), (0, 5, False)])
def test_no_more_entries_than_asked_for(tree: SharedTree, watcher: Watcher, limit: int, count: int, more: bool) -> None:
    *parts, end = Peer(tree, watcher).ask(Look(1, b"a", 0, limit))
    assert (len(names(parts)), getattr(end, "more", None)) == (count, more)


@pytest.mark.parametrize(("limit", "count", "more"), [(2, 2, True), (4, 4, True), (5, 5, False), (6, 5, False)])
def test_the_limit_at_the_end_of_a_part(
    tree: SharedTree, watcher: Watcher, monkeypatch: pytest.MonkeyPatch, limit: int, count: int, more: bool
) -> None:
    monkeypatch.setattr("headrace.storage.tree.MAX_ENTRIES", 2)
    *parts, end = Peer(tree, watcher).ask(Look(1, b"a", 0, limit))
    assert (len(names(parts)), getattr(end, "more", None)) == (count, more)


@pytest.mark.parametrize(("path", "code"), [(b"nowhere", "not_found"), (b"a/f1", "not_found")])
def test_what_is_no_directory(tree: SharedTree, watcher: Watcher, path: bytes, code: str) -> None:
    (answer,) = Peer(tree, watcher).ask(Look(1, path))
    assert isinstance(answer, Error)
    assert (answer.id, answer.code) == (1, code)


@pytest.mark.skipif(sys.platform != "linux", reason="inotify is there on Linux only")
def test_what_changes_in_it_comes_on_another_stream(tree: SharedTree, watcher: Watcher, root: Path) -> None:
    asking, watching = Peer(tree, watcher), Peer(tree, watcher)

    def serve() -> None:
        with contextlib.suppress(ConnectionLostError):
            watching.handler.handle(Watch(7))

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    first = watching.client.expect()[0]
    assert isinstance(first, Changed)
    assert first == Changed(7, first.watch)
    end = asking.ask(Look(1, b"a", first.watch))[-1]
    assert isinstance(end, Looked)
    assert end.watched
    (root / "a" / "new").touch()
    told = watching.client.expect()[0]
    assert isinstance(told, Changed)
    assert told.names == [b"a/new"]
    watcher.close()
    thread.join(10)
    assert not thread.is_alive()
    while not told.last:
        told = watching.client.expect()[0]
        assert isinstance(told, Changed)


def test_a_watch_that_is_none(tree: SharedTree, watcher: Watcher) -> None:
    end = Peer(tree, watcher).ask(Look(1, b"a", 12345))[-1]
    assert isinstance(end, Looked)
    assert not end.watched


def test_how_full_the_disk_is(tree: SharedTree, watcher: Watcher, root: Path) -> None:
    facts = os.statvfs(root)
    for path in (b"", b"a/f1"):
        (answer,) = Peer(tree, watcher).ask(StatFs(1, path))
        assert isinstance(answer, StatFsReply)
        assert answer.check().total == facts.f_blocks * facts.f_frsize
    (answer,) = Peer(tree, watcher).ask(StatFs(2, b"nowhere/x"))
    assert isinstance(answer, Error)


def test_how_full_it_is_where_several_paths_are_shared(root: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with SharedTree.open([root, tmp_path / "other"]) as tree, contextlib.closing(Watcher(tree)) as watcher:
        (answer,) = Peer(tree, watcher).ask(StatFs(1, b""))
        assert isinstance(answer, StatFsReply)
        assert answer.total


@pytest.mark.parametrize("request_", [Watch(1), Look(1, b"a"), StatFs(1, b"")])
def test_who_did_not_agree_on_it_may_not_ask(tree: SharedTree, watcher: Watcher, request_: Message) -> None:
    for agreed in (dataclasses.replace(AGREED, features=frozenset()), dataclasses.replace(AGREED, version=7)):
        with pytest.raises(ProtocolError):
            Peer(tree, watcher, agreed).handler.handle(request_)


def test_a_request_that_makes_no_sense(tree: SharedTree, watcher: Watcher) -> None:
    for request in (Look(1, b"../a"), Look(1, b"a", 0, -1), StatFs(1, b"x" * (MAX_PATH + 1))):
        with pytest.raises(ProtocolError):
            Peer(tree, watcher).handler.handle(request)
