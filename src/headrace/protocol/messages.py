"""Every message, one struct each. The header of a frame is one of these in MessagePack; `type` names it.

Fields may be added (with a default), never changed or removed: a receiver skips fields and types that it does not
know. Phase 7 is the baseline that every peer speaks; phase 8 adds the bulk messages.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import Any, Final, Literal

import msgspec

from headrace.protocol.paths import MAX_NAME, MAX_PATH, BadPathError, RelPath, check_name

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


# ---- phase 7: handshake ------------------------------------------------------------------------------------------


class Hello(Message, frozen=True, tag="hello"):
    """The client's first words. versions: lowest and highest phase it speaks. role: `control` or `data`.

    seal: with the feature `sealed`, the client's half of the secret that the stream's records come to be sealed with.
    """

    versions: tuple[int, int]
    features: list[str]
    agent: str
    role: str = ROLE_CONTROL
    seal: bytes = b""

    def __repr__(self) -> str:
        """Without the secret."""
        return (
            f"Hello(versions={self.versions!r}, features={self.features!r}, agent={self.agent!r}, role={self.role!r})"
        )


class Welcome(Message, frozen=True, tag="welcome"):
    """The host's answer: the phase and the features both will use from here on. share: the code's public group."""

    version: int
    features: list[str]
    agent: str
    share: str


class AuthPake(Message, frozen=True, tag="auth-pake"):
    """First contact: the client's SPAKE2 element."""

    element: bytes


class AuthPakeReply(Message, frozen=True, tag="auth-pake-reply"):
    """The host's SPAKE2 element."""

    element: bytes


class AuthPakeConfirm(Message, frozen=True, tag="auth-pake-confirm"):
    """The client proves that it has the key. It goes first, so a guess is spent before anything is learnt."""

    mac: bytes


class AuthCredential(Message, frozen=True, tag="auth-credential"):
    """A later connection: proof = HMAC-SHA256(credential, label, certificate fingerprint, nonce)."""

    peer: bytes
    nonce: bytes
    proof: bytes

    def __repr__(self) -> str:
        """Without the proof: to whoever reads a log it would be as good as the credential."""
        return f"AuthCredential(peer={self.peer!r})"


class Granted(Message, frozen=True, tag="granted"):
    """The peer is in. mac: the host's proof that it has the PAKE key (empty after AuthCredential).

    seal: where both sides agreed on `sealed`, the host's half of the secret; this is then the last message inside TLS.
    """

    mac: bytes
    name: str
    seal: bytes = b""

    def __repr__(self) -> str:
        """Without the secret."""
        return f"Granted(mac={self.mac!r}, name={self.name!r})"


# ---- phase 7: requests and answers; `id` pairs them, answers come in the order of the requests -------------------


class Stat(Message, frozen=True, tag="stat"):
    id: int
    path: bytes


class StatReply(Message, frozen=True, tag="stat-reply"):
    """The entry at the path; for the root its name is the share's name."""

    id: int
    entry: Entry


class List(Message, frozen=True, tag="list"):
    """The entries of one directory, answered by one or more ListPart."""

    id: int
    path: bytes


class ListPart(Message, frozen=True, tag="list-part"):
    """Entries of the directory `path` (share-relative). last: no further part of this answer follows.

    error: why (the rest of) this directory could not be read; an error code of the error table.
    """

    id: int
    path: bytes
    entries: list[Entry]
    last: bool = False
    error: str = ""


class Read(Message, frozen=True, tag="read"):
    """At most READ_SIZE bytes of a file, answered by Data. version: fail with `changed` if it is another by now."""

    id: int
    path: bytes
    offset: int
    length: int
    version: bytes = b""


class Data(Message, frozen=True, tag="data"):
    """The payload is the bytes; fewer than asked for means the end of the file."""

    id: int


class Ping(Message, frozen=True, tag="ping"):
    id: int


class Pong(Message, frozen=True, tag="pong"):
    id: int


class Error(Message, frozen=True, tag="error"):
    """What went wrong. id: of the request it answers; 0: the connection as a whole, which then closes.

    code: a word of the error table. retry_after: seconds, where waiting helps.
    """

    id: int
    code: str
    message: str
    retry_after: float = 0.0
    versions: tuple[int, int] = (0, 0)


class Goodbye(Message, frozen=True, tag="goodbye"):
    """The sender closes the connection in an orderly way."""

    reason: str = ""


# ---- phase 8: bulk -----------------------------------------------------------------------------------------------


class Walk(Message, frozen=True, tag="walk"):
    """A whole tree below `path`, parents before children, answered by ListPart as it is read."""

    id: int
    path: bytes


class GetManifest(Message, frozen=True, tag="get-manifest"):
    """The hashes of all chunks of a file, answered by ManifestPart while hashing goes on."""

    id: int
    path: bytes
    version: bytes


class ManifestPart(Message, frozen=True, tag="manifest-part"):
    """hashes: HASH_SIZE bytes each, of the chunks `first`, `first` + 1, …"""

    id: int
    first: int
    hashes: bytes
    last: bool = False


class GetChunk(Message, frozen=True, tag="get-chunk"):
    """`length` bytes (at most CHUNK_SIZE) at `offset`, answered by Chunk. The range must lie inside the file.

    zstd: with the feature `zstd`, whether the answer may be compressed: HOST_DECIDES, a level, or NOT_PACKED.
    """

    id: int
    path: bytes
    version: bytes
    offset: int
    length: int
    zstd: int = NOT_PACKED


class Chunk(Message, frozen=True, tag="chunk"):
    """hash: BLAKE3 of the range. The payload is the range; with `zero` it is empty and the range is all zeros.

    clear: the payload follows outside of the stream's records, in the clear; only where both sides agreed on that.
    size: 0 for the whole range. Else the payload stands for the next `size` bytes of it, at most MAX_PART, and the
    answer is complete with the last of them; each part has the hash of the whole range.
    packed: ZSTD_PACKED where the payload is a zstd frame of `size` bytes; else why it is not, where that was asked for.
    """

    id: int
    hash: bytes
    zero: bool = False
    clear: bool = False
    size: int = 0
    packed: str = ""


class GetBatch(Message, frozen=True, tag="get-batch"):
    """Whole small files, answered by one or more Batch. items: path and version token of each.

    Only with the feature `batch`. At most MAX_BATCH_ITEMS files, MAX_BATCH_FILE bytes each, MAX_BATCH_SIZE in all.
    zstd: as in GetChunk.
    """

    id: int
    items: list[tuple[bytes, bytes]]
    zstd: int = NOT_PACKED


class Batch(Message, frozen=True, tag="batch"):
    """The items `first`, `first` + 1, … of a GetBatch; the payload is their bytes one after the other.

    sizes: bytes of each; 0 for one that failed. failed, codes, texts: which items did, ascending, and why: a word of
    the error table and a sentence. hash: BLAKE3 of the files' bytes. The answer is complete with its last item.
    packed: ZSTD_PACKED where the payload is a zstd frame of those bytes, at most MAX_PART of them; else as in Chunk.
    """

    id: int
    first: int
    sizes: list[int]
    failed: list[int]
    codes: list[str]
    texts: list[str]
    hash: bytes
    packed: str = ""


class GetBlocks(Message, frozen=True, tag="get-blocks"):
    """What a chunk of a file is made of, answered by Blocks. chunk: its number. Only with the feature `blocks`."""

    id: int
    path: bytes
    version: bytes
    chunk: int


class Blocks(Message, frozen=True, tag="blocks"):
    """Of one chunk. sums: CRC-32 of each block of BLOCK_SIZE bytes, u32 big-endian; the file's last may be shorter.

    marks: byte strings that are rare in this file, 2 to 8 bytes each, two at most. places: where they begin in this
    chunk, MAX_MARKS at most, each as two u32 big-endian: the offset within the chunk, and the CRC-32 of the MARK_SPAN
    bytes from there on. Sums and places are hints about where to look; what is found is checked by the chunk's hash.
    """

    id: int
    sums: bytes
    marks: list[bytes]
    places: bytes


class GetRanges(Message, frozen=True, tag="get-ranges"):
    """Pieces of a file, each as (offset, length), answered by one Chunk with all of them one after the other.

    Only with the feature `blocks`. At most MAX_RANGES, and CHUNK_SIZE bytes in all; none is empty, each begins where
    the one before ends or later, and all lie inside the file.
    """

    id: int
    path: bytes
    version: bytes
    ranges: list[tuple[int, int]]


# ---- phase 8: what a mount asks ----------------------------------------------------------------------------------


class Watch(Message, frozen=True, tag="watch"):
    """From here on this stream carries Changed, and nothing else is asked on it. Only with the feature `watch`."""

    id: int


class Changed(Message, frozen=True, tag="changed"):
    """What is not as it was in the directories that this watch knows, by Look. Paths are share-relative.

    watch: the number of this watch, for Look. entries: what has other attributes or another content. names: what came,
    went or was replaced, with all that is below it; the host watches nothing there any more. unwatched: directories
    that the host watches no more. overflow: changes were missed; all that is known may be wrong. last: the watch ends.
    At most MAX_CHANGES paths in each. All empty: nothing changed for HEARTBEAT.
    """

    id: int
    watch: int
    entries: list[bytes] = []
    names: list[bytes] = []
    unwatched: list[bytes] = []
    overflow: bool = False
    last: bool = False


class Look(Message, frozen=True, tag="look"):
    """As List, and from before the first entry was read the directory belongs to `watch`, a watch of this peer (0:
    none). Answered by any number of ListPart, then one Looked. limit: entries, no more are sent; 0: all of them.
    """

    id: int
    path: bytes
    watch: int = 0
    limit: int = 0


class Looked(Message, frozen=True, tag="looked"):
    """The end of the answer to a Look. entry: of the directory itself, from before the first of its entries was read.

    watched: the watch will say when something in it changes. more: there are more entries than `limit`.
    """

    id: int
    entry: Entry
    watched: bool = False
    more: bool = False


class StatFs(Message, frozen=True, tag="statfs"):
    """How full is the file system that `path` is on? Only with the feature `statfs`."""

    id: int
    path: bytes


class StatFsReply(Message, frozen=True, tag="statfs-reply"):
    """total, free: bytes. available: of those free, to the host's user. files, files_free: inodes; 0 where there are
    no such numbers."""

    id: int
    total: int
    free: int
    available: int
    files: int = 0
    files_free: int = 0

    def check(self) -> StatFsReply:
        """This answer, or ValueError when a number lies outside its limits."""
        if not all(0 <= number < 1 << 63 for number in (self.total, self.free, self.files, self.files_free)):
            raise ValueError("a number of bytes or files out of range")
        if not 0 <= self.available <= self.free <= self.total or self.files_free > self.files:
            raise ValueError("more free than there is")
        return self


# ---- phase 8: to find out where the time goes --------------------------------------------------------------------


class Trace(Message, frozen=True, tag="trace"):
    """What comes on this stream belongs to a trace of the client's; there is no answer. Only with the feature `trace`.

    context: a traceparent of W3C Trace Context. One that is none says nothing.
    """

    context: str


class GetTimes(Message, frozen=True, tag="get-times"):
    """Where did the host's time for this peer go? Answered by Times. Only with the feature `times`."""

    id: int


class Times(Message, frozen=True, tag="times"):
    """Seconds that the host's side of this peer's streams spent, all of them together since the peer came.

    disk: reading files. hash: hashing them. sending: giving bytes to the network, limits included. waiting: for
    requests. receiving: what comes with them. rest: what is none of these. limit: bytes a second that the host lets
    this peer have at most; 0: no limit.
    """

    id: int
    disk: float
    hash: float
    sending: float
    waiting: float
    receiving: float
    rest: float
    limit: float = 0.0

    def check(self) -> Times:
        """This answer, or ValueError when a number lies outside its limits."""
        numbers = (self.disk, self.hash, self.sending, self.waiting, self.receiving, self.rest, self.limit)
        if not all(0 <= number <= MAX_TIME for number in numbers):
            raise ValueError("a time or rate out of range")
        return self


REQUESTS: Final = (
    Stat,
    List,
    Read,
    Ping,
    Walk,
    GetManifest,
    GetChunk,
    GetBatch,
    GetBlocks,
    GetRanges,
    Watch,
    Look,
    StatFs,
    GetTimes,
)
BULK_REQUESTS: Final = (Walk, GetManifest, GetChunk, GetBatch, GetBlocks, GetRanges, Watch, Look, StatFs, GetTimes)

_ALL: Final[tuple[type[Message], ...]] = (
    *(Hello, Welcome, AuthPake, AuthPakeReply, AuthPakeConfirm, AuthCredential, Granted),
    *(Stat, StatReply, List, ListPart, Read, Data, Ping, Pong, Error, Goodbye),
    *(Walk, GetManifest, ManifestPart, GetChunk, Chunk, GetBatch, Batch),
    *(GetBlocks, Blocks, GetRanges),
    *(Watch, Changed, Look, Looked, StatFs, StatFsReply),
    *(Trace, GetTimes, Times),
)
BY_TYPE: Final[dict[str, type[Message]]] = {str(cls.__struct_config__.tag): cls for cls in _ALL}


class MalformedMessageError(ValueError):
    """A header that is no message, or a known message with fields of the wrong type."""


class _JustType(msgspec.Struct):
    type: str


_encoder = msgspec.msgpack.Encoder()
_union: Any = msgspec.msgpack.Decoder(type=functools.reduce(operator.or_, _ALL))
_just_type = msgspec.msgpack.Decoder(_JustType)


def encode(message: Message) -> bytes:
    """The message as MessagePack."""
    return _encoder.encode(message)


def decode(header: bytes | bytearray | memoryview) -> Message | None:
    """The message in `header`, or None when its type is unknown to this version (skip it).

    Raises MalformedMessageError.
    """
    try:
        message: Message = _union.decode(header)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as why:
        try:
            known = _just_type.decode(header).type in BY_TYPE
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise MalformedMessageError("a header that is no message") from why
        if known:
            raise MalformedMessageError("a message with missing or mistyped fields") from why
        return None
    return message


def wire_path(raw: bytes) -> RelPath:
    """A path from a peer. Raises MalformedMessageError."""
    try:
        return RelPath.parse(raw)
    except BadPathError as why:
        raise MalformedMessageError(str(why)) from why
