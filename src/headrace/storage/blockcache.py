"""Blocks of remote files on this disk, so that they can be read again after a restart or with the host gone."""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from blake3 import blake3

from headrace.protocol.messages import CHUNK_SIZE, KIB, MIB, READ_SIZE
from headrace.storage.blockcache_db import Folder, InUseError, Kept, NewBlob, NotOursError
from headrace.storage.chunks import hash_bytes
from headrace.storage.oserrors import label

log = logging.getLogger("headrace.storage.blocks")

DEFAULT_LIMIT: Final = 10 * 1024**3  # bytes
MAX_META: Final = 64 * MIB  # bytes of one value
QUEUE: Final = 64 * MIB  # bytes that wait to be written; what comes on top of that is not kept
SMALL: Final = 32 * KIB  # bytes; a blob of so much lies in the database: a file of its own costs more than that
PART: Final = READ_SIZE  # bytes; what of a long blob can be read and verified by itself
UNIT: Final = 16 * KIB  # bytes; ranges are found by the number of the unit
REGION: Final = 128 * MIB  # bytes of a file whose ranges are looked up at once
PAUSE: Final = 60.0  # seconds without writing after the disk took no more
PATIENCE: Final = 10.0  # seconds that `close` waits for the disk
GATHER: Final = 0.25  # seconds without anything new after which the writer begins
PATIENT: Final = 2.0  # seconds after which it begins in any case, or
MANY: Final = QUEUE // 2  # as soon as so many bytes wait
BATCH: Final = 8 * MIB  # bytes that are written in one go
REST: Final = 3.0  # times as long as it wrote the writer rests then, where this process is busy:
BUSY: Final = 0.7  # seconds of CPU in a second. Readers go first, and want the same cores and the same interpreter
STALE: Final = 600.0  # seconds after which a file that nobody knows was left behind

Failure = (OSError, sqlite3.Error, NotOursError, InUseError)


@dataclass(frozen=True, slots=True)
class DiskFigures:
    """limit, size: bytes. hits: ranges that were read from here; written, skipped: ranges that were kept, and those
    that came faster than the disk took them; damaged: ranges that were not what they should be; failures: of the disk.
    """

    limit: int
    size: int
    hits: int
    written: int
    skipped: int
    damaged: int
    failures: int


class _Job(NamedTuple):
    """Something to be written. done: called when it was, or will not be."""

    file: DiskFile
    kept: Kept
    view: memoryview
    done: Callable[[], None]


class BlockCache:
    """A bounded cache of blocks in a folder. Thread-safe, and several processes may use one folder at once. It starts a
    thread with the first thing that it keeps: make it after a fork, and close it.

    It is a cache: where the disk fails, is full or was scribbled on, it has nothing and keeps nothing, which is told
    once and counted. No method raises for that.
    """

    def __init__(
        self,
        folder: Path,
        limit: int = DEFAULT_LIMIT,
        *,
        clock: Callable[[], float] = time.monotonic,
        cpu: Callable[[], float] = time.process_time,
    ) -> None:
        """folder: made where it is missing. limit: bytes of blocks and values on disk. cpu: seconds that this process
        has spent."""
        self.folder = folder
        self.limit = limit
        self._clock = clock
        self._cpu = cpu
        self._reading = threading.Lock()  # the reading connection, and `_disk` itself
        lock = threading.Lock()
        self._pressed = False  # memory for what waits is used up
        self._changed = threading.Condition(lock)  # what waits to be written
        self._hurry = threading.Condition(lock)  # somebody waits for the writer, who pauses
        self._asleep = False  # the writer waits for something to do
        self._jobs: deque[_Job] = deque()
        self._queued = 0
        self._meta: dict[bytes, bytes] = {}
        self._used: set[bytes] = set()
        self._gone: set[bytes] = set()
        self._writer: threading.Thread | None = None
        self._busy = False
        self._hurried = 0  # how many wait in `flush`
        self._closed = False
        self._told = False
        self._paused_until = float("-inf")
        self._hits = self._written = self._skipped = self._damaged = self._failures = 0
        self._files: weakref.WeakValueDictionary[bytes, DiskFile] = weakref.WeakValueDictionary()
        self._damage = False  # of the database; the writer mends it
        self._disk: Folder | None = None
        self._start(anew=False)

    # ---- what others see -------------------------------------------------------------------------------------------

    @property
    def works(self) -> bool:
        """Whether there is a folder that can be used."""
        return self._disk is not None

    def open(self, share: bytes, version: bytes, size: int) -> DiskFile:
        """What there is of the file of that version in that share."""
        name = blake3(b"%d:%s%d:%s%d" % (len(share), share, len(version), version, size)).digest(16)
        with self._changed:
            file = self._files.get(name)
            if file is None:
                file = self._files[name] = DiskFile(self, name, size)
            return file

    def put_meta(self, key: bytes, value: bytes) -> None:
        """Keeps a small value, MAX_META bytes at most, under a key; it may be dropped like a block. Returns at once: it
        is written a moment later."""
        if len(value) > min(MAX_META, self.limit // 8):
            self._skipped += 1
            return
        with self._changed:
            if not self._accepts(len(value)):
                self._skipped += 1
                return
            self._queued += len(value) - len(self._meta.get(key, b""))
            self._meta[key] = value
            self._wake()

    def get_meta(self, key: bytes) -> bytes | None:
        """What was kept under the key; None where there is nothing (any more)."""
        waiting = self._meta.get(key)
        if waiting is not None:
            return waiting
        return self._ask(lambda disk: disk.meta(key))

    def figures(self) -> DiskFigures:
        """A snapshot."""
        size = self._ask(lambda disk: disk.size()) or 0
        return DiskFigures(self.limit, size, self._hits, self._written, self._skipped, self._damaged, self._failures)

    def press(self) -> None:
        """There is no memory for what waits to be written: the writer begins now, however much it has gathered."""
        with self._changed:
            if self._jobs and not self._busy:
                self._pressed = True
                self._hurry.notify_all()

    def flush(self, seconds: float = 10.0) -> bool:
        """Whether all that was given so far was written, or dropped, within so many seconds."""
        with self._changed:
            self._hurried += 1
            self._changed.notify_all()
            self._hurry.notify_all()
            try:
                return self._changed.wait_for(lambda: not (self._jobs or self._meta or self._busy), seconds)
            finally:
                self._hurried -= 1

    def close(self) -> None:
        """Writes what is still to be written. May be called again."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            self._hurry.notify_all()
            writer = self._writer
        if writer:
            writer.join(PATIENCE)
            if writer.is_alive():  # a disk that hangs keeps nobody from ending
                return
        with self._reading:
            disk, self._disk = self._disk, None
            if disk:
                disk.close()

    # ---- for DiskFile ------------------------------------------------------------------------------------------------

    def ranges(self, file: bytes, start: int, end: int) -> list[Kept]:
        """Those that begin in [start, end)."""
        return self._ask(lambda disk: disk.spans(file, start, end)) or []

    def blob(self, digest: bytes) -> Blob | None:
        """The blob, to be read. Close it."""

        def find(disk: Folder) -> Blob | None:
            row = disk.blob(digest)
            if row is None:
                return None
            length, content, parts = row
            return Blob(digest, length, content, parts, -1 if content is not None else disk.open_blob(digest))

        try:
            return self._ask(find)
        except FileNotFoundError:
            self.is_wrong(digest)
            return None

    def was_used(self, digest: bytes) -> None:
        """For what goes last; it is written with the next block, or at the end."""
        with self._changed:
            self._hits += 1
            self._used.add(digest)
            self._start_writer()

    def is_wrong(self, digest: bytes) -> None:
        """Its bytes are not what they should be, or not there."""
        self._damaged += 1
        self._tell("some of it is damaged, which is fetched anew")
        with self._changed:
            self._gone.add(digest)

    def push(self, job: _Job) -> bool:
        """Whether it is going to be written."""
        length = job.kept.end - job.kept.start
        with self._changed:
            if not self._accepts(length):
                self._skipped += 1
                return False
            self._queued += length
            self._jobs.append(job)
            self._wake()
        return True

    def _wake(self) -> None:
        """With the lock held. A writer that gathers, or rests, is left alone: to wake it costs the reader 0.05 ms."""
        if self._asleep:
            self._asleep = False
            self._changed.notify_all()

    # ---- inside ------------------------------------------------------------------------------------------------------

    def _accepts(self, length: int) -> bool:
        """With the lock held."""
        if self._closed or self._disk is None or self._queued + length > QUEUE or length > self.limit:
            return False
        if self._clock() < self._paused_until:
            return False
        self._start_writer()
        return True

    def _start_writer(self) -> None:
        """With the lock held."""
        if self._writer is None and not self._closed:
            self._writer = threading.Thread(target=self._write, name="headrace-block-cache", daemon=True)
            self._writer.start()

    def _start(self, *, anew: bool) -> None:
        """Opens the folder; one that is damaged is begun anew, where nobody else uses it."""
        try:
            self._disk = Folder(self.folder, anew=anew)
        except (NotOursError, sqlite3.DatabaseError) as why:
            if anew or isinstance(why, sqlite3.OperationalError):
                self._failed(why)
                return
            self._tell(f"it was damaged ({why}) and is begun anew")
            self._start(anew=True)
        except (OSError, InUseError) as why:
            self._failed(why)

    def _ask[T](self, question: Callable[[Folder], T | None]) -> T | None:
        """One question to the database; None where it has no answer or does not work."""
        with self._reading:
            if self._disk is None or self._damage:
                return None
            try:
                return question(self._disk)
            except FileNotFoundError:  # a blob's file
                raise
            except Failure as why:
                self._failed(why)
                return None

    def _mend(self) -> None:
        """Begins anew with a database that is damaged. On the writer's thread: nobody else may be writing."""
        with self._reading:
            disk, self._disk = self._disk, None
            if disk:
                disk.close()
            self._start(anew=True)
            self._damage = False

    def _failed(self, why: BaseException) -> None:
        self._failures += 1
        if isinstance(why, sqlite3.DatabaseError) and not isinstance(why, sqlite3.OperationalError):
            self._damage = True
        text = why.strerror if isinstance(why, OSError) and why.strerror else str(why)
        if isinstance(why, InUseError):
            text = "it is damaged, and another headrace uses it"
        self._tell(f"{text}; going on without it")

    def _tell(self, text: str) -> None:
        """Once as a warning."""
        level = logging.DEBUG if self._told else logging.WARNING
        self._told = True
        log.log(level, "the block cache in %s: %s", label(self.folder), text)

    # ---- the writer's thread -----------------------------------------------------------------------------------------

    def _write(self) -> None:
        self._guarded(lambda disk: disk.sweep(time.time() - STALE))
        rest, measured = 0.0, (self._clock(), self._cpu())
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                self._pause(rest)
                while not (self._jobs or self._meta or self._closed):
                    self._asleep = True
                    self._changed.wait()
                if not (self._jobs or self._meta or self._used):
                    return
                self._gather()
                self._busy = True
                began = self._clock()
                jobs = self._next_batch()
                meta = dict(self._meta)
                used, self._used = self._used, set()
                gone, self._gone = self._gone, set()
            if self._damage:
                self._mend()
            if gone:
                self._guarded(lambda disk, gone=gone: disk.remove(gone))  # type: ignore[misc]
            self._write_all(jobs, meta, used)
            with self._changed:
                for key, value in meta.items():
                    if self._meta.get(key) is value:
                        del self._meta[key]
                        self._queued -= len(value)
            now, before = (self._clock(), self._cpu()), measured
            measured = now
            busy = now[1] - before[1] >= BUSY * (now[0] - before[0])
            rest = REST * (now[0] - began) if busy else 0.0

    def _gather(self) -> None:
        """With the lock held: until nothing new comes, or there is enough."""
        until = self._clock() + PATIENT
        known = -1
        while known != len(self._jobs) and self._queued < MANY and not self._pressed and self._clock() < until:
            known = len(self._jobs)
            self._pause(GATHER)
            if self._closed or self._hurried:
                break
        self._pressed = False

    def _pause(self, seconds: float) -> None:
        """With the lock held, which others have meanwhile. Who closes or flushes ends it."""
        if seconds > 0:
            self._hurry.wait_for(lambda: self._closed or self._hurried or self._pressed, seconds)

    def _next_batch(self) -> list[_Job]:
        """With the lock held: what is written next, the oldest first."""
        batch, size = [], 0
        while self._jobs and size < BATCH:
            job = self._jobs.popleft()
            batch.append(job)
            size += len(job.view)
        return batch

    def _write_all(self, jobs: list[_Job], meta: dict[bytes, bytes], used: set[bytes]) -> None:
        new: list[NewBlob] = []
        for job in jobs:
            blob = self._guarded(lambda disk, job=job: _write_blob(disk, job))  # type: ignore[misc]
            if blob:
                new.append(blob)
        if self._guarded(lambda disk: disk.add(new, meta, used)):
            self._written += len(new)
            written = {blob.file + blob.kept.hash for blob in new}
            for job in jobs:
                if job.file.name + job.kept.hash in written:
                    job.file.learn(job.kept)
        for job in jobs:
            with self._changed:
                self._queued -= job.kept.end - job.kept.start
            job.done()
        self._guarded(lambda disk: disk.shrink(self.limit))

    def _guarded[T](self, work: Callable[[Folder], T]) -> T | None:
        """Some work on the disk, on the writer's thread; None where it failed."""
        disk = self._disk
        if disk is None:
            return None
        try:
            return work(disk)
        except Failure as why:
            self._paused_until = self._clock() + PAUSE
            self._failed(why)
            return None


class Blob:
    """A blob that is being read. Close it."""

    def __init__(self, digest: bytes, length: int, content: bytes | None, parts: bytes | None, fd: int) -> None:
        self.digest = digest
        self.length = length
        self._content = content
        self._parts = parts
        self._fd = fd

    def read_into(self, start: int, into: memoryview) -> bool:
        """Fills `into` with the bytes at `start`; whether they are what they should be."""
        step = PART if self._parts else max(1, self.length)
        end = start + len(into)
        for first in range(start // step * step, end, step):
            last = min(first + step, self.length)
            inside = first >= start and last <= end
            part = into[first - start : last - start] if inside else memoryview(bytearray(last - first))
            if not self._read(first, part) or hash_bytes(part) != self._hash(first // step):
                return False
            if not inside:
                low, high = max(first, start), min(last, end)
                into[low - start : high - start] = part[low - first : high - first]
        return True

    def _read(self, start: int, into: memoryview) -> bool:
        if self._content is not None:
            if len(self._content) != self.length:
                return False
            into[:] = self._content[start : start + len(into)]
            return True
        position = 0
        while position < len(into):
            try:
                got = os.preadv(self._fd, [into[position:]], start + position)
            except OSError:
                return False
            if not got:
                return False
            position += got
        return True

    def _hash(self, number: int) -> bytes:
        return self._parts[number * 32 : number * 32 + 32] if self._parts else self.digest

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class DiskFile:
    """What the cache has of one version of one file. Thread-safe."""

    def __init__(self, cache: BlockCache, name: bytes, size: int) -> None:
        self._cache = cache
        self.name = name
        self._size = size
        self._units: dict[int, Kept] = {}
        self._regions: set[int] = set()

    def extent(self, offset: int) -> tuple[int, int] | None:
        """From where to where the cache has what can be read at once around `offset`; None: it has not that byte."""
        kept = self._at(offset)
        if kept is None:
            return None
        if kept.end - kept.start <= PART:
            return kept.start, kept.end
        start = kept.start + (offset - kept.start) // PART * PART
        return start, min(start + PART, kept.end)

    def has(self, start: int, end: int) -> bool:
        """Whether the cache has all of that, as far as it knows."""
        while start < end:
            kept = self._at(start)
            if kept is None:
                return False
            start = kept.end
        return True

    def read_into(self, start: int, into: memoryview) -> bool:
        """Fills `into` with the bytes at `start`, verified. False where they are not there or not right."""
        end = start + len(into)
        position = start
        while position < end:
            kept = self._at(position)
            if kept is None:
                return False
            until = min(kept.end, end)
            if not self._read(kept, position, into[position - start : until - start]):
                self._forget(kept)
                return False
            position = until
        return True

    def put(self, start: int, view: memoryview, digest: bytes, done: Callable[[], None]) -> bool:
        """Keeps a range with that hash, CHUNK_SIZE at most. It is written a moment later, and `done` is called then, on
        another thread. False: it is not kept."""
        if start % UNIT or len(view) > CHUNK_SIZE:
            return False
        return self._cache.push(_Job(self, Kept(start, start + len(view), digest), view, done))

    def learn(self, kept: Kept) -> None:
        """It is there from now on."""
        self._units.update(dict.fromkeys(range(kept.start // UNIT, (kept.end - 1) // UNIT + 1), kept))

    def _at(self, offset: int) -> Kept | None:
        region = offset // REGION
        if region not in self._regions:
            first = max(0, region * REGION - CHUNK_SIZE)
            known = self._cache.ranges(self.name, first, (region + 1) * REGION)
            for kept in sorted(known, key=lambda kept: kept.end - kept.start):
                if 0 <= kept.start < kept.end <= min(self._size, kept.start + CHUNK_SIZE) and not kept.start % UNIT:
                    self.learn(kept)
            self._regions.add(region)
        return self._units.get(offset // UNIT)

    def _read(self, kept: Kept, offset: int, into: memoryview) -> bool:
        blob = self._cache.blob(kept.hash)
        if blob is None:
            return False  # it had to go
        try:
            if blob.length == kept.end - kept.start and blob.read_into(offset - kept.start, into):
                self._cache.was_used(kept.hash)
                return True
        finally:
            blob.close()
        self._cache.is_wrong(kept.hash)
        return False

    def _forget(self, kept: Kept) -> None:
        for unit in range(kept.start // UNIT, (kept.end - 1) // UNIT + 1):
            if self._units.get(unit) == kept:
                self._units.pop(unit, None)


def _write_blob(disk: Folder, job: _Job) -> NewBlob:
    """Puts the bytes where they belong. They were verified against the hash when they came."""
    view, kept = job.view, job.kept
    if len(view) <= SMALL:
        return NewBlob(job.file.name, kept, bytes(view), None)
    disk.write_blob(kept.hash, view)
    parts = None
    if len(view) > PART:
        parts = b"".join(hash_bytes(view[start : start + PART]) for start in range(0, len(view), PART))
    return NewBlob(job.file.name, kept, None, parts)
