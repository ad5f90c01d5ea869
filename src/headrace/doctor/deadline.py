"""Work that may hang, such as a system call on a network file system, and must not take the rest with it."""

from __future__ import annotations

import threading
from collections.abc import Callable


def within[T](seconds: float, work: Callable[[], T]) -> T:
    """What `work` returns or raises. TimeoutError when it takes longer: its thread, a daemon, is then left behind."""
    results: list[T] = []
    failures: list[BaseException] = []

    def target() -> None:
        try:
            results.append(work())
        except BaseException as why:  # noqa: BLE001  # raised again on the caller's thread
            failures.append(why)

    thread = threading.Thread(target=target, name="headrace-doctor", daemon=True)
    thread.start()
    thread.join(seconds)
    if failures:
        raise failures[0]
    if not results:
        raise TimeoutError(f"no answer within {seconds:.0f} s")
    return results[0]
