"""How long a transfer bears a host that is gone, by a clock that the test moves."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from headrace.client.outage import LONGEST_PAUSE, SAY_EVERY, Outage
from headrace.errors import ConnectionLostError, EndedByHostError

WHY = ConnectionLostError("it broke")


class Stop(threading.Event):
    """Waiting moves the clock."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.waits: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.waits.append(timeout)
        self.now += timeout
        return self.is_set()


@pytest.fixture
def stop() -> Stop:
    return Stop()


@pytest.fixture
def told() -> list[dict[str, Any]]:
    return []


@pytest.fixture
def outage(stop: Stop, told: list[dict[str, Any]]) -> Outage:
    return Outage(told.append, stop, limit=60.0, clock=lambda: stop.now)


def test_attempts_become_rarer_and_end_after_the_limit(outage: Outage, stop: Stop) -> None:
    began, attempt = stop.now, 0
    with pytest.raises(ConnectionLostError):
        while True:
            outage.again(WHY, attempt)
            attempt += 1
    assert stop.now - began == pytest.approx(60.0)
    assert stop.waits[0] < 0.2
    assert max(stop.waits) == LONGEST_PAUSE
    assert stop.waits == sorted(stop.waits[:-1]) + stop.waits[-1:]


def test_bytes_end_it_and_the_next_one_has_all_its_time(outage: Outage, stop: Stop) -> None:
    outage.again(WHY, 0)
    stop.now += 59
    assert outage.lasts
    outage.over()
    assert not outage.lasts
    outage.over()
    stop.now += 100
    outage.again(WHY, 0)
    stop.now += 59
    outage.again(WHY, 1)
    assert outage.count == 2


def test_it_is_said_once_and_when_it_was_over(outage: Outage, stop: Stop, told: list[dict[str, Any]]) -> None:
    for attempt in range(5):
        outage.again(WHY, attempt)
    assert [event["message"] for event in told] == ["the connection broke (it broke); trying again for 60 s"]
    stop.now += 5
    outage.over()
    assert "the host is back after" in told[-1]["message"]


def test_a_connection_that_breaks_all_the_time_does_not_fill_the_screen(
    outage: Outage, stop: Stop, told: list[dict[str, Any]]
) -> None:
    began = stop.now
    for _ in range(200):
        outage.again(WHY, 0)
        outage.over()
    assert 1 <= len(told) <= 2 + 2 * (stop.now - began) / SAY_EVERY


def test_whoever_wants_to_stop_does_not_wait(outage: Outage, stop: Stop) -> None:
    stop.set()
    with pytest.raises(ConnectionLostError):
        outage.again(WHY, 0)


@pytest.mark.parametrize("why", [EndedByHostError("goodbye")])
def test_an_end_on_purpose_is_not_borne(outage: Outage, told: list[dict[str, Any]], why: ConnectionLostError) -> None:
    assert outage.ends_it(why)
    with pytest.raises(EndedByHostError):
        outage.again(why, 0)
    assert told == []


def test_without_a_limit_nothing_is_borne(stop: Stop, told: list[dict[str, Any]]) -> None:
    with pytest.raises(ConnectionLostError):
        Outage(told.append, stop, limit=0.0).again(WHY, 0)
    assert told == []


def test_a_question_is_asked_until_it_is_answered(outage: Outage) -> None:
    answers: list[ConnectionLostError | str] = [WHY, WHY, "yes"]

    def ask() -> str:
        answer = answers.pop(0)
        if isinstance(answer, ConnectionLostError):
            raise answer
        return answer

    assert outage.bear(ask) == "yes"
    assert not outage.lasts
