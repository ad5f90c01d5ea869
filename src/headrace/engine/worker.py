"""One lane at work for a transfer: what it keeps in flight, and what it gives back when the lane breaks."""

from __future__ import annotations

import dataclasses
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from headrace.engine import batch
from headrace.engine.fetch import FILE_ERRORS, Fetcher
from headrace.engine.lane import Lane
from headrace.engine.progress import Lane as Counters
from headrace.engine.queue import Exclusive, Group, Job, Task, Work
from headrace.errors import ConnectionLostError, HeadraceError, IntegrityError, LocalFileError
from headrace.observe import tracing
from headrace.protocol.messages import CHUNK_SIZE, NOT_PACKED, GetRanges
from headrace.storage.platform import FALLBACKS
from headrace.storage.small import SmallWriter
from headrace.transport.framed import PIECE

log = logging.getLogger("headrace.get")

MAX_REQUESTS: Final = 64  # small ones in flight on one lane


class Room(NamedTuple):
    """In bytes: how much a lane may have in flight, and at most with one request."""

    bytes: int
    piece: int = CHUNK_SIZE


class Worker:
    """Used on one thread, for one run.

    room: what it may ask for now. leaves: whether it should ask for no more and end. Both are asked
    before each request.
    """

    def __init__(
        self,
        fetcher: Fetcher,
        lane: Lane,
        counters: Counters,
        *,
        room: Callable[[], Room],
        leaves: Callable[[], bool] = lambda: False,
    ) -> None:
        self._fetcher = fetcher
        self._lane = lane
        self._counters = lane.counters = counters
        lane.zstd = fetcher.compress if lane.packs else NOT_PACKED
        self._room = room
        self._leaves = leaves
        self._window: deque[Task | Group] = deque()
        self._again: deque[Task | Group] = deque()  # on this lane: the host takes it as a sign to look anew

    def run(self) -> None:
        """Until there is no more to do, or it is to leave. Raises ConnectionLostError, where `give_back` should follow,
        and whatever ends the transfer as a whole."""
        try:
            with self._fetcher.progress.ledger.counting(self._lane.times):
                self._keep_busy()
        finally:
            self._lane.zstd = NOT_PACKED  # who uses it next, for small reads, did not ask for it
            if self._window:  # the lane failed; whoever else uses it must find that out, not wait for it
                self._lane.lock.release()

    def give_back(self) -> None:
        """After the lane broke: what was asked for and did not come goes back into the queue, for other lanes."""
        fetcher, left = self._fetcher, [*self._window, *self._again]
        fetcher.give_back(
            [task for task in self._window if isinstance(task, Task)],
            [task for task in self._again if isinstance(task, Task)],
        )
        groups = [Group(jobs, group.again) for group in left if isinstance(group, Group) and (jobs := group.left)]
        for group in groups:
            for job in group.jobs:
                job.in_flight = 0
        fetcher.queue.push(groups)

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
            elif isinstance(work, Group):
                asked += self._ask_for_group(work)
            elif work is not None:
                if not fetcher.begin(work.job):
                    continue
                if work.ranges and not lane.blocks:
                    work = work.whole  # another host answers by now
                if not window:
                    self._acquire([work])
                window.append(work)
                asked += work.length
                self._request(work)
            elif window:
                if lane.wait() and not self._counters.bytes_received:
                    fetcher.progress.first_byte()
                task = window[0]
                if isinstance(task, Group):
                    length = task.length
                    self._receive_group(task)
                    window.popleft()
                    asked -= length
                    if not window:
                        lane.lock.release()
                    continue
                # What goes to a part file piece by piece needs no more room than one, which stays in the cache.
                room = min(task.length, PIECE) if task.job.partial else task.length
                with fetcher.buffers.acquire(room) as buffer, tracing.sampled("fetch", lane.times):
                    self._receive(task, buffer)
                asked -= window.popleft().length
                if not window:
                    lane.lock.release()
            else:
                return

    def _request(self, task: Task) -> None:
        lane, job = self._lane, task.job
        if task.ranges:
            lane.post(GetRanges(lane.next_id(), bytes(job.source), job.entry.version, list(task.ranges)))
        else:
            self._fetcher.exchange.request(lane, job.source, job.entry.version, task.offset, task.length)

    def _acquire(self, work: list[Task] | Group) -> None:
        try:
            self._lane.acquire()
        except ConnectionLostError:  # nothing was asked for yet
            if isinstance(work, Group):
                self._fetcher.queue.push([work])
            else:
                self._fetcher.give_back(work, ())
            raise

    # ---- many small files at once --------------------------------------------------------------------------------

    def _ask_for_group(self, group: Group) -> int:
        """Bytes that were asked for."""
        fetcher = self._fetcher
        if not group.length or not self._lane.batches:
            self._begin([job for job in group.jobs if not job.entry.size])
            self._write_empty(group)
            fetcher.queue.push(_singly(group.asked))  # another host answers by now: one after the other
            return 0
        if not self._window:
            self._acquire(group)
        self._begin(group.jobs)
        self._window.append(group)
        batch.request(self._lane, group)
        return group.length

    def _begin(self, jobs: list[Job]) -> None:
        for job in jobs:
            job.in_flight = 1  # this is their only request: nobody else touches them

    def _write_empty(self, group: Group) -> None:
        empty = memoryview(b"")
        with self._fetcher.small_files() as writer:
            self._fetcher.write_small([(job, empty) for job in group.jobs if not job.entry.size], writer)

    def _receive_group(self, group: Group) -> None:
        """What came is written; the rest of the group is asked for again, at first together, then one by one."""
        fetcher = self._fetcher
        wrong: list[Job] = []
        try:
            with fetcher.small_files() as writer:
                for part in batch.receive(self._lane, group, fetcher.buffers):
                    wrong += self._received(part, writer)
        except FILE_ERRORS as why:  # of the request as a whole
            _told("batch-refused", f"the host refuses to send files together ({why.message}); going on singly")
            for job in group.asked:
                fetcher.settle(job, None)
            self._again.extend(_singly(group.asked))
            wrong.clear()
        if len(group.asked) < len(group.jobs):
            self._write_empty(group)
        if not wrong:
            return
        for job in wrong:
            fetcher.settle(job, None)
        if group.again:
            _told("batch-wrong-twice", "files that came together did not match their hash twice; fetching them singly")
            self._again.extend(_singly(wrong))
        else:
            _told("batch-wrong", "files that came together did not match their hash; asking again")
            self._again.append(Group(wrong, again=True))

    def _received(self, part: list[batch.Received] | list[Job], writer: SmallWriter) -> list[Job]:
        """Writes one part of an answer; those jobs that are to be asked for again."""
        came: list[tuple[Job, memoryview]] = []
        wrong: list[Job] = []
        failed: list[tuple[Job, HeadraceError]] = []
        for one in part:
            if isinstance(one, Job):
                wrong.append(one)
            elif isinstance(one[1], memoryview):
                came.append((one[0], one[1]))
            else:
                failed.append((one[0], one[1]))
        with self._lane.times.disk:
            self._fetcher.write_small(came, writer)
        for job, error in failed:
            if not isinstance(error, FILE_ERRORS):
                raise error
            self._fetcher.settle(job, error)
        return wrong

    # ---- one chunk -----------------------------------------------------------------------------------------------

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
        room = self._room()
        return self._fetcher.queue.take(
            idle=not self._window,
            room=room.bytes - asked,
            piece=room.piece,
            leaves=self._leaves,
            groups=self._lane.batches,
        )

    def _receive(self, task: Task, buffer: memoryview) -> None:
        job, disk = task.job, self._lane.times.disk
        partial = job.partial
        broken: list[LocalFileError] = []
        ranges = task.ranges or ((task.offset, task.length),)

        def write(position: int, piece: memoryview) -> None:
            if partial and not broken:
                try:
                    with disk:
                        for offset, part in scattered(ranges, position, piece):
                            partial.write(offset, part)
                except LocalFileError as why:
                    broken.append(why)  # raised below: the rest of the payload has to leave the lane first

        error: HeadraceError | None = None
        try:
            digest, zero = self._fetcher.exchange.receive(self._lane, task.length, buffer, write)
            if broken:
                raise broken[0]
            with disk:
                if partial:
                    if zero:
                        for offset, length in ranges:
                            partial.write_zeros(offset, length)
                    if task.ranges:
                        self._fetcher.assembled(task)
                    elif task.pieces:
                        if task.pieces.arrived(task.length):
                            partial.commit(task.index, partial.digest(task.index))
                    else:
                        partial.commit(task.index, digest)
                else:
                    self._fetcher.write_whole(job, memoryview(bytes(task.length)) if zero else buffer[: task.length])
        except IntegrityError as why:
            if broken:
                error = broken[0]
            elif task.attempt == 1 and job.error is None:
                self._again.append(dataclasses.replace(task.whole, attempt=2))
            else:
                error = why
        except FILE_ERRORS as why:
            error = why
        with disk:  # the last of a file's chunks ends it
            self._fetcher.settle(job, error)


def scattered(ranges: Sequence[tuple[int, int]], position: int, piece: memoryview) -> Iterator[tuple[int, memoryview]]:
    """(offset, bytes): where the parts of `piece` belong, which begins `position` bytes into the ranges."""
    for offset, length in ranges:
        if not len(piece):
            return
        if position < length:
            part = piece[: length - position]
            yield offset + position, part
            piece, position = piece[len(part) :], 0
        else:
            position -= length


def _singly(jobs: list[Job]) -> list[Task]:
    return [Task(job, 0, 0, job.size) for job in jobs]


def _told(reason: str, message: str) -> None:
    if FALLBACKS.add(reason):
        log.warning("%s", message)
