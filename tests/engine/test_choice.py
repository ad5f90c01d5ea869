"""Which transport carries the chunks, told by made-up paths: each transport has a rate for each connection."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from headrace.engine.choice import REST, SETTLE, TRIAL, WATCH, TransportChoice

TICK = 0.05
MB = 1e6
Path = Callable[[float, Mapping[str, int]], Mapping[str, float]]


def run(
    choice: TransportChoice, path: Path, seconds: float, *, start: float = 0.0, size: float = 1e12
) -> list[tuple[float, str]]:
    """What carried the chunks, and since when. path: bytes a second of all lanes of each transport, at a time."""
    delivered = {"tcp": 0, "quic": 0}
    history = [(start, choice.transport)]
    for step in range(int(seconds / TICK)):
        now = start + step * TICK
        lanes = choice.lanes(2)
        for name, rate in path(now, lanes).items():
            delivered[name] += int(rate * TICK)
        choice.observe(now, delivered, int(size) - sum(delivered.values()), lanes[choice.transport])
        if choice.transport != history[-1][1]:
            history.append((now, choice.transport))
    return history


def each(**rates: float) -> Path:
    """So many bytes a second for each lane."""
    return lambda now, lanes: {name: rates[name] * number for name, number in lanes.items()}


def shared(capacity: float, **weights: float) -> Path:
    """One bottleneck that lanes share by weight."""

    def path(now: float, lanes: Mapping[str, int]) -> dict[str, float]:
        total = sum(weights[name] * number for name, number in lanes.items())
        return {name: capacity * weights[name] * number / total for name, number in lanes.items()}

    return path


def test_the_faster_one_takes_over_after_one_trial() -> None:
    choice = TransportChoice("tcp", "quic")
    history = run(choice, each(tcp=2 * MB, quic=5 * MB), 60)
    assert [name for _, name in history] == ["tcp", "quic"]
    assert SETTLE + TRIAL <= history[1][0] < SETTLE + TRIAL + 1
    assert "5.0 against 2.0 MB/s" in choice.reason
    assert choice.lanes(3) == {"quic": 3}


def test_the_slower_one_is_tried_once_and_left_alone() -> None:
    choice = TransportChoice("tcp", "quic")
    tried = 0.0

    def path(now: float, lanes: Mapping[str, int]) -> Mapping[str, float]:
        nonlocal tried
        tried += TICK * ("quic" in lanes)
        return each(tcp=5 * MB, quic=1 * MB)(now, lanes)

    assert run(choice, path, 300) == [(0.0, "tcp")]
    assert abs(tried - TRIAL) < 1
    assert "quic is not faster" in choice.reason


def test_equal_shares_of_a_full_link_change_nothing() -> None:
    assert len(run(TransportChoice("tcp", "quic"), shared(12 * MB, tcp=1, quic=1.1), 100)) == 1


def test_one_that_gets_its_way_on_a_lossy_link_takes_over() -> None:
    assert len(run(TransportChoice("tcp", "quic"), shared(12 * MB, tcp=1, quic=5), 100)) == 2


def test_a_rate_that_the_other_cannot_reach_is_no_reason_to_try() -> None:
    choice = TransportChoice("tcp", "quic", ceiling=60 * MB)
    assert len(run(choice, each(tcp=200 * MB, quic=400 * MB), 60)) == 1
    assert choice.reason == ""


def test_a_short_rest_is_not_worth_a_trial() -> None:
    choice = TransportChoice("tcp", "quic")
    assert len(run(choice, each(tcp=5 * MB, quic=50 * MB), 30, size=60 * MB)) == 1


def test_on_a_full_link_only_a_long_rest_is_worth_a_trial() -> None:
    for seconds, tried in ((50, None), (100, "quic")):
        choice = TransportChoice("tcp", "quic")
        choice.observe(0.0, {"tcp": 1}, None, 2, full=True)
        for now in (1.0, 2.0, 3.0):
            choice.observe(now, {"tcp": int(now * 10 * MB)}, int(seconds * 10 * MB), 2, full=True)
        assert choice.trying == tried


def test_a_lane_without_work_near_the_end_is_not_taken_for_a_slow_one() -> None:
    def path(now: float, lanes: Mapping[str, int]) -> Mapping[str, float]:
        return each(tcp=5 * MB if now < SETTLE + 0.5 else 0, quic=4 * MB)(now, lanes)

    assert len(run(TransportChoice("tcp", "quic"), path, 10, size=100 * MB)) == 2
    began = 5 * MB * 2 * (SETTLE + 0.5)
    choice = TransportChoice("tcp", "quic")
    choice.observe(0.0, {"tcp": 1}, None, 2)
    choice.observe(SETTLE + 0.1, {"tcp": int(began)}, None, 2)
    choice.observe(SETTLE + 0.1 + TRIAL / 2, {"tcp": int(began), "quic": 6 * 10**6}, 10**6, 2)
    choice.observe(SETTLE + 0.2 + TRIAL, {"tcp": int(began), "quic": 12 * 10**6}, 10**6, 2)
    assert choice.transport == "tcp"
    assert choice.lanes(2) == {"tcp": 2}


def test_without_another_nothing_is_tried() -> None:
    choice = TransportChoice("tcp", None)
    assert run(choice, each(tcp=1 * MB), 60) == [(0.0, "tcp")]
    choice.failed("tcp")
    assert choice.transport == "tcp"


def test_when_it_falls_under_half_the_other_is_tried_again() -> None:
    def path(now: float, lanes: Mapping[str, int]) -> Mapping[str, float]:
        return each(tcp=5 * MB if now < 50 else 1 * MB, quic=4 * MB)(now, lanes)

    history = run(TransportChoice("tcp", "quic"), path, 120)
    assert [name for _, name in history] == ["tcp", "quic"]
    assert 50 + TRIAL < history[1][0] < 50 + WATCH + TRIAL + 2


def test_trials_in_vain_become_rarer() -> None:
    begun: list[float] = []

    def path(now: float, lanes: Mapping[str, int]) -> Mapping[str, float]:
        if "quic" in lanes and (not begun or now - begun[-1] > TRIAL + 1):
            begun.append(now)
        fallen = 0.9 ** int(now / 5)  # ever slower, both of them
        return each(tcp=5 * MB * fallen, quic=4 * MB * fallen)(now, lanes)

    assert len(run(TransportChoice("tcp", "quic"), path, 600)) == 1
    waits = [later - earlier for earlier, later in zip(begun, begun[1:], strict=False)]
    assert len(waits) >= 3
    assert all(later >= earlier * 0.9 for earlier, later in zip(waits, waits[1:], strict=False))
    assert waits[0] >= REST


def test_one_that_dies_is_left_at_once() -> None:
    choice = TransportChoice("tcp", "quic")
    run(choice, each(tcp=5 * MB, quic=1 * MB), 20)
    choice.failed("tcp")
    assert (choice.transport, choice.other, choice.trying) == ("quic", "tcp", None)
    choice.failed("tcp")
    assert choice.transport == "quic"
    choice.failed("quic")
    assert choice.transport == "tcp"


def test_one_that_dies_in_its_trial_ends_that() -> None:
    choice = TransportChoice("tcp", "quic")
    run(choice, each(tcp=5 * MB, quic=1 * MB), SETTLE + 1)
    assert choice.trying == "quic"
    choice.failed("quic")
    assert choice.transport == "tcp"
    assert choice.lanes(1) == {"tcp": 1}
    run(choice, each(tcp=5 * MB, quic=1 * MB), 5, start=SETTLE + 1)
    assert choice.trying is None


steps = st.lists(
    st.tuples(st.floats(0, 5), st.integers(0, 10**9), st.integers(0, 10**9), st.sampled_from([None, 0, 10**12])),
    max_size=60,
)


@given(steps, st.integers(1, 8))
def test_whatever_is_measured_one_of_the_two_carries_everything(measured, connections) -> None:
    choice, now, tcp, quic = TransportChoice("tcp", "quic"), 0.0, 0, 0
    for wait, more_tcp, more_quic, left in measured:
        now, tcp, quic = now + wait, tcp + more_tcp, quic + more_quic
        choice.observe(now, {"tcp": tcp, "quic": quic}, left, connections)
        lanes = choice.lanes(connections)
        assert lanes[choice.transport] == connections
        assert sum(lanes.values()) <= connections + 1
        assert {choice.transport, choice.other} == {"tcp", "quic"}


def test_a_transport_that_is_found_broken_meanwhile_waits_for_the_measurement() -> None:
    """Workers' threads tell of it. In the middle of a trial's judgement it would be pulled from under it."""
    told: list[bool] = []

    class Watched(TransportChoice):
        def _try(self, *given: Any) -> None:
            worker.start()
            worker.join(0.2)
            told.append(self.trying == "quic")
            super()._try(*given)

    choice = Watched("tcp", "quic")
    worker = threading.Thread(target=choice.failed, args=("quic",))
    choice.observe(0.0, {"tcp": 1}, None, 2)
    choice.observe(SETTLE, {"tcp": 10**7}, None, 2)
    assert choice.trying == "quic"
    choice.observe(SETTLE + TRIAL, {"tcp": 2 * 10**7}, None, 2)
    worker.join(10)
    assert told == [True]
    assert choice.lanes(2) == {"tcp": 2}
