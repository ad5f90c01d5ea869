"""The chunk index as a transfer uses it: imported, opened and fed on a thread of its own, so that nobody waits for it.

The import alone takes some 10 ms. This module imports nothing of it.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from headrace.protocol.messages import CHUNK_SIZE
from headrace.storage.platform import Fallbacks

if TYPE_CHECKING:
    from headrace.storage.index import ChunkIndex

log = logging.getLogger("headrace.storage.index")

FILE: Final = "index.db"  # index_file.FILE, which is not to be imported here
MAX_WAITING: Final = 1000  # files to be added while the index is being opened, or written by somebody else

Chunks = Callable[[], Iterable[tuple[int, int, bytes]]]

FALLBACKS: Final = Fallbacks()  # why an index was not used, or a file not added; for the metrics


def _open(home: Path, max_entries: int | None) -> ChunkIndex:
    from headrace.storage.index import DEFAULT_ENTRIES, ChunkIndex

    return ChunkIndex(home, max_entries or DEFAULT_ENTRIES)


class LazyIndex:
    """Thread-safe; a context manager. It never raises: an index that is of no use is told once, and finds nothing.

    home: the folder that it is in. max_entries: None for the default. opening: for tests.
    """

    def __init__(
        self,
        home: Path,
        max_entries: int | None = None,
        opening: Callable[[Path, int | None], ChunkIndex] = _open,
    ) -> None:
        self._home = home
        self._max_entries = max_entries
        self._opening = opening
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._index: ChunkIndex | None = None
        self._opened = False
        self._knows_files = False
        self._waiting: deque[tuple[bytes, os.stat_result, Chunks]] = deque()
        self._closed = False

    def start(self) -> None:
        """Begins to open the index if there is one. Where there is none, the first `add` makes it."""
        if (self._home / FILE).exists():
            with self._changed:
                self._run_once()

    def ready(self, seconds: float) -> ChunkIndex | None:
        """The index, once it is open, waiting at most so long. None: not yet, or there is nothing in it to be found."""
        with self._changed:
            if self._thread is None:
                return None
            self._changed.wait_for(lambda: self._opened, seconds)
            return self._index if self._knows_files else None

    def add(self, path: bytes, st: os.stat_result, chunks: Chunks) -> None:
        """Remembers a finished file: see ChunkIndex.add. chunks: gives all of its chunks, on another thread."""
        with self._changed:
            if self._closed or len(self._waiting) >= MAX_WAITING:
                if FALLBACKS.add("closed" if self._closed else "waiting"):
                    log.info("the chunk index does not keep up; some files are not added to it")
                return
            self._waiting.append((path, st, chunks))
            self._run_once()
            self._changed.notify_all()

    def _run_once(self) -> None:
        if self._thread is None and not self._closed:
            # No daemon: one that is in the middle of an import when the interpreter ends would crash it.
            self._thread = threading.Thread(target=self._run, name="headrace-index-open")
            self._thread.start()

    def _run(self) -> None:
        try:
            index = self._opening(self._home, self._max_entries)
            knows_files = index.has_large_files()
        except Exception as why:  # a SQLite that is missing, say: a transfer goes on without
            FALLBACKS.add("failed")
            log.warning("there is no chunk index, so nothing is taken from this disk: %s: %s", type(why).__name__, why)
            log.debug("the chunk index failed", exc_info=True)
            with self._changed:
                self._opened = self._closed = True
                self._waiting.clear()
                self._changed.notify_all()
            return
        with self._changed:
            self._index, self._opened, self._knows_files = index, True, knows_files
            self._changed.notify_all()
        self._feed(index)
        index.close()

    def _feed(self, index: ChunkIndex) -> None:
        """Until it is closed and everything was added."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
                path, st, chunks = self._waiting.popleft()
            try:
                index.add(path, st, chunks(), whole=True)
                if st.st_size > CHUNK_SIZE:  # it is found later, by a share that runs for days
                    self._knows_files = True
            except ValueError as why:  # a file that is none of ours by now
                if FALLBACKS.add("refused"):
                    log.info("the chunk index does not take a file: %s", why)

    def close(self) -> None:
        """Adds what waits, writes it and closes; blocks for that, a few seconds at the most."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread:
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
