"""Ending from another thread what is being made, and what came of it."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Abort:
    """Called, it ends whatever was `join`ed, now and later. Thread-safe; may be called again."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._called = False
        self._ends: list[Callable[[], None]] = []

    def join(self, end: Callable[[], None]) -> None:
        """`end` is called when this is, at once where it was already. It must not block."""
        with self._lock:
            if not self._called:
                self._ends.append(end)
                return
        end()

    def __call__(self) -> None:
        with self._lock:
            self._called = True
            ends, self._ends = self._ends, []
        for end in ends:
            end()
