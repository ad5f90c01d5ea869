"""A whole transfer: find out what the target is, walk it, plan, fetch, finish."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from headrace.client.crew import GRACE, Crew
from headrace.client.options import GetOptions, GetResult, Links
from headrace.client.outage import Outage
from headrace.client.plan import Planner
from headrace.client.session import Session
from headrace.engine.buffers import buffers_for
from headrace.engine.choice import TransportChoice
from headrace.engine.dedup import Dedup
from headrace.engine.exchange import EXCHANGES, UNCHECKED
from headrace.engine.fetch import FILE_ERRORS, Fetcher
from headrace.engine.pool import StreamPool
from headrace.engine.progress import Progress
from headrace.engine.queue import Job
from headrace.engine.updates import Updates
from headrace.errors import (
    HeadraceError,
    IntegrityError,
    LocalDiskError,
    NotFoundError,
    SomeFailedError,
    StoppedError,
    UsageError,
    printable,
    system_word,
)
from headrace.observe import tracing
from headrace.protocol.messages import CHUNK_SIZE, PHASE_BULK, Entry
from headrace.protocol.paths import ROOT, BadPathError, RelPath, text_fields
from headrace.protocol.session import BLOCKS
from headrace.storage.destination import Destination
from headrace.storage.fileio import FileIO
from headrace.storage.index_lazy import LazyIndex
from headrace.storage.oserrors import label, local_errors
from headrace.storage.platform import platform_io
from headrace.storage.posix import POSIX
from headrace.transport.zerocopy import wants_clear

__all__ = ["GetOptions", "GetResult", "Links", "Transfer"]

SMALL_TRANSFER: Final = 4 * CHUNK_SIZE  # a file up to this size is not worth a second connection
QUIC_CEILING: Final = 60e6  # bytes a second; where TCP is faster than this, QUIC cannot win from Python
FLUSHED_SINGLY: Final = 256  # files; where there are more, all of the file system is flushed at once
RETRY_PAUSE: Final = 0.2  # seconds before a file that changed is looked at again, times the attempt

Event = dict[str, Any]


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


class Transfer:
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
        self.progress = Progress()
        self._tells_files = tells_files
        self.buffers = buffers_for(options.io, options.buffers)
        self._session = session
        self._source = source
        self._dest = None if dest is None else os.fspath(dest)
        self._options = options
        self._on_event = on_event
        self._fetcher: Fetcher | None = None
        self._destination: Destination | None = None
        self._io: FileIO = POSIX
        self._index: LazyIndex | None = None
        self._root = b""
        self._single = False
        self._stopped = threading.Event()
        others = session.connection.others() if session.agreed.version >= PHASE_BULK else []
        self._choice = TransportChoice(session.transport, others[0] if others else None, ceiling=QUIC_CEILING)
        self._outage = Outage(on_event, self._stopped, limit=options.retry_for)
        self._worst: HeadraceError | None = None
        self._root_path: Path | None = None  # of the destination, once it is known
        self._lanes = 0
        self._written: list[RelPath] = []  # not all of them once there are more than FLUSHED_SINGLY
        self.pool: StreamPool | None = None  # once chunks are fetched

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
            self._name_place(why)
            raise
        finally:
            if self._destination:
                self._destination.close()
            self._io.close()
        return self._result()

    @property
    def io(self) -> str:
        """How files are read and written."""
        return self._io.name

    def cancel(self) -> None:
        """Ends `run` with StoppedError; what was verified stays for the next time."""
        self._stopped.set()
        if self._fetcher:
            self._fetcher.fail(StoppedError("stopped"))
        self._session.abort()

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
        self._single = True
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
        fetcher = self._fetcher = Fetcher(
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
        if self._stopped.is_set():
            raise StoppedError("stopped")
        alone = self._alone(entry)
        pool = self.pool = StreamPool(
            fixed_requests=self._options.streams,
            fixed_connections=1 if alone else self._options.connections,
            warn=lambda message: self.warn(ROOT, message),
        )
        eager = self._single and not self._session.clear and self._options.connections is None
        choice = self._choice
        crew = Crew(
            self._session,
            fetcher,
            self._outage,
            pool,
            choice,
            alone=alone,
            eager=eager,
            halt=self._stopped,
            tell=self._on_event,
        )
        planning = threading.Thread(target=self._plan, args=(fetcher, planner, entry, place), name="headrace-plan")
        planning.start()
        try:
            crew.run()
            if fetcher.failure:
                planning.join(GRACE)
                if planning.is_alive():  # it waits for a host that is gone
                    self._session.control.messages.abort()
            planning.join()
        except BaseException:  # Ctrl-C, say
            self.cancel()
            crew.join()
            planning.join()
            raise
        finally:
            if updates:
                updates.close()
            if dedup:
                dedup.close()
            fetcher.abandon()
        self._lanes = crew.most
        if fetcher.failure:
            raise fetcher.failure
        planner.finish(entry, created=place.created)
        if self._options.fsync and self._written:
            self._destination.settle(self._written if len(self._written) <= FLUSHED_SINGLY else None)

    def _keep(self, job: Job, st: os.stat_result, chunks: Callable[[], Iterable[tuple[int, int, bytes]]]) -> None:
        """A file of several chunks is there: the next copy of it need not be fetched."""
        assert self._index is not None
        self._index.add(os.path.join(self._root, bytes(job.dest)), st, chunks)

    def _alone(self, entry: Entry) -> bool:
        """Whether the control lane does it all: the baseline has one stream, and one small file is worth no second."""
        if self._session.agreed.version < PHASE_BULK:
            return True
        return self._single and entry.size <= SMALL_TRANSFER and not self._session.clear

    def _plan(self, fetcher: Fetcher, planner: Planner, entry: Entry, place: _Place) -> None:
        with fetcher.carrying():
            with tracing.span("plan"):
                for jobs in planner.jobs(entry, place.path):
                    if not fetcher.queue.put(*jobs):
                        return
            self._planned()
            while not fetcher.failure and (not fetcher.queue.drained(timeout=1.0) or fetcher.retries):
                while fetcher.retries and not fetcher.failure:
                    self._retry(fetcher, planner, fetcher.retries.popleft())
            fetcher.queue.close()

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
            for job in jobs:
                self._on_event({"event": "file", **_path(job.dest), "bytes": job.size, "action": "would-fetch"})
        self._planned()

    def _planned(self) -> None:
        self.progress.planned()
        totals = self.progress.totals()
        self._on_event({"event": "plan", "files": totals.files, "bytes": totals.bytes})

    # ---- engine.fetch.Reports and client.plan.Told ----------------------------------------------------------------

    def fetched(self, jobs: Sequence[Job]) -> None:
        if len(self._written) <= FLUSHED_SINGLY:
            self._written += [job.dest for job in jobs[: FLUSHED_SINGLY + 1]]
        self._tell_files(jobs, "fetched")

    def same(self, jobs: Sequence[Job]) -> None:
        self._tell_files(jobs, "same")

    def _tell_files(self, jobs: Sequence[Job], action: str) -> None:
        if self._tells_files:
            for job in jobs:
                self._on_event({"event": "file", **_path(job.dest), "bytes": job.size, "action": action})

    def linked(self, path: RelPath) -> None:
        self._on_event({"event": "file", **_path(path), "bytes": 0, "action": "link"})

    def failed(self, job: Job, error: HeadraceError) -> None:
        self._tell_failure(job.dest, error)

    def failed_path(self, path: RelPath, error: HeadraceError) -> None:
        self.progress.file_failed()
        self._tell_failure(path, error)

    def _name_place(self, error: HeadraceError) -> None:
        """Files are named as they are below the destination. Where that is what is not ours, it is named as well."""
        root = self._root_path
        if isinstance(error, LocalDiskError) and root and root.is_dir() and not os.access(root, os.W_OK | os.X_OK):
            error.message = f"{error.message}; you may not write in {label(root)}"

    def _tell_failure(self, path: RelPath, error: HeadraceError) -> None:
        self._name_place(error)
        if self._worst is None or isinstance(error, IntegrityError):
            self._worst = error
        self._on_event(
            {
                "event": "error",
                "code": error.code,
                **_path(path),
                "message": error.message,
                "hint": error.hint,
                "errno": system_word(error),
                "retryable": error.retryable,
            }
        )

    def warn(self, path: RelPath, message: str) -> None:
        self._on_event({"event": "warning", **_path(path), "message": message})

    def _result(self) -> GetResult:
        totals = self.progress.totals()
        error = None
        if totals.files_failed:
            error = self._worst
            if not self._single and not isinstance(error, IntegrityError):
                some = "1 file" if totals.files_failed == 1 else f"{totals.files_failed} files"
                error = SomeFailedError(f"{some} failed, the rest arrived")
        return GetResult(
            files=totals.files_done,
            bytes=totals.bytes,
            bytes_received=totals.bytes_received,
            bytes_reused=totals.bytes_reused,
            bytes_wire=self._session.connection.bytes_wire,
            seconds=round(totals.seconds, 6),
            first_byte_ms=None if totals.first_byte is None else round(totals.first_byte * 1000, 3),
            transport=self._choice.transport,
            protocol=self._session.agreed.version,
            io=self._io.name,
            data_plane="clear" if self._session.clear else "tls",
            streams=self._lanes,
            failed=totals.files_failed,
            bytes_saved=totals.bytes_saved,
            compression=self.progress.packed(),
            error=error,
        )


def _path(path: RelPath) -> dict[str, str]:
    return text_fields("path", bytes(path))
