"""The jobs of a transfer and the chunk tasks they fall into. Filled by the planner, drained by the workers."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, Protocol, cast

import msgspec

from headrace.errors import HeadraceError
from headrace.protocol.messages import CHUNK_SIZE, KIB, MAX_BATCH_FILE, MIB, Entry
from headrace.protocol.paths import RelPath
from headrace.storage.chunks import chunk_count, chunk_range
from headrace.storage.partial import Partial

MAX_WAITING: Final = 2000  # jobs that the planner may be ahead of the workers
GROUP_FILES: Final = 256  # in one request
GROUP_BYTES: Final = MIB
LEAST_PIECE: Final = 256 * KIB  # bytes; for a host, what has 128 KiB or less is a small read, before which bulk waits
GROUP_LEAST: Final = 64  # files for which a busy worker asks at once; fewer wait for more, or for it to be idle


class Job(msgspec.Struct, eq=False):
    """One file to fetch. source: its path in the share; dest: below the destination.

    replace: an existing file at dest may be replaced. old: an existing file with other content, which may
    have something in common with this one. compare: only if its content differs (sizes are equal).
    fresh: its folder was made by this transfer, so nothing can be there. `lock` guards everything below it.
    """

    source: RelPath
    dest: RelPath
    entry: Entry
    replace: bool = False
    compare: bool = False
    fresh: bool = False
    attempt: int = 1
    old: RelPath | None = None
    lock: threading.Lock = msgspec.field(default_factory=threading.Lock)
    partial: Partial | None = None
    in_flight: int = 0
    written: bool = False
    error: HeadraceError | None = None
    over: bool = False

    @property
    def size(self) -> int:
        return self.entry.size

    @property
    def single(self) -> bool:
        """Whether one chunk is the whole file: it is written at once and needs no journal."""
        return chunk_count(self.entry.size) <= 1

    @property
    def small(self) -> bool:
        """Whether it may come in a batch."""
        entry = self.entry
        return entry.size <= MAX_BATCH_FILE and not self.compare and not entry.sparse


class Pieces:
    """A chunk that is asked for in several requests, on any lanes. Thread-safe."""

    def __init__(self, length: int) -> None:
        self._missing = length
        self._lock = threading.Lock()

    def arrived(self, length: int) -> bool:
        """A piece of so many bytes is in its place, verified. Whether it was the last."""
        with self._lock:
            self._missing -= length
            return not self._missing


@dataclass(eq=False, slots=True)
class Task:
    """One chunk of a job. attempt: 2 when the first answer did not match its hash.

    ranges: (offset, length) of what of it is to be fetched, `length` bytes in all, where the rest is there already;
    empty: all of it. digest: the hash of the whole chunk then. pieces: of the whole, where this is one of them.
    """

    job: Job
    index: int
    offset: int
    length: int
    attempt: int = 1
    ranges: tuple[tuple[int, int], ...] = ()
    digest: bytes = b""
    pieces: Pieces | None = None

    @property
    def whole(self) -> Task:
        """The same chunk, all of it to be fetched; of a piece, that piece."""
        if self.pieces:
            return Task(self.job, self.index, self.offset, self.length, pieces=self.pieces)
        return Task(self.job, self.index, *chunk_range(self.job.size, self.index))

    def cut(self, length: int) -> tuple[Task, Task] | None:
        """The first `length` bytes and the rest, each to be asked for by itself; None where that makes no sense."""
        if not self.job.partial or self.ranges or self.attempt > 1 or self.length < length + LEAST_PIECE:
            return None
        pieces = self.pieces or Pieces(self.length)
        end = self.offset + length
        return (
            Task(self.job, self.index, self.offset, length, pieces=pieces),
            Task(self.job, self.index, end, self.length - length, pieces=pieces),
        )


@dataclass(eq=False, slots=True)
class Exclusive:
    """Work on a job that needs a lane without requests in flight: comparing manifests."""

    job: Job

    @property
    def length(self) -> int:
        return 0


@dataclass(eq=False, slots=True)
class Group:
    """Small jobs to be asked for together. again: an answer did not match its hash already."""

    jobs: list[Job]
    again: bool = False
    asked: list[Job] = field(init=False)  # those that have bytes
    length: int = field(init=False)  # bytes

    def __post_init__(self) -> None:
        self.asked = [job for job in self.jobs if job.entry.size]
        self.length = sum(job.entry.size for job in self.asked)

    @property
    def left(self) -> list[Job]:
        """Those that have not ended."""
        return [job for job in self.jobs if not job.over]


Work = Task | Group | Exclusive


class Sized(Protocol):
    """Work, which takes `length` bytes to be asked for or sent."""

    @property
    def length(self) -> int: ...


class WorkQueue[W: Sized]:
    """Thread-safe. `expand` turns a job into its work when a worker first gets to it (it opens the part file then, so
    files are opened only as fast as they are fetched). Its answer is drawn from one piece at a time, so that a file of
    any size costs no memory."""

    def __init__(self, expand: Callable[[Job], Iterable[W]]) -> None:
        self._expand = expand
        self._jobs: deque[Job] = deque()
        self._work: deque[W] = deque()
        self._expanded: deque[Iterator[W]] = deque()
        self._unfinished = 0
        self._closed = False
        self._cancelled = False
        self.only_small = True  # as far as it was taken: nothing but files that come in batches
        # Always told to all who wait: one alone might be the planner, and of a job's pieces every worker can have one.
        self._changed = threading.Condition()

    def put(self, *jobs: Job) -> bool:
        """Adds jobs; waits while MAX_WAITING jobs are waiting. False: the transfer was cancelled."""
        with self._changed:
            while len(self._jobs) >= MAX_WAITING and not self._cancelled:
                self._changed.wait(1.0)
            self._unfinished += len(jobs)
            self._jobs.extend(jobs)
            self._changed.notify_all()
            return not self._cancelled

    def push(self, work: Iterable[W]) -> None:
        """Puts work of a job at the front: its chunks after a comparison, or a chunk to be asked for again."""
        with self._changed:
            self._expanded.appendleft(iter(work))
            self._changed.notify_all()

    def finished(self, jobs: int = 1) -> None:
        """So many jobs ended, well or not."""
        with self._changed:
            self._unfinished -= jobs
            if not self._unfinished:
                self._changed.notify_all()

    def close(self) -> None:
        """No further `put`; workers end when everything is done."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def cancel(self) -> None:
        """Everybody stops: `take` gives None, `put` and `drained` return."""
        with self._changed:
            self._cancelled = True
            self._changed.notify_all()

    def drained(self, timeout: float) -> bool:
        """Whether every job that was put has ended, waiting at most `timeout` seconds for it."""
        with self._changed:
            self._changed.wait_for(lambda: not self._unfinished or self._cancelled, timeout)
            return not self._unfinished or self._cancelled

    def wake(self) -> None:
        """Whoever waits looks again whether it is to leave."""
        with self._changed:
            self._changed.notify_all()

    @property
    def over(self) -> bool:
        """Whether there is nothing left to do, or nobody is to do it."""
        with self._changed:
            return self._cancelled or (self._closed and not self._unfinished)

    def take(
        self,
        *,
        idle: bool,
        room: int,
        piece: int = CHUNK_SIZE,
        leaves: Callable[[], bool] = lambda: False,
        groups: bool = False,
    ) -> W | Group | None:
        """The next piece of work, or None: there is none now, or (where `idle`) there will be none any more.

        idle: the caller has no request in flight; it waits for work, and only it is given Exclusive work. room: the
        most bytes that the caller may ask for now; an idle caller gets any size. piece: a chunk that is longer than so
        many bytes is cut, and the rest stays in the queue. leaves: whether the caller is to go
        instead of waiting; asked again after `wake`. groups: small files may come as a Group.
        """
        while True:
            with self._changed:
                while True:
                    if self._cancelled:
                        return None
                    while not self._work and self._expanded:
                        if (next_work := next(self._expanded[0], None)) is None:
                            self._expanded.popleft()
                        else:
                            self._work.append(next_work)
                    if self._work:
                        work = self._work[0]
                        if isinstance(work, Task) and work.length > piece and (cut := work.cut(piece)):
                            self._work[0] = work = cast("W", cut[0])
                            self._work.insert(1, cast("W", cut[1]))
                        if not idle and (isinstance(work, Exclusive) or work.length > room):
                            return None
                        return self._work.popleft()
                    if self._jobs:
                        if groups and self._jobs[0].small:
                            return self._group(idle=idle, room=room)
                        job = self._jobs.popleft()
                        self.only_small = False
                        if len(self._jobs) == MAX_WAITING - 1:
                            self._changed.notify_all()
                        break
                    if not idle or (self._closed and not self._unfinished) or leaves():
                        return None
                    self._changed.wait(1.0)
            # Opening and preallocating a large file takes a while: not under the lock.
            work_of_job = iter(self._expand(job))
            with self._changed:
                self._expanded.append(work_of_job)
                self._changed.notify_all()

    def _group(self, *, idle: bool, room: int) -> Group | None:
        """Small jobs from the front, with the lock held; None where a busy worker had better wait for more."""
        jobs = self._jobs
        if not idle:
            few = len(jobs) < GROUP_LEAST and sum(job.entry.size for job in jobs) < GROUP_BYTES
            if few or room < GROUP_BYTES:
                return None
        found: list[Job] = []
        before, size = len(jobs), 0
        while jobs and len(found) < GROUP_FILES and (job := jobs[0]).small:
            size += job.entry.size
            if found and size > GROUP_BYTES:
                break
            found.append(job)
            jobs.popleft()
        if before >= MAX_WAITING > len(jobs):
            self._changed.notify_all()
        return Group(found)
