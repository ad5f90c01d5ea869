"""A remote file as a file object."""

from __future__ import annotations

import io
import os
from typing import Any, Final

from headrace.client.session import Session
from headrace.engine.exchange import EXCHANGES
from headrace.protocol.messages import CHUNK_SIZE, READ_SIZE, Entry
from headrace.protocol.paths import RelPath


class RemoteFile(io.RawIOBase):
    """Read-only, seekable, binary. One thread at a time.

    Reads fetch blocks of 128 KiB; while they follow one another the block doubles, up to 4 MiB, so a sequential reader
    pays few round trips and a random one little waste. Each block is verified (phase 8). Errors are HeadraceErrors:
    SourceChangedError when the file on the host is another one by now, ConnectionLostError.
    """

    def __init__(self, session: Session, path: RelPath, entry: Entry) -> None:
        self._session = session
        self._path = path
        self._entry = entry
        self._position = 0
        self._block = memoryview(b"")
        self._block_start = 0
        self._next_size = READ_SIZE
        self._exchange: Final = EXCHANGES[session.agreed.version]

    @property
    def name(self) -> str:
        """The path in the share."""
        return os.fsdecode(bytes(self._path))

    @property
    def size(self) -> int:
        """Bytes."""
        return self._entry.size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        raise io.UnsupportedOperation("a remote file is read-only")

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._check_open()
        bases = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._entry.size}
        if whence not in bases:
            raise ValueError(f"a whence of {whence}")
        base = bases[whence]
        if base + offset < 0:
            raise ValueError("a position before the start of the file")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        self._check_open()
        return self._position

    def readinto(self, into: Any) -> int:
        """Fills as much of `into` as lies in one block; 0 at the end of the file."""
        self._check_open()
        target = memoryview(into).cast("B")
        if self._position >= self._entry.size or not len(target):
            return 0
        if not self._block_start <= self._position < self._block_start + len(self._block):
            self._fetch(len(target))
        start = self._position - self._block_start
        count = min(len(target), len(self._block) - start)
        target[:count] = self._block[start : start + count]
        self._position += count
        return count

    def readall(self) -> bytes:
        pieces = bytearray(max(0, self._entry.size - self._position))
        view, filled = memoryview(pieces), 0
        while filled < len(pieces):
            filled += self.readinto(view[filled:])
        return bytes(pieces)

    def _fetch(self, wanted: int) -> None:
        sequential = self._position == self._block_start + len(self._block)
        self._next_size = min(self._next_size * 2, CHUNK_SIZE) if sequential and self._position else READ_SIZE
        size = min(max(self._next_size, min(wanted, CHUNK_SIZE)), self._entry.size - self._position)
        buffer = memoryview(bytearray(size))
        with self._session.use() as lane:
            self._exchange.request(lane, self._path, self._entry.version, self._position, size)
            self._exchange.receive(lane, size, buffer, None)
        self._block, self._block_start = buffer.toreadonly(), self._position

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("the file is closed")
