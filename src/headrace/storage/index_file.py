"""The chunk index's database file: opening and making it, setting it aside when it is damaged, and SQLite's errors.

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
from pathlib import Path
from typing import Final

from headrace.protocol.messages import CHUNK_SIZE
from headrace.storage.oserrors import label

log = logging.getLogger("headrace.storage.index")

FILE: Final = "index.db"
LOCK: Final = "index.lock"
DAMAGED: Final = "index.db.damaged"  # one name: a disk that damages every new one must not fill up with them
COMPANIONS: Final = ("-wal", "-shm")
VERSION: Final = 1

_APPLICATION: Final = 0x48524958  # "HRIX", in the file's header
_BUSY_SECONDS: Final = 5.0  # how long another process's write is waited for
_LOCK_SECONDS: Final = 2.0  # how long another process may take to open the database
_CACHE_KIB: Final = 16 * 1024
_WAL_LIMIT: Final = 16 * 1024 * 1024  # bytes that the write-ahead log keeps on disk when it is empty

_SCHEMA: Final = f"""
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
PRAGMA application_id = {_APPLICATION};
PRAGMA user_version = {VERSION};
"""
# Made at each opening where it is missing: an index of before is as good, only slower to ask. Files of one chunk are
# nobody's business here, so a million of those cost nothing.
_BY_SIZE: Final = f"CREATE INDEX IF NOT EXISTS files_size ON files (size, mtime_ns) WHERE size > {CHUNK_SIZE}"


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


def connect(home: Path) -> tuple[sqlite3.Connection, tuple[int, int]]:
    """Opens the database in `home`, or makes one. A damaged one is set aside, with a warning, for a new one.

    The second thing is the file's identity. Raises IndexOffError, IndexBusyError.
    """
    with _locked(home):
        try:
            return _connect(home), identity_of(home)
        except IndexDamagedError as why:
            _move_away(home, str(why))
        try:
            return _connect(home), identity_of(home)
        except IndexDamagedError as why:  # a disk that cannot even keep a new one
            raise IndexOffError("damaged", f"a new one is damaged too: {why}", "Check the disk.") from why


def _connect(home: Path) -> sqlite3.Connection:
    path = home / FILE
    with mapped(home):
        with contextlib.suppress(FileExistsError):
            # Here, and not by SQLite: paths of files are nobody else's business. Only when there is none yet.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        sql = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            _set_up(sql)
        except BaseException:
            sql.close()
            raise
    return sql


def identity_of(home: Path) -> tuple[int, int]:
    """Which file the database in `home` is; (0, 0) when there is none."""
    try:
        st = os.stat(home / FILE)
    except OSError:
        return 0, 0
    return st.st_dev, st.st_ino


def set_aside(home: Path, identity: tuple[int, int], why: str) -> None:
    """Renames the damaged database and its log, unless another process did so already. Raises IndexOffError."""
    with _locked(home):
        if identity_of(home) == identity:
            _move_away(home, why)


def remove_damaged(home: Path) -> bool:
    """Deletes the damaged database that was set aside; whether there was one. Raises IndexOffError."""
    found = (home / DAMAGED).exists()
    with mapped(home):
        for end in (*COMPANIONS, ""):
            (home / (DAMAGED + end)).unlink(missing_ok=True)
    return found


def _move_away(home: Path, why: str) -> None:
    """The log first: without it the old database is at worst damaged, which is known; with it a new one would be."""
    with mapped(home):
        for end in (*COMPANIONS, ""):
            with contextlib.suppress(FileNotFoundError):
                os.replace(home / (FILE + end), home / (DAMAGED + end))
    log.warning("the chunk index was damaged (%s); it is %s now, and a new one was started", why, home / DAMAGED)


def _set_up(sql: sqlite3.Connection) -> None:
    application = sql.execute("PRAGMA application_id").fetchone()[0]
    version = sql.execute("PRAGMA user_version").fetchone()[0]
    if application == _APPLICATION and version > VERSION:
        text = f"it was made by a newer headrace (its version {version}, this one knows {VERSION})"
        raise IndexOffError("newer", text, "Update headrace, or set HEADRACE_HOME to another folder.")
    ours = application == _APPLICATION and version == VERSION
    if not ours and sql.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        raise IndexDamagedError("it is a database of something else")
    if sql.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
        text = "this file system cannot hold a database that several processes use"
        raise IndexOffError("no_wal", text, "Set HEADRACE_HOME to a folder on a local disk.")
    # Not every commit waits for the disk. A power cut may cost the last ones, and never the database.
    for pragma in ("synchronous = NORMAL", f"cache_size = -{_CACHE_KIB}", f"journal_size_limit = {_WAL_LIMIT}"):
        sql.execute(f"PRAGMA {pragma}")
    if not ours:  # under the lock file, so nobody else does
        sql.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")
    sql.execute(_BY_SIZE)
    sql.execute("SELECT 1 FROM chunks, files, numbers LIMIT 1").fetchall()


@contextlib.contextmanager
def _locked(home: Path) -> Iterator[None]:
    """The lock file, held. Raises IndexOffError, also when somebody else holds it for too long."""
    deadline = time.monotonic() + _LOCK_SECONDS
    with mapped(home):
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(home / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as why:
                if why.errno not in (errno.EWOULDBLOCK, errno.EACCES) or time.monotonic() > deadline:
                    text = f"{label(home / LOCK)} is held by another process, or cannot be locked"
                    raise IndexOffError("locked", text, "Run again when no other headrace hangs.") from why
                time.sleep(0.01)
        yield
    finally:
        os.close(lock)


@contextlib.contextmanager
def mapped(home: Path) -> Iterator[None]:
    """SQLite's errors, and the disk's, become this module's."""
    try:
        yield
    except sqlite3.Error as why:
        raise _of_sqlite(why, home) from why
    except OSError as why:
        raise _of_disk(why.errno or 0, why.strerror or str(why), home) from why


def _of_sqlite(why: sqlite3.Error, home: Path) -> Exception:
    extended = getattr(why, "sqlite_errorcode", 0)
    code = extended & 0xFF
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT, sqlite3.SQLITE_ERROR):
        return IndexDamagedError(str(why))
    if extended == sqlite3.SQLITE_IOERR_SHORT_READ:
        return IndexDamagedError("it is cut short")
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL):
        return IndexBusyError(str(why))
    if code == sqlite3.SQLITE_FULL:
        return _of_disk(errno.ENOSPC, "", home)
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_CANTOPEN):
        return _of_disk(errno.EACCES, "", home)
    return IndexOffError("failed", f"{label(home / FILE)} does not work ({why})", "Check the disk it lies on.")


def _of_disk(number: int, text: str, home: Path) -> IndexOffError:
    where = label(home)
    if number in (errno.ENOSPC, errno.EDQUOT):
        return IndexOffError("full", f"no space left in {where}", "Free some space there.")
    if number in (errno.EROFS, errno.EACCES, errno.EPERM):
        return IndexOffError("read_only", f"{where} cannot be written", "Check its permissions, or set HEADRACE_HOME.")
    return IndexOffError("failed", f"{where} cannot be used ({text})", "Check it, or set HEADRACE_HOME.")
