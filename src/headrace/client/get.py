"""A whole transfer: find out what the target is, walk it, plan, fetch, finish."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from headrace.client.options import GetOptions, GetResult, Links
from headrace.client.plan import Planner
from headrace.client.running import Event, Running
from headrace.client.session import Session
from headrace.engine.choice import TransportChoice
from headrace.engine.dedup import Dedup
from headrace.engine.exchange import EXCHANGES, UNCHECKED
from headrace.engine.fetch import FILE_ERRORS, Fetcher
from headrace.engine.queue import Job
from headrace.engine.updates import Updates
from headrace.engine.worker import Worker
from headrace.errors import (
    HeadraceError,
    LocalDiskError,
    NotFoundError,
    UsageError,
    printable,
)
from headrace.protocol.messages import CHUNK_SIZE, PHASE_BULK, Entry
from headrace.protocol.paths import ROOT, BadPathError, RelPath
from headrace.protocol.session import BLOCKS
from headrace.storage.destination import Destination
from headrace.storage.index_lazy import LazyIndex
from headrace.storage.oserrors import label, local_errors
from headrace.storage.platform import platform_io
from headrace.transport.zerocopy import wants_clear

__all__ = ["GetOptions", "GetResult", "Links", "Transfer"]

FLUSHED_SINGLY: Final = 256  # files; where there are more, all of the file system is flushed at once
RETRY_PAUSE: Final = 0.2  # seconds before a file that changed is looked at again, times the attempt


@dataclass(frozen=True, slots=True)
class _Place:
    """Where things go: a folder, and the path in it that stands for the source.

    mode: what the folder is made with, if it is not there. created: it is not, and gets the source's permissions in the
    end. One that was there keeps its own. It may be the user's, or what an interrupted run left: nothing tells them
    apart, so what such a run made has the source's permissions from the start, as far as the umask lets it.
    """

    root: Path
    path: RelPath
    created: bool
    mode: int = 0o777


class Transfer(Running):
    """Fetches `source` (a file or a tree) to `dest`. Call `run` once; `cancel` from any thread.

    dest: as in the command line's contract; None: the share's name in the working directory.
    on_event: called from several threads with `plan`, `file`, `warning` and `error` events. tells_files: False leaves
    the `file` events of files out that came or were there; with many small ones they take a tenth of the time.
    """

    def __init__(
        self,
        session: Session,
        source: RelPath,
        dest: str | os.PathLike[str] | None,
        options: GetOptions = GetOptions(),
        on_event: Callable[[Event], None] = lambda event: None,
        *,
        tells_files: bool = True,
    ) -> None:
        super().__init__(session, options, on_event, tells_files=tells_files)
        self._source = source
        self._dest = None if dest is None else os.fspath(dest)
        self._destination: Destination | None = None
        self._index: LazyIndex | None = None
        self._root = b""
        self._size = 0  # of a single file
        self._root_path: Path | None = None  # of the destination, once it is known
        self._written: list[RelPath] = []  # not all of them once there are more than FLUSHED_SINGLY

    def run(self) -> GetResult:
        """Blocks until everything has come or failed. Raises a HeadraceError for what ended the transfer as a whole:
        StoppedError, ConnectionLostError, LocalDiskError, DestinationExistsError, ProtocolError, NotFoundError."""
        if wants_clear(self._options.data_plane):
            self._session.use_clear()
            self._choice = TransportChoice(self._session.transport, None)
        with contextlib.ExitStack() as at_the_end:
            # Opened for the first file of several chunks, and not before. The result does not wait for the end of it.
            if self._uses_index():
                self._index = at_the_end.enter_context(LazyIndex(self._session.home, self._options.cache_entries))
            return self._run()

    def _uses_index(self) -> bool:
        """plain, to find out what is at fault: as few parts as possible."""
        options = self._options
        return options.content_addressing and not options.dry_run and options.io != "plain"

    def _run(self) -> GetResult:
        entry = self._outage.bear(lambda: self._session.stat(self._source))
        place = self._place(entry)
        self._root_path = place.root
        self._io = platform_io(self._options.io)
        try:
            if not self._options.dry_run or place.root.is_dir():
                create = not self._options.dry_run
                self._destination = Destination.open(
                    place.root, create, self._io, mode=place.mode, durable=self._options.fsync
                )
            planner = Planner(
                self._session, self._source, self._destination, self._options, self.progress, self, self._outage
            )
            if self._options.dry_run:
                self._plan_alone(planner, entry, place)
            else:
                self._fetch(planner, entry, place)
        except LocalDiskError as why:
            self.name_place(why)
            raise
        finally:
            if self._destination:
                self._destination.close()
            self._io.close()
        return self._result()

    # ---- where to ------------------------------------------------------------------------------------------------

    def _place(self, entry: Entry) -> _Place:
        with local_errors("look at", self._dest or "."):
            return self._place_of(entry)

    def _place_of(self, entry: Entry) -> _Place:
        name = self._source.name or entry.name
        chosen_by_host = self._dest is None and not self._source
        # Such a name must not pick a hidden place, nor lead elsewhere.
        if chosen_by_host and (name.startswith(b".") or os.path.islink(name)):
            raise UsageError(f"the share is named {printable(os.fsdecode(name))}", hint="Give a DEST to put it in.")
        if entry.kind == "d":
            if self._dest is None and not name:
                raise UsageError("the share has no name to put the files under", hint="Give a destination.")
            root = Path(self._dest if self._dest is not None else os.fsdecode(name))
            return _Place(root, ROOT, created=not root.exists(), mode=entry.mode)
        if entry.kind != "f":
            kind = "a symlink" if entry.kind == "l" else "neither a file nor a folder"
            raise NotFoundError(f"{self._source or 'the share'} is {kind} on the host", hint="Name what it points to.")
        self._single, self._size = True, entry.size
        wanted = "" if self._dest is None else self._dest
        into_folder = not wanted or wanted.endswith(os.sep) or Path(wanted).is_dir()
        root = Path(wanted or ".") if into_folder else Path(wanted).parent
        last = name if into_folder else os.fsencode(Path(wanted).name)
        try:
            return _Place(root, ROOT / (last or b"unnamed"), created=not root.exists())
        except BadPathError as why:
            raise UsageError(f"the destination cannot be used: {why}", hint="Choose another name.") from why

    # ---- the threads ---------------------------------------------------------------------------------------------

    def _fetch(self, planner: Planner, entry: Entry, place: _Place) -> None:
        """Runs planner and workers to their end, then sets links and directories."""
        assert self._destination is not None
        version = self._session.agreed.version
        if not self._options.content_addressing and version >= PHASE_BULK:
            self.warn(ROOT, "chunks are not compared with their hashes; TLS alone protects them")
        dedup: Dedup | None = None
        if self._index:
            # Below it no symlink is followed, so what is in it has one absolute path.
            self._root = os.path.realpath(os.fsencode(place.root))
            if version >= PHASE_BULK:
                if self._single and entry.size > CHUNK_SIZE:  # while the first connection for it is being opened
                    self._index.start()
                dedup = Dedup(self._index, self._session.open_lane, self._session.release)
        updates: Updates | None = None
        if self._index and BLOCKS in self._session.agreed.features:
            here, session = self._destination, self._session
            updates = Updates(here.lstat, here.open_read, self._index, session.open_lane, session.release)
        fetcher = self._jobs = Fetcher(
            self._destination,
            (EXCHANGES if self._options.content_addressing else UNCHECKED)[version],
            buffers=self.buffers,
            version=version,
            progress=self.progress,
            reports=self,
            on_exist=self._options.on_exist,
            dedup=dedup,
            updates=updates,
            keep=self._keep if self._index else None,
            compress=self._options.compress,
        )
        try:
            self._move(
                fetcher,
                lambda lane, counters, room, leaves: Worker(fetcher, lane, counters, room=room, leaves=leaves),
                lambda: planner.jobs(entry, place.path),
                lambda job: self._retry(fetcher, planner, job),
            )
        finally:
            if updates:
                updates.close()
            if dedup:
                dedup.close()
            fetcher.abandon()
        if fetcher.failure:
            raise fetcher.failure
        planner.finish(entry, created=place.created)
        if self._options.fsync and self._written:
            self._destination.settle(self._written if len(self._written) <= FLUSHED_SINGLY else None)

    def _keep(self, job: Job, st: os.stat_result, chunks: Callable[[], Iterable[tuple[int, int, bytes]]]) -> None:
        """A file of several chunks is there: the next copy of it need not be fetched."""
        assert self._index is not None
        self._index.add(os.path.join(self._root, bytes(job.dest)), st, chunks)

    def _single_size(self) -> int:
        return self._size

    def _retry(self, fetcher: Fetcher, planner: Planner, job: Job) -> None:
        """A file changed while it was read: look at it again, keep what still matches."""
        self._stopped.wait(RETRY_PAUSE * job.attempt)
        try:
            entry = self._outage.bear(lambda: self._session.stat(job.source))
            if entry.kind != "f":
                raise NotFoundError(f"{job.source} is no file any more")
        except FILE_ERRORS as why:
            if isinstance(why, NotFoundError):  # there will be nothing to resume
                assert self._destination is not None
                self._destination.forget_partial(job.dest)
            self.failed_path(job.dest, why)
            return
        self.progress.resized(entry.size - job.size)
        again = Job(job.source, job.dest, entry, replace=job.replace, attempt=job.attempt + 1, old=job.old)
        if job.replace or planner.decided(again):
            fetcher.queue.put(again)

    # ---- the plan ------------------------------------------------------------------------------------------------

    def _plan_alone(self, planner: Planner, entry: Entry, place: _Place) -> None:
        """--dry-run: the same plan, nothing written."""
        for jobs in planner.jobs(entry, place.path):
            self.would(jobs, "would-fetch")
        self._planned()

    def fetched(self, jobs: Sequence[Job]) -> None:
        if len(self._written) <= FLUSHED_SINGLY:
            self._written += [job.dest for job in jobs[: FLUSHED_SINGLY + 1]]
        super().fetched(jobs)

    def name_place(self, error: HeadraceError) -> None:
        root = self._root_path
        if isinstance(error, LocalDiskError) and root and root.is_dir() and not os.access(root, os.W_OK | os.X_OK):
            error.message = f"{error.message}; you may not write in {label(root)}"
