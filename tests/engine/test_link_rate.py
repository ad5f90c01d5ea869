"""What a link's rate is taken for, against one whose rate is known: with a buffer, as a kernel has for a socket."""

from __future__ import annotations

from typing import Final

import pytest

from headrace.engine.link_rate import PATIENCE, TRIAL, LinkRate
from headrace.protocol.messages import KIB, MIB

MEMORY: Final = 2e9  # bytes a second: how fast the kernel takes what there is room for


class Link:
    """Takes bytes into a buffer that empties at `rate`. now: seconds."""

    def __init__(self, rate: float, buffer: int = 4 * MIB) -> None:
        self.rate = rate
        self.now = 0.0
        self._buffer = buffer
        self._waiting = 0.0

    def work(self, seconds: float) -> None:
        self.now += seconds
        self._waiting = max(0.0, self._waiting - seconds * self.rate)

    def send(self, estimate: LinkRate, count: int) -> None:
        began = self.now
        self._waiting += count
        self.work(max(count / MEMORY, (self._waiting - self._buffer) / self.rate))
        estimate.sent(count, began, self.now)


def test_nothing_is_known_but_what_was_expected() -> None:
    assert LinkRate().rate is None
    assert LinkRate(5e6).rate == 5e6


@pytest.mark.parametrize("rate", [1e5, 12.5e6, 100e6])
@pytest.mark.parametrize("buffer", [64 * KIB, 4 * MIB])
@pytest.mark.parametrize("expected", [None, 1e3, 1e12])
def test_a_link_that_is_always_busy(rate: float, buffer: int, expected: float | None) -> None:
    link, estimate = Link(rate, buffer), LinkRate(expected)
    for _ in range(60):
        link.work(0.0005)  # reading
        link.send(estimate, MIB)
    assert estimate.rate == pytest.approx(rate, rel=0.05)


def test_what_was_done_between_two_sends_does_not_make_the_link_faster() -> None:
    """The buffer empties while the next piece is compressed."""
    link, estimate = Link(10e6), LinkRate()
    for _ in range(120):
        link.work(0.005)
        link.send(estimate, 128 * KIB)
    assert estimate.rate == pytest.approx(10e6, rel=0.05)


def test_time_without_a_request_does_not_make_it_slower() -> None:
    link, estimate = Link(10e6, 64 * KIB), LinkRate()
    for _ in range(40):
        link.work(3.0)
        estimate.begin(link.now)
        link.send(estimate, MIB)
        link.send(estimate, MIB)
    assert estimate.rate == pytest.approx(10e6, rel=0.1)


def test_it_follows_a_link_that_becomes_slower_or_faster() -> None:
    link, estimate = Link(100e6), LinkRate()
    for rate in (100e6, 2e6, 50e6):
        link.rate = rate
        for _ in range(100):
            link.send(estimate, MIB)
        assert estimate.rate == pytest.approx(rate, rel=0.1)


def test_a_moment_says_nothing() -> None:
    estimate = LinkRate()
    estimate.begin(0.0)
    estimate.sent(1000, 0.0, 0.09)
    assert estimate.rate is None
    estimate.sent(1000, 0.09, 0.11)
    assert estimate.rate == pytest.approx(2000 / 0.11, rel=0.2)


def test_a_link_that_never_blocks_is_fast() -> None:
    link, estimate = Link(1e12), LinkRate()
    for _ in range(100):
        link.work(0.002)
        link.send(estimate, MIB)
    assert estimate.rate is None


def run_compressing(link: Link, estimate: LinkRate, seconds: float) -> float:
    """Pieces of 512 KiB: compressed in 2 ms to a quarter while the link is known to be slow. Part of the bytes that
    went compressed."""
    packed = plain = 0
    end = link.now + seconds
    while link.now < end:
        if estimate.rate is not None and estimate.rate < 130e6:
            link.work(0.002)
            link.send(estimate, 128 * KIB)
            packed += 512 * KIB
        else:
            link.work(0.0003)
            link.send(estimate, 512 * KIB)
            plain += 512 * KIB
    return packed / (packed + plain)


def test_a_compressor_that_is_the_narrowest_place_is_not_given_up_for_long() -> None:
    """What it makes never blocks, and still the link is slower than what it is made of: only now and then that is
    tried, in vain and less and less."""
    link, estimate = Link(100e6), LinkRate()
    run_compressing(link, estimate, 5)
    assert run_compressing(link, estimate, 60) > 0.95


def test_a_busy_machine_is_no_slow_link() -> None:
    """A few sends take long for want of a core, longer in all than the others."""
    estimate, now = LinkRate(50e6), 0.0
    for number in range(200):
        waits = 0.02 if number % 4 == 0 else 0.0
        estimate.sent(20 * KIB, now + 0.0005, now := now + 0.0007 + waits)
        assert estimate.rate in (50e6, None)


def test_a_limit_that_is_lifted_is_noticed() -> None:
    link, estimate = Link(10e6), LinkRate()
    run_compressing(link, estimate, 5)
    link.rate = 2e9
    run_compressing(link, estimate, 1)
    assert run_compressing(link, estimate, 10) == 0
    assert estimate.rate is None


def test_a_trial_ends_when_sends_block() -> None:
    estimate = LinkRate(1e6)
    estimate.begin(0.0)
    estimate.sent(KIB, PATIENCE, PATIENCE + 0.001)  # nothing blocked for that long
    assert estimate.rate is None
    estimate.sent(TRIAL - 1, 9.999, 10.0)
    assert estimate.rate is None
    estimate.sent(KIB, 10.0, 11.0)
    estimate.sent(KIB, 11.0, 12.0)
    assert estimate.rate == pytest.approx((TRIAL + 2 * KIB) / 12, rel=0.03)
