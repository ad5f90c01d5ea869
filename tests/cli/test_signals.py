"""Work that a signal ends at once, whatever it waits for."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from headrace.cli import signals


def test_the_result_and_the_error_come_through():
    assert signals.run(lambda: 42) == 42
    with pytest.raises(ZeroDivisionError):
        signals.run(lambda: 1 // 0)


def test_the_tick_is_called_while_the_work_goes_on():
    ticked = threading.Event()

    assert signals.run(lambda: ticked.wait(5), tick=ticked.set) is True


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_cancels_the_work(number, exit_code):
    cancelled = threading.Event()

    def work() -> None:
        os.kill(os.getpid(), number)
        cancelled.wait(5)

    before = signal.getsignal(number)
    with pytest.raises(signals.Stopped) as caught:
        signals.run(work, cancel=cancelled.set)

    assert caught.value.exit_code == exit_code
    assert cancelled.is_set()
    assert signal.getsignal(number) is before


@pytest.mark.slow
def test_work_that_does_not_listen_is_left_behind():
    release = threading.Event()

    def work() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        release.wait(30)

    started = time.monotonic()
    with pytest.raises(signals.Stopped):
        signals.run(work)
    release.set()

    assert time.monotonic() - started < 3


def test_waiting_for_a_signal_starts_with_one_ready_to_come():
    stopped = signals.wait_for_one(lambda: os.kill(os.getpid(), signal.SIGTERM))

    assert stopped
    assert stopped.exit_code == 143
