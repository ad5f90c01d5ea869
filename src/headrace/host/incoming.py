"""What clients write into a share: files in flight, who writes which path, and what of it lies on this disk already.

Everything happens below the share's root, by a walk from its descriptor each time (storage.destination): a folder that
is moved out of the share meanwhile takes nothing with it. A file in flight is known by peer, path and the version token
that the client chose, so a client that comes again, on another stream or after a kill of either side, goes on with it.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from headrace.errors import (
    DestinationExistsError,
    HeadraceError,
    LocalFileError,
    NotFoundError,
    RefusedError,
)
from headrace.host.arriving import Arriving, Key
from headrace.protocol.messages import CHUNK_SIZE, Entry
from headrace.protocol.paths import RelPath, link_stays_inside
from headrace.storage.destination import Destination
from headrace.storage.fileio import FileIO
from headrace.storage.index_lazy import LazyIndex
from headrace.storage.inflight import is_inflight_name
from headrace.storage.journal import boot_mark, current_boot_id
from headrace.storage.oserrors import label
from headrace.storage.partial import BusyError, Partial
from headrace.storage.posix import POSIX

MAX_OPEN: Final = 64  # files that one peer may have in flight
MAX_OPEN_ALL: Final = 256  # and all of them together
MAX_SLOTS: Final = 8  # files in flight for one path
MAX_TRANSFERS: Final = 1024  # remembered; the oldest is forgotten
MAX_RECENT: Final = 65_536  # paths of which is remembered who wrote them last
FLUSHED_SINGLY: Final = 256  # files; where there are more, all of the file system is flushed at once
MAX_LOST: Final = 100  # paths that one transfer is told of
RECORDED: Final = 0.05  # seconds, after which it is known who gave a file its name
_LOCKS: Final = 64

Small = tuple[RelPath, Entry, memoryview]
ONE_FILE: Final = (DestinationExistsError, LocalFileError, RefusedError)  # the next file may well be taken


@dataclass(eq=False)
class Transfer:
    """One run of one client. began: in the order of all that was written into the share.

    written: not all of them once there are more than FLUSHED_SINGLY. lost: what others replaced since. resumed: this
    host heard of it in the middle, so it does not know all that was written.
    """

    began: int
    resumed: bool = False
    written: list[RelPath] = field(default_factory=list)
    lost: list[RelPath] = field(default_factory=list)


class Writers:
    """Who wrote what, and in which order. Thread-safe and bounded."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._clock = 0
        self._transfers: OrderedDict[tuple[bytes, bytes], Transfer] = OrderedDict()
        self._recent: OrderedDict[RelPath, tuple[Transfer, int]] = OrderedDict()

    def transfer(self, peer: bytes, number: bytes, *, begins: bool = False) -> Transfer:
        """The one that `peer` calls so. begins: it says that it begins, and not that it is in the middle."""
        with self._changed:
            found = self._transfers.get((peer, number))
            if found is None:
                found = self._transfers[peer, number] = Transfer(self._clock, resumed=not begins)
                if len(self._transfers) > MAX_TRANSFERS:
                    self._transfers.popitem(last=False)
            return found

    def overtaken(self, transfer: Transfer, path: RelPath, *, within: float = 0.0) -> bool:
        """Whether another one wrote to `path` since this one began. within: seconds to wait for it."""
        with self._changed:
            return self._changed.wait_for(lambda: self._is_overtaken(transfer, path), within)

    def _is_overtaken(self, transfer: Transfer, path: RelPath) -> bool:
        last = self._recent.get(path)
        return last is not None and last[0] is not transfer and last[1] > transfer.began

    def wrote(self, transfer: Transfer, path: RelPath) -> None:
        """The file at `path` is this transfer's now."""
        with self._changed:
            self._clock += 1
            last = self._recent.pop(path, None)
            if last and last[0] is not transfer and len(last[0].lost) < MAX_LOST:
                last[0].lost.append(path)
            self._recent[path] = (transfer, self._clock)
            if len(self._recent) > MAX_RECENT:
                self._recent.popitem(last=False)
            if len(transfer.written) <= FLUSHED_SINGLY:
                transfer.written.append(path)
            self._changed.notify_all()


class Received:
    """Bytes that came on all streams so far. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.total = 0

    def add(self, count: int) -> None:
        with self._lock:
            self.total += count


class Incoming:
    """All that is being written into one share. Thread-safe; close it after the streams ended."""

    def __init__(self, root_fd: int, root: bytes, home: Path, io: FileIO = POSIX) -> None:
        """Takes `root_fd`, the share's folder, over. root: its absolute path, for the chunk index in `home`."""
        self.destination = Destination(root_fd, io, durable=True, guarded=True)
        self.run = boot_mark(current_boot_id())
        self.writers = Writers()
        self.received = Received()
        self._root = root
        self._index = LazyIndex(home)
        self._asked_index = False
        self._lock = threading.Lock()
        self._open: dict[Key, Arriving] = {}
        self._naming = [threading.Lock() for _ in range(_LOCKS)]

    def close(self) -> None:
        with self._lock:
            left, self._open = list(self._open.values()), {}
        for arriving in left:
            arriving.close()
        self._index.close()
        self.destination.close()

    def _name(self, path: RelPath) -> threading.Lock:
        """Held while a file gets the name `path`, so that it is known who was last."""
        return self._naming[hash(path) % _LOCKS]

    # ---- files in flight -------------------------------------------------------------------------------------------

    def open(self, user: object, peer: bytes, path: RelPath, entry: Entry, *, old: RelPath, compare: bool) -> Arriving:
        """The file in flight that the peer calls so, for `user`, who is to `leave` it. Raises RefusedError where there
        are too many; DestinationExistsError, LocalDiskError."""
        check_path(path)
        key = peer, path, entry.version
        with self._lock:
            found = self._open.get(key)
            if found and found.entry.size != entry.size:
                raise RefusedError(f"{label(path)} is being sent with another size already")
            if found and found.compare != compare:  # it was compared, and differs
                del self._open[key]
                found.close()
            elif found and found.join(user):
                return found
            mine = sum(other[0] == peer for other in self._open)
            if mine >= MAX_OPEN or len(self._open) >= MAX_OPEN_ALL:
                raise RefusedError("too many files at once are being sent into the share")
            index = None if compare else self._the_index(entry.size)
            arriving = self._open[key] = Arriving(key, entry, compare=compare, index=index, root=self._root)
            arriving.join(user)
        try:
            arriving.begin(self.destination, self._partial(path, entry) if not compare else None, old or path)
        except BaseException:
            self._forget(arriving)
            raise
        return arriving

    def _partial(self, path: RelPath, entry: Entry) -> Partial:
        """Its part file; one of its own where others are in flight for the same path."""
        for slot in range(MAX_SLOTS):
            try:
                return self.destination.partial(
                    path,
                    size=entry.size,
                    version=entry.version,
                    mtime_ns=entry.mtime_ns,
                    sparse=entry.sparse,
                    slot=slot,
                )
            except BusyError:
                continue
        raise RefusedError(f"too many are writing to {label(path)} at once")

    def _the_index(self, size: int) -> LazyIndex | None:
        if size <= CHUNK_SIZE:
            return None
        if not self._asked_index:
            self._asked_index = True
            self._index.start()
        return self._index

    def find(self, user: object, key: Key) -> Arriving:
        """One that is open, for a user that may be new. NotFoundError: it is not."""
        with self._lock:
            found = self._open.get(key)
            if found is None or not found.join(user):
                raise NotFoundError(f"{label(key[1])} is not being sent")
            return found

    def others(self, arriving: Arriving) -> int:
        """How many more are in flight for its path."""
        with self._lock:
            return sum(key[1] == arriving.path and other is not arriving for key, other in self._open.items())

    def commit(self, arriving: Arriving, transfer: Transfer, entry: Entry, *, replace: bool) -> bool:
        """The file gets its name. Whether one of another client was replaced that came meanwhile.

        Raises RefusedError where chunks are missing, DestinationExistsError, LocalDiskError, SourceChangedError.
        """
        path = arriving.path
        if arriving.compare:
            arriving.check_equal(self.destination)
            self.destination.set_times_and_mode(path, mode=entry.mode, mtime_ns=entry.mtime_ns)
            overtakes = False
        else:
            arriving.prepare()
            with self._name(path):
                overtakes = not replace and self.writers.overtaken(transfer, path)
                try:
                    st = arriving.finish(replace=replace or overtakes)
                except DestinationExistsError:
                    if replace or overtakes or not self.writers.overtaken(transfer, path, within=RECORDED):
                        raise
                    overtakes = True
                    st = arriving.finish(replace=True)
                overtakes = overtakes or (replace and self.writers.overtaken(transfer, path))
                self.writers.wrote(transfer, path)
            if arriving.count > 1:
                self._index.add(os.path.join(self._root, bytes(path)), st, arriving.chunks)
        self._forget(arriving)
        return overtakes

    def leave(self, user: object, arriving: Arriving, *, discard: bool = False) -> None:
        """`user` has no more to do with it. The last one closes it; what came stays, unless it is to be discarded."""
        with self._lock:
            last = arriving.part(user)
            if last and self._open.get(arriving.key) is arriving:
                del self._open[arriving.key]
        if last:
            arriving.close(discard=discard)

    def _forget(self, arriving: Arriving) -> None:
        with self._lock:
            if self._open.get(arriving.key) is arriving:
                del self._open[arriving.key]
        arriving.close()

    # ---- small files, folders, symlinks ----------------------------------------------------------------------------

    def write_small(self, transfer: Transfer, files: Sequence[Small], *, replace: bool) -> list[bool | HeadraceError]:
        """Whole files. For each: whether one of another client was replaced that came meanwhile, or why it failed.

        Raises LocalDiskError where the disk takes nothing more at all.
        """
        failed: dict[int, HeadraceError] = {}
        with self.destination.small_files() as writer:
            for number, (path, entry, data) in enumerate(files):
                try:
                    check_path(path)
                    if entry.sparse:
                        raise BusyError("it has holes")  # not by this way
                    writer.write(path, data, entry.mode, entry.mtime_ns, replace=replace, fresh=False)
                except ONE_FILE as why:
                    failed[number] = why
            unnamed = writer.name_all()
        failed |= {number: unnamed[file[0]] for number, file in enumerate(files) if file[0] in unnamed}
        became: list[bool | HeadraceError] = []
        for number, file in enumerate(files):
            # Who waited once need not wait again: whatever was named by then is known.
            within = 0.0 if any(isinstance(one, HeadraceError) for one in became) else RECORDED
            became.append(self._settle_small(transfer, file, failed.get(number), replace=replace, within=within))
        return became

    def _settle_small(
        self,
        transfer: Transfer,
        file: Small,
        error: HeadraceError | None,
        *,
        replace: bool,
        within: float,
    ) -> bool | HeadraceError:
        path, entry, data = file
        overtakes = replace and self.writers.overtaken(transfer, path)
        try:
            if isinstance(error, BusyError):
                self._write_beside(path, entry, data, replace=replace)
            elif isinstance(error, DestinationExistsError) and not is_reserved(path):
                if self._is_there(path, entry, data):  # it came before, and the answer was lost
                    self.destination.set_times_and_mode(path, mode=entry.mode, mtime_ns=entry.mtime_ns)
                elif replace or not self.writers.overtaken(transfer, path, within=within):
                    return error
                else:
                    self._write_beside(path, entry, data, replace=True)
                    overtakes = True
            elif error:
                return error
        except ONE_FILE as why:
            return why
        self.writers.wrote(transfer, path)
        return overtakes

    def _write_beside(self, path: RelPath, entry: Entry, data: memoryview, *, replace: bool) -> None:
        """By a part file of its own, while another one is in flight for the same path."""
        for slot in range(MAX_SLOTS):
            with contextlib.suppress(BusyError):
                self.destination.write_whole(
                    path,
                    data,
                    mode=entry.mode,
                    mtime_ns=entry.mtime_ns,
                    replace=replace,
                    sparse=entry.sparse,
                    slot=slot,
                )
                return
        raise RefusedError(f"too many are writing to {label(path)} at once")

    def _is_there(self, path: RelPath, entry: Entry, data: memoryview) -> bool:
        """Whether the file at `path` has just these bytes."""
        try:
            fd = self.destination.open_read(path)
        except HeadraceError:
            return False
        try:
            with open(fd, "rb", buffering=0, closefd=False) as file:
                return os.fstat(fd).st_size == entry.size and file.read(len(data) + 1) == data
        except OSError:
            return False
        finally:
            os.close(fd)

    def make(self, path: RelPath, entry: Entry, *, replace: bool) -> bool:
        """A folder or a symlink. Whether it is a folder that was not there. Raises as `commit`."""
        check_path(path)
        if entry.kind == "d":
            return self.destination.make_dir(path, mode=entry.mode)
        if entry.kind != "l" or not path:
            raise RefusedError(f"{label(path)} is neither a folder nor a symlink")
        if not link_stays_inside(path, entry.target):
            raise RefusedError(f"the symlink {label(path)} points outside of the share")
        self.destination.symlink(path, entry.target, replace=replace, mtime_ns=entry.mtime_ns)
        return False

    def set_attributes(self, path: RelPath, entry: Entry) -> None:
        """Raises NotFoundError, LocalDiskError."""
        check_path(path)
        if not path:
            raise RefusedError("the shared folder itself keeps its permissions")
        self.destination.set_times_and_mode(path, mode=entry.mode, mtime_ns=entry.mtime_ns)

    def settle(self, transfer: Transfer) -> None:
        """What the transfer wrote is on the disk when this returns. Raises LocalDiskError."""
        if transfer.resumed:
            self.destination.settle(None)
        elif transfer.written:
            self.destination.settle(transfer.written if len(transfer.written) <= FLUSHED_SINGLY else None)


def is_reserved(path: RelPath) -> bool:
    """Whether it is a name that is kept for files in flight."""
    return any(map(is_inflight_name, path.parts))


def check_path(path: RelPath) -> None:
    """DestinationExistsError for a name that is kept for files in flight."""
    if is_reserved(path):
        raise DestinationExistsError(f"{label(path)} is a name that headrace keeps for files in flight", hint="")
