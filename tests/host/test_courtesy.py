"""Bulk keeps its queue short while small reads are about, and neither starves nor stays slow."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import pytest

from headrace.host import courtesy
from headrace.host.courtesy import Courtesy, Shaping
from headrace.transport.shaping import Path

TICK: Final = 0.005  # seconds


@dataclass
class Flow:
    """One bulk connection: it sends what its rate, or TCP's window, lets it."""

    window: float  # bytes that TCP would have in flight
    courtesy: Courtesy = field(default_factory=Courtesy)
    acked: float = 0.0


@dataclass
class Link:
    """A bottleneck with an endless queue. rate: bytes a second; base: seconds of round trip; foreign: somebody else's
    queue in seconds, which does not go away."""

    rate: float
    base: float
    flows: list[Flow]
    foreign: float = 0.0
    now: float = 0.0
    queued: float = 0.0

    @property
    def queue(self) -> float:
        """Seconds."""
        return self.queued / self.rate + self.foreign

    def run(self, seconds: float, *, polite: bool = True) -> tuple[float, float]:
        """The mean queue in seconds, and the share of the rate that was used, over the second half of the time."""
        before, used, queues, steps = self.now, 0.0, 0.0, 0
        while self.now < before + seconds:
            rtt = self.base + self.queue
            offered = [min(flow.window / rtt, flow.courtesy.rate or flow.window / rtt) * TICK for flow in self.flows]
            backlog = self.queued + sum(offered)
            went = min(backlog, self.rate * TICK)
            for flow, part in zip(self.flows, offered, strict=True):
                flow.acked += went * part / sum(offered)
            self.queued = backlog - went
            self.now += TICK
            for flow in self.flows:
                if polite and flow.courtesy.due(self.now, self.base):
                    flow.courtesy.observe(self.now, Path(self.base + self.queue, self.base, int(flow.acked)))
            if self.now > before + seconds / 2:
                queues, used, steps = queues + self.queue, used + went, steps + 1
        return queues / steps, used / (self.rate * TICK * steps)


LINKS: Final = [(12.5e6, 0.05), (125e6, 0.001), (125e6, 0.02), (2.5e6, 0.03)]


@pytest.mark.parametrize(("rate", "base"), LINKS)
@pytest.mark.parametrize("flows", [1, 4, 8])
def test_the_queue_goes_and_most_of_the_link_is_used(rate: float, base: float, flows: int) -> None:
    window = rate * (2 * base + 0.02)
    link = Link(rate, base, [Flow(window / flows) for _ in range(flows)])
    rude, _ = link.run(5, polite=False)
    polite, used = link.run(10)
    assert rude > 0.015
    assert polite < rude / 4
    assert polite < 2 * max(courtesy.TARGET, base / 10)
    assert used > 0.8


def test_somebody_elses_queue_takes_at_most_half() -> None:
    link = Link(12.5e6, 0.05, [Flow(1.2e6)], foreign=0.0)
    link.run(2)
    had = link.flows[0].courtesy._best
    link.foreign = 0.5
    link.run(5)
    rate = link.flows[0].courtesy.rate
    assert rate is not None
    assert rate >= 0.4 * had, "a half, and what was forgotten in 5 s"


def test_a_link_that_becomes_faster_is_used() -> None:
    link = Link(2.5e6, 0.03, [Flow(5e6), Flow(5e6)])
    link.run(5)
    link.rate = 12.5e6
    _, used = link.run(6)
    assert used > 0.8


def test_a_rate_never_falls_below_the_least() -> None:
    polite = Courtesy()
    for step in range(100):
        polite.observe(step * 0.1, Path(1.0, 0.01, step * 10))
    assert polite.rate == courtesy.LEAST


def test_what_was_measured_before_a_long_rest_counts_for_nothing() -> None:
    polite = Courtesy()
    polite.observe(0.0, Path(0.1, 0.01, 0))
    polite.observe(60.0, Path(0.1, 0.01, 1000))
    assert polite.rate is None
    polite.observe(60.1, Path(0.1, 0.01, 1_001_000))
    assert polite.rate == pytest.approx(0.85 * 10e6)


class Kernel:
    """A Shaper that says what a test wants, and notes what it is told."""

    def __init__(self) -> None:
        self.limits: list[float | None] = []
        self.looks = 0
        self.there = True

    def path(self) -> Path | None:
        self.looks += 1
        return Path(0.1, 0.01, self.looks * 1_000_000) if self.there else None

    def limit(self, rate: float | None) -> None:
        self.limits.append(rate)


def test_a_second_after_the_last_small_read_there_is_no_limit_any_more() -> None:
    kernel = Kernel()
    shaping = Shaping(kernel)  # type: ignore[arg-type]
    for step in range(5):
        assert shaping.look(step * 0.1, 0.0) == courtesy.PIECE
    assert kernel.limits
    assert None not in kernel.limits
    assert shaping.look(1.05, 0.0) == 0
    assert kernel.limits[-1] is None
    told = len(kernel.limits)
    assert shaping.look(1.1, 0.0) == 0
    assert len(kernel.limits) == told, "once is enough"


def test_the_path_is_not_looked_at_more_often_than_it_can_have_changed() -> None:
    kernel = Kernel()
    shaping = Shaping(kernel)  # type: ignore[arg-type]
    for step in range(1000):
        shaping.look(step * 0.001, 1.0)
    assert kernel.looks <= 1 / courtesy.STEP + 1


def test_a_connection_that_is_gone_is_left_alone() -> None:
    kernel = Kernel()
    kernel.there = False
    shaping = Shaping(kernel)  # type: ignore[arg-type]
    for step in range(5):
        shaping.look(step * 0.1, 0.0)
    assert kernel.limits == []


def test_a_stream_without_a_shaper_is_not_shaped() -> None:
    assert Shaping.of(object()).look(0.0, 0.0) == 0
