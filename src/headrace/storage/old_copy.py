"""A file that is to be replaced, searched for what the new one has in common with it. Sizes and offsets in bytes.

The new file is looked at chunk by chunk. A shift says how much further back a piece lies in the old copy: it was at
`offset + shift`. What was inserted or removed changes the shift of all that follows, so the shift of the last piece
found is tried first, then those that the marks of the chunk speak for.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

from headrace.protocol.messages import BLOCK_SIZE, KIB, MARK_SPAN, MIB
from headrace.storage.blocks import Place, block_sums, places_of
from headrace.storage.rawio import pread_all

MAX_KNOWN: Final = 131_072  # places in the old copy: some 20 MB, and those of about 8 GiB of random bytes
AHEAD: Final = 64 * MIB  # how far beyond the place in hand marks are looked for; more where chunks are not found
SEGMENT: Final = 256 * KIB  # of a chunk, in which the same shifts are tried
MAX_SHIFTS: Final = 8  # in one segment
_PIECE: Final = MIB  # bytes read at once while marks are looked for

NOWHERE: Final = -1
Run = tuple[int, int, int | None]  # offset in the new file, length, offset in the old one; None: zeros
_ZEROS: Final = block_sums(memoryview(bytes(BLOCK_SIZE)))[0]


class OldCopy:
    """One owner thread; close it. Reading raises OSError. The file may change at any time: what was found is right only
    if its hash says so.

    stop: asked between two pieces of a long search. shift: that of what was found last.
    """

    def __init__(self, fd: int, stop: Callable[[], bool] = lambda: False) -> None:
        """Takes `fd` over."""
        self._fd = fd
        self._stop = stop
        self._size = os.fstat(fd).st_size
        self._buffer = memoryview(bytearray(max(SEGMENT, _PIECE)))
        self._marks: tuple[bytes, ...] = ()
        self._known: dict[int, int] = {}  # the check of a place, and where it is; the oldest first
        self._scanned = 0
        self._ahead = AHEAD
        self.shift = 0

    def read(self, into: memoryview, offset: int) -> bool:
        """Whether there are as many bytes at `offset` as `into` has room for; it holds them then."""
        return 0 <= offset <= self._size - len(into) and pread_all(self._fd, into, offset) == len(into)

    def search(
        self, offset: int, length: int, sums: Sequence[int], marks: Sequence[bytes], places: Sequence[Place]
    ) -> list[Run]:
        """What of the chunk at `offset` is here, in order. sums, marks, places: as the host has them; see blocks."""
        found = self._find(offset, length, sums, places)
        if _lengths(found) < length - length // 16 and self._look_for_marks(marks, offset + length):
            found = self._find(offset, length, sums, places)
        # What is not found may have come from further on.
        self._ahead = AHEAD if _lengths(found) > length // 2 else min(2 * self._ahead, max(self._size, AHEAD))
        for start, _, old in found:
            if old is not None:
                self.shift = old - start
        return found

    def close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def _find(self, offset: int, length: int, sums: Sequence[int], places: Sequence[Place]) -> list[Run]:
        hits = [(start, old - offset - start) for start, check in places if (old := self._known.get(check)) is not None]
        runs: list[Run] = []
        shift = self.shift
        for start in range(0, length, SEGMENT):
            end = min(length, start + SEGMENT)
            shifts = _candidates(hits, start, end, shift)
            olds = self._segment(offset, start, end, sums, shifts)
            for block, old in zip(range(start, end, BLOCK_SIZE), olds, strict=True):
                if old != NOWHERE:
                    _append(runs, offset + block, min(BLOCK_SIZE, end - block), old)
                    if old is not None:
                        shift = old - offset - block
        return runs

    def _segment(
        self, offset: int, start: int, end: int, sums: Sequence[int], shifts: Sequence[int]
    ) -> list[int | None]:
        """Where each block of the segment lies in the old copy, or NOWHERE; None: it is zeros."""
        first, last = start // BLOCK_SIZE, -(-end // BLOCK_SIZE)
        olds: list[int | None] = [
            None if sums[block] == _ZEROS and (block + 1) * BLOCK_SIZE <= end else NOWHERE
            for block in range(first, last)
        ]
        for shift in shifts:
            if NOWHERE not in olds:
                break
            # The blocks that lie inside the old copy with this shift.
            low = max(first, -(-(-shift - offset) // BLOCK_SIZE))
            high = min(end, self._size - shift - offset)
            if low * BLOCK_SIZE >= high:
                continue
            view = self._buffer[: high - low * BLOCK_SIZE]
            got = pread_all(self._fd, view, offset + low * BLOCK_SIZE + shift)
            for block, found in enumerate(block_sums(view[:got]), low):
                if olds[block - first] == NOWHERE and found == sums[block]:
                    olds[block - first] = offset + block * BLOCK_SIZE + shift
        return olds

    def _look_for_marks(self, marks: Sequence[bytes], place: int) -> bool:
        """Remembers where the marks are, some way beyond `place` of the new file. Whether there was more to see."""
        self._marks = self._marks or tuple(marks)
        if tuple(marks) != self._marks:
            return False  # a host that names others each time must not have us read the file each time
        end = min(self._size, place + self.shift + self._ahead)
        if not marks or self._scanned >= end:
            return False
        known = self._known
        while self._scanned < end and not self._stop():
            view = self._buffer[: min(_PIECE, self._size - self._scanned)]
            got = pread_all(self._fd, view, self._scanned)
            for start, check in places_of(view[:got], marks):
                known.setdefault(check, self._scanned + start)
            while len(known) > MAX_KNOWN:
                del known[next(iter(known))]
            if got <= MARK_SPAN or got < len(view):
                self._scanned = self._size
                break
            self._scanned += got - MARK_SPAN + 1
        return True


def missing(runs: Sequence[Run], offset: int, length: int) -> list[tuple[int, int]]:
    """(offset, length) of what of the chunk at `offset` none of `runs` covers."""
    gaps: list[tuple[int, int]] = []
    for start, size, _ in runs:
        if start > offset:
            gaps.append((offset, start - offset))
        offset, length = start + size, length - (start + size - offset)
    return [*gaps, (offset, length)] if length else gaps


def _lengths(runs: Sequence[Run]) -> int:
    return sum(length for _, length, _ in runs)


def _candidates(hits: Sequence[tuple[int, int]], start: int, end: int, shift: int) -> list[int]:
    """Shifts to be tried in a segment: that of what came before, those that its marks and its neighbours' speak for."""
    within = Counter(found for place, found in hits if start <= place < end)
    before = [found for place, found in hits if place < start][-1:]
    after = [found for place, found in hits if place >= end][:1]
    ordered = [shift, *(found for found, _ in within.most_common(MAX_SHIFTS)), *after, *before, 0]
    return list(dict.fromkeys(ordered))[:MAX_SHIFTS]


def _append(runs: list[Run], start: int, length: int, old: int | None) -> None:
    if runs:
        before, size, came = runs[-1]
        if before + size == start and (came is None) == (old is None) and (came is None or came + size == old):
            runs[-1] = (before, size + length, came)
            return
    runs.append((start, length, old))
