"""Answers the requests of one session: listing, reading, hashing. One owner thread."""

from __future__ import annotations

import contextlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final

from headrace.engine.buffers import BufferPool, Buffers
from headrace.engine.compress import FileCompressor
from headrace.engine.packing import Packing
from headrace.errors import HeadraceError, NotFoundError, ProtocolError
from headrace.host.batch import answer_batch
from headrace.host.blocks import blocks_of, check_ranges, hash_ranges, read_ranges, steps
from headrace.host.courtesy import Shaping
from headrace.host.gate import PIECE, SMALL, Gate
from headrace.host.listing import fitting, listing, look, statfs
from headrace.host.watch import Watcher
from headrace.observe import metrics, tracing
from headrace.observe.times import Spent
from headrace.protocol.frames import encode_frame
from headrace.protocol.messages import (
    BULK_REQUESTS,
    CHUNK_SIZE,
    NOT_PACKED,
    PHASE_BULK,
    PUTS,
    READ_SIZE,
    Chunk,
    Data,
    GetBatch,
    GetBlocks,
    GetChunk,
    GetManifest,
    GetRanges,
    GetTimes,
    List,
    ListPart,
    Look,
    MalformedMessageError,
    ManifestPart,
    Message,
    Ping,
    Pong,
    Read,
    Stat,
    StatFs,
    StatReply,
    Times,
    Trace,
    Walk,
    Watch,
    wire_path,
)
from headrace.protocol.session import BATCH, BLOCKS, PUT, SPARSE, STATFS, TIMES, TRACE, WATCH, Agreed, error_message
from headrace.storage.chunks import ZERO_HASH, hash_bytes
from headrace.storage.manifest import HashCache, manifest
from headrace.storage.source import SourceCache, SourceFile
from headrace.storage.tree import SharedTree
from headrace.transport.framed import MessageStream

log = logging.getLogger("headrace.host")

SHORT: Final = 32 * 1024  # bytes; what a connection has a buffer of its own for
_MAX_ASKED: Final = 1024  # chunks of one connection; far more than are in flight when one of them is asked for again


@dataclass(slots=True)
class Served:
    """What a session gave so far."""

    requests: int = 0
    bytes: int = 0


class RequestHandler:
    """Answers in the order of the requests, on the stream they came from. Close it when the session ends."""

    # Names, not bound methods: those would tie the handler and its buffer into a cycle that outlives the session.
    _ANSWERS: Final[dict[type[Message], str]] = {
        Stat: "_stat",
        List: "_list",
        Walk: "_walk",
        Read: "_read",
        GetChunk: "_chunk",
        GetManifest: "_manifest",
        GetBatch: "_batch",
        GetBlocks: "_blocks",
        GetRanges: "_ranges",
        Ping: "_ping",
        Watch: "_watch",
        Look: "_look",
        StatFs: "_statfs",
        Trace: "_trace",
        GetTimes: "_times",
    }

    def __init__(
        self,
        tree: SharedTree,
        hashes: HashCache,
        stream: MessageStream,
        agreed: Agreed,
        buffers: Buffers | None = None,
        gate: Gate | None = None,
        watcher: Watcher | None = None,
        packing: Packing | None = None,
        times: Callable[[], tuple[Spent, float]] = lambda: (Spent(), 0.0),
    ) -> None:
        """gate: the share's, by which the small reads of one connection go before the bulk of others. watcher: the
        share's. packing: where both sides agreed on compression. times: where the time for this peer went, and its
        limit in bytes a second or 0."""
        self._tree = tree
        self._hashes = hashes
        self._stream = stream
        self._version = agreed.version
        self._sparse = SPARSE in agreed.features
        self._features = agreed.features
        self._peer = agreed.peer
        self._watcher = watcher or Watcher(tree)
        self._packing = packing
        self._sources = SourceCache(tree, times=stream.times)
        self._spent = times
        self.trace = tracing.fresh()  # the traceparent of what is asked here, or what the client said
        self._buffers = buffers or BufferPool()
        self._gate = gate or Gate()
        self._reader = self._gate.reader()
        self._sender = self._gate.sender()
        self._shaping: Shaping | None = None
        self._short = memoryview(bytearray(SHORT))
        self._asked: OrderedDict[tuple[bytes, int], None] = OrderedDict()
        self.served = Served()

    def handle(self, request: Message) -> None:
        """Sends the answer, or an Error that names the request. Raises what ends the connection."""
        if type(request) is GetChunk and 0 < request.length <= SHORT and self._short_chunk(request):
            return
        if isinstance(request, PUTS):
            self._need(PUT, request)
        answer = self._ANSWERS.get(type(request))
        if answer is None or (isinstance(request, BULK_REQUESTS) and self._version < PHASE_BULK):
            raise ProtocolError(
                f"the client sent {type(request).__name__}, which is no request in phase {self._version}"
            )
        self.served.requests += 1
        if self._packing:
            self._packing.begin()
        try:
            if isinstance(request, (Read, GetChunk)) and request.length <= SMALL:
                with metrics.RANDOM_READ.timing(), self._reader.reading(request.length):
                    getattr(self, answer)(request)
            else:
                getattr(self, answer)(request)
        except _Reported as why:
            self._stream.send(error_message(why.error, request.id))  # type: ignore[attr-defined]

    def close(self) -> None:
        self._sources.close()

    def _short_chunk(self, request: GetChunk) -> bool:
        """The usual case of a mount's random read, with as few calls as can be; whether it is one, and was answered.

        A file that is open and has no holes, a range that is no chunk, nothing compressed, nobody who measures.
        """
        length = request.length
        source = self._sources.known(request.path, request.version)
        if source is None or source.sparse or not 0 <= request.offset <= source.size - length:
            return False
        if _whole_chunk(source, request) is not None:  # its hash may be known
            return False
        if request.zstd != NOT_PACKED or self._version < PHASE_BULK or metrics.RANDOM_READ.wanted:
            return False
        stream, times = self._stream, self._stream.times
        view = self._short[:length]
        with self._reader.reading(length):
            try:
                source.read_small(view, request.offset)
            except (OSError, HeadraceError):
                return False  # and `_chunk` finds out what to say
            times.lap(times.disk)
            digest = hash_bytes(view)
            times.lap(times.hash)
            stream.send(Chunk(request.id, digest), view)
        self.served.requests += 1
        self.served.bytes += length
        return True

    def _stat(self, request: Stat) -> None:
        with _reporting():
            entry = self._tree.stat(wire_path(request.path))
        self._stream.send(StatReply(request.id, entry))

    def _list(self, request: List) -> None:
        self._send_in_turn(listing(request, self._tree))

    def _send_in_turn(self, answer: Iterator[Message]) -> None:
        """The last two leave together: a short directory is one record, and one system call on either side."""
        held: list[Message] = []
        try:
            while True:
                with _reporting():
                    message = next(answer, None)
                if message is None:
                    break
                held.append(message)
                if len(held) > 2:
                    self._stream.send(held.pop(0))
        except _Reported:
            self._stream.send_all(held)
            raise
        self._stream.send_all(held)

    def _walk(self, request: Walk) -> None:
        with _reporting():
            parts = self._tree.walk(wire_path(request.path))
        while True:
            with _reporting():
                part = next(parts, None)
            if part is None:
                break
            path, entries, error = part
            for piece in fitting(entries):
                self._stream.send(ListPart(request.id, bytes(path), piece, error=error.code if error else ""))
        self._stream.send(ListPart(request.id, request.path, [], last=True))

    def _read(self, request: Read) -> None:
        if not 0 <= request.length <= READ_SIZE or request.offset < 0:
            raise ProtocolError(f"a Read of {request.length} bytes at {request.offset}; the limit is {READ_SIZE}")
        with _reporting():
            source = self._sources.get(wire_path(request.path), request.version)
        with self._buffers.acquire(max(0, min(request.length, source.size - request.offset))) as view:
            with _reporting():
                source.read_into(view, request.offset)
            self._stream.send(Data(request.id), view)
            self.served.bytes += len(view)

    def _chunk(self, request: GetChunk) -> None:
        if not 0 < request.length <= CHUNK_SIZE or request.offset < 0:
            raise ProtocolError(f"a GetChunk of {request.length} bytes at {request.offset}; the limit is {CHUNK_SIZE}")
        with _reporting():
            source = self._sources.get(wire_path(request.path), request.version)
            if request.offset + request.length > source.size:
                raise NotFoundError("that range lies past the end of the file")
            hole = self._sparse and source.sparse and source.is_hole(request.offset, request.length)
        if hole:
            self._stream.send(Chunk(request.id, ZERO_HASH(request.length), zero=True))
            return
        plain = ""
        if self._packing and self._packing.wanted(request.zstd):
            compressor = self._packing.of_file(request.path)
            plain = compressor.declines(request.length, request.zstd, self._packing.link) or ""
            if not plain:
                self._chunk_packed(source, request, self._packing, compressor)
                return
        if (
            self._stream.clear and source.zero_copy and request.length > READ_SIZE
        ):  # below that, a system call more costs what it saves
            self._chunk_in_clear(source, request)
            return
        if request.length > READ_SIZE and self._stream.held_back:
            self._chunk_in_pieces(source, request, plain)
            return
        with self._buffers.acquire(request.length) as view:
            with _reporting():
                source.read_into(view, request.offset)
            digest = self._known_hash(source, request) or self._hash_of(source, request, view)
            with self._sending(request.length):
                self._send(Chunk(request.id, digest, packed=plain), view, request)
        self.served.bytes += request.length

    def _sending(self, count: int) -> AbstractContextManager[None]:
        """Around sending: how long it takes says whether compressing pays."""
        return self._packing.sending(count) if self._packing else contextlib.nullcontext()

    def _send(self, chunk: Chunk, payload: memoryview, request: GetChunk) -> None:
        if request.length > SMALL:
            self._send_giving_way(encode_frame(chunk, len(payload)), payload)
        else:
            self._stream.send(chunk, payload)

    def _chunk_packed(
        self, source: SourceFile, request: GetChunk, packing: Packing, compressor: FileCompressor
    ) -> None:
        """Part by part, each compressed if it is worth it. As in the clear, the client finds out by the hash whether
        the file is still the one that was hashed."""
        digest = self._hash_now(source, request)
        end, most = request.offset + request.length, packing.part
        for offset in range(request.offset, end, most):
            size = min(most, end - offset)
            with self._buffers.acquire(2 * size) as view:
                with _reporting():
                    source.read_into(view[:size], offset)
                payload, packed = compressor.pack(view[:size], view[size:], request.zstd, packing.link)
                with packing.sending(len(payload)):
                    self._send(Chunk(request.id, digest, size=size, packed=packed), payload, request)
        self.served.bytes += request.length

    def _send_giving_way(self, head: bytes, view: memoryview) -> None:
        """One frame, in pieces; between two of them small reads of other connections may go first."""
        stream = self._stream.stream
        start = 0
        while start < len(view):
            piece = view[start : start + self._next_piece()]
            with self._stream.times.sending:
                if start:
                    stream.send(piece)
                else:
                    stream.send(head, piece)
            start += len(piece)

    def _next_piece(self) -> int:
        """Before each piece of bulk: does what small reads need. How many bytes the piece may have at most."""
        gate = self._gate
        if gate.waiting:
            self._sender.give_way()
        if gate.latest is None:  # nobody ever read anything small: the usual case of a copy
            return PIECE
        if self._shaping is None:
            self._shaping = Shaping.of(self._stream.stream)
        return self._shaping.look(gate.clock(), gate.latest) or PIECE

    def _chunk_in_clear(self, source: SourceFile, request: GetChunk) -> None:
        """The bytes go from the file to the socket by themselves; they are only read here where the hash is not known.

        Whether the file is still the one that was hashed, the client finds out by the hash.
        """
        chunk = Chunk(request.id, self._hash_now(source, request), clear=True)
        clear, fd, end = self._stream.clear, source.fileno(), request.offset + request.length
        assert clear is not None
        head = encode_frame(chunk, request.length)
        with self._buffers.acquire(READ_SIZE) as view:  # for where sendfile cannot
            offset = request.offset
            while offset < end:
                count = min(self._next_piece(), end - offset)
                with self._stream.times.sending:
                    clear.send_file(head=head, fd=fd, offset=offset, count=count, buffer=view)
                head = b""
                offset += count
        self.served.bytes += request.length

    def _chunk_in_pieces(self, source: SourceFile, request: GetChunk, plain: str) -> None:
        """Who is held back by a rate limit holds a small buffer, not that of a chunk for as long as the chunk takes:
        a few such peers would have them all, and the others would wait. As in the clear, the client finds out by the
        hash whether the file is still the one that was hashed."""
        chunk, end = Chunk(request.id, self._hash_now(source, request), packed=plain), request.offset + request.length
        whole = [(offset, min(READ_SIZE, end - offset)) for offset in range(request.offset, end, READ_SIZE)]
        with self._sending(request.length):
            self._stream.send_pieces(chunk, request.length, self._pieces(source, whole))
        self.served.bytes += request.length

    def _pieces(self, source: SourceFile, ranges: Iterable[tuple[int, int]]) -> Iterator[memoryview]:
        """Their bytes, one piece for each (offset, length); zeros for what cannot be read any more, so that the stream
        stays in step."""
        for offset, length in ranges:
            with self._buffers.acquire(length) as view:
                try:
                    source.read_into(view, offset)
                except HeadraceError as why:
                    log.info("a file could not be read while it was sent: %s", why.message)
                    view[:] = bytes(len(view))
                self._next_piece()
                yield view

    def _hash_now(self, source: SourceFile, request: GetChunk) -> bytes:
        """The range's hash; a buffer for all of it is only taken where the hash is not known."""
        known = self._known_hash(source, request)
        if known is not None:
            return known
        with self._buffers.acquire(request.length) as view:
            with _reporting():
                source.read_into(view, request.offset)
            return self._hash_of(source, request, view)

    def _known_hash(self, source: SourceFile, request: GetChunk) -> bytes | None:
        """The remembered hash of a whole chunk. None where it is not known, or the client asks for it again.

        A file that is written through a memory map can change without a new version. What is remembered is wrong then,
        the client sees that and asks once more: now it has to be looked at.
        """
        index = _whole_chunk(source, request)
        if index is None:
            return None
        key = (source.version, index)
        again = key in self._asked
        self._asked[key] = None
        self._asked.move_to_end(key)
        if len(self._asked) > _MAX_ASKED:
            self._asked.popitem(last=False)
        return None if again else self._hashes.known(source, index)

    def _hash_of(self, source: SourceFile, request: GetChunk, view: memoryview) -> bytes:
        """The range's hash, computed; remembered where it is a whole chunk of the file."""
        with self._stream.times.hash:
            digest = hash_bytes(view)
        index = _whole_chunk(source, request)
        if index is not None:
            self._hashes.remember(source, index, digest)
        return digest

    def _manifest(self, request: GetManifest) -> None:
        with _reporting():
            source = self._sources.get(wire_path(request.path), request.version)
        parts = manifest(source, source.size, self._hashes)
        end = 0
        while True:
            with _reporting():
                part = next(parts, None)
            if part is None:
                break
            first, hashes = part
            end = first + len(hashes)
            self._stream.send(ManifestPart(request.id, first, b"".join(hashes)))
        self._stream.send(ManifestPart(request.id, end, b"", last=True))

    def _batch(self, request: GetBatch) -> None:
        self._need(BATCH, request)
        packing = self._packing if self._packing and self._packing.wanted(request.zstd) else None
        self.served.bytes += answer_batch(request, self._tree, self._stream, self._buffers, self._next_piece, packing)

    def _blocks(self, request: GetBlocks) -> None:
        self._need(BLOCKS, request)
        with _reporting():
            source = self._sources.get(wire_path(request.path), request.version)
            blocks = blocks_of(request, source, self._hashes, self._buffers)
        self._stream.send(blocks)

    def _ranges(self, request: GetRanges) -> None:
        self._need(BLOCKS, request)
        total = check_ranges(request)
        with _reporting():
            source = self._sources.get(wire_path(request.path), request.version)
            if sum(request.ranges[-1]) > source.size:
                raise NotFoundError("that range lies past the end of the file")
        if total > READ_SIZE and self._stream.held_back:
            with _reporting():
                chunk = hash_ranges(request, source, self._buffers)
            with self._sending(total):
                self._stream.send_pieces(chunk, total, self._pieces(source, steps(request)))
        else:
            with self._buffers.acquire(total) as view:
                with _reporting():
                    chunk = read_ranges(request, source, view)
                with self._sending(total):
                    self._send_giving_way(encode_frame(chunk, total), view)
        self.served.bytes += total

    def _watch(self, request: Watch) -> None:
        self._need(WATCH, request)
        with _reporting():
            watch = self._watcher.subscribe(self._peer)
        with watch:
            for message in watch.changes(request.id):
                self._stream.send(message)

    def _look(self, request: Look) -> None:
        self._need(WATCH, request)
        self._send_in_turn(look(request, self._tree, self._watcher, self._peer))

    def _statfs(self, request: StatFs) -> None:
        self._need(STATFS, request)
        with _reporting():
            reply = statfs(request, self._tree)
        self._stream.send(reply)

    def _trace(self, request: Trace) -> None:
        self._need(TRACE, request)
        if tracing.parse(request.context):
            self.trace = request.context

    def _times(self, request: GetTimes) -> None:
        self._need(TIMES, request)
        spent, limit = self._spent()
        self._stream.send(Times(request.id, *spent, limit=limit))

    def _need(self, feature: str, request: Message) -> None:
        if feature not in self._features:
            raise ProtocolError(f"the client sent {type(request).__name__}, which nobody agreed to")

    def _ping(self, request: Ping) -> None:
        self._stream.send(Pong(request.id))


def _whole_chunk(source: SourceFile, request: GetChunk) -> int | None:
    """The number of the chunk that the range is; None where it is another range."""
    index, within = divmod(request.offset, CHUNK_SIZE)
    return None if within or request.length != min(CHUNK_SIZE, source.size - request.offset) else index


class _Reported(Exception):
    """Wraps an error that is the answer to a request, to tell it from one that ends the connection."""

    def __init__(self, error: HeadraceError) -> None:
        self.error = error


class _reporting:  # a context manager, used as a verb
    """What fails inside, on the host's disk, is told to the peer; failures of the connection happen outside."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, MalformedMessageError):
            raise ProtocolError(f"the client sent {error}") from error
        if isinstance(error, HeadraceError) and not isinstance(error, ProtocolError):
            raise _Reported(error) from error
