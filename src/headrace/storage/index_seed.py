"""Adding local folders to the chunk index: walked without following symlinks, hashed by several threads."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from headrace.errors import HeadraceError, LocalDiskError, LocalFileError, SourceChangedError
from headrace.protocol.messages import CHUNK_SIZE
from headrace.storage.chunks import chunk_count, chunk_range, hash_bytes
from headrace.storage.index import MIN_LENGTH, ChunkIndex, Facts
from headrace.storage.inflight import is_inflight_name
from headrace.storage.oserrors import label
from headrace.storage.rawio import next_data, pread_all
from headrace.storage.tree import is_sparse

MAX_THREADS: Final = 8  # more of them wait for the disk, and each has a buffer of 4 MiB

# O_NONBLOCK: a FIFO that lies there by now must not hang us.
_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_FLUSH_SECONDS: Final = 60.0


@dataclass(slots=True)
class Seeded:
    """How far it is. files, bytes: found so far and worth an entry. added: files. hashed: bytes. known: files that
    were in the index already and did not change. failed: files and folders that could not be read."""

    files: int = 0
    bytes: int = 0
    added: int = 0
    hashed: int = 0
    known: int = 0
    failed: int = 0


class _File:
    """A file being hashed by several threads; the last one to be done with it adds it."""

    def __init__(self, path: bytes, fd: int, st: os.stat_result) -> None:
        self.path = path
        self.fd = fd
        self.st = st
        self.sparse = is_sparse(st)
        self.left = chunk_count(st.st_size)
        self.chunks: list[tuple[int, int, bytes]] = []
        self.error: HeadraceError | None = None


class Seeder:
    """One run over some paths. `run` once; `cancel` and `progress` from any thread.

    failed: called with a path and why it was left out, from several threads, one at a time.
    """

    def __init__(
        self, index: ChunkIndex, failed: Callable[[bytes, HeadraceError], None], threads: int | None = None
    ) -> None:
        self.progress = Seeded()
        self._index = index
        self._failed = failed
        self._threads = threads or min(MAX_THREADS, os.cpu_count() or 1)
        self._lock = threading.Lock()  # the counters, `_File.left` and `_failed`
        self._next = threading.Lock()  # the generator of pieces is one thread's at a time
        self._cancelled = threading.Event()
        self._broken: list[BaseException] = []

    def cancel(self) -> None:
        """Makes `run` return soon. What was hashed whole is added."""
        self._cancelled.set()

    def run(self, paths: Sequence[bytes]) -> Seeded:
        """Adds every file at and below these absolute paths, symlinks excepted. Blocks until all is written.

        Raises LocalDiskError when the index cannot be written.
        """
        pieces = self._pieces(paths)
        threads = [
            threading.Thread(target=self._work, args=(pieces,), name="headrace-seed") for _ in range(self._threads)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._broken:
            raise self._broken[0]
        self._flush()
        return self.progress

    def _flush(self) -> None:
        if not self._index.flush(_FLUSH_SECONDS):
            hint = "Run this again when no other headrace is writing it."
            raise self._index.off or LocalDiskError("the chunk index does not take any more", hint=hint)

    def _work(self, pieces: Iterator[tuple[_File, int]]) -> None:
        buffer = memoryview(bytearray(CHUNK_SIZE))
        try:
            while True:
                with self._next:
                    file, number = next(pieces, (None, 0))
                if file is None:
                    return
                self._hash(file, number, buffer)
        except BaseException as why:  # noqa: BLE001  # raised again by run()
            self._broken.append(why)
            self.cancel()

    def _hash(self, file: _File, number: int, buffer: memoryview) -> None:
        offset, length = chunk_range(file.st.st_size, number)
        digest, error = b"", file.error
        if error is None and not self._cancelled.is_set():
            try:
                data = next_data(file.fd, offset) if file.sparse else offset
                if data is None or data >= offset + length:
                    pass  # in a hole: zeros, which nobody needs to copy
                elif pread_all(file.fd, buffer[:length], offset) == length:
                    digest = hash_bytes(buffer[:length])
                else:
                    error = _changed(file.path)
            except OSError as why:
                error = _unreadable(file.path, why)
        with self._lock:
            file.error = file.error or error
            if digest:
                file.chunks.append((offset, length, digest))
                self.progress.hashed += length
            file.left -= 1
            last = not file.left
        if last:
            self._finish(file)

    def _finish(self, file: _File) -> None:
        try:
            if file.error is None and Facts.of(os.fstat(file.fd)) != Facts.of(file.st):
                file.error = _changed(file.path)
        except OSError as why:
            file.error = _unreadable(file.path, why)
        finally:
            os.close(file.fd)
        if file.error:
            self._fail(file.path, file.error)
            return
        if self._cancelled.is_set():  # chunks are missing
            return
        while not self._index.add(file.path, file.st, file.chunks, whole=True):
            self._flush()
        with self._lock:
            self.progress.added += 1

    def _pieces(self, paths: Sequence[bytes]) -> Iterator[tuple[_File, int]]:
        """(file, number of a chunk of it), for all chunks of all files."""
        for path in self._walk(paths):
            if self._cancelled.is_set():
                return
            file = self._open(path)
            if file:
                # A file that is begun is handed out to its end, so that somebody closes it.
                for number in range(file.left):
                    yield file, number

    def _walk(self, paths: Sequence[bytes]) -> Iterator[bytes]:
        """The paths of everything that is no folder. Holds the names of folders still to be visited, none open."""
        waiting = list(reversed(paths))
        while waiting:
            path = waiting.pop()
            try:
                if not stat.S_ISDIR(os.stat(path, follow_symlinks=False).st_mode):
                    yield path
                    continue
                with os.scandir(path) as found:
                    entries = [(os.path.join(path, item.name), item.is_dir(follow_symlinks=False)) for item in found]
            except OSError as why:
                self._fail(path, _unreadable(path, why))
                continue
            entries.sort(reverse=True)
            waiting += [name for name, is_folder in entries if is_folder]
            yield from (name for name, is_folder in reversed(entries) if not is_folder)

    def _open(self, path: bytes) -> _File | None:
        """None: there is nothing to add, or it cannot be read."""
        try:
            st = os.stat(path, follow_symlinks=False)
            if not stat.S_ISREG(st.st_mode) or st.st_size <= MIN_LENGTH or is_inflight_name(os.path.basename(path)):
                return None
            with self._lock:
                self.progress.files += 1
                self.progress.bytes += st.st_size
            if self._index.knows(path, st):
                with self._lock:
                    self.progress.known += 1
                return None
            fd = os.open(path, _FLAGS)
        except OSError as why:
            self._fail(path, _unreadable(path, why))
            return None
        opened = os.fstat(fd)
        if Facts.of(opened) != Facts.of(st):
            os.close(fd)
            self._fail(path, _changed(path))
            return None
        return _File(path, fd, st)

    def _fail(self, path: bytes, why: HeadraceError) -> None:
        with self._lock:
            self.progress.failed += 1
            self._failed(path, why)


def _unreadable(path: bytes, why: OSError) -> LocalFileError:
    hint = "Check its permissions." if isinstance(why, PermissionError) else "Leave it out, or check its disk."
    return LocalFileError(f"{label(path)} cannot be read ({why.strerror or why})", hint=hint)


def _changed(path: bytes) -> SourceChangedError:
    return SourceChangedError(f"{label(path)} changed while it was being read", hint="Add it again when it is quiet.")
