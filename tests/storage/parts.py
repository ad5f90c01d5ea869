"""A file of four chunks in flight, as the tests of Partial use it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from headrace.protocol.messages import CHUNK_SIZE
from headrace.storage.chunks import chunk_range, hash_bytes
from headrace.storage.partial import Partial, part_names, write_whole

NAME = b"a.mov"
PART, JOURNAL = (os.fsdecode(name) for name in part_names(NAME))
V1, V2 = b"1" * 16, b"2" * 16
SIZE = 3 * CHUNK_SIZE + 1000
CONTENT = b"".join(bytes([65 + index]) * CHUNK_SIZE for index in range(4))[:SIZE]


def opened(folder: int, name: bytes = NAME, **changes: Any) -> Partial:
    arguments: dict[str, Any] = {
        "size": SIZE,
        "version": V1,
        "mtime_ns": 5_000_000_000,
        "sparse": False,
        "boot_id": b"boot",
    }
    return Partial.open(folder, name, **(arguments | changes))


def fill(partial: Partial, *indexes: int, content: bytes = CONTENT) -> None:
    for index in indexes:
        offset, length = chunk_range(partial.size, index)
        piece = content[offset : offset + length]
        partial.write(offset, piece)
        partial.commit(index, hash_bytes(piece))


def hash_of(index: int, content: bytes = CONTENT) -> bytes:
    offset, length = chunk_range(len(content), index)
    return hash_bytes(content[offset : offset + length])


def finish(partial: Partial, *, mode: int = 0o640, replace: bool = False) -> None:
    partial.finish(mode=mode, mtime_ns=1_234_567_890_123_456_789, replace=replace)


def small(folder: int, data: bytes, **changes: Any) -> None:
    write_whole(folder, NAME, data, **({"mode": 0o644, "mtime_ns": 7_000_000_000, "replace": True} | changes))


def blocks_of(path: Path) -> int:
    return path.stat().st_blocks * 512
