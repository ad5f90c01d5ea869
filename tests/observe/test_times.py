"""Each moment of a stream belongs to one stage, and what several streams spent adds up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.observe.times import STAGES, Ledger, Spent, StreamTimes


class Clock:
    """Goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_stage_has_what_passes_in_it_and_not_what_passes_in_those_within(clock):
    times = StreamTimes(clock)
    clock.now += 1
    with times.disk:
        clock.now += 2
        with times.sending:
            clock.now += 4
        clock.now += 8
    clock.now += 16
    times.settle()

    assert times.spent() == Spent(disk=10, sending=4, rest=17)


def test_a_stage_may_be_entered_again_within_itself(clock):
    times = StreamTimes(clock)
    with times.disk:
        with times.disk:
            clock.now += 1
        clock.now += 1
    clock.now += 4
    times.settle()

    assert times.spent() == Spent(disk=2, rest=4)


def test_a_stage_is_left_also_by_an_error(clock):
    times = StreamTimes(clock)
    with pytest.raises(OSError), times.disk:
        clock.now += 1
        raise OSError
    clock.now += 2
    times.settle()

    assert times.spent() == Spent(disk=1, rest=2)


@given(st.lists(st.tuples(st.sampled_from(STAGES), st.floats(0, 100), st.integers(0, 3)), max_size=12))
def test_nothing_is_lost_and_nothing_counts_twice(moments):
    clock = Clock()
    times = StreamTimes(clock)

    def play(rest: list[tuple[str, float, int]]) -> None:
        while rest:
            stage, seconds, inner = rest.pop(0)
            with getattr(times, stage):
                clock.now += seconds
                mine, rest[:inner] = rest[:inner], []
                play(mine)

    play(list(moments))
    times.settle()

    assert times.spent().total == pytest.approx(clock.now - 100.0, abs=1e-6)


def test_a_ledger_has_what_was_spent_while_it_counted(clock):
    ledger = Ledger()
    before, one, other = StreamTimes(clock), StreamTimes(clock), StreamTimes(clock)
    with before.disk:
        clock.now += 64
    with ledger.counting(one), ledger.counting(other):
        with one.disk, other.hash:
            clock.now += 1
        assert ledger.spent() == Spent(disk=1, hash=1)
        with one.waiting:
            clock.now += 2
    clock.now += 32

    # In the second part the other one did nothing of its own.
    assert ledger.spent() == Spent(disk=1, hash=1, waiting=2, rest=2)


def test_what_a_ledger_says_never_goes_back(clock):
    ledger, times = Ledger(), StreamTimes(clock)
    seen = []
    for _ in range(3):
        with ledger.counting(times), times.disk:
            clock.now += 1
            seen.append(ledger.spent().disk)
        seen.append(ledger.spent().disk)

    assert seen == [0, 1, 1, 2, 2, 3]  # a stage is counted when it is left


def test_what_came_after_is_never_below_nothing():
    assert Spent(disk=3, hash=1).since(Spent(disk=1, hash=2)) == Spent(disk=2)
