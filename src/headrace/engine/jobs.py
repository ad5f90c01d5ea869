"""The life of the jobs of a transfer, whichever way it goes: begun, settled, ended once, and never lost with a lane."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, Protocol

from headrace.engine.buffers import Buffers
from headrace.engine.progress import Progress
from headrace.engine.queue import Job, Sized, WorkQueue
from headrace.errors import HeadraceError, SourceChangedError

MAX_ATTEMPTS: Final = 3  # at a file that changes while it is read


class Reports(Protocol):
    """Who hears of each file. Called from the workers' threads."""

    def fetched(self, jobs: Sequence[Job]) -> None:
        """The whole files stand under their names."""

    def same(self, jobs: Sequence[Job]) -> None:
        """The destination has their contents already."""

    def failed(self, job: Job, error: HeadraceError) -> None:
        """The file will not come."""


class JobKeeper[W: Sized]:
    """Owns the queue and what happens to each job in it. Thread-safe. A subclass knows what a file is made of.

    file_errors: failures that concern one file: it is reported and the others go on. Everything else ends the transfer.
    retries: jobs whose file changed while it was read, to be looked at again.
    """

    def __init__(
        self,
        expand: Callable[[Job], Iterable[W]],
        *,
        buffers: Buffers,
        progress: Progress,
        reports: Reports,
        file_errors: tuple[type[HeadraceError], ...],
    ) -> None:
        self.queue: WorkQueue[W] = WorkQueue(expand)
        self.buffers = buffers
        self.progress = progress
        self.reports = reports
        self.retries: deque[Job] = deque()
        self.failure: BaseException | None = None
        self._file_errors = file_errors
        self._failing = threading.Lock()

    # ---- the end ---------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def carrying(self) -> Iterator[None]:
        """For the body of a thread of this transfer: what it raises ends the transfer and is raised where it is
        waited for (`failure`), not in the thread."""
        try:
            yield
        except BaseException as why:  # noqa: BLE001  # nothing is swallowed, it is carried to another thread
            self.fail(why)

    def fail(self, why: BaseException) -> None:
        """The transfer as a whole ends with this."""
        with self._failing:
            self.failure = self.failure or why
        self.queue.cancel()

    # ---- requests --------------------------------------------------------------------------------------------------

    def begin(self, job: Job) -> bool:
        """A request of the job is about to be sent. False: it is of no use any more."""
        with job.lock:
            if job.over or job.error:
                return False
            job.in_flight += 1
            return True

    def settle(self, job: Job, error: HeadraceError | None, *, began: bool = True) -> None:
        """A request of the job ended, or (began=False) something before its first. Ends the job where it is over."""
        with job.lock:
            job.in_flight -= began
            job.error = job.error or error
            whole = job.partial.complete if job.partial else job.written
            if job.over or job.in_flight or not (job.error or whole):
                return
            job.over = True
        if not job.error:
            try:
                self.finish(job)
            except self._file_errors as why:
                job.error = why
        if job.error:
            self.drop(job, job.error)
            if isinstance(job.error, SourceChangedError) and job.attempt < MAX_ATTEMPTS:
                self.retries.append(job)
            else:
                self.progress.file_failed()
                self.reports.failed(job, job.error)
        self.ended(job)
        self.queue.finished()

    def tell_done(self, jobs: Sequence[Job]) -> None:
        """Jobs that ended well, of which nobody else knows."""
        self.progress.files_done(len(jobs))
        self.reports.fetched(jobs)
        self.queue.finished(len(jobs))

    # ---- for subclasses --------------------------------------------------------------------------------------------

    def finish(self, job: Job) -> None:
        """All of the file is there. Raises what fails."""
        raise NotImplementedError

    def drop(self, job: Job, error: HeadraceError) -> None:
        """The job failed, for now or for good."""

    def ended(self, job: Job) -> None:
        """It is over, well or not."""
