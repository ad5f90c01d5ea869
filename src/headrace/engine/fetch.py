"""What becomes of each file of a transfer: opened, compared, put together from its chunks, finished or failed."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from headrace.engine.buffers import Buffers
from headrace.engine.claims import Claims
from headrace.engine.dedup import Dedup
from headrace.engine.exchange import Exchange
from headrace.engine.jobs import JobKeeper, Reports
from headrace.engine.lane import Lane
from headrace.engine.manifests import ManifestReader
from headrace.engine.plan import OnExist
from headrace.engine.progress import Progress
from headrace.engine.queue import Exclusive, Job, Task, Work
from headrace.engine.updates import FALLBACKS, Updates
from headrace.errors import (
    ConnectionLostError,
    DestinationExistsError,
    DifferentError,
    HeadraceError,
    IntegrityError,
    LocalFileError,
    NotFoundError,
    PermissionRefusedError,
    RemoteIOError,
    SourceChangedError,
)
from headrace.observe import tracing
from headrace.protocol.messages import CHUNK_SIZE, NOT_PACKED, PHASE_BULK
from headrace.storage.chunks import chunk_count, chunk_range
from headrace.storage.destination import Destination
from headrace.storage.partial import Partial
from headrace.storage.small import SmallWriter

log = logging.getLogger("headrace.get")

MAX_REQUESTS: Final = 64  # in flight on one lane
MAX_BYTES: Final = 4 * CHUNK_SIZE  # asked for and not yet received on one lane

# Failures that concern one file: it is reported and the others go on. Everything else ends the transfer.
FILE_ERRORS: Final = (
    SourceChangedError,
    DifferentError,
    DestinationExistsError,
    NotFoundError,
    PermissionRefusedError,
    RemoteIOError,
    IntegrityError,
    LocalFileError,
)


# A finished file of several chunks: its job, what it is now, and its chunks as (offset, length, hash).
Keep = Callable[[Job, os.stat_result, Callable[[], Iterable[tuple[int, int, bytes]]]], None]


class Fetcher(JobKeeper[Work]):
    """Owns the queue and what happens to each job in it. Thread-safe; see engine.worker for who works on it.

    dedup: finds chunks on this disk; updates: what is left of them in old copies. Both are told here whose jobs they
    work on. keep: hears of each file of several chunks that is finished.
    """

    def __init__(
        self,
        destination: Destination,
        exchange: Exchange,
        *,
        buffers: Buffers,
        version: int,
        progress: Progress,
        reports: Reports,
        on_exist: OnExist,
        dedup: Dedup | None = None,
        updates: Updates | None = None,
        keep: Keep | None = None,
        compress: int = NOT_PACKED,
    ) -> None:
        """compress: what hosts that can are asked for, see GetChunk.zstd."""
        super().__init__(self._expand, buffers=buffers, progress=progress, reports=reports, file_errors=FILE_ERRORS)
        self._destination = destination
        self.exchange = exchange
        self._version = version
        self._on_exist = on_exist
        self._open_partials: set[Partial] = set()
        self._dedup = dedup
        self._keep = keep
        self.compress = compress
        self._updates = updates
        if dedup:
            dedup.bind(self)
        if updates:
            updates.bind(self)

    def abandon(self) -> None:
        """After the workers ended: closes the part files that are still open; they stay for the next time."""
        for partial in self._open_partials:
            partial.close()

    # ---- the life of a job -------------------------------------------------------------------------------------

    def _expand(self, job: Job) -> Iterable[Work]:
        with self.carrying():
            return self._work_of(job)
        return []

    def _work_of(self, job: Job) -> Iterable[Work]:
        try:
            if job.compare:
                return [Exclusive(job)]
            if job.size == 0:
                self.write_whole(job, memoryview(b""))
                self.settle(job, None, began=False)
                return []
            if job.single:
                return [Task(job, 0, 0, job.size)]
            return self._open(job)
        except FILE_ERRORS as why:
            self.settle(job, why, began=False)
            return []

    def _open(self, job: Job) -> Iterable[Work]:
        if self._updates and self._updates.holds(job):
            return []
        if self._dedup and self._dedup.holds(job):
            return []
        return self._work_of_partial(job)

    def _work_of_partial(self, job: Job, hashes: list[bytes] | None = None) -> Iterable[Work]:
        """hashes: of all chunks, where they are known."""
        partial = self._open_partial(job)
        if partial.stale and self._version >= PHASE_BULK:
            if hashes is None:
                return [Exclusive(job)]
            _adopt(partial, hashes)
        return self._missing(job, hashes)

    def _open_partial(self, job: Job) -> Partial:
        entry = job.entry
        job.partial = partial = self._destination.partial(
            job.dest, size=entry.size, version=entry.version, mtime_ns=entry.mtime_ns, sparse=entry.sparse
        )
        self._open_partials.add(partial)
        return partial

    def _missing(self, job: Job, hashes: list[bytes] | None = None) -> Iterable[Work]:
        """Tasks for the chunks that are not there yet; finishes the job when there are none."""
        if self._is_complete(job):
            return []
        if self._updates and hashes and self._updates.has_hashes(job, hashes):
            return []
        if self._dedup and hashes and self._dedup.has_hashes(job, hashes):
            return []
        if self._dedup and not hashes and (watched := self._dedup.watches(job)):
            return watched
        claims = Claims(job)
        claims.open_to(claims.count)
        return claims

    def _is_complete(self, job: Job) -> bool:
        """Whether nothing is missing in the part file; the job is over then. Counts what is there."""
        partial = job.partial
        assert partial is not None
        self.progress.reused(sum(chunk_range(job.size, index)[1] for index in partial.verified))
        if partial.complete:
            self.settle(job, None, began=False)
        return partial.complete

    # ---- engine.dedup.Jobs: files of which chunks may lie on this disk -------------------------------------------

    def open_held(self, job: Job) -> Claims | None:
        """Opens the part file of a job that was held. None: there is nothing to look for any more."""
        try:
            if self._open_partial(job).stale:
                self.queue.push([Exclusive(job)])
                return None
            return None if self._is_complete(job) else Claims(job)
        except FILE_ERRORS as why:
            self.settle(job, why, began=False)
            return None

    def work_of_held(self, job: Job) -> Iterator[Work]:
        """As if the job had never been held: its part file is opened when the first of it is asked for."""
        yield from self._work_of_released(job)

    def _work_of_released(self, job: Job) -> Iterable[Work]:
        with self.carrying():
            try:
                return self._work_of_partial(job)
            except FILE_ERRORS as why:
                self.settle(job, why, began=False)
        return []

    def fill(self, task: Task, digest: bytes, copy: Callable[[int], bool] | None) -> bool:
        """Puts a chunk in place by `copy` (see Partial.fill), or as zeros. False: `copy` could not, the chunk is still
        to come; it is the caller's then."""
        job = task.job
        if not self.begin(job):
            return True
        assert job.partial is not None
        error: HeadraceError | None = None
        filled = True
        try:
            if copy is None:
                job.partial.write_zeros(task.offset, task.length)
                job.partial.commit(task.index, digest)
            elif job.partial.fill(task.offset, task.length, copy):
                job.partial.commit(task.index, digest)
                self.progress.reused(task.length)
            else:
                filled = False
        except FILE_ERRORS as why:
            error = why
        self.settle(job, error)
        return filled

    def patch(self, task: Task, write: Callable[[Partial], object]) -> None:
        """Lets `write` put in place what is known of a chunk. The rest of it comes by `task`, if it has ranges; if it
        has none, that was all. What `write` raises as LocalDiskError is about the disk."""
        job = task.job
        if not self.begin(job):
            return
        assert job.partial is not None
        error: HeadraceError | None = None
        try:
            write(job.partial)
            if not task.ranges:
                self.assembled(task)
        except FILE_ERRORS as why:
            error = why
        self.settle(job, error)

    def assembled(self, task: Task) -> None:
        """A chunk of several origins is in place: it counts if it has its hash, else it is fetched whole. Raises
        LocalDiskError."""
        partial = task.job.partial
        assert partial is not None
        whole = task.whole
        if partial.holds(task.index, task.digest):
            partial.commit(task.index, task.digest)
            self.progress.reused(whole.length - sum(length for _, length in task.ranges))
        else:
            if FALLBACKS.add("pieces"):
                log.info("a chunk put together from an old copy does not match its hash; fetching it whole")
            self.queue.push([whole])

    # ---- chunks that are asked for -------------------------------------------------------------------------------

    def give_back(self, asked: Iterable[Task], waiting: Iterable[Task]) -> None:
        """A lane broke: what was asked for on it, and what still waited, goes back into the queue."""
        asked = list(asked)
        for task in asked:
            self.settle(task.job, None)
        self.queue.push([task for task in (*asked, *waiting) if not task.job.over])

    def write_whole(self, job: Job, content: memoryview) -> None:
        """The job's only chunk is its whole file."""
        entry = job.entry
        self._destination.write_whole(
            job.dest, content, mode=entry.mode, mtime_ns=entry.mtime_ns, replace=job.replace, sparse=entry.sparse
        )
        job.written = True

    def small_files(self) -> SmallWriter:
        """For the jobs of a group, on one thread."""
        return self._destination.small_files()

    def write_small(self, came: Sequence[tuple[Job, memoryview]], writer: SmallWriter) -> None:
        """The bytes of small jobs came. Ends those jobs, unless the disk takes nothing more at all: LocalDiskError."""
        done: list[Job] = []
        write = writer.write
        try:
            for job, content in came:
                entry = job.entry
                try:
                    write(job.dest, content, entry.mode, entry.mtime_ns, replace=job.replace, fresh=job.fresh)
                except FILE_ERRORS as why:
                    self.settle(job, why)
                    continue
                done.append(job)
        finally:
            failed = writer.name_all()
            named = [job for job in done if job.dest not in failed] if failed else done
            for job in named:
                job.written = job.over = True  # nobody else knows of it
            self.tell_done(named)
        for job in done if failed else ():
            if job.dest in failed:
                self.settle(job, failed[job.dest])

    @tracing.traced("finish")
    def finish(self, job: Job) -> None:
        if partial := job.partial:
            st = partial.finish(mode=job.entry.mode, mtime_ns=job.entry.mtime_ns, replace=job.replace)
            if self._keep:
                self._keep(job, st, partial.chunks)
        self.progress.files_done(1)
        self.reports.fetched([job])

    def drop(self, job: Job, error: HeadraceError) -> None:
        if job.partial:
            if isinstance(error, NotFoundError):
                job.partial.discard()
            else:
                job.partial.close()

    def ended(self, job: Job) -> None:
        if job.partial:
            self._open_partials.discard(job.partial)

    # ---- comparing with what is here ---------------------------------------------------------------------------

    def compare(self, job: Job, lane: Lane) -> None:
        """With a lane to itself: compares the file at the destination, or an outdated part file, with the host's.

        Raises ConnectionLostError; it is to be done on another lane then.
        """
        work: Iterable[Work] = ()
        try:
            if job.compare:
                work = self._compare_file(job, lane)
            else:
                assert job.partial is not None
                hashes = self._remote_hashes(job, lane)
                _adopt(job.partial, hashes)
                work = self._missing(job, hashes)
        except FILE_ERRORS as why:
            self.settle(job, why, began=False)
        except ConnectionLostError:
            self.queue.push([Exclusive(job)])
            raise
        self.queue.push(work)

    def _compare_file(self, job: Job, lane: Lane) -> Iterable[Work]:
        remote = self._remote_hashes(job, lane)
        with self.buffers.acquire(CHUNK_SIZE) as buffer:
            equal = self._destination.consists_of(job.dest, job.size, remote, buffer)
        if equal:
            self._destination.set_times_and_mode(job.dest, mode=job.entry.mode, mtime_ns=job.entry.mtime_ns)
            with job.lock:
                job.over = True
            self.progress.same(1, job.size)
            self.reports.same([job])
            self.queue.finished()
            return []
        resolve_different(job, self._on_exist, self._destination)
        job.compare = False
        return self._expand(job) if job.single else self._work_of_partial(job, remote)

    @tracing.traced("manifest")
    def _remote_hashes(self, job: Job, lane: Lane) -> list[bytes]:
        """The hashes of the file's chunks on the host. Phase 7 has none on the wire: there its bytes are read."""
        count = chunk_count(job.size)
        if self._version < PHASE_BULK:
            return [self._baseline_hash(job, lane, index) for index in range(count)]
        reader = ManifestReader(lane)
        reader.post(job)
        hashes: list[bytes] = []
        while True:
            part = reader.part()
            if part.error:
                raise part.error
            hashes += part.hashes
            if part.last:
                return hashes

    def _baseline_hash(self, job: Job, lane: Lane, index: int) -> bytes:
        offset, length = chunk_range(job.size, index)
        self.exchange.request(lane, job.source, job.entry.version, offset, length)
        lane.wait()
        with self.buffers.acquire(length) as buffer:
            return self.exchange.receive(lane, length, buffer, None)[0]


def _adopt(partial: Partial, hashes: list[bytes]) -> None:
    """Keeps the stale chunks that still have these hashes."""
    for index, digest in enumerate(hashes):
        if partial.stale.get(index) == digest:
            partial.adopt(index, digest)


def resolve_different(job: Job, on_exist: OnExist, destination: Destination) -> None:
    """The destination has other content: what `--on-exist` says. Raises DifferentError where nothing may be written."""
    job.old = job.dest
    if on_exist is OnExist.OVERWRITE:
        job.replace = True
    elif on_exist is OnExist.RENAME:
        job.dest = destination.free_name(job.dest)
    else:
        raise DifferentError(f"{job.dest} exists and is different")
