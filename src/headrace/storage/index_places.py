"""What the chunk index speaks about: files, by what they are known again, and places where chunks lie."""

from __future__ import annotations

import os
from typing import Final, Self

import msgspec

_SIGN: Final = 1 << 63

Row = tuple[bytes, int, int]  # hash, offset, length


class Facts(msgspec.Struct, frozen=True):
    """By what a file is known again: another one, or another content, and at least one of them differs.

    Sizes in bytes, times in nanoseconds. device and inode as signed 64-bit numbers, which is what SQLite stores.
    """

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, st: os.stat_result) -> Self:
        return cls(_signed(st.st_dev), _signed(st.st_ino), st.st_size, _signed(st.st_mtime_ns), _signed(st.st_ctime_ns))


class IndexedFile(msgspec.Struct, frozen=True):
    """A file of which chunks are known. id: in this database. path: absolute. whole: all its chunks are known."""

    id: int
    path: bytes
    facts: Facts
    whole: bool

    def is_still(self) -> bool:
        """Whether the file there is the one that was indexed, by all that its times say."""
        try:
            return Facts.of(os.stat(self.path, follow_symlinks=False)) == self.facts
        except (OSError, ValueError):
            return False


class Place(msgspec.Struct, frozen=True):
    """Where a chunk lay when it was last seen: `length` bytes at `offset` of `file`, with this hash."""

    file: IndexedFile
    offset: int
    length: int
    hash: bytes


class Addition(msgspec.Struct, frozen=True):
    """Chunks of one file that are to be added. path: absolute. whole: after it, all its chunks are known."""

    path: bytes
    facts: Facts
    rows: list[Row]
    whole: bool


def _signed(number: int) -> int:
    return (number + _SIGN) % (2 * _SIGN) - _SIGN
