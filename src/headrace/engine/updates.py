"""Files that are here in an older version: what is left of it is taken from there, and only the rest is fetched.

Chunk by chunk, in order, and the cheapest question first:

- a chunk that lies whole in the old copy, as far from its place as the one before it; its hash says so (the manifest)
- one that the chunk index knows
- one of which pieces are left: the host is asked for the sums of its blocks (GetBlocks), they are looked for in the old
  copy, and what is missing is asked for (GetRanges). The chunk counts when all of it has the manifest's hash

Where little is found for a while, only one chunk in some is asked about and the others are fetched. Why it is done this
way: docs/decisions/015-changed-files.md.

One thread of this module's own, started with the first such file and joined by `close`.
"""

from __future__ import annotations

import logging
import stat
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from headrace.engine.claims import Claims
from headrace.engine.fillers import Jobs as DedupJobs
from headrace.engine.lane import Lane
from headrace.engine.manifests import ManifestLane, OwnLane
from headrace.engine.queue import Job, Task
from headrace.errors import ConnectionLostError, HeadraceError, ProtocolError
from headrace.protocol.messages import CHUNK_SIZE, KIB, MAX_RANGES, MIB, Blocks, Error, GetBlocks
from headrace.protocol.paths import RelPath
from headrace.storage.blocks import check_marks, unpack_places, unpack_sums
from headrace.storage.chunks import ZERO_HASH, chunk_range, hash_bytes
from headrace.storage.index_lazy import LazyIndex
from headrace.storage.platform import Fallbacks
from headrace.storage.rawio import pwrite_all

if TYPE_CHECKING:
    import os

    from headrace.storage.clone import Copier
    from headrace.storage.old_copy import OldCopy, Run
    from headrace.storage.partial import Partial

log = logging.getLogger("headrace.get")

LEAST: Final = 64 * KIB  # bytes; a smaller old copy is not worth a question
MAX_HELD: Final = 20_000  # files that wait; further ones are fetched as if nothing were here
IN_FLIGHT: Final = 16  # chunks asked about at once
MAX_WAITING: Final = 64  # chunks that wait for their missing pieces to be asked for
POOR: Final = 1 / 16  # of a chunk; with less of it found, it is fetched whole
PATIENCE: Final = 8  # such chunks in a row, after which only one in PROBE is asked about
PROBE: Final = 8
SILENCE: Final = 15.0  # seconds without an answer, after which the lane counts as broken
MAX_BROKEN: Final = 2  # lanes that broke and brought nothing, in a row; then the rest of the file is fetched
MAX_AWAY: Final = 60  # tries to reach the host
AWAY_PAUSE: Final = 1.0  # seconds between them
TURN: Final = 0.1  # seconds between two looks whether it is over

FALLBACKS: Final = Fallbacks()  # why an old copy was not used, or not for a chunk; for the metrics


class Jobs(DedupJobs, Protocol):
    """What becomes of the jobs; a Fetcher."""

    def patch(self, task: Task, write: Callable[[Partial], object]) -> None:
        """Lets `write` put in place what is known of a chunk. The rest of it comes by `task`, if it has ranges."""


class Feed:
    """Tasks for the workers, at most MAX_WAITING of them. As an iterator it is drawn from with the queue's lock held,
    so that never waits. Thread-safe."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._tasks: deque[Task] = deque()
        self._drawing = False

    def __iter__(self) -> Feed:
        return self

    def __next__(self) -> Task:
        with self._changed:
            if self._tasks:
                self._changed.notify_all()
                return self._tasks.popleft()
            self._drawing = False
            raise StopIteration

    def put(self, task: Task, over: Callable[[], bool]) -> bool:
        """Adds one; waits while there are too many and it is not `over`. Whether this must be put into the queue:
        nobody draws from it now."""
        with self._changed:
            while len(self._tasks) >= MAX_WAITING and not over():
                self._changed.wait(TURN)
            self._tasks.append(task)
            was, self._drawing = self._drawing, True
            return not was


@dataclass(eq=False, slots=True)
class _File:
    """A job whose destination, or whose name, has an older version. hashes: of all chunks, where they are known.

    asked: chunks that the host was asked about: number, hash, and the shift that was tried. poor: chunks in a row of
    which little was found. steps: how far it is; each chunk that is taken up, and each answer.
    """

    job: Job
    hashes: list[bytes] | None = None
    claims: Claims | None = None
    feed: Feed = field(default_factory=Feed)
    asked: deque[tuple[int, bytes, int]] = field(default_factory=deque)
    poor: int = 0
    steps: int = 0


class Updates:
    """Thread-safe. `bind` it to its jobs, `close` it before the part files are.

    look, open_read: what is at a path of the destination; a descriptor for reading it (Destination). index: the chunk
    index, which knows other files. open_lane, release: streams to the host; one for manifests, one for blocks.
    """

    def __init__(
        self,
        look: Callable[[RelPath], os.stat_result | None],
        open_read: Callable[[RelPath], int],
        index: LazyIndex,
        open_lane: Callable[[], Lane],
        release: Callable[[Lane], None],
    ) -> None:
        self._look = look
        self._open_read = open_read
        self._index = index
        self._manifests = ManifestLane(open_lane, release)
        self._blocks = OwnLane(open_lane, release)
        self._jobs: Jobs | None = None
        self._changed = threading.Condition()
        self._waiting: deque[_File] = deque()
        self._thread: threading.Thread | None = None
        self._stopped = False
        self._buffer = memoryview(b"")
        self._copier: Copier | None = None
        self._found = self._lacked = 0  # bytes, for the log

    def bind(self, jobs: Jobs) -> None:
        """To be called once, before anything else."""
        self._jobs = jobs

    # ---- for the workers -------------------------------------------------------------------------------------------

    def holds(self, job: Job) -> bool:
        """Whether this takes the job, whose part file is not open yet, because an older version of it is here."""
        return self._is_for_us(job) and self._put(_File(job))

    def has_hashes(self, job: Job, hashes: list[bytes]) -> bool:
        """Whether this takes the job, whose part file is open, and whose hashes are known."""
        return self._is_for_us(job) and self._put(_File(job, hashes, Claims(job)))

    def _is_for_us(self, job: Job) -> bool:
        if job.old is None:
            return False
        try:
            st = self._look(job.old)
        except HeadraceError:
            return False  # whoever opens the part file beside it meets that too
        return st is not None and stat.S_ISREG(st.st_mode) and st.st_size >= LEAST

    def _put(self, file: _File) -> bool:
        with self._changed:
            if self._over():
                return False
            if len(self._waiting) >= MAX_HELD:
                _told("many", f"more than {MAX_HELD} changed files at once; further ones are fetched whole")
                return False
            self._waiting.append(file)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="headrace-updates")
                self._thread.start()
            self._changed.notify_all()
            return True

    def close(self) -> None:
        """Ends the thread. What is held stays unfetched, so this is for when every job is over, or the transfer is."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._manifests.abort()
        self._blocks.abort()
        if self._thread:
            self._thread.join()
            log.info("changed files: %d bytes found in old copies, %d asked for", self._found, self._lacked)

    def _over(self) -> bool:
        return self._stopped or (self._jobs is not None and self._jobs.failure is not None)

    @property
    def _bound(self) -> Jobs:
        assert self._jobs is not None
        return self._jobs

    # ---- the thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        with self._bound.carrying():
            self._index.start()
            self._buffer = memoryview(bytearray(CHUNK_SIZE))
            try:
                while (file := self._next()) is not None:
                    self._update(file)
            finally:
                self._drop_lanes()

    def _next(self) -> _File | None:
        """The next file; None at the end."""
        with self._changed:
            while not self._waiting and not self._over():
                self._changed.wait(TURN if self._jobs else None)
            return None if self._over() else self._waiting.popleft()

    def _drop_lanes(self) -> None:
        self._manifests.drop()
        self._blocks.drop()

    def _update(self, file: _File) -> None:
        """Settles every chunk of a file, or leaves it to the workers."""
        from headrace.storage.old_copy import OldCopy  # most transfers need none

        job = file.job
        if file.claims is None:
            file.claims = self._bound.open_held(job)
            if file.claims is None:
                return
        try:
            assert job.old is not None
            old = OldCopy(self._open_read(job.old), self._over)
        except (HeadraceError, OSError) as why:
            _told("unreadable", f"an old copy cannot be read, so all of its new version is fetched: {why}")
            self._release(file)
            return
        try:
            self._patiently(file, old)
        finally:
            old.close()

    def _patiently(self, file: _File, old: OldCopy) -> None:
        """Lanes that break are replaced as long as that gets us further. A host that is out of reach is waited for: the
        workers do that too, and end the transfer when it takes too long."""
        broken = away = 0
        while not self._over():
            before = file.steps
            try:
                self._go_through(file, old)
                return
            except ConnectionLostError as why:
                self._drop_lanes()
                if file.steps > before:
                    broken = away = 0
                if isinstance(why.__cause__, ConnectionLostError):  # there is no way to it
                    away += 1
                    with self._changed:
                        self._changed.wait_for(self._over, AWAY_PAUSE)
                else:
                    broken += 1
                if (broken >= MAX_BROKEN or away >= MAX_AWAY) and not self._over():
                    _told("lane", f"the host does not say what changed in a file; fetching all of it: {why.message}")
                    self._leave(file)
                    return

    def _go_through(self, file: _File, old: OldCopy) -> None:
        """Every chunk that is missing. Raises ConnectionLostError; what was not settled is in `asked`, or unclaimed."""
        assert file.claims is not None
        job = file.job
        for index, _, _ in file.asked:  # the lane broke
            self._ask(job, index)
        for index, digest in self._hashes(file):
            while len(file.asked) >= IN_FLIGHT:
                self._take_answer(file, old)
            if self._over() or job.over or job.error:
                self._drop_lanes()  # answers are still to come on them
                return
            if file.claims.claim(index):
                file.steps += 1
                self._take(file, old, index, digest)
        while file.asked:
            self._take_answer(file, old)
        self._release(file)

    def _hashes(self, file: _File) -> Iterator[tuple[int, bytes]]:
        """(chunk, hash) of all chunks, or as many as the host can say."""
        if file.hashes is not None:
            yield from enumerate(file.hashes)
            return
        self._manifests.get().messages.stream.set_timeout(SILENCE)
        self._manifests.post(file.job)
        while True:
            part = self._manifests.part()
            yield from enumerate(part.hashes, part.first)
            if part.last:  # with an error or not: that is for whoever fetches the rest
                return

    def _leave(self, file: _File) -> None:
        """Nothing more is looked for."""
        for index, _, _ in file.asked:
            self._fetch(file, _task(file.job, index))
        file.asked.clear()
        self._release(file)

    def _release(self, file: _File) -> None:
        """What was not claimed is fetched."""
        claims = file.claims
        assert claims is not None
        if claims.open_to(claims.count):
            self._bound.queue.push(claims)

    # ---- one chunk -------------------------------------------------------------------------------------------------

    def _take(self, file: _File, old: OldCopy, index: int, digest: bytes) -> None:
        """A chunk that is not there yet."""
        task = _task(file.job, index)
        if task.length == CHUNK_SIZE and digest == ZERO_HASH(CHUNK_SIZE):
            self._bound.fill(task, digest, None)
        elif self._whole(file, old, task, digest) or self._from_index(task, digest):
            pass
        elif file.poor >= PATIENCE and index % PROBE:
            self._fetch(file, task)
        else:
            file.asked.append((index, digest, old.shift))  # first: the lane may break
            self._ask(file.job, index)

    def _whole(self, file: _File, old: OldCopy, task: Task, digest: bytes) -> bool:
        """Whether the chunk lies whole in the old copy, where it is to be expected; it is put in place then."""
        view = self._buffer[: task.length]
        for shift in dict.fromkeys((old.shift, 0)):
            if _reads(old, view, task.offset + shift) and hash_bytes(view) == digest:
                old.shift = shift
                file.poor = 0

                def copy(fd: int, view: memoryview = view) -> bool:
                    pwrite_all(fd, view, task.offset)
                    return True

                self._found += task.length
                self._bound.fill(task, digest, copy)
                return True
        return False

    def _from_index(self, task: Task, digest: bytes) -> bool:
        """Whether the chunk lies in another file here. What the index knows may be this very file, as it was before."""
        index = self._index.ready(0)
        places = index.lookup([digest]).get(digest) if index else None
        if index is None or not places:
            return False
        copier = self._the_copier()
        return self._bound.fill(task, digest, lambda fd: copier.fill(index, places, fd, task.offset, task.length))

    def _the_copier(self) -> Copier:
        if self._copier is None:
            from headrace.storage.clone import Copier

            self._copier = Copier()
        return self._copier

    def _fetch(self, file: _File, task: Task) -> None:
        """The workers ask for it."""
        self._lacked += task.length
        if file.feed.put(task, self._over):
            self._bound.queue.push(file.feed)

    # ---- what the host says of it ------------------------------------------------------------------------------------

    def _ask(self, job: Job, index: int) -> None:
        lane = self._blocks.get()
        if not lane.blocks:
            raise ConnectionLostError("another host answers by now")
        lane.messages.stream.set_timeout(SILENCE)
        lane.post(GetBlocks(lane.next_id(), bytes(job.source), job.entry.version, index))
        lane.flush()

    def _take_answer(self, file: _File, old: OldCopy) -> None:
        """To the oldest question. Raises ConnectionLostError, and ProtocolError for what is no answer to it."""
        message, _ = self._blocks.get().answer()
        index, digest, tried = file.asked.popleft()
        file.steps += 1
        task = _task(file.job, index)
        if isinstance(message, Error):  # such as that it changed: whoever fetches it meets that too
            self._fetch(file, task)
            return
        if not isinstance(message, Blocks):
            raise ProtocolError("the host answered a question about blocks with something else")
        try:
            check_marks(message.marks)
            sums, places = unpack_sums(message.sums, task.length), unpack_places(message.places, task.length)
        except ValueError as why:
            raise ProtocolError(f"the host did not send {why}") from why
        if old.shift != tried and self._whole(file, old, task, digest):
            return
        try:
            runs = old.search(task.offset, task.length, sums, message.marks, places)
        except OSError as why:
            _told("unreadable", f"an old copy cannot be read to its end: {why}")
            runs = []
        if sum(length for _, length, _ in runs) < task.length * POOR:
            file.poor += 1
            self._fetch(file, task)
        else:
            file.poor = 0
            self._assemble(file, old, task, digest, runs)

    def _assemble(self, file: _File, old: OldCopy, task: Task, digest: bytes, runs: list[Run]) -> None:
        """Puts the pieces in place and asks for those between them."""
        from headrace.storage.old_copy import missing

        gaps = tuple(missing(runs, task.offset, task.length))
        assert len(gaps) <= MAX_RANGES
        lacking = sum(length for _, length in gaps)
        pieces = Task(task.job, task.index, task.offset, lacking, ranges=gaps, digest=digest)

        def write(partial: Partial) -> None:
            for start, length, place in runs:
                if place is None:
                    partial.write_zeros(start, length)
                    continue
                for position in range(0, length, MIB):
                    view = self._buffer[: min(MIB, length - position)]
                    if not _reads(old, view, place + position):
                        return  # what is missing shows by the hash
                    partial.write(start + position, view)

        self._found += task.length - lacking
        self._bound.patch(pieces, write)
        if gaps:
            self._fetch(file, pieces)


def _task(job: Job, index: int) -> Task:
    return Task(job, index, *chunk_range(job.size, index))


def _reads(old: OldCopy, view: memoryview, offset: int) -> bool:
    try:
        return old.read(view, offset)
    except OSError as why:
        _told("unreadable", f"an old copy cannot be read to its end: {why}")
        return False


def _told(reason: str, message: str) -> None:
    if FALLBACKS.add(reason):
        log.info("%s", message)
