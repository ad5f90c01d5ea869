"""A disk that forgets what was not flushed: every write is recorded, and at a power loss the unsynced ones are zeros.

That is the worst that a journalling file system may do: names and sizes survive, and the bytes do not.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from headrace.storage import destination, partial, small
from headrace.storage.fileio import NewFile, Range, Wanted
from headrace.storage.inflight import is_inflight_name
from headrace.storage.posix import POSIX

Inode = tuple[int, int]


class PowerCutError(Exception):
    """The moment at which the machine loses its power."""


class RecordingIO:
    """Implements FileIO: writes for real, and tells `disk` of each write."""

    name: Final = "posix"
    reason: Final = "a test"

    def __init__(self, disk: ForgetfulDisk) -> None:
        self._disk = disk

    def write(self, fd: int, data: memoryview | bytes, offset: int) -> None:
        POSIX.write(fd, data, offset)
        self._disk.written(fd, offset, len(data))

    def read_into(self, fd: int, buffer: memoryview, offset: int) -> int:
        return POSIX.read_into(fd, buffer, offset)

    def read_ranges(self, ranges: Sequence[Range]) -> list[int | OSError]:
        return POSIX.read_ranges(ranges)

    def read_files(self, dir_fd: int, wanted: Sequence[Wanted]) -> list[bytes | OSError]:
        return POSIX.read_files(dir_fd, wanted)

    def create_files(self, dir_fd: int, files: Sequence[NewFile]) -> list[None | OSError]:
        raise AssertionError("nobody makes files by this")

    def close(self) -> None:
        pass


class ForgetfulDisk:
    """What is not on disk yet, below `root`. Thread-safe.

    named: final names that were given, in order. early: those of them whose bytes were not all on disk by then.
    loose: names that no flush of their folder, and no flush of everything, has covered. cut_after: how many names are
    given until the power goes; what is done from then on fails.
    """

    def __init__(self, root: Path, cut_after: int | None = None) -> None:
        self.root = root
        self.named: list[str] = []
        self.early: list[str] = []
        self.loose: set[str] = set()
        self.flushes = 0
        self._cut_after = cut_after
        self._off = False
        self._dirty: dict[Inode, list[tuple[int, int]]] = {}
        self._lock = threading.RLock()

    def written(self, fd: int, offset: int, length: int) -> None:
        with self._lock:
            self._live()
            self._dirty.setdefault(_inode(os.fstat(fd)), []).append((offset, length))

    def flushed(self, fd: int) -> None:
        with self._lock:
            self._live()
            self.flushes += 1
            st = os.fstat(fd)
            self._dirty.pop(_inode(st), None)
            if stat.S_ISDIR(st.st_mode):
                folder = os.readlink(f"/proc/self/fd/{fd}")
                self.loose = {name for name in self.loose if os.path.dirname(name) != folder}

    def all_flushed(self) -> None:
        with self._lock:
            self._live()
            self.flushes += 1
            self._dirty.clear()
            self.loose.clear()

    def name_given(self, dir_fd: int, name: bytes) -> None:
        if is_inflight_name(name):
            return
        with self._lock:
            path = os.path.join(os.readlink(f"/proc/self/fd/{dir_fd}"), os.fsdecode(name))
            self.named.append(path)
            self.loose.add(path)
            if self._dirty.get(_inode(os.stat(name, dir_fd=dir_fd, follow_symlinks=False))):
                self.early.append(path)
            if self._cut_after is not None and len(self.named) >= self._cut_after:
                self._off = True
            self._live()

    def lose_power(self) -> None:
        """What was not flushed is zeros from now on."""
        for folder, _, files in os.walk(self.root):
            for file in files:
                path = os.path.join(folder, file)
                if ranges := self._dirty.get(_inode(os.stat(path, follow_symlinks=False))):
                    times = os.stat(path)
                    with open(path, "r+b") as opened:
                        for offset, length in ranges:
                            os.pwrite(opened.fileno(), bytes(length), offset)
                    os.utime(path, ns=(times.st_mtime_ns, times.st_mtime_ns))
        self._dirty.clear()

    def _live(self) -> None:
        if self._off:
            raise PowerCutError("the power is gone")


def _inode(st: os.stat_result) -> Inode:
    return st.st_dev, st.st_ino


@contextlib.contextmanager
def forgetful(disk: ForgetfulDisk) -> Iterator[None]:
    """The destination of every get in this process is on `disk`, and so is every share that is opened meanwhile."""
    fsync, fdatasync, link, rename = os.fsync, os.fdatasync, os.link, partial._rename

    def recorded_fsync(fd: int) -> None:
        disk.flushed(fd)
        fsync(fd)

    def recorded_fdatasync(fd: int) -> None:
        disk.flushed(fd)
        fdatasync(fd)

    def recorded_link(source: Any, name: Any, **more: Any) -> None:
        link(source, name, **more)
        disk.name_given(more["dst_dir_fd"], os.fsencode(name))

    def recorded_rename(parent: int, old: bytes, new: bytes, *, replace: bool) -> None:
        rename(parent, old, new, replace=replace)
        disk.name_given(parent, new)

    def recorded_sync(fd: int) -> None:
        disk.all_flushed()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", recorded_fsync)
        patch.setattr(os, "fdatasync", recorded_fdatasync)
        patch.setattr(os, "link", recorded_link)
        patch.setattr(partial, "_rename", recorded_rename)
        for module in (destination, small):
            patch.setattr(module, "sync_filesystem", recorded_sync, raising=False)
        make: Callable[..., RecordingIO] = lambda choice: RecordingIO(disk)  # noqa: E731
        patch.setattr("headrace.client.get.platform_io", make)
        patch.setattr("headrace.host.server.platform_io", make)
        yield
