"""The host's watch over its tree: real directories, real renames, and a kernel that misses things."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from headrace.errors import RefusedError
from headrace.host import watch
from headrace.host.watch import Subscription, Watcher
from headrace.protocol.messages import Changed
from headrace.protocol.paths import RelPath
from headrace.storage import inotify, platform
from headrace.storage.inotify import Event, Inotify
from headrace.storage.tree import SharedTree

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="inotify is there on Linux only")

PEER: Final = b"p" * 16
PATIENCE: Final = 10.0


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for folder in ("a/b/c", "d"):
        (tmp_path / "root" / folder).mkdir(parents=True)
    (tmp_path / "root" / "a" / "file").write_bytes(b"1")
    return tmp_path / "root"


@pytest.fixture
def tree(root: Path) -> Iterator[SharedTree]:
    with SharedTree.open([root]) as opened:
        yield opened


@pytest.fixture
def watcher(tree: SharedTree) -> Iterator[Watcher]:
    made = Watcher(tree)
    yield made
    made.close()


def look(watcher: Watcher, reader: Subscription, *paths: str) -> list[bool]:
    return [watcher.watch(PEER, reader.number, RelPath.from_user(path.encode())) for path in paths]


class Told:
    """What a subscription says, taken as it comes by a thread of its own."""

    def __init__(self, reader: Subscription) -> None:
        self.messages: list[Changed] = []
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._take, args=(reader,), daemon=True)
        self._thread.start()

    def _take(self, reader: Subscription) -> None:
        for message in reader.changes(1, seconds=0.05):
            with self._news:
                self.messages.append(message)
                self._news.notify()

    def until(self, condition: Callable[[], object]) -> None:
        with self._news:
            assert self._news.wait_for(condition, PATIENCE), self.messages

    def names(self) -> set[bytes]:
        return {path for message in list(self.messages) for path in message.names}

    def entries(self) -> set[bytes]:
        return {path for message in list(self.messages) for path in message.entries}

    def unwatched(self) -> set[bytes]:
        return {path for message in list(self.messages) for path in message.unwatched}

    def overflow(self) -> bool:
        return any(message.overflow for message in list(self.messages))

    def last(self) -> bool:
        return bool(self.messages) and self.messages[-1].last


def test_it_begins_with_its_number_and_goes_on_with_nothing(watcher: Watcher) -> None:
    with watcher.subscribe(PEER) as reader:
        changes = reader.changes(7, seconds=0.001)
        assert [next(changes), next(changes)] == [Changed(7, reader.number)] * 2
        assert reader.number > 0


def test_files_that_are_written_made_and_removed(watcher: Watcher, root: Path) -> None:
    with watcher.subscribe(PEER) as reader:
        assert look(watcher, reader, "a") == [True]
        told = Told(reader)
        (root / "a" / "file").write_bytes(b"2")
        told.until(lambda: b"a/file" in told.entries())
        (root / "a" / "new").touch()
        (root / "a" / "file").unlink()
        told.until(lambda: {b"a/new", b"a/file"} <= told.names())
        (root / "a" / "new").chmod(0o600)
        told.until(lambda: b"a/new" in told.entries())


def test_nothing_is_said_of_directories_that_nobody_looked_at_nor_of_files_in_flight(
    watcher: Watcher, root: Path
) -> None:
    with watcher.subscribe(PEER) as reader:
        look(watcher, reader, "a")
        told = Told(reader)
        (root / "d" / "unseen").touch()
        (root / "a" / "b" / "unseen").touch()
        (root / "a" / ".x.headrace-part").touch()
        (root / "a" / "seen").touch()
        told.until(lambda: b"a/seen" in told.names())
        assert told.names() | told.entries() == {b"a/seen"}


def test_a_directory_that_is_moved_is_watched_where_it_was_looked_at_again(watcher: Watcher, root: Path) -> None:
    with watcher.subscribe(PEER) as reader:
        look(watcher, reader, "a/b/c")
        told = Told(reader)
        (root / "a").rename(root / "z")
        told.until(lambda: {b"a", b"z"} <= told.names())
        assert not reader.known.keys() & {b"a", b"a/b", b"a/b/c"}
        assert look(watcher, reader, "z/b/c", "a/b/c") == [True, False]
        (root / "z" / "b" / "c" / "new").touch()
        told.until(lambda: b"z/b/c/new" in told.names())
        assert b"a/b/c/new" not in told.names()


def test_a_directory_that_is_moved_away_and_another_that_comes(watcher: Watcher, root: Path) -> None:
    with watcher.subscribe(PEER) as reader:
        look(watcher, reader, "a/b")
        told = Told(reader)
        (root / "a").rename(root.parent / "outside")
        told.until(lambda: b"a" in told.names())
        (root.parent / "outside" / "b" / "unseen").touch()
        (root / "d").rename(root / "a")
        told.until(lambda: b"d" in told.names())
        assert look(watcher, reader, "a") == [True]
        (root / "a" / "seen").touch()
        told.until(lambda: b"a/seen" in told.names())
        assert not any(path.startswith(b"a/b/") for path in told.names())


def test_it_looks_at_a_directory_by_its_new_name_before_the_move_is_told(watcher: Watcher, root: Path) -> None:
    with watcher.subscribe(PEER) as reader:
        look(watcher, reader, "d")
        with watcher._lock:  # the queue is not read meanwhile
            (root / "d").rename(root / "e")
        look(watcher, reader, "e")
        told = Told(reader)
        told.until(lambda: {b"d", b"e"} <= told.names())
        assert look(watcher, reader, "e") == [True]
        (root / "e" / "new").touch()
        told.until(lambda: b"e/new" in told.names())
        assert b"d/new" not in told.names()


def test_the_root_goes_with_all_that_is_in_it(watcher: Watcher, root: Path) -> None:
    with watcher.subscribe(PEER) as reader:
        look(watcher, reader, "")
        told = Told(reader)
        for folder in ("a/b/c", "a/b", "d"):
            (root / folder).rmdir()
        (root / "a" / "file").unlink()
        (root / "a").rmdir()
        root.rmdir()
        told.until(lambda: told.names() >= {b"a", b"d"})


def test_each_client_is_told_of_its_own(watcher: Watcher, root: Path) -> None:
    with watcher.subscribe(PEER) as one, watcher.subscribe(b"q" * 16) as other:
        look(watcher, one, "a")
        assert look(watcher, other, "d") == [False]  # a number of another peer is none
        watcher.watch(b"q" * 16, other.number, RelPath((b"d",)))
        first, second = Told(one), Told(other)
        (root / "a" / "x").touch()
        (root / "d" / "y").touch()
        first.until(lambda: first.names() == {b"a/x"})
        second.until(lambda: second.names() == {b"d/y"})


def test_the_least_recently_looked_at_directory_goes_first(tree: SharedTree, root: Path) -> None:
    watcher = Watcher(tree, max_known=3)  # the root is one of them
    with watcher.subscribe(PEER) as reader:
        told = Told(reader)
        assert look(watcher, reader, "a", "d", "a") == [True, True, True]
        assert look(watcher, reader, "a/b") == [True]
        told.until(lambda: told.unwatched() == {b"d"})
        (root / "d" / "unseen").touch()
        (root / "a" / "b" / "seen").touch()
        told.until(lambda: b"a/b/seen" in told.names())
        assert b"d/unseen" not in told.names()
    watcher.close()


def test_no_more_watches_than_the_share_may_have(
    tree: SharedTree, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(watch, "FALLBACKS", fallbacks := platform.Fallbacks())
    watcher = Watcher(tree, max_watches=2)
    with caplog.at_level(logging.WARNING), watcher.subscribe(PEER) as reader:
        assert look(watcher, reader, "a", "d", "a/b", "a") == [True, False, False, True]
    assert (
        len([record for record in caplog.records if "cannot be watched" in record.message or "2 dir" in record.message])
        == 1
    )
    assert fallbacks.counts() == {"watch_watches": 2}
    watcher.close()


class Faulty(Inotify):
    """A kernel with troubles. left: watches that it still has. events: what it says next."""

    def __init__(self, left: int = 1_000_000) -> None:
        super().__init__()
        self.left = left
        self.events: list[Event] = []

    def add(self, fd: int) -> int:
        if not self.left:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.left -= 1
        return super().add(fd)

    def read(self, seconds: float | None = None) -> list[Event]:
        found = super().read(0.01)
        found, self.events = found + self.events, []
        return found


def test_the_kernel_has_no_more_watches(tree: SharedTree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "FALLBACKS", fallbacks := platform.Fallbacks())
    watcher = Watcher(tree, queue=lambda: Faulty(2))
    with watcher.subscribe(PEER) as reader:
        assert look(watcher, reader, "a", "d") == [True, False]
    assert fallbacks.counts() == {"watch_enospc": 1}
    watcher.close()


def test_there_is_no_inotify(tree: SharedTree, monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> Inotify:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(watch, "FALLBACKS", fallbacks := platform.Fallbacks())
    watcher = Watcher(tree, queue=none)
    for _ in range(2):
        with pytest.raises(RefusedError):
            watcher.subscribe(PEER)
    assert fallbacks.counts() == {"watch_emfile": 2}
    watcher.close()


def test_the_kernel_misses_something(tree: SharedTree) -> None:
    kernel = Faulty()
    watcher = Watcher(tree, queue=lambda: kernel)
    with watcher.subscribe(PEER) as reader:
        look(watcher, reader, "a")
        told = Told(reader)
        kernel.events = [Event(-1, inotify.OVERFLOW, b"")]
        told.until(told.overflow)
        assert watcher.overflows == 1
    watcher.close()


def test_a_client_that_takes_nothing_is_told_that_it_missed_something(
    tree: SharedTree, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "MAX_PENDING", 10)
    watcher = Watcher(tree)
    with watcher.subscribe(PEER) as reader:
        look(watcher, reader, "a")
        for number in range(20):
            (root / "a" / str(number)).touch()
        deadline = time.monotonic() + PATIENCE
        while not reader._overflow and time.monotonic() < deadline:
            time.sleep(0.005)
        told = Told(reader)
        told.until(told.overflow)
        assert len(told.names()) <= 10
        # Nothing of what it wanted to know is watched any more, and it can begin anew.
        assert not reader.known
        assert look(watcher, reader, "a") == [True]
        (root / "a" / "again").touch()
        told.until(lambda: b"a/again" in told.names())
    watcher.close()


def test_a_message_is_bounded_and_nothing_is_left_out(tree: SharedTree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "MAX_CHANGES", 3)
    monkeypatch.setattr(watch, "MAX_BYTES", 40)
    watcher = Watcher(tree)
    reader = watcher.subscribe(PEER)
    paths = [b"%d-%s" % (number, b"x" * number) for number in range(20)]
    with watcher._lock:
        for path in paths:
            reader.tell_entry(path)
            reader.tell_name(path)
    watcher.close()
    messages = list(reader.changes(1))
    assert [path for message in messages for path in message.entries] == paths
    assert [path for message in messages for path in message.names] == paths
    assert all(len(message.names) <= 3 and sum(map(len, message.names + message.entries)) <= 40 for message in messages)
    assert [message.last for message in messages] == [False] * (len(messages) - 1) + [True]


def test_no_more_than_so_many_watch(watcher: Watcher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "MAX_SUBSCRIPTIONS", 1)
    with watcher.subscribe(PEER), pytest.raises(RefusedError):
        watcher.subscribe(PEER)
    watcher.subscribe(PEER).close()


def queues() -> set[str]:
    """The descriptors of this process that are an inotify queue."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            if os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:inotify":
                found.add(fd)
    return found


def test_nothing_runs_and_nothing_is_open_while_nobody_watches(tree: SharedTree) -> None:
    before = queues()
    watcher = Watcher(tree)
    assert not watcher.watch(PEER, 5, RelPath())
    assert queues() <= before
    for _ in range(2):
        with watcher.subscribe(PEER) as reader:
            look(watcher, reader, "a")
            queue = watcher._queue
        assert queue is not None
        assert queue.thread is not None
        queue.thread.join(PATIENCE)
        assert not queue.thread.is_alive()
    assert queues() <= before


def test_the_share_ends(watcher: Watcher) -> None:
    told = Told(watcher.subscribe(PEER))
    watcher.close()
    told.until(told.last)
    with pytest.raises(RefusedError):
        watcher.subscribe(PEER)


def test_several_shared_paths(root: Path) -> None:
    with SharedTree.open([root / "a", root / "d"]) as tree:
        watcher = Watcher(tree)
        with watcher.subscribe(PEER) as reader:
            assert look(watcher, reader, "", "a/b") == [False, True]
            told = Told(reader)
            (root / "a" / "b" / "new").touch()
            told.until(lambda: b"a/b/new" in told.names())
        watcher.close()
