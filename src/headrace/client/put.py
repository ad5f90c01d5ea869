"""A whole transfer into a share: find out where it goes, walk what is here, plan, send, finish."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Final

from headrace.client.options import GetOptions, GetResult, Links
from headrace.client.put_plan import PutPlanner
from headrace.client.running import Event, Running
from headrace.client.session import Session
from headrace.engine.push import FILE_ERRORS, Pusher, as_local
from headrace.engine.push_worker import PushWorker
from headrace.engine.queue import Job
from headrace.errors import (
    LocalDiskError,
    NotFoundError,
    PermissionRefusedError,
    ProtocolError,
    RefusedError,
    RemoteIOError,
    UsageError,
)
from headrace.protocol.messages import (
    PHASE_BULK,
    TRANSFER_SIZE,
    Entry,
    MalformedMessageError,
    PutBegin,
    PutEnd,
    PutEnded,
    PutReady,
    wire_path,
)
from headrace.protocol.paths import ROOT, BadPathError, RelPath
from headrace.protocol.session import PUT
from headrace.storage.platform import platform_io
from headrace.storage.tree import SharedTree
from headrace.transport.zerocopy import wants_clear

RETRY_PAUSE: Final = 0.2  # seconds before a file that changed is looked at again, times the attempt


class Put(Running):
    """Sends files or trees into a share. Call `run` once; `cancel` from any thread. Options as for a get.

    sources: of one folder, its contents go to `dest`; one file becomes `dest`, or goes into it where that is a folder;
    several go into `dest` by their names. dest: a path in the share. into: `dest` is a folder, whether it is there yet
    or not. A source that is a symlink is followed; below it none is.
    """

    done_word = "sent"
    moved = "sent_bytes"

    def __init__(
        self,
        session: Session,
        sources: Sequence[str | os.PathLike[str]],
        dest: RelPath = ROOT,
        options: GetOptions = GetOptions(),
        on_event: Callable[[Event], None] = lambda event: None,
        *,
        into: bool = False,
        tells_files: bool = True,
    ) -> None:
        super().__init__(session, options, on_event, tells_files=tells_files)
        if wants_clear(options.data_plane):
            raise UsageError("what is sent into a share is always encrypted", hint="Leave --data-plane clear out.")
        if options.links is Links.ALL:
            raise UsageError("a share takes no symlinks that lead outside", hint="Leave --links all out.")
        self._sources = [os.fspath(source) for source in sources]
        self._base = dest
        self._into = into
        self._transfer = os.urandom(TRANSFER_SIZE)
        self._size = 0  # of a single file

    def run(self) -> GetResult:
        """Blocks until everything is there or failed. Raises a HeadraceError for what ended the transfer as a whole:
        RefusedError where the share cannot be written to, NotFoundError for a source that is not there, StoppedError,
        ConnectionLostError, RemoteDiskError, DestinationExistsError, ProtocolError."""
        self._check_allowed()
        self._io = platform_io(self._options.io)
        try:
            with self._open_sources() as tree:
                return self._run(tree)
        finally:
            self._io.close()

    def _check_allowed(self) -> None:
        agreed = self._session.agreed
        if agreed.version < PHASE_BULK:
            raise RefusedError("the baseline protocol cannot write", hint="Leave --protocol 7 out, or update the host.")
        if PUT not in agreed.features:
            raise RefusedError(
                "this share is read-only", hint="Whoever shares it has to start it with --write for that."
            )

    def _open_sources(self) -> SharedTree:
        """What is sent, read as a host reads what it shares: no symlink below it is followed."""
        for source in self._sources:
            if not os.path.exists(source):
                raise NotFoundError(f"there is no {source} here", hint="Check the path.")
        try:
            return SharedTree.open(self._sources, io=self._io)
        except (PermissionRefusedError, RemoteIOError) as why:
            raise LocalDiskError(why.message, hint=why.hint) from why
        except UsageError as why:
            raise UsageError(why.message.replace("shared paths", "SRC"), hint="Put them one after the other.") from why

    def _run(self, tree: SharedTree) -> GetResult:
        entry = tree.stat(ROOT)
        run = self._begin()
        if entry.kind == "f":
            self._single, self._size = True, entry.size
            self._base = self._place(entry)
        planner = PutPlanner(
            *(self._session, tree, self._base, self._transfer, self._options, self.progress, self, self._outage)
        )
        if self._options.dry_run:
            for jobs in planner.jobs(entry):
                self.would(jobs, "would-send")
            self._planned()
            return self._result()
        pusher = self._jobs = Pusher(
            tree,
            self._transfer,
            buffers=self.buffers,
            progress=self.progress,
            reports=self,
            dedup=self._options.content_addressing,
            resolve=planner.resolve,
            warn=self.warn,
            compress=self._options.compress,
        )
        self._move(
            pusher,
            lambda lane, counters, room, leaves: PushWorker(pusher, lane, counters, room=room, leaves=leaves),
            lambda: planner.jobs(entry),
            lambda job: self._retry(tree, pusher, planner, job),
        )
        if pusher.failure:
            raise pusher.failure
        planner.finish()
        self._end(run)
        return self._result()

    def _single_size(self) -> int:
        return self._size

    def _begin(self) -> bytes:
        answer = self._outage.bear(lambda: self._session.ask(lambda id: PutBegin(id, self._transfer)))
        if not isinstance(answer, PutReady):
            raise ProtocolError("the host answered something that it was not asked")
        return answer.run

    def _place(self, entry: Entry) -> RelPath:
        """Where one file goes."""
        into = self._into or not self._base
        if not into:
            try:
                into = self._outage.bear(lambda: self._session.stat(self._base)).kind == "d"
            except NotFoundError:
                pass
        try:
            return self._base / entry.name if into else self._base
        except BadPathError as why:
            raise UsageError(f"it cannot be put there: {why}", hint="Choose another place.") from why

    def _retry(self, tree: SharedTree, pusher: Pusher, planner: PutPlanner, job: Job) -> None:
        """A file changed while it was sent: look at it again, keep what still matches."""
        self._stopped.wait(RETRY_PAUSE * job.attempt)
        try:
            entry = tree.stat(job.source)
            if entry.kind != "f":
                raise NotFoundError(f"{job.dest} is no file any more")
        except FILE_ERRORS as why:
            self.failed_path(job.dest, as_local(why))
            return
        self.progress.resized(entry.size - job.size)
        again = Job(job.source, job.dest, entry, replace=job.replace, attempt=job.attempt + 1, old=job.old)
        if job.replace or planner.decided(again):
            pusher.queue.put(again)

    def _end(self, run: bytes) -> None:
        """What was sent is on the host's disk after this, unless nobody wants to wait for that."""
        sync = self._options.fsync
        answer = self._outage.bear(lambda: self._session.ask(lambda id: PutEnd(id, self._transfer, sync)))
        if not isinstance(answer, PutEnded):
            raise ProtocolError("the host answered something that it was not asked")
        try:
            lost = [wire_path(raw) for raw in answer.lost]
        except MalformedMessageError as why:
            raise ProtocolError(f"the host sent {why}") from why
        for path in lost:
            self.warn(path, "another client has replaced this file since")
        if sync and answer.run != run:
            self.warn(ROOT, "the host's machine was started anew meanwhile; run the same command again to be sure")
