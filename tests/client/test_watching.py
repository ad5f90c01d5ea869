"""Attributes and a real share, over loopback: what changes on its disk is seen here, whatever becomes of the host."""

from __future__ import annotations

import contextlib
import errno
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from headrace.client import watching
from headrace.client.attributes import Attributes
from headrace.client.link import Link
from headrace.client.session import Session
from headrace.client.target import Target
from headrace.errors import NotFoundError
from headrace.host.server import ShareServer
from headrace.protocol.codes import Code
from headrace.protocol.messages import Entry
from headrace.protocol.paths import ROOT
from headrace.protocol.session import Versions
from headrace.storage.platform import FALLBACKS

from .scripted_names import path

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="inotify is there on Linux only")

CODE: Final = Code.parse("7k2m-xq4c-9dht")
PATIENCE: Final = 10.0
FOREVER: Final = 3600.0  # seconds that answers are believed: whatever is seen here was told


class Share:
    """A share that can be stopped and started again, and a client's caches of it."""

    def __init__(self, tmp_path: Path) -> None:
        self.root = tmp_path / "root"
        (self.root / "src" / "lib").mkdir(parents=True)
        (self.root / "src" / "a.c").write_bytes(b"1")
        self._tmp = tmp_path
        self._port = 0
        self._undo = contextlib.ExitStack()
        self._server: ShareServer | None = None

    def start(self) -> None:
        self._server = ShareServer(
            [self.root],
            port=self._port,
            bind="127.0.0.1",
            code=CODE,
            home=self._tmp / "host",
            transports=("tcp",),
        )
        self._port = self._server.port
        self._server.start()

    def stop(self) -> None:
        if self._server:
            self._server.stop()

    def attributes(self, versions: Versions = Versions(), **options: Any) -> Attributes:
        target = Target("127.0.0.1", self._port, ROOT, CODE)
        link = Link(
            lambda: Session.connect(target, home=self._tmp / "client", versions=versions, transport="tcp"),
        )
        self._undo.callback(link.close)
        link.connect(soon())
        return self._undo.enter_context(Attributes(link, **{"ttl": FOREVER, "ttl_watched": FOREVER, **options}))

    def close(self) -> None:
        self._undo.close()
        self.stop()


@pytest.fixture
def share(tmp_path: Path) -> Iterator[Share]:
    made = Share(tmp_path)
    made.start()
    yield made
    made.close()


def soon() -> float:
    return time.monotonic() + PATIENCE


def until(condition: Callable[[], object], what: str) -> None:
    end = soon()
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.005)


def names(attributes: Attributes, where: str) -> set[bytes]:
    return {entry.name for entry in attributes.list(path(where), soon())}


def exists(attributes: Attributes, where: str) -> Entry | None:
    try:
        return attributes.stat(path(where), soon())
    except NotFoundError:
        return None


def test_what_changes_on_the_host_is_seen(share: Share) -> None:
    attributes = share.attributes()
    until(lambda: attributes.watching, "a watch")
    assert names(attributes, "src") == {b"a.c", b"lib"}
    assert not exists(attributes, "src/b.c")
    (share.root / "src" / "b.c").write_bytes(b"12")
    until(lambda: exists(attributes, "src/b.c"), "a new file")
    until(lambda: attributes.stat(path("src/b.c"), soon()).size == 2, "its size")
    (share.root / "src" / "b.c").rename(share.root / "src" / "lib" / "c.c")
    until(lambda: not exists(attributes, "src/b.c"), "a file that is gone")
    assert names(attributes, "src") == {b"a.c", b"lib"}
    (share.root / "src").rename(share.root / "lib")
    until(lambda: names(attributes, "") == {b"lib"}, "a folder that was moved")
    until(lambda: not exists(attributes, "src/a.c"), "what was in it")
    assert names(attributes, "lib/lib") == {b"c.c"}
    (share.root / "lib" / "lib" / "d.c").touch()
    until(lambda: exists(attributes, "lib/lib/d.c"), "a file in a folder that was moved")


def test_how_full_its_disk_is(share: Share) -> None:
    space = share.attributes().statfs(soon())
    assert space is not None
    assert 0 < space.available <= space.free <= space.total


@pytest.mark.slow
def test_a_host_that_went_and_came_back_tells_again(share: Share, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.client.attributes.PATIENCE", 0.1)
    attributes = share.attributes(ttl=0.0)
    until(lambda: attributes.watching, "a watch")
    assert exists(attributes, "src/a.c")
    share.stop()
    until(lambda: not attributes.watching, "the watch's loss")
    assert exists(attributes, "src/a.c")  # as it was
    (share.root / "src" / "a.c").unlink()
    share.start()
    attributes._flights._link.connect(soon())  # sooner than it would try by itself
    until(lambda: attributes.watching, "another watch")
    until(lambda: not exists(attributes, "src/a.c"), "what changed meanwhile")
    (share.root / "src" / "b.c").touch()
    until(lambda: exists(attributes, "src/b.c"), "what changed after that")


@pytest.mark.slow
def test_a_host_that_says_nothing_any_more_has_no_watch(share: Share, monkeypatch: pytest.MonkeyPatch) -> None:
    # The host's own heartbeat is 5 s: from the client's side it has died meanwhile.
    monkeypatch.setattr(watching, "ASKING", 0.0)
    attributes = share.attributes()
    until(lambda: attributes.watching, "a watch")
    inner = attributes._watching
    assert inner is not None
    inner._silence = 0.2
    lane = inner._lane
    assert lane is not None
    lane.messages.abort()
    until(lambda: inner.losses >= 2, "the watch's loss by silence")


@pytest.mark.parametrize("versions", [Versions(7, 7)])
def test_a_host_of_phase_7_is_asked_again_and_again(share: Share, versions: Versions) -> None:
    attributes = share.attributes(versions, ttl=0.05)
    assert names(attributes, "src") == {b"a.c", b"lib"}
    (share.root / "src" / "b.c").touch()
    until(lambda: exists(attributes, "src/b.c"), "a new file")
    assert not attributes.watching
    assert attributes.statfs(soon()) is None


def test_a_host_without_inotify(share: Share, monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> None:
        raise OSError(errno.ENOSYS, "no such thing")

    assert share._server is not None
    monkeypatch.setattr(share._server._watcher, "_make_queue", none)
    attributes = share.attributes(ttl=0.05)
    assert exists(attributes, "src/a.c")
    (share.root / "src" / "a.c").unlink()
    until(lambda: not exists(attributes, "src/a.c"), "a file that is gone")
    assert not attributes.watching
    assert FALLBACKS.counts()["watch_enosys"] >= 1


def test_nobody_watches_any_more_once_it_is_closed(share: Share, monkeypatch: pytest.MonkeyPatch) -> None:
    attributes = share.attributes()
    until(lambda: attributes.watching, "a watch")
    assert share._server is not None
    watcher = share._server._watcher
    attributes.close()
    assert not attributes.watching
    assert not [reader for reader in watcher._subscriptions.values() if reader.known]
