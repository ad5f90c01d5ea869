"""What is to be written to the chunk index: a bounded queue, and the one thread that empties it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from headrace.storage.index_db import Database
from headrace.storage.index_file import IndexBusyError, IndexDamagedError, IndexOffError, set_aside
from headrace.storage.index_places import Addition, IndexedFile

log = logging.getLogger("headrace.storage.index")

MAX_QUEUED: Final = 200_000  # chunks; about 30 MB
BATCH: Final = 50_000  # chunks in one transaction, which takes about a second in a full index
LINGER: Final = 0.5  # seconds that the first change waits for others to share its transaction
EVICT_STEP: Final = 20_000  # chunks forgotten in one transaction: other processes get their turn between two
_RETRY: Final = 0.2  # seconds
MAX_REBUILDS: Final = 3  # by one process: a disk that damages every database does not get a fourth


@dataclass(slots=True)
class Batch:
    """Changes that are written together."""

    additions: list[Addition] = field(default_factory=list)
    forgotten: list[IndexedFile] = field(default_factory=list)
    used: set[int] = field(default_factory=set)
    counts: dict[str, int] = field(default_factory=dict)
    rows: int = 0

    def __bool__(self) -> bool:
        return bool(self.additions or self.forgotten or self.used or self.counts)


class Writer:
    """The queue and its thread, which starts with the first change and has a connection of its own. Thread-safe.

    turn_off: called on the thread when the index can no longer be written; it calls `stop`.
    """

    def __init__(self, home: Path, max_entries: int, turn_off: Callable[[IndexOffError], None]) -> None:
        self._home = home
        self._max = max_entries
        self._room = max(1, max_entries // 20)  # so that not every addition needs an eviction
        self._turn_off = turn_off
        self._batch = Batch()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._taken = 0  # batches that were taken from the queue
        self._done = 0  # of them, those that are written or given up
        self._hurry = 0  # somebody waits until so many are done
        self._ended = False
        self._deadline = float("inf")  # when close() gives up
        self._database: Database | None = None
        self._rebuilds = 0

    def put(self, change: Callable[[Batch], None], rows: int = 0) -> bool:
        """Queues a change. rows: chunks that it adds. False: there are too many already, or the writer has ended."""
        with self._changed:
            if self._ended or (rows and self._batch.rows + rows > MAX_QUEUED and self._batch.rows):
                return False
            change(self._batch)
            self._batch.rows += rows
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="headrace-index", daemon=True)
                self._thread.start()
            self._changed.notify_all()
            return True

    def flush(self, timeout: float) -> bool:
        """Waits until everything queued so far is written. False: not within `timeout` seconds, or given up."""
        with self._changed:
            if self._thread is None:
                return not self._ended
            wanted = self._taken + bool(self._batch)
            self._hurry = max(self._hurry, wanted)
            self._changed.notify_all()
            return self._changed.wait_for(lambda: self._done >= wanted, timeout) and not self._ended

    def close(self, timeout: float) -> bool:
        """Writes what is queued and ends the thread. False: it took too long, and the rest is lost."""
        with self._changed:
            self._ended = True
            self._deadline = time.monotonic() + timeout
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(timeout)
            return not self._thread.is_alive()
        return True

    def stop(self) -> None:
        """Drops what is queued, and takes nothing more. Does not wait for the thread, which may call this."""
        with self._changed:
            self._ended = True
            self._deadline = 0.0
            self._batch = Batch()
            self._done = self._taken = self._taken + 1
            self._changed.notify_all()

    def _run(self) -> None:
        try:
            while True:
                batch = self._take()
                if batch:
                    self._write(batch)
                with self._changed:
                    self._done = self._taken
                    self._changed.notify_all()
                    if self._ended and not self._batch:
                        return
        except IndexOffError as why:
            self._turn_off(why)
        except Exception as why:  # a thread must not die silently, and a transfer not for this
            log.debug("the chunk index's thread failed", exc_info=True)
            self._turn_off(IndexOffError("failed", f"unexpected {type(why).__name__}: {why}", "Please report this."))
        finally:
            if self._database:
                self._database.close()

    def _take(self) -> Batch:
        with self._changed:
            self._changed.wait_for(lambda: self._batch or self._ended)
            self._changed.wait_for(
                lambda: self._ended or self._hurry > self._taken or self._batch.rows >= BATCH, timeout=LINGER
            )
            batch, self._batch = self._batch, Batch()
            self._taken += 1
            return batch

    def _write(self, batch: Batch) -> None:
        """Writes the batch and makes room, as long as it takes. Raises IndexOffError."""
        written = False
        while True:
            try:
                if self._database and not self._database.is_current():
                    self._database.close()
                    self._database = None
                self._database = self._database or Database(self._home)
                if not written:
                    self._database.write(batch.additions, batch.forgotten, batch.used, batch.counts)
                    written = True
                while self._database.evict(self._max, self._room, EVICT_STEP):
                    if time.monotonic() > self._deadline:
                        return  # the next process that writes goes on with it
                return
            except IndexBusyError:
                if time.monotonic() > self._deadline:
                    log.info("another process is writing the chunk index; %d chunks were not added", batch.rows)
                    return
                with self._changed:
                    self._changed.wait_for(lambda: self._deadline < float("inf"), timeout=_RETRY)
            except IndexDamagedError as why:
                self._rebuild(str(why))
                # Ids are those of the old database.
                batch.forgotten.clear()
                batch.used.clear()

    def _rebuild(self, why: str) -> None:
        assert self._database is not None  # only its methods say that it is damaged
        identity = self._database.identity
        self._database.close()
        self._database = None
        self._rebuilds += 1
        if self._rebuilds > MAX_REBUILDS:
            raise IndexOffError("damaged", f"it was damaged {self._rebuilds} times ({why})", "Check the disk.")
        set_aside(self._home, identity, why)
