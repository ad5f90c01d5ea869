"""Answers GetBlocks and GetRanges: what a chunk is made of, and those pieces of it that the client does not have."""

from __future__ import annotations

from collections.abc import Iterator

from headrace.engine.buffers import Buffers
from headrace.errors import NotFoundError, ProtocolError
from headrace.protocol.messages import (
    CHUNK_SIZE,
    MAX_RANGES,
    READ_SIZE,
    VERSION_SIZE,
    Blocks,
    Chunk,
    GetBlocks,
    GetRanges,
)
from headrace.storage.blocks import (
    SAMPLE,
    block_sums,
    choose_marks,
    chunk_places,
    pack_places,
    pack_sums,
    sample_offsets,
)
from headrace.storage.chunks import chunk_count, chunk_range, hash_bytes, new_hasher
from headrace.storage.manifest import HashCache
from headrace.storage.source import SourceFile


def blocks_of(request: GetBlocks, source: SourceFile, cache: HashCache, buffers: Buffers) -> Blocks:
    """The answer; remembered, so that an unchanged file is read for it once. Raises what SourceFile.read_into raises,
    and NotFoundError where there is no such chunk."""
    index = request.chunk
    if index < 0:
        raise ProtocolError("a GetBlocks for a chunk before the first")
    if index >= chunk_count(source.size):
        raise NotFoundError("that chunk lies past the end of the file")
    known, marks = cache.blocks.chunk(source.version, index), _marks(source, cache)
    if known is None:
        offset, length = chunk_range(source.size, index)
        with buffers.acquire(length) as view:
            source.read_into(view, offset)
            known = pack_sums(block_sums(view)), pack_places(chunk_places(view, marks))
        if cache.settled(source):
            cache.blocks.put_chunk(source.version, index, *known)
    return Blocks(request.id, known[0], list(marks), known[1])


def _marks(source: SourceFile, cache: HashCache) -> tuple[bytes, ...]:
    """Remembered also for a file that may change unseen: a mark that is none any more is only found less often."""
    marks = cache.blocks.marks(source.version)
    if marks is None:
        samples = []
        for offset in sample_offsets(source.size):
            sample = memoryview(bytearray(min(SAMPLE, source.size - offset)))
            source.read_into(sample, offset)
            samples.append(sample)
        marks = tuple(choose_marks(samples))
        cache.blocks.put_marks(source.version, marks)
    return marks


def check_ranges(request: GetRanges) -> int:
    """Bytes in all. Raises ProtocolError for what a client may not ask."""
    ranges = request.ranges
    if not 0 < len(ranges) <= MAX_RANGES:
        raise ProtocolError(f"a GetRanges of {len(ranges)} ranges; 1 to {MAX_RANGES} are allowed")
    if len(request.version) != VERSION_SIZE:
        raise ProtocolError("a GetRanges with a version token that is none")
    end = 0
    for offset, length in ranges:
        if offset < end or length <= 0:
            raise ProtocolError("a GetRanges with ranges that are empty or not in order")
        end = offset + length
    total = sum(length for _, length in ranges)
    if total > CHUNK_SIZE:
        raise ProtocolError(f"a GetRanges of {total} bytes; the limit is {CHUNK_SIZE}")
    return total


def read_ranges(request: GetRanges, source: SourceFile, view: memoryview) -> Chunk:
    """Fills `view`, which has room for all of them, and gives the head of the answer."""
    position = 0
    for offset, length in request.ranges:
        source.read_into(view[position : position + length], offset)
        position += length
    return Chunk(request.id, hash_bytes(view))


def hash_ranges(request: GetRanges, source: SourceFile, buffers: Buffers) -> Chunk:
    """The head of the answer, for a client that is held back: it has one small buffer, and they are read twice."""
    hasher = new_hasher()
    with buffers.acquire(READ_SIZE) as view:
        for offset, length in steps(request):
            source.read_into(view[:length], offset)
            hasher.update(view[:length])
    return Chunk(request.id, hasher.digest())


def steps(request: GetRanges) -> Iterator[tuple[int, int]]:
    """The ranges, cut where they are longer than READ_SIZE."""
    for offset, length in request.ranges:
        for start in range(offset, offset + length, READ_SIZE):
            yield start, min(READ_SIZE, offset + length - start)
