"""Files by pread and pwrite: the default, because nothing that was measured beats it (docs/performance.md)."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import Final

from headrace.storage.fileio import NewFile, Range, Wanted
from headrace.storage.rawio import pread_all, pwrite_all, stamp

READ_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
NEW_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# Files that are open at once while the disk fetches them.
_WINDOW: Final = 64
_TOO_MANY_OPEN: Final = frozenset({errno.EMFILE, errno.ENFILE})


class PosixIO:
    """Explicit positions, no state, no lock. Implements FileIO."""

    name: Final = "posix"

    def __init__(self, reason: str = "chosen") -> None:
        self.reason = reason

    # The functions themselves: a piece costs one call, as without this class.
    read_into = staticmethod(pread_all)
    write = staticmethod(pwrite_all)

    def read_ranges(self, ranges: Sequence[Range]) -> list[int | OSError]:
        for fd, buffer, offset in ranges:
            prefetch(fd, offset, len(buffer))
        return [_attempt(one) for one in ranges]

    def read_files(self, dir_fd: int, wanted: Sequence[Wanted]) -> list[bytes | OSError]:
        results: list[bytes | OSError] = []
        waiting: list[tuple[int, int] | OSError] = []  # descriptors and sizes of what is open, in order
        try:
            for name, size in wanted:
                if len(waiting) == _WINDOW:
                    _drain(waiting, results)
                try:
                    try:
                        fd = os.open(name, READ_FLAGS, dir_fd=dir_fd)
                    except OSError as why:
                        if why.errno not in _TOO_MANY_OPEN:
                            raise
                        _drain(waiting, results)  # ours may be the ones that are too many
                        fd = os.open(name, READ_FLAGS, dir_fd=dir_fd)
                except OSError as why:
                    waiting.append(why)
                    continue
                waiting.append((fd, size))
                prefetch(fd, 0, size)
            _drain(waiting, results)
        finally:
            for left in waiting:
                if not isinstance(left, OSError):
                    os.close(left[0])
        return results

    def create_files(self, dir_fd: int, files: Sequence[NewFile]) -> list[None | OSError]:
        return [_create(dir_fd, one) for one in files]

    def close(self) -> None:
        """There is nothing to give back."""


POSIX: Final = PosixIO("the default")


def prefetch(fd: int, offset: int, length: int) -> None:
    """Asks the disk for a range without waiting. So a batch is read at depth by one thread: 1,000 cold files of 10 KiB
    took a third of the time."""
    try:
        os.posix_fadvise(fd, offset, length, os.POSIX_FADV_WILLNEED)
    except (AttributeError, OSError):  # macOS has none; and it is only advice
        return


def _drain(waiting: list[tuple[int, int] | OSError], results: list[bytes | OSError]) -> None:
    """Reads and closes what is open, first come first served; whatever is raised, `waiting` holds what is left."""
    waiting.reverse()
    try:
        while waiting:
            entry = waiting.pop()
            if isinstance(entry, OSError):
                results.append(entry)
                continue
            try:
                results.append(read_whole(*entry))
            except OSError as why:
                results.append(why)
            finally:
                os.close(entry[0])
    finally:
        waiting.reverse()


def read_whole(fd: int, size: int) -> bytes:
    """Up to `size` bytes from the start."""
    data = os.pread(fd, size, 0)
    while 0 < len(data) < size:  # rare enough to copy: the file shrank, or the file system gives less than asked
        more = os.pread(fd, size - len(data), len(data))
        if not more:
            break
        data += more
    return data


def _attempt(one: Range) -> int | OSError:
    try:
        return pread_all(*one)
    except OSError as why:
        return why


def _create(dir_fd: int, file: NewFile) -> None | OSError:
    try:
        fd = os.open(file.name, NEW_FLAGS, 0o600, dir_fd=dir_fd)
    except OSError as why:
        return why
    try:
        try:
            if file.data:
                pwrite_all(fd, file.data, 0)
            stamp(fd, file.mode, file.mtime_ns)
        finally:
            os.close(fd)
    except OSError as why:
        _forget(dir_fd, file.name)
        return why
    except BaseException:
        _forget(dir_fd, file.name)
        raise
    return None


def _forget(dir_fd: int, name: bytes) -> None:
    try:
        os.unlink(name, dir_fd=dir_fd)
    except OSError:
        return
