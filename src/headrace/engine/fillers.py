"""Threads that put chunks in place from this disk: copied or cloned, verified, committed."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from headrace.engine.claims import Claims
from headrace.engine.queue import Job, Task, Work
from headrace.storage.chunks import chunk_range
from headrace.storage.index_lazy import LazyIndex

if TYPE_CHECKING:
    from headrace.storage.clone import Copier
    from headrace.storage.index_places import Place

log = logging.getLogger("headrace.get")

FILLERS: Final = 2  # one copies and hashes more than 1 GB/s
MAX_FILLS: Final = 64  # chunks that wait for being put in place
LOOK_EVERY: Final = 0.1  # seconds


class Queue(Protocol):
    """A WorkQueue, as far as it is needed here."""

    def push(self, work: Iterable[Work]) -> None: ...


class Jobs(Protocol):
    """What becomes of the jobs of which chunks are looked for; a Fetcher."""

    @property
    def queue(self) -> Queue: ...
    @property
    def failure(self) -> BaseException | None: ...
    def carrying(self) -> AbstractContextManager[None]: ...
    def open_held(self, job: Job) -> Claims | None:
        """Opens the part file of a job that was held. None: there is nothing to look for any more."""

    def work_of_held(self, job: Job) -> Iterable[Work]:
        """As if the job had never been held."""

    def fill(self, task: Task, digest: bytes, copy: Callable[[int], bool] | None) -> bool:
        """Puts a chunk in place by `copy`, or as zeros. False: `copy` could not, the chunk is still to come."""


@dataclass(eq=False, slots=True)
class Fill:
    """A chunk of a job, claimed. places: where it lies; none where it is all zeros."""

    job: Job
    index: int
    digest: bytes
    places: list[Place]


class Fillers:
    """FILLERS bodies for threads of somebody else's, and a bounded queue for them. Thread-safe.

    over: whether to stop. look: called by the first of the threads, every LOOK_EVERY seconds or so.
    """

    def __init__(self, index: LazyIndex, over: Callable[[], bool], look: Callable[[], None]) -> None:
        self._index = index
        self._over = over
        self._look = look
        self._changed = threading.Condition()
        self._waiting: deque[Fill] = deque()
        self._copying = threading.Lock()
        self._copier: Copier | None = None

    def put(self, fill: Fill) -> None:
        """Queues it; waits while there are MAX_FILLS."""
        with self._changed:
            while len(self._waiting) >= MAX_FILLS and not self._over():
                self._changed.wait(LOOK_EVERY)
            self._waiting.append(fill)
            self._changed.notify_all()

    @property
    def full(self) -> bool:
        """Whether there are so many that it is this disk which takes the time."""
        with self._changed:
            return len(self._waiting) >= MAX_FILLS // 2

    def work(self, jobs: Jobs, clock: Callable[[], float], *, looks: bool) -> None:
        """The body of a thread. looks: whether it is the one that does."""
        looked = clock()
        while not self._over():
            with self._changed:
                if not self._waiting:
                    self._changed.wait(LOOK_EVERY)
                fill = self._waiting.popleft() if self._waiting else None
                if fill and len(self._waiting) == MAX_FILLS - 1:
                    self._changed.notify_all()
            if fill:
                self._put_in_place(jobs, fill)
            if looks and clock() - looked >= LOOK_EVERY:
                looked = clock()
                self._look()

    def _put_in_place(self, jobs: Jobs, fill: Fill) -> None:
        index = self._index.ready(0)
        offset, length = chunk_range(fill.job.size, fill.index)
        copier = self._the_copier()

        def copy(fd: int) -> bool:
            return index is not None and copier.fill(index, fill.places, fd, offset, length)

        task = Task(fill.job, fill.index, offset, length)
        if not jobs.fill(task, fill.digest, copy if fill.places else None):
            jobs.queue.push([task])

    def _the_copier(self) -> Copier:
        with self._changed:
            if self._copier is None:
                from headrace.storage.clone import Copier, copy_range  # most transfers need none

                # The kernel takes one writer a file at a time, and the second one spins: here it sleeps, which saves a
                # third of the time that the processor is in the kernel. Hashing goes on beside it.
                def copy(*of: int) -> int:
                    with self._copying:
                        return copy_range(*of)

                self._copier = Copier(copy=copy)
            return self._copier

    def wake(self) -> None:
        """They look again whether it is over."""
        with self._changed:
            self._changed.notify_all()

    def tell(self) -> None:
        """What came of it, for the log."""
        if self._copier and (counts := self._copier.counts()):
            log.info("chunks from this disk: %s", ", ".join(f"{name} {counts[name]}" for name in sorted(counts)))
