"""A share that comes back: lanes to it that are opened, watched and replaced, so that no caller waits beyond its time.

    link = Link(lambda: Session.connect(target))
    entry = link.run(lambda session, lane: ask(session, lane), deadline=time.monotonic() + 30)

Threads: none before the first use. One watchdog, one that connects while the host is away, and a short-lived one for
each further lane. `close` ends them.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final, TypeVar

from headrace.client.session import Session
from headrace.engine.lane import Lane
from headrace.errors import (
    ConnectionLostError,
    HeadraceError,
    HostAwayError,
    ProtocolError,
    RefusedError,
    WrongCodeError,
)
from headrace.protocol.messages import ROLE_CONTROL, ROLE_DATA
from headrace.transport.adaptive import QUIC

log = logging.getLogger("headrace.link")

SMALL_LANES: Final = 8  # for questions and small reads
BULK_LANES: Final = 4  # for chunks that are read ahead
TICK: Final = 0.2  # seconds between two looks of the watchdog, and of who waits for a lane
REST: Final = 2.0  # seconds without a busy lane after which the watchdog sleeps
STALLED: Final = 10.0  # seconds without a byte, after which a lane is given up for a fresh one, once for each call
FIRST_PAUSE: Final = 0.1  # seconds before a second attempt to connect; doubles
LONGEST_PAUSE: Final = 5.0
NUDGED_PAUSE: Final = 0.25  # seconds; the pause while somebody waits
REFUSED_PAUSE: Final = 30.0  # seconds between two attempts where the host refuses, whoever waits
LONG_GONE: Final = 10.0  # seconds away after which a caller hears of it as soon as an attempt of its own time failed
FULL: Final = 5.0  # seconds for which no further lane is tried where the host took no more

T = TypeVar("T")


class _Seat:
    """A lane, and until when it is used. deadline: infinite while nobody uses it."""

    __slots__ = ("arrived", "bulk", "deadline", "given_up", "lane", "moved", "retried", "session")

    def __init__(self, session: Session, lane: Lane, *, bulk: bool) -> None:
        self.session = session
        self.lane = lane
        self.bulk = bulk
        self.deadline = math.inf
        self.retried = False  # the call was tried before: it is not given up for being slow
        self.arrived = -1  # bytes, when the watchdog last looked; -1: it has not looked since the call began
        self.moved = 0.0  # when that changed
        self.given_up = False  # aborted by the watchdog


class Link:
    """Runs exchanges on lanes of a share, whatever becomes of its connections. Thread-safe; close it.

    connect: makes a session; blocks as long as it likes, on a thread of the link's own. clock: monotonic seconds, that
    deadlines are in.
    """

    def __init__(
        self,
        connect: Callable[[], Session],
        clock: Callable[[], float] = time.monotonic,
        *,
        small: int = SMALL_LANES,
        bulk: int = BULK_LANES,
    ) -> None:
        """small, bulk: how many lanes there may be of each."""
        self._connect = connect
        self.clock = self._clock = clock
        self._most = {False: small, True: bulk}
        self._changed = threading.Condition(threading.Lock())  # guards what is below, except where said otherwise
        # Taken from and added to without the lock: a deque's own methods are atomic.
        self._idle: dict[bool, deque[_Seat]] = {False: deque(), True: deque()}
        self._seats: list[_Seat] = []  # all that stand
        self._opening = {False: 0, True: 0}
        self._waiting = 0
        self._session: Session | None = None
        self._up = False
        self._down_since: float | None = None
        self._failure: tuple[float, HeadraceError] | None = None  # the last attempt: when it began, what came of it
        self._full_until = -math.inf
        self._closed = False
        self._on_up: list[Callable[[], None]] = []
        self._keeper: threading.Thread | None = None
        self._watchdog: threading.Thread | None = None
        self._watchdog_sleeps = False
        self._wake = threading.Event()  # the watchdog
        self._nudge = threading.Event()  # the keeper
        self.lost = 0  # lanes that broke or were given up, so far

    # ---- what others see -------------------------------------------------------------------------------------------

    @property
    def up(self) -> bool:
        """Whether the host was there when it was last asked."""
        return self._up

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def crowded(self) -> bool:
        """Whether the host takes no further lane, so that bulk uses one that small reads wait for. Approximate without
        the lock."""
        return self._is_full() and not self._count(True)

    def on_up(self, callback: Callable[[], None]) -> None:
        """`callback` is called each time the host is there after it was not, the first time included. On a thread of
        the link's: it must not block for long."""
        self._on_up.append(callback)

    def connect(self, deadline: float) -> None:
        """Blocks until the host is there. Raises what the first attempt raised, or HostAwayError at `deadline`."""
        asked = self._clock()
        with self._changed:
            self._waiting += 1
            try:
                while not self._up:
                    failure = self._failure
                    if failure and failure[0] >= asked:
                        raise failure[1]
                    self._pause(deadline)
                    self._keep_trying()
                    self._changed.wait(TICK)
            finally:
                self._waiting -= 1

    def run(self, do: Callable[[Session, Lane], T], deadline: float, *, bulk: bool = False, wait: bool = True) -> T:
        """One exchange on a lane that nobody else uses meanwhile; what `do` returns. On the caller's own thread.

        do: asks and reads the whole answer. It may be called again on another lane when the connection breaks, so what
        it does must bear that. deadline: by the clock, seconds. bulk: on lanes of its own, which give way to others.
        wait: for a host that is away to come back; else HostAwayError comes at once.

        Raises HostAwayError at `deadline`, half a second later at most. It comes earlier only where the host refuses
        this client, or where it had been away for LONG_GONE seconds when the call came and an attempt to connect that
        began after that failed. What `do` raises for what the host answered goes through.
        """
        attempt = 0
        while True:
            seat = self._take(bulk, deadline, wait=wait)
            seat.arrived, seat.given_up, seat.retried = -1, False, attempt > 0
            seat.deadline = deadline
            if self._watchdog_sleeps:
                self._wake.set()
            try:
                answer = do(seat.session, seat.lane)
            except (ConnectionLostError, ProtocolError) as why:
                self._lose(seat, why)
                if isinstance(why, ProtocolError):
                    raise
                if self._clock() >= deadline:
                    raise HostAwayError("the host did not answer in time") from why
                attempt += 1
                if attempt > 1:
                    time.sleep(min(FIRST_PAUSE * attempt, max(0.0, deadline - self._clock())))
                continue
            except BaseException:
                self._put_back(seat)
                raise
            self._put_back(seat)
            return answer

    def close(self) -> None:
        """Ends every lane, and whoever waits for one."""
        with self._changed:
            self._closed = True
            self._up = False
            seats, self._seats = self._seats, []
            session, self._session = self._session, None
            threads = [thread for thread in (self._keeper, self._watchdog) if thread]
            self._changed.notify_all()
        self._wake.set()
        self._nudge.set()
        for seat in seats:
            seat.lane.messages.abort()
        if session:
            session.drop()
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(TICK * 5)  # one that connects may take longer; it ends by itself then

    # ---- a call's lane ---------------------------------------------------------------------------------------------

    def _take(self, bulk: bool, deadline: float, *, wait: bool) -> _Seat:
        idle = self._idle[bulk]
        while idle:
            try:
                seat = idle.pop()  # the last used: what it needs is still in the caches
            except IndexError:
                break
            if not self._closed:  # that it is idle was seen when it was put back
                return seat
            self._lose(seat, None)
        return self._wait_for(bulk, deadline, wait=wait)

    def _wait_for(self, bulk: bool, deadline: float, *, wait: bool) -> _Seat:
        asked = self._clock()
        with self._changed:
            self._waiting += 1
            try:
                while True:
                    seat = self._pop(bulk)
                    if seat:
                        return seat
                    self._pause(deadline)
                    self._give_up_early(asked, wait=wait)
                    self._open_more(bulk)
                    self._changed.wait(max(0.001, min(TICK, deadline - self._clock())))
            finally:
                self._waiting -= 1

    def _pop(self, bulk: bool) -> _Seat | None:
        for kind in (bulk, False) if bulk and self.crowded else (bulk,):
            with contextlib.suppress(IndexError):
                return self._idle[kind].pop()
        return None

    def _pause(self, deadline: float) -> None:
        if self._closed:
            raise HostAwayError("the share was let go", hint="")
        if self._clock() >= deadline:
            why = self._failure[1] if self._failure and not self._up else None
            text = f"the host is away: {why.message}" if why else "the host did not answer in time"
            raise HostAwayError(text) from why

    def _give_up_early(self, asked: float, *, wait: bool) -> None:
        """The rule of `run`."""
        if self._up:
            return
        if not wait:
            raise HostAwayError("the host is away")
        if self._failure is None:
            return
        began, why = self._failure
        gone_long = self._down_since is not None and asked - self._down_since >= LONG_GONE
        if isinstance(why, RefusedError) or (gone_long and began >= asked):
            raise HostAwayError(f"the host cannot be used: {why.message}", hint=why.hint) from why

    def _put_back(self, seat: _Seat) -> None:
        seat.deadline = math.inf
        if self._closed or seat.given_up or not seat.lane.idle:
            self._lose(seat, None)
            return
        self._idle[seat.bulk].append(seat)
        if self._waiting:
            with self._changed:
                self._changed.notify_all()

    def _lose(self, seat: _Seat, why: HeadraceError | None) -> None:
        """The lane is of no further use, and those that nobody uses have probably met the same end."""
        seat.deadline = math.inf
        lost = [seat]
        with self._changed:
            for idle in self._idle.values():
                with contextlib.suppress(IndexError):
                    while True:
                        lost.append(idle.pop())
            for one in lost:
                with contextlib.suppress(ValueError):
                    self._seats.remove(one)
            self.lost += len(lost)
            closed = self._closed
            if not closed:
                self._open_more(seat.bulk)  # says soon whether the host is still there
            self._changed.notify_all()
        if why and not closed:
            log.info("a connection to the host broke: %s", why.message)
        for one in lost:
            one.lane.messages.abort()  # a goodbye could wait for a host that takes nothing
            one.session.release(one.lane)

    # ---- more lanes; with the lock held ----------------------------------------------------------------------------

    def _count(self, bulk: bool) -> int:
        return sum(seat.bulk == bulk for seat in self._seats) + self._opening[bulk]

    def _is_full(self) -> bool:
        return bool(self._seats) and self._clock() < self._full_until

    def _open_more(self, bulk: bool) -> None:
        if self._closed:
            return
        self._start_watchdog()
        if not self._up:
            self._keep_trying()
        elif not self._is_full() and self._count(bulk) < self._most[bulk] and self._opening[bulk] < 1:
            self._opening[bulk] += 1
            threading.Thread(target=self._open_one, args=(bulk,), name="headrace-link-open", daemon=True).start()

    def _keep_trying(self) -> None:
        self._nudge.set()
        if self._keeper is None and not self._closed:
            self._start_watchdog()
            self._keeper = threading.Thread(target=self._keep, name="headrace-link-connect", daemon=True)
            self._keeper.start()

    def _start_watchdog(self) -> None:
        if self._watchdog is None:
            self._watchdog = threading.Thread(target=self._watch, name="headrace-link-watch", daemon=True)
            self._watchdog.start()

    # ---- threads of the link's own ---------------------------------------------------------------------------------

    def _open_one(self, bulk: bool) -> None:
        """One further lane while the host is there; where that fails it may be away."""
        began = self._clock()
        session = self._session
        try:
            if session is None:
                raise ConnectionLostError("the connection is gone")
            lane = _open_lane(session, bulk=bulk)
        except HeadraceError as why:
            with self._changed:
                self._opening[bulk] -= 1
                if self._seats:  # others stand: the host takes no more of them, or is just going away
                    self._full_until = self._clock() + FULL
                elif self._session is session:
                    self._gone(began, why)
                self._changed.notify_all()
            return
        self._seat(session, lane, bulk=bulk, opened=1)

    def _seat(self, session: Session, lane: Lane, *, bulk: bool, opened: int = 0) -> None:
        """opened: lanes of `_opening` that this is. Under one lock with the seat: between the two there would seem to
        be room for a further one."""
        seat = _Seat(session, lane, bulk=bulk)
        with self._changed:
            self._opening[bulk] -= opened
            if self._closed or self._session is not session:
                unwanted = True
            else:
                unwanted = False
                self._seats.append(seat)
                self._idle[bulk].append(seat)
                self._changed.notify_all()
        if unwanted:
            lane.messages.abort()
            session.release(lane)

    def _gone(self, began: float, why: HeadraceError) -> None:
        """With the lock held: the host is away."""
        if self._up:
            log.warning("the host is away (%s); trying again until it is back", why.message)
        self._up = False
        self._failure = (began, why)
        if self._down_since is None:
            self._down_since = self._clock()
        session, self._session = self._session, None
        if session:  # not here: it may take a while, and the lock is held
            threading.Thread(target=session.drop, name="headrace-link-drop", daemon=True).start()
        self._keep_trying()

    def _keep(self) -> None:
        """Connects, again and again, until the host is there."""
        pause = 0.0
        while True:
            self._wait_before_next(pause)
            if self._closed:
                return
            began = self._clock()
            try:
                session = self._connect()
            except HeadraceError as why:
                self._failed(began, why)
                if isinstance(why, WrongCodeError):  # every attempt counts as a guess, and ten of them lock the share
                    return
                refused = isinstance(why, RefusedError)
                pause = REFUSED_PAUSE if refused else min(pause * 2, LONGEST_PAUSE) or FIRST_PAUSE
                continue
            except Exception as bug:  # without this thread nobody would ever connect again
                log.exception("connecting failed")
                self._failed(began, HeadraceError(f"connecting failed here ({type(bug).__name__}: {bug})"))
                pause = LONGEST_PAUSE
                continue
            if self._first_lane(session):
                return
            pause = pause or FIRST_PAUSE

    def _failed(self, began: float, why: HeadraceError) -> None:
        with self._changed:
            self._failure = (began, why)
            if self._down_since is None:
                self._down_since = began
                log.warning("the host is away (%s); trying again until it is back", why.message)
            self._changed.notify_all()

    def _wait_before_next(self, pause: float) -> None:
        """Somebody who waits for a lane makes it shorter, unless the host refuses."""
        end = time.monotonic() + pause
        short = time.monotonic() + (min(pause, NUDGED_PAUSE) if pause < REFUSED_PAUSE else pause)
        while not self._closed and (left := (short if self._waiting else end) - time.monotonic()) > 0:
            self._nudge.clear()
            self._nudge.wait(min(left, 1.0))

    def _first_lane(self, session: Session) -> bool:
        """Whether it stands, and so the host is there."""
        began = self._clock()
        try:
            lane = _open_lane(session, bulk=False)
        except HeadraceError as why:
            session.drop()
            self._failed(began, why)
            return False
        with self._changed:
            if self._closed:
                late = True
            else:
                late = False
                self._session = session
                self._up = True
                away, self._down_since = self._down_since, None
                self._failure = None
                self._keeper = None
                self._full_until = -math.inf
        if late:
            session.drop()
            return True
        if away is not None:
            log.warning("the host is back after %.1f s", self._clock() - away)
        self._seat(session, lane, bulk=False)
        for callback in list(self._on_up):
            callback()
        return True

    def _watch(self) -> None:
        """Aborts lanes whose time is over. It looks every TICK while any is in use, else it sleeps."""
        quiet_since = time.monotonic()
        while not self._closed:
            if time.monotonic() - quiet_since > REST:
                self._watchdog_sleeps = True
                if all(seat.deadline == math.inf for seat in list(self._seats)):  # asked after the flag was shown
                    self._wake.wait()
                self._wake.clear()
                self._watchdog_sleeps = False
            else:
                self._wake.wait(TICK)
                self._wake.clear()
            if self._look():
                quiet_since = time.monotonic()

    def _look(self) -> bool:
        """Whether any lane is in use."""
        now, used = self._clock(), False
        for seat in list(self._seats):
            if seat.deadline == math.inf:
                continue
            used = True
            arrived = seat.lane.messages.stream.bytes_in
            if arrived != seat.arrived:
                seat.arrived, seat.moved = arrived, now
            stuck = not seat.retried and now - seat.moved >= STALLED
            if now >= seat.deadline or stuck:
                seat.given_up = True
                seat.lane.messages.abort()
        return used


def _open_lane(session: Session, *, bulk: bool) -> Lane:
    """Small reads go by TCP like chunks, sealed; by QUIC their role is what puts them before chunks."""
    urgent = not bulk and session.transport == QUIC
    return session.open_lane(role=ROLE_CONTROL if urgent else ROLE_DATA)
