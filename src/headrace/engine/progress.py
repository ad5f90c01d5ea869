"""Counters of one transfer. Written by many threads, each to its own; read by whoever shows them."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from headrace.engine.compress import REASONS
from headrace.observe.metrics import FIRST_BYTE
from headrace.observe.times import Ledger
from headrace.protocol.messages import ZSTD_PACKED

Clock = Callable[[], float]

WORDS: Final = REASONS | {ZSTD_PACKED}
OTHER: Final = "other"  # whatever else a host says: it must not fill the memory with words


@dataclass(slots=True)
class Lane:
    """One worker's counters; only that worker writes them, so they need no lock.

    bytes_received: of chunks, as they crossed the network. bytes_saved: what compression kept off it. packed: how many
    answers came compressed, or why not, by what the host says.
    """

    bytes_received: int = 0
    bytes_saved: int = 0
    packed: dict[str, int] = field(default_factory=dict)

    @property
    def bytes_delivered(self) -> int:
        """Bytes of files that came."""
        return self.bytes_received + self.bytes_saved

    def arrived(self, payload: int, size: int, packed: str) -> None:
        """`payload` bytes came, which stand for `size` bytes of files; `packed`: what the host says to that."""
        self.bytes_received += payload
        self.bytes_saved += size - payload
        if packed:
            word = packed if packed in WORDS else OTHER
            self.packed[word] = self.packed.get(word, 0) + 1


@dataclass(slots=True)
class Totals:
    """A snapshot. bytes: size of what was asked for, as far as it is known; seconds since the start. files_same: of
    those done, how many were here already."""

    files: int = 0
    bytes: int = 0
    files_done: int = 0
    files_failed: int = 0
    files_same: int = 0
    bytes_received: int = 0
    bytes_saved: int = 0
    bytes_reused: int = 0
    planned: bool = False
    first_byte: float | None = None
    seconds: float = 0.0


@dataclass
class Progress:
    """Thread-safe."""

    clock: Clock = time.monotonic
    _totals: Totals = field(default_factory=Totals)
    _lanes: list[Lane] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    ledger: Ledger = field(default_factory=Ledger)  # where the workers' time goes

    def __post_init__(self) -> None:
        self._started = self.clock()

    def lane(self) -> Lane:
        """A new worker's counters."""
        with self._lock:
            lane = Lane()
            self._lanes.append(lane)
            return lane

    def found(self, files: int, size: int) -> None:
        """The walk found this many more files of so many bytes in all."""
        with self._lock:
            self._totals.files += files
            self._totals.bytes += size

    def resized(self, difference: int) -> None:
        """A file that was counted has another size by now."""
        with self._lock:
            self._totals.bytes += difference

    def reused(self, size: int) -> None:
        """So many bytes were on this disk already."""
        with self._lock:
            self._totals.bytes_reused += size

    def same(self, files: int, size: int) -> None:
        """So many files, of so many bytes, were here already."""
        with self._lock:
            self._totals.bytes_reused += size
            self._totals.files_done += files
            self._totals.files_same += files

    def files_done(self, files: int) -> None:
        with self._lock:
            self._totals.files_done += files

    def file_failed(self) -> None:
        with self._lock:
            self._totals.files_failed += 1

    def planned(self) -> None:
        """The whole tree is known now; an estimate of the time left is honest from here on."""
        with self._lock:
            self._totals.planned = True

    def first_byte(self) -> None:
        with self._lock:
            if self._totals.first_byte is None:
                self._totals.first_byte = self.clock() - self._started
                FIRST_BYTE.observe(self._totals.first_byte)

    def delivered(self) -> int:
        """Bytes of files that came so far, by all workers."""
        with self._lock:
            return sum(lane.bytes_delivered for lane in self._lanes)

    def packed(self) -> dict[str, int]:
        """What the host said of compression, and how often."""
        with self._lock:
            total = Counter[str]()
            for lane in self._lanes:
                total.update(lane.packed.copy())
            return dict(total)

    def totals(self) -> Totals:
        with self._lock:
            now = self._totals
            return Totals(
                files=now.files,
                bytes=now.bytes,
                files_done=now.files_done,
                files_failed=now.files_failed,
                files_same=now.files_same,
                bytes_received=sum(lane.bytes_received for lane in self._lanes),
                bytes_saved=sum(lane.bytes_saved for lane in self._lanes),
                bytes_reused=now.bytes_reused,
                planned=now.planned,
                first_byte=now.first_byte,
                seconds=self.clock() - self._started,
            )
