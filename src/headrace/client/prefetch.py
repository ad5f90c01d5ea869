"""The threads that fetch what is read ahead."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from headrace.engine.ramcache import Span
from headrace.engine.readahead import LANES

type More[Owner] = Callable[[], tuple[Owner, Span] | None]


class Prefetcher[Owner]:
    """A queue of spans and the threads that fill them, in order. Thread-safe; close it.

    fill: fetches one, and what else `more` gives it, the next span each time, where no other thread would take that at
    once; raises nothing. drop: hears of each that nobody will fetch. lanes: how many threads may fetch now. They start
    with the first span that is pushed.
    """

    PATIENCE: Final = 20.0  # seconds for one call of `fill`

    def __init__(
        self,
        fill: Callable[[Owner, Span, More[Owner]], None],
        drop: Callable[[Span], None],
        lanes: Callable[[], int],
    ) -> None:
        self._fill = fill
        self._drop = drop
        self._lanes = lanes
        self._changed = threading.Condition()
        self._queue: OrderedDict[Span, Owner] = OrderedDict()
        self._active = 0
        self._threads: list[threading.Thread] = []
        self._closed = False

    def push(self, owner: Owner, span: Span) -> None:
        """`span`, which the caller claimed, is fetched when its turn comes."""
        with self._changed:
            if not self._closed:
                self._queue[span] = owner
                if self._active + len(self._queue) > len(self._threads) and len(self._threads) < LANES:
                    self._start()
                self._changed.notify()
                return
        self._drop(span)

    def steal(self, span: Span) -> bool:
        """Whether nobody had begun with it; then it is the caller's to fetch."""
        with self._changed:
            return self._queue.pop(span, None) is not None

    def hurry(self, span: Span) -> None:
        """Somebody waits for it: it is the next, if nobody has begun with it."""
        with self._changed:
            if span in self._queue:
                self._queue.move_to_end(span, last=False)

    def cancel(self, owner: Owner) -> None:
        """Takes back what was asked for through `owner` and nobody has begun with."""
        if not self._queue:  # as at every random read
            return
        with self._changed:
            dropped = [span for span, whose in self._queue.items() if whose is owner]
            for span in dropped:
                del self._queue[span]
        for span in dropped:
            self._drop(span)

    def close(self) -> None:
        """Drops what is queued. Who is in the middle of something ends by itself."""
        with self._changed:
            self._closed = True
            dropped, self._queue = self._queue, OrderedDict()
            self._changed.notify_all()
        for span in dropped:
            self._drop(span)

    def _more(self) -> tuple[Owner, Span] | None:
        """The next span for a thread that has one, if the others have enough to do."""
        with self._changed:
            if self._closed or len(self._queue) <= self._lanes() - self._active:
                return None
            span, owner = self._queue.popitem(last=False)
            return owner, span

    def _start(self) -> None:
        name = f"headrace-ahead-{len(self._threads) + 1}"
        thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._closed and (not self._queue or self._active >= self._lanes()):
                    self._changed.wait()
                if self._closed:
                    return
                span, owner = self._queue.popitem(last=False)
                self._active += 1
            try:
                self._fill(owner, span, self._more)
            finally:
                with self._changed:
                    self._active -= 1
                    if self._queue:
                        self._changed.notify()
