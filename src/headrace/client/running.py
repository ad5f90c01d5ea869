"""What a transfer is made of, whichever way it goes: its lanes run, its files told of, its figures added up."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from headrace.client.crew import GRACE, Crew, Hire
from headrace.client.options import GetOptions, GetResult
from headrace.client.outage import Outage
from headrace.client.session import Session
from headrace.engine.buffers import buffers_for
from headrace.engine.choice import TransportChoice
from headrace.engine.jobs import JobKeeper
from headrace.engine.pool import StreamPool
from headrace.engine.progress import Progress
from headrace.engine.queue import Job
from headrace.errors import HeadraceError, IntegrityError, SomeFailedError, StoppedError, system_word
from headrace.observe import tracing
from headrace.protocol.messages import CHUNK_SIZE, PHASE_BULK
from headrace.protocol.paths import ROOT, RelPath, text_fields
from headrace.storage.fileio import FileIO
from headrace.storage.posix import POSIX
from headrace.transport.tcp import TcpStream

SMALL_TRANSFER: Final = 4 * CHUNK_SIZE  # a file up to this size is not worth a second connection
CORES: Final = os.cpu_count() or 1
FEW_CORES: Final = 2
QUIC_CEILING: Final = 60e6  # bytes a second; where TCP is faster than this, QUIC cannot win from Python

Event = dict[str, Any]


class Running:
    """One transfer; `cancel` from any thread. A subclass says what is to be done, and runs it once.

    on_event: called from several threads with `plan`, `file`, `warning` and `error` events. tells_files: False leaves
    the `file` events of files out that came or were there; with many small ones they take a tenth of the time.

    Implements engine.jobs.Reports and client.plan.Told.
    """

    done_word = "fetched"  # what became of a file, in its event
    moved = "received_bytes"  # the metric for what crossed the network

    def __init__(
        self, session: Session, options: GetOptions, on_event: Callable[[Event], None], *, tells_files: bool
    ) -> None:
        self.progress = Progress()
        self.buffers = buffers_for(options.io, options.buffers)
        self.pool: StreamPool | None = None  # once chunks are moved
        self._tells_files = tells_files
        self._session = session
        self._options = options
        self._on_event = on_event
        self._io: FileIO = POSIX
        self._jobs: JobKeeper[Any] | None = None
        self._single = False
        self._stopped = threading.Event()
        others = session.connection.others() if session.agreed.version >= PHASE_BULK else []
        self._choice = TransportChoice(session.transport, others[0] if others else None, ceiling=QUIC_CEILING)
        self._outage = Outage(on_event, self._stopped, limit=options.retry_for)
        self._worst: HeadraceError | None = None
        self._lanes = 0

    @property
    def io(self) -> str:
        """How files are read and written."""
        return self._io.name

    def cancel(self) -> None:
        """Ends `run` with StoppedError; what was verified stays for the next time."""
        self._stopped.set()
        if self._jobs:
            self._jobs.fail(StoppedError("stopped"))
        self._session.abort()

    def run(self) -> GetResult:
        """Blocks until it is over."""
        raise NotImplementedError

    # ---- the threads ---------------------------------------------------------------------------------------------

    def _move(
        self, jobs: JobKeeper[Any], hire: Hire, plan: Callable[[], Iterable[list[Job]]], retry: Callable[[Job], None]
    ) -> None:
        """Plans on one thread, moves on others; until all jobs are over. Raises what ended the transfer as a whole.

        retry: looks at a file again that changed while it was read.
        """
        if self._stopped.is_set():
            raise StoppedError("stopped")
        alone = self._alone()
        self.pool = StreamPool(
            fixed_requests=self._options.streams,
            fixed_connections=1 if alone else self._options.connections,
            warn=lambda message: self.warn(ROOT, message),
        )
        crew = Crew(
            self._session,
            jobs,
            hire,
            self._outage,
            self.pool,
            self._choice,
            alone=alone,
            eager=self._single and not self._session.clear and self._options.connections is None,
            cramped=self._cramped(),
            near=self._near(),
            halt=self._stopped,
            tell=self._on_event,
        )
        planning = threading.Thread(target=self._feed, args=(jobs, plan, retry), name="headrace-plan")
        planning.start()
        try:
            crew.run()
            if jobs.failure:
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
            self._lanes = crew.most

    def _cramped(self) -> bool:
        """Whether this is a tree of a host on the same machine, and the machine is a small one."""
        return not (self._single or self._options.connections or CORES > FEW_CORES) and self._near()

    def _near(self) -> bool:
        """Whether the host is on this machine, as far as TCP says."""
        stream = self._session.control.messages.stream
        with contextlib.suppress(OSError):  # it broke; whoever uses it finds that out
            return isinstance(stream, TcpStream) and stream.near
        return False

    def _alone(self) -> bool:
        """Whether the control lane does it all: the baseline has one stream, and one small file is worth no second."""
        if self._session.agreed.version < PHASE_BULK:
            return True
        return self._single and self._single_size() <= SMALL_TRANSFER and not self._session.clear

    def _single_size(self) -> int:
        """Bytes of the one file that the transfer is about."""
        raise NotImplementedError

    def _feed(
        self, jobs: JobKeeper[Any], plan: Callable[[], Iterable[list[Job]]], retry: Callable[[Job], None]
    ) -> None:
        with jobs.carrying():
            with tracing.span("plan"):
                for some in plan():
                    if not jobs.queue.put(*some):
                        return
            self._planned()
            while not jobs.failure and (not jobs.queue.drained(timeout=1.0) or jobs.retries):
                while jobs.retries and not jobs.failure:
                    retry(jobs.retries.popleft())
            jobs.queue.close()

    def _planned(self) -> None:
        self.progress.planned()
        totals = self.progress.totals()
        self._on_event({"event": "plan", "files": totals.files, "bytes": totals.bytes})

    # ---- engine.jobs.Reports and client.plan.Told -----------------------------------------------------------------

    def fetched(self, jobs: Sequence[Job]) -> None:
        self._tell_files(jobs, self.done_word)

    def same(self, jobs: Sequence[Job]) -> None:
        self._tell_files(jobs, "same")

    def _tell_files(self, jobs: Sequence[Job], action: str) -> None:
        if self._tells_files:
            for job in jobs:
                self._on_event({"event": "file", **path_fields(job.dest), "bytes": job.size, "action": action})

    def would(self, jobs: Sequence[Job], action: str) -> None:
        """A dry run: what would become of them."""
        for job in jobs:
            self._on_event({"event": "file", **path_fields(job.dest), "bytes": job.size, "action": action})

    def linked(self, path: RelPath) -> None:
        self._on_event({"event": "file", **path_fields(path), "bytes": 0, "action": "link"})

    def failed(self, job: Job, error: HeadraceError) -> None:
        self._tell_failure(job.dest, error)

    def failed_path(self, path: RelPath, error: HeadraceError) -> None:
        self.progress.file_failed()
        self._tell_failure(path, error)

    def name_place(self, error: HeadraceError) -> None:
        """Files are named as they are below the destination. Where that is what is not ours, it is named as well."""

    def _tell_failure(self, path: RelPath, error: HeadraceError) -> None:
        self.name_place(error)
        if self._worst is None or isinstance(error, IntegrityError):
            self._worst = error
        self._on_event(
            {
                "event": "error",
                "code": error.code,
                **path_fields(path),
                "message": error.message,
                "hint": error.hint,
                "errno": system_word(error),
                "retryable": error.retryable,
            }
        )

    def warn(self, path: RelPath, message: str) -> None:
        self._on_event({"event": "warning", **path_fields(path), "message": message})

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


def path_fields(path: RelPath) -> dict[str, str]:
    """A path as an event has it."""
    return text_fields("path", bytes(path))
