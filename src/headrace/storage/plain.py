"""Files by ordinary seek, read and write. For finding out whether something else is at fault, and for systems without
pread (Windows)."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import Final

from headrace.storage.fileio import NewFile, Range, Wanted
from headrace.storage.posix import NEW_FLAGS, READ_FLAGS
from headrace.storage.rawio import stamp


class PlainIO:
    """One call at a time, whichever thread it comes from: a descriptor has one position. Implements FileIO.

    Whoever moves that position elsewhere (asking for holes does) must not do so while others read or write.
    """

    name: Final = "plain"

    def __init__(self, reason: str = "chosen") -> None:
        self.reason = reason
        self._lock = threading.Lock()

    def read_into(self, fd: int, buffer: memoryview, offset: int) -> int:
        done = 0
        with self._lock:
            os.lseek(fd, offset, os.SEEK_SET)
            while done < len(buffer):
                data = os.read(fd, len(buffer) - done)
                if not data:
                    break
                buffer[done : done + len(data)] = data
                done += len(data)
        return done

    def write(self, fd: int, data: memoryview | bytes, offset: int) -> None:
        view = memoryview(data)
        with self._lock:
            os.lseek(fd, offset, os.SEEK_SET)
            while view:
                view = view[os.write(fd, view) :]

    def read_ranges(self, ranges: Sequence[Range]) -> list[int | OSError]:
        results: list[int | OSError] = []
        for one in ranges:
            try:
                results.append(self.read_into(*one))
            except OSError as why:
                results.append(why)
        return results

    def read_files(self, dir_fd: int, wanted: Sequence[Wanted]) -> list[bytes | OSError]:
        results: list[bytes | OSError] = []
        for name, size in wanted:
            try:
                fd = os.open(name, READ_FLAGS, dir_fd=dir_fd)
                try:
                    buffer = bytearray(size)
                    results.append(bytes(buffer[: self.read_into(fd, memoryview(buffer), 0)]))
                finally:
                    os.close(fd)
            except OSError as why:
                results.append(why)
        return results

    def create_files(self, dir_fd: int, files: Sequence[NewFile]) -> list[None | OSError]:
        results: list[None | OSError] = []
        for file in files:
            try:
                fd = os.open(file.name, NEW_FLAGS, 0o600, dir_fd=dir_fd)
            except OSError as why:
                results.append(why)
                continue
            try:
                try:
                    self.write(fd, file.data, 0)
                    stamp(fd, file.mode, file.mtime_ns)
                finally:
                    os.close(fd)
                results.append(None)
            except OSError as why:
                os.unlink(file.name, dir_fd=dir_fd)
                results.append(why)
        return results

    def close(self) -> None:
        """There is nothing to give back."""
