"""The receiver's file in flight: a part file and a journal beside its destination, renamed into place when whole.

A record is written to the journal after the bytes it speaks of, so after a kill (-9 included) everything the journal
says is true: the page cache outlives the process. It does not outlive the machine, so the journal carries the boot id,
and under another one every chunk is hashed again before it counts.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from typing import Final, Self

from headrace.errors import DestinationExistsError, LocalDiskError, LocalFileError
from headrace.protocol.messages import CHUNK_SIZE, HASH_SIZE, VERSION_SIZE
from headrace.storage.chunks import chunk_count, chunk_range, hash_bytes, new_hasher
from headrace.storage.fileio import FileIO
from headrace.storage.inflight import is_inflight_name, part_names
from headrace.storage.journal import NO_BOOT, Header, Journal, Record, boot_mark, current_boot_id, open_regular
from headrace.storage.libc import preallocate, punch_hole, rename_noreplace
from headrace.storage.oserrors import label, local_errors
from headrace.storage.posix import POSIX
from headrace.storage.rawio import pread_all, stamp, write_sparse, write_zeros, zero_runs

__all__ = ["BusyError", "Partial", "forget_leftover", "is_inflight_name", "part_names", "write_whole"]

_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NEW_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# Bytes that are reserved at once. On tmpfs 1 GiB costs 0.35 s, in which nobody can write to the file; in steps that are
# shorter than what the sockets hold, the host works on meanwhile.
_STEP: Final = 4 * CHUNK_SIZE
_DIG: Final = 256 * 1024  # bytes looked at for zeros, or hashed again, at once
_ATTEMPTS: Final = 5  # at opening a part file that others keep renaming away
_IN_THE_WAY: Final = frozenset({errno.EISDIR, errno.ENOTEMPTY, errno.EEXIST})


class BusyError(LocalFileError):
    """Another writer has the file in flight."""


class Partial:
    """A file of several chunks in flight.

    `write`, `write_zeros`, `fill`, `adopt` and `commit` may be called by several threads, one chunk being one thread's
    at a time; `arrivals` by one more. Everything else is for one thread, after the others have stopped. End it with
    exactly one of `finish`, `close` or `discard`; a `finish` that raises has ended nothing. All raise LocalDiskError,
    and LocalFileError where it is about this file alone.

    size: bytes. verified: the chunks that are on disk, right. stale: chunks on disk that were right for an older
    version of the source, with their hashes: `adopt` keeps those that still are.
    """

    def __init__(
        self,
        parent_fd: int,
        name: bytes,
        fd: int,
        journal: Journal,
        header: Header,
        sparse: bool,
        io: FileIO,
        slot: int = 0,
    ) -> None:
        self.size = header.size
        self.verified: set[int] = set()
        self.stale: dict[int, bytes] = {}
        self._count = chunk_count(header.size)
        self._parent_fd = parent_fd
        self._name = name
        self._part, self._journal_name = part_names(name, slot)
        self._fd = fd
        self._journal = journal
        self._sparse = sparse
        self._io = io
        self._lock = threading.Lock()
        # The kernel takes one writer a file at a time, and the second one spins: here it sleeps instead, which saves
        # a seventh of the CPU time of a transfer over two lanes.
        self._writing = threading.Lock()
        self._reserved = 0
        self._arrivals: list[bytes] = []
        self._noting = False
        self.durable = False  # whether `finish` has the file on disk before it gives it its name

    @classmethod
    def open(
        cls,
        parent_fd: int,
        name: bytes,
        *,
        size: int,
        version: bytes,
        mtime_ns: int,
        sparse: bool,
        boot_id: bytes | None = None,
        io: FileIO = POSIX,
        slot: int = 0,
    ) -> Self:
        """Opens what an earlier run left of `name` in the folder `parent_fd`, or starts anew; checks for space.

        size: bytes; version and mtime_ns: the source's. boot_id: for tests; otherwise the machine's own. `parent_fd`
        stays the caller's. slot: each of several writers to one name has its own. Raises LocalDiskError: no space (what
        is there stays for the next try). BusyError: another headrace is writing the same file. LocalFileError:
        something that is no regular file lies at the part file's name.
        """
        if len(version) > VERSION_SIZE:
            raise ValueError("a version token too long")
        boot = boot_mark(current_boot_id() if boot_id is None else boot_id)
        header = Header(size, version, mtime_ns, boot)
        part, journal_name = part_names(name, slot)
        with contextlib.ExitStack() as undo, local_errors("write", name):
            parent = os.dup(parent_fd)
            undo.callback(os.close, parent)
            fd = _open_locked(parent, part, name)
            undo.callback(os.close, fd)
            with _about_one_file():
                journal = Journal.open(parent, journal_name)
            undo.callback(journal.close)
            partial = cls(parent, name, fd, journal, header, sparse, io, slot)
            partial._resume(header)
            partial._check_space()
            undo.pop_all()
        return partial

    @property
    def complete(self) -> bool:
        """Whether every chunk is verified."""
        return len(self.verified) == self._count

    def write(self, offset: int, data: memoryview | bytes) -> None:
        """Writes `data`, a piece of one chunk, at `offset`. ValueError when it reaches past the end.

        A piece of a verified chunk is dropped: its bytes are right, and a late duplicate must not touch them.
        """
        if self._touch(offset, len(data)):
            return
        with local_errors("write", self._name), self._writing:
            if self._sparse:  # under the lock too: it moves the descriptor's position, which the plain backend uses
                write_sparse(self._fd, memoryview(data), offset, self._io.write)
                return
            if offset + len(data) > self._reserved:
                self._reserve(offset + len(data))
            self._io.write(self._fd, data, offset)

    def write_zeros(self, offset: int, length: int) -> None:
        """As `write` with `length` zeros, but what is a hole stays one."""
        if self._touch(offset, length):
            return
        with local_errors("write", self._name), self._writing:
            write_zeros(self._fd, offset, length, self._io.write)

    def fill(self, offset: int, length: int, copy: Callable[[int], bool]) -> bool:
        """Lets `copy` put a chunk where it belongs, by whatever means: it is given the part file's descriptor, open for
        reading and writing and good until it returns, and says whether the chunk is there. False: it is not, and what
        is in the range is undefined. ValueError when it reaches past the end.

        `copy` must not move the descriptor's position. What it raises as OSError is about this file. No space is
        reserved before: a clone takes none.
        """
        if self._touch(offset, length):
            return True
        with local_errors("write", self._name):
            there = copy(self._fd)
            if there and self._sparse:  # a copy has blocks where its source has holes
                self._dig(offset, length)
            return there

    def commit(self, index: int, hash: bytes) -> None:
        """Records that chunk `index` is written whole and has this hash, which the caller has verified."""
        if not 0 <= index < self._count or len(hash) != HASH_SIZE:
            raise ValueError("no such chunk, or no hash")
        with self._lock, local_errors("write", self._name):
            if index in self.verified:
                return
            self._journal.append(index, Record(hash))
            self.stale.pop(index, None)
            self.verified.add(index)
            if self._noting:
                self._arrivals.append(hash)

    def holds(self, index: int, hash: bytes) -> bool:
        """Whether the part file has a chunk with this hash where chunk `index` belongs."""
        return self.digest(index) == hash

    def digest(self, index: int) -> bytes:
        """The hash of what is where chunk `index` belongs; empty where the file ends before."""
        offset, length = chunk_range(self.size, index)
        hasher, buffer = new_hasher(), memoryview(bytearray(min(length, _DIG)))
        with local_errors("read", self._name):
            for start in range(offset, offset + length, _DIG):
                piece = buffer[: min(_DIG, offset + length - start)]
                if self._io.read_into(self._fd, piece, start) < len(piece):
                    return b""
                hasher.update(piece)
        return hasher.digest()

    def arrivals(self, *, more: bool) -> list[bytes]:
        """The hashes of the chunks committed since it was last called. more: whether to note those to come."""
        with self._lock:
            found, self._arrivals = self._arrivals, []
            self._noting = more
            return found

    def chunks(self) -> Iterator[tuple[int, int, bytes]]:
        """(offset, length, hash) of every chunk, of a complete file; also after its end."""
        for index, record in self._journal.records.items():
            yield *chunk_range(self.size, index), record.hash

    def adopt(self, index: int, hash: bytes) -> bool:
        """Keeps a stale chunk if `hash`, the current version's, is the one it has; whether that was so."""
        if self.stale.get(index) != hash:
            return False
        self.commit(index, hash)
        return True

    def finish(self, *, mode: int, mtime_ns: int, replace: bool) -> os.stat_result:
        """Gives the file its permissions (0o777 of them at most), its time and its name, in one step, and closes.

        The answer: what the file is then. Renaming changes its ctime, so it is no use to ask before.

        ValueError unless complete. DestinationExistsError when the name is taken and not `replace`, or is a folder's;
        the part file and its journal stay then, and the Partial stays open.
        """
        if not self.complete:
            raise ValueError("chunks are missing")
        with local_errors("write", self._name):
            stamp(self._fd, mode, mtime_ns)
            if self.durable:
                # Space was reserved: after a power cut in between there would be a file of the right size and time that
                # holds zeros, and the next run would take it for the same.
                os.fsync(self._fd)
            _rename(self._parent_fd, self._part, self._name, replace=replace)
            st = os.fstat(self._fd)
        # After the rename: the other way round, a kill in between would leave a whole file that nothing vouches for.
        _unlink_quietly(self._parent_fd, self._journal_name)
        self.close()
        return st

    def sync(self) -> None:
        """With `durable`: what is written so far is on disk when this returns; `finish` has less to wait for then."""
        if self.durable:
            with local_errors("write", self._name):
                os.fsync(self._fd)

    def close(self) -> None:
        """Closes; the part file and the journal stay for the next run."""
        if self._fd < 0:
            return
        fd, self._fd = self._fd, -1
        self._journal.close()
        os.close(fd)
        os.close(self._parent_fd)

    def discard(self) -> None:
        """Removes the part file and the journal, and closes."""
        if self._fd < 0:
            return
        # The journal first: alone it is ignored, while a part file under a journal of something else is a risk.
        _unlink_quietly(self._parent_fd, self._journal_name)
        _unlink_quietly(self._parent_fd, self._part)
        self.close()

    def _touch(self, offset: int, length: int) -> bool:
        """Checks a range about to be written; True when it is verified already."""
        if offset < 0 or length < 0 or offset + length > self.size:
            raise ValueError("a write outside of the file")
        index = offset // CHUNK_SIZE
        if length and (offset + length - 1) // CHUNK_SIZE != index:
            raise ValueError("a write across chunks")
        if index in self.verified:
            return True
        self.stale.pop(index, None)  # it is about to be something else
        return False

    def _dig(self, offset: int, length: int) -> None:
        """Makes holes of the zero blocks in the range, as far as the file system can."""
        buffer = memoryview(bytearray(min(length, _DIG)))
        for start in range(offset, offset + length, _DIG):
            piece = buffer[: min(_DIG, offset + length - start)]
            piece = piece[: pread_all(self._fd, piece, start)]
            for first, stop, is_zero in zero_runs(piece, start):
                if is_zero and not punch_hole(self._fd, start + first, stop - first):
                    return

    def _resume(self, header: Header) -> None:
        """Takes from the journal what is true of the part file, and makes both fit `header`."""
        old = self._journal.header
        on_disk = os.fstat(self._fd).st_size
        if old is None or old.size != on_disk:
            # No journal, or one of another part file. The journal first: a kill in between must not leave the old
            # claims over a part file of the right size.
            self._journal.start(header, {})
            os.ftruncate(self._fd, 0)
            os.ftruncate(self._fd, self.size)
            return
        # One chunk is as quickly hashed as trusted. And without a boot id nobody knows whether the power was lost.
        trusted = old.boot == header.boot != NO_BOOT and self._count > 1
        claims = self._journal.records
        true = {index: claim for index, claim in claims.items() if self._holds(index, claim, old, trusted)}
        if old.same_source(header):
            self.verified = {index for index, claim in true.items() if not claim.stale}
            self.stale = {index: claim.hash for index, claim in true.items() if claim.stale}
            if old.boot != header.boot or len(true) < len(claims):
                self._journal.start(header, true)
            return
        self.stale = {index: claim.hash for index, claim in true.items() if self._same_range(index, old)}
        self._journal.start(header, {index: Record(digest, stale=True) for index, digest in self.stale.items()})
        os.ftruncate(self._fd, self.size)

    def _same_range(self, index: int, old: Header) -> bool:
        return index < self._count and chunk_range(self.size, index) == chunk_range(old.size, index)

    def _holds(self, index: int, claim: Record, old: Header, trusted: bool) -> bool:
        """Whether the part file really has what the journal claims; the disk is asked unless the claim is trusted."""
        if trusted and not claim.stale:
            return True
        offset, length = chunk_range(old.size, index)
        buffer = memoryview(bytearray(length))
        try:
            return self._io.read_into(self._fd, buffer, offset) == length and hash_bytes(buffer) == claim.hash
        except OSError:
            return False  # a block that cannot be read is fetched again

    def _check_space(self) -> None:
        """A disk that cannot take the file shows now, not half-way; OSError (ENOSPC)."""
        st = os.fstat(self._fd)
        if self._sparse or st.st_blocks * 512 >= self.size:
            self._reserved = self.size
            return
        disk = os.fstatvfs(self._fd)
        # Some FUSE file systems say nothing about their size: then writing will tell.
        if disk.f_blocks and self.size - st.st_blocks * 512 > disk.f_bavail * disk.f_frsize:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _reserve(self, end: int) -> None:
        """Reserves the disk space up to `end` and more: writing is up to eight times faster than growing the file."""
        while self._reserved < end:
            # The first byte need not wait for much of it.
            step = min(_STEP, max(CHUNK_SIZE, self._reserved), self.size - self._reserved)
            if not preallocate(self._fd, self._reserved, step):
                self._reserved = self.size  # this file system cannot
                return
            self._reserved += step


def write_whole(
    parent_fd: int,
    name: bytes,
    data: bytes | memoryview,
    *,
    mode: int,
    mtime_ns: int,
    replace: bool,
    sparse: bool = False,
    durable: bool = False,
    io: FileIO = POSIX,
    slot: int = 0,
) -> None:
    """Writes a small file at once: part file, permissions and time, rename. As few system calls as that takes, so no
    journal and no reserved space. What is left of a part file is removed on failure. durable: its bytes are on disk
    before it gets its name.

    Raises LocalDiskError, LocalFileError where it is about this file alone (BusyError: another headrace is writing it,
    in the same `slot`); DestinationExistsError when the name is taken and not `replace`, or is a folder's.
    """
    part = part_names(name, slot)[0]
    with local_errors("write", name):
        fd = _create_locked(parent_fd, part, name, slot)
        try:
            if sparse:
                os.ftruncate(fd, len(data))
                write_sparse(fd, memoryview(data), 0, io.write)
            else:
                io.write(fd, data, 0)
            stamp(fd, mode, mtime_ns)
            if durable:
                os.fsync(fd)
            _rename(parent_fd, part, name, replace=replace)
        except BaseException:
            _unlink_quietly(parent_fd, part)
            raise
        finally:
            os.close(fd)  # and with it the lock


def _open_locked(parent_fd: int, part: bytes, name: bytes) -> int:
    """The part file, opened and locked by us alone."""
    for _ in range(_ATTEMPTS):
        with _about_one_file():
            fd, st = open_regular(parent_fd, part, _FLAGS)
        try:
            _lock(fd, name)
            # Between the open and the lock its last owner may have renamed it into place, or removed it: then what we
            # hold is somebody's finished file. And one with a second name (a snapshot made of hard links) is not ours
            # alone to write to.
            if st.st_nlink > 1:
                os.unlink(part, dir_fd=parent_fd)
            elif _is_still(parent_fd, part, st):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
    raise _busy(name)


def _create_locked(parent_fd: int, part: bytes, name: bytes, slot: int) -> int:
    """A new part file, locked; what an earlier run left is removed. Without the lock a second process could take ours
    for left over and put its own, unfinished one under the name that we are about to rename."""
    for _ in range(_ATTEMPTS):
        try:
            fd = os.open(part, _NEW_FLAGS, 0o600, dir_fd=parent_fd)
        except FileExistsError:
            forget_leftover(parent_fd, name, slot)
            continue
        try:
            _lock(fd, name)
            if _is_still(parent_fd, part, os.fstat(fd)):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
    raise _busy(name)


def _is_still(parent_fd: int, name: bytes, st: os.stat_result) -> bool:
    try:
        now = os.stat(name, dir_fd=parent_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(now, st)


def _lock(fd: int, name: bytes) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as why:
        raise _busy(name) from why
    except OSError as why:
        # Some network file systems have no locks; without, it is as with every other program.
        if why.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            raise


@contextlib.contextmanager
def _about_one_file() -> Iterator[None]:
    """What lies where a part file or a journal belongs is in the way of one file only."""
    try:
        yield
    except LocalDiskError as why:
        raise LocalFileError(why.message, hint=why.hint) from why


def _busy(name: bytes) -> BusyError:
    return BusyError(
        f"another headrace is writing {label(name)}",
        hint="Wait until it is done or stop it, then run the same command again.",
    )


def forget_leftover(parent_fd: int, name: bytes, slot: int = 0) -> None:
    """Removes the part file and the journal that an earlier run left of `name`, if any.

    Raises LocalFileError when another headrace is writing them, or what is there is no regular file.
    """
    part, journal = part_names(name, slot)
    try:
        os.stat(part, dir_fd=parent_fd, follow_symlinks=False)
    except FileNotFoundError:
        _unlink_quietly(parent_fd, journal)
        return
    fd = _open_locked(parent_fd, part, name)
    try:
        _unlink_quietly(parent_fd, journal)
        _unlink_quietly(parent_fd, part)
    finally:
        os.close(fd)


def _rename(parent_fd: int, part: bytes, name: bytes, *, replace: bool) -> None:
    try:
        if replace:
            os.rename(part, name, src_dir_fd=parent_fd, dst_dir_fd=parent_fd)
        else:
            rename_noreplace(parent_fd, part, name)
    except OSError as why:
        if why.errno not in _IN_THE_WAY:
            raise
        what = "a folder is in the way of" if replace else "there is already a"
        raise DestinationExistsError(f"{what} {label(name)}") from why


def _unlink_quietly(parent_fd: int, name: bytes) -> None:
    with contextlib.suppress(OSError):
        os.unlink(name, dir_fd=parent_fd)
