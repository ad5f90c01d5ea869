"""A share that comes back: what a call does while connections break, hosts are silent, away, or refuse."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from tests.transport.memory import MemoryStream, memory_pair

from headrace.client.link import LONG_GONE, STALLED, Link
from headrace.engine.lane import Lane
from headrace.errors import (
    ConnectionLostError,
    HeadraceError,
    HostAwayError,
    NotFoundError,
    ProtocolError,
    UnreachableError,
    WrongCodeError,
)
from headrace.protocol.messages import Ping, Pong
from headrace.transport.framed import MessageStream


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Host:
    """Hosts a link can connect to. away: why it cannot. silent: lanes that stand and never answer. full: no more lanes
    than that. lanes: those that are open; ends: the host's ends of all that ever were."""

    def __init__(self) -> None:
        self.away: HeadraceError | None = None
        self.silent = False
        self.full = 100
        self.lanes: list[Lane] = []
        self.ends: list[MemoryStream] = []
        self.attempts = 0
        self.opened = 0
        self.dropped = 0

    def connect(self) -> Any:
        self.attempts += 1
        if self.away:
            raise self.away
        return Session(self)

    def cut(self) -> None:
        """All connections break."""
        for end in self.ends:
            end.abort()
            end.close()
        self.ends.clear()


class Session:
    transport = "tcp"

    def __init__(self, host: Host) -> None:
        self.host = host

    def open_lane(self, transport: str | None = None, *, role: str = "data") -> Lane:
        host = self.host
        if host.away:
            raise ConnectionLostError(host.away.message)
        if len(host.lanes) >= host.full:
            raise ConnectionLostError("the host takes no more connections")
        near, far = memory_pair()
        near.set_timeout(60)
        setattr(near, "set_deadline", lambda seconds: None)  # noqa: B010  # for last words, which nobody has here
        lane = Lane(MessageStream(near))
        lane.messages.enter_session()
        host.lanes.append(lane)
        host.ends.append(far)
        host.opened += 1
        if not host.silent:
            threading.Thread(target=answer, args=(far,), daemon=True).start()
        return lane

    def release(self, lane: Lane) -> None:
        if lane in self.host.lanes:
            self.host.lanes.remove(lane)
        lane.messages.close()

    def drop(self) -> None:
        self.host.dropped += 1


def answer(end: MemoryStream) -> None:
    messages = MessageStream(end)
    messages.enter_session()
    try:
        while received := messages.receive():
            messages.send(Pong(received[0].id))  # type: ignore[attr-defined]
    except HeadraceError:
        pass


def ping(session: Any, lane: Lane) -> str:
    lane.post(Ping(lane.next_id()))
    lane.answer()
    return "pong"


@pytest.fixture
def host() -> Host:
    return Host()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def link(host: Host, clock: Clock) -> Iterator[Link]:
    made = Link(host.connect, clock)
    yield made
    made.close()


def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_no_thread_and_no_connection_before_the_first_use(host: Host) -> None:
    before = threading.active_count()
    link = Link(host.connect)
    assert threading.active_count() == before
    assert not link.up
    link.close()
    assert not host.attempts


def test_a_lane_is_used_again(link: Link, host: Host, clock: Clock) -> None:
    ups: list[int] = []
    link.on_up(lambda: ups.append(1))
    for _ in range(10):
        assert link.run(ping, clock.now + 5) == "pong"
    assert link.up
    assert (host.attempts, host.opened, ups) == (1, 1, [1])


def test_bulk_has_lanes_of_its_own(link: Link, clock: Clock) -> None:
    lanes: dict[bool, Lane] = {}
    for bulk in (False, True):
        lanes[bulk] = link.run(lambda session, lane: lane, clock.now + 5, bulk=bulk)
    assert lanes[False] is not lanes[True]


def test_many_at_once_each_have_a_lane_to_themselves(host: Host) -> None:
    link = Link(host.connect, small=3)
    inside: set[int] = set()
    most: list[int] = []

    def use(session: Any, lane: Lane) -> str:
        assert id(lane) not in inside
        inside.add(id(lane))
        most.append(len(inside))
        time.sleep(0.002)
        inside.discard(id(lane))
        return ping(session, lane)

    with ThreadPoolExecutor(12) as callers:
        answers = [callers.submit(link.run, use, time.monotonic() + 10) for _ in range(60)]
        assert {one.result() for one in answers} == {"pong"}
    assert 1 < max(most) <= 3
    assert host.opened <= 3
    link.close()


def test_an_exchange_is_tried_again_when_the_connection_breaks(link: Link, host: Host, clock: Clock) -> None:
    link.run(ping, clock.now + 5)
    for _ in range(3):
        host.cut()
        assert link.run(ping, clock.now + 5) == "pong"
    assert host.attempts == 1, "new lanes are enough"


def test_what_the_host_says_goes_through_and_the_lane_stays(link: Link, host: Host, clock: Clock) -> None:
    def missing(session: Any, lane: Lane) -> None:
        ping(session, lane)
        raise NotFoundError("no such file")

    for _ in range(3):
        with pytest.raises(NotFoundError):
            link.run(missing, clock.now + 5)
    assert host.opened == 1


def test_a_lane_left_in_the_middle_of_an_answer_is_replaced(link: Link, host: Host, clock: Clock) -> None:
    def half(session: Any, lane: Lane) -> None:
        lane.post(Ping(lane.next_id()))
        raise NotFoundError("never mind")

    with pytest.raises(NotFoundError):
        link.run(half, clock.now + 5)
    assert link.run(ping, clock.now + 5) == "pong"


def test_a_host_that_breaks_the_protocol_is_not_asked_again(link: Link, clock: Clock) -> None:
    asked: list[int] = []

    def wrong(session: Any, lane: Lane) -> None:
        asked.append(1)
        raise ProtocolError("that is no answer")

    with pytest.raises(ProtocolError):
        link.run(wrong, clock.now + 5)
    assert asked == [1]


def test_a_silent_host_costs_no_more_than_the_deadline(link: Link, host: Host, clock: Clock) -> None:
    host.silent = True
    with ThreadPoolExecutor(1) as callers:
        call = callers.submit(link.run, ping, clock.now + 5)
        until(lambda: host.lanes)
        time.sleep(0.05)
        assert not call.done()
        clock.now += 5
        began = time.monotonic()
        with pytest.raises(HostAwayError):
            call.result(10)
        assert time.monotonic() - began < 0.5


@pytest.mark.slow
def test_a_lane_that_stalls_is_given_up_for_a_fresh_one_once(link: Link, host: Host, clock: Clock) -> None:
    host.silent = True
    with ThreadPoolExecutor(1) as callers:
        call = callers.submit(link.run, ping, clock.now + 300)
        until(lambda: host.lanes)
        time.sleep(0.25)  # the watchdog has seen it
        host.silent = False
        clock.now += STALLED + 0.1
        assert call.result(10) == "pong"


@pytest.mark.slow
def test_a_host_that_is_away_is_waited_for_until_the_deadline(link: Link, host: Host, clock: Clock) -> None:
    host.away = UnreachableError("nobody listens")
    with ThreadPoolExecutor(1) as callers:
        call = callers.submit(link.run, ping, clock.now + 5)
        until(lambda: host.attempts > 2)
        assert not call.done()
        clock.now += 5
        with pytest.raises(HostAwayError, match="nobody listens"):
            call.result(10)
    assert not link.up


def test_who_does_not_want_to_wait_hears_at_once(link: Link, host: Host, clock: Clock) -> None:
    host.away = UnreachableError("nobody listens")
    with pytest.raises(HostAwayError):
        link.run(ping, clock.now + 5, wait=False)


def test_a_call_goes_on_when_the_host_is_back(link: Link, host: Host, clock: Clock) -> None:
    ups: list[int] = []
    link.on_up(lambda: ups.append(1))
    link.run(ping, clock.now + 5)
    host.away = UnreachableError("nobody listens")
    host.cut()
    with ThreadPoolExecutor(1) as callers:
        call = callers.submit(link.run, ping, clock.now + 30)
        until(lambda: not link.up and host.attempts > 1)
        host.away = None
        assert call.result(10) == "pong"
    until(lambda: len(ups) == 2)
    assert host.dropped == 1


def test_where_it_was_gone_for_long_one_fresh_failure_is_enough(link: Link, host: Host, clock: Clock) -> None:
    link.run(ping, clock.now + 5)
    host.away = UnreachableError("nobody listens")
    host.cut()
    with pytest.raises(HostAwayError):
        link.run(ping, clock.now + 5, wait=False)
    until(lambda: not link.up)
    clock.now += LONG_GONE + 1
    attempts = host.attempts
    with pytest.raises(HostAwayError, match="nobody listens"):
        link.run(ping, clock.now + 3600)
    assert host.attempts > attempts


@pytest.mark.slow
def test_a_wrong_code_is_tried_once_only(link: Link, host: Host, clock: Clock) -> None:
    host.away = WrongCodeError("the code is wrong")
    for _ in range(3):
        with pytest.raises(HostAwayError, match="the code is wrong"):
            link.run(ping, clock.now + 3600)
    time.sleep(0.3)
    assert host.attempts == 1


def test_connect_raises_what_the_first_attempt_did(link: Link, host: Host, clock: Clock) -> None:
    host.away = UnreachableError("nobody listens")
    with pytest.raises(UnreachableError, match="nobody listens"):
        link.connect(clock.now + 5)
    host.away = None
    until(lambda: link.up)
    link.connect(clock.now + 5)


def test_a_host_that_takes_no_more_connections_is_used_by_those_that_stand(host: Host) -> None:
    host.full = 2
    link = Link(host.connect, small=8)
    with ThreadPoolExecutor(8) as callers:
        answers = [callers.submit(link.run, ping, time.monotonic() + 10) for _ in range(40)]
        answers += [callers.submit(link.run, ping, time.monotonic() + 10, bulk=True) for _ in range(4)]
        assert {one.result() for one in answers} == {"pong"}
    assert link.up
    link.close()


def test_close_ends_whoever_waits(link: Link, host: Host, clock: Clock) -> None:
    host.silent = True
    with ThreadPoolExecutor(2) as callers:
        busy = callers.submit(link.run, ping, clock.now + 3600)
        until(lambda: host.lanes)
        began = time.monotonic()
        link.close()
        with pytest.raises(HostAwayError):
            busy.result(10)
        with pytest.raises(HostAwayError):
            link.run(ping, clock.now + 3600)
        assert time.monotonic() - began < 2


@pytest.mark.slow
def test_the_watchdog_sleeps_and_wakes(link: Link, host: Host, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.client.link.REST", 0.01)
    link.run(ping, clock.now + 5)
    until(lambda: link._watchdog_sleeps)
    for end in host.ends:  # the lane stands, and nobody answers on it any more
        end.hold()
    with ThreadPoolExecutor(1) as callers:
        call = callers.submit(link.run, ping, clock.now + 5)
        time.sleep(0.05)
        clock.now += 5
        with pytest.raises(HostAwayError):
            call.result(10)


def test_lanes_that_break_while_a_new_one_is_refused_do_not_pass_for_a_full_host(
    link: Link, host: Host, clock: Clock
) -> None:
    inside, leave = threading.Event(), threading.Event()

    def slow(session: Any, lane: Lane) -> str:
        inside.set()
        leave.wait(10)
        return ping(session, lane)

    with ThreadPoolExecutor(2) as callers:
        busy = callers.submit(link.run, slow, clock.now + 5)
        assert inside.wait(10)
        host.away = UnreachableError("nobody listens")
        other = callers.submit(link.run, ping, clock.now + 5)  # its new lane is refused while one stands
        until(lambda: link._is_full())
        host.cut()
        leave.set()
        until(lambda: not link.up)
        clock.now += 5
        assert isinstance(busy.exception(10), HostAwayError)
        assert isinstance(other.exception(10), HostAwayError)
