"""Reading and writing whole ranges of a descriptor, and holes. Positions are explicit, so threads may share an fd.

OSError passes through; callers map it. EINTR is retried by Python itself (PEP 475); short results are not.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from typing import Final

BLOCK: Final = 4096  # bytes; the grain at which zeros can become holes

Write = Callable[[int, memoryview, int], None]

_ZERO_BLOCK: Final = bytes(BLOCK)
_ZEROS: Final = bytes(256 * 1024)
# What a metadata call may answer on file systems without owners, modes or fine times (FAT, some network ones).
_CANNOT_STAMP: Final = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})


def pwrite_all(fd: int, data: memoryview | bytes, offset: int) -> None:
    """Writes all of `data` at `offset`."""
    written = os.pwrite(fd, data, offset)
    if written == len(data):
        return
    view = memoryview(data)
    while written < len(view):
        written += os.pwrite(fd, view[written:], offset + written)


def pread_all(fd: int, buffer: memoryview, offset: int) -> int:
    """Fills `buffer` from `offset` on; how many bytes there were (fewer only at the end of the file)."""
    done = os.preadv(fd, [buffer], offset)
    while 0 < done < len(buffer):
        more = os.preadv(fd, [buffer[done:]], offset + done)
        if not more:
            break
        done += more
    return done


def next_data(fd: int, offset: int) -> int | None:
    """The first position from `offset` on that is not in a hole; None when there is none before the end.

    Where holes cannot be asked for, everything counts as data.
    """
    try:
        return os.lseek(fd, offset, os.SEEK_DATA)
    except OSError as why:
        if why.errno == errno.ENXIO:
            return None
        if why.errno in (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP):
            return offset
        raise


def write_zeros(fd: int, offset: int, length: int, write: Write = pwrite_all) -> None:
    """Makes the range read as zeros: holes in it stay holes, the rest is overwritten.

    Moves the position of `fd`.
    """
    position, end = offset, offset + length
    while position < end:
        start = next_data(fd, position)
        if start is None or start >= end:
            return
        stop = min(end, _next_hole(fd, start, end))
        while start < stop:
            size = min(len(_ZEROS), stop - start)
            write(fd, memoryview(_ZEROS)[:size], start)
            start += size
        position = stop


def _next_hole(fd: int, offset: int, end: int) -> int:
    try:
        return os.lseek(fd, offset, os.SEEK_HOLE)
    except OSError as why:
        if why.errno in (errno.EINVAL, errno.ENXIO, errno.ENOTSUP, errno.EOPNOTSUPP):
            return end
        raise


def write_sparse(fd: int, data: memoryview, offset: int, write: Write = pwrite_all) -> None:
    """Writes `data`, but its all-zero aligned blocks only where there is something else on disk than a hole.

    It matters that this is decided by what the file holds now: a chunk fetched again may lie over bytes of the first
    attempt, and skipping its zeros would leave those.
    """
    for start, stop, is_zero in zero_runs(data, offset):
        if is_zero:
            write_zeros(fd, offset + start, stop - start, write)
        else:
            write(fd, data[start:stop], offset + start)


def zero_runs(data: memoryview, offset: int) -> Iterator[tuple[int, int, bool]]:
    """`data` as runs (start, stop, all zeros?) whose inner borders are BLOCK-aligned in the file."""
    run, kind, position = 0, False, 0
    while position < len(data):
        stop = min(len(data), position + BLOCK - (offset + position) % BLOCK)
        # One byte decides for most blocks. Slices are copied to compare: memoryview compares byte by byte.
        is_zero = stop - position == BLOCK and not data[position] and bytes(data[position:stop]) == _ZERO_BLOCK
        if is_zero != kind:
            if position > run:
                yield run, position, kind
            run, kind = position, is_zero
        position = stop
    if position > run:
        yield run, position, kind


def stamp(fd: int, mode: int, mtime_ns: int, *, special: int = 0) -> None:
    """Sets permission bits (0o777 at most, never a source's setuid) and modification time, as far as the file system
    can. special: setgid and sticky bits to set besides."""
    try:
        os.fchmod(fd, mode & 0o777 | special)
    except OSError as why:
        if why.errno not in _CANNOT_STAMP:
            raise
    try:
        os.utime(fd, ns=(mtime_ns, mtime_ns))
    except OverflowError:  # a time that this platform's time_t cannot say
        return
    except OSError as why:
        if why.errno not in _CANNOT_STAMP:
            raise
