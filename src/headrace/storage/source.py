"""Reading on the host: a file of the share, held open, and known to be the version that the peer asked for."""

from __future__ import annotations

import os
from collections import OrderedDict
from typing import Final, Self

from headrace.errors import SourceChangedError
from headrace.observe.times import StreamTimes
from headrace.protocol.paths import RelPath
from headrace.storage.fileio import FileIO
from headrace.storage.oserrors import host_errors, label
from headrace.storage.plain import PlainIO
from headrace.storage.posix import POSIX
from headrace.storage.rawio import next_data
from headrace.storage.tree import SharedTree, is_sparse, version_of

MAX_OPEN: Final = 16


class SourceFile:
    """An open file of the share. One owner thread; close it.

    size: bytes. version: its token when it was opened. sparse: it may have holes. zero_copy: sendfile may be used.
    """

    def __init__(
        self, path: RelPath, fd: int, st: os.stat_result, io: FileIO = POSIX, times: StreamTimes | None = None
    ) -> None:
        """Takes `fd` over. times: of the stream that it is read for."""
        self.path = path
        self.size = st.st_size
        self.version = version_of(st)
        self.sparse = is_sparse(st)
        self.times = times or StreamTimes()
        self.zero_copy = io.name != PlainIO.name
        self._fd = fd
        self._read = io.read_into
        self._facts = _facts(st)

    @classmethod
    def open(cls, tree: SharedTree, path: RelPath, times: StreamTimes | None = None) -> Self:
        """Raises NotFoundError, PermissionRefusedError, RemoteIOError."""
        return cls(path, *tree.open_file(path), tree.io, times)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fills `buffer` with the bytes at `offset`.

        Raises SourceChangedError when the file is shorter than that or is not, after the read, what it was when it was
        opened; RemoteIOError. The buffer's content is undefined then.
        """
        with host_errors(self.path), self.times.disk:
            if buffer and self._read(self._fd, buffer, offset) < len(buffer):
                raise self._changed()
            if _facts(os.fstat(self._fd)) != self._facts:
                raise self._changed()

    def read_small(self, buffer: memoryview, offset: int) -> None:
        """As `read_into`, for what is in one call to the system; whoever calls it counts the time.

        A file that is read so again and again costs a third of what `read_into` does. Raises OSError besides.
        """
        fd = self._fd
        if self._read(fd, buffer, offset) < len(buffer) or _facts(os.fstat(fd)) != self._facts:
            raise self._changed()

    def is_hole(self, offset: int, length: int) -> bool:
        """Whether the whole range lies in a hole, and so reads as zeros. False where that cannot be told.

        Raises SourceChangedError: past the end of a file that was cut there is no data either.
        """
        with host_errors(self.path):
            data = next_data(self._fd, offset)
            if data is not None and data < offset + length:
                return False
            if _facts(os.fstat(self._fd)) != self._facts:
                raise self._changed()
        return offset + length <= self.size

    def fileno(self) -> int:
        """For sendfile; it stays this object's."""
        return self._fd

    def close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _changed(self) -> SourceChangedError:
        return SourceChangedError(f"{label(self.path)} changed while it was being read")


class SourceCache:
    """The files that one connection reads from, kept open: the least recently used is closed. One owner thread."""

    def __init__(self, tree: SharedTree, limit: int = MAX_OPEN, times: StreamTimes | None = None) -> None:
        """times: of the connection's stream."""
        self._times = times
        self._tree = tree
        self._limit = limit
        self._open: OrderedDict[tuple[bytes, bytes], SourceFile] = OrderedDict()  # by path as on the wire, and version

    def known(self, path: bytes, version: bytes) -> SourceFile | None:
        """As `get`, where the file is open already. path: as on the wire."""
        key = (path, version)
        source = self._open.get(key)
        if source is not None:
            self._open.move_to_end(key)
        return source

    def get(self, path: RelPath, version: bytes = b"") -> SourceFile:
        """The file, valid until `limit` others were asked for. The cache closes it.

        version: the one wanted; empty takes the file as it is now. Raises SourceChangedError when it is another one,
        and what SharedTree.open_file raises.
        """
        raw = bytes(path)
        known = self.known(raw, version)
        if known is not None:
            return known
        source = SourceFile.open(self._tree, path, self._times)
        if version and source.version != version:
            source.close()
            raise SourceChangedError(f"{label(path)} is not the version that was listed any more")
        key = (raw, source.version)
        known = self._open.get(key)
        if known is not None:
            source.close()
            self._open.move_to_end(key)
            return known
        while len(self._open) >= self._limit:
            self._open.popitem(last=False)[1].close()
        self._open[key] = source
        return source

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1].close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _facts(st: os.stat_result) -> tuple[int, ...]:
    """What version_of tells apart."""
    return st.st_dev, st.st_ino, st.st_size, st.st_mtime_ns, st.st_ctime_ns
