"""Work that a signal ends within about a second, whatever it waits for.

The work runs on a thread, so it may sit in a name look-up or a system call that no Python signal handler can leave.
The handler only notes the signal; the main thread, which waits here, acts on it.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Final

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
POLL: Final = 0.1  # seconds between two looks at the signals
GRACE: Final = 1.0  # seconds that cancelled work may take to put things in order


class Stopped(Exception):
    """A signal came. exit_code: 128 + its number, as shells have it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


def _nothing() -> None:
    pass


def run[T](work: Callable[[], T], *, cancel: Callable[[], None] = _nothing, tick: Callable[[], None] = _nothing) -> T:
    """What `work` returns or raises. Call it from the main thread.

    cancel: called on this thread when a signal came; makes `work` fail soon. tick: called on this thread about every
    POLL seconds, and never at the same time as `cancel`. Raises Stopped after a signal, also when `work` would not
    end: its thread is a daemon, and the process is about to end anyway.
    """
    results: list[T] = []
    failures: list[BaseException] = []
    done = threading.Event()

    def target() -> None:
        try:
            results.append(work())
        except BaseException as why:  # noqa: BLE001  # raised again on the main thread
            failures.append(why)
        finally:
            done.set()

    with _noted() as numbers:
        thread = threading.Thread(target=target, name="headrace-work", daemon=True)
        thread.start()
        while not done.wait(POLL) and not numbers:
            tick()
        if numbers and not results:
            cancel()
            _wait(done, numbers)
            raise Stopped(numbers[0])
    if failures:
        raise failures[0]
    return results[0]


def wait_for_one(begin: Callable[[], None], seconds: float | None = None) -> Stopped | None:
    """Calls `begin` and blocks until a signal comes, during `begin` included; which one it was.

    seconds: after `begin`, until the time is over; then the answer is None.
    """
    with _noted() as numbers:
        begin()
        until = None if seconds is None else time.monotonic() + seconds
        never = threading.Event()
        while not numbers:
            if until is not None and time.monotonic() >= until:
                return None
            never.wait(POLL)
        return Stopped(numbers[0])


def stop_at_once(number: int, frame: FrameType | None) -> None:
    """A handler for the time before and between: raises Stopped wherever the main thread is."""
    raise Stopped(number)


def _wait(done: threading.Event, numbers: list[int]) -> None:
    """Until the work is over, the grace is, or an impatient second signal comes."""
    seen = len(numbers)
    for _ in range(round(GRACE / POLL)):
        if done.wait(POLL) or len(numbers) > seen:
            return


@contextlib.contextmanager
def _noted() -> Iterator[list[int]]:
    """Signals that came so far. Appending to a list is all that the handler does: it can run inside any lock."""
    numbers: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        numbers.append(number)

    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield numbers
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
