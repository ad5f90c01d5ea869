"""The host's hashes of chunks on disk, so that a share that is started again hashes no file that did not change.

By version token, which stands for device, inode, size, mtime and ctime. A hint, as the chunk index is one: a client
compares what comes with the hash and asks once more, and then the host hashes anew. So every failure here is a warning,
told once, after which nothing is found and nothing kept. No method raises for the disk.

`HEADRACE_HOME/manifests.db`, SQLite as in storage.index_file. Several shares may use it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from headrace.errors import LocalDiskError
from headrace.protocol.messages import HASH_SIZE
from headrace.storage.index_file import (
    COMPANIONS,
    IndexBusyError,
    IndexDamagedError,
    IndexOffError,
    Layout,
    connect,
    identity_of,
    mapped,
    remove_damaged,
    set_aside,
)
from headrace.storage.platform import Fallbacks

log = logging.getLogger("headrace.storage.manifest")

LAYOUT: Final = Layout(
    name="manifests",
    what="manifest cache",
    application=0x48524D46,  # "HRMF"
    version=1,
    schema="""
CREATE TABLE parts (
    id INTEGER PRIMARY KEY,
    version BLOB NOT NULL,
    part INTEGER NOT NULL, -- chunks part * PART and following
    used INTEGER NOT NULL, -- the tick of the last use; the clock of this machine may be set back
    hashes BLOB NOT NULL, -- zeros where a hash is not known
    UNIQUE (version, part)
);
CREATE INDEX parts_used ON parts (used);
CREATE TABLE numbers (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
""",
    tables="parts, numbers",
)
PART: Final = 512  # hashes in a row: 2 GiB of a file, 16 KiB here
MAX_STORED: Final = 4_000_000  # hashes: 16 TB of files, 128 MB of disk
MAX_PENDING: Final = 100_000  # hashes that wait to be written
LINGER: Final = 0.5  # seconds that the first one waits for others
CLOSE_SECONDS: Final = 5.0
_MAX_REBUILDS: Final = 3  # by one process, as with the index
_UNKNOWN: Final = bytes(HASH_SIZE)

OFF: Final = Fallbacks()  # why hashes were not kept or not looked for; for the metrics

Parts = dict[int, bytearray]


@dataclass(frozen=True, slots=True)
class StoreStats:
    """path: of the database. hashes: chunks that are known; files: of how many. disk: bytes it takes.

    counters, since it was made or cleared: manifest_hits (files that were looked up and known), manifest_misses,
    bytes_not_hashed.
    """

    path: Path
    hashes: int
    files: int
    disk: int
    counters: dict[str, int]


class ManifestStore:
    """See the module. Thread-safe; a context manager. Nothing is opened before the first use."""

    def __init__(self, home: Path, max_hashes: int = MAX_STORED, linger: float = LINGER) -> None:
        self._home = home
        self._max = max_hashes
        self._linger = linger
        self._reading = threading.Lock()
        self._reader: _Database | None = None
        self._changed = threading.Condition()
        self._pending: dict[bytes, Parts] = {}
        self._used: set[bytes] = set()
        self._counts: dict[str, int] = {}
        self._waiting = 0  # hashes in `pending`
        self._taken = self._written = 0  # batches
        self._hurry = False
        self._closed = False
        self._off: IndexOffError | None = None
        self._rebuilds = 0
        self._thread: threading.Thread | None = None

    # ---- for the host ----------------------------------------------------------------------------------------------

    def load(self, version: bytes) -> dict[int, bytearray]:
        """What is known of a file: the number of a chunk, and hashes from it on; zeros where one is not known."""
        with self._reading:
            found = self._read(lambda database: database.parts(version)) or {}
        with self._changed:
            if found:
                self._used.add(version)
            self._count("manifest_hits" if found else "manifest_misses", 1)
        return {part * PART: hashes for part, hashes in found.items()}

    def save(self, version: bytes, index: int, digest: bytes) -> None:
        """Keeps the hash of chunk `index`. It is dropped, and counted, where too many wait to be written."""
        part, place = divmod(index, PART)
        with self._changed:
            if self._closed or self._off or self._waiting >= MAX_PENDING:
                if not self._closed:
                    OFF.add("off" if self._off else "waiting")
                return
            _put(self._pending.setdefault(version, {}).setdefault(part, bytearray()), place, digest)
            self._waiting += 1
            self._wake()

    def reused(self, size: int) -> None:
        """So many bytes were not hashed, because their hash was known here."""
        with self._changed:
            self._count("bytes_not_hashed", size)

    def _count(self, name: str, number: int) -> None:
        """With the lock held."""
        if not self._closed and self._off is None:
            self._counts[name] = self._counts.get(name, 0) + number
            self._wake()

    def _wake(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="headrace-manifests", daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def close(self) -> None:
        """Writes what waits, for CLOSE_SECONDS at the most, and closes."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread:
            self._thread.join(CLOSE_SECONDS)
        with self._reading:
            if self._reader:
                self._reader.close()
                self._reader = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # ---- for `headrace cache` --------------------------------------------------------------------------------------

    def flush(self, timeout: float = 60.0) -> bool:
        """Waits until what was saved is written. False: not within `timeout` seconds, or it is off."""
        with self._changed:
            if self._thread is None:
                return self._off is None
            wanted = self._taken + bool(self._pending or self._counts or self._used)
            self._hurry = True
            self._changed.notify_all()
            return self._changed.wait_for(lambda: self._written >= wanted, timeout) and self._off is None

    def stats(self) -> StoreStats | None:
        """What is in it, all that was saved included; None where there is none yet. Raises LocalDiskError."""
        self.flush()
        if not os.path.exists(self._home / LAYOUT.file):
            return None
        hashes, files, counters = self._demand(lambda database: database.totals())
        disk = sum(_size(self._home / (LAYOUT.file + end)) for end in ("", *COMPANIONS))
        return StoreStats(self._home / LAYOUT.file, hashes, files, disk, counters)

    def clear(self) -> None:
        """Forgets everything, the counters and a damaged database too. Raises LocalDiskError."""
        self.flush()
        if os.path.exists(self._home / LAYOUT.file):
            self._demand(lambda database: database.clear())
        if self._home.exists():
            remove_damaged(self._home, LAYOUT)

    def _demand[T](self, ask: Callable[[_Database], T]) -> T:
        with self._reading:
            try:
                return ask(self._open())
            except IndexDamagedError as why:
                self._set_aside(self._reader, str(why))
                self._reader = None
                raise LocalDiskError(f"the manifest cache was damaged ({why})", hint="A new one is started.") from why
            except IndexBusyError as why:
                raise LocalDiskError("a share is writing the manifest cache", hint="Run this again.") from why
            except IndexOffError as why:
                raise LocalDiskError(f"the manifest cache cannot be used: {why}", hint=why.hint) from why

    # ---- the database ----------------------------------------------------------------------------------------------

    def _read[T](self, ask: Callable[[_Database], T]) -> T | None:
        """What `ask` gives; None where it is off, busy or was damaged. Under the reading lock."""
        if self._off or self._closed or not os.path.exists(self._home / LAYOUT.file):
            return None
        try:
            return ask(self._open())
        except IndexDamagedError as why:
            self._set_aside(self._reader, str(why))
            self._reader = None
        except IndexBusyError:
            OFF.add("busy")
        except IndexOffError as why:
            self._turn_off(why)
        return None

    def _open(self) -> _Database:
        if self._reader and not self._reader.is_current():  # somebody set it aside
            self._reader.close()
            self._reader = None
        if self._reader is None:
            self._reader = _Database(self._home)
        return self._reader

    def _set_aside(self, database: _Database | None, why: str) -> None:
        if database is None:
            return
        database.close()
        self._rebuilds += 1
        try:
            if self._rebuilds > _MAX_REBUILDS:
                raise IndexOffError("damaged", f"it was damaged {self._rebuilds} times ({why})", "Check the disk.")
            set_aside(self._home, database.identity, why, LAYOUT)
        except IndexOffError as off:
            self._turn_off(off)

    def _turn_off(self, why: IndexOffError) -> None:
        with self._changed:
            if self._off is not None:
                return
            self._off = why
            self._pending.clear()
            self._written = self._taken = self._taken + 1
            self._changed.notify_all()
        OFF.add(why.word)
        log.warning("the manifest cache is off, so files are hashed anew after each start: %s. %s", why, why.hint)

    # ---- the thread that writes ------------------------------------------------------------------------------------

    def _run(self) -> None:
        database: _Database | None = None
        try:
            while self._off is None:
                with self._changed:
                    self._changed.wait_for(lambda: self._pending or self._counts or self._used or self._closed)
                    self._changed.wait_for(lambda: self._closed or self._hurry, self._linger)
                    pending, self._pending = self._pending, {}
                    used, self._used = self._used, set()
                    counts, self._counts = self._counts, {}
                    self._waiting, self._hurry = 0, False
                    self._taken += 1
                    closed = self._closed
                if pending or used or counts:
                    database = self._write(database, pending, used, counts)
                with self._changed:
                    self._written = self._taken
                    self._changed.notify_all()
                if closed:
                    return
        except IndexOffError as why:
            self._turn_off(why)
        except Exception as why:  # a thread must not die silently, and a share not for this
            log.debug("the manifest cache's thread failed", exc_info=True)
            self._turn_off(IndexOffError("failed", f"unexpected {type(why).__name__}: {why}", "Please report this."))
        finally:
            if database:
                database.close()

    def _write(
        self, database: _Database | None, pending: dict[bytes, Parts], used: set[bytes], counts: dict[str, int]
    ) -> _Database | None:
        """The connection for the next time. What cannot be written now is lost: it is hashed again some day."""
        try:
            if database and not database.is_current():
                database.close()
                database = None
            database = database or _Database(self._home)
            database.write(pending, used, counts, self._max)
        except IndexBusyError:
            OFF.add("busy")
        except IndexDamagedError as why:
            self._set_aside(database, str(why))
            return None
        return database


class _Database:
    """One connection. Not thread-safe. Methods raise IndexOffError, IndexDamagedError, IndexBusyError."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._sql, self.identity = connect(home, LAYOUT)

    def is_current(self) -> bool:
        """Whether this is still the file that has the database's name."""
        return identity_of(self._home, LAYOUT) == self.identity

    def close(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            self._sql.close()

    def parts(self, version: bytes) -> Parts:
        with self._mapped():
            query = "SELECT part, hashes FROM parts WHERE version = ?"
            return {part: _checked(hashes) for part, hashes in self._sql.execute(query, (version,))}

    def totals(self) -> tuple[int, int, dict[str, int]]:
        """(hashes, files, counters)"""
        with self._mapped():
            query = f"SELECT coalesce(sum(length(hashes)), 0) / {HASH_SIZE}, count(DISTINCT version) FROM parts"
            hashes, files = self._sql.execute(query).fetchone()
            counters = dict(self._sql.execute("SELECT name, value FROM numbers WHERE name NOT IN ('hashes', 'tick')"))
            return hashes, files, counters

    def clear(self) -> None:
        with self._mapped():
            self._sql.executescript("BEGIN IMMEDIATE; DELETE FROM parts; DELETE FROM numbers; COMMIT; VACUUM;")
            self._sql.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def write(self, pending: dict[bytes, Parts], used: set[bytes], counts: dict[str, int], most: int) -> None:
        """One transaction. most: hashes that are kept; the parts that were not used for longest go first."""
        with self._mapped(), self._transaction():
            tick = self._bump("tick", 1)
            self._sql.executemany("UPDATE parts SET used = ? WHERE version = ?", [(tick, version) for version in used])
            more = 0
            for version in sorted(pending):
                for part, hashes in pending[version].items():
                    more += self._merge(version, part, hashes, tick)
            for name, number in counts.items():
                self._bump(name, number)
            if self._bump("hashes", more) > most:
                self._bump("hashes", -self._evict(self._bump("hashes", 0) - most * 9 // 10))

    def _merge(self, version: bytes, part: int, hashes: bytearray, tick: int) -> int:
        """Another share may know other hashes of the same file. How many more it has now."""
        query = "SELECT hashes FROM parts WHERE version = ? AND part = ?"
        known = self._sql.execute(query, (version, part)).fetchone()
        old = _checked(known[0]) if known else bytearray()
        merged = bytearray(old)
        for place in range(len(hashes) // HASH_SIZE):
            digest = bytes(hashes[place * HASH_SIZE : (place + 1) * HASH_SIZE])
            if digest != _UNKNOWN:
                _put(merged, place, digest)
        upsert = (
            "INSERT INTO parts (version, part, used, hashes) VALUES (?, ?, ?, ?)"
            " ON CONFLICT (version, part) DO UPDATE SET used = excluded.used, hashes = excluded.hashes"
        )
        self._sql.execute(upsert, (version, part, tick, merged))
        return (len(merged) - len(old)) // HASH_SIZE

    def _evict(self, wanted: int) -> int:
        """Forgets so many hashes or a few more; how many."""
        gone: list[tuple[int]] = []
        count = 0
        for row, size in self._sql.execute("SELECT id, length(hashes) FROM parts ORDER BY used, id"):
            if count >= wanted:
                break
            gone.append((row,))
            count += size // HASH_SIZE
        self._sql.executemany("DELETE FROM parts WHERE id = ?", gone)
        return count

    def _bump(self, name: str, by: int) -> int:
        upsert = "INSERT INTO numbers VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value + excluded.value"
        self._sql.execute(upsert, (name, by))
        return int(self._sql.execute("SELECT value FROM numbers WHERE name = ?", (name,)).fetchone()[0])

    @contextlib.contextmanager
    def _mapped(self) -> Iterator[None]:
        try:
            with mapped(self._home, LAYOUT):
                yield
        except (TypeError, ValueError, OverflowError) as why:
            # Rows of another shape than we write: a damaged page that SQLite did not see.
            raise IndexDamagedError(f"it holds what was never written ({why})") from why

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._sql.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._sql.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):  # SQLite may have rolled back itself
                self._sql.rollback()
            raise


def _put(hashes: bytearray, place: int, digest: bytes) -> None:
    """Puts a hash at its place; those before it that are missing become unknown."""
    start = place * HASH_SIZE
    if start > len(hashes):
        hashes.extend(bytes(start - len(hashes)))
    hashes[start : start + HASH_SIZE] = digest


def _checked(hashes: bytes) -> bytearray:
    """ValueError unless it can be what was written."""
    if len(hashes) % HASH_SIZE or len(hashes) > PART * HASH_SIZE:
        raise ValueError("a part of another length")
    return bytearray(hashes)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
