"""What all messages are made of: the base class, entries, sizes and limits. `messages` hands it all on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import msgspec

from headrace.protocol.paths import MAX_NAME, MAX_PATH, check_name

KIB: Final = 1024
MIB: Final = 1024 * KIB

PHASE_BASELINE: Final = 7
PHASE_BULK: Final = 8

CHUNK_SIZE: Final = 4 * MIB  # bulk; the last chunk of a file may be shorter
READ_SIZE: Final = 128 * KIB  # random access, and the most a phase 7 Read may ask for
HASH_SIZE: Final = 32  # BLAKE3, bytes
VERSION_SIZE: Final = 16  # a file's version token, bytes
MAX_ENTRIES: Final = 1000  # entries in one ListPart
MAX_HASHES: Final = 2048  # hashes in one ManifestPart
MAX_BATCH_ITEMS: Final = 1024  # files that one GetBatch asks for
MAX_BATCH_FILE: Final = READ_SIZE  # bytes of each of them
MAX_BATCH_SIZE: Final = CHUNK_SIZE  # bytes of all of them together
MAX_CHANGES: Final = 1000  # paths in each list of one Changed
HEARTBEAT: Final = 5.0  # seconds; a Changed comes at least that often, an empty one where nothing changed
MAX_PART: Final = 512 * KIB  # bytes of a range, or of a batch's files, that one compressed payload stands for
BLOCK_SIZE: Final = 4 * KIB  # what is left of a chunk in an older version of its file is found in these
MAX_RANGES: Final = 1024  # ranges that one GetRanges asks for
MAX_MARKS: Final = 256  # places in one Blocks
MARK_SPAN: Final = 32  # bytes that a mark's check is of
MAX_FILE_SIZE: Final = 1 << 62
MAX_TIME: Final = 1e15  # seconds of all streams, or bytes a second

# What a request says of compression, beside a level from 1 to MAX_LEVEL, and what an answer says where it is.
NOT_PACKED: Final = 0
HOST_DECIDES: Final = -1
MAX_LEVEL: Final = 19  # zstd has higher ones, which take hundreds of megabytes
ZSTD_PACKED: Final = "zstd"

ROLE_CONTROL: Final = "control"
ROLE_DATA: Final = "data"

Kind = Literal["f", "d", "l", "o"]


class Message(msgspec.Struct, frozen=True, tag_field="type"):
    """The base of all messages."""


class Entry(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One file, directory or symlink as the host sees it.

    kind: `f` file, `d` directory, `l` symlink, `o` anything else (not transferable).
    size: bytes. mtime_ns: nanoseconds since 1970, UTC. mode: permission bits (0o7777 at most).
    target: of a symlink, raw. version: opaque token; it changes whenever the file's content may have.
    sparse: the file occupies less disk than its size.
    """

    name: bytes
    kind: Kind
    size: int = 0
    mtime_ns: int = 0
    mode: int = 0
    target: bytes = b""
    version: bytes = b""
    sparse: bool = False

    def check(self, *, is_root: bool = False) -> Entry:
        """This entry, or ValueError when a field lies outside its limits. For entries from a peer."""
        if not (is_root and not self.name):
            check_name(self.name)
        if not 0 <= self.size <= MAX_FILE_SIZE:
            raise ValueError("a size out of range")
        if not -(1 << 63) <= self.mtime_ns < (1 << 63) or not 0 <= self.mode <= 0o7777:
            raise ValueError("a time or mode out of range")
        if len(self.target) > MAX_PATH or len(self.version) > VERSION_SIZE:
            raise ValueError("a link target or version token too long")
        if self.kind == "f" and len(self.version) != VERSION_SIZE:
            raise ValueError("a file without a version token")
        return self


def check_entries(entries: Sequence[Entry]) -> None:
    """As Entry.check for each of them, in a third of its time. Raises ValueError."""
    names = [entry.name for entry in entries]
    joined = b"/".join(names)
    sizes = [entry.size for entry in entries]
    times = [entry.mtime_ns for entry in entries]
    modes = [entry.mode for entry in entries]
    lengths = {(entry.kind, len(entry.version)) for entry in entries}
    if (
        entries
        and joined.count(b"/") == len(names) - 1
        and b"\0" not in joined
        and all(names)
        and len(max(names, key=len)) <= MAX_NAME
        and b"." not in names
        and b".." not in names
        and min(sizes) >= 0
        and max(sizes) <= MAX_FILE_SIZE
        and min(times) >= -(1 << 63)
        and max(times) < (1 << 63)
        and min(modes) >= 0
        and max(modes) <= 0o7777
        and len(max([entry.target for entry in entries], key=len)) <= MAX_PATH
        and all(length == VERSION_SIZE or (kind != "f" and length < VERSION_SIZE) for kind, length in lengths)
    ):
        return
    for entry in entries:  # which one it is, and what is wrong with it
        entry.check()
