"""A database file of headrace's: opening and making it, setting it aside when it is damaged, and SQLite's errors.

There are two, the client's chunk index (INDEX) and the host's manifests (storage.manifest_store).

SQLite in WAL mode, so a process that is killed at any moment leaves a database that works, and readers wait for
nobody. Two rules keep its locks whole. Nothing else in this process may open and close the database file: closing any
descriptor of it drops the locks of all. And a database is opened, made and set aside under the lock file only: a
write-ahead log must never be met by a database that it does not belong to.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from headrace.protocol.messages import CHUNK_SIZE
from headrace.storage.oserrors import label

log = logging.getLogger("headrace.storage.index")

COMPANIONS: Final = ("-wal", "-shm")
VERSION: Final = 1

_APPLICATION: Final = 0x48524958  # "HRIX", in the file's header
_BUSY_SECONDS: Final = 5.0  # how long another process's write is waited for
_LOCK_SECONDS: Final = 2.0  # how long another process may take to open the database
_CACHE_KIB: Final = 16 * 1024
_WAL_LIMIT: Final = 16 * 1024 * 1024  # bytes that the write-ahead log keeps on disk when it is empty

_SCHEMA: Final = """
CREATE TABLE files (
    id INTEGER PRIMARY KEY,
    path BLOB NOT NULL UNIQUE,
    device INTEGER NOT NULL,
    inode INTEGER NOT NULL,
    size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    ctime_ns INTEGER NOT NULL,
    used INTEGER NOT NULL, -- the tick of the last use; the clock of this machine may be set back
    whole INTEGER NOT NULL -- every chunk of the file is here
);
CREATE INDEX files_used ON files (used);
-- By hash and file: identical backups put one row each here, and a file full of one chunk a single one.
CREATE TABLE chunks (
    hash BLOB NOT NULL,
    file INTEGER NOT NULL,
    offset INTEGER NOT NULL,
    length INTEGER NOT NULL,
    PRIMARY KEY (hash, file)
) WITHOUT ROWID;
CREATE INDEX chunks_file ON chunks (file);
CREATE TABLE numbers (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
"""
# Made at each opening where it is missing: an index of before is as good, only slower to ask. Files of one chunk are
# nobody's business here, so a million of those cost nothing.
_BY_SIZE: Final = f"CREATE INDEX IF NOT EXISTS files_size ON files (size, mtime_ns) WHERE size > {CHUNK_SIZE}"


@dataclass(frozen=True, slots=True)
class Layout:
    """What kind of database it is. name: of its files, without an ending. what: for people. application: in the file's
    header. schema: statements that make one; always: one that is run at each opening. tables: they must be there."""

    name: str
    what: str
    application: int
    version: int
    schema: str
    tables: str
    always: str = ""

    @property
    def file(self) -> str:
        return f"{self.name}.db"

    @property
    def lock(self) -> str:
        return f"{self.name}.lock"

    @property
    def damaged(self) -> str:
        """One name: a disk that damages every new one must not fill up with them."""
        return f"{self.file}.damaged"


INDEX: Final = Layout("index", "chunk index", _APPLICATION, VERSION, _SCHEMA, "chunks, files, numbers", _BY_SIZE)
FILE: Final = INDEX.file
LOCK: Final = INDEX.lock
DAMAGED: Final = INDEX.damaged


class IndexOffError(Exception):
    """The index cannot be used. word: for counting. The text says why, `hint` what would help."""

    def __init__(self, word: str, text: str, hint: str) -> None:
        super().__init__(text)
        self.word = word
        self.hint = hint


class IndexDamagedError(Exception):
    """The database is no database, or not a sound one."""


class IndexBusyError(Exception):
    """Another process was writing for longer than is waited for."""


def connect(home: Path, layout: Layout = INDEX) -> tuple[sqlite3.Connection, tuple[int, int]]:
    """Opens the database in `home`, or makes one. A damaged one is set aside, with a warning, for a new one.

    The second thing is the file's identity. Raises IndexOffError, IndexBusyError.
    """
    with _locked(home, layout):
        try:
            return _connect(home, layout), identity_of(home, layout)
        except IndexDamagedError as why:
            _move_away(home, str(why), layout)
        try:
            return _connect(home, layout), identity_of(home, layout)
        except IndexDamagedError as why:  # a disk that cannot even keep a new one
            raise IndexOffError("damaged", f"a new one is damaged too: {why}", "Check the disk.") from why


def _connect(home: Path, layout: Layout) -> sqlite3.Connection:
    path = home / layout.file
    with mapped(home, layout):
        with contextlib.suppress(FileExistsError):
            # Here, and not by SQLite: paths of files are nobody else's business. Only when there is none yet.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        sql = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            _set_up(sql, layout)
        except BaseException:
            sql.close()
            raise
    return sql


def identity_of(home: Path, layout: Layout = INDEX) -> tuple[int, int]:
    """Which file the database in `home` is; (0, 0) when there is none."""
    try:
        st = os.stat(home / layout.file)
    except OSError:
        return 0, 0
    return st.st_dev, st.st_ino


def set_aside(home: Path, identity: tuple[int, int], why: str, layout: Layout = INDEX) -> None:
    """Renames the damaged database and its log, unless another process did so already. Raises IndexOffError."""
    with _locked(home, layout):
        if identity_of(home, layout) == identity:
            _move_away(home, why, layout)


def remove_damaged(home: Path, layout: Layout = INDEX) -> bool:
    """Deletes the damaged database that was set aside; whether there was one. Raises IndexOffError."""
    found = (home / layout.damaged).exists()
    with mapped(home, layout):
        for end in (*COMPANIONS, ""):
            (home / (layout.damaged + end)).unlink(missing_ok=True)
    return found


def _move_away(home: Path, why: str, layout: Layout) -> None:
    """The log first: without it the old database is at worst damaged, which is known; with it a new one would be."""
    aside = home / layout.damaged
    with mapped(home, layout):
        for end in (*COMPANIONS, ""):
            with contextlib.suppress(FileNotFoundError):
                os.replace(home / (layout.file + end), home / (layout.damaged + end))
    log.warning("the %s was damaged (%s); it is %s now, and a new one was started", layout.what, why, aside)


def _set_up(sql: sqlite3.Connection, layout: Layout) -> None:
    application = sql.execute("PRAGMA application_id").fetchone()[0]
    version = sql.execute("PRAGMA user_version").fetchone()[0]
    if application == layout.application and version > layout.version:
        text = f"it was made by a newer headrace (its version {version}, this one knows {layout.version})"
        raise IndexOffError("newer", text, "Update headrace, or set HEADRACE_HOME to another folder.")
    ours = application == layout.application and version == layout.version
    if not ours and sql.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        raise IndexDamagedError("it is a database of something else")
    if sql.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
        text = "this file system cannot hold a database that several processes use"
        raise IndexOffError("no_wal", text, "Set HEADRACE_HOME to a folder on a local disk.")
    # Not every commit waits for the disk. A power cut may cost the last ones, and never the database.
    for pragma in ("synchronous = NORMAL", f"cache_size = -{_CACHE_KIB}", f"journal_size_limit = {_WAL_LIMIT}"):
        sql.execute(f"PRAGMA {pragma}")
    if not ours:  # under the lock file, so nobody else does
        mark = f"PRAGMA application_id = {layout.application}; PRAGMA user_version = {layout.version};"
        sql.executescript(f"BEGIN IMMEDIATE; {layout.schema} {mark} COMMIT;")
    sql.execute(layout.always)
    sql.execute(f"SELECT 1 FROM {layout.tables} LIMIT 1").fetchall()


@contextlib.contextmanager
def _locked(home: Path, layout: Layout = INDEX) -> Iterator[None]:
    """The lock file, held. Raises IndexOffError, also when somebody else holds it for too long."""
    deadline = time.monotonic() + _LOCK_SECONDS
    with mapped(home, layout):
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(home / layout.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as why:
                if why.errno not in (errno.EWOULDBLOCK, errno.EACCES) or time.monotonic() > deadline:
                    text = f"{label(home / layout.lock)} is held by another process, or cannot be locked"
                    raise IndexOffError("locked", text, "Run again when no other headrace hangs.") from why
                time.sleep(0.01)
        yield
    finally:
        os.close(lock)


@contextlib.contextmanager
def mapped(home: Path, layout: Layout = INDEX) -> Iterator[None]:
    """SQLite's errors, and the disk's, become this module's."""
    try:
        yield
    except sqlite3.Error as why:
        raise _of_sqlite(why, home / layout.file) from why
    except OSError as why:
        raise _of_disk(why.errno or 0, why.strerror or str(why), home) from why


def _of_sqlite(why: sqlite3.Error, file: Path) -> Exception:
    extended = getattr(why, "sqlite_errorcode", 0)
    code = extended & 0xFF
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT, sqlite3.SQLITE_ERROR):
        return IndexDamagedError(str(why))
    if extended == sqlite3.SQLITE_IOERR_SHORT_READ:
        return IndexDamagedError("it is cut short")
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL):
        return IndexBusyError(str(why))
    if code == sqlite3.SQLITE_FULL:
        return _of_disk(errno.ENOSPC, "", file.parent)
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_CANTOPEN):
        return _of_disk(errno.EACCES, "", file.parent)
    return IndexOffError("failed", f"{label(file)} does not work ({why})", "Check the disk it lies on.")


def _of_disk(number: int, text: str, home: Path) -> IndexOffError:
    where = label(home)
    if number in (errno.ENOSPC, errno.EDQUOT):
        return IndexOffError("full", f"no space left in {where}", "Free some space there.")
    if number in (errno.EROFS, errno.EACCES, errno.EPERM):
        return IndexOffError("read_only", f"{where} cannot be written", "Check its permissions, or set HEADRACE_HOME.")
    return IndexOffError("failed", f"{where} cannot be used ({text})", "Check it, or set HEADRACE_HOME.")
