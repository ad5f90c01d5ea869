"""Chunks that lie on this disk already are put in place from here, and not asked for from the host.

To know which they are takes the file's manifest, and a host that never hashed the file has to read all of it for that.
So it is asked for where something speaks for a hit, and only then:

- a file of the same size that the index knows and that is still what it was. Such a job is held: none of its chunks is
  asked for before its hash is known. Of those that do not match, a few are enough for size alone to be no sign any more
- a chunk that came from the host, and that the index knows. The file is on its way then; what was not asked for yet is
  taken from this disk as the hashes come

A manifest that brings nothing for a while is not read to its end. Reasons and figures: docs/decisions/011-dedup.md.

Threads of this module's own: one asks, some put chunks in place (engine.fillers), and the first of those looks after
what arrives. They start with the first job that may need them, and are joined by `close`. What becomes of a job goes
through `Jobs`, as it does for the workers.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from headrace.engine.claims import Claims
from headrace.engine.fillers import FILLERS, LOOK_EVERY, Fill, Fillers, Jobs
from headrace.engine.lane import Lane
from headrace.engine.manifests import ManifestLane
from headrace.engine.queue import Job
from headrace.errors import ConnectionLostError, HeadraceError
from headrace.protocol.messages import CHUNK_SIZE
from headrace.storage.chunks import ZERO_HASH, chunk_range
from headrace.storage.index_lazy import LazyIndex
from headrace.storage.platform import Fallbacks

if TYPE_CHECKING:
    from headrace.storage.index import ChunkIndex

log = logging.getLogger("headrace.get")

READY: Final = 0.25  # seconds that the first file waits for the index to be open; some 15 ms are usual
HOLD: Final = 2.0  # seconds without a hash, after which what is held is fetched
MAX_HELD: Final = 2000  # jobs; who brings more of them waits
AT_ONCE: Final = 4096  # hashes that are looked for together
IN_FLIGHT: Final = 16  # manifests asked for at once
PATIENCE: Final = 16  # chunks in a row that are not here, after which a manifest is not read on
WORTH: Final = 64  # so many hashes that are still to come are worth a new connection, to be rid of them
MAX_ASKED: Final = 3  # manifests of one file
MAX_BROKEN: Final = 2  # lanes in a row that failed before a manifest was whole; then nobody is asked any more
# Manifests in a row that brought nothing, after which that sign is not believed for the rest of the transfer.
TRUST: Final = {"time": 8, "size": 3}

FALLBACKS: Final = Fallbacks()  # why known chunks were fetched all the same; for the metrics


@dataclass(eq=False)
class _File:
    """A job that chunks are looked for. claims: once its part file is open. sign: why; a key of TRUST, or "chunk".

    hashes: all of them, where they are known. held: the host is asked for none of what has no hash yet.
    asked: how many manifests. hits, misses: of the present one; misses in a row.
    """

    job: Job
    sign: str
    claims: Claims | None = None
    hashes: list[bytes] | None = None
    held: bool = True
    asked: int = 0
    hits: int = 0
    misses: int = 0


class Dedup:
    """Thread-safe. `bind` it to its jobs, `close` it before the part files are.

    index: is started with the first job that may need it. open_lane, release: a stream to the host for manifests. The
    clock is for tests.
    """

    def __init__(
        self,
        index: LazyIndex,
        open_lane: Callable[[], Lane],
        release: Callable[[Lane], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lazy = index
        self._lane = ManifestLane(open_lane, release)
        self._clock = clock
        self._jobs: Jobs | None = None
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._waiting: deque[_File] = deque()  # for being asked about
        self._asked: deque[_File] = deque()  # in the order of their answers; the asking thread's, but for a look
        self._fillers = Fillers(index, self._over, self._look)
        self._watched: dict[Job, _File] = {}
        self._trust = dict(TRUST)
        self._heard = 0.0  # when the last hash came, or the first one was asked for
        self._broken = 0
        self._asking = True
        self._stopped = False
        self._ready_by: float | None = None

    def bind(self, jobs: Jobs) -> None:
        """To be called once, before anything else."""
        self._jobs = jobs

    # ---- for the workers -------------------------------------------------------------------------------------------

    def holds(self, job: Job) -> bool:
        """Whether this takes the job, whose part file is not open yet, because it is probably here.

        Waits for the index to be open, for READY at the most over all calls; and while MAX_HELD are held.
        """
        index = self._index()
        if index is None or not self._asking:
            return False
        sign = self._sign(index, job)
        if sign is None:
            return False
        with self._changed:
            while len(self._waiting) >= MAX_HELD and not self._over():
                self._changed.wait(LOOK_EVERY)
            if self._over() or not self._asking:
                return False
            self._put(_File(job, sign))
            return True

    def has_hashes(self, job: Job, hashes: list[bytes]) -> bool:
        """Whether this takes the job, whose part file is open, and whose hashes are known."""
        if self._index() is None:
            return False
        with self._changed:
            if self._over():
                return False
            self._put(_File(job, "chunk", Claims(job), hashes))
            return True

    def watches(self, job: Job) -> Claims | None:
        """The tasks of a job that is to be fetched, whose part file is open: what arrives of it is looked for."""
        if self._index() is None or not self._asking:
            return None
        assert job.partial is not None
        claims = Claims(job)
        job.partial.arrivals(more=True)
        claims.open_to(claims.count)
        with self._changed:
            self._watched[job] = _File(job, "chunk", claims, held=False)
            self._start()
        return claims

    def _index(self) -> ChunkIndex | None:
        if self._ready_by is None:
            self._lazy.start()
            self._ready_by = self._clock() + READY
        return self._lazy.ready(max(0.0, self._ready_by - self._clock()))

    def _sign(self, index: ChunkIndex, job: Job) -> str | None:
        """What speaks for the file being here: one of the same size is, with the same time or with another one."""
        for file in index.similar(job.size, job.entry.mtime_ns):
            sign = "time" if file.facts.mtime_ns == job.entry.mtime_ns else "size"
            if self._trust[sign] > 0 and file.is_still():
                return sign
        return None

    def _over(self) -> bool:
        return self._stopped or (self._jobs is not None and self._jobs.failure is not None)

    def _put(self, file: _File) -> None:
        """With the lock held."""
        if not self._waiting and not self._asked:
            self._heard = self._clock()
        self._waiting.append(file)
        self._start()
        self._changed.notify_all()

    def _start(self) -> None:
        if self._threads or self._stopped:
            return
        jobs, fillers = self._bound, self._fillers
        bodies = [self._ask, *(partial(fillers.work, jobs, self._clock, looks=not n) for n in range(FILLERS))]
        for number, body in enumerate(bodies):
            thread = threading.Thread(target=self._run, args=(body,), name=f"headrace-dedup-{number}")
            self._threads.append(thread)
            thread.start()

    def _run(self, body: Callable[[], None]) -> None:
        with self._bound.carrying():
            body()

    @property
    def _bound(self) -> Jobs:
        assert self._jobs is not None
        return self._jobs

    def close(self) -> None:
        """Ends the threads. What is held stays unfetched, so this is for when every job is over, or the transfer is."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._lane.abort()
        self._fillers.wake()
        for thread in self._threads:
            thread.join()
        self._fillers.tell()

    # ---- the thread that asks --------------------------------------------------------------------------------------

    def _ask(self) -> None:
        try:
            while (file := self._next()) is not None:
                if file.hashes is not None:
                    for first in range(0, len(file.hashes), AT_ONCE):
                        self._take_part(file, first, file.hashes[first : first + AT_ONCE])
                    self._release_held([file])
                    continue
                try:
                    self._exchange(file)
                except ConnectionLostError as why:
                    self._lost(why)
        finally:
            self._lane.drop()

    def _next(self) -> _File | None:
        """The next file to be asked about; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._over())
            if self._over():
                return None
            file = self._waiting.popleft()
            self._changed.notify_all()
            return file

    def _exchange(self, file: _File) -> None:
        """Asks for this file's manifest and for some of those that wait, and reads all of the answers."""
        if not self._begin(file):
            return
        while self._asked:
            while len(self._asked) < IN_FLIGHT and (more := self._another()):
                self._begin(more)
            head, part = self._asked[0], self._lane.part()
            if part.hashes:
                self._heard = self._clock()
                self._take_part(head, part.first, part.hashes)
            gives_up = head.misses >= PATIENCE and part.left >= WORTH
            if part.last or gives_up:
                with self._changed:
                    self._asked.popleft()
                    if not part.error:
                        self._judge(head)
                self._broken = 0
                # An error, such as that it changed, is for whoever fetches it.
                self._release_held([head])
            if gives_up:
                self._watch(head)
                self._leave_lane()

    def _another(self) -> _File | None:
        with self._changed:
            if self._waiting and self._waiting[0].hashes is None:
                self._changed.notify_all()
                return self._waiting.popleft()
            return None

    def _begin(self, file: _File) -> bool:
        """Posts the request for the file's manifest. False: there is no need to."""
        if file.claims is None:
            file.claims = self._bound.open_held(file.job)
            if file.claims is None:
                return False
        if not self._asking:  # given up meanwhile
            self._release_held([file])
            return False
        file.asked += 1
        file.hits = file.misses = 0
        with self._changed:
            self._asked.append(file)
        self._lane.post(file.job)
        return True

    def _take_part(self, file: _File, first: int, hashes: list[bytes]) -> None:
        """What is to become of these chunks."""
        claims, index = file.claims, self._lazy.ready(0)
        assert claims is not None
        missing = claims.missing(first, first + len(hashes))
        wanted = [hashes[number - first] for number in missing]
        places = index.lookup(wanted) if index else {}
        fills: list[Fill] = []
        for number, digest in zip(missing, wanted, strict=True):
            length = chunk_range(file.job.size, number)[1]
            zero = length == CHUNK_SIZE and digest == ZERO_HASH(length)
            if not zero and digest not in places:
                file.misses += 1
                continue
            file.misses = 0
            file.hits += not zero
            if claims.claim(number):
                fills.append(Fill(file.job, number, digest, [] if zero else places[digest]))
        if not file.hits and file.hashes is None:
            file.held = False  # none of the first ones: it is another file
        if claims.open_to(first + len(hashes) if file.held else claims.count):
            self._bound.queue.push(claims)
        for fill in fills:
            self._fillers.put(fill)
            self._heard = self._clock()  # while this waits it is this disk that is slow, not the host

    def _judge(self, file: _File) -> None:
        """What the sign that led to this manifest was worth. With the lock held."""
        if file.sign in self._trust:
            self._trust[file.sign] = TRUST[file.sign] if file.hits else self._trust[file.sign] - 1

    def _watch(self, file: _File) -> None:
        """Looks at what comes of a file whose manifest was not read to its end."""
        claims, part = file.claims, file.job.partial
        if claims and part and claims.left and file.asked < MAX_ASKED:
            file.sign = "chunk"
            part.arrivals(more=True)
            with self._changed:
                self._watched[file.job] = file

    def _release_held(self, files: Iterable[_File]) -> None:
        """They are fetched, but for what is known to be here."""
        queue = self._bound.queue
        for file in files:
            file.held = False
            if file.claims is None:
                queue.push(self._bound.work_of_held(file.job))
            elif file.claims.open_to(file.claims.count):
                queue.push(file.claims)

    # ---- the lane --------------------------------------------------------------------------------------------------

    def _leave_lane(self) -> None:
        """The host shall not go on hashing. What else was asked for on the lane is asked for anew."""
        self._lane.drop()
        with self._changed:
            self._waiting.extendleft(reversed(self._asked))
            self._asked.clear()

    def _lost(self, why: HeadraceError) -> None:
        """The lane broke. It may have been idle for too long; the second time in a row, everything is fetched."""
        self._broken += 1
        self._asking = self._broken < MAX_BROKEN
        self._leave_lane()
        if self._over() or self._asking:
            return
        if FALLBACKS.add("lane"):
            log.info("no hashes from the host, so what is here is fetched all the same: %s", why.message)
        self._give_up()

    def _give_up(self) -> None:
        with self._changed:
            known = [file for file in self._waiting if file.hashes is not None]
            held = [file for file in self._waiting if file.hashes is None]
            self._waiting = deque(known)
            self._changed.notify_all()
        self._release_held(held)

    # ---- looked at now and then, on the first thread that fills -----------------------------------------------------

    def _look(self) -> None:
        self._look_at_arrivals()
        self._look_for_silence()

    def _look_at_arrivals(self) -> None:
        """Asks for the manifests of files of which a chunk came that is here."""
        with self._changed:
            watched = list(self._watched.values())
        fresh: dict[_File, list[bytes]] = {}
        done: list[_File] = []
        for file in watched:
            part, claims = file.job.partial, file.claims
            assert part is not None and claims is not None
            if file.job.over or not claims.left:
                part.arrivals(more=False)
                done.append(file)
            elif hashes := part.arrivals(more=True):
                fresh[file] = hashes
        index = self._lazy.ready(0)
        hashes = [digest for some in fresh.values() for digest in some if digest != ZERO_HASH(CHUNK_SIZE)]
        known = index.lookup(hashes) if index and hashes else {}
        found = [file for file, some in fresh.items() if not known.keys().isdisjoint(some)]
        for file in found:
            assert file.job.partial is not None
            file.job.partial.arrivals(more=False)
        with self._changed:
            for file in (*done, *found):
                self._watched.pop(file.job, None)
            for file in found if self._asking else ():
                self._put(file)

    def _look_for_silence(self) -> None:
        """A host that gives no hashes must not keep what is held from being fetched."""
        with self._changed:
            if self._clock() - self._heard < HOLD or not self._asked or self._fillers.full:
                return
            held = [file for file in self._asked if file.held and file.claims]
            waiting = [file for file in self._waiting if file.held and file.hashes is None]
            for file in waiting:
                self._waiting.remove(file)
            self._changed.notify_all()
        if (held or waiting) and FALLBACKS.add("silent"):
            log.info("no hashes for %.0f s; fetching what may be here", HOLD)
        self._release_held([*held, *waiting])
