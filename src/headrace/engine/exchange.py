"""How one chunk is asked for and received, in each phase."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from headrace.engine.lane import Lane
from headrace.errors import IntegrityError, ProtocolError, SourceChangedError, from_wire
from headrace.protocol.messages import PHASE_BASELINE, PHASE_BULK, READ_SIZE, Chunk, Data, Error, GetChunk, Read
from headrace.protocol.paths import RelPath
from headrace.storage.chunks import ZERO_HASH, new_hasher
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


class BulkExchange:
    """Phase 8: GetChunk and Chunk. checks: compare what arrives with its hash; else that hash is believed."""

    def __init__(self, *, checks: bool = True) -> None:
        self._checks = checks

    def request(self, lane: Lane, path: RelPath, version: bytes, offset: int, length: int) -> None:
        lane.post(GetChunk(lane.next_id(), bytes(path), version, offset, length))

    def receive(self, lane: Lane, length: int, buffer: memoryview, sink: Sink | None) -> tuple[bytes, bool]:
        answer, payload = lane.answer()
        if isinstance(answer, Error):
            raise from_wire(answer.code, answer.message)
        if not isinstance(answer, Chunk) or payload != (0 if answer.zero else length):
            raise ProtocolError("the host answered a request for a chunk with something else")
        if answer.zero:
            if answer.hash != ZERO_HASH(length):
                raise IntegrityError("a hole does not match its hash")
            return answer.hash, True
        hasher = new_hasher() if self._checks else None
        for position in range(0, length, PIECE):
            size = min(PIECE, length - position)
            start = 0 if len(buffer) < length else position
            piece = buffer[start : start + size]
            lane.messages.read_payload(piece)
            if hasher:
                hasher.update(piece)
            if sink:
                sink(position, piece)
        if hasher and hasher.digest() != answer.hash:
            raise IntegrityError("a chunk does not match its hash")
        return answer.hash, False


class BaselineExchange:
    """Phase 7: Reads of 128 KiB. There are no hashes on the wire; the one returned is of what arrived."""

    def request(self, lane: Lane, path: RelPath, version: bytes, offset: int, length: int) -> None:
        raw = bytes(path)
        for position in range(0, length, READ_SIZE):
            size = min(READ_SIZE, length - position)
            lane.post(Read(lane.next_id(), raw, offset + position, size, version))

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
            hasher.update(piece)
            if sink and not failure:
                sink(position, piece)
        if failure:
            raise from_wire(failure.code, failure.message)
        return hasher.digest(), False


EXCHANGES: Final[dict[int, Exchange]] = {PHASE_BASELINE: BaselineExchange(), PHASE_BULK: BulkExchange()}
# Where TLS alone protects the bytes. The baseline has no hashes to compare with.
UNCHECKED: Final[dict[int, Exchange]] = {**EXCHANGES, PHASE_BULK: BulkExchange(checks=False)}
