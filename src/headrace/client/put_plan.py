"""What a transfer into a share has to do: what is here and the share has not. Links and folders come last.

The counterpart of client.plan. What the share has is listed folder by folder, some at a time, and only where the folder
was not made by this transfer.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from headrace.client.filters import Filters
from headrace.client.options import GetOptions, Links
from headrace.client.outage import Outage
from headrace.client.plan import LinkLeavesError, Told
from headrace.client.session import Session
from headrace.engine.plan import Action, OnExist, RemoteFacts, decide
from headrace.engine.progress import Progress
from headrace.engine.push import FILE_ERRORS, as_local
from headrace.engine.push_worker import failures
from headrace.engine.queue import Job
from headrace.errors import DestinationExistsError, DifferentError, HeadraceError, NotFoundError, ProtocolError
from headrace.protocol.messages import (
    MAX_PUT_ITEMS,
    Entry,
    Message,
    PutAttributes,
    PutDone,
    PutNames,
)
from headrace.protocol.paths import ROOT, BadPathError, RelPath, link_stays_inside
from headrace.storage.inflight import is_inflight_name
from headrace.storage.naming import first_free
from headrace.storage.tree import Part, SharedTree

FOLDERS_AT_ONCE: Final = 64  # that are made, and listed, together
FILES_AT_ONCE: Final = 1024
_MOST_FRESH: Final = 10_000  # folders that are remembered; others are listed
_ROOM: Final = 256 * 1024  # bytes of a request's header for paths and links; the limit is twice that

_Item = tuple[RelPath, Entry]


class PutPlanner:
    """The plan of one transfer. One thread at a time.

    tree: what is sent; everything in it goes below `base` of the share, or to `base` where it is one file.
    """

    def __init__(
        self,
        session: Session,
        tree: SharedTree,
        base: RelPath,
        transfer: bytes,
        options: GetOptions,
        progress: Progress,
        told: Told,
        outage: Outage,
    ) -> None:
        self._session = session
        self._tree = tree
        self._base = base
        self._transfer = transfer
        self._options = options
        self._progress = progress
        self._told = told
        self._outage = outage
        self._filters = Filters(options.include, options.exclude)
        self._directories: list[_Item] = []
        self._links: list[tuple[RelPath, _Item]] = []  # where they are here, and what they become
        self._chmods: list[_Item] = []
        self._fresh: set[RelPath] = set()  # folders that this transfer made; all below them are too
        self._failed: set[RelPath] = set()  # folders that cannot be made
        self._naming = threading.Lock()
        self._names: dict[RelPath, set[bytes]] = {}  # of folders in which files are renamed

    def jobs(self, entry: Entry) -> Iterator[list[Job]]:
        """The jobs of the transfer, some at a time. entry: of the tree's root."""
        if entry.kind == "f":
            self._progress.found(1, entry.size)
            job = Job(ROOT, self._base, entry)
            if self.decided(job):
                yield [job]
            return
        if self._base:
            self._make([(self._base, entry)], noted=False)
        parts: list[Part] = []
        files = 0
        for part in self._tree.walk(ROOT):
            parts.append(part)
            files += len(part[1])
            if len(parts) >= FOLDERS_AT_ONCE or files >= FILES_AT_ONCE:
                yield from self._some(parts)
                parts, files = [], 0
        yield from self._some(parts)

    def _some(self, parts: Sequence[Part]) -> Iterator[list[Job]]:
        """The jobs of some folders. Makes the folders in them, and notes the links."""
        folders: list[_Item] = []
        files: dict[RelPath, list[Job]] = {}
        for directory, entries, error in parts:
            if error and not self._filters.excludes_directory(directory):
                self._told.failed_path(self._base.join(directory), as_local(error))
            for child in entries:
                try:
                    source = directory / child.name
                    dest = self._base.join(source)
                except BadPathError as why:
                    self._told.failed_path(directory, DestinationExistsError(f"it cannot be sent: {why}", hint=""))
                    continue
                if child.kind == "d":
                    if self._filters.wants_directory(source):
                        folders.append((dest, child))
                elif self._filters.wants(source):
                    self._file(source, dest, child, files)
        self._make(folders)
        there = self._existing([folder for folder in files if not self._under(folder, self._fresh)])
        for folder, jobs in files.items():
            if self._under(folder, self._failed):
                continue  # told of already
            self._progress.found(len(jobs), sum(job.size for job in jobs))
            known = there.get(folder, {})
            fresh = self._under(folder, self._fresh)
            if wanted := [job for job in jobs if self._decided(job, known.get(job.dest.name), fresh=fresh)]:
                yield wanted

    def _file(self, source: RelPath, dest: RelPath, child: Entry, files: dict[RelPath, list[Job]]) -> None:
        if child.kind == "f":
            files.setdefault(dest.parent, []).append(Job(source, dest, child))
        elif child.kind == "l":
            self._links.append((source, (dest, child)))
        else:
            self._told.warn(dest, "left out: it is neither a file, a folder nor a symlink")

    def _under(self, folder: RelPath, some: set[RelPath]) -> bool:
        parts = folder.parts
        return bool(some) and any(RelPath(parts[: i + 1]) in some for i in range(len(parts)))

    # ---- one file --------------------------------------------------------------------------------------------------

    def decided(self, job: Job) -> bool:
        """Whether the job is to be sent; it then says how. Reports what is settled without."""
        try:
            existing: Entry | None = self._outage.bear(lambda: self._session.stat(job.dest))
        except NotFoundError:
            existing = None
        except FILE_ERRORS as why:
            self._told.failed_path(job.dest, why)
            return False
        return self._decided(job, existing)

    def _decided(self, job: Job, existing: Entry | None, *, fresh: bool = False) -> bool:
        options, entry = self._options, job.entry
        job.fresh = fresh
        try:
            if is_inflight_name(job.dest.name):
                raise DestinationExistsError(f"{job.dest} is a name that headrace keeps for files in flight")
            facts = RemoteFacts.of(existing) if existing else None
            action = decide(entry, facts, options.on_exist, checksum=options.checksum)
            if action is Action.SAME:
                assert existing is not None
                self._same(job, existing)
                return False
            if action is Action.FORBIDDEN:
                raise DestinationExistsError(f"{job.dest} exists")
            if action is Action.OCCUPIED:
                raise DestinationExistsError(f"{job.dest} exists and is no file", hint="Choose another place.")
            if options.on_exist is OnExist.RENAME and action in (Action.DIFFERENT, Action.COMPARE):
                self._look_at_names(job.dest.parent)
            if action is Action.DIFFERENT:
                self.resolve(job)
            job.compare = action is Action.COMPARE
        except DestinationExistsError as why:
            if options.on_exist is OnExist.FAIL:
                raise
            self._told.failed_path(job.dest, why)
            return False
        except FILE_ERRORS as why:
            self._told.failed_path(job.dest, why)
            return False
        return True

    def _same(self, job: Job, existing: Entry) -> None:
        if (existing.mode ^ job.entry.mode) & 0o777 and not self._options.dry_run:
            self._chmods.append((job.dest, job.entry))
        self._progress.same(1, job.size)
        self._told.same([job])

    def resolve(self, job: Job) -> None:
        """Another file is in its place: what `--on-exist` says. Raises DifferentError where nothing may be written."""
        job.old = job.dest
        if self._options.on_exist is OnExist.OVERWRITE:
            job.replace = True
        elif self._options.on_exist is OnExist.RENAME:
            job.dest = self._free_name(job.dest)
        else:
            raise DifferentError(f"{job.dest} exists on the host and is different")

    def _free_name(self, path: RelPath) -> RelPath:
        """A name is given out once: two files of one transfer never get the same. After `_look_at_names`."""
        names = self._names[path.parent]
        with self._naming:
            found = first_free(path, lambda name: name.name in names)
            names.add(found.name)
            return found

    def _look_at_names(self, folder: RelPath) -> None:
        """Before a file in it may have to be renamed: whoever finds that out may hold the lane to ask on."""
        if folder not in self._names:
            listed = self._outage.bear(lambda: list(self._session.list(folder)))
            self._names[folder] = {entry.name for part in listed for entry in part}

    # ---- questions to the host -------------------------------------------------------------------------------------

    def _existing(self, folders: Sequence[RelPath]) -> dict[RelPath, dict[bytes, Entry]]:
        """What is in those folders of the share; nothing in those that are not there."""
        found: dict[RelPath, dict[bytes, Entry]] = {}
        for some in itertools.batched(folders, FOLDERS_AT_ONCE):
            listings = self._outage.bear(lambda some=some: self._session.list_many(some))  # type: ignore[misc]
            for folder, entries, error in listings:
                if error and not isinstance(error, NotFoundError):
                    self._told.failed_path(folder, error)
                    self._failed.add(folder)
                found[folder] = {entry.name: entry for entry in entries}
        return found

    def _make(self, folders: Sequence[_Item], *, noted: bool = True) -> None:
        """Those that are new are fresh; those that cannot be made are told of."""
        if self._options.dry_run:
            return
        wanted = [item for item in folders if not self._under(item[0], self._failed)]
        for some, answer, failed in self._ask(wanted, lambda id, some: self._names_of(id, some, replace=False)):
            for number, (path, entry) in enumerate(some):
                if number in failed:
                    self._failed.add(path)
                    self._told.failed_path(path, failed[number])
                    continue
                if number in answer.made and len(self._fresh) < _MOST_FRESH and not self._under(path, self._fresh):
                    self._fresh.add(path)
                if noted or number in answer.made:
                    self._directories.append((path, entry))

    def _names_of(self, id: int, some: Sequence[_Item], *, replace: bool) -> Message:
        entries = [Entry(b"", entry.kind, 0, entry.mtime_ns, entry.mode, entry.target) for _, entry in some]
        return PutNames(id, self._transfer, [bytes(path) for path, _ in some], entries, replace)

    def _attributes_of(self, id: int, some: Sequence[_Item]) -> Message:
        entries = [Entry(b"", "d", 0, entry.mtime_ns, entry.mode) for _, entry in some]
        return PutAttributes(id, self._transfer, [bytes(path) for path, _ in some], entries)

    def _ask(
        self, items: Sequence[_Item], make: Callable[[int, Sequence[_Item]], Message]
    ) -> Iterator[tuple[Sequence[_Item], PutDone, dict[int, HeadraceError]]]:
        """Some items at a time, as many as fit into a request: the answer, and which failed. Raises what ends the
        transfer."""
        for some in _requests(items):
            answer = self._outage.bear(lambda some=some: self._session.ask(lambda id: make(id, some)))  # type: ignore[misc]
            failed = failures(answer, len(some))
            for error in failed.values():
                if not isinstance(error, FILE_ERRORS):
                    raise error
            if not isinstance(answer, PutDone):
                raise ProtocolError("the host answered something that it was not asked")
            yield some, answer, failed

    # ---- the end ---------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """After everything was sent: makes the links, then sets permissions and times."""
        self._make_links()
        last = [*self._chmods, *reversed(self._directories)]
        for some, _, failed in self._ask(last, self._attributes_of):
            for number, error in failed.items():
                if not isinstance(error, NotFoundError):  # removed by somebody meanwhile: nothing to set
                    self._told.failed_path(some[number][0], error)

    def _make_links(self) -> None:
        if self._options.links is Links.SKIP:
            return
        wanted: list[_Item] = []
        for source, (dest, entry) in self._links:
            if link_stays_inside(source, entry.target):
                wanted.append((dest, entry))
                continue
            shown = entry.target.decode("utf-8", "backslashreplace")
            why = f"the symlink {dest} points outside ({shown!r}) and was left out"
            self._told.failed_path(dest, LinkLeavesError(why, hint="--links skip leaves all links out."))
        replace = self._options.on_exist is OnExist.OVERWRITE
        for some, _, failed in self._ask(wanted, lambda id, some: self._names_of(id, some, replace=replace)):
            for number, (path, _) in enumerate(some):
                error = failed.get(number)
                if error is None:
                    self._told.linked(path)
                elif isinstance(error, DestinationExistsError) and self._options.on_exist is OnExist.FAIL:
                    raise error
                else:
                    self._told.failed_path(path, error)


def _requests(items: Iterable[_Item]) -> Iterator[Sequence[_Item]]:
    """As many as fit into one request each."""
    some: list[_Item] = []
    room = _ROOM
    for item in items:
        cost = len(bytes(item[0])) + len(item[1].target) + 96
        if some and (len(some) == MAX_PUT_ITEMS or cost > room):
            yield some
            some, room = [], _ROOM
        some.append(item)
        room -= cost
    if some:
        yield some
