"""Memory for bulk data: a pool of page-aligned buffers with a fixed bound.

Who wants a buffer while all are in use waits for one: that is the back-pressure which keeps a process with many peers,
or many lanes, within its bound. Nobody fails because of it.
"""

from __future__ import annotations

import logging
import mmap
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol

from headrace.errors import UsageError
from headrace.protocol.messages import CHUNK_SIZE, MIB, READ_SIZE
from headrace.storage.libc import preallocate
from headrace.storage.oserrors import local_errors

log = logging.getLogger("headrace.buffers")

DEFAULT_LIMIT: Final = 64 * MIB
CLASSES: Final = (READ_SIZE, MIB, CHUNK_SIZE)  # bytes; every buffer has one of these sizes
PATIENCE: Final = 5.0  # seconds; who waits longer is counted and, once a minute, told
WARN_EVERY: Final = 60.0
KEPT: Final = 16  # of a pool of KEPT_FROM bytes and more, one part in so many is for the smallest buffers alone
KEPT_FROM: Final = 8 * CHUNK_SIZE


class Lease:
    """A buffer for as long as a `with` block runs; `view` is as long as was asked for. Its content is whatever it is.

    spilled: it lies in a file, because memory was used up and the caller could not wait.
    """

    __slots__ = ("_give_back", "_whole", "spilled", "view")

    def __init__(
        self, whole: memoryview, size: int, give_back: Callable[[memoryview, bool], None], *, spilled: bool = False
    ) -> None:
        self._whole: memoryview | None = whole
        self._give_back = give_back
        self.view = whole[:size]
        self.spilled = spilled

    def release(self) -> None:
        """Gives the buffer back; `view` is somebody else's then. May be called again."""
        whole, self._whole = self._whole, None
        if whole is not None:
            self._give_back(whole, self.spilled)

    def __enter__(self) -> memoryview:
        return self.view

    def __exit__(self, kind: type[BaseException] | None, why: BaseException | None, at: TracebackType | None) -> None:
        self.release()


class Buffers(Protocol):
    """Where buffers come from: a BufferPool, or Unpooled."""

    @property
    def contended(self) -> bool:
        """Whether somebody waits for a buffer right now."""

    def acquire(self, size: int) -> Lease:
        """A buffer of `size` bytes, CHUNK_SIZE at most. Blocks until there is one."""


@dataclass(frozen=True, slots=True)
class PoolFigures:
    """What a pool did. Sizes in bytes, times in seconds; allocations: how often it asked the system for memory."""

    limit: int
    in_use: int
    high_water: int
    held: int
    allocations: int
    waiting: int
    waits: int
    wait_seconds: float
    timeouts: int
    spilled: int
    spilled_ever: int


class BufferPool:
    """Buffers of 128 KiB, 1 MiB and 4 MiB, at most `limit` bytes of them in all. Thread-safe.

    Buffers are reused without being zeroed. Waiters are served in the order in which they came. A sixteenth of a pool
    of 32 MiB or more is kept for buffers of 128 KiB: a small read does not wait for chunks that go to slow peers.
    """

    def __init__(
        self,
        limit: int = DEFAULT_LIMIT,
        *,
        spill_to: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """limit: bytes, at least one chunk, else UsageError. spill_to: a folder; None: the one for temporary files."""
        self._limit = check_limit(limit)
        self._reserve = limit // KEPT // READ_SIZE * READ_SIZE if limit >= KEPT_FROM else 0
        self._reserved_free: list[memoryview] = []
        self._reserved_held = 0
        self._spill_to = spill_to
        self._clock = clock
        self._changed = threading.Condition()
        self._free: dict[int, list[memoryview]] = {size: [] for size in CLASSES}
        self._queue: deque[object] = deque()
        self._in_use = self._held = self._high_water = 0
        self._allocations = self._waits = self._timeouts = self._spilled = self._spilled_ever = 0
        self._wait_seconds = 0.0
        self._next_warning = 0.0

    def acquire(self, size: int, timeout: float | None = None) -> Lease:
        """A buffer of `size` bytes, CHUNK_SIZE at most. Blocks until there is one.

        timeout: seconds; None waits as long as it takes. Raises TimeoutError, ValueError for another size.
        """
        wanted = _class_of(size)
        with self._changed:
            reserved = self._take_reserved(wanted)
            if reserved is not None:
                return Lease(reserved, size, self._release_reserved)
            whole = None if self._queue else self._take(wanted)
            if whole is None:
                return self._wait_for(wanted, size, timeout)
        return Lease(whole, size, self._release)

    def acquire_or_spill(self, size: int) -> Lease:
        """As `acquire` for who may not wait: where memory is used up, the buffer lies in an unlinked temporary file.

        Raises LocalDiskError where there is no room for that either.
        """
        wanted = _class_of(size)
        with self._changed:
            reserved = self._take_reserved(wanted)
            if reserved is not None:
                return Lease(reserved, size, self._release_reserved)
            whole = None if self._queue else self._take(wanted)
            if whole is not None:
                return Lease(whole, size, self._release)
        spilled = self._spill(wanted)
        with self._changed:
            self._spilled += wanted
            self._spilled_ever += wanted
        return Lease(spilled, size, self._release, spilled=True)

    def figures(self) -> PoolFigures:
        """A snapshot."""
        with self._changed:
            return PoolFigures(
                limit=self._limit,
                in_use=self._in_use,
                high_water=self._high_water,
                held=self._held + self._reserved_held,
                allocations=self._allocations,
                waiting=len(self._queue),
                waits=self._waits,
                wait_seconds=self._wait_seconds,
                timeouts=self._timeouts,
                spilled=self._spilled,
                spilled_ever=self._spilled_ever,
            )

    @property
    def contended(self) -> bool:
        """Whether somebody waits for a buffer right now."""
        return bool(self._queue)

    # ---- inside; each with the lock held -------------------------------------------------------------------------

    def _take(self, wanted: int) -> memoryview | None:
        free = self._free[wanted]
        if not free:
            self._drop_others(wanted)
            if self._held + wanted > self._limit - self._reserve:
                return None
            free.append(_new(wanted))
            self._held += wanted
            self._allocations += 1
        self._used(wanted)
        return free.pop()

    def _take_reserved(self, wanted: int) -> memoryview | None:
        """One of those that are kept for small reads, without a turn: nobody who waits could have it."""
        if wanted != READ_SIZE:
            return None
        free = self._reserved_free
        if not free:
            if self._reserved_held + wanted > self._reserve:
                return None
            free.append(_new(wanted))
            self._reserved_held += wanted
            self._allocations += 1
        self._used(wanted)
        return free.pop()

    def _used(self, size: int) -> None:
        self._in_use += size
        self._high_water = max(self._high_water, self._in_use)

    def _drop_others(self, wanted: int) -> None:
        """Gives idle buffers of another size back to the system where `wanted` bytes would not fit otherwise."""
        for size, free in self._free.items():
            while size != wanted and free and self._held + wanted > self._limit - self._reserve:
                free.pop()
                self._held -= size

    def _wait_for(self, wanted: int, size: int, timeout: float | None) -> Lease:
        ticket = object()
        self._queue.append(ticket)
        self._waits += 1
        began = self._clock()
        told = False
        try:
            while True:
                reserved = self._take_reserved(wanted)
                if reserved is not None:
                    return Lease(reserved, size, self._release_reserved)
                whole = self._take(wanted) if self._queue[0] is ticket else None
                if whole is not None:
                    return Lease(whole, size, self._release)
                waited = self._clock() - began
                if waited >= PATIENCE and not told:
                    told = True
                    self._timeouts += 1
                    self._warn(waited)
                if timeout is not None and waited >= timeout:
                    raise TimeoutError(f"no buffer within {timeout:g} s")
                self._changed.wait(PATIENCE if timeout is None else min(PATIENCE, timeout - waited))
        finally:
            self._queue.remove(ticket)
            self._wait_seconds += self._clock() - began
            self._changed.notify_all()  # there is a new first in the queue

    def _warn(self, waited: float) -> None:
        now = self._clock()
        if now >= self._next_warning:
            self._next_warning = now + WARN_EVERY
            log.warning(
                "all %d MiB of buffers are in use, a transfer has waited %.0f s for one: it goes on, but slower. "
                "--buffers gives it more",
                self._limit // MIB,
                waited,
            )

    def _release(self, whole: memoryview, spilled: bool) -> None:
        with self._changed:
            if spilled:
                self._spilled -= len(whole)
                return
            self._in_use -= len(whole)
            self._free[len(whole)].append(whole)
            if self._queue:
                self._changed.notify_all()

    def _release_reserved(self, whole: memoryview, spilled: bool) -> None:
        with self._changed:
            self._in_use -= len(whole)
            self._reserved_free.append(whole)
            if self._queue:
                self._changed.notify_all()

    def _spill(self, size: int) -> memoryview:
        import tempfile  # here: with what it imports it costs each start some milliseconds

        folder = self._spill_to or Path(tempfile.gettempdir())
        with local_errors("spill to", folder), tempfile.TemporaryFile(dir=folder) as file:
            # Reserved first: writing to a mapping for which there is no room would kill the process (SIGBUS).
            if not preallocate(file.fileno(), 0, size):
                file.write(bytes(size))
                file.flush()
            return memoryview(mmap.mmap(file.fileno(), size))


def buffers_for(io: str, limit: int) -> Buffers:
    """A pool of `limit` bytes; the debug mode (`--io plain`) has none. UsageError for a pool that cannot work."""
    check_limit(limit)
    return Unpooled() if io == "plain" else BufferPool(limit)


def check_limit(limit: int) -> int:
    """`limit`, in bytes, if a pool can work with it; else UsageError."""
    if limit < CHUNK_SIZE:
        hint = f"Give it {CHUNK_SIZE // MIB}M or more."
        raise UsageError(f"a buffer pool of {limit:,} bytes cannot hold one chunk", hint=hint)
    return limit


class Unpooled:
    """The debug mode's buffers: a fresh one each time, no bound."""

    contended = False

    def acquire(self, size: int) -> Lease:
        """A new buffer of `size` bytes."""
        return Lease(memoryview(bytearray(size)), size, lambda whole, spilled: None)


def _class_of(size: int) -> int:
    for one in CLASSES:
        if size <= one:
            return one
    raise ValueError(f"no buffer has {size} bytes; the most is {CLASSES[-1]}")


def _new(size: int) -> memoryview:
    """Page-aligned, and given back to the system as soon as nobody refers to it.

    Not a bytearray: once a few of 4 MiB were freed, the C library serves them from each thread's own heap and keeps
    them there, so that a host's memory grew with the number of threads it had ever had.
    """
    return memoryview(mmap.mmap(-1, size))
