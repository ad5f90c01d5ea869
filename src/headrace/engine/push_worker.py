"""One lane at work for a transfer into a share: what it has sent and not had answered, and what it gives back when the
lane breaks. The counterpart of engine.worker."""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from headrace.engine.lane import Lane
from headrace.engine.progress import Lane as Counters
from headrace.engine.push import (
    FILE_ERRORS,
    Commit,
    Leave,
    Offer,
    Open,
    Pusher,
    Send,
    Step,
    Work,
    as_local,
)
from headrace.engine.queue import Group, Job
from headrace.engine.worker import Room
from headrace.errors import ConnectionLostError, HeadraceError, NotFoundError, ProtocolError, from_wire
from headrace.observe import tracing
from headrace.protocol.basics import Message
from headrace.protocol.messages import (
    CHUNK_SIZE,
    HOST_DECIDES,
    MAX_PART,
    MAX_PUT_FILES,
    ZSTD_PACKED,
    Entry,
    Error,
    PutChunk,
    PutCommit,
    PutCommitted,
    PutDone,
    PutFiles,
    PutLeave,
    PutOffer,
    PutOpen,
    PutOpened,
    PutStored,
    PutWanted,
)
from headrace.storage.chunks import ZERO_HASH, chunk_range, hash_bytes
from headrace.storage.small import SmallReader
from headrace.storage.source import SourceCache, SourceFile

log = logging.getLogger("headrace.put")

MAX_REQUESTS: Final = 64  # in flight on one lane
ROOM_FOR_PATHS: Final = 256 * 1024  # bytes of a request's header; the limit is twice that
_ENTRY: Final = 96  # bytes of a header that an entry takes at most, beside its path


@dataclass(eq=False, slots=True)
class _Sent:
    """A request that waits for its answer, or several that are the parts of a chunk.

    length: bytes of room that it takes. parts: of each request, the length of its payload, how many bytes that stands
    for, and what is to say of compression. digests: of what was offered. jobs: of a group, those in the request.
    error: of an earlier part.
    """

    work: Work
    length: int
    parts: deque[tuple[int, int, str]] = field(default_factory=lambda: deque([(0, 0, "")]))
    digests: Sequence[bytes] = ()
    jobs: Sequence[Job] = ()
    error: HeadraceError | None = None


class PushWorker:
    """Used on one thread, for one run. room, leaves: as in engine.worker.Worker."""

    def __init__(
        self,
        pusher: Pusher,
        lane: Lane,
        counters: Counters,
        *,
        room: Callable[[], Room],
        leaves: Callable[[], bool] = lambda: False,
    ) -> None:
        self._pusher = pusher
        self._lane = lane
        self._counters = lane.counters = counters
        self._room = room
        self._leaves = leaves
        self._sources = SourceCache(pusher.tree, times=lane.times)
        self._packing = pusher.packing_for(lane)
        self._scratch = memoryview(b"")  # what a compressed part is made in
        self._window: deque[_Sent] = deque()
        self._again: deque[Work] = deque()

    def run(self) -> None:
        """Until there is no more to do, or it is to leave. Raises ConnectionLostError, where `give_back` should follow,
        and whatever ends the transfer as a whole."""
        try:
            with self._pusher.progress.ledger.counting(self._lane.times):
                self._keep_busy()
        finally:
            self._sources.close()
            if self._window:  # the lane failed; whoever else uses it must find that out, not wait for it
                self._lane.lock.release()

    def give_back(self) -> None:
        """After the lane broke: what was sent and not answered goes back into the queue, for other lanes."""
        pusher = self._pusher
        pusher.give_back(
            [sent.work for sent in self._window if isinstance(sent.work, Step)],
            [work for work in self._again if isinstance(work, Step)],
        )
        groups = [sent.work for sent in self._window if isinstance(sent.work, Group)]
        groups += [work for work in self._again if isinstance(work, Group)]
        left = [Group(jobs) for group in groups if (jobs := group.left)]
        for group in left:
            for job in group.jobs:
                job.in_flight = 0
        pusher.queue.push(left)

    def _keep_busy(self) -> None:
        """Holds `lane.lock` as long as there is something in the window."""
        lane, window = self._lane, self._window
        filling = True
        while True:
            # Refilled when half is answered: then many small requests leave together.
            filling = len(window) < MAX_REQUESTS if filling else len(window) <= MAX_REQUESTS // 2
            work = self._next() if filling else None
            if work is not None:
                self._do(work)
            elif window:
                lane.wait()
                if not self._counters.bytes_received:
                    self._pusher.progress.first_byte()
                if self._receive(window[0]):
                    window.popleft()
                if not window:
                    lane.lock.release()
            else:
                return

    def _next(self) -> Work | None:
        if self._again:
            return self._again.popleft()
        if self._leaves():
            return None
        room = self._room().bytes - sum(sent.length for sent in self._window)
        return self._pusher.queue.take(idle=not self._window, room=room, leaves=self._leaves, groups=True)

    # ---- sending -----------------------------------------------------------------------------------------------------

    def _do(self, work: Work) -> None:
        """Sends it, unless it is of no use any more, or what it is about cannot be read."""
        if isinstance(work, Step) and not isinstance(work, Leave) and not self._pusher.begin(work.job):
            return
        if isinstance(work, Group):
            for job in work.jobs:
                job.in_flight = 1  # this is their only request: nobody else touches them
        if not self._window:
            self._acquire(work)
        sent = _Sent(work, work.length)
        self._window.append(sent)
        try:
            if self._send(sent):
                return
        except FILE_ERRORS as why:
            assert isinstance(work, Step)
            self._pusher.settle(work.job, as_local(why))
        self._window.pop()
        if not self._window:
            self._lane.lock.release()

    def _acquire(self, work: Work) -> None:
        try:
            self._lane.acquire()
        except ConnectionLostError:  # nothing was sent yet
            if isinstance(work, Group):
                self._pusher.queue.push([work])
            else:
                self._pusher.give_back([work], ())
            raise

    def _send(self, sent: _Sent) -> bool:
        """False: there is nothing to wait for. Raises what reading the file raises, and ConnectionLostError."""
        lane, work = self._lane, sent.work
        if isinstance(work, Group):
            return self._send_group(sent, work)
        job, transfer = work.job, self._pusher.transfer
        path, version = bytes(job.dest), job.entry.version
        if isinstance(work, Open):
            old = bytes(job.old) if job.old else b""
            lane.post(PutOpen(lane.next_id(), transfer, path, _nameless(job.entry), old, job.compare))
        elif isinstance(work, Commit):
            work.flight.committing = True
            lane.post(PutCommit(lane.next_id(), transfer, path, version, job.replace))
        elif isinstance(work, Leave):
            lane.post(PutLeave(lane.next_id(), transfer, path, version))
        elif isinstance(work, Offer):
            sent.digests = [self._hash(job, index) for index in range(work.first, work.first + work.count)]
            lane.post(PutOffer(lane.next_id(), transfer, path, version, work.first, b"".join(sent.digests)))
        elif isinstance(work, Send):
            if work.flight.age != work.age:  # it was opened again: what is missing is known anew
                self._pusher.settle(job, None)
                return False
            with tracing.sampled("send", lane.times):
                self._send_chunk(sent, work)
        return True

    def _source(self, job: Job) -> SourceFile:
        return self._sources.get(job.source, job.entry.version)

    def _hash(self, job: Job, index: int) -> bytes:
        offset, length = chunk_range(job.size, index)
        source = self._source(job)
        if source.sparse and source.is_hole(offset, length):
            return ZERO_HASH(length)
        with self._pusher.buffers.acquire(length) as view:
            source.read_into(view, offset)
            with self._lane.times.hash:
                return hash_bytes(view)

    def _send_chunk(self, sent: _Sent, work: Send) -> None:
        lane, job = self._lane, work.job
        offset, length = chunk_range(job.size, work.index)
        source = self._source(job)
        names = (self._pusher.transfer, bytes(job.dest), job.entry.version, work.index)
        if source.sparse and source.is_hole(offset, length):
            lane.post(PutChunk(lane.next_id(), *names, ZERO_HASH(length), zero=True))
            return
        with self._pusher.buffers.acquire(length) as view:
            source.read_into(view, offset)
            with lane.times.hash:
                digest = hash_bytes(view)
            if length == CHUNK_SIZE and digest == ZERO_HASH(length):
                lane.post(PutChunk(lane.next_id(), *names, digest, zero=True))
                return
            self._send_bytes(sent, names, digest, view)

    def _send_bytes(self, sent: _Sent, names: tuple[bytes, bytes, bytes, int], digest: bytes, data: memoryview) -> None:
        """A chunk in one request, or part by part where compressing them is worth it."""
        lane, packing, level = self._lane, self._packing, self._pusher.compress
        why = ""
        if packing:
            packing.begin()
            compressor = packing.of_file(names[1])
            why = compressor.declines(len(data), level, packing.link) or ""
            if not why:
                sent.parts.clear()
                for at in range(0, len(data), MAX_PART):
                    plain = data[at : at + MAX_PART]
                    part, word = compressor.pack(plain, self._room_to_pack(), level, packing.link)
                    packed = word if word == ZSTD_PACKED else ""
                    sent.parts.append((len(part), len(plain), word))
                    request = PutChunk(lane.next_id(), *names, digest, at=at, size=len(plain), packed=packed)
                    with packing.sending(len(part)):
                        lane.send(request, part)
                return
        sent.parts[0] = (len(data), len(data), why)
        with packing.sending(len(data)) if packing else contextlib.nullcontext():
            lane.send(PutChunk(lane.next_id(), *names, digest), data)

    def _room_to_pack(self) -> memoryview:
        if not self._scratch:
            self._scratch = memoryview(bytearray(MAX_PART))
        return self._scratch

    def _send_group(self, sent: _Sent, group: Group) -> bool:
        """As many of the jobs as fit into one request; others go into another. Those that cannot be read end here."""
        lane, pusher = self._lane, self._pusher
        # What is compressed is compressed in one piece.
        packing = self._packing
        slow = packing is not None and (packing.link is not None or pusher.compress != HOST_DECIDES)
        now, later = _fitting(group.jobs, MAX_PART if slow else MAX_PUT_FILES)
        if later:
            self._again.append(Group(later))
        broken: list[tuple[Job, HeadraceError]] = []
        jobs: list[Job] = []
        with pusher.buffers.acquire(max(1, sum(job.size for job in now))) as view:
            filled = 0
            with SmallReader(pusher.tree) as reader, lane.times.disk:
                for job in now:
                    try:
                        size = reader.read(bytes(job.source), job.entry.version, view[filled : filled + job.size])
                    except FILE_ERRORS as why:
                        broken.append((job, as_local(why)))
                        continue
                    assert size == job.size  # a longer one would be another version
                    jobs.append(job)
                    filled += size
            sent.work, sent.jobs = Group(jobs), jobs
            for job, error in broken:
                pusher.settle(job, error)
            if jobs:
                with lane.times.hash:
                    digest = hash_bytes(view[:filled])
                paths = [bytes(job.dest) for job in jobs]
                entries = [_nameless(job.entry) for job in jobs]
                payload, packed = self._packed_group(sent, paths, view[:filled])
                request = PutFiles(
                    lane.next_id(), pusher.transfer, paths, entries, digest, jobs[0].replace, packed=packed
                )
                with self._packing.sending(len(payload)) if self._packing else contextlib.nullcontext():
                    lane.send(request, payload)
        return bool(jobs)

    def _packed_group(self, sent: _Sent, paths: list[bytes], data: memoryview) -> tuple[memoryview, str]:
        """What to send for the bytes of a group, and what its request says of that."""
        packing, level, why = self._packing, self._pusher.compress, ""
        if packing and 0 < len(data) <= MAX_PART:
            packing.begin()
            compressor = packing.of_batch(paths)
            why = compressor.declines(len(data), level, packing.link) or ""
            if not why:
                payload, why = compressor.pack(data, self._room_to_pack(), level, packing.link)
                sent.parts[0] = (len(payload), len(data), why)
                return payload, why if why == ZSTD_PACKED else ""
        sent.parts[0] = (len(data), len(data), why)
        return data, ""

    # ---- answers -----------------------------------------------------------------------------------------------------

    def _receive(self, sent: _Sent) -> bool:
        """Whether that was the last answer that it waits for."""
        answer, payload = self._lane.answer()
        if payload:
            raise ProtocolError("the host answered with a payload")
        work, part = sent.work, sent.parts.popleft()
        if isinstance(answer, Error):
            sent.error = sent.error or from_wire(answer.code, answer.message)
        else:
            self._counters.arrived(*part)
        if sent.parts:
            return False
        if isinstance(work, Group):
            self._received_group(sent.jobs, answer)
            return True
        error: HeadraceError | None = None
        try:
            if sent.error:
                raise sent.error
            self._received(sent, work, answer)
        except NotFoundError as why:
            if isinstance(work, Open):
                error = why
            elif not isinstance(work, Leave):
                self._pusher.closed(work)
        except FILE_ERRORS as why:
            error = why
        if not isinstance(work, Leave):
            self._pusher.settle(work.job, error)
        return True

    def _received(self, sent: _Sent, work: Step, answer: Message) -> None:
        pusher = self._pusher
        if isinstance(work, Open) and isinstance(answer, PutOpened):
            pusher.opened(work, answer)
        elif isinstance(work, Offer) and isinstance(answer, PutWanted):
            pusher.wanted(work, answer.chunks, sent.digests)
        elif isinstance(work, Send) and isinstance(answer, PutStored):
            pusher.stored(work, known=answer.known)
        elif isinstance(work, Commit) and isinstance(answer, PutCommitted):
            pusher.committed(work, others=answer.others, replaced=answer.replaced)
        elif not (isinstance(work, Leave) and isinstance(answer, PutDone)):
            raise ProtocolError("the host answered something that it was not asked")

    def _received_group(self, jobs: Sequence[Job], answer: Message) -> None:
        pusher = self._pusher
        if isinstance(answer, Error):
            why = from_wire(answer.code, answer.message)
            if not isinstance(why, FILE_ERRORS):
                raise why
            for job in jobs:
                pusher.settle(job, why)
            return
        failed = failures(answer, len(jobs))
        assert isinstance(answer, PutDone)
        for number in answer.replaced:
            if 0 <= number < len(jobs):
                pusher.warn(jobs[number].dest, "another client had put a file there meanwhile; it was replaced")
        pusher.small_done([job for number, job in enumerate(jobs) if number not in failed])
        for number, error in failed.items():
            if not isinstance(error, FILE_ERRORS):
                raise error
            pusher.small_failed(jobs[number], error)


def failures(answer: Message, count: int) -> dict[int, HeadraceError]:
    """Which of `count` items of a request did not work, and why. Raises ProtocolError for what is no such answer."""
    if not isinstance(answer, PutDone):
        raise ProtocolError("the host answered something that it was not asked")
    numbers = answer.failed
    if not len(numbers) == len(answer.codes) == len(answer.texts) or any(not 0 <= n < count for n in numbers):
        raise ProtocolError("the host says that something failed which it was not sent")
    return {n: from_wire(code, text) for n, code, text in zip(numbers, answer.codes, answer.texts, strict=True)}


def _nameless(entry: Entry) -> Entry:
    """For a request that names it by its path."""
    return Entry(b"", entry.kind, entry.size, entry.mtime_ns, entry.mode, entry.target, entry.version, entry.sparse)


def _fitting(jobs: list[Job], most: int) -> tuple[list[Job], list[Job]]:
    """Those that go into one request, of `most` bytes or a single file, and the others."""
    room, size, replace = ROOM_FOR_PATHS, 0, jobs[0].replace
    for number, job in enumerate(jobs):
        room -= len(bytes(job.dest)) + _ENTRY
        size += job.size
        if number and (room < 0 or job.replace != replace or size > most):
            return jobs[:number], jobs[number:]
    return jobs, []
