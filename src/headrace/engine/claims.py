"""Which way each chunk of a file goes: asked for from the host, or put in place from this disk."""

from __future__ import annotations

import threading

from headrace.engine.queue import Job, Task
from headrace.storage.chunks import chunk_count, chunk_range


class Claims:
    """The missing chunks of a job's part file, in order, each given out once. Thread-safe.

    As an iterator it gives the tasks for those that the host is to be asked for, as far as `open_to` has said; it is
    drawn from by whoever has the queue's lock, so it never waits. `claim` takes a chunk out of its way.
    """

    def __init__(self, job: Job) -> None:
        assert job.partial is not None
        self._job = job
        self._verified = job.partial.verified
        self._lock = threading.Lock()
        self._next = 0
        self._end = 0
        self._drawing = False  # somebody draws, or is about to
        self._claimed: set[int] = set()  # from `_next` on
        self.count = chunk_count(job.size)

    def __iter__(self) -> Claims:
        return self

    def __next__(self) -> Task:
        with self._lock:
            while self._next < self._end:
                index = self._next
                self._next += 1
                if index in self._claimed:
                    self._claimed.discard(index)
                elif index not in self._verified:
                    return Task(self._job, index, *chunk_range(self._job.size, index))
            self._drawing = False
            raise StopIteration

    def open_to(self, end: int) -> bool:
        """The host may be asked for all before `end`, unless they are claimed. Whether it must be put into the queue:
        nobody draws from it now."""
        with self._lock:
            self._end = max(self._end, min(end, self.count))
            if self._drawing or self._next >= self._end:
                return False
            self._drawing = True
            return True

    def claim(self, index: int) -> bool:
        """Takes a chunk; False where it is there, taken, or on its way from the host already."""
        with self._lock:
            if not self._next <= index < self.count or index in self._claimed or index in self._verified:
                return False
            self._claimed.add(index)
            return True

    @property
    def left(self) -> int:
        """Chunks that nobody has been asked for, at the most."""
        with self._lock:
            return self.count - self._next - len(self._claimed)

    def missing(self, first: int, end: int) -> range:
        """Those of the range [first, end) that may be left."""
        with self._lock:
            return range(max(first, self._next), min(end, self.count))
