"""What a transfer has to do: what the share has and this disk does not. Links and directories come last."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, Protocol

from headrace.client.filters import Filters
from headrace.client.options import GetOptions, Links
from headrace.client.outage import Outage
from headrace.client.session import Session
from headrace.client.walk import Walk
from headrace.engine.fetch import FILE_ERRORS, resolve_different
from headrace.engine.plan import Action, OnExist, decide
from headrace.engine.progress import Progress
from headrace.engine.queue import Job
from headrace.errors import DestinationExistsError, HeadraceError, NotFoundError
from headrace.protocol.messages import Entry
from headrace.protocol.paths import ROOT, RelPath, link_stays_inside
from headrace.storage.destination import Destination
from headrace.storage.inflight import is_inflight_name

_AT_ONCE: Final = 256  # files that are looked for together, and then handed on
MAX_LINKS: Final = 50_000  # that wait for the end; more are made as they are listed
_MOST_FRESH: Final = 10_000  # folders that are remembered; in others each file's place is looked at


_Same = list[tuple[Job, os.stat_result]]


class Told(Protocol):
    """Who hears of what needs no fetching. Paths are those below the destination."""

    def same(self, jobs: Sequence[Job]) -> None:
        """The destination has these files already."""

    def linked(self, path: RelPath) -> None:
        """A symlink was made, or was there."""

    def failed_path(self, path: RelPath, error: HeadraceError) -> None:
        """A file, directory or symlink will not come."""

    def warn(self, path: RelPath, message: str) -> None:
        """Something was left out that cannot be had."""


class Planner:
    """The plan of one transfer. One thread at a time.

    destination: None where it is not there and is not to be made (a dry run).
    """

    def __init__(
        self,
        session: Session,
        source: RelPath,
        destination: Destination | None,
        options: GetOptions,
        progress: Progress,
        told: Told,
        outage: Outage,
    ) -> None:
        self._session = session
        self._outage = outage
        self._source = source
        self._destination = destination
        self._options = options
        self._progress = progress
        self._told = told
        self._filters = Filters(options.include, options.exclude)
        # What is set last: directories (their times change with every file in them) and symlinks.
        self._directories: list[tuple[RelPath, int | None, int]] = []
        self._links: list[tuple[RelPath, bytes, int]] = []
        self._fresh: set[RelPath] = set()  # folders that this transfer made; all below them are too

    def jobs(self, entry: Entry, dest: RelPath) -> Iterator[list[Job]]:
        """The jobs of the transfer, some at a time, as the host lists them. entry: of the source, a file (which becomes
        `dest`) or a directory."""
        if entry.kind == "f":
            self._progress.found(1, entry.size)
            job = Job(self._source, dest, entry)
            if self.decided(job):
                yield [job]
            return
        for directory, entries, error in Walk(self._session, self._source, self._outage).parts():
            here = directory.relative_to(self._source)
            fresh = self._is_fresh(here)
            if error and not self._filters.excludes_directory(here):
                self._told.failed_path(here, error)
            jobs = self._files(directory, here, entries, fresh=fresh)
            for start in range(0, len(jobs), _AT_ONCE):
                if wanted := self._wanted(here, jobs[start : start + _AT_ONCE]):
                    yield wanted

    def _files(self, directory: RelPath, here: RelPath, entries: list[Entry], *, fresh: bool) -> list[Job]:
        """Jobs for the files among the host's entries in `directory`, which is `here` at the destination. Makes the
        folders, and notes the links."""
        jobs: list[Job] = []
        alike = directory == here
        for child in entries:
            dest = here.child(child.name)
            if child.kind == "d":
                self._directory(dest, child, within_fresh=fresh)
            elif not self._filters.wants(dest):
                continue
            elif child.kind == "f":
                jobs.append(Job(dest if alike else directory.child(child.name), dest, child, fresh=fresh))
            elif child.kind == "l":
                if self._destination and self._options.links is not Links.SKIP:
                    self._links.append((dest, child.target, child.mtime_ns))
            else:
                self._told.warn(dest, "left out: it is neither a file, a folder nor a symlink")
        if len(self._links) >= MAX_LINKS:
            self._make_links()
        return jobs

    def _wanted(self, folder: RelPath, jobs: list[Job]) -> list[Job]:
        """Those of these jobs, all for `folder`, that are to be fetched."""
        self._progress.found(len(jobs), sum(job.entry.size for job in jobs))
        facts: Iterable[os.stat_result | None] = itertools.repeat(None)
        # Where somebody else puts something there meanwhile, giving the file its name finds that out.
        if self._destination and not jobs[0].fresh:
            try:
                facts = self._destination.lstat_all(folder, [job.dest.name for job in jobs])
            except FILE_ERRORS:  # what it is about, each says for itself
                return [job for job in jobs if self.decided(job)]
        same: _Same = []
        wanted = [job for job, existing in zip(jobs, facts, strict=False) if self._decided(job, existing, same)]
        self._settle_same(same)
        return wanted

    def _is_fresh(self, folder: RelPath) -> bool:
        """Whether nothing can be in it but what came by this transfer."""
        if self._destination is None:
            return False
        fresh, parts = self._fresh, folder.parts
        return self._destination.fresh or any(RelPath(parts[: i + 1]) in fresh for i in range(len(parts)) if fresh)

    def _directory(self, dest: RelPath, entry: Entry, *, within_fresh: bool) -> None:
        if self._options.dry_run or not self._filters.wants_directory(dest):
            return
        assert self._destination is not None
        try:
            made = self._destination.make_dir(dest, mode=entry.mode)
        except FILE_ERRORS as why:
            self._told.failed_path(dest, why)
            return
        self._directories.append((dest, entry.mode, entry.mtime_ns))
        if made and not within_fresh and len(self._fresh) < _MOST_FRESH:
            self._fresh.add(dest)

    def decided(self, job: Job) -> bool:
        """Whether the job is to be fetched; it then says how. Reports what is settled without."""
        try:
            existing = self._destination.lstat(job.dest) if self._destination else None
        except FILE_ERRORS as why:
            self._told.failed_path(job.dest, why)
            return False
        same: _Same = []
        wanted = self._decided(job, existing, same)
        self._settle_same(same)
        return wanted

    def _decided(self, job: Job, existing: os.stat_result | None, same: _Same) -> bool:
        """As `decided`; what is the same is only added to `same`. existing: what lies at the job's destination."""
        dest, entry = job.dest, job.entry
        try:
            if is_inflight_name(dest.name):
                raise DestinationExistsError(f"{dest} is a name that headrace keeps for files in flight")
            action = decide(entry, existing, self._options.on_exist, checksum=self._options.checksum)
            if action is Action.FETCH and self._options.on_exist is not OnExist.RENAME:
                return True
            if action is Action.SAME:
                assert existing is not None
                same.append((job, existing))
                return False
            if action is Action.FORBIDDEN:
                raise DestinationExistsError(f"{dest} exists")
            if action is Action.OCCUPIED:
                raise DestinationExistsError(f"{dest} exists and is no file", hint="Move it away, or choose another.")
            if action is Action.DIFFERENT:
                assert self._destination is not None
                resolve_different(job, self._options.on_exist, self._destination)
            if action is Action.FETCH and self._options.on_exist is OnExist.RENAME and job.attempt == 1:
                assert self._destination is not None or self._options.dry_run
                job.dest = self._destination.free_name(dest) if self._destination else dest
            job.compare = action is Action.COMPARE
        except DestinationExistsError as why:
            if self._options.on_exist is OnExist.FAIL:
                raise
            self._told.failed_path(job.dest, why)
            return False
        except FILE_ERRORS as why:
            self._told.failed_path(job.dest, why)
            return False
        return True

    def _settle_same(self, same: _Same) -> None:
        """These are here already, as they are to be, but for their permissions."""
        if not same:
            return
        done: list[Job] = []
        for job, existing in same:
            if (existing.st_mode ^ job.entry.mode) & 0o777 and not self._options.dry_run:
                assert self._destination is not None
                try:
                    self._destination.set_times_and_mode(job.dest, mode=job.entry.mode, mtime_ns=job.entry.mtime_ns)
                except FILE_ERRORS as why:
                    self._told.failed_path(job.dest, why)
                    continue
            if self._destination and not job.single:
                self._destination.forget_partial(job.dest)
            done.append(job)
        self._progress.same(len(done), sum(job.size for job in done))
        self._told.same(done)

    def finish(self, entry: Entry, *, created: bool) -> None:
        """After everything has come: makes the links, then sets modes and times of the directories. created: the one
        that everything is in is ours."""
        assert self._destination is not None
        self._make_links()
        if entry.kind == "d":
            mode = entry.mode if created else None  # a folder that the user had keeps its permissions
            self._directories.insert(0, (ROOT, mode, entry.mtime_ns))
        for path, mode, mtime_ns in reversed(self._directories):
            try:
                self._destination.set_times_and_mode(path, mode=mode, mtime_ns=mtime_ns)
            except NotFoundError:
                pass  # removed by somebody meanwhile: nothing to set
            except FILE_ERRORS as why:
                self._told.failed_path(path, why)

    def _make_links(self) -> None:
        """Those that were noted. Last, as a rule: but a host that lists links without end must not fill the memory with
        them. Nothing is ever written through one, whenever it is made."""
        links, self._links = self._links, []
        for path, target, mtime_ns in links:
            self._make_link(path, target, mtime_ns)

    def _make_link(self, path: RelPath, target: bytes, mtime_ns: int) -> None:
        assert self._destination is not None
        try:
            if self._options.links is Links.SAFE and not link_stays_inside(path, target):
                shown = target.decode("utf-8", "backslashreplace")
                raise LinkLeavesError(f"the symlink {path} points outside ({shown!r}) and was left out")
            self._destination.symlink(
                path, target, replace=self._options.on_exist is OnExist.OVERWRITE, mtime_ns=mtime_ns
            )
            self._told.linked(path)
        except DestinationExistsError as why:
            if self._options.on_exist is OnExist.FAIL:
                raise
            self._told.failed_path(path, why)
        except (*FILE_ERRORS, LinkLeavesError) as why:
            self._told.failed_path(path, why)


class LinkLeavesError(HeadraceError):
    """A symlink that leads outside of the destination."""

    code = "unsafe_link"
    default_hint = "--links all makes it all the same, --links skip leaves all links out."
