"""Watches the share's tree for those clients that want to know what changes. Nothing runs while nobody does.

Only directories that a client looked at are watched, and those above them: a directory that is moved takes its watch
along, and only the one that it was in says so. One thread reads the kernel's queue for all clients. What a client has
still to be told is bounded, and when it is too much it is told that it missed something.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Final, Self

from headrace.errors import HeadraceError, RefusedError
from headrace.protocol.messages import HEARTBEAT, MAX_CHANGES, Changed
from headrace.protocol.paths import MAX_DEPTH, MAX_NAME, MAX_PATH, RelPath
from headrace.storage.inflight import is_inflight_name
from headrace.storage.inotify import CONTENT, IGNORED, IS_DIR, NAMES, OVERFLOW, Event, Inotify, remote_devices
from headrace.storage.platform import FALLBACKS
from headrace.storage.tree import SharedTree

log = logging.getLogger("headrace.host")

MAX_SUBSCRIPTIONS: Final = 64
MAX_WATCHES: Final = 32_768  # directories of a share; each costs the kernel 1 KiB
MAX_KNOWN: Final = 8_192  # directories of one client; it is told when one is dropped for another
MAX_PENDING: Final = 4_096  # paths that a client has still to be told
MAX_BYTES: Final = 256 * 1024  # of paths in one Changed
NAP: Final = 0.02  # seconds between two looks into the queue: a file that is being written is one change, not 100
STOP_TIMEOUT: Final = 5.0

_Paths = dict[bytes, None]  # in the order of what happened, each once


class Subscription:
    """What one client is told, and what it wants to know of. Made by `Watcher.subscribe`; close it."""

    def __init__(self, watcher: Watcher, peer: bytes, number: int, lock: threading.Lock) -> None:
        self.peer = peer
        self.number = number
        self.known: OrderedDict[bytes, None] = OrderedDict()  # directories, the least recently looked at first
        self.ended = False
        self._watcher = watcher
        self._told = threading.Condition(lock)
        self._entries: _Paths = {}
        self._names: _Paths = {}
        self._unwatched: _Paths = {}
        self._overflow = False

    def changes(self, request: int, seconds: float = HEARTBEAT) -> Iterator[Changed]:
        """What to send, for as long as the watch stands; waits in between. seconds: an empty one after so many."""
        yield Changed(request, self.number)
        while True:
            with self._told:
                if not self._waiting() and not self.ended:
                    self._told.wait(seconds)
                message = self._take(request)
            yield message
            if message.last:
                return

    def _waiting(self) -> bool:
        return bool(self._entries or self._names or self._unwatched or self._overflow)

    def _take(self, request: int) -> Changed:
        room = MAX_BYTES
        taken: list[list[bytes]] = []
        for paths in (self._names, self._unwatched, self._entries):
            part = []
            for path in islice(paths, MAX_CHANGES):
                room -= len(path) + 5  # MessagePack's own bytes
                if room < 0:
                    break
                part.append(path)
            for path in part:
                del paths[path]
            taken.append(part)
        overflow, self._overflow = self._overflow, False
        names, unwatched, entries = taken
        last = self.ended and not self._waiting()
        return Changed(request, self.number, entries, names, unwatched, overflow, last)

    # ---- with the watcher's lock held ------------------------------------------------------------------------------

    def tell_entry(self, path: bytes) -> None:
        self._add(self._entries, path)

    def tell_name(self, path: bytes) -> None:
        self._add(self._names, path)

    def tell_unwatched(self, path: bytes) -> None:
        self._add(self._unwatched, path)

    def tell_overflow(self) -> None:
        self._overflow = True
        self._entries.clear()
        self._names.clear()
        self._told.notify()

    def end(self) -> None:
        self.ended = True
        self._told.notify()

    def _add(self, paths: _Paths, path: bytes) -> None:
        paths[path] = None
        if len(self._entries) + len(self._names) + len(self._unwatched) > MAX_PENDING:
            # Nothing is known of any directory then, so it need not be told which ones are not watched either.
            self._unwatched.clear()
            self._watcher.forget(self)
            self.tell_overflow()
        self._told.notify()

    def close(self) -> None:
        """Ends the watch."""
        self._watcher.leave(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


@dataclass(slots=True)
class _Folder:
    """A watched directory. below: names of those in it that are watched as well."""

    watch: int
    readers: set[Subscription] = field(default_factory=set)
    below: set[bytes] = field(default_factory=set)


@dataclass(slots=True)
class _Queue:
    """The kernel's queue, and what is watched by it. A path may have moved to where another one was, or be mounted
    twice: one watch can stand for several paths."""

    inotify: Inotify
    remote: set[int]
    folders: dict[bytes, _Folder] = field(default_factory=dict)
    paths: dict[int, set[bytes]] = field(default_factory=dict)
    ended: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None


class Watcher:
    """One for each share. Thread-safe; close it."""

    def __init__(
        self,
        tree: SharedTree,
        *,
        queue: Callable[[], Inotify] = Inotify,
        max_watches: int = MAX_WATCHES,
        max_known: int = MAX_KNOWN,
    ) -> None:
        """queue, max_watches, max_known: for tests."""
        self._tree = tree
        self._make_queue = queue
        self._max_watches = max_watches
        self._max_known = max_known
        self._lock = threading.Lock()  # guards all of it, subscriptions and folders included
        self._subscriptions: dict[int, Subscription] = {}
        self._queue: _Queue | None = None
        self._closed = False
        self.overflows = 0  # how often changes were missed

    def subscribe(self, peer: bytes) -> Subscription:
        """Begins to watch for a client. Raises RefusedError where that cannot be done here, or for no more clients."""
        with self._lock:
            if self._closed or len(self._subscriptions) >= MAX_SUBSCRIPTIONS:
                raise RefusedError("this host watches its files for no more clients")
            if self._queue is None:
                self._queue = self._begin()
            number = int.from_bytes(os.urandom(7)) + 1  # not guessed, and not met again by who knew an earlier host
            made = self._subscriptions[number] = Subscription(self, peer, number, self._lock)
            return made

    def watch(self, peer: bytes, number: int, path: RelPath) -> bool:
        """From here on the directory belongs to that watch of the peer's. False where it cannot be watched."""
        self._watch_down_to(peer, number, path)
        with self._lock:
            reader = self._reader(peer, number)
            if reader is None:
                return False
            # Above after below: the one that was looked at least recently has none below it.
            for depth in range(len(path.parts), -1, -1):
                key = bytes(RelPath(path.parts[:depth]))
                if key in reader.known:
                    reader.known.move_to_end(key)
            while len(reader.known) > self._max_known:
                oldest = next(iter(reader.known))
                self._part(oldest, reader)
                reader.tell_unwatched(oldest)
            return bytes(path) in reader.known

    def _watch_down_to(self, peer: bytes, number: int, path: RelPath) -> None:
        """Each directory above first: one that is moved after that is noticed."""
        for depth in range(len(path.parts) + 1):
            above = RelPath(path.parts[:depth])
            with self._lock:
                reader = self._reader(peer, number)
                if reader is None:
                    return
                if self._join(bytes(above), reader):
                    continue
            try:
                fd = self._tree.open_folder(above)
            except HeadraceError:
                if above:
                    return
                continue  # several shared paths make a root that is no folder, and in which nothing is renamed
            try:
                with self._lock:
                    reader = self._reader(peer, number)
                    if reader is None or not self._add(bytes(above), fd, reader):
                        return
            finally:
                os.close(fd)

    def close(self) -> None:
        """Ends every watch; those who wait are told."""
        with self._lock:
            self._closed = True
            queue = self._queue
            self._end()
        if queue and queue.thread:
            queue.thread.join(STOP_TIMEOUT)

    # ---- with the lock held ----------------------------------------------------------------------------------------

    def _reader(self, peer: bytes, number: int) -> Subscription | None:
        found = self._subscriptions.get(number)
        return found if found is not None and found.peer == peer and not found.ended else None

    def _join(self, path: bytes, reader: Subscription) -> bool:
        folder = self._queue.folders.get(path) if self._queue else None
        if folder is None:
            return False
        folder.readers.add(reader)
        reader.known[path] = None
        return True

    def _add(self, path: bytes, fd: int, reader: Subscription) -> bool:
        queue = self._queue
        if queue is None:
            return False
        if path not in queue.folders:
            if len(queue.folders) >= self._max_watches:
                _fall_back("watches", f"{self._max_watches} directories are watched, which is enough")
                return False
            if os.fstat(fd).st_dev in queue.remote:
                _fall_back("remote", "files that other machines may change cannot be watched")
                return False
            try:
                watch = queue.inotify.add(fd)
            except OSError as why:
                _fall_back(errno.errorcode.get(why.errno or 0, "unknown").lower(), _text(why))
                return False
            queue.paths.setdefault(watch, set()).add(path)
            queue.folders[path] = _Folder(watch)
            above, _, name = path.rpartition(b"/")
            if name and above in queue.folders:
                queue.folders[above].below.add(name)
        return self._join(path, reader)

    def _part(self, path: bytes, reader: Subscription) -> None:
        """A directory does not interest this one any more; nothing below it does."""
        reader.known.pop(path, None)
        folder = self._queue.folders.get(path) if self._queue else None
        if folder is None:
            return
        folder.readers.discard(reader)
        if not folder.readers:
            self._drop(path)

    def _drop(self, path: bytes) -> None:
        """A directory is watched no more, nor is what lies below it."""
        queue = self._queue
        folder = queue.folders.pop(path, None) if queue else None
        if queue is None or folder is None:
            return
        for name in folder.below:
            self._drop(path + b"/" + name if path else name)
        for reader in folder.readers:
            reader.known.pop(path, None)
        above, _, name = path.rpartition(b"/")
        if path and above in queue.folders:
            queue.folders[above].below.discard(name)
        paths = queue.paths.get(folder.watch)
        if paths is not None:
            paths.discard(path)
            if not paths:
                del queue.paths[folder.watch]
                queue.inotify.remove(folder.watch)

    def forget(self, reader: Subscription) -> None:
        """It was told that it knows nothing, and will look again at what it wants to know."""
        for path in list(reader.known):
            self._part(path, reader)

    def leave(self, reader: Subscription) -> None:
        """Takes the lock itself."""
        with self._lock:
            if self._subscriptions.pop(reader.number, None) is None:
                return
            self.forget(reader)
            reader.ended = True
            if not self._subscriptions:
                self._end()

    # ---- the queue -------------------------------------------------------------------------------------------------

    def _begin(self) -> _Queue:
        try:
            inotify = self._make_queue()
        except OSError as why:
            _fall_back(errno.errorcode.get(why.errno or 0, "unknown").lower(), _text(why))
            raise RefusedError("this host cannot watch its files") from why
        queue = _Queue(inotify, _remote())
        queue.thread = threading.Thread(target=self._run, args=(queue,), name="headrace-watch", daemon=True)
        try:
            queue.thread.start()
        except RuntimeError as why:
            inotify.close()
            raise RefusedError("this host cannot watch its files: no further thread") from why
        return queue

    def _end(self) -> None:
        for reader in self._subscriptions.values():
            reader.end()
        queue, self._queue = self._queue, None
        if queue:
            queue.ended.set()
            queue.inotify.wake()  # its thread closes it

    def _run(self, queue: _Queue) -> None:
        try:
            while not queue.ended.is_set():
                events = queue.inotify.read()
                with self._lock:
                    if self._queue is queue:
                        for event in events:
                            self._note(queue, event)
                queue.ended.wait(NAP)
        except OSError as why:
            log.warning("the share's files are watched no more: %s", _text(why))
            with self._lock:
                if self._queue is queue:
                    self._end()
        finally:
            with self._lock:  # so that nobody wakes what is closed
                queue.inotify.close()

    def _note(self, queue: _Queue, event: Event) -> None:
        if event.mask & OVERFLOW:
            self.overflows += 1
            log.info("more files changed than the kernel could tell; %d clients ask anew", len(self._subscriptions))
            for reader in self._subscriptions.values():
                reader.tell_overflow()
            return
        for above in list(queue.paths.get(event.watch, ())):
            folder = queue.folders.get(above)
            if folder is None:
                continue
            if event.mask & IGNORED:  # removed, or its file system was unmounted
                readers = folder.readers
                self._drop(above)
                for reader in list(readers):
                    reader.tell_name(above)
                continue
            path = _below(above, event.name)
            if path is None:
                continue
            if event.mask & NAMES:
                if event.mask & IS_DIR:
                    self._drop(path)
                for reader in list(folder.readers):
                    reader.tell_name(path)
            elif event.mask & CONTENT:
                for reader in list(folder.readers):
                    reader.tell_entry(path)


def _below(above: bytes, name: bytes) -> bytes | None:
    """The path of a name in a directory; None where clients never see it."""
    if not name:
        return above
    path = above + b"/" + name if above else name
    if len(name) > MAX_NAME or len(path) > MAX_PATH or path.count(b"/") >= MAX_DEPTH or is_inflight_name(name):
        return None
    return path


def _remote() -> set[int]:
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            return remote_devices(file.read())
    except OSError:
        return set()  # no /proc: there is no inotify here either


def _text(why: OSError) -> str:
    if why.errno == errno.ENOSPC:
        return "the system has no more watches (fs.inotify.max_user_watches)"
    if why.errno in (errno.EMFILE, errno.ENFILE):
        return "too many inotify instances or open files (fs.inotify.max_user_instances)"
    return why.strerror or str(why)


def _fall_back(word: str, text: str) -> None:
    if FALLBACKS.add(f"watch_{word}"):
        log.warning("not all of the share can be watched (%s); clients look again after a short time", text)
