"""Messages of the feature `put`: a client writes into the share. See docs/protocol.md, "Writing".

All of them carry `transfer`, TRANSFER_SIZE random bytes that stand for one run of one client, and are requests that
can be repeated: a client that lost a connection sends again what was not answered. Paths are share-relative.
"""

from __future__ import annotations

from typing import Final

from headrace.protocol.basics import HASH_SIZE, MIB, VERSION_SIZE, Entry, Message

TRANSFER_SIZE: Final = 16  # bytes of `transfer`, and of a host's `run`
MAX_PUT_ITEMS: Final = 256  # files, folders or symlinks in one request
MAX_PUT_FILES: Final = MIB  # bytes of all files of one PutFiles; a larger file goes by PutOpen
MAX_OFFER: Final = 64  # hashes in one PutOffer
MAX_HELD: Final = 1024  # runs of chunks in one PutOpened


class PutBegin(Message, frozen=True, tag="put-begin"):
    """A transfer begins; what another client writes from here on came meanwhile. Answered by PutReady."""

    id: int
    transfer: bytes


class PutReady(Message, frozen=True, tag="put-ready"):
    """run: TRANSFER_SIZE bytes that are others once the host's machine was started anew: what it had not flushed to its
    disk by then may be lost."""

    id: int
    run: bytes


class PutNames(Message, frozen=True, tag="put-names"):
    """Folders, which may be there, and symlinks, which must stay inside the share. Answered by PutDone.

    entries: what becomes of each path; their names are not looked at. replace: what is in a symlink's place goes.
    """

    id: int
    transfer: bytes
    paths: list[bytes]
    entries: list[Entry]
    replace: bool = False


class PutAttributes(Message, frozen=True, tag="put-attributes"):
    """Permissions and times of files and folders that are there. Answered by PutDone."""

    id: int
    transfer: bytes
    paths: list[bytes]
    entries: list[Entry]


class PutFiles(Message, frozen=True, tag="put-files"):
    """Whole small files; the payload is their bytes one after the other. Answered by PutDone.

    hash: BLAKE3 of those bytes. replace: files that are there may be replaced. packed: with the feature `zstd`,
    ZSTD_PACKED where the payload is a zstd frame of those bytes, at most MAX_PART of them.
    """

    id: int
    transfer: bytes
    paths: list[bytes]
    entries: list[Entry]
    hash: bytes
    replace: bool = False
    packed: str = ""


class PutDone(Message, frozen=True, tag="put-done"):
    """made: which items are new, of folders. replaced: where a file that another client put there meanwhile was
    replaced. failed, codes, texts: which items did not work, ascending, and why: a word of the error table and a
    sentence."""

    id: int
    made: list[int] = []
    replaced: list[int] = []
    failed: list[int] = []
    codes: list[str] = []
    texts: list[str] = []


class PutOpen(Message, frozen=True, tag="put-open"):
    """A file that comes in chunks. entry: what it will be; its version token names this state of the client's file.

    From here on, `path` and that token name the file in flight, on all streams of this peer. It stays on the host's
    disk, as far as it came, until it is committed. old: a file in the share that has something in common with it.
    compare: nothing is to be written; PutOffer compares with the file that is there. Answered by PutOpened.
    """

    id: int
    transfer: bytes
    path: bytes
    entry: Entry
    old: bytes = b""
    compare: bool = False


class PutOpened(Message, frozen=True, tag="put-opened"):
    """held: chunks that are there already, as (first, number). offer: some may lie on the host's disk, so offering
    their hashes first may save sending them. there: a file of this size and time has the name already. others: how many
    more clients are writing to this path."""

    id: int
    held: list[tuple[int, int]] = []
    offer: bool = False
    there: bool = False
    others: int = 0


class PutOffer(Message, frozen=True, tag="put-offer"):
    """Has the host these chunks, `first` and on? hashes: HASH_SIZE bytes each, MAX_OFFER at most. It puts those that it
    has in their places. Answered by PutWanted."""

    id: int
    transfer: bytes
    path: bytes
    version: bytes
    first: int
    hashes: bytes


class PutWanted(Message, frozen=True, tag="put-wanted"):
    """chunks: the numbers of those that are to be sent, ascending."""

    id: int
    chunks: list[int]


class PutChunk(Message, frozen=True, tag="put-chunk"):
    """A chunk, or a part of one: the payload is its bytes from `at` on. hash: BLAKE3 of the whole chunk.

    zero: there is no payload, and the whole chunk is zeros. Parts come in order, on one stream, and without another
    chunk between them. packed: with the feature `zstd`, ZSTD_PACKED where the payload is a zstd frame of `size` bytes,
    at most MAX_PART. size: 0 for as many as the payload has. Answered by PutStored.
    """

    id: int
    transfer: bytes
    path: bytes
    version: bytes
    chunk: int
    hash: bytes
    zero: bool = False
    at: int = 0
    size: int = 0
    packed: str = ""


class PutStored(Message, frozen=True, tag="put-stored"):
    """The chunk, or its part, is in its place. known: the host had a chunk with this hash; others of the file may be
    there as well, and offering them first may save sending them."""

    id: int
    known: bool = False


class PutCommit(Message, frozen=True, tag="put-commit"):
    """All chunks are there: the file gets its permissions, its time and its name. Answered by PutCommitted.

    replace: a file that is there may be replaced. After PutOpen with `compare` it only gets permissions and time.
    """

    id: int
    transfer: bytes
    path: bytes
    version: bytes
    replace: bool = False


class PutCommitted(Message, frozen=True, tag="put-committed"):
    """others: how many more clients are writing to this path; whoever is last replaces this file. replaced: a file that
    another client put there meanwhile was replaced."""

    id: int
    others: int = 0
    replaced: bool = False


class PutLeave(Message, frozen=True, tag="put-leave"):
    """The client goes on with this file no more. discard: what came of it is of no use to anybody. Answered by
    PutDone; a file that is not open is none that failed."""

    id: int
    transfer: bytes
    path: bytes
    version: bytes
    discard: bool = False


class PutEnd(Message, frozen=True, tag="put-end"):
    """The transfer is over. sync: the answer comes once all that it wrote is on the host's disk."""

    id: int
    transfer: bytes
    sync: bool = True


class PutEnded(Message, frozen=True, tag="put-ended"):
    """run: as in PutReady. lost: files of this transfer that another client has replaced since; not all if there are
    many."""

    id: int
    run: bytes
    lost: list[bytes] = []


PUTS: Final = (
    *(PutBegin, PutNames, PutAttributes, PutFiles),
    *(PutOpen, PutOffer, PutChunk, PutCommit, PutLeave, PutEnd),
)
PUT_ANSWERS: Final = (PutReady, PutDone, PutOpened, PutWanted, PutStored, PutCommitted, PutEnded)
PUTS_WITH_PAYLOAD: Final = (PutFiles, PutChunk)

AnyPut = PutBegin | PutNames | PutAttributes | PutFiles | PutOpen | PutOffer | PutChunk | PutCommit | PutLeave | PutEnd


def check_put(message: AnyPut) -> None:
    """ValueError where a field of a request lies outside of its limits, whatever the file may be."""
    if len(message.transfer) != TRANSFER_SIZE:
        raise ValueError("a transfer without a proper number")
    if isinstance(message, (PutNames, PutAttributes, PutFiles)):
        if not 0 < len(message.paths) == len(message.entries) <= MAX_PUT_ITEMS:
            raise ValueError(f"{len(message.paths)} paths and {len(message.entries)} entries in one request")
        for entry in message.entries:
            entry.check(is_root=True)
    elif isinstance(message, PutOpen):
        message.entry.check(is_root=True)
        if message.entry.kind != "f":
            raise ValueError("only a file can be opened")
    elif isinstance(message, (PutOffer, PutChunk, PutCommit, PutLeave)) and len(message.version) != VERSION_SIZE:
        raise ValueError("a version token that is none")
    if isinstance(message, (PutFiles, PutChunk)) and len(message.hash) != HASH_SIZE:
        raise ValueError("a hash that is none")
    if isinstance(message, PutOffer):
        count, odd = divmod(len(message.hashes), HASH_SIZE)
        if odd or not 0 < count <= MAX_OFFER or message.first < 0:
            raise ValueError("an offer of an impossible length")
