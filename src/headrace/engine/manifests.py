"""Manifests as they come from the host: one part after the other, checked against the file that they are of."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from headrace.engine.lane import Lane
from headrace.engine.queue import Job
from headrace.errors import ConnectionLostError, HeadraceError, ProtocolError, from_wire
from headrace.protocol.messages import HASH_SIZE, Error, GetManifest, ManifestPart
from headrace.storage.chunks import chunk_count


@dataclass(frozen=True, slots=True)
class Part:
    """The hashes of some chunks, from number `first` on. last: of this answer. left: how many hashes are to come.

    error: the host cannot say more; then it is the last part, and has no hashes.
    """

    first: int
    hashes: list[bytes] = field(default_factory=list)
    left: int = 0
    last: bool = False
    error: HeadraceError | None = None


class ManifestReader:
    """Asks for manifests on a lane that is its own as long as answers are open, and reads them in that order."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._asked: deque[tuple[Job, int]] = deque()  # and how many hashes it has
        self._had = 0  # hashes of the first of them

    def post(self, job: Job) -> None:
        """Asks, with the next wait for an answer."""
        self._lane.post(GetManifest(self._lane.next_id(), bytes(job.source), job.entry.version))
        self._asked.append((job, chunk_count(job.size)))

    def part(self) -> Part:
        """The next part of the oldest answer. Blocks. Raises ConnectionLostError, and ProtocolError for what is no
        manifest of that file."""
        job, count = self._asked[0]
        message, _ = self._lane.part()
        if isinstance(message, Error):
            part = Part(self._had, last=True, error=from_wire(message.code, message.message))
        elif not isinstance(message, ManifestPart) or message.first != self._had or len(message.hashes) % HASH_SIZE:
            raise ProtocolError("the host sent a manifest that is none")
        else:
            raw = message.hashes
            hashes = [raw[start : start + HASH_SIZE] for start in range(0, len(raw), HASH_SIZE)]
            self._had += len(hashes)
            if self._had > count or (message.last and self._had != count):
                raise ProtocolError(f"the host sent a manifest of another length than the file: {job.source}")
            part = Part(message.first, hashes, count - self._had, message.last)
        if part.last:
            self._lane.answered()
            self._asked.popleft()
            self._had = 0
        return part


class OwnLane:
    """A lane of one's own, opened when it is first needed. One thread's, but for `abort`.

    open_lane, release: as a session has them.
    """

    def __init__(self, open_lane: Callable[[], Lane], release: Callable[[Lane], None]) -> None:
        self._open_lane = open_lane
        self._release = release
        self._lock = threading.Lock()
        self._lane: Lane | None = None
        self._aborted = False

    def get(self) -> Lane:
        """The lane. Raises ConnectionLostError where there is none to be had, for whatever reason: who fetches the
        file meets that too, and it is theirs to tell."""
        if self._lane is None:
            try:
                lane = self._open_lane()
            except HeadraceError as why:
                raise ConnectionLostError(why.message) from why
            with self._lock:
                self._lane = lane
                if self._aborted:
                    lane.messages.abort()
            lane.acquire()
        return self._lane

    def drop(self) -> None:
        """Closes the lane, if there is one. Answers that are still to come are left."""
        with self._lock:
            lane, self._lane = self._lane, None
        if lane is None:
            return
        if not lane.idle:
            lane.messages.abort()
        if lane.lock.locked():  # else it broke before it was ours
            lane.lock.release()
        self._release(lane)

    def abort(self) -> None:
        """From any thread: whoever waits for the host gets ConnectionLostError, now and later."""
        with self._lock:
            self._aborted = True
            if self._lane:
                self._lane.messages.abort()


class ManifestLane(OwnLane):
    """A lane of its own for manifests."""

    _reader: ManifestReader | None = None

    def post(self, job: Job) -> None:
        """See ManifestReader. Raises as `get`."""
        lane = self.get()
        if self._reader is None:
            self._reader = ManifestReader(lane)
        self._reader.post(job)

    def part(self) -> Part:
        """See ManifestReader."""
        assert self._reader is not None
        return self._reader.part()

    def drop(self) -> None:
        self._reader = None
        super().drop()
