"""Requests in flight and connections, on traces: links that are simulated, and one that was recorded."""

from __future__ import annotations

import json
import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.engine.estimates import MAX_CONNECTIONS, START_CONNECTIONS
from headrace.engine.pool import MAX_REQUESTS, MIN_REQUESTS, START_REQUESTS, StreamPool

TRACES = Path(__file__).parent.parent / "traces"
TICK = 0.001
SAMPLE = 0.01


@dataclass
class Row:
    """How things stood at one sample."""

    now: float
    requests: int
    connections: int
    reason: str
    delivered: int
    queue: float  # seconds
    baseline: float | None


@dataclass
class Link:
    """A bottleneck with a queue, fed by as many bytes as the pool says may be in flight.

    path: rows of (from second, bytes a second, round trip without a queue). use: the share of the rate that so many
    connections get. visible: what waits, waits on the link, where the round trip shows it; else in the host.
    """

    path: list[list[float]]
    queue_seconds: float = 1.0
    jitter: float = 0.02
    use: Callable[[int], float] = lambda connections: 1.0
    visible: bool = True
    delivered: float = 0.0
    queue: float = 0.0
    in_flight: float = 0.0
    _way: deque[tuple[float, float]] = field(default_factory=deque)

    def at(self, now: float) -> tuple[float, float]:
        _, rate, rtt = next(row for row in reversed(self.path) if row[0] <= now)
        return rate, rtt

    def tick(self, now: float, allowed: float, connections: int) -> float:
        """Moves on by a TICK; seconds that the last byte waits in the queue."""
        rate, rtt = self.at(now)
        rate *= self.use(connections)
        while self._way and self._way[0][0] <= now:
            self.queue += self._way.popleft()[1]
        lost = max(0.0, self.queue - self.queue_seconds * rate)
        served = min(self.queue - lost, rate * TICK)
        self.queue -= lost + served
        self.delivered += served
        self.in_flight -= lost + served
        if (asked := allowed - self.in_flight) > 0:
            self.in_flight += asked
            self._way.append((now + rtt, asked))
        return self.queue / rate

    def run(self, pool: StreamPool, seconds: float, chunk: int) -> list[Row]:
        noise = random.Random(1)
        rows = []
        for tick in range(round(seconds / TICK)):
            now = tick * TICK
            queue = self.tick(now, pool.requests * chunk, pool.connections)
            if tick % round(SAMPLE / TICK) == 0:
                rtt = (self.at(now)[1] + (queue if self.visible else 0)) * (
                    1 + self.jitter * (noise.random() - 0.5) * 2
                )
                pool.observe(now, int(self.delivered), round(rtt, 6))
                numbers = (pool.requests, pool.connections, pool.reason)
                rows.append(Row(now, *numbers, int(self.delivered), queue, pool.baseline_rtt))
        return rows

    def used(self, rows: list[Row], since: float, until: float = math.inf) -> float:
        """The share of what the link could have carried."""
        part = [row for row in rows if since <= row.now <= until]
        could = sum(self.at(row.now)[0] * SAMPLE for row in part[:-1])
        return (part[-1].delivered - part[0].delivered) / could


def run(name: str) -> tuple[Link, list[Row], list[str]]:
    trace = json.loads((TRACES / f"{name}.json").read_text())
    warnings: list[str] = []
    link = Link(trace["path"], trace["queue_seconds"], trace["jitter"])
    rows = link.run(StreamPool(chunk_size=trace["chunk"], warn=warnings.append), trace["seconds"], trace["chunk"])
    return link, rows, warnings


def changes(rows: list[Row]) -> list[tuple[float, str, int, int]]:
    found = []
    for before, row in zip(rows, rows[1:], strict=False):
        if (row.requests, row.connections) != (before.requests, before.connections):
            found.append((row.now, row.reason, row.requests, row.connections))
    return found


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def queue_of(rows: list[Row], since: float) -> float:
    return mean([row.queue for row in rows if row.now >= since])


def test_a_steady_link_is_full_and_its_queue_short():
    link, rows, warnings = run("steady")

    assert link.used(rows, 1) >= 0.97
    assert queue_of(rows, 1) < 0.05
    assert rows[-1].baseline == pytest.approx(0.05, rel=0.1), "the queue of its own never passes for the path"
    assert warnings == []


def test_a_link_that_became_slower_gets_fewer_requests():
    link, rows, warnings = run("bufferbloat")

    shrunk = [change[2] for change in changes(rows) if change[1] == "bufferbloat"]
    assert shrunk[:3] == [39, 29, 21]
    assert queue_of(rows, 25) < 0.04, "less than one baseline"
    assert link.used(rows, 25) >= 0.95
    assert len(warnings) == 1


def test_the_fewest_requests_in_a_long_queue_do_not_pass_for_a_long_path():
    link, rows, _ = run("narrow")

    assert rows[-1].requests == MIN_REQUESTS
    assert rows[-1].baseline == pytest.approx(0.04, rel=0.1)


def test_a_link_that_became_faster_is_filled_again():
    link, rows, _ = run("faster")

    assert link.used(rows, 30) >= 0.95
    assert queue_of(rows, 30) < 0.04


@pytest.mark.parametrize(("name", "since", "baseline"), [("route-change", 41, 0.08), ("longer-at-the-fewest", 35, 0.5)])
def test_a_longer_path_is_accepted(name, since, baseline):
    link, rows, _ = run(name)

    assert link.used(rows, since) >= 0.94
    assert rows[-1].baseline == pytest.approx(baseline, rel=0.15)


def test_wifi_that_swings_moves_little():
    link, rows, warnings = run("wifi")

    assert link.used(rows, 1) >= 0.95
    assert len(changes(rows)) <= 30, "in a minute in which the rate changed 60 times"
    assert len(warnings) == 1


def test_a_recorded_loopback_is_never_bloated():
    pool = StreamPool()
    for now, delivered, rtt in json.loads((TRACES / "loopback.json").read_text())["samples"]:
        pool.observe(now, delivered, rtt)
        assert pool.requests >= START_REQUESTS


def test_loopback_noise_is_no_queue():
    pool, noise = StreamPool(), random.Random(2)
    for step in range(3000):
        pool.observe(step * 0.01, step * 5_000_000, noise.uniform(20e-6, 2e-3))
        assert pool.requests >= START_REQUESTS


@pytest.mark.parametrize(
    ("use", "expected"),
    [(lambda count: 1.0, 1), (lambda count: min(1.0, 0.2 * count), 5), (lambda count: min(1.0, 0.6 * count), 2)],
)
def test_connections_are_as_many_as_help(use, expected):
    link = Link([[0, 12_500_000, 0.02]], use=use, visible=False)
    rows = link.run(StreamPool(chunk_size=8192), 29, 8192)

    assert rows[-1].connections == expected


def test_nothing_is_tried_on_a_link_that_is_full():
    """One more would lengthen its queue; one fewer leaves a part of it empty until the others have grown."""
    rows = Link([[0, 12_500_000, 0.02]]).run(StreamPool(chunk_size=16384), 60, 16384)
    assert {row.connections for row in rows} == {START_CONNECTIONS}


@pytest.mark.parametrize("rtt", [None, 0, 0.3, math.nan, -1.0])
def test_a_round_trip_that_is_none_or_never_moves_changes_nothing(rtt):
    pool = StreamPool()
    for step in range(2000):
        pool.observe(step * 0.01, step * 100_000, rtt)

    assert pool.requests == START_REQUESTS
    assert pool.baseline_rtt is None


def test_a_round_trip_that_stops_moving_is_not_relied_on():
    pool = StreamPool(chunk_size=65536)
    for step in range(2000):
        pool.observe(step * 0.01, step * 10_000, 0.02 + step % 2 / 1000)
    assert pool.requests == MIN_REQUESTS
    for step in range(2000, 3100):
        pool.observe(step * 0.01, step * 10_000, 0.02)

    assert (pool.requests, pool.reason, pool.baseline_rtt) == (START_REQUESTS, "no-rtt", None)


numbers = st.floats(min_value=-1, max_value=1e4) | st.sampled_from([math.nan, math.inf, 0.0])
samples = st.lists(
    st.tuples(st.floats(0, 2), st.integers(-(10**6), 10**12), st.none() | st.floats(1e-6, 5) | numbers), max_size=200
)


@given(samples, st.integers(1, 1 << 24))
def test_the_bounds_hold_whatever_is_measured(steps, chunk_size):
    pool, now, delivered = StreamPool(chunk_size=chunk_size), 0.0, 0
    for wait, more, rtt in steps:
        now += wait
        delivered += more
        pool.observe(now, delivered, rtt)
        assert MIN_REQUESTS <= pool.requests <= MAX_REQUESTS
        assert 1 <= pool.connections <= MAX_CONNECTIONS


@given(samples, st.integers(1, 100), st.booleans())
def test_a_fixed_number_stays(steps, number, both):
    pool = StreamPool(fixed_requests=number, fixed_connections=number if both else None)
    now, delivered = 0.0, 0
    for wait, more, rtt in steps:
        now += wait
        delivered += more
        pool.observe(now, delivered, rtt)
        assert pool.requests == number
        assert pool.connections == number if both else 1 <= pool.connections <= number
