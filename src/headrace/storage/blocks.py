"""What a chunk is made of: sums of its blocks, and marks by which a place is known again after what is before it moved.

Both are hints. They say where to look; whether the right bytes were found is for the chunk's hash. So a sum need not be
strong, and is what is cheapest to compute. Sizes and offsets in bytes. Pure, but for the cache, which is thread-safe.
"""

from __future__ import annotations

import heapq
import re
import struct
import sys
import threading
import zlib
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Final, Literal

from headrace.protocol.messages import BLOCK_SIZE, KIB, MARK_SPAN, MAX_MARKS, MIB

MARK_LENGTHS: Final = (2, 4, 8)  # bytes; the next one is tried where none of the one before will do
MARKS: Final = 2  # that are looked for in one file
SAMPLES: Final = 64  # pieces of a file, by which marks are chosen
SAMPLE: Final = 4 * KIB
# In how many of 32 samples a mark may occur, the best number first. Of a pair half of the positions are looked at, so 3
# is once in 22 KiB.
_RATING: Final = {3: 0, 4: 1, 2: 2, 5: 3, 6: 4, 7: 5, 8: 6}
_HEAP: Final = 4  # times as often as in so many samples once: it comes in heaps
_TRIED: Final = 50
_FORMATS: Final[dict[int, Literal["H", "I", "Q"]]] = {2: "H", 4: "I", 8: "Q"}
_MARKS_OF_FILE: Final = -1  # in the place of a chunk's number
_DENSE: Final = 1024  # a mark that is found more often in a MiB is no mark there

MAX_CACHED: Final = 32 * MIB  # of sums and places: 26 GiB of files and more
_COST: Final = 256  # of a chunk in the cache, beside them

Place = tuple[int, int]  # offset, CRC-32 of the MARK_SPAN bytes from there on


def block_sums(data: memoryview) -> list[int]:
    """CRC-32 of each block; the last one may be shorter."""
    crc32 = zlib.crc32
    return [crc32(data[start : start + BLOCK_SIZE]) for start in range(0, len(data), BLOCK_SIZE)]


def places_of(data: memoryview, marks: Sequence[bytes]) -> Iterator[Place]:
    """Where the marks begin in `data`, one mark after the other. Not those at its very end, whose span is not whole."""
    crc32, last = zlib.crc32, len(data) - MARK_SPAN
    most = _DENSE * -(-len(data) // MIB)
    for mark in marks:
        for found in islice(re.compile(re.escape(mark)).finditer(data), most):
            start = found.start()
            if start <= last:
                yield start, crc32(data[start : start + MARK_SPAN])


def chunk_places(data: memoryview, marks: Sequence[bytes]) -> list[Place]:
    """Those of one chunk that are told: in order, and where there are too many, the same ones for the same content."""
    found = list(places_of(data, marks))
    if len(found) > MAX_MARKS:
        found = sorted(found, key=lambda place: place[1])[:MAX_MARKS]
    return sorted(found)


def pack_sums(sums: Sequence[int]) -> bytes:
    return struct.pack(f">{len(sums)}I", *sums)


def unpack_sums(raw: bytes, length: int) -> tuple[int, ...]:
    """The sums of a chunk of `length` bytes. Raises ValueError."""
    count = -(-length // BLOCK_SIZE)
    if len(raw) != 4 * count:
        raise ValueError("as many sums as the chunk has blocks")
    return struct.unpack(f">{count}I", raw)


def pack_places(places: Sequence[Place]) -> bytes:
    return struct.pack(f">{2 * len(places)}I", *(number for place in places for number in place))


def unpack_places(raw: bytes, length: int) -> list[Place]:
    """The places in a chunk of `length` bytes. Raises ValueError."""
    if len(raw) % 8 or len(raw) > 8 * MAX_MARKS:
        raise ValueError("two numbers a place, and not too many")
    numbers = struct.unpack(f">{len(raw) // 4}I", raw)
    places = list(zip(numbers[::2], numbers[1::2], strict=True))
    if any(start + MARK_SPAN > length for start, _ in places):
        raise ValueError("places inside of the chunk")
    return places


def check_marks(marks: Sequence[bytes]) -> None:
    """Raises ValueError for marks that nobody may send."""
    if len(marks) > MARKS or not all(MARK_LENGTHS[0] <= len(mark) <= MARK_LENGTHS[-1] for mark in marks):
        raise ValueError("at most two marks of 2 to 8 bytes")


def sample_offsets(size: int) -> list[int]:
    """Where the samples of a file of `size` bytes begin: spread over all of it."""
    if size < SAMPLES * SAMPLE:
        return list(range(0, size, SAMPLE))
    step = size // SAMPLES
    # Every other one at an odd place: what is aligned in the file is seen at both.
    return [number * step + number % 2 for number in range(SAMPLES)]


def choose_marks(samples: Sequence[memoryview]) -> list[bytes]:
    """Byte strings that occur here and there in a file: once in some tens of KiB, and not in heaps. One for each half
    of it, as they may be of different kinds.

    Random bytes have each pair once in 64 KiB. In text and in programs some pairs or quadruples are as rare as that. A
    file that is all one byte has none.
    """
    middle = -(-len(samples) // 2)
    found = (_choose_mark(half) for half in (samples[:middle], samples[middle:]))
    return list(dict.fromkeys(mark for mark in found if mark))


def _choose_mark(samples: Sequence[memoryview]) -> bytes | None:
    for length in MARK_LENGTHS:
        within: Counter[int] = Counter()
        for sample in samples:
            within.update(set(sample[: len(sample) // length * length].cast(_FORMATS[length]).tolist()))
        rated = ((_RATING[count], word, count) for word, count in within.items() if count in _RATING)
        for _, word, count in heapq.nsmallest(_TRIED, rated):
            mark = word.to_bytes(length, sys.byteorder)
            often = sum(sample.tobytes().count(mark) for sample in samples)
            if often <= _HEAP * count and mark != mark[:1] * length:
                return mark
    return None


class BlockCache:
    """What Blocks says of chunks, by the version token of their files. Thread-safe; the least recently used go first.

    limit: bytes.
    """

    def __init__(self, limit: int = MAX_CACHED) -> None:
        self._limit = limit
        self._held = 0
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[bytes, int], tuple[bytes, ...]] = OrderedDict()

    def marks(self, version: bytes) -> tuple[bytes, ...] | None:
        """The marks of a file; None where they are not known."""
        return self._get((version, _MARKS_OF_FILE))

    def put_marks(self, version: bytes, marks: Sequence[bytes]) -> None:
        self._put((version, _MARKS_OF_FILE), tuple(marks))

    def chunk(self, version: bytes, index: int) -> tuple[bytes, bytes] | None:
        """The sums and places of a chunk, packed; None where they are not known."""
        known = self._get((version, index))
        return (known[0], known[1]) if known else None

    def put_chunk(self, version: bytes, index: int, sums: bytes, places: bytes) -> None:
        self._put((version, index), (sums, places))

    def _get(self, key: tuple[bytes, int]) -> tuple[bytes, ...] | None:
        with self._lock:
            found = self._known.get(key)
            if found is not None:
                self._known.move_to_end(key)
            return found

    def _put(self, key: tuple[bytes, int], value: tuple[bytes, ...]) -> None:
        with self._lock:
            self._held += _weight(value) - (_weight(self._known[key]) if key in self._known else 0)
            self._known[key] = value
            self._known.move_to_end(key)
            while self._held > self._limit:
                self._held -= _weight(self._known.popitem(last=False)[1])


def _weight(value: tuple[bytes, ...]) -> int:
    return _COST + sum(map(len, value))
