"""What becomes of each file of a transfer into a share: opened there, offered, sent chunk by chunk, committed.

The counterpart of engine.fetch; engine.push_worker does the work on a lane. A file of up to MAX_PUT_FILES bytes goes
whole, together with others. A larger one is in flight on the host under its path and its version token, so any lane may
send any of its chunks, and after a lane broke, or the host was started anew, it is opened again and goes on.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from headrace.engine.buffers import Buffers
from headrace.engine.compress import Compressors
from headrace.engine.jobs import JobKeeper, Reports
from headrace.engine.lane import Lane
from headrace.engine.packing import Packing
from headrace.engine.progress import Progress
from headrace.engine.queue import Group, Job
from headrace.errors import (
    DestinationExistsError,
    DifferentError,
    HeadraceError,
    LocalFileError,
    NotFoundError,
    PermissionRefusedError,
    ProtocolError,
    RefusedError,
    RemoteFileError,
    RemoteIOError,
    SourceChangedError,
)
from headrace.protocol.messages import (
    CHUNK_SIZE,
    MAX_BATCH_FILE,
    MAX_PUT_FILES,
    NOT_PACKED,
    PutOpened,
)
from headrace.protocol.paths import RelPath
from headrace.storage.chunks import chunk_count, chunk_range
from headrace.storage.oserrors import local_error
from headrace.storage.tree import SharedTree
from headrace.transport.tcp import TcpStream

log = logging.getLogger("headrace.put")

OFFER_AT_ONCE: Final = 16  # chunks that are hashed and offered together
TOO_OFTEN: Final = 100  # times that one file is opened again, after which something is wrong with the host

# Failures that concern one file: it is reported and the others go on. Everything else ends the transfer.
FILE_ERRORS: Final = (
    SourceChangedError,
    DifferentError,
    DestinationExistsError,
    NotFoundError,
    RefusedError,
    RemoteIOError,
    RemoteFileError,
    LocalFileError,
)


@dataclass(eq=False)
class Flight:
    """A large file on its way. `job.lock` guards what changes.

    age: how often it was opened; what belongs to an earlier time does not count. left: chunks that are not there yet.
    offers: hashes go first. committing: its commit was sent, so that it may have its name. told: of other writers.
    """

    job: Job
    age: int = 0
    left: int = 0
    offers: bool = False
    committing: bool = False
    told: bool = False
    held: list[tuple[int, int]] = field(default_factory=list)
    opening: bool = True


@dataclass(eq=False, slots=True)
class Step:
    """One request about a file in flight. age: of the flight when it was made."""

    flight: Flight
    age: int

    @property
    def job(self) -> Job:
        return self.flight.job

    @property
    def length(self) -> int:
        return 0


class Open(Step):
    @property
    def length(self) -> int:
        """So that no lane opens more files than it would send."""
        return min(self.flight.job.size, CHUNK_SIZE)


class Commit(Step):
    pass


class Leave(Step):
    pass


@dataclass(eq=False, slots=True)
class Offer(Step):
    first: int
    count: int


@dataclass(eq=False, slots=True)
class Send(Step):
    """One chunk. digest: its hash, where it is known. at: bytes of it that are sent already."""

    index: int
    digest: bytes = b""

    @property
    def length(self) -> int:
        return chunk_range(self.flight.job.size, self.index)[1]


Work = Step | Group


class Pusher(JobKeeper[Work]):
    """Thread-safe. tree: what is sent; a job's source is a path in it, its dest one in the share.

    transfer: the number of this run. dedup: offer hashes where the host wants that. resolve: says what is to become of
    a job where another file is in its place: it changes the job, or raises DifferentError. told: hears of files that
    others write as well. compress: as in engine.fetch.Fetcher.
    """

    def __init__(
        self,
        tree: SharedTree,
        transfer: bytes,
        *,
        buffers: Buffers,
        progress: Progress,
        reports: Reports,
        dedup: bool,
        resolve: Callable[[Job], None],
        warn: Callable[[RelPath, str], None],
        compress: int = NOT_PACKED,
    ) -> None:
        super().__init__(self._expand, buffers=buffers, progress=progress, reports=reports, file_errors=FILE_ERRORS)
        self.tree = tree
        self.transfer = transfer
        self.compress = compress
        self._compressors = Compressors() if compress != NOT_PACKED else None
        self._dedup = dedup
        self._resolve = resolve
        self.warn = warn
        self._flights: dict[Job, Flight] = {}
        self._flying = threading.Lock()

    def packing_for(self, lane: Lane) -> Packing | None:
        """What compresses on that lane, where both sides want it."""
        if self._compressors is None or not lane.packs:
            return None
        stream, near = lane.messages.stream, False
        with contextlib.suppress(OSError):  # it is gone, and whoever sends on it will hear that
            near = isinstance(stream, TcpStream) and stream.near
        return Packing(self._compressors, lane.messages, near=near)

    # ---- the life of a job -----------------------------------------------------------------------------------------

    def _expand(self, job: Job) -> Iterable[Work]:
        # A small file is compared by the host, when it is there; that costs no more than asking.
        if job.size <= (MAX_BATCH_FILE if job.compare else MAX_PUT_FILES):
            return [Group([job])]
        flight = Flight(job)
        with self._flying:
            self._flights[job] = flight
        return [Open(flight, 0)]

    def finish(self, job: Job) -> None:
        if job.compare:
            self.progress.same(1, 0)  # its bytes were counted one by one
            self.reports.same([job])
            return
        self.progress.files_done(1)
        self.reports.fetched([job])

    def drop(self, job: Job, error: HeadraceError) -> None:
        """The host may close the file; what it has of it is for the next time."""
        if flight := self._flights.get(job):
            self.queue.push([Leave(flight, flight.age)])

    def ended(self, job: Job) -> None:
        with self._flying:
            self._flights.pop(job, None)

    def give_back(self, asked: Iterable[Step], waiting: Iterable[Step]) -> None:
        """A lane broke: what was sent on it and not answered, and what still waited, goes back into the queue."""
        asked = [step for step in asked if not isinstance(step, Leave)]
        for step in asked:
            self.settle(step.job, None)
        self.queue.push([step for step in (*asked, *waiting) if not step.job.over])

    # ---- what the host says --------------------------------------------------------------------------------------

    def opened(self, step: Open, answer: PutOpened) -> None:
        """The file is open on the host, which holds some of it."""
        flight, job = step.flight, step.job
        with job.lock:
            if flight.age != step.age:
                return
            flight.age += 1
            flight.opening = False
            flight.offers = self._dedup and answer.offer or job.compare
            flight.held, flight.left = _checked(answer.held, chunk_count(job.size))
            arrived = flight.committing and answer.there
            told, flight.told = flight.told, flight.told or bool(answer.others)
            job.written = arrived
        if arrived:  # the commit was heard, and its answer was lost
            return
        if answer.others and not told:
            self.warn(job.dest, "another client is writing this file too; the last whole file wins")
        if step.age == 0:
            self.progress.reused(sum(_bytes_of(job, range(first, first + n)) for first, n in flight.held))
        self.queue.push([Commit(flight, flight.age)] if not flight.left else _missing(flight))

    def wanted(self, step: Offer, chunks: Sequence[int], digests: Sequence[bytes]) -> None:
        """The host has all of what was offered but these."""
        flight, job = step.flight, step.job
        wanted = set(chunks)
        if not wanted <= set(range(step.first, step.first + step.count)):
            raise _lie("wants chunks that nobody offered")
        if wanted and job.compare:
            self._differs(flight)
            return
        there = [step.first + n for n in range(step.count) if step.first + n not in wanted]
        if self._count(step, len(there)):
            self.progress.reused(_bytes_of(job, there))
        self.queue.push([Send(flight, step.age, index, digests[index - step.first]) for index in sorted(wanted)])

    def stored(self, step: Send, *, known: bool) -> None:
        """The chunk is in its place."""
        if known and self._dedup:
            step.flight.offers = True
        self._count(step, 1)

    def committed(self, step: Commit, *, others: int, replaced: bool) -> None:
        """The file has its name."""
        flight, job = step.flight, step.job
        if others and not flight.told:
            self.warn(job.dest, "another client is writing this file too; the last whole file wins")
        if replaced:
            self.warn(job.dest, "another client had put a file there meanwhile; it was replaced")
        job.written = True

    def closed(self, step: Step) -> None:
        """The host knows nothing of the file any more: it is opened again. Raises where that happens without an end."""
        flight, job = step.flight, step.job
        with job.lock:
            if flight.age != step.age or flight.opening:
                return
            flight.opening = True
            flight.age += 1
            age = flight.age
        if age > TOO_OFTEN:
            raise _lie("forgets a file again and again")
        self.queue.push([Open(flight, age)])

    def _count(self, step: Step, chunks: int) -> bool:
        """So many chunks more are there; the last one brings the commit. Whether they count."""
        flight = step.flight
        with step.job.lock:
            if flight.age != step.age or not chunks:
                return False
            flight.left -= chunks
            over = flight.left <= 0
        if over:
            self.queue.push([Commit(flight, step.age)])
        return True

    def _differs(self, flight: Flight) -> None:
        """What is in its place has other content. Raises DifferentError where nothing is to be written."""
        job = flight.job
        with job.lock:
            if not job.compare:
                return
            old_dest = job.dest
            self._resolve(job)
            job.compare = False
            job.old = old_dest
            flight.age += 1
            flight.opening = True
            age = flight.age
        self.queue.push([Open(flight, age)])

    # ---- small files -----------------------------------------------------------------------------------------------

    def small_done(self, jobs: Sequence[Job]) -> None:
        """These are there, whole."""
        for job in jobs:
            job.written = job.over = True  # nobody else knows of them
        same = [job for job in jobs if job.compare]
        if same:
            self.progress.same(len(same), sum(job.size for job in same))
            self.reports.same(same)
            self.queue.finished(len(same))
        if done := [job for job in jobs if not job.compare] if same else jobs:
            self.tell_done(done)

    def small_failed(self, job: Job, error: HeadraceError) -> None:
        """The host did not take it. Where it is another file that is in the way, that is for `resolve` to say."""
        try:
            if isinstance(error, DestinationExistsError) and job.compare:
                job.compare = False
                job.old = job.dest
                self._resolve(job)
                with job.lock:
                    job.in_flight -= 1
                self.queue.push([Group([job])])
                return
        except FILE_ERRORS as why:
            error = why
        self.settle(job, error)


def _missing(flight: Flight) -> Iterator[Work]:
    """Steps for the chunks that the host does not hold, for as long as the file was not opened again meanwhile."""
    age, count = flight.age, chunk_count(flight.job.size)
    position = 0
    for first, number in (*flight.held, (count, 0)):
        while position < first:
            if flight.age != age:
                return
            if flight.offers:
                run = min(OFFER_AT_ONCE, first - position)
                yield Offer(flight, age, position, run)
                position += run
            else:
                yield Send(flight, age, position)
                position += 1
        position = first + number


def _bytes_of(job: Job, chunks: Iterable[int]) -> int:
    return sum(chunk_range(job.size, index)[1] for index in chunks)


def _checked(held: Sequence[tuple[int, int]], count: int) -> tuple[list[tuple[int, int]], int]:
    """Runs of chunks as a host sends them, and how many of `count` chunks are in none of them. Raises ProtocolError."""
    position = total = 0
    for first, number in held:
        if first < position or number < 1 or first + number > count:
            raise _lie("holds chunks that there are not")
        position, total = first + number, total + number
    return list(held), count - total


def _lie(what: str) -> ProtocolError:
    return ProtocolError(f"the host {what}")


def as_local(error: HeadraceError) -> HeadraceError:
    """What could not be read from `tree`, in which this machine stands for the host."""
    if isinstance(error, (NotFoundError, PermissionRefusedError, RemoteIOError)):
        cause = error.__cause__
        if isinstance(cause, OSError):
            found = local_error(cause, "read it")
            return LocalFileError(found.message, hint=found.hint)
        return LocalFileError(error.message.replace("in the share", "here"), hint="")
    return error
