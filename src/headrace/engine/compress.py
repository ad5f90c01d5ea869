"""Whether a piece of a file is worth compressing, and doing so within limits. `engine.unpack` undoes it.

A host has one Compressors; each stream that it serves asks a FileCompressor for each file. Sizes in bytes, rates in
bytes a second. zstandard releases the interpreter lock while it works, and is loaded when it is first needed.

The compressor is taken to work while nothing of the same stream is sent, so a piece costs `1 / speed + ratio / link`
seconds a byte, and `1 / link` as it is. With several streams the true cost is lower: `auto` rather sends as it is.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Final, Literal, get_args

from headrace.errors import UsageError
from headrace.protocol.messages import HOST_DECIDES, KIB, MAX_LEVEL, MAX_PART, NOT_PACKED, ZSTD_PACKED

if TYPE_CHECKING:
    import zstandard

# Why a piece goes as it is. small, format, entropy, little: it would not become smaller, by its length, its name, its
# bytes, or because it did not. link: sending it takes less time than compressing it. memory: others wait for a buffer.
Reason = Literal["small", "format", "entropy", "little", "link", "memory"]
REASONS: Final = frozenset(get_args(Reason))

AT_ONCE: Final = max(2, os.cpu_count() or 1)
MIN_LENGTH: Final = KIB
MAX_ENTROPY: Final = 7.5  # bits a byte
MIN_SAVED: Final = 0.05  # part of the length
MAX_PAUSE: Final = 32  # pieces of a file that are sent as they are before another try
WORTH: Final = 0.85  # of the time that a piece takes as it is; what gains less is not worth a core
NEARLY: Final = 1.05  # times the least time: a lower level that takes no longer than this is preferred

# (speed, ratio beside that of level 1), as found on source text and programs on one core of the machine of our other
# figures. How much faster or slower a machine is now is measured as pieces are compressed.
LEVELS: Final[Mapping[int, tuple[float, float]]] = {1: (250e6, 1.0), 3: (140e6, 0.9), 6: (55e6, 0.82), 9: (33e6, 0.8)}

_START_RATIO: Final = 0.5  # of level 1, for a file of which nothing is known
_WEIGHT: Final = 0.25  # of the latest ratio
_SLOWLY: Final = 1 / 16  # of the latest time: on a busy machine some take long, and count as long as they took
_FORGET: Final = 1 / 32  # of the way back to what was expected, for each piece that is not tried
_SAMPLES: Final = 16
_SAMPLE: Final = 256  # bytes each; 4 KiB are counted in 0.1 ms

# What these hold is compressed already. By the name's end, lower case.
COMPRESSED: Final = frozenset(
    b"7z aac apk avi avif br bz2 cab deb dmg docx epub flac gif gz heic heif jar jpeg jpg jxl lz lz4 lzma m4a m4v mkv "
    b"mov mp3 mp4 mpeg mpg odp ods odt ogg opus png pptx rar rpm tbz2 tgz txz webm webp whl wma wmv woff woff2 xlsx xz "
    b"zip zst".split()
)


def parse_level(text: str) -> int:
    """`auto` (HOST_DECIDES), `off` (NOT_PACKED) or 1 to MAX_LEVEL. Raises UsageError."""
    word = text.strip().lower()
    if word == "auto":
        return HOST_DECIDES
    if word == "off":
        return NOT_PACKED
    if word.isascii() and word.isdigit() and 1 <= int(word) <= MAX_LEVEL:
        return int(word)
    raise UsageError(f"{text!r} is no compression level", hint=f"There are auto, off and 1 to {MAX_LEVEL}.")


def check_level(level: int) -> int:
    """`level`, as `parse_level` gives it; else UsageError."""
    if not HOST_DECIDES <= level <= MAX_LEVEL:
        raise UsageError(
            f"{level} is no compression level", hint=f"There are 1 to {MAX_LEVEL}, -1 for auto, 0 for off."
        )
    return level


def is_compressed_format(name: bytes) -> bool:
    """Whether a file of this name holds compressed data, by the end of its name."""
    _, dot, suffix = name.rpartition(b".")
    return bool(dot) and suffix.lower() in COMPRESSED


def entropy(data: bytes | bytearray | memoryview) -> float:
    """Bits a byte in a sample of `data`, of at most 4 KiB, from all over it: 0 to 8. Of nothing: 0."""
    view = memoryview(data).cast("B")
    if len(view) <= _SAMPLES * _SAMPLE:
        sample = bytes(view)
    else:
        step = (len(view) - _SAMPLE) // (_SAMPLES - 1)
        sample = b"".join(view[start : start + _SAMPLE] for start in range(0, step * _SAMPLES, step))
    size = len(sample)
    return -sum(count / size * math.log2(count / size) for count in Counter(sample).values()) if size else 0.0


class Compressors:
    """zstd for all streams of a host, and how fast this machine is at each level. Thread-safe.

    Each compressor holds megabytes of tables, up to some 10 at the highest level. There are no more of them than this
    machine has cores, for however many streams; who waits for one finds compressing slow, and leaves it.

    most: the highest level, whatever a client asks for. clock: seconds.
    """

    def __init__(self, most: int = MAX_LEVEL, clock: Callable[[], float] = time.perf_counter) -> None:
        if not 1 <= most <= MAX_LEVEL:
            raise ValueError(f"no level {most}")
        self.most = most
        self._clock = clock
        self._lock = threading.Lock()
        self._slowness = 1.0  # times as long as LEVELS says
        self._free = threading.BoundedSemaphore(AT_ONCE)
        self._idle: list[tuple[int, zstandard.ZstdCompressor]] = []  # by level; the last one used comes last
        self._made = 0  # of them, those in use included

    def choose(self, link: float, ratio: float) -> int | None:
        """The level with which a piece arrives soonest, or nearly; None: as it is. ratio: what level 1 would make of
        it."""
        with self._lock:
            slowness = self._slowness
        costs = {
            level: slowness / speed + ratio * beside / link
            for level, (speed, beside) in LEVELS.items()
            if level <= self.most
        }
        least = min(costs.values())
        if least > WORTH / link:
            self._forget()
            return None
        return min(level for level, cost in costs.items() if cost <= NEARLY * least)

    def pack_into(self, data: memoryview, room: memoryview, level: int) -> int | None:
        """One zstd frame of `data`, which names its length, at the front of `room`: how long it is. None where that is
        too short for it."""
        level = min(level, self.most)
        started = self._clock()
        with self._compressor(level) as compressor, compressor.stream_reader(data, size=len(data)) as reader:
            length = 0
            while length < len(room) and (count := reader.readinto(room[length:])):
                length += count
            fits = not reader.read(1)
        seconds = self._clock() - started
        # What cannot be compressed is passed over quickly, and says nothing about what can.
        if fits and level in LEVELS and seconds > 0:
            with self._lock:
                self._slowness += _SLOWLY * (seconds / len(data) * LEVELS[level][0] - self._slowness)
        return length if fits else None

    def _forget(self) -> None:
        """A machine that was busy is not busy for ever."""
        with self._lock:
            self._slowness += _FORGET * (1.0 - self._slowness)

    @contextlib.contextmanager
    def _compressor(self, level: int) -> Iterator[zstandard.ZstdCompressor]:
        """One for the calling thread alone; waits for it."""
        import zstandard

        with self._free:
            with self._lock:
                known = next((one for one in self._idle if one[0] == level), None)
                if known:
                    self._idle.remove(known)
                elif self._made < AT_ONCE:
                    self._made += 1
                elif self._idle:  # one at least is, as no more than the others are in use
                    del self._idle[0]
            mine = known or (level, zstandard.ZstdCompressor(level=level))
            try:
                yield mine[1]
            finally:
                with self._lock:
                    self._idle.append(mine)


class FileCompressor:
    """Decides and compresses for the pieces of one file, and learns from them. One owner thread.

    asked: a level, or HOST_DECIDES. link: the measured rate to the peer; None, not known, is taken for too fast to
    compress for, unless a level was asked for.
    """

    def __init__(self, compressors: Compressors, *, compressed: bool = False) -> None:
        """compressed: what the file is named like holds compressed data already."""
        self._compressors = compressors
        self._format = compressed
        self._ratio = _START_RATIO
        self._failed = 0  # tries in a row that saved too little
        self._pause = 0  # pieces still to be sent as they are
        self._paused: Reason = "little"
        self._going_well = False  # the last piece was worth it: trying the next one costs less than looking at it

    def declines(self, length: int, asked: int, link: float | None) -> Reason | None:
        """Why the next `length` bytes go as they are, where that is known before anybody looks at them. None: `pack`
        is to try, piece by piece."""
        if length < MIN_LENGTH:
            return "small"
        if self._format:
            return "format"
        pieces = -(-length // MAX_PART)
        if self._pause >= pieces:
            self._pause -= pieces
            return self._paused
        return "link" if self._level(asked, link) is None else None

    def pack(
        self, data: memoryview, room: memoryview, asked: int, link: float | None
    ) -> tuple[memoryview, Reason | Literal["zstd"]]:
        """What to send for `data`, at most MAX_PART of it: a compressed frame in `room`, or `data` itself and why."""
        if len(data) > MAX_PART:
            raise ValueError("a piece too long to be compressed")
        if len(data) < MIN_LENGTH:
            return data, "small"
        if self._pause:
            self._pause -= 1
            return data, self._paused
        level = self._level(asked, link)
        if level is None:
            return data, "link"
        if not self._going_well and entropy(data) > MAX_ENTROPY:
            return data, self._in_vain("entropy")
        length = self._compressors.pack_into(data, room[: int(len(data) * (1 - MIN_SAVED))], level)
        if length is None:
            return data, self._in_vain("little")
        self._failed = 0
        self._going_well = True
        beside = LEVELS[level][1] if level in LEVELS else 1.0
        self._ratio += _WEIGHT * (min(1.0, length / len(data) / beside) - self._ratio)
        return room[:length], ZSTD_PACKED

    def _in_vain(self, reason: Reason) -> Reason:
        self._pause = min(MAX_PAUSE, 1 << self._failed)
        self._failed = min(self._failed + 1, 16)
        self._going_well = False
        self._paused = reason
        return reason

    def _level(self, asked: int, link: float | None) -> int | None:
        if asked != HOST_DECIDES:
            return asked
        if link is None or link <= 0:
            return None
        chosen = self._compressors.choose(link, self._ratio)
        if chosen is None:
            # What comes later in the file may be of another kind: the estimate drifts back until it is tried again.
            self._ratio += _FORGET * (_START_RATIO - self._ratio)
        return chosen
