"""Every message, one struct each. The header of a frame is one of these in MessagePack; `type` names it.

Fields may be added (with a default), never changed or removed: a receiver skips fields and types that it does not
know. Phase 7 is the baseline that every peer speaks; phase 8 adds the bulk messages. Sizes, limits and entries are in
`basics`, the messages by which a client writes into a share in `writes`; this module hands all of them on.
"""

from __future__ import annotations

import functools
import operator
from typing import Any, Final

import msgspec

from headrace.protocol.basics import (
    BLOCK_SIZE,
    CHUNK_SIZE,
    HASH_SIZE,
    HEARTBEAT,
    HOST_DECIDES,
    KIB,
    MARK_SPAN,
    MAX_BATCH_FILE,
    MAX_BATCH_ITEMS,
    MAX_BATCH_SIZE,
    MAX_CHANGES,
    MAX_ENTRIES,
    MAX_FILE_SIZE,
    MAX_HASHES,
    MAX_LEVEL,
    MAX_MARKS,
    MAX_PART,
    MAX_RANGES,
    MAX_TIME,
    MIB,
    NOT_PACKED,
    PHASE_BASELINE,
    PHASE_BULK,
    READ_SIZE,
    ROLE_CONTROL,
    ROLE_DATA,
    VERSION_SIZE,
    ZSTD_PACKED,
    Entry,
    Kind,
    Message,
    check_entries,
)
from headrace.protocol.paths import BadPathError, RelPath
from headrace.protocol.writes import (
    MAX_HELD,
    MAX_OFFER,
    MAX_PUT_FILES,
    MAX_PUT_ITEMS,
    PUT_ANSWERS,
    PUTS,
    PUTS_WITH_PAYLOAD,
    TRANSFER_SIZE,
    AnyPut,
    PutAttributes,
    PutBegin,
    PutChunk,
    PutCommit,
    PutCommitted,
    PutDone,
    PutEnd,
    PutEnded,
    PutFiles,
    PutLeave,
    PutNames,
    PutOffer,
    PutOpen,
    PutOpened,
    PutReady,
    PutStored,
    PutWanted,
    check_put,
)

__all__ = [
    "AnyPut",
    "AuthCredential",
    "AuthPake",
    "AuthPakeConfirm",
    "AuthPakeReply",
    "BLOCK_SIZE",
    "BULK_REQUESTS",
    "BY_TYPE",
    "Batch",
    "Blocks",
    "CHUNK_SIZE",
    "Changed",
    "Chunk",
    "Data",
    "Entry",
    "Error",
    "GetBatch",
    "GetBlocks",
    "GetChunk",
    "GetManifest",
    "GetRanges",
    "GetTimes",
    "Goodbye",
    "Granted",
    "HASH_SIZE",
    "HEARTBEAT",
    "HOST_DECIDES",
    "Hello",
    "KIB",
    "Kind",
    "List",
    "ListPart",
    "Look",
    "Looked",
    "MARK_SPAN",
    "MAX_BATCH_FILE",
    "MAX_BATCH_ITEMS",
    "MAX_BATCH_SIZE",
    "MAX_CHANGES",
    "MAX_ENTRIES",
    "MAX_FILE_SIZE",
    "MAX_HASHES",
    "MAX_HELD",
    "MAX_LEVEL",
    "MAX_MARKS",
    "MAX_OFFER",
    "MAX_PART",
    "MAX_PUT_FILES",
    "MAX_PUT_ITEMS",
    "MAX_RANGES",
    "MAX_TIME",
    "MIB",
    "MalformedMessageError",
    "ManifestPart",
    "Message",
    "NOT_PACKED",
    "PHASE_BASELINE",
    "PHASE_BULK",
    "PUTS",
    "PUTS_WITH_PAYLOAD",
    "PUT_ANSWERS",
    "Ping",
    "Pong",
    "PutAttributes",
    "PutBegin",
    "PutChunk",
    "PutCommit",
    "PutCommitted",
    "PutDone",
    "PutEnd",
    "PutEnded",
    "PutFiles",
    "PutLeave",
    "PutNames",
    "PutOffer",
    "PutOpen",
    "PutOpened",
    "PutReady",
    "PutStored",
    "PutWanted",
    "READ_SIZE",
    "REQUESTS",
    "ROLE_CONTROL",
    "ROLE_DATA",
    "Read",
    "Stat",
    "StatFs",
    "StatFsReply",
    "StatReply",
    "TRANSFER_SIZE",
    "Times",
    "Trace",
    "VERSION_SIZE",
    "Walk",
    "Watch",
    "Welcome",
    "ZSTD_PACKED",
    "check_entries",
    "check_put",
    "decode",
    "encode",
    "wire_path",
]

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
    *PUTS,
)
BULK_REQUESTS: Final = (
    *(Walk, GetManifest, GetChunk, GetBatch, GetBlocks, GetRanges, Watch, Look, StatFs, GetTimes),
    *PUTS,
)

_ALL: Final[tuple[type[Message], ...]] = (
    *(Hello, Welcome, AuthPake, AuthPakeReply, AuthPakeConfirm, AuthCredential, Granted),
    *(Stat, StatReply, List, ListPart, Read, Data, Ping, Pong, Error, Goodbye),
    *(Walk, GetManifest, ManifestPart, GetChunk, Chunk, GetBatch, Batch),
    *(GetBlocks, Blocks, GetRanges),
    *(Watch, Changed, Look, Looked, StatFs, StatFsReply),
    *(Trace, GetTimes, Times),
    *(*PUTS, *PUT_ANSWERS),
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
