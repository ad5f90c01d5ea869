"""How one chunk is asked for and received, in each phase."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from headrace.engine.lane import Lane
from headrace.engine.ramcache import new_buffer
from headrace.engine.unpack import check_part
from headrace.errors import IntegrityError, ProtocolError, SourceChangedError, from_wire
from headrace.observe.metrics import VERIFY_FAILURES
from headrace.protocol.messages import (
    MAX_PART,
    NOT_PACKED,
    PHASE_BASELINE,
    PHASE_BULK,
    READ_SIZE,
    ZSTD_PACKED,
    Chunk,
    Data,
    Error,
    GetChunk,
    Read,
)
from headrace.protocol.paths import RelPath
from headrace.storage.chunks import ZERO_HASH, hash_bytes, new_hasher
from headrace.transport.framed import PIECE

Sink = Callable[[int, memoryview], None]


class Exchange(Protocol):
    """Asks for a range of a file and receives it. Answers come in the order of the requests."""

    def request(self, lane: Lane, path: RelPath, version: bytes, offset: int, length: int) -> None:
        """Posts the request(s) for `length` bytes (at most CHUNK_SIZE) at `offset`."""

    def receive(self, lane: Lane, length: int, buffer: memoryview, sink: Sink | None) -> tuple[bytes, bool]:
        """Receives one range. The answer: its hash, verified, and whether it is all zeros and nothing was received.

        The range lies in buffer[:length] afterwards. With a sink, each piece is given to it as (position within the
        range, bytes) while it is hot in the cache and before the whole is verified; the buffer may also be shorter,
        PIECE bytes, and holds one piece after the other. Whatever is raised for what the host answered (from_wire
        errors, IntegrityError), the lane stays usable; after ProtocolError, ConnectionLostError or an error of the sink
        it does not: a sink that can fail for one file alone keeps that to itself until the range was received.
        """

    def fetch(self, lane: Lane, path: bytes, version: bytes, offset: int, length: int) -> tuple[memoryview, bytes]:
        """One range in memory of its own, and its hash, on a lane that has nothing else under way.

        path: as on the wire. Raises as `receive`."""


class BulkExchange:
    """Phase 8: GetChunk and Chunk. checks: compare what arrives with its hash; else that hash is believed."""

    def __init__(self, *, checks: bool = True) -> None:
        self._checks = checks

    def request(self, lane: Lane, path: RelPath, version: bytes, offset: int, length: int) -> None:
        lane.post(GetChunk(lane.next_id(), bytes(path), version, offset, length, lane.zstd))

    def fetch(self, lane: Lane, path: bytes, version: bytes, offset: int, length: int) -> tuple[memoryview, bytes]:
        answer, payload = lane.ask(GetChunk(lane.next_id(), path, version, offset, length, lane.zstd))
        if payload == length and type(answer) is Chunk and not (answer.zero or answer.packed or answer.size):
            view = lane.messages.take_payload()
            if view is not None:  # small, so it came with its head, and where it lies it can stay
                lane.answered()
                digest = hash_bytes(view) if self._checks else answer.hash
                lane.times.lap(lane.times.hash)
                if digest != answer.hash:
                    VERIFY_FAILURES.add()
                    raise IntegrityError("a chunk does not match its hash")
                return view, digest
        lane.put_back(answer, payload)
        buffer = new_buffer(length)
        return buffer, self.receive(lane, length, buffer, None)[0]

    def receive(self, lane: Lane, length: int, buffer: memoryview, sink: Sink | None) -> tuple[bytes, bool]:
        answer, payload = _chunk(lane, length)
        if answer.zero:
            lane.answered()
            if answer.hash != ZERO_HASH(length):
                VERIFY_FAILURES.add()
                raise IntegrityError("a hole does not match its hash")
            return answer.hash, True
        hasher = new_hasher() if self._checks else None
        digest, done = answer.hash, 0
        while True:
            end = done + (answer.size or length - done)
            if end == length:
                lane.answered()
            for position in range(done, end, PIECE):
                start = 0 if len(buffer) < length else position
                piece = buffer[start : start + min(PIECE, end - position)]
                came = _read(lane, answer, payload, piece)
                if hasher:
                    with lane.times.hash:
                        hasher.update(piece)
                if sink:
                    lane.counters.arrived(came, len(piece), answer.packed if position == done else "")
                    sink(position, piece)
            if end == length:
                break
            done = end
            answer, payload = _chunk(lane, length - done, digest)
        if hasher and hasher.digest() != digest:
            VERIFY_FAILURES.add()
            raise IntegrityError("a chunk does not match its hash")
        return digest, False


def _chunk(lane: Lane, left: int, digest: bytes | None = None) -> tuple[Chunk, int]:
    """The head of an answer, or of its next part, and the length of its payload; checked against what was asked for, of
    which `left` bytes are missing. digest: what the parts before said is the hash."""
    answer, payload = lane.part()
    if isinstance(answer, Error):
        lane.answered()
        raise from_wire(answer.code, answer.message)
    if not isinstance(answer, Chunk):
        raise ProtocolError("the host answered a request for a chunk with something else")
    if answer.zero and digest is None:
        check_part("", payload, 0, asked=False)
        return answer, payload
    whole = answer.size == 0
    if (whole and digest is not None) or not 0 <= answer.size <= left or digest not in (None, answer.hash):
        raise ProtocolError("the host sent parts of a chunk that do not fit together")
    if not whole and not (lane.zstd and answer.size <= MAX_PART):
        raise ProtocolError("the host sent a chunk in parts that nobody asked for")
    check_part(answer.packed, payload, answer.size or left, asked=lane.zstd != NOT_PACKED and not whole)
    return answer, payload


def _read(lane: Lane, answer: Chunk, payload: int, piece: memoryview) -> int:
    """The next piece of a chunk: as much of the payload, or all of it, decompressed. How many bytes that were."""
    if answer.packed == ZSTD_PACKED:
        lane.unpacker.receive(lane.messages, payload, piece)
        return payload
    lane.messages.read_payload(piece)
    return len(piece)


class BaselineExchange:
    """Phase 7: Reads of 128 KiB. There are no hashes on the wire; the one returned is of what arrived."""

    def request(self, lane: Lane, path: RelPath, version: bytes, offset: int, length: int) -> None:
        raw = bytes(path)
        for position in range(0, length, READ_SIZE):
            size = min(READ_SIZE, length - position)
            lane.post(Read(lane.next_id(), raw, offset + position, size, version))

    def fetch(self, lane: Lane, path: bytes, version: bytes, offset: int, length: int) -> tuple[memoryview, bytes]:
        self.request(lane, RelPath.parse(path), version, offset, length)
        buffer = new_buffer(length)
        return buffer, self.receive(lane, length, buffer, None)[0]

    def receive(self, lane: Lane, length: int, buffer: memoryview, sink: Sink | None) -> tuple[bytes, bool]:
        hasher = new_hasher()
        failure: Error | None = None
        for position in range(0, length, READ_SIZE):
            size = min(READ_SIZE, length - position)
            answer, payload = lane.answer()
            if isinstance(answer, Error):
                failure = failure or answer
                continue
            if not isinstance(answer, Data) or payload > size:
                raise ProtocolError("the host answered a Read with something else")
            if payload < size:
                lane.messages.skip_payload()
                failure = failure or Error(answer.id, SourceChangedError.code, "the file is shorter than it was")
                continue
            start = 0 if len(buffer) < length else position
            piece = buffer[start : start + size]
            lane.messages.read_payload(piece)
            with lane.times.hash:
                hasher.update(piece)
            if sink and not failure:
                lane.counters.arrived(size, size, "")
                sink(position, piece)
        if failure:
            raise from_wire(failure.code, failure.message)
        return hasher.digest(), False


EXCHANGES: Final[dict[int, Exchange]] = {PHASE_BASELINE: BaselineExchange(), PHASE_BULK: BulkExchange()}
# Where TLS alone protects the bytes. The baseline has no hashes to compare with.
UNCHECKED: Final[dict[int, Exchange]] = {**EXCHANGES, PHASE_BULK: BulkExchange(checks=False)}
