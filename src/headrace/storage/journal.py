"""The journal of a file in flight: a header that says which version of the file this is, then one record a chunk.

Every header and record carries a checksum; a record's is seeded with its header's, so that what an older journal left
behind a new header is never taken for its own. Reading stops at the first thing that is not right (a torn tail, or
garbage) and what follows is cut off. Positions and sizes are in bytes; all integers are little-endian.
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
import zlib
from dataclasses import dataclass
from typing import Final, Self

from headrace.errors import LocalDiskError
from headrace.protocol.messages import HASH_SIZE, MAX_FILE_SIZE, VERSION_SIZE
from headrace.storage.chunks import chunk_count
from headrace.storage.oserrors import label
from headrace.storage.rawio import pread_all, pwrite_all

BOOT_SIZE: Final = 16
NO_BOOT: Final = bytes(BOOT_SIZE)

_MAGIC: Final = b"HRJRNL01"
_HEADER: Final = struct.Struct(f"<8sQqB{VERSION_SIZE}s{BOOT_SIZE}s")
_RECORD: Final = struct.Struct(f"<QB{HASH_SIZE}s")
_CRC: Final = struct.Struct("<I")
_HEADER_SIZE: Final = _HEADER.size + _CRC.size
_RECORD_SIZE: Final = _RECORD.size + _CRC.size
_AT_ONCE: Final = 4096  # records read in one go

_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Header:
    """size: bytes of the whole file. version, mtime_ns: the source's. boot: boot_mark of the machine's run."""

    size: int
    version: bytes
    mtime_ns: int
    boot: bytes

    def same_source(self, other: Header) -> bool:
        return (self.size, self.version, self.mtime_ns) == (other.size, other.version, other.mtime_ns)


@dataclass(frozen=True, slots=True)
class Record:
    """A chunk whose bytes were on disk with this hash. stale: written for an older version of the source; those bytes
    may have been partly overwritten since."""

    hash: bytes
    stale: bool = False


def boot_mark(boot_id: bytes) -> bytes:
    """A boot id in fixed size; NO_BOOT when there is none."""
    return hashlib.blake2b(boot_id, digest_size=BOOT_SIZE).digest() if boot_id else NO_BOOT


def current_boot_id() -> bytes:
    """What tells this run of the machine from the one before a power loss; empty where the platform has no such id."""
    try:
        with open("/proc/sys/kernel/random/boot_id", "rb") as file:
            return file.read(64).strip()
    except OSError:
        return b""


def open_regular(parent_fd: int, name: bytes, flags: int) -> tuple[int, os.stat_result]:
    """Opens `name` for writing if it is (or becomes) a regular file; a symlink is never followed.

    Raises LocalDiskError when something else lies there; OSError passes through.
    """
    try:
        fd = os.open(name, flags, 0o600, dir_fd=parent_fd)
    except OSError:
        _refuse_irregular(parent_fd, name)
        raise
    try:
        st = os.fstat(fd)
        if not stat.S_ISREG(st.st_mode):
            raise _irregular(name)
    except BaseException:
        os.close(fd)
        raise
    return fd, st


def _refuse_irregular(parent_fd: int, name: bytes) -> None:
    try:
        st = os.stat(name, dir_fd=parent_fd, follow_symlinks=False)
    except OSError:
        return
    if not stat.S_ISREG(st.st_mode):
        raise _irregular(name) from None


def _irregular(name: bytes) -> LocalDiskError:
    return LocalDiskError(
        f"{label(name)} is where an unfinished file belongs, but it is no regular file",
        hint="Nothing was written through it. Remove it, then run the same command again.",
    )


class Journal:
    """An open journal. Not thread-safe: its Partial serialises. OSError passes through.

    header: None when there was no readable one; then `records` is empty.
    """

    def __init__(self, fd: int) -> None:
        self.header: Header | None = None
        self.records: dict[int, Record] = {}
        self._fd = fd
        self._seed = 0
        self._end = 0

    @classmethod
    def open(cls, parent_fd: int, name: bytes) -> Self:
        """Opens or creates it and reads what is in it; any garbage is survived."""
        fd, st = open_regular(parent_fd, name, _FLAGS)
        try:
            if st.st_nlink > 1:
                # A snapshot made of hard links shares these bytes: leave it those, take a file of our own.
                os.close(fd)
                fd = -1
                os.unlink(name, dir_fd=parent_fd)
                fd, _ = open_regular(parent_fd, name, _FLAGS | os.O_EXCL)
            journal = cls(fd)
            journal._read()
        except BaseException:
            if fd >= 0:
                os.close(fd)
            raise
        return journal

    def start(self, header: Header, records: dict[int, Record]) -> None:
        """Replaces everything. A kill half-way leaves a prefix of the new records, or nothing that can be read."""
        head = _HEADER.pack(_MAGIC, header.size, header.mtime_ns, len(header.version), header.version, header.boot)
        self._seed = zlib.crc32(head)
        body = b"".join(self._encode(index, record) for index, record in records.items())
        content = head + _CRC.pack(self._seed) + body
        pwrite_all(self._fd, content, 0)
        self._end = len(content)
        os.ftruncate(self._fd, self._end)
        self.header, self.records = header, dict(records)

    def append(self, index: int, record: Record) -> None:
        """Adds one record with one system call. When that fails, the next one overwrites what there is of it.

        Not O_APPEND: the lock on the part file makes us the only writer, and a torn record must be written over.
        """
        # Durability against power loss would need fdatasync of the part file here, before the record. Instead a
        # changed boot id makes the next run hash what the journal claims.
        pwrite_all(self._fd, self._encode(index, record), self._end)
        self._end += _RECORD_SIZE
        self.records[index] = record

    def close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def _encode(self, index: int, record: Record) -> bytes:
        packed = _RECORD.pack(index, record.stale, record.hash)
        return packed + _CRC.pack(zlib.crc32(packed, self._seed))

    def _read(self) -> None:
        raw = bytearray(_HEADER_SIZE)
        if pread_all(self._fd, memoryview(raw), 0) < _HEADER_SIZE:
            return
        magic, size, mtime_ns, used, version, boot = _HEADER.unpack_from(raw)
        self._seed = zlib.crc32(raw[: _HEADER.size])
        if magic != _MAGIC or _CRC.unpack_from(raw, _HEADER.size)[0] != self._seed:
            return
        if size > MAX_FILE_SIZE or used > VERSION_SIZE:
            return
        self.header = Header(size, version[:used], mtime_ns, boot)
        self._end = _HEADER_SIZE
        self._read_records(chunk_count(size))
        os.ftruncate(self._fd, self._end)

    def _read_records(self, count: int) -> None:
        raw = bytearray(_RECORD_SIZE * _AT_ONCE)
        while True:
            got = pread_all(self._fd, memoryview(raw), self._end)
            for start in range(0, got - _RECORD_SIZE + 1, _RECORD_SIZE):
                packed = raw[start : start + _RECORD.size]
                index, stale, digest = _RECORD.unpack(packed)
                crc = _CRC.unpack_from(raw, start + _RECORD.size)[0]
                if crc != zlib.crc32(packed, self._seed) or index >= count or stale > 1:
                    return
                self.records[index] = Record(digest, bool(stale))
                self._end += _RECORD_SIZE
            if got < len(raw):
                return
