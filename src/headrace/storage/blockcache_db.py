"""Every statement that is run on the block cache's database.

    blocks.db     which range of which file has which hash; small blobs; listings
    blobs/        the other blobs, in 256 folders, named by their hash
    blocks.lock   held shared by each process that uses the folder, and exclusively by one that starts it anew

SQLite in WAL mode: a process that is killed at any moment leaves a database that works. SQLite does not notice when
somebody scribbles on a page, so each row has a checksum of its own, and a blob is believed when it has its hash.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from blake3 import blake3

FILE: Final = "blocks.db"
LOCK: Final = "blocks.lock"
BLOBS: Final = "blobs"
COMPANIONS: Final = ("", "-wal", "-shm")
VERSION: Final = 1

_APPLICATION: Final = 0x4852424C  # "HRBL", in the file's header
_BUSY_SECONDS: Final = 2.0  # how long another process's write is waited for
_CHECK: Final = 8  # bytes
_AT_ONCE: Final = 128  # blobs that are let go in one go
_SCHEMA: Final = f"""
PRAGMA auto_vacuum = INCREMENTAL;
PRAGMA journal_mode = WAL;
BEGIN IMMEDIATE;
-- A range of a file, by a hash of the file's share, version and size.
CREATE TABLE spans (
    file BLOB NOT NULL,
    start INTEGER NOT NULL,
    end INTEGER NOT NULL,
    hash BLOB NOT NULL,
    ok BLOB NOT NULL,
    PRIMARY KEY (file, start)
) WITHOUT ROWID;
CREATE INDEX spans_hash ON spans (hash);
CREATE TABLE blobs (
    hash BLOB PRIMARY KEY,
    length INTEGER NOT NULL,
    used INTEGER NOT NULL, -- the tick of the last use; the clock of this machine may be set back
    content BLOB, -- where it is small; else it is a file
    parts BLOB -- of a long one: the hash of each part by itself, so that a part can be read alone
) WITHOUT ROWID;
CREATE INDEX blobs_used ON blobs (used);
CREATE TABLE meta (key BLOB PRIMARY KEY, value BLOB NOT NULL, used INTEGER NOT NULL, ok BLOB NOT NULL) WITHOUT ROWID;
CREATE INDEX meta_used ON meta (used);
CREATE TABLE numbers (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO numbers VALUES ('tick', 0), ('blobs', 0), ('meta', 0);
PRAGMA application_id = {_APPLICATION};
PRAGMA user_version = {VERSION};
COMMIT;
"""


class Kept(NamedTuple):
    """A range of a file and the hash of its bytes."""

    start: int
    end: int
    hash: bytes


@dataclass(frozen=True, slots=True)
class NewBlob:
    """What the writer adds. content: of a small one; parts: of a long one."""

    file: bytes
    kept: Kept
    content: bytes | None
    parts: bytes | None


class NotOursError(Exception):
    """The database is damaged, or is one of something else."""


class InUseError(Exception):
    """Another process uses the folder, so that it cannot be started anew."""


class Folder:
    """The folder, with its lock held, and two connections to its database: one that reads, one that writes.

    Not thread-safe: `reader` statements and `writer` statements each want one thread at a time. Methods raise OSError
    and sqlite3.Error as they come.
    """

    def __init__(self, path: Path, *, anew: bool = False) -> None:
        """Opens what is there, or makes it. anew: after removing what is there. Raises InUseError, NotOursError."""
        self.path = path
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self._open: list[sqlite3.Connection] = []
        self._blobs = -1
        try:
            self._share(anew=anew)
            (path / BLOBS).mkdir(mode=0o700, exist_ok=True)
            self._blobs = os.open(path / BLOBS, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            self._writer = self._connect()
            self._reader = self._connect()
        except BaseException:
            self.close()
            raise

    def _share(self, *, anew: bool) -> None:
        """Takes the lock: for a moment alone, where something is to be removed or to be made."""
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            alone = True
        except OSError as why:
            if why.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            alone = False
        if anew and not alone:
            raise InUseError
        if anew:
            for end in COMPANIONS:
                (self.path / (FILE + end)).unlink(missing_ok=True)
        if alone:
            self._make()
        deadline = time.monotonic() + _BUSY_SECONDS
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return
            except OSError as why:
                if why.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    raise
                if time.monotonic() > deadline:  # a process that was stopped while it had the folder to itself
                    raise InUseError from why
            time.sleep(0.01)

    def _make(self) -> None:
        sql = sqlite3.connect(self.path / FILE, timeout=_BUSY_SECONDS, isolation_level=None)
        try:
            version = _version(sql)
            if version == (0, 0) and not sql.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                sql.executescript(_SCHEMA)
            elif version != (_APPLICATION, VERSION):
                raise NotOursError("it is a database of something else, or of another version")
        finally:
            sql.close()

    def _connect(self) -> sqlite3.Connection:
        sql = sqlite3.connect(self.path / FILE, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        self._open.append(sql)
        if _version(sql) != (_APPLICATION, VERSION):
            raise NotOursError("it is a database of something else, or of another version")
        # Not every commit waits for the disk. A power cut may cost the last ones, and never the database.
        for pragma in ("synchronous = NORMAL", "cache_size = -2048", "journal_size_limit = 16777216"):
            sql.execute(f"PRAGMA {pragma}")
        return sql

    def close(self) -> None:
        for sql in self._open:
            with contextlib.suppress(sqlite3.Error):
                sql.close()
        self._open = []
        for fd in (self._blobs, self._lock):
            if fd >= 0:
                os.close(fd)
        self._blobs = self._lock = -1

    # ---- reading ---------------------------------------------------------------------------------------------------

    def spans(self, file: bytes, start: int, end: int) -> list[Kept]:
        """The ranges of a file that begin within [start, end) and whose bytes are here."""
        query = (
            "SELECT start, end, s.hash, ok FROM spans s JOIN blobs b ON b.hash = s.hash"
            " WHERE file = ? AND start >= ? AND start < ?"
        )
        rows = self._reader.execute(query, (file, start, end)).fetchall()
        return [Kept(*row[:3]) for row in rows if row[3] == _check(file, *row[:3])]

    def blob(self, digest: bytes) -> tuple[int, bytes | None, bytes | None] | None:
        """Its length, its content and its parts' hashes, where it has those."""
        found: tuple[int, bytes | None, bytes | None] | None = self._reader.execute(
            "SELECT length, content, parts FROM blobs WHERE hash = ?", (digest,)
        ).fetchone()
        return found

    def open_blob(self, digest: bytes) -> int:
        """A descriptor of the blob's file."""
        return os.open(_name(digest), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._blobs)

    def meta(self, key: bytes) -> bytes | None:
        row = self._reader.execute("SELECT value, ok FROM meta WHERE key = ?", (key,)).fetchone()
        return row[0] if row and row[1] == _check(key, row[0]) else None

    def size(self) -> int:
        """Bytes of blobs and values."""
        row = self._reader.execute("SELECT sum(value) FROM numbers WHERE name IN ('blobs', 'meta')").fetchone()
        return int(row[0] or 0)

    # ---- writing -----------------------------------------------------------------------------------------------------

    def write_blob(self, digest: bytes, content: memoryview) -> None:
        """A blob as a file: whole, or not at all."""
        name, temporary = _name(digest), f".{os.getpid()}-{digest.hex()[:16]}.tmp"
        try:
            fd = os.open(
                temporary,
                os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC,
                0o600,
                dir_fd=self._blobs,
            )
            try:
                while content:
                    content = content[os.write(fd, content) :]
            finally:
                os.close(fd)
            try:
                os.rename(temporary, name, src_dir_fd=self._blobs, dst_dir_fd=self._blobs)
            except FileNotFoundError:
                os.mkdir(os.path.dirname(name), 0o700, dir_fd=self._blobs)
                os.rename(temporary, name, src_dir_fd=self._blobs, dst_dir_fd=self._blobs)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=self._blobs)
            raise

    def remove(self, gone: Iterable[bytes]) -> None:
        """Lets go of blobs whose bytes are not what they should be."""
        with self._transaction():
            self._remove(gone)

    def add(self, blobs: Iterable[NewBlob], meta: dict[bytes, bytes], used: Iterable[bytes]) -> bool:
        """One transaction. used: hashes that were read of late. True."""
        with self._transaction() as sql:
            tick = self._number("tick") + 1
            sql.executemany("UPDATE blobs SET used = ? WHERE hash = ?", [(tick, digest) for digest in used])
            for new in blobs:
                kept, length = new.kept, new.kept.end - new.kept.start
                tick += 1
                added = sql.execute(
                    "INSERT OR IGNORE INTO blobs VALUES (?, ?, ?, ?, ?)",
                    (kept.hash, length, tick, new.content, new.parts),
                ).rowcount
                if added > 0:
                    self._count("blobs", length)
                # A fragment that lies inside is of no more use.
                sql.execute(
                    "DELETE FROM spans WHERE file = ? AND start >= ? AND start < ? AND end <= ?",
                    (new.file, kept.start, kept.end, kept.end),
                )
                check = _check(new.file, kept.start, kept.end, kept.hash)
                sql.execute(
                    "INSERT OR REPLACE INTO spans VALUES (?, ?, ?, ?, ?)",
                    (new.file, kept.start, kept.end, kept.hash, check),
                )
            for key, value in meta.items():
                tick += 1
                old = sql.execute("SELECT length(value) FROM meta WHERE key = ?", (key,)).fetchone()
                sql.execute("INSERT OR REPLACE INTO meta VALUES (?, ?, ?, ?)", (key, value, tick, _check(key, value)))
                self._count("meta", len(value) - (old[0] if old else 0))
            sql.execute("UPDATE numbers SET value = ? WHERE name = 'tick'", (tick,))
        return True

    def shrink(self, limit: int) -> int:
        """Lets go of what was not used for longest, until `limit` bytes are left; how many bytes that were. Values may
        have an eighth of it, and go last."""
        freed = 0
        while (over := self._number("meta") - limit // 8) > 0:
            oldest = self._writer.execute(
                f"SELECT key, length(value) FROM meta ORDER BY used LIMIT {_AT_ONCE}"
            ).fetchall()
            chosen = _enough(oldest, over)
            if not chosen:
                break
            with self._transaction() as sql:
                sql.executemany("DELETE FROM meta WHERE key = ?", [(key,) for key, _ in chosen])
                self._count("meta", -sum(size for _, size in chosen))
            freed += sum(size for _, size in chosen)
        while (over := self._number("blobs") + self._number("meta") - limit) > 0:
            oldest = self._writer.execute(f"SELECT hash, length FROM blobs ORDER BY used LIMIT {_AT_ONCE}").fetchall()
            chosen = _enough(oldest, over)
            if not chosen:
                break
            with self._transaction():
                self._remove(digest for digest, _ in chosen)
            freed += sum(size for _, size in chosen)
        if freed:
            self._writer.execute("PRAGMA incremental_vacuum").fetchall()
        return freed

    def sweep(self, older_than: float) -> int:
        """Removes files that the database does not know, as a killed process leaves them, last changed before that
        time; how many."""
        removed = 0
        for folder in sorted(os.listdir(self._blobs)):
            if folder.endswith(".tmp"):
                removed += self._sweep_one(folder, older_than)
                continue
            with contextlib.suppress(NotADirectoryError, FileNotFoundError):
                fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._blobs)
                try:
                    names = os.listdir(fd)
                finally:
                    os.close(fd)
                known = {
                    bytes(row[0]).hex()
                    for row in self._writer.execute(
                        "SELECT hash FROM blobs WHERE hash >= ? AND hash < ? AND content IS NULL", _range(folder)
                    )
                }
                removed += sum(
                    self._sweep_one(f"{folder}/{name}", older_than) for name in names if folder + name not in known
                )
        return removed

    def _sweep_one(self, name: str, older_than: float) -> bool:
        with contextlib.suppress(OSError):
            if os.stat(name, dir_fd=self._blobs, follow_symlinks=False).st_mtime < older_than:
                os.unlink(name, dir_fd=self._blobs)
                return True
        return False

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._writer.execute("BEGIN IMMEDIATE")
        try:
            yield self._writer
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self._writer.execute("ROLLBACK")
            raise
        self._writer.execute("COMMIT")

    def _remove(self, hashes: Iterable[bytes]) -> None:
        sql = self._writer
        for digest in hashes:
            row = sql.execute("SELECT length, content IS NULL FROM blobs WHERE hash = ?", (digest,)).fetchone()
            if row is None:
                continue
            sql.execute("DELETE FROM blobs WHERE hash = ?", (digest,))
            sql.execute("DELETE FROM spans WHERE hash = ?", (digest,))
            self._count("blobs", -row[0])
            if row[1]:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(_name(digest), dir_fd=self._blobs)

    def _count(self, name: str, more: int) -> None:
        self._writer.execute("UPDATE numbers SET value = value + ? WHERE name = ?", (more, name))

    def _number(self, name: str) -> int:
        row = self._writer.execute("SELECT value FROM numbers WHERE name = ?", (name,)).fetchone()
        return int(row[0]) if row else 0


def _version(sql: sqlite3.Connection) -> tuple[int, int]:
    return (
        sql.execute("PRAGMA application_id").fetchone()[0],
        sql.execute("PRAGMA user_version").fetchone()[0],
    )


def _enough(oldest: list[tuple[bytes, int]], over: int) -> list[tuple[bytes, int]]:
    """As many from the beginning as it takes to be rid of `over` bytes."""
    chosen = []
    for one in oldest:
        if over <= 0:
            break
        chosen.append(one)
        over -= one[1]
    return chosen


def _check(*fields: bytes | int) -> bytes:
    """The checksum of a row."""
    plain = b"".join(
        field if isinstance(field, bytes) else field.to_bytes(8, "little", signed=True) for field in fields
    )
    return blake3(plain).digest(_CHECK)


def _name(digest: bytes) -> str:
    text = digest.hex()
    return f"{text[:2]}/{text[2:]}"


def _range(folder: str) -> tuple[bytes, bytes]:
    """Of the hashes whose files are in that folder; none for a folder that is not ours."""
    try:
        number = int(folder, 16) if len(folder) == 2 else 256
    except ValueError:
        number = 256
    if number > 255:
        return b"", b""
    return bytes([number]), bytes([number + 1]) if number < 255 else b"\xff" * 33
