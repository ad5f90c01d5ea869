"""Blocks of remote files on this disk, so that they can be read again after a restart or with the host gone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

DEFAULT_LIMIT: Final = 10 * 1024**3  # bytes


class DiskFile:
    """What the cache has of one version of one file. Thread-safe."""

    def extent(self, offset: int) -> tuple[int, int] | None:
        """From where to where the cache has what can be read at once around `offset`; None: it has not that byte."""
        return None

    def has(self, start: int, end: int) -> bool:
        """Whether the cache has all of that, as far as it knows."""
        return False

    def read_into(self, start: int, into: memoryview) -> bool:
        """Fills `into` with the bytes at `start`, verified. False where they are not there or not right."""
        return False

    def put(self, start: int, view: memoryview, digest: bytes, done: Callable[[], None]) -> bool:
        """Keeps a range with that hash. It is written a moment later, then `done` is called. False: it is not kept."""
        return False


class BlockCache:
    """A bounded cache of blocks in a folder. Thread-safe, and several processes may use one folder at once.

    It is a cache: where the disk fails, is full or was scribbled on, it has nothing and keeps nothing, which is told
    once and counted. No method raises for that.
    """

    def __init__(self, folder: Path, limit: int = DEFAULT_LIMIT) -> None:
        """folder: made where it is missing. limit: bytes on disk."""
        self.folder = folder
        self.limit = limit
        self._meta: dict[bytes, bytes] = {}

    def open(self, share: bytes, version: bytes, size: int) -> DiskFile:
        """What there is of the file of that version in that share."""
        return DiskFile()

    def put_meta(self, key: bytes, value: bytes) -> None:
        """Keeps a small value, MAX_META bytes at most, under a key; it may be dropped like a block. Returns at once: it
        is written a moment later."""
        self._meta[key] = value

    def get_meta(self, key: bytes) -> bytes | None:
        """What was kept under the key; None where there is nothing (any more)."""
        return self._meta.get(key)

    def close(self) -> None:
        """Writes what is still to be written. May be called again."""
