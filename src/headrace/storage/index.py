"""The chunk index: where on this disk a chunk already lies, so that it is cloned and not fetched.

A hint and never a promise. What it says is checked against the file, and the bytes against their hash, each time they
are used (`storage.clone`): an index that is old, damaged or forged costs time and nothing else. So every failure of
its own is a warning, told once, after which it finds nothing and remembers nothing. No method raises for the disk.

How a transfer uses it. Nothing here blocks one: `lookup` reads what was written, writing is done by a thread of the
index's own, and a change for which its queue has no room is dropped and counted.

    index = ChunkIndex(config.home(), max_entries)   # one a process; `with`, or close()
    copier = Copier()                                # one a transfer
    ...
    # planning: all missing chunks of many files in one call; a thousand or more hashes a time are quickest
    places = index.lookup(hashes)
    ...
    # a lane, for each missing chunk; fd: the part file, open for reading and writing
    if places.get(hash) and copier.fill(index, places[hash], fd, offset, length):
        partial.commit(number, hash)                 # counts as bytes_reused
    else:
        ...                                          # fetch it: what is in its range of the part file is undefined
    ...
    # the file is finished and has its name: renaming changes its ctime, so an earlier fstat would not do
    index.add(path, os.stat(path, follow_symlinks=False), [(offset, length, hash), ...], whole=True)

The part file is its Partial's: that has to say that the range is about to be something else, as it does for `write`,
map OSError, and reserve nothing before it, since a clone takes no space.

Paths are bytes and absolute. Offsets and lengths are in bytes, hashes are BLAKE3. Files of up to MIN_LENGTH bytes and
whole chunks of zeros are not worth an entry and are left out. `headrace cache` looks at the same index
(docs/cache.md); why it is built like this is in docs/decisions/010-chunk-index.md.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from headrace.errors import LocalDiskError
from headrace.protocol.messages import CHUNK_SIZE, HASH_SIZE
from headrace.storage.chunks import SINGLY, ZERO_HASH, should_hash
from headrace.storage.index_db import Database
from headrace.storage.index_file import (
    COMPANIONS,
    DAMAGED,
    FILE,
    IndexBusyError,
    IndexDamagedError,
    IndexOffError,
    remove_damaged,
    set_aside,
)
from headrace.storage.index_places import Addition, Facts, IndexedFile, Place
from headrace.storage.index_writer import MAX_QUEUED, MAX_REBUILDS, Batch, Writer
from headrace.storage.platform import Fallbacks

__all__ = ["DEFAULT_ENTRIES", "MIN_LENGTH", "ChunkIndex", "Facts", "IndexStats", "IndexedFile", "Place"]

log = logging.getLogger("headrace.storage.index")

DEFAULT_ENTRIES: Final = 1_000_000  # chunks: 4 TB of large files, and about 100 MB of database
MIN_ENTRIES: Final = 100
MIN_LENGTH: Final = SINGLY
CLOSE_SECONDS: Final = 5.0

OFF: Final = Fallbacks()  # how often an index was off, by reason; for the metrics


@dataclass(frozen=True, slots=True)
class IndexStats:
    """path: of the database. entries: chunks. bytes_indexed: their lengths. disk: bytes of the database and its log.

    counters, since the index was made or cleared: asked, found (hashes in look-ups); reused, bytes_saved (chunks that
    were copied on this disk) and by way `reflink`, `copy_file_range`, `copy` (chunks); stale (files found changed or
    gone); evicted, dropped (chunks). damaged: there is one that was set aside.
    """

    path: Path
    entries: int
    files: int
    bytes_indexed: int
    max_entries: int
    disk: int
    counters: dict[str, int]
    damaged: bool


class ChunkIndex:
    """See the module. Thread-safe; a context manager. Several processes may use one home."""

    def __init__(self, home: Path, max_entries: int = DEFAULT_ENTRIES) -> None:
        """Opens the index in the folder `home`, or makes one.

        max_entries: how many chunks to remember; those of the files that were not used for longest go first. Never
        raises for the disk: see `off`.
        """
        if max_entries < MIN_ENTRIES:
            raise ValueError(f"an index of less than {MIN_ENTRIES} entries")
        self.max_entries = max_entries
        self._home = home
        self._off: IndexOffError | None = None
        self._off_lock = threading.Lock()
        self._reading = threading.Lock()
        self._database: Database | None = None
        self._rebuilds = 0
        self._busy = False
        self._closed = False
        self._writer = Writer(home, max_entries, self._turn_off)
        with self._reading:
            self._open()

    @property
    def off(self) -> LocalDiskError | None:
        """Why the index is not used, with what would help; None while it is."""
        if self._off is None:
            return None
        return LocalDiskError(f"the chunk index is off: {self._off}", hint=self._off.hint)

    def lookup(self, hashes: Sequence[bytes]) -> dict[bytes, list[Place]]:
        """Where these chunks lay when they were added: at most four places each; unknown hashes have no entry.

        Blocks for as long as reading takes, about 5 µs a hash.
        """
        if not hashes:
            return {}
        found = self._read(lambda database: database.lookup(hashes)) or {}
        self.count(asked=len(hashes), found=len(found))
        return found

    def similar(self, size: int, mtime_ns: int) -> list[IndexedFile]:
        """Some files that had `size` bytes, more than a chunk; first those that had that modification time, too.

        What may well be copies of a file of which no more is known than this.
        """
        return self._read(lambda database: database.similar(size, mtime_ns)) or []

    def has_large_files(self) -> bool:
        """Whether it knows of any file of more than one chunk: only those can be looked for before they are fetched."""
        return bool(self._read(lambda database: database.has_large_files()))

    def knows(self, path: bytes, st: os.stat_result) -> bool:
        """Whether every chunk of the file at `path` is here, and the file is what it was when they were added."""
        file = self._read(lambda database: database.file(path))
        return file is not None and file.whole and file.facts == Facts.of(st)

    def add(
        self, path: bytes, st: os.stat_result, chunks: Iterable[tuple[int, int, bytes]], *, whole: bool = False
    ) -> bool:
        """Remembers that the file at `path` has these chunks: (offset, length, hash). whole: and no others.

        st: the file's, taken when it had its name and these bytes. What was known of `path` stays if the file is the
        same. False: they were dropped, because the queue is full (which is counted), because the index is off, or
        because `st` is of a file that is too short for them. ValueError: a path that is not absolute, or no chunks.
        """
        if not path.startswith(b"/"):
            raise ValueError("the path of an indexed file is absolute")
        rows = []
        for offset, length, digest in chunks:
            if offset < 0 or not 0 < length <= CHUNK_SIZE or len(digest) != HASH_SIZE:
                raise ValueError("no chunk, or no hash")
            if offset + length > st.st_size:  # somebody changed it since it was finished
                return False
            if should_hash(offset, length) and (length < CHUNK_SIZE or digest != ZERO_HASH(length)):
                rows.append((digest, offset, length))
        # One file that is larger than everything that may be remembered must not evict itself. A batch it must fit in.
        limit = min(MAX_QUEUED, max(1, self.max_entries * 9 // 10))
        addition = Addition(path, Facts.of(st), rows[:limit], whole and len(rows) <= limit)
        if not rows:
            return self._off is None
        if self._writer.put(lambda batch: batch.additions.append(addition), len(addition.rows)):
            return True
        if self._off is None:
            self.count(dropped=len(rows))
        return False

    def forget(self, place: Place) -> None:
        """The file of this place is not what it was: forgets all of it, unless it was added anew meanwhile."""
        self._writer.put(lambda batch: batch.forgotten.append(place.file))
        self.count(stale=1)

    def touch(self, places: Iterable[Place]) -> None:
        """These places were of use; their files are kept longer."""
        ids = {place.file.id for place in places}
        if ids:
            self._writer.put(lambda batch: batch.used.update(ids))

    def reused(self, place: Place, way: str) -> None:
        """`place` was copied, in the way of that name (`storage.clone`); counts it and touches its file."""
        self.touch([place])
        self.count(reused=1, bytes_saved=place.length, **{way: 1})

    def count(self, **more: int) -> None:
        """Adds to the counters that `stats` shows; they outlive the process."""

        def change(batch: Batch) -> None:
            for name, number in more.items():
                batch.counts[name] = batch.counts.get(name, 0) + number

        self._writer.put(change)

    def flush(self, timeout: float = 60.0) -> bool:
        """Waits until what was added is written, and so can be found. False: not within `timeout` seconds, or off."""
        return self._writer.flush(timeout)

    def stats(self) -> IndexStats:
        """What is in it, all queued changes included. Raises LocalDiskError: it is off, or another process is busy."""
        self.flush()
        with self.database() as database:
            entries, size, files = database.totals()
            counters = database.numbers()
        for own in ("entries", "tick"):
            counters.pop(own, None)
        disk = sum(_size(self._home / (FILE + end)) for end in ("", *COMPANIONS))
        damaged = (self._home / DAMAGED).exists()
        return IndexStats(self._home / FILE, entries, files, size, self.max_entries, disk, counters, damaged)

    def clear(self) -> None:
        """Forgets everything, the counters and a damaged database too. Raises LocalDiskError."""
        self.flush()
        with self.database() as database:
            database.clear()
        remove_damaged(self._home)

    def _read[T](self, read: Callable[[Database], T]) -> T | None:
        """What `read` gives; None when the index is off, busy, or was damaged and is a new one now."""
        with self._reading:
            database = self._open()
            if database is None:
                return None
            try:
                return read(database)
            except IndexDamagedError as why:
                self._rebuild(database, str(why))
            except IndexBusyError:
                self._tell_busy()
            except IndexOffError as why:
                self._turn_off(why)
            return None

    def _open(self) -> Database | None:
        """The reading connection; None when the index is off or closed. Under the lock."""
        if self._database and not self._database.is_current():  # another process, or our writer, set it aside
            self._database.close()
            self._database = None
        if self._database is None and self._off is None and not self._closed:
            try:
                self._database = Database(self._home)
            except IndexBusyError:
                self._tell_busy()
            except IndexOffError as why:
                self._turn_off(why)
        return self._database

    def _rebuild(self, database: Database, why: str) -> None:
        """A new database in the place of a damaged one. Under the lock."""
        database.close()
        self._database = None
        self._rebuilds += 1
        try:
            if self._rebuilds > MAX_REBUILDS:
                raise IndexOffError("damaged", f"it was damaged {self._rebuilds} times ({why})", "Check the disk.")
            set_aside(self._home, database.identity, why)
        except IndexOffError as off:
            self._turn_off(off)

    def _tell_busy(self) -> None:
        OFF.add("busy")
        if not self._busy:
            self._busy = True
            log.warning("the chunk index is held by another process; what it knows is fetched all the same")

    def _turn_off(self, why: IndexOffError) -> None:
        """For good. Called on any thread."""
        with self._off_lock:
            if self._off is not None:
                return
            self._off = why
        OFF.add(why.word)
        self._writer.stop()
        log.warning("the chunk index is off, so nothing is taken from this disk: %s. %s", why, why.hint)

    @contextlib.contextmanager
    def database(self) -> Iterator[Database]:
        """The reading connection, for whoever looks after the index (`index_check`); nobody else reads meanwhile.

        Errors of the index become LocalDiskError, here and inside.
        """
        with self._reading:
            database = self._open()
            if database is None:
                raise self.off or LocalDiskError("the chunk index is closed")
            try:
                yield database
            except IndexDamagedError as why:
                self._rebuild(database, str(why))
                raise LocalDiskError(
                    f"the chunk index was damaged ({why})",
                    hint="A new, empty one was started; add what it should know.",
                ) from why
            except IndexBusyError as why:
                raise LocalDiskError(
                    "another process is writing the chunk index", hint="Run this again when it is done."
                ) from why
            except IndexOffError as why:
                self._turn_off(why)
                raise LocalDiskError(f"the chunk index is off: {why}", hint=why.hint) from why

    def close(self) -> None:
        """Writes what is queued, for CLOSE_SECONDS at most, and closes. Afterwards the index finds nothing."""
        if not self._writer.close(CLOSE_SECONDS):
            log.info("the chunk index was not written to its end within %.0f s", CLOSE_SECONDS)
        with self._reading:
            self._closed = True
            if self._database:
                self._database.close()
                self._database = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
