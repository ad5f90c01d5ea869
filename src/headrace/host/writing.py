"""Answers the requests of one stream that write into the share. One owner thread; close it when the stream ends.

The client is not trusted: what a request says is checked before its payload is read, the payload goes through a buffer
of bounded size, and nothing counts before its hash is right.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from headrace.engine.buffers import Buffers
from headrace.engine.unpack import Unpacker, check_part
from headrace.errors import (
    ConnectionLostError,
    HeadraceError,
    LocalDiskError,
    LocalFileError,
    ProtocolError,
    RefusedError,
    RemoteDiskError,
    RemoteFileError,
    SourceChangedError,
)
from headrace.host.arriving import Arriving
from headrace.host.incoming import Incoming, Small, Transfer
from headrace.observe import tracing
from headrace.protocol.messages import (
    HASH_SIZE,
    MAX_PUT_FILES,
    PUTS_WITH_PAYLOAD,
    ZSTD_PACKED,
    AnyPut,
    MalformedMessageError,
    Message,
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
    wire_path,
)
from headrace.protocol.session import error_message
from headrace.storage.chunks import ZERO_HASH, Hasher, chunk_range, hash_bytes, new_hasher
from headrace.transport.framed import PIECE, MessageStream

log = logging.getLogger("headrace.host")

_ROOM_FOR_REASONS: Final = 128 * 1024  # bytes of an answer for the sentences why items failed
# What ends the connection, and is no answer.
_NOT_THEIRS: Final = (ProtocolError, ConnectionLostError)
_CUT: Final = "and more failed in the same request"


@dataclass(slots=True)
class _Assembly:
    """A chunk that comes in parts on this stream. end: of what came."""

    arriving: Arriving
    chunk: int
    digest: bytes
    hasher: Hasher
    end: int


class Writing:
    """See the module."""

    _ANSWERS: Final[dict[type[Message], str]] = {
        PutBegin: "_begin",
        PutNames: "_names",
        PutAttributes: "_attributes",
        PutFiles: "_files",
        PutOpen: "_open",
        PutOffer: "_offer",
        PutChunk: "_chunk",
        PutCommit: "_commit",
        PutLeave: "_leave",
        PutEnd: "_end",
    }

    def __init__(
        self, incoming: Incoming, stream: MessageStream, peer: bytes, buffers: Buffers, *, unpacks: bool
    ) -> None:
        """peer: whose stream it is. unpacks: both sides agreed on compression."""
        self._incoming = incoming
        self._stream = stream
        self._peer = peer
        self._buffers = buffers
        self._unpacks = unpacks
        self._unpacker = Unpacker()
        self._used: set[Arriving] = set()
        self._assembly: _Assembly | None = None
        self._broken: tuple[Arriving, int] | None = None  # a chunk of which a part failed: the others do as well
        self._left = 0  # bytes of the payload at hand that were not taken
        self.holds = False  # a buffer, while it waits for a payload
        self.bytes = 0  # of chunks and files that came, as they crossed the network
        self.files = 0  # that got their names

    def handle(self, request: AnyPut, payload: int) -> None:
        """Sends the answer, or an Error that names the request. Raises what ends the connection."""
        if payload and not isinstance(request, PUTS_WITH_PAYLOAD):
            raise ProtocolError("a request with a payload that has none")
        try:
            check_put(request)
        except ValueError as why:
            raise ProtocolError(f"the client sent {why}") from why
        self._left = payload
        transfer = self._incoming.writers.transfer(self._peer, request.transfer, begins=isinstance(request, PutBegin))
        try:
            answer: Message = getattr(self, self._ANSWERS[type(request)])(request, transfer)
        except MalformedMessageError as why:
            raise ProtocolError(f"the client sent {why}") from why
        except _NOT_THEIRS:
            raise
        except HeadraceError as why:
            self._stream.skip_payload()  # what is left of it
            if isinstance(request, PutChunk) and (mine := self._assembly):
                self._broken, self._assembly = (mine.arriving, mine.chunk), None
            answer = error_message(_for_client(why), request.id)
        self._stream.send(answer)

    def close(self) -> None:
        for arriving in self._used:
            self._incoming.leave(self, arriving)
        self._used.clear()

    # ---- many at once ------------------------------------------------------------------------------------------------

    def _begin(self, request: PutBegin, transfer: Transfer) -> Message:
        return PutReady(request.id, self._incoming.run)

    def _names(self, request: PutNames, transfer: Transfer) -> Message:
        items = _Items()
        with self._stream.times.disk:
            for number, (raw, entry) in enumerate(zip(request.paths, request.entries, strict=True)):
                with items.trying(number):
                    if self._incoming.make(wire_path(raw), entry, replace=request.replace):
                        items.made.append(number)
        return items.answer(request.id)

    def _attributes(self, request: PutAttributes, transfer: Transfer) -> Message:
        items = _Items()
        with self._stream.times.disk:
            for number, (raw, entry) in enumerate(zip(request.paths, request.entries, strict=True)):
                with items.trying(number):
                    self._incoming.set_attributes(wire_path(raw), entry)
        return items.answer(request.id)

    def _files(self, request: PutFiles, transfer: Transfer) -> Message:
        total = sum(entry.size for entry in request.entries)
        if total > MAX_PUT_FILES or any(entry.kind != "f" for entry in request.entries):
            raise ProtocolError(f"files of {total} bytes in one request; the limit is {MAX_PUT_FILES}")
        self._check_packed(request.packed, total)
        items = _Items()
        with self._buffers.acquire(max(1, total)) as view:
            data = view[:total]
            self._receive(request.packed, data)
            with self._stream.times.hash:
                if hash_bytes(data) != request.hash:
                    raise SourceChangedError("what arrived does not match its hash")
            files: list[Small] = []
            start = 0
            for raw, entry in zip(request.paths, request.entries, strict=True):
                files.append((wire_path(raw), entry, data[start : start + entry.size]))
                start += entry.size
            with self._stream.times.disk:
                became = self._incoming.write_small(transfer, files, replace=request.replace)
        for number, became_of_it in enumerate(became):
            if isinstance(became_of_it, HeadraceError):
                items.failed(number, became_of_it)
            else:
                self.files += 1
                if became_of_it:
                    items.replaced.append(number)
        return items.answer(request.id)

    # ---- one file in chunks ------------------------------------------------------------------------------------------

    @tracing.traced("put open")
    def _open(self, request: PutOpen, transfer: Transfer) -> Message:
        path, old = wire_path(request.path), wire_path(request.old)
        with self._stream.times.disk:
            arriving = self._incoming.open(self, self._peer, path, request.entry, old=old, compare=request.compare)
            self._used.add(arriving)
            return PutOpened(
                request.id,
                held=arriving.held(),
                offer=arriving.wants_offers(),
                there=arriving.there,
                others=self._incoming.others(arriving),
            )

    def _find(self, request: PutOffer | PutChunk | PutCommit | PutLeave) -> Arriving:
        key = self._peer, wire_path(request.path), request.version
        arriving = self._incoming.find(self, key)
        self._used.add(arriving)
        return arriving

    def _offer(self, request: PutOffer, transfer: Transfer) -> Message:
        arriving = self._find(request)
        raw = request.hashes
        hashes = [raw[start : start + HASH_SIZE] for start in range(0, len(raw), HASH_SIZE)]
        with self._stream.times.disk:
            return PutWanted(request.id, arriving.offer(request.first, hashes))

    def _chunk(self, request: PutChunk, transfer: Transfer) -> Message:
        arriving = self._find(request)
        if not 0 <= request.chunk < arriving.count:
            raise ProtocolError("the client sent a chunk past the end of its file")
        offset, length = chunk_range(arriving.entry.size, request.chunk)
        if request.zero:
            if self._left or request.at or request.hash != ZERO_HASH(length):
                raise ProtocolError("the client sent a chunk of zeros that is none")
            with self._stream.times.disk:
                arriving.write_zeros(offset, length)
                arriving.complete(request.chunk, request.hash)
            return PutStored(request.id)
        size = request.size or self._left
        if request.at < 0 or not 0 < size <= length - request.at:
            raise ProtocolError("the client sent bytes past the end of a chunk")
        self._check_packed(request.packed, size)
        assembly = self._assembled(arriving, request)
        self._write(assembly, request, offset, size)
        if assembly.end < length:
            return PutStored(request.id)
        self._assembly = None
        if assembly.hasher.digest() != request.hash:
            raise SourceChangedError("what arrived does not match its hash")
        known = arriving.knows(request.hash)
        with self._stream.times.disk:
            arriving.complete(request.chunk, request.hash)
        return PutStored(request.id, known=known)

    def _assembled(self, arriving: Arriving, request: PutChunk) -> _Assembly:
        if request.at and self._broken == (arriving, request.chunk):
            raise RefusedError("a part of that chunk failed before this one")
        if request.at == 0:
            self._broken = None
            self._assembly = _Assembly(arriving, request.chunk, request.hash, new_hasher(), 0)
        mine = self._assembly
        if mine is None or (mine.arriving, mine.chunk, mine.digest, mine.end) != (
            *(arriving, request.chunk, request.hash),
            request.at,
        ):
            self._assembly = None
            raise ProtocolError("the client sent the parts of a chunk out of their order")
        return mine

    def _write(self, assembly: _Assembly, request: PutChunk, offset: int, size: int) -> None:
        """Piece by piece: each is written while it is in the cache, and no more than one is held."""
        times, position, end = self._stream.times, request.at, request.at + size
        with self._buffers.acquire(min(PIECE, size)) as view:
            while position < end:
                piece = view[: min(PIECE, end - position)]
                self._receive(request.packed, piece)
                with times.hash:
                    assembly.hasher.update(piece)
                with times.disk:
                    assembly.arriving.write(offset + position, piece)
                position += len(piece)
        assembly.end = end

    @tracing.traced("put commit")
    def _commit(self, request: PutCommit, transfer: Transfer) -> Message:
        arriving = self._find(request)
        with self._stream.times.disk:
            replaced = self._incoming.commit(arriving, transfer, arriving.entry, replace=request.replace)
        self._used.discard(arriving)
        self.files += 1
        return PutCommitted(request.id, others=self._incoming.others(arriving), replaced=replaced)

    def _leave(self, request: PutLeave, transfer: Transfer) -> Message:
        with contextlib.suppress(HeadraceError):
            arriving = self._find(request)
            self._used.discard(arriving)
            self._incoming.leave(self, arriving, discard=request.discard)
        return PutDone(request.id)

    def _end(self, request: PutEnd, transfer: Transfer) -> Message:
        if request.sync:
            with self._stream.times.disk:
                self._incoming.settle(transfer)
        return PutEnded(request.id, self._incoming.run, [bytes(path) for path in transfer.lost])

    # ---- payloads ----------------------------------------------------------------------------------------------------

    def _check_packed(self, packed: str, length: int) -> None:
        """Whether the payload at hand can stand for `length` bytes. ProtocolError."""
        check_part(packed, self._left, length, asked=self._unpacks)

    def _receive(self, packed: str, into: memoryview) -> None:
        """The next of the payload; a compressed one whole."""
        if not len(into):
            return
        self.holds = True
        try:
            if packed == ZSTD_PACKED:
                count, self._left = self._left, 0
                self._unpacker.receive(self._stream, count, into)
            else:
                count = len(into)
                self._stream.read_payload(into)
                self._left -= count
        finally:
            self.holds = False
        self.bytes += count
        self._incoming.received.add(count)


class _Items:
    """What became of the items of one request."""

    def __init__(self) -> None:
        self.made: list[int] = []
        self.replaced: list[int] = []
        self._failed: list[int] = []
        self._codes: list[str] = []
        self._texts: list[str] = []
        self._room = _ROOM_FOR_REASONS

    @contextlib.contextmanager
    def trying(self, number: int) -> Iterator[None]:
        """What fails inside is told of that item, unless it ends the whole."""
        try:
            yield
        except _NOT_THEIRS:
            raise
        except HeadraceError as why:
            if isinstance(why, LocalDiskError) and not isinstance(why, LocalFileError):
                raise  # the disk takes nothing more at all
            self.failed(number, why)

    def failed(self, number: int, why: HeadraceError) -> None:
        error = _for_client(why)
        text = error.message if len(error.message) < self._room else _CUT
        self._room -= len(text)
        self._failed.append(number)
        self._codes.append(error.code)
        self._texts.append(text)

    def answer(self, id: int) -> Message:
        return PutDone(id, self.made, self.replaced, self._failed, self._codes, self._texts)


def _for_client(error: HeadraceError) -> HeadraceError:
    """What is this disk's trouble is the host's to the client."""
    if isinstance(error, LocalFileError):
        return RemoteFileError(f"on the host: {error.message}")
    if isinstance(error, LocalDiskError):
        return RemoteDiskError(f"on the host: {error.message}")
    return error
