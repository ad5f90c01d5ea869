"""Whether a piece of a file is worth compressing, doing so, and undoing it within limits.

Not part of the protocol yet. A sender makes one Compression and asks it for a FileCompressor for each file; a receiver
calls `decompress_into` with a buffer of the length that the piece is known to have. Sizes in bytes, rates in bytes a
second. zstandard releases the interpreter lock while it works.

The compressor is taken to work while nothing of the same stream is sent, so a piece costs `1 / speed + ratio / link`
seconds a byte, and `1 / link` as it is. With several streams the true cost is lower: `auto` rather sends as it is.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final, Literal

import zstandard

from headrace.errors import ProtocolError, UsageError
from headrace.protocol.messages import CHUNK_SIZE, KIB

Level = int | Literal["auto", "off"]
# off: no compression is wanted. small, format, entropy, little: it would not become smaller, by its length, its name,
# its bytes, or because it did not. link: sending takes less time than compressing.
Reason = Literal["compressed", "off", "small", "format", "entropy", "little", "link"]

MIN_LENGTH: Final = KIB
MAX_ENTROPY: Final = 7.5  # bits a byte
MIN_SAVED: Final = 0.05  # part of the length
MAX_LEVEL: Final = 19  # above it, the receiver would need more memory than a piece has
MAX_PAUSE: Final = 16  # pieces of a file that are sent as they are before another try

# (speed, ratio beside that of level 1), as found on source text and programs on one core of the machine of our other
# figures. Speeds are measured anew as pieces are compressed.
LEVELS: Final[Mapping[int, tuple[float, float]]] = {1: (250e6, 1.0), 3: (140e6, 0.9), 6: (55e6, 0.82), 9: (33e6, 0.8)}

_START_RATIO: Final = 0.5  # of level 1, for a file of which nothing is known
_WEIGHT: Final = 0.25  # of the latest measurement
_SAMPLES: Final = 16
_SAMPLE: Final = 256  # bytes each; 4 KiB are counted in 0.1 ms

# What these hold is compressed already. By the name's end, lower case.
COMPRESSED: Final = frozenset(
    b"7z aac apk avi avif br bz2 cab deb dmg docx epub flac gif gz heic heif jar jpeg jpg jxl lz lz4 lzma m4a m4v mkv "
    b"mov mp3 mp4 mpeg mpg odp ods odt ogg opus png pptx rar rpm tbz2 tgz txz webm webp whl wma wmv woff woff2 xlsx xz "
    b"zip zst".split()
)


def parse_level(text: str) -> Level:
    """`auto`, `off` or 1 to 19. Raises UsageError."""
    word = text.strip().lower()
    if word == "auto":
        return "auto"
    if word == "off":
        return "off"
    if word.isascii() and word.isdigit() and 1 <= int(word) <= MAX_LEVEL:
        return int(word)
    raise UsageError(f"{text!r} is no compression level", hint=f"There are auto, off and 1 to {MAX_LEVEL}.")


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


class Compression:
    """What holds for all files of a transfer: the level, and how fast this machine is at each. Thread-safe.

    level: auto takes the one with which sending takes least time, or none. A number is always used, whatever the link.
    clock: seconds.
    """

    def __init__(self, level: Level = "auto", clock: Callable[[], float] = time.perf_counter) -> None:
        if not isinstance(level, str) and not 1 <= level <= MAX_LEVEL:
            raise ValueError(f"no level {level}")
        self.level = level
        self._clock = clock
        self._lock = threading.Lock()
        self._speeds = {level: speed for level, (speed, _) in LEVELS.items()}
        self._counts: dict[str, int] = {}
        self._local = threading.local()

    def for_file(self, name: bytes) -> FileCompressor:
        """For the pieces of the file of that name."""
        return FileCompressor(self, name)

    def counts(self) -> dict[str, int]:
        """Pieces so far, by what became of them (Reason)."""
        with self._lock:
            return dict(self._counts)

    def choose(self, link: float, ratio: float) -> int | None:
        """The level with which a piece arrives soonest; None: as it is. ratio: what level 1 would make of it."""
        with self._lock:
            costs = {level: 1 / speed + ratio * LEVELS[level][1] / link for level, speed in self._speeds.items()}
        best = min(costs, key=lambda level: costs[level])
        return best if costs[best] < 1 / link else None

    def pack(self, data: bytes | bytearray | memoryview, level: int) -> bytes:
        """`data` as one zstd frame that names its length."""
        started = self._clock()
        packed = self._compressor(level).compress(data)
        seconds = self._clock() - started
        # What cannot be compressed is passed over quickly, and says nothing about what can.
        if level in LEVELS and seconds > 0 and len(packed) <= len(data) * (1 - MIN_SAVED):
            with self._lock:
                self._speeds[level] += _WEIGHT * (len(data) / seconds - self._speeds[level])
        return packed

    def count(self, reason: Reason) -> None:
        with self._lock:
            self._counts[reason] = self._counts.get(reason, 0) + 1

    def _compressor(self, level: int) -> zstandard.ZstdCompressor:
        """The calling thread's own: they hold megabytes of tables, and no two threads may use one."""
        known: dict[int, zstandard.ZstdCompressor] = self._local.__dict__.setdefault("known", {})
        if level not in known:
            known[level] = zstandard.ZstdCompressor(level=level, write_content_size=True)
        return known[level]


class FileCompressor:
    """Decides and compresses for the pieces of one file, and learns from them. One owner thread."""

    def __init__(self, compression: Compression, name: bytes) -> None:
        self._compression = compression
        self._format = is_compressed_format(name)
        self._ratio = _START_RATIO
        self._failed = 0  # tries in a row that saved too little
        self._pause = 0  # pieces still to be sent as they are

    def compress(self, data: bytes | bytearray | memoryview, link: float | None) -> bytes | None:
        """`data` compressed; None: send it as it is. At most CHUNK_SIZE of it, else ValueError.

        link: the measured rate to the peer. None, not measured yet, is taken for too fast to compress for in `auto`.
        Blocks for as long as it takes, which `counts` and the next decision take into account.
        """
        if len(data) > CHUNK_SIZE:
            raise ValueError("a piece longer than a chunk")
        packed, reason = self._try(data, link)
        self._compression.count(reason)
        return packed

    def _try(self, data: bytes | bytearray | memoryview, link: float | None) -> tuple[bytes | None, Reason]:
        if self._compression.level == "off":
            return None, "off"
        if len(data) < MIN_LENGTH:
            return None, "small"
        if self._format:
            return None, "format"
        if self._pause:
            self._pause -= 1
            return None, "little"
        level = self._level(link)
        if level is None:
            return None, "link"
        if entropy(data) > MAX_ENTROPY:
            return None, "entropy"
        packed = self._compression.pack(data, level)
        ratio = len(packed) / len(data)
        if ratio > 1 - MIN_SAVED:
            self._pause = min(MAX_PAUSE, 1 << self._failed)
            self._failed += 1
            return None, "little"
        self._failed = 0
        beside = LEVELS[level][1] if level in LEVELS else 1.0
        self._ratio += _WEIGHT * (min(1.0, ratio / beside) - self._ratio)
        return packed, "compressed"

    def _level(self, link: float | None) -> int | None:
        level = self._compression.level
        if isinstance(level, int):
            return level
        if link is None or link <= 0:
            return None
        chosen = self._compression.choose(link, self._ratio)
        if chosen is None:
            # What comes later in the file may be of another kind: the estimate drifts back until it is tried again.
            self._ratio += (_START_RATIO - self._ratio) / MAX_PAUSE
        return chosen


def decompress_into(data: bytes | bytearray | memoryview, buffer: memoryview) -> None:
    """Fills `buffer` with what `data` was before `Compression.pack`. Its content is undefined when this raises.

    The frame must say that it holds exactly len(buffer) bytes, at most CHUNK_SIZE, and take no more memory than that to
    decompress; both are checked before anything is allocated. Whether the bytes are right is for their hash to say.
    Raises ProtocolError.
    """
    length = len(buffer)
    if not 0 < length <= CHUNK_SIZE or len(data) >= length:  # what did not become smaller is never sent compressed
        raise ProtocolError("a compressed piece of an impossible length")
    try:
        frame = zstandard.get_frame_parameters(data)
        if frame.content_size != length or frame.dict_id:
            raise ProtocolError("a compressed piece is not as long as it should be")
        if frame.window_size > CHUNK_SIZE:
            raise ProtocolError("a compressed piece takes too much memory to decompress")
        context = zstandard.ZstdDecompressor(max_window_size=CHUNK_SIZE)
        done = 0
        with context.stream_reader(data, read_size=max(1, len(data)), read_across_frames=True) as reader:
            while done < length:
                count = reader.readinto(buffer[done:])
                if not count:
                    raise ProtocolError("a compressed piece is cut short")
                done += count
            if reader.read(1):
                raise ProtocolError("a compressed piece is longer than it should be")
    except zstandard.ZstdError as why:
        raise ProtocolError(f"a compressed piece is damaged ({why})") from why
