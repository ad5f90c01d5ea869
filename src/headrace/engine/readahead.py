"""What to read ahead of a reader. Pure logic: no I/O, no clock, no thread. Offsets and lengths are in bytes.

A read that goes on where the last one ended, or nearly so, makes the window grow: twice as much is read ahead each
time that what was read ahead is used. What is read ahead and then left behind makes it smaller, and keeps the next one
from opening at the first sign. A seek begins anew. Who has read so much at each place until now (a player that
scrubs) is taken to do so at the next: so much is read ahead at once, and no more until the run is longer.

Chunks are powers of two at multiples of their size, up to 4 MiB: 128 KiB at 128 KiB, 256 KiB at 256 KiB, and so on. So
the chunks of a window are those that a copy would ask for, whose hashes the host may know.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from headrace.protocol.messages import CHUNK_SIZE, KIB, MIB, READ_SIZE

BLOCK: Final = READ_SIZE  # what a reader with some locality is given at once
FRAGMENT: Final = 16 * KIB  # what a random read is given: it takes as long as 4 KiB does, and 128 KiB takes twice that
LARGE: Final = 64 * KIB  # a read of so much is given whole blocks
SLACK: Final = MIB  # the kernel sends several reads at once, and they come in any order

FIRST_WINDOW: Final = 4 * BLOCK
FAR_WINDOW: Final = 8 * BLOCK  # where each round trip costs more than a block
LARGEST_WINDOW: Final = 32 * MIB
FAR: Final = 0.002  # seconds of round trip: from here on the way costs more than a block's bytes

LANES: Final = 2  # at once, over loopback and on a LAN: more only get into each other's way

LEAST_CHUNK: Final = 2 * BLOCK  # a host takes less for a small read, and has bulk give way to it

# How long one chunk may take at the rate of late: who waits for a part of it waits for all. On a long path several are
# on their way at once, all on one lane: together they fill it for a round trip and more, and after a seek all are for
# nothing. Several lanes there share the path as unevenly as their congestion control has it, and who waits for the
# last chunk waits for the slowest one: 4 MiB after a seek took 0.55 to 0.7 s with three or four, and 0.44 with one.
CHUNK_SECONDS: Final = 0.2
FAR_CHUNK_SECONDS: Final = 0.02
FAR_CHUNK_TRIPS: Final = 1 / 3  # of a round trip, where that is longer
FAR_DEPTH: Final = 8
WINDOW_SECONDS: Final = 1.0
REMEMBERED: Final = 1024  # blocks of which a fragment was read
SPARSE: Final = 2  # fragments of a block; the next read there is given all of it, which takes as long as three
FAR_SPARSE: Final = 1  # where a round trip costs more than the block does

Extent = tuple[int, int]  # offset, length


@dataclass(frozen=True, slots=True)
class Path:
    """What is known of the way to the host. rtt: seconds; rate: bytes a second of bulk; None where nobody knows yet."""

    rtt: float | None = None
    rate: float | None = None

    @property
    def far(self) -> bool:
        """Whether a round trip takes longer than a block."""
        return self.rtt is not None and self.rtt >= FAR

    @property
    def chunk(self) -> int:
        """The largest chunk that is worth asking for at once."""
        if self.rate is None:
            return LEAST_CHUNK if self.far else CHUNK_SIZE
        return _power_below(min(CHUNK_SIZE, max(LEAST_CHUNK, int(self.rate * self._chunk_seconds))))

    @property
    def _chunk_seconds(self) -> float:
        return max(FAR_CHUNK_SECONDS, (self.rtt or 0.0) * FAR_CHUNK_TRIPS) if self.far else CHUNK_SECONDS

    @property
    def depth(self) -> int:
        """How many chunks may be on their way at once on one lane."""
        if not self.far:
            return 1
        if self.rate is None:
            return FAR_DEPTH
        return max(2, min(FAR_DEPTH, math.ceil(self.rate * self._chunk_seconds * FAR_DEPTH / self.chunk)))

    @property
    def window(self) -> int:
        """The largest window that is worth having: what comes in some seconds, and several chunks at once."""
        if self.rate is None:
            return LARGEST_WINDOW
        return min(LARGEST_WINDOW, max(2 * self.lanes * self.chunk, int(self.rate * WINDOW_SECONDS)))

    @property
    def lanes(self) -> int:
        """How many connections are worth having for it."""
        return 1 if self.far else LANES


UNKNOWN: Final = Path()


class RateMeter:
    """The rate of bulk, over times in which some is under way. One thread at a time; `now` is in seconds."""

    SPAN: Final = 0.5  # seconds that a measurement takes
    FADES: Final = 0.9  # what is left of a rate with each measurement that finds less

    def __init__(self) -> None:
        self.rate: float | None = None  # bytes a second
        self._flying = 0
        self._bytes = 0
        self._since = 0.0

    def began(self, now: float) -> None:
        """One more chunk is under way."""
        if not self._flying:
            self._since, self._bytes = now, 0
        self._flying += 1

    def ended(self, now: float, length: int) -> None:
        """One came, with so many bytes; 0 where it failed."""
        self._flying -= 1
        self._bytes += length
        seconds = now - self._since
        if self._bytes and seconds >= self.SPAN:
            latest = self._bytes / seconds
            # The best of late: what was measured lately may have been all that was asked for.
            self.rate = max(latest, (self.rate or 0.0) * self.FADES)
            self._since, self._bytes = now, 0


class ReadAhead:
    """What one handle has read and is going to read. One thread at a time.

    window: bytes to have ahead of the reader now; 0 while it reads at random. runs: how often it began anew somewhere.
    """

    def __init__(self, size: int, *, most: int = LARGEST_WINDOW) -> None:
        """size: of the file. most: the largest window."""
        self._size = size
        self._most = most
        self.window = 0
        self.runs = 0
        self._front = 0  # where the run of reads has come to
        self._run = 0  # bytes read in this run
        self._ahead = 0  # up to where was asked for
        self._began_ahead = 0  # where the reading ahead of this run began
        self._doubt = 0  # how often it was for nothing of late
        self._began = 0  # where this run began
        self._last = 0  # how long the run before it was, if it was of LARGE or more
        self._habit = 0  # how long such runs are: the longer one of the last two; 0: nothing is known
        self._touched: OrderedDict[int, int] = OrderedDict()  # fragments, by block

    def unit(self, offset: int, length: int, path: Path = UNKNOWN) -> int:
        """In what pieces a read is to be fetched that nothing cached answers: FRAGMENT or BLOCK."""
        if self._size <= BLOCK or length >= LARGE or self.window:
            return BLOCK
        block = offset // BLOCK
        fragments = self._touched.get(block, 0)
        if fragments >= (FAR_SPARSE if path.far else SPARSE):
            return BLOCK
        self._touched[block] = fragments + 1
        if len(self._touched) > REMEMBERED:
            self._touched.popitem(last=False)
        return FRAGMENT

    def advance(self, offset: int, length: int, path: Path = UNKNOWN) -> list[Extent]:
        """At each read, cached or not: what to ask for now beside it, in order. On a long path with the read itself."""
        end = offset + length
        if abs(offset - self._front) > SLACK:
            self._seek(offset)
        if end > self._front:
            self._run += end - max(offset, self._front)
            self._front = end
        # Far away the reader's own bytes come with the rest: the lanes for bulk are up to speed.
        start = offset // BLOCK * BLOCK if path.far else -(-self._front // BLOCK) * BLOCK
        if not self.window and not self._opens(offset, start, path):
            return []
        return self._ask(start, path)

    def _seek(self, offset: int) -> None:
        self._judge()
        if self._run >= LARGE:
            self._habit, self._last = max(self._last, self._run), self._run
        self.runs += 1
        self.window = self._run = self._ahead = self._began_ahead = 0
        self._front = self._began = offset

    def _judge(self) -> None:
        """Whether what was read ahead in this run was of use."""
        asked = self._ahead - self._began_ahead
        if asked <= 0:
            return
        used = min(self._front, self._ahead) - self._began_ahead
        wanted = min(
            asked // 2, FIRST_WINDOW
        )  # a long run leaves a window behind, which is no reason to doubt the next
        self._doubt = min(self._doubt + 1, 6) if used < wanted else max(0, self._doubt - 1)

    def wasted(self, length: int) -> None:
        """So much of what was read ahead had to go before anybody read it: there is less room than the window takes."""
        if length and self.window:
            self.window = max(BLOCK, self.window // 2)
            self._most = max(4 * BLOCK, self._most // 2)

    def retreat(self, offset: int, *, full: bool = False) -> None:
        """What was asked for from `offset` on is not going to come. full: because there is no room for it."""
        if not self.window:
            return
        self._ahead = min(self._ahead, -(-offset // BLOCK) * BLOCK)
        if full:
            self.wasted(1)

    def _opens(self, offset: int, start: int, path: Path) -> bool:
        """Whether the run is long enough to read ahead of it. The beginning of a file counts as one."""
        enough = LARGE if offset == 0 and not self._doubt else BLOCK << self._doubt
        if self._run < enough or self._size <= BLOCK:
            return False
        first = FAR_WINDOW if path.far else FIRST_WINDOW
        self.window = min(self._most, first)
        self._ahead = self._began_ahead = start
        return True

    def _ask(self, start: int, path: Path) -> list[Extent]:
        most = min(self._most, path.window)
        if self._front > self._ahead:  # the reader has skipped what was asked for
            self._ahead = max(self._ahead, start)
        known = self._front <= self._began + self._habit
        if known:  # as far as runs went until now, and no further
            until = min(self._began + -(-self._habit // BLOCK) * BLOCK, self._front + most)
            largest = self._habit // 2
        else:
            if self._ahead - self._front > self.window // 2:
                return []
            if self._front > self._began_ahead:  # some of it was used
                self.window = min(most, self.window * 2)
            until = self._front + self.window
            largest = self.window // 2
        extents = []
        until = min(self._size, until)
        largest = min(path.chunk, _power_below(max(BLOCK, largest)))
        while self._ahead < until:
            fits = _power_below(max(BLOCK, until - self._ahead)) if known else largest
            length = min(_aligned(self._ahead, min(largest, fits)), self._size - self._ahead)
            extents.append((self._ahead, length))
            self._ahead += length
        return extents


def _aligned(offset: int, most: int) -> int:
    """The longest chunk that may begin at `offset`, a multiple of BLOCK."""
    lowest = offset & -offset
    return min(most, lowest) if lowest else _power_below(most)


def _power_below(number: int) -> int:
    """The largest power of two that is not larger."""
    return 1 << (number.bit_length() - 1)
