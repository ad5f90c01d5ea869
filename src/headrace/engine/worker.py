"""One lane at work for a transfer: what it keeps in flight, and what it gives back when the lane breaks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from headrace.engine.fetch import FILE_ERRORS, Fetcher
from headrace.engine.lane import Lane
from headrace.engine.progress import Lane as Counters
from headrace.engine.queue import Exclusive, Task, Work
from headrace.errors import ConnectionLostError, HeadraceError, IntegrityError, LocalFileError
from headrace.protocol.messages import CHUNK_SIZE
from headrace.transport.framed import PIECE

MAX_REQUESTS: Final = 64  # small ones in flight on one lane


class Worker:
    """Used on one thread, for one run.

    room: how many chunks it may have in flight now. leaves: whether it should ask for no more and end. Both are asked
    before each request.
    """

    def __init__(
        self,
        fetcher: Fetcher,
        lane: Lane,
        counters: Counters,
        *,
        room: Callable[[], int],
        leaves: Callable[[], bool] = lambda: False,
    ) -> None:
        self._fetcher = fetcher
        self._lane = lane
        self._counters = counters
        self._room = room
        self._leaves = leaves
        self._window: deque[Task] = deque()
        self._again: deque[Task] = deque()  # on this lane: the host takes it as a sign to look anew

    def run(self) -> None:
        """Until there is no more to do, or it is to leave. Raises ConnectionLostError, where `give_back` should follow,
        and whatever ends the transfer as a whole."""
        try:
            self._keep_busy()
        finally:
            if self._window:  # the lane failed; whoever else uses it must find that out, not wait for it
                self._lane.lock.release()

    def give_back(self) -> None:
        """After the lane broke: what was asked for and did not come goes back into the queue, for other lanes."""
        self._fetcher.give_back(self._window, self._again)

    def _keep_busy(self) -> None:
        """Holds `lane.lock` as long as there is something in the window."""
        lane, window, fetcher = self._lane, self._window, self._fetcher
        asked = 0
        filling = True
        while True:
            # Refilled when half is answered: then many small requests leave together.
            filling = len(window) < MAX_REQUESTS if filling else len(window) <= MAX_REQUESTS // 2
            work = self._next(asked) if filling else None
            if isinstance(work, Exclusive):
                self._compare(work)
            elif work is not None:
                if not fetcher.begin(work.job):
                    continue
                if not window:
                    self._acquire(work)
                window.append(work)
                asked += work.length
                job = work.job
                fetcher.exchange.request(lane, job.source, job.entry.version, work.offset, work.length)
            elif window:
                if lane.wait() and not self._counters.bytes_received:
                    fetcher.progress.first_byte()
                task = window[0]
                # What goes to a part file piece by piece needs no more room than one, which stays in the cache.
                room = min(task.length, PIECE) if task.job.partial else task.length
                with fetcher.buffers.acquire(room) as buffer:
                    self._receive(task, buffer)
                asked -= window.popleft().length
                if not window:
                    lane.lock.release()
            else:
                return

    def _acquire(self, work: Task) -> None:
        try:
            self._lane.acquire()
        except ConnectionLostError:
            self._fetcher.give_back([work], ())  # nothing was asked for yet
            raise

    def _compare(self, work: Exclusive) -> None:
        try:
            self._lane.acquire()
        except ConnectionLostError:
            self._fetcher.queue.push([work])
            raise
        try:
            self._fetcher.compare(work.job, self._lane)
        finally:
            self._lane.lock.release()

    def _next(self, asked: int) -> Work | None:
        if self._again:
            return self._again.popleft()
        if self._leaves():
            return None
        room = self._room() * CHUNK_SIZE - asked
        return self._fetcher.queue.take(idle=not self._window, room=room, leaves=self._leaves)

    def _receive(self, task: Task, buffer: memoryview) -> None:
        job, counters = task.job, self._counters
        partial = job.partial
        broken: list[LocalFileError] = []

        def write(position: int, piece: memoryview) -> None:
            counters.bytes_received += len(piece)
            if partial and not broken:
                try:
                    partial.write(task.offset + position, piece)
                except LocalFileError as why:
                    broken.append(why)  # raised below: the rest of the payload has to leave the lane first

        error: HeadraceError | None = None
        try:
            digest, zero = self._fetcher.exchange.receive(self._lane, task.length, buffer, write)
            if broken:
                raise broken[0]
            if partial:
                if zero:
                    partial.write_zeros(task.offset, task.length)
                partial.commit(task.index, digest)
            else:
                self._fetcher.write_whole(job, memoryview(bytes(task.length)) if zero else buffer[: task.length])
        except IntegrityError as why:
            if broken:
                error = broken[0]
            elif task.attempt == 1 and job.error is None:
                self._again.append(Task(job, task.index, task.offset, task.length, attempt=2))
            else:
                error = why
        except FILE_ERRORS as why:
            error = why
        self._fetcher.settle(job, error)
