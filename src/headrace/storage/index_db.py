"""Every statement that is run on the chunk index's database.

One Database is one connection; a process may have several, and several processes may have one each.
"""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from headrace.protocol.messages import CHUNK_SIZE, HASH_SIZE
from headrace.storage.index_file import IndexDamagedError, connect, identity_of, mapped
from headrace.storage.index_places import Addition, Facts, IndexedFile, Place

MAX_PLACES: Final = 4  # of one hash that a look-up gives

MAX_SIMILAR: Final = 4  # files of one size that are told, with the same time and with another one

_AT_ONCE: Final = 500  # hashes or files in one statement
_CROWD: Final = 8  # rows a hash, on average, above which hashes are asked for one by one
_FILE_COLUMNS: Final = "id, path, device, inode, size, mtime_ns, ctime_ns, whole"
_CHUNK_COLUMNS: Final = "hash, file, offset, length"
_FACT_COLUMNS: Final = "device = ?, inode = ?, size = ?, mtime_ns = ?, ctime_ns = ?"


class Database:
    """One connection. Not thread-safe. Methods raise IndexOffError, IndexDamagedError, IndexBusyError."""

    def __init__(self, home: Path) -> None:
        """Opens the database in `home`, or makes one; a damaged one is set aside, with a warning, for a new one.

        identity: which file it is, for `index_file.set_aside`.
        """
        self.home = home
        self._sql, self.identity = connect(home)

    def is_current(self) -> bool:
        """Whether this is still the file that has the database's name."""
        return identity_of(self.home) == self.identity

    def close(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            self._sql.close()

    # ---- reading -------------------------------------------------------------------------------------------------

    def lookup(self, hashes: Iterable[bytes]) -> dict[bytes, list[Place]]:
        """By hash: at most MAX_PLACES places each; hashes that are nowhere have no entry."""
        with self._mapped(), self._snapshot():
            # In order: neighbours in the tree share their pages.
            rows = [row for part in itertools.batched(sorted(set(hashes)), _AT_ONCE) for row in self._rows_of(part)]
            files = self._files({row[1] for row in rows})
            found: dict[bytes, list[Place]] = {}
            for digest, file, offset, length in rows:
                if file in files and 0 < length <= CHUNK_SIZE and offset >= 0:
                    found.setdefault(digest, []).append(Place(files[file], offset, length, digest))
        return found

    def _rows_of(self, hashes: Sequence[bytes]) -> list[tuple[bytes, int, int, int]]:
        marks = ",".join("?" * len(hashes))
        limit = len(hashes) * _CROWD
        query = f"SELECT {_CHUNK_COLUMNS} FROM chunks WHERE hash IN ({marks}) LIMIT {limit}"
        rows = self._sql.execute(query, hashes).fetchall()
        if len(rows) < limit:
            return _thinned(rows)
        # Something is in a great many files. One by one takes four times as long, but not as long as all of those.
        one = f"SELECT {_CHUNK_COLUMNS} FROM chunks WHERE hash = ? LIMIT {MAX_PLACES}"
        return [row for digest in hashes for row in self._sql.execute(one, (digest,))]

    def _files(self, ids: set[int]) -> dict[int, IndexedFile]:
        found = {}
        for part in itertools.batched(sorted(ids), _AT_ONCE):
            query = f"SELECT {_FILE_COLUMNS} FROM files WHERE id IN ({','.join('?' * len(part))})"
            for row in self._sql.execute(query, part):
                found[row[0]] = _file(row)
        return found

    def file(self, path: bytes) -> IndexedFile | None:
        """What is known of the file at `path`."""
        with self._mapped():
            row = self._sql.execute(f"SELECT {_FILE_COLUMNS} FROM files WHERE path = ?", (path,)).fetchone()
            return _file(row) if row else None

    def similar(self, size: int, mtime_ns: int) -> list[IndexedFile]:
        """Some files of that size, which is more than a chunk's; those with that modification time first."""
        query = f"SELECT {_FILE_COLUMNS} FROM files WHERE size = ? AND size > {CHUNK_SIZE}"  # so that its index is used
        with self._mapped():
            same = self._sql.execute(f"{query} AND mtime_ns = ? LIMIT {MAX_SIMILAR}", (size, mtime_ns)).fetchall()
            other = self._sql.execute(f"{query} LIMIT {2 * MAX_SIMILAR}", (size,)).fetchall()
            files = {row[0]: _file(row) for row in (*same, *other)}
            return list(files.values())[: 2 * MAX_SIMILAR]

    def has_large_files(self) -> bool:
        """Whether any file of more than one chunk is known."""
        with self._mapped():
            query = f"SELECT 1 FROM files WHERE size > {CHUNK_SIZE} LIMIT 1"
            return self._sql.execute(query).fetchone() is not None

    def files_after(self, id: int, limit: int) -> list[IndexedFile]:
        """The next files in the order of their ids, after `id`; at most `limit`."""
        with self._mapped():
            query = f"SELECT {_FILE_COLUMNS} FROM files WHERE id > ? ORDER BY id LIMIT ?"
            return [_file(row) for row in self._sql.execute(query, (id, limit))]

    def chunks_of(self, file: IndexedFile) -> list[Place]:
        """The known chunks of `file`, by offset."""
        with self._mapped():
            query = "SELECT offset, length, hash FROM chunks WHERE file = ?"
            rows = sorted(self._sql.execute(query, (file.id,)).fetchall())
            return [Place(file, *row) for row in rows if 0 < row[1] <= CHUNK_SIZE and row[0] >= 0]

    def numbers(self) -> dict[str, int]:
        """The counters, by name."""
        with self._mapped():
            return dict(self._sql.execute("SELECT name, value FROM numbers"))

    def totals(self) -> tuple[int, int, int]:
        """(chunks, the bytes they have, files). Reads the whole table: a tenth of a second for a million."""
        with self._mapped(), self._snapshot():
            chunks, size = self._sql.execute("SELECT count(*), coalesce(sum(length), 0) FROM chunks").fetchone()
            return chunks, size, self._sql.execute("SELECT count(*) FROM files").fetchone()[0]

    def check(self) -> None:
        """Reads the whole database and checks that it is sound. Raises IndexDamagedError."""
        with self._mapped():
            found = [row[0] for row in self._sql.execute("PRAGMA integrity_check(3)")]
            orphans = "SELECT count(*) FROM chunks WHERE file NOT IN (SELECT id FROM files) OR length(hash) != ?"
            if found != ["ok"] or self._sql.execute(orphans, (HASH_SIZE,)).fetchone()[0]:
                raise IndexDamagedError(found[0] if found != ["ok"] else "chunks that belong to no file")

    # ---- writing -------------------------------------------------------------------------------------------------

    def write(
        self, additions: Sequence[Addition], forgotten: Iterable[IndexedFile], used: Iterable[int], more: dict[str, int]
    ) -> None:
        """One transaction. forgotten: unless they changed since they were read. used: ids of files. more: what the
        counters go up by."""
        with self._mapped(), self._transaction() as sql:
            removed = sum(self._forget(file) for file in forgotten)
            tick = self._bump("tick", 1)
            sql.executemany("UPDATE files SET used = ? WHERE id = ?", [(tick, id) for id in sorted(set(used))])
            by_path = _by_path(additions)
            ids, replaced = self._files_for(by_path, tick)
            removed += replaced
            rows = [
                (digest, ids[path], offset, size) for path in by_path for digest, offset, size in by_path[path].rows
            ]
            rows.sort()  # each page of the tree is written once
            before = sql.total_changes
            sql.executemany("INSERT OR IGNORE INTO chunks VALUES (?, ?, ?, ?)", rows)
            self._bump("entries", sql.total_changes - before - removed)
            for name, count in more.items():
                self._bump(name, count)

    def evict(self, limit: int, room: int, step: int) -> int:
        """Where there are more than `limit` chunks: forgets those of the files that were not used for longest, until
        `room` fewer than `limit` are left, at most `step` of them in one call. How many it forgot."""
        entries = self.numbers().get("entries", 0)
        if entries <= limit:
            return 0
        wanted = min(step, entries - max(0, limit - room))
        gone = 0
        with self._mapped(), self._transaction() as sql:
            while gone < wanted:
                oldest = sql.execute("SELECT id FROM files ORDER BY used, id LIMIT 1").fetchone()
                if oldest is None:
                    break
                some = "SELECT hash FROM chunks WHERE file = ?1 LIMIT ?2"
                delete = f"DELETE FROM chunks WHERE file = ?1 AND hash IN ({some})"
                count = sql.execute(delete, (oldest[0], wanted - gone)).rowcount
                gone += count
                if gone < wanted or not sql.execute("SELECT 1 FROM chunks WHERE file = ?", oldest).fetchone():
                    sql.execute("DELETE FROM files WHERE id = ?", oldest)
                else:
                    sql.execute("UPDATE files SET whole = 0 WHERE id = ?", oldest)
            self._bump("entries", -gone)
            self._bump("evicted", gone)
        return gone

    def clear(self) -> None:
        """Forgets everything, counters too."""
        with self._mapped(), self._transaction() as sql:
            for table in ("chunks", "files", "numbers"):
                sql.execute(f"DELETE FROM {table}")
        self.compact()

    def compact(self) -> None:
        """Gives free pages and the write-ahead log back to the disk, and counts the entries anew."""
        with self._mapped():
            with self._transaction() as sql:
                count = sql.execute("SELECT count(*) FROM chunks").fetchone()[0]
                sql.execute("INSERT OR REPLACE INTO numbers VALUES ('entries', ?)", (count,))
            self._sql.execute("VACUUM")
            self._sql.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def _files_for(self, additions: dict[bytes, Addition], tick: int) -> tuple[dict[bytes, int], int]:
        """(the ids of these files, made where they are new; how many chunks of what they were before are gone)."""
        known: dict[bytes, IndexedFile] = {}
        for part in itertools.batched(sorted(additions), _AT_ONCE):
            query = f"SELECT {_FILE_COLUMNS} FROM files WHERE path IN ({','.join('?' * len(part))})"
            known |= {row[1]: _file(row) for row in self._sql.execute(query, part)}
        fresh = self._sql.execute("SELECT coalesce(max(id), 0) + 1 FROM files").fetchone()[0]
        ids: dict[bytes, int] = {}
        new: list[tuple[Any, ...]] = []
        same: list[tuple[Any, ...]] = []
        replaced: list[tuple[Any, ...]] = []
        for path, addition in additions.items():
            facts, file = msgspec.structs.astuple(addition.facts), known.get(path)
            ids[path] = file.id if file else fresh + len(new)
            if file is None:
                new.append((ids[path], path, *facts, tick, addition.whole))
            elif file.facts == addition.facts:
                same.append((tick, file.whole or addition.whole, file.id))
            else:
                replaced.append((*facts, tick, addition.whole, file.id))
        self._sql.executemany("INSERT INTO files VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", new)
        self._sql.executemany("UPDATE files SET used = ?, whole = ? WHERE id = ?", same)
        self._sql.executemany(f"UPDATE files SET {_FACT_COLUMNS}, used = ?, whole = ? WHERE id = ?", replaced)
        gone = self._sql.executemany("DELETE FROM chunks WHERE file = ?", [values[-1:] for values in replaced]).rowcount
        return ids, max(0, gone)

    def _forget(self, file: IndexedFile) -> int:
        """How many chunks are gone. A file that was added anew since it was read stays."""
        known = self._sql.execute(f"SELECT {_FILE_COLUMNS} FROM files WHERE id = ?", (file.id,)).fetchone()
        if known is None or _file(known).facts != file.facts or known[1] != file.path:
            return 0
        count = self._sql.execute("DELETE FROM chunks WHERE file = ?", (file.id,)).rowcount
        self._sql.execute("DELETE FROM files WHERE id = ?", (file.id,))
        return count

    def _bump(self, name: str, by: int) -> int:
        """The counter's new value."""
        # No RETURNING: the SQLite of some systems is older than that.
        upsert = "INSERT INTO numbers VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value + excluded.value"
        self._sql.execute(upsert, (name, by))
        return int(self._sql.execute("SELECT value FROM numbers WHERE name = ?", (name,)).fetchone()[0])

    @contextlib.contextmanager
    def _mapped(self) -> Iterator[None]:
        try:
            with mapped(self.home):
                yield
        except (TypeError, ValueError, OverflowError) as why:
            # Rows of another shape than we write: a damaged page that SQLite did not see.
            raise IndexDamagedError(f"it holds what was never written ({why})") from why

    @contextlib.contextmanager
    def _snapshot(self) -> Iterator[None]:
        """What is read inside belongs together."""
        self._sql.execute("BEGIN")
        try:
            yield
        finally:
            self._sql.rollback()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._sql.execute("BEGIN IMMEDIATE")
        try:
            yield self._sql
            self._sql.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):  # SQLite may have rolled back itself
                self._sql.rollback()
            raise


def _by_path(additions: Iterable[Addition]) -> dict[bytes, Addition]:
    """One addition a file: those of the same version of it together, else the last."""
    found: dict[bytes, Addition] = {}
    for new in additions:
        old = found.get(new.path)
        if old and old.facts == new.facts:
            new = Addition(new.path, new.facts, old.rows + new.rows, old.whole or new.whole)
        found[new.path] = new
    return found


def _file(row: Sequence[Any]) -> IndexedFile:
    return IndexedFile(row[0], row[1], Facts(*row[2:7]), bool(row[7]))


def _thinned(rows: list[tuple[bytes, int, int, int]]) -> list[tuple[bytes, int, int, int]]:
    """At most MAX_PLACES rows a hash. rows: those of one hash stand together."""
    if len(rows) <= MAX_PLACES:
        return rows
    return [row for number, row in enumerate(rows) if number < MAX_PLACES or rows[number - MAX_PLACES][0] != row[0]]
