"""Rate limits, on a clock of their own: accurate, without bursts, fair, and changeable."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.protocol.messages import KIB, MIB
from headrace.transport.pacing import Bucket, Limit, Pace, pace


class Clock:
    """Time that passes only when somebody sleeps. oversleep: what the system adds to each sleep, in seconds."""

    def __init__(self, oversleep: float = 0.0) -> None:
        self.now = 100.0
        self.oversleep = oversleep
        self.on_sleep: Callable[[], None] = lambda: None

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds + self.oversleep
        self.on_sleep()


def bucket(rate: float | None, clock: Clock) -> Bucket:
    return Bucket(rate, clock=clock, sleep=clock.sleep)


def send(pace: Bucket | Pace, clock: Clock, seconds: float, piece: int, use: float = 1.0) -> list[tuple[float, int]]:
    """Somebody who always has more to send: (when, bytes). use: the share of each grant that the socket took."""
    sent = []
    end = clock.now + seconds
    while clock.now < end:
        granted = pace.grant(piece)
        taken = max(1, int(granted * use))
        pace.refund(granted - taken)
        sent.append((clock.now, taken))
    return sent


rates = st.floats(2 * KIB, 4e9)
pieces = st.sampled_from([1, 100, 16 * KIB, 256 * KIB, MIB])


@given(rates, st.sampled_from([KIB, 16 * KIB, 256 * KIB, MIB]), st.sampled_from([0.0, 0.0001, 0.002, 0.01]))
@pytest.mark.slow
def test_it_is_accurate_over_five_seconds(rate: float, piece: int, oversleep: float) -> None:
    clock = Clock(oversleep)
    piece = max(piece, int(rate / 500))  # or a test of 4 GB/s in pieces of a KiB takes for ever
    sent = send(bucket(rate, clock), clock, 5.0, piece)
    took = clock.now - 100.0
    total = sum(size for _, size in sent)
    assert total == pytest.approx(rate * took, rel=0.03, abs=2 * KIB)


@given(rates, st.sampled_from([16 * KIB, 256 * KIB, MIB]))
@pytest.mark.slow
def test_no_100_ms_hold_more_than_twice_the_rate(rate: float, piece: int) -> None:
    clock = Clock(0.003)
    limit = bucket(rate, clock)
    clock.now += 60  # a pause gives nobody the right to a burst
    sent = send(limit, clock, 1.0, max(piece, int(rate / 500)))
    first = window = 0
    for when, size in sent:
        window += size
        while sent[first][0] <= when - 0.1:
            window -= sent[first][1]
            first += 1
        assert window <= max(0.2 * rate, 2 * KIB)


@given(rates, pieces, st.floats(0.1, 1.0))
@pytest.mark.slow
def test_what_was_not_used_is_not_lost(rate: float, piece: int, use: float) -> None:
    clock = Clock()
    piece = max(piece, int(rate / 100), 256)
    sent = send(bucket(rate, clock), clock, 2.0, piece, use)
    assert sum(size for _, size in sent) == pytest.approx(rate * (clock.now - 100.0), rel=0.03, abs=2 * KIB)


def test_no_limit_grants_everything_at_once() -> None:
    clock = Clock()
    assert bucket(None, clock).grant(10**12) == 10**12
    assert Pace().grant(5) == 5
    assert clock.now == 100.0


@pytest.mark.parametrize("rate", [0, -1, float("nan")])
def test_a_rate_of_nothing_is_none(rate: float) -> None:
    with pytest.raises(ValueError, match="positive"):
        Bucket(rate)


@pytest.mark.parametrize(("old", "new"), [(MIB, 10 * MIB), (10 * MIB, MIB), (None, MIB)])
def test_it_can_be_changed_while_it_runs(old: float | None, new: float) -> None:
    clock = Clock()
    limit = bucket(old, clock)
    limit.grant(MIB)
    limit.rate = new
    begin = clock.now
    sent = send(limit, clock, 5.0, 64 * KIB)
    assert sum(size for _, size in sent) == pytest.approx(new * (clock.now - begin), rel=0.03)


def test_who_waits_hears_of_a_change() -> None:
    clock = Clock()
    limit = bucket(1.0, clock)
    sleeps = []

    def change() -> None:
        sleeps.append(clock.now)
        if len(sleeps) == 3:
            limit.rate = None

    clock.on_sleep = change
    assert limit.grant(MIB) == 1024  # what it had asked for by then
    assert limit.grant(MIB) == MIB
    assert len(sleeps) == 3
    assert clock.now < 101  # not after the thousand seconds that it would have taken


def test_many_streams_share_it_evenly() -> None:
    limit = Bucket(20 * MIB)
    shares: Counter[int] = Counter()
    stop = threading.Event()

    def work(number: int) -> None:
        while not stop.is_set():
            shares[number] += limit.grant(256 * KIB)
            if sum(shares.values()) > 8 * MIB:
                stop.set()

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(work, number) for number in range(4)]:
            done.result(30)
    assert min(shares.values()) > 0.5 * max(shares.values())


def test_the_tighter_of_two_limits_holds_and_the_other_is_not_charged_for_it() -> None:
    clock = Clock()
    everybody, one = bucket(10 * MIB, clock), bucket(MIB, clock)
    sent = send(Pace(everybody, one), clock, 5.0, 256 * KIB)
    took = clock.now - 100.0
    assert sum(size for _, size in sent) == pytest.approx(MIB * took, rel=0.03)
    # What was left of the other's is there for other peers.
    begin = clock.now
    other = sum(size for _, size in send(everybody, clock, 5.0, 256 * KIB))
    assert other == pytest.approx(10 * MIB * (clock.now - begin), rel=0.03)


def test_a_limit_that_was_lifted_leaves_no_debt() -> None:
    clock = Clock()
    limit = bucket(KIB, clock)

    def lift() -> None:
        limit.rate = None

    clock.on_sleep = lift
    limit.pay(MIB)  # a thousand seconds' worth, let go at once
    clock.on_sleep = lambda: None
    limit.rate = MIB
    begin = clock.now
    sent = send(limit, clock, 5.0, 64 * KIB)
    assert sum(size for _, size in sent) == pytest.approx(MIB * (clock.now - begin), rel=0.03)


def test_what_was_granted_before_is_no_burst_at_a_much_lower_rate() -> None:
    """Whoever waits for a grant keeps its size when the rate falls."""
    assert all(Bucket(rate * MIB).portion(10**12) <= 0.2 * MIB for rate in (5, 20, 60))


class Pipe:
    """All that pacing asks of a stream."""

    pace_in: Pace | None = None
    pace_out: Pace | None = None


def test_a_limit_is_kept_in_each_direction_by_itself() -> None:
    clock = Clock()
    pipe, limit = Pipe(), Limit(MIB)
    limit.inward, limit.outward = bucket(MIB, clock), bucket(MIB, clock)
    pace(pipe, limit)
    assert pipe.pace_in
    assert pipe.pace_out
    outward = sum(size for _, size in send(pipe.pace_out, clock, 5.0, 64 * KIB))
    assert clock.now == pytest.approx(105.0, abs=0.1)
    inward = sum(pipe.pace_in.grant(1000) for _ in range(10))  # the same five seconds let these through: DEPTH
    assert clock.now == pytest.approx(105.0, abs=0.1)
    assert outward == pytest.approx(5 * MIB, rel=0.03)
    assert inward == 10_000


def test_a_limit_has_one_rate() -> None:
    limit = Limit(MIB)
    limit.rate = None
    assert (limit.rate, limit.inward.rate, limit.outward.rate) == (None, None, None)
    limit.rate = KIB
    assert (limit.rate, limit.inward.rate, limit.outward.rate) == (KIB, KIB, KIB)
    with pytest.raises(ValueError, match="positive"):
        limit.rate = 0
