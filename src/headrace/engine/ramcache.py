"""Parts of files in memory: bounded, the least recently used out, and one fetch for each however many want it."""

from __future__ import annotations

import contextlib
import mmap
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from headrace.engine.readahead import BLOCK, FRAGMENT
from headrace.errors import HeadraceError
from headrace.protocol.messages import MIB

UNIT: Final = FRAGMENT  # bytes; spans begin at multiples of it, and end at one or at the end of the file
HUGE_PAGE: Final = 2 * MIB  # bytes, on x86-64 and most others
SHIFT: Final = UNIT.bit_length() - 1


class Span:
    """A range of one file: in flight while `view` is None, then there, or failed.

    view: its bytes, read-only, once they are there and verified. They stay as they are for whoever holds them, also
    when the cache lets go of the span. error: why it did not come; a span that failed is in the cache no more.
    """

    __slots__ = (
        *("_done", "counted", "end", "error", "file", "length", "listed", "offset", "pins", "unread", "view", "waste"),
    )

    def __init__(self, file: CachedFile, offset: int, end: int) -> None:
        self.file = file
        self.offset = offset
        self.end = end
        self.length = end - offset
        self.view: memoryview | None = None
        self.error: HeadraceError | None = None
        self.listed = False  # found by `find`
        self.counted = False  # part of what the cache has in memory
        self.pins = 0  # it may not go while somebody else still needs it
        self.unread = False  # read ahead, and nobody asked for it so far
        self.waste: Callable[[int], None] | None = None  # told how many bytes go without ever being asked for
        self._done: threading.Event | None = None


class CachedFile:
    """One version of one file, and its spans by the number of each unit that they cover."""

    __slots__ = ("handles", "key", "size", "spans", "stale")

    def __init__(self, key: tuple[bytes, int], size: int) -> None:
        self.key = key
        self.size = size
        self.spans: dict[int, Span] = {}
        self.handles = 0
        self.stale = False  # the host has another version


@dataclass(frozen=True, slots=True)
class RamFigures:
    """Bytes now, bytes at most so far, and spans; evicted and wasted: bytes that had to go, and of those never read."""

    limit: int
    used: int
    high_water: int
    spans: int
    evicted: int
    wasted: int


class RamCache:
    """Spans of all files, `limit` bytes in all, those in flight included. Thread-safe."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._lock = threading.Lock()
        self._files: dict[tuple[bytes, int], CachedFile] = {}
        self._recent: OrderedDict[Span, None] = OrderedDict()  # those that are there
        self._used = self._pinned = self._high_water = self._evicted = self._wasted = 0

    # ---- files -----------------------------------------------------------------------------------------------------

    def open(self, version: bytes, size: int) -> CachedFile:
        """The file of that version, for one handle. version: its token, unique within the share."""
        key = (version, size)
        with self._lock:
            file = self._files.get(key)
            if file is None:
                file = self._files[key] = CachedFile(key, size)
            file.handles += 1
            return file

    def close(self, file: CachedFile) -> None:
        """One handle less. Its spans stay until there is no room for them."""
        with self._lock:
            file.handles -= 1
            self._forget_if_empty(file)

    def _forget_if_empty(self, file: CachedFile) -> None:
        if not file.handles and not file.spans and self._files.get(file.key) is file:
            del self._files[file.key]

    # ---- reading ---------------------------------------------------------------------------------------------------

    def used(self, span: Span) -> None:
        """Somebody read from it."""
        with self._lock:
            span.unread = False
            if span in self._recent:
                self._recent.move_to_end(span)

    def wait(self, span: Span, seconds: float) -> bool:
        """Whether the span has come or failed within so many seconds."""
        with self._lock:
            if span.view is not None or span.error is not None:
                return True
            if span._done is None:  # the cache owns its spans
                span._done = threading.Event()
            done = span._done
        return done.wait(seconds)

    # ---- fetching --------------------------------------------------------------------------------------------------

    def claim(self, file: CachedFile, offset: int, want: tuple[int, int], *, must: bool) -> tuple[Span | None, bool]:
        """The span at `offset`, and whether the caller is to fetch it now and then to call `arrived` or `failed`.

        want: from where to where a new one is to reach, multiples of UNIT around `offset`; it reaches less far where
        others lie in the way. Without room for it, the caller has to fetch it all the same, and it is not kept, or
        there is none: must.
        """
        with self._lock:
            spans = file.spans
            unit = offset >> SHIFT
            known = spans.get(unit)
            if known is not None:
                return known, False
            first, last = unit, unit
            low, high = want[0] >> SHIFT, (min(want[1], file.size) - 1) >> SHIFT
            if spans.keys().isdisjoint(range(low, high + 1)):  # the usual case, and a chunk has 256 units
                first, last = low, high
            while first > low and _free(spans.get(first - 1)):
                first -= 1
            while last < high and _free(spans.get(last + 1)):
                last += 1
            span = Span(file, first << SHIFT, min((last + 1) << SHIFT, file.size))
            if not self._make_room(span.length):
                return (span, True) if must else (None, False)
            covered = range(first, last + 1)
            if not spans.keys().isdisjoint(covered):
                for old in {spans[unit] for unit in covered if unit in spans}:
                    self._unlist(old)
            spans.update(dict.fromkeys(covered, span))
            span.listed = span.counted = True
            self._used += span.length
            self._high_water = max(self._high_water, self._used)
            return span, True

    def arrived(self, span: Span, view: memoryview) -> None:
        """The bytes are there and verified; nobody may change them any more."""
        with self._lock:
            span.view = view.toreadonly()
            if span.listed:
                self._recent[span] = None
            else:
                self._uncount(span)
            self._tell(span)

    def failed(self, span: Span, error: HeadraceError) -> None:
        """It will not come. Who waits for it hears of it; the next who wants it tries anew."""
        with self._lock:
            span.error = error
            self._unlist(span)
            self._uncount(span)
            self._tell(span)

    def pin(self, span: Span) -> bool:
        """Keeps the span in memory until `unpin`. False where it is not kept, or half of all is pinned already."""
        with self._lock:
            if not span.listed or self._pinned + span.length > self.limit // 2:
                return False
            span.pins += 1
            self._pinned += span.length
            return True

    def unpin(self, span: Span) -> None:
        with self._lock:
            span.pins -= 1
            self._pinned -= span.length

    def drop(self, file: CachedFile) -> None:
        """Lets go of all that is there of a file."""
        with self._lock:
            for span in set(file.spans.values()):
                if span.view is not None:
                    self._unlist(span)

    def clear(self) -> None:
        """Lets go of everything."""
        with self._lock:
            for span in list(self._recent):
                self._unlist(span)

    def figures(self) -> RamFigures:
        """A snapshot."""
        with self._lock:
            return RamFigures(self.limit, self._used, self._high_water, len(self._recent), self._evicted, self._wasted)

    # ---- inside; each with the lock held -----------------------------------------------------------------------------

    def _make_room(self, wanted: int) -> bool:
        if self._used + wanted <= self.limit:
            return True
        if wanted > self.limit:
            return False
        for span in list(self._oldest(self._used + wanted - self.limit)):
            self._evicted += span.length
            if span.unread:
                self._wasted += span.length
                if span.waste:
                    span.waste(span.length)
            self._unlist(span)
        return self._used + wanted <= self.limit

    def _oldest(self, wanted: int) -> list[Span]:
        found, size = [], 0
        for span in self._recent:
            if size >= wanted:
                break
            if not span.pins:
                found.append(span)
                size += span.length
        return found

    def _unlist(self, span: Span) -> None:
        """Nobody finds it any more. One in flight still counts until it has come."""
        if not span.listed:
            return
        span.listed = False
        spans = span.file.spans
        for unit in range(span.offset >> SHIFT, ((span.end - 1) >> SHIFT) + 1):
            if spans.get(unit) is span:
                del spans[unit]
        if span.view is not None:
            self._recent.pop(span, None)
            self._uncount(span)
        self._forget_if_empty(span.file)

    def _uncount(self, span: Span) -> None:
        if span.counted:
            span.counted = False
            self._used -= span.length

    def _tell(self, span: Span) -> None:
        if span._done is not None:
            span._done.set()


def _free(span: Span | None) -> bool:
    """Whether a new span may lie there: over nothing, or over a fragment, which it replaces."""
    return span is None or (span.length <= UNIT and span.length < BLOCK)


def new_buffer(length: int) -> memoryview:
    """Memory for a span, zeros. Large ones go back to the system as soon as nobody refers to them; see engine.buffers.

    To touch 4 MiB for the first time takes 4.2 ms where the mapping is shared, 2.7 where it is private, and 0.3 where
    its pages are of 2 MiB.
    """
    if length < BLOCK:
        return memoryview(bytearray(length))
    mapping = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if length >= HUGE_PAGE and sys.platform == "linux":
        with contextlib.suppress(OSError):  # a kernel without them
            mapping.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(mapping)
