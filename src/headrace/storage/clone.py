"""Chunks that lie on this disk already, put where they are wanted: cloned where the file system can, else copied.

The index only says where to look. The file must be the one that was indexed, by device, inode, size and times, and the
bytes must have the hash. They are hashed where they arrived, after they did: whatever happens to the source meanwhile,
within one tick of its clock too, bytes never count under a hash that is not theirs.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import stat
import struct
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from headrace.protocol.messages import CHUNK_SIZE, MIB
from headrace.storage.chunks import new_hasher
from headrace.storage.index_places import Facts, Place
from headrace.storage.oserrors import label
from headrace.storage.rawio import pread_all, pwrite_all

log = logging.getLogger("headrace.storage.clone")

Way = Literal["reflink", "copy_file_range", "copy"]
# gone: no such file. changed: another file, or another content by its times. unreadable: no permission, or the disk
# fails. different: the same file by all that is known, but not these bytes. length: not as many bytes as wanted.
Miss = Literal["gone", "changed", "unreadable", "different", "length"]

_FICLONERANGE: Final = 0x4020940D  # linux/fs.h
_RANGE: Final = struct.Struct("=qQQQ")  # source descriptor, offset, length; offset in the destination
_BLOCK: Final = 4096  # bytes; what a clone is aligned to on nearly every file system, and a larger one says EINVAL
_PIECE: Final = MIB  # bytes read at once: hashed and written while they are in the processor's cache
# After these, the same two file systems are not asked again.
_NEVER: Final = frozenset({errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOTTY, errno.ENOSYS, errno.EXDEV, errno.EPERM})
_GONE: Final = frozenset({errno.ENOENT, errno.ENOTDIR})

# O_NONBLOCK: a FIFO that lies there now must not hang us. O_NOCTTY: nor a terminal become ours.
_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_NO_ATIME: Final[int] = getattr(os, "O_NOATIME", 0)


@dataclass(frozen=True, slots=True)
class Copied:
    """What became of one try. Exactly one of the two is there."""

    way: Way | None = None
    miss: Miss | None = None


class Index(Protocol):
    """What is told about the use of places; a ChunkIndex."""

    def forget(self, place: Place) -> None: ...
    def reused(self, place: Place, way: str) -> None: ...


class SourceUnfitError(Exception):
    """The bytes cannot be had from there."""

    def __init__(self, miss: Miss) -> None:
        super().__init__(miss)
        self.miss: Miss = miss


class DoesNotWorkError(Exception):
    """A way that does not work here; the next one may. remember: nor will it for another chunk of these two disks."""

    def __init__(self, reason: str, *, remember: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.remember = remember


def clone_range(source: int, into: int, length: int, source_offset: int, offset: int) -> None:
    """The range becomes one of `into` too, without a copy: FICLONERANGE. All in bytes. Raises OSError."""
    if sys.platform != "linux":  # the number may mean something else
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    fcntl.ioctl(into, _FICLONERANGE, _RANGE.pack(source, source_offset, length, offset))


def copy_range(source: int, into: int, length: int, source_offset: int, offset: int) -> int:
    """copy_file_range; how many bytes it copied. Raises OSError, ENOSYS where the platform has none."""
    if not hasattr(os, "copy_file_range"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    return os.copy_file_range(source, into, length, source_offset, offset)


class Copier:
    """Copies chunks within this machine's disks, in the cheapest way that works. Thread-safe; holds nothing open.

    The arguments are for tests: the two system calls.
    """

    def __init__(
        self,
        clone: Callable[[int, int, int, int, int], object] = clone_range,
        copy: Callable[[int, int, int, int, int], int] = copy_range,
    ) -> None:
        self._clone = clone
        self._copy_range = copy
        self._lock = threading.Lock()
        self._counts: dict[str, int] = {}
        self._never: set[tuple[Way, int, int]] = set()
        self._local = threading.local()

    def counts(self) -> dict[str, int]:
        """How often so far: by way, `miss:` and why not, `WAY:` and the reason that it did not work."""
        with self._lock:
            return dict(self._counts)

    def fill(self, index: Index, places: Sequence[Place], into_fd: int, offset: int, length: int) -> bool:
        """`copy_from` with the first of `places` that is still good. True: the bytes are there, and right.

        Tells `index` which was of use and which were not. Raises OSError: the destination cannot be written.
        """
        for place in places:
            copied = self.copy_from(place, into_fd, offset, length)
            if copied.way:
                index.reused(place, copied.way)
                return True
            if copied.miss != "unreadable":  # that may be about us: too many open files
                index.forget(place)
        return False

    def copy_from(self, place: Place, into_fd: int, offset: int, length: int) -> Copied:
        """Puts the chunk at `place` at `offset` of `into_fd`, `length` bytes, which are then known to have its hash.

        into_fd: open for reading and writing; its position stays. After a miss, what is in the range is undefined,
        and nothing outside of it was touched. Blocks for as long as reading, hashing and writing a chunk takes.
        Raises OSError: the destination cannot be written, or read back.
        """
        try:
            if place.length != length or not 0 < length <= CHUNK_SIZE:  # else it would reach into its neighbours
                raise SourceUnfitError("length")
            fd = open_place(place)
        except SourceUnfitError as why:
            return self._missed(place, why)
        try:
            return self.copy_open(fd, place, into_fd, offset)
        finally:
            os.close(fd)

    def copy_open(self, fd: int, place: Place, into_fd: int, offset: int) -> Copied:
        """As `copy_from`, from a file that is open for reading as `fd`, whatever it is by now."""
        try:
            way = self._copy(fd, place, into_fd, offset)
        except SourceUnfitError as why:
            return self._missed(place, why)
        self._count(way)
        return Copied(way=way)

    def _missed(self, place: Place, why: SourceUnfitError) -> Copied:
        self._count(f"miss:{why.miss}")
        log.debug("%s is no longer what the index says (%s)", label(place.file.path), why.miss)
        return Copied(miss=why.miss)

    def _copy(self, fd: int, place: Place, into: int, offset: int) -> Way:
        device, other = os.fstat(fd).st_dev, os.fstat(into).st_dev
        ways: tuple[tuple[Way, Callable[[int, Place, int, int], None]], ...] = (
            ("reflink", self._by_clone),
            ("copy_file_range", self._by_range),
        )
        for way, copy in ways:
            if (way, device, other) in self._never:
                continue
            try:
                copy(fd, place, into, offset)
            except DoesNotWorkError as why:
                if self._count(f"{way}:{why.reason}"):
                    log.info("no %s from the disk of %s (%s)", way, label(place.file.path), why.reason)
                if why.remember:
                    with self._lock:
                        self._never.add((way, device, other))
                continue
            if self._hash(into, offset, place.length) != place.hash:
                raise SourceUnfitError("different")
            return way
        self._by_copy(fd, place, into, offset)
        return "copy"

    def _by_clone(self, fd: int, place: Place, into: int, offset: int) -> None:
        end = place.offset + place.length
        if offset % _BLOCK or place.offset % _BLOCK or (place.length % _BLOCK and end != place.file.facts.size):
            raise DoesNotWorkError("unaligned")
        try:
            self._clone(fd, into, place.length, place.offset, offset)
        except OSError as why:
            raise _does_not_work(why) from why

    def _by_range(self, fd: int, place: Place, into: int, offset: int) -> None:
        done = 0
        while done < place.length:
            try:
                count = self._copy_range(fd, into, place.length - done, place.offset + done, offset + done)
            except OSError as why:
                raise _does_not_work(why) from why
            if not count:  # the end of the file; some virtual file systems say so at once
                raise DoesNotWorkError("short")
            done += count

    def _by_copy(self, fd: int, place: Place, into: int, offset: int) -> None:
        hasher, buffer = new_hasher(), self._buffer()
        for start in range(0, place.length, _PIECE):
            piece = buffer[: min(_PIECE, place.length - start)]
            try:
                got = pread_all(fd, piece, place.offset + start)
            except OSError as why:
                raise SourceUnfitError("unreadable") from why
            if got < len(piece):
                raise SourceUnfitError("changed")
            hasher.update(piece)
            pwrite_all(into, piece, offset + start)
        if hasher.digest() != place.hash:
            raise SourceUnfitError("different")

    def _hash(self, fd: int, offset: int, length: int) -> bytes:
        hasher, buffer = new_hasher(), self._buffer()
        for start in range(0, length, _PIECE):
            piece = buffer[: min(_PIECE, length - start)]
            hasher.update(piece[: pread_all(fd, piece, offset + start)])
        return hasher.digest()

    def _buffer(self) -> memoryview:
        """The calling thread's own."""
        buffer: memoryview | None = getattr(self._local, "buffer", None)
        if buffer is None:
            buffer = self._local.buffer = memoryview(bytearray(_PIECE))
        return buffer

    def _count(self, what: str) -> bool:
        """Whether it is the first of its kind."""
        with self._lock:
            self._counts[what] = self._counts.get(what, 0) + 1
            return self._counts[what] == 1


def _does_not_work(why: OSError) -> DoesNotWorkError:
    # A disk that is full, too: the plain copy after it says so as every other write does.
    reason = errno.errorcode.get(why.errno or 0, "error")
    return DoesNotWorkError(reason, remember=why.errno in _NEVER)


def open_place(place: Place) -> int:
    """The indexed file, if it is still that file with that content, by its times; the caller closes it.

    Raises SourceUnfitError.
    """
    path, facts = place.file.path, place.file.facts
    try:
        # Before it is opened: opening a device that lies there now could do anything.
        st = os.stat(path, follow_symlinks=False)
        if not stat.S_ISREG(st.st_mode) or Facts.of(st) != facts:
            raise SourceUnfitError("changed")
        try:
            fd = os.open(path, _FLAGS | _NO_ATIME)
        except PermissionError:  # not our file: its time of access is not ours to keep
            fd = os.open(path, _FLAGS)
    except OSError as why:
        raise SourceUnfitError("gone" if why.errno in _GONE else "unreadable") from why
    except ValueError as why:  # a null byte: no path that was ever added
        raise SourceUnfitError("gone") from why
    if Facts.of(os.fstat(fd)) != facts:
        os.close(fd)
        raise SourceUnfitError("changed")
    return fd
