"""Files by io_uring. It has to be asked for: what it gains and loses is in docs/performance.md, "File backends"."""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from headrace.storage import ring as kernel
from headrace.storage.fileio import NewFile, Range, Wanted
from headrace.storage.posix import READ_FLAGS, PosixIO
from headrace.storage.ring import Ring

DEPTH: Final = 64  # files or ranges at once
SMALL: Final = 64 * 1024  # bytes; larger files are read on their own
_NAMES: Final = 256  # bytes for a name and its end
_ENTRIES: Final = 256  # three requests for each file
_MOST: Final = 1 << 30  # bytes in one request
_IDLE: Final = 8  # rings that are kept
# The kernel could not do it this way: it is done by pread and pwrite.
_OTHERWISE: Final = frozenset({errno.EAGAIN, errno.EINTR, errno.ECANCELED, errno.EOPNOTSUPP})


def new_ring() -> Ring:
    return Ring(_ENTRIES, slots=DEPTH, arena=DEPTH * (SMALL + _NAMES))


class UringIO:
    """Reads and writes by ring, one ring for each call under way. Making files is left to PosixIO: opening with O_CREAT
    always goes to a kernel thread, and io_uring sets neither permissions nor times. Implements FileIO."""

    name: Final = "uring"

    def __init__(self, reason: str = "chosen", make_ring: Callable[[], Ring] = new_ring) -> None:
        """Raises OSError where there is no io_uring: see Ring."""
        self.reason = reason
        self._make_ring = make_ring
        self._posix = PosixIO(reason)
        self._idle = [make_ring()]
        self._lock = threading.Lock()

    def read_into(self, fd: int, buffer: memoryview, offset: int) -> int:
        if not buffer:
            return 0
        held = ctypes.c_char.from_buffer(buffer)
        address, length, done = ctypes.addressof(held), len(buffer), 0
        with self._ring() as ring:
            while done < length:
                got = ring.run((kernel.read(fd, address + done, min(length - done, _MOST), offset + done),))[0]
                if got == 0:
                    break
                if got < 0:
                    if -got not in _OTHERWISE:
                        raise OSError(-got, os.strerror(-got))
                    return done + self._posix.read_into(fd, buffer[done:], offset + done)
                done += got
        return done

    def write(self, fd: int, data: memoryview | bytes, offset: int) -> None:
        if not data:
            return
        held = _readable(data)
        address, length, done = ctypes.addressof(held), len(data), 0
        with self._ring() as ring:
            while done < length:
                put = ring.run((kernel.write(fd, address + done, min(length - done, _MOST), offset + done),))[0]
                if put <= 0:
                    if put and -put not in _OTHERWISE:
                        raise OSError(-put, os.strerror(-put))
                    self._posix.write(fd, memoryview(data)[done:], offset + done)
                    return
                done += put

    def read_ranges(self, ranges: Sequence[Range]) -> list[int | OSError]:
        results: list[int | OSError] = []
        with self._ring() as ring:
            for start in range(0, len(ranges), DEPTH):
                part = ranges[start : start + DEPTH]
                held = [ctypes.c_char.from_buffer(one.buffer) if one.buffer else ctypes.c_char() for one in part]
                found = ring.run(
                    [
                        kernel.read(one.fd, ctypes.addressof(at), min(len(one.buffer), _MOST), one.offset)
                        for one, at in zip(part, held, strict=True)
                    ]
                )
                for one, got in zip(part, found, strict=True):
                    if got == len(one.buffer):
                        results.append(got)
                    else:  # the end of the file, an error, or less than asked: looked at on its own
                        results += self._posix.read_ranges([one]) if got >= 0 or -got in _OTHERWISE else [_error(got)]
        return results

    def read_files(self, dir_fd: int, wanted: Sequence[Wanted]) -> list[bytes | OSError]:
        results: list[bytes | OSError] = []
        with self._ring() as ring:
            for start in range(0, len(wanted), DEPTH):
                self._read_some(ring, dir_fd, wanted[start : start + DEPTH], results)
        return results

    def _read_some(self, ring: Ring, dir_fd: int, wanted: Sequence[Wanted], results: list[bytes | OSError]) -> None:
        arena, base = ring.arena, ring.arena_address
        requests: list[kernel.Request] = []
        for slot, (name, size) in enumerate(wanted):
            if size <= SMALL and len(name) < _NAMES and b"\0" not in name:
                name_at, data_at = DEPTH * SMALL + slot * _NAMES, slot * SMALL
                arena[name_at : name_at + len(name) + 1] = name + b"\0"
                requests += kernel.read_file(slot, dir_fd, base + name_at, READ_FLAGS, base + data_at, size)
        found = iter(ring.run(requests))
        for slot, one in enumerate(wanted):
            got = -errno.EAGAIN
            if one.size <= SMALL and len(one.name) < _NAMES and b"\0" not in one.name:
                opened, got, _ = next(found), next(found), next(found)
                got = opened if opened < 0 else got
            if got == one.size:
                results.append(bytes(arena[slot * SMALL : slot * SMALL + got]))
            elif got >= 0 or -got in _OTHERWISE:  # shorter than it was, too large for the arena: looked at on its own
                results += self._posix.read_files(dir_fd, [one])
            else:
                results.append(_error(got))

    def create_files(self, dir_fd: int, files: Sequence[NewFile]) -> list[None | OSError]:
        return self._posix.create_files(dir_fd, files)

    def close(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for ring in idle:
            ring.close()

    @contextmanager
    def _ring(self) -> Iterator[Ring]:
        """A ring for this call alone. One that failed is not used again."""
        with self._lock:
            ring = self._idle.pop() if self._idle else None
        if ring is None:
            ring = self._make_ring()
        kept = False
        try:
            yield ring
            kept = True
        finally:
            with self._lock:
                kept = kept and len(self._idle) < _IDLE
                if kept:
                    self._idle.append(ring)
            if not kept:
                ring.close()


def _error(result: int) -> OSError:
    return OSError(-result, os.strerror(-result))


def _readable(data: memoryview | bytes) -> ctypes.Array[ctypes.c_char] | ctypes.c_char:
    """Something at the address of `data` that keeps it there. What is read-only is copied: ctypes takes no other."""
    if isinstance(data, memoryview) and not data.readonly:
        return ctypes.c_char.from_buffer(data)
    return (ctypes.c_char * len(data)).from_buffer_copy(data)
