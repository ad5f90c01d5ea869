"""The lanes of a transfer: how many there are, what each may ask for, and new ones for those that break."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from headrace.client.outage import Event, Outage
from headrace.client.session import Session
from headrace.engine.choice import TransportChoice
from headrace.engine.jobs import JobKeeper
from headrace.engine.lane import Lane
from headrace.engine.pool import StreamPool
from headrace.engine.progress import Lane as Counters
from headrace.engine.queue import LEAST_PIECE
from headrace.engine.worker import Room
from headrace.errors import ConnectionLostError, HeadraceError
from headrace.protocol.messages import CHUNK_SIZE, MIB
from headrace.transport.adaptive import TCP

log = logging.getLogger("headrace.get")

TICK: Final = 0.05  # seconds between two looks at what was delivered
AHEAD: Final = 1.0  # seconds of its rate that a lane asks for at the most
LEAST_ROOM: Final = 2  # chunks: one that comes and one that waits
# Towards the end, so that all lanes end together; where one ends early, the others take a second to use what it leaves.
END_AHEAD: Final = 0.15  # seconds of its rate, and two round trips, that a lane asks for then
END_PIECE: Final = 0.05  # seconds of its rate: one request
LONGEST_END: Final = 10.0  # seconds
RATE_SPAN: Final = 0.25  # seconds over which a lane's rate is taken
STALLED: Final = 10.0  # seconds without a byte on any lane, after which a new connection is tried beside the old ones
GRACE: Final = 2.0  # seconds that the others have to finish what they do when the transfer failed
ATTEMPTS: Final = 3  # at a transport that broke, before the other one carries everything
# On the control lane, while the others are being opened. Little: it leaves in the middle of its slow start, and they
# take its place in the middle of theirs. With a whole chunk they met a full link, which was half empty after it.
FIRST_ROOM: Final = Room(2 * MIB, MIB)


@dataclass(eq=False)
class _Member:
    """One worker's thread. control: it uses the control lane, and has no lane of its own."""

    counters: Counters
    transport: str
    control: bool = False
    leaves: threading.Event = field(default_factory=threading.Event)
    rate: float = 0.0  # bytes a second of late
    mark: tuple[float, int] = (0.0, 0)  # time and bytes at which `rate` was last taken
    lane: Lane | None = None
    thread: threading.Thread | None = None


class Hand(Protocol):
    """One lane at work: an engine.worker.Worker, or its like in the other direction."""

    def run(self) -> None: ...
    def give_back(self) -> None: ...


# Makes one: the lane, its counters; what it may ask for, and whether it is to leave.
Hire = Callable[[Lane, Counters, Callable[[], Room], Callable[[], bool]], Hand]


class Crew:
    """Runs a transfer's workers until its queue is empty or the transfer failed.

    hire: makes what works on a lane.
    alone: the control lane does it all. eager: it begins with the first chunk while further lanes are being opened.
    cramped: both ends share few cores, so that small files come by one lane.
    near: the host is on this machine; there is no slow start, and a chunk comes at once. Chunks stay whole then: of
    those a host may know the hash.
    pool: how many lanes there are to be, and how much they ask for together. choice: by which transport. halt: set when
    the transfer failed, so that nobody waits for the host any longer. tell: hears of a change of transport.
    """

    def __init__(
        self,
        session: Session,
        jobs: JobKeeper[Any],
        hire: Hire,
        outage: Outage,
        pool: StreamPool,
        choice: TransportChoice,
        *,
        alone: bool = False,
        eager: bool = False,
        cramped: bool = False,
        near: bool = False,
        halt: threading.Event,
        tell: Callable[[Event], None] = lambda event: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._session = session
        self._jobs = jobs
        self._make = hire
        self._outage = outage
        self._pool = pool
        self._choice = choice
        self._tell = tell
        self._told = choice.transport
        self._delivered_by: Counter[str] = Counter()  # by members that ended
        self._alone = alone
        self._eager = eager
        self._halt = halt
        self._clock = clock
        self._lock = threading.Lock()
        self._members: list[_Member] = []
        self._ended = threading.Condition(self._lock)
        self._delivered = self._heard = 0
        self._failed_at: float | None = None
        self._scout: threading.Thread | None = None
        self._arrived = -1  # bytes on the lanes of now, and since when there are no more
        self._arrived_at = clock()
        self._reason = pool.reason
        self._cramped = cramped
        self._near = near
        self._first_room = Room(CHUNK_SIZE) if near else FIRST_ROOM
        self._ending = False  # what is left is little, beside what the lanes have asked for
        self.most = 0  # lanes at once

    def run(self) -> None:
        """Blocks until every worker ended. What went wrong is in `jobs.failure`."""
        if self._alone or self._eager:
            self._hire(self._session.transport, control=True)
        while True:
            self._adjust()
            with self._ended:
                if not self._members:
                    return
                self._ended.wait(TICK)
            if self._jobs.failure:
                self._wind_up()
            self._look()

    def _wind_up(self) -> None:
        """The transfer failed. Who is in the middle of something may finish it, but nobody waits for the host."""
        self._halt.set()
        now = self._clock()
        self._failed_at = self._failed_at or now
        if now - self._failed_at >= GRACE:
            for member in self._all():
                if lane := member.lane:
                    lane.messages.abort()

    def join(self) -> None:
        """Blocks until every worker ended, after the transfer was cancelled."""
        with self._ended:
            self._ended.wait_for(lambda: not self._members)

    # ---- how many -----------------------------------------------------------------------------------------------

    def _all(self) -> list[_Member]:
        with self._lock:
            return list(self._members)

    def _look(self) -> None:
        """One measurement for the pool. Bytes end an outage, and so does whatever else the host answers: where files
        are compared only parts of manifests come, for a long time."""
        delivered = self._jobs.progress.delivered()
        heard = sum(lane.heard for member in self._all() if (lane := member.lane))
        if delivered != self._delivered or heard > self._heard:
            self._outage.over()
        self._delivered, self._heard = delivered, heard
        totals = self._jobs.progress.totals()
        left = totals.bytes - totals.bytes_reused - delivered if totals.planned else None
        self._observe_transports(delivered, left)
        self._measure()
        self._ending = left is not None and self._is_end(left)
        self._watch()
        rtts = [lane.messages.stream.rtt() for member in self._all() if (lane := member.lane)]
        self._pool.observe(self._clock(), delivered, min((rtt for rtt in rtts if rtt), default=None))
        if self._pool.reason != self._reason:
            self._reason = self._pool.reason
            log.info(
                "%d requests in flight on %d connections (%s)",
                self._pool.requests,
                self._pool.connections,
                self._reason,
            )

    def _measure(self) -> None:
        now = self._clock()
        for member in self._all():
            since, had = member.mark
            if now - since >= RATE_SPAN:
                received = member.counters.bytes_delivered
                if since:
                    member.rate = (received - had) / (now - since)
                member.mark = (now, received)

    # ---- a path that went away without a word --------------------------------------------------------------------

    def _watch(self) -> None:
        """Another address of this machine, another network: the old connections wait for a long time then, and a new
        one stands at once. It is tried when nothing came for a while; where it stands, the old ones are given up."""
        lanes = [lane for member in self._all() if (lane := member.lane) and not lane.idle]
        arrived = _moved(lanes)
        now = self._clock()
        if arrived != self._arrived or not lanes or self._outage.lasts:
            self._arrived, self._arrived_at = arrived, now
        elif now - self._arrived_at >= STALLED and not (self._scout and self._scout.is_alive()):
            self._arrived_at = now
            self._scout = threading.Thread(target=self._look_for_another, args=(lanes, arrived), daemon=True)
            self._scout.start()

    def _look_for_another(self, lanes: list[Lane], arrived: int) -> None:
        """By TCP first: there every lane is a connection of its own, and so says something about the path of now."""
        choice = self._choice
        for transport in sorted({choice.transport, choice.other or choice.transport}, key=lambda name: name != TCP):
            try:
                self._session.release(self._session.open_lane(transport))
            except HeadraceError as why:
                log.info("nothing arrives, and no new connection by %s: %s", transport, why.message)
                continue
            if _moved(lanes) == arrived:
                log.warning("nothing came for %.0f s, but a new connection stands; going on by %s", STALLED, transport)
                if transport != choice.transport:
                    choice.failed(choice.transport)
                for lane in lanes:
                    lane.messages.abort()
            return

    # ---- by which transport --------------------------------------------------------------------------------------

    def _observe_transports(self, delivered: int, left: int | None) -> None:
        choice = self._choice
        if choice.other is None and not self._alone and not self._session.clear:
            for other in self._session.connection.others():
                choice.could(other)
        with self._lock:
            by = self._delivered_by.copy()
            for member in self._members:
                by[member.transport] += member.counters.bytes_delivered
            lanes = sum(member.transport == choice.transport and member.lane is not None for member in self._members)
        reason = choice.reason
        choice.observe(self._clock(), by, left, lanes, full=self._pool.link_is_full)
        if choice.reason != reason:
            log.info("chunks go by %s: %s", choice.transport, choice.reason)
        if choice.transport != self._told:
            self._told = self._session.transport = choice.transport
            self._tell({"event": "transport", "transport": choice.transport, "reason": choice.reason})

    def _adjust(self) -> None:
        if self._jobs.queue.over or self._alone:
            return
        wanted = self._choice.lanes(self._connections())
        staying = [member for member in self._all() if not member.leaves.is_set() and not member.control]
        for transport, number in wanted.items():
            have = sum(member.transport == transport for member in staying)
            for _ in range(number - have):
                self._hire(transport)
        for member in staying:
            wanted[member.transport] = wanted.get(member.transport, 0) - 1
            if wanted[member.transport] < 0:
                member.leaves.set()
                self._jobs.queue.wake()

    def _connections(self) -> int:
        """Small files cost the interpreter's time at both ends. Where those share few cores, a second lane is only one
        thread more that waits for it: with one, 20,000 files took a tenth less time."""
        if self._cramped and self._jobs.queue.only_small:
            return 1
        return self._pool.connections

    def _is_end(self, left: int) -> bool:
        """Whether what the slowest lane asked for comes about when the last of the `left` bytes does, or later."""
        lanes = [member for member in self._all() if member.lane and not member.leaves.is_set()]
        if len(lanes) < 2 or self._near or self._pool.reason == "forced":
            return False
        together = sum(member.rate for member in lanes)
        slowest = max(self._usual_room(member) / max(member.rate, 1.0) for member in lanes)
        return left < together * min(slowest, LONGEST_END)

    def _usual_room(self, member: _Member) -> int:
        """Bytes that a lane may ask for, but for the end."""
        if member.control and not self._alone:
            return self._first_room.bytes
        with self._lock:
            lanes = sum(not other.leaves.is_set() for other in self._members)
        share = max(1, math.ceil(self._pool.requests / max(1, lanes)))
        if self._pool.reason != "forced":
            # What a lane asked for cannot go elsewhere: to a faster one, or in the end to one that has nothing left.
            share = min(share, max(LEAST_ROOM, math.ceil(member.rate * AHEAD / CHUNK_SIZE)))
        return share * CHUNK_SIZE

    def _room(self, member: _Member) -> Room:
        if member.control and not self._alone:
            return self._first_room
        usual = self._usual_room(member)
        if not self._ending or member.control:
            return Room(usual)
        rtt = (lane.messages.stream.rtt() if (lane := member.lane) else None) or 0.0
        piece = max(1, math.ceil(member.rate * END_PIECE / LEAST_PIECE)) * LEAST_PIECE
        least = max(int(member.rate * (END_AHEAD + 2 * rtt)), 2 * LEAST_PIECE)
        return Room(min(usual, least), piece if piece <= CHUNK_SIZE // 2 else CHUNK_SIZE)

    # ---- a worker's thread ---------------------------------------------------------------------------------------

    def _hire(self, transport: str, *, control: bool = False) -> None:
        member = _Member(self._jobs.progress.lane(), transport, control=control)
        with self._lock:
            self._members.append(member)
            number = len(self._members)
            own = [other for other in self._members if not other.control]
            self.most = max(self.most, len(own), int(self._alone))
        member.thread = threading.Thread(target=self._run, args=(member,), name=f"headrace-lane-{number}")
        try:
            member.thread.start()
        except RuntimeError:  # no further thread is allowed here
            with self._ended:
                self._members.remove(member)  # nobody is to wait for it
            raise

    def _run(self, member: _Member) -> None:
        try:
            with self._jobs.carrying():
                self._work(member)
        finally:
            with self._ended:
                self._members.remove(member)
                self._delivered_by[member.transport] += member.counters.bytes_delivered
                self._ended.notify_all()

    def _work(self, member: _Member) -> None:
        """One lane after another, as long as they break and there is something to do."""
        attempt = 0
        while not self._done(member):
            before = member.counters.bytes_delivered
            try:
                self._use_one_lane(member)
                return
            except ConnectionLostError as why:
                if self._done(member):
                    return
                attempt = 0 if member.counters.bytes_delivered > before else attempt + 1
                if attempt >= ATTEMPTS and self._leave_to_others(member, why):
                    return
                self._outage.again(why, attempt)

    def _done(self, member: _Member) -> bool:
        return self._jobs.queue.over or member.leaves.is_set()

    def _leave_to_others(self, member: _Member, why: HeadraceError) -> bool:
        """Whether there is another transport, which is to do this one's work."""
        if member.control or self._choice.other is None:
            return False
        log.info("no connection by %s: %s", member.transport, why.message)
        self._choice.failed(member.transport)
        return True

    def _use_one_lane(self, member: _Member) -> None:
        try:
            lane = self._session.healthy_control() if member.control else self._session.open_lane(member.transport)
        except HeadraceError as why:
            if member.transport == self._choice.trying and self._leave_to_others(member, why):
                return  # whatever is wrong with it, it was only tried
            raise
        member.lane = lane
        try:
            if not member.control:
                self._relieve()
            worker = self._make(lane, member.counters, lambda: self._room(member), member.leaves.is_set)
            try:
                worker.run()
            except ConnectionLostError as why:
                if not self._outage.ends_it(why):  # else nobody is to finish what is going to fail
                    worker.give_back()
                raise
        finally:
            member.lane = None
            self._session.release(lane)

    def _relieve(self) -> None:
        """A lane for chunks stands: the control lane is for questions again."""
        for member in self._all():
            if member.control:
                member.leaves.set()


def _moved(lanes: list[Lane]) -> int:
    """Bytes on those lanes, either way: what is sent shows as little in what comes back as the other way round."""
    return sum(lane.messages.stream.bytes_in + lane.messages.stream.bytes_out for lane in lanes)
