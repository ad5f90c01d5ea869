"""The Python API of a remote share: `headrace.connect(target)`."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self

from headrace.client.file import RemoteFile
from headrace.client.get import GetOptions, GetResult, Transfer
from headrace.client.session import Session
from headrace.client.target import Target, parse_code
from headrace.engine.exchange import EXCHANGES
from headrace.engine.lane import Lane
from headrace.errors import NotFoundError, SourceChangedError, UsageError
from headrace.protocol.messages import MIB, Entry
from headrace.protocol.paths import ROOT, BadPathError, RelPath
from headrace.protocol.session import Versions

KINDS: Final[dict[str, Literal["file", "dir", "link", "other"]]] = {
    "f": "file",
    "d": "dir",
    "l": "link",
    "o": "other",
}
RANGE_PIECE: Final = MIB  # bytes asked for at once by read_range
RANGE_WINDOW: Final = 8  # pieces in flight


@dataclass(frozen=True, slots=True)
class FileInfo:
    """One entry of a share. path and name as text (surrogateescape where they are not UTF-8, as in `os`).

    size: bytes. mtime_ns: nanoseconds since 1970, UTC. mode: permission bits. target: of a link, else empty.
    """

    path: str
    name: str
    kind: Literal["file", "dir", "link", "other"]
    size: int
    mtime_ns: int
    mode: int
    target: str


def info_of(path: RelPath, entry: Entry) -> FileInfo:
    """The public form of an entry."""
    return FileInfo(
        path=os.fsdecode(bytes(path)),
        name=os.fsdecode(path.name or entry.name),
        kind=KINDS[entry.kind],
        size=entry.size,
        mtime_ns=entry.mtime_ns,
        mode=entry.mode,
        target=os.fsdecode(entry.target),
    )


class RemoteShare:
    """A connected share. Thread-safe; close it, or use it as a context manager.

    Paths are text, relative to the share, `/` between names; a leading `/` is forgiven. Every method may raise
    ConnectionLostError (the host went away), NotFoundError (no such path) and PermissionRefusedError.
    """

    def __init__(self, session: Session, base: RelPath = ROOT) -> None:
        self._session = session
        self._base = base

    @property
    def name(self) -> str:
        """The share's name, as its owner or its folder has it."""
        return self._session.agreed.name

    @property
    def protocol(self) -> int:
        """The protocol phase in use, 7 or 8."""
        return self._session.agreed.version

    def ls(self, path: str | os.PathLike[str] = "") -> list[FileInfo]:
        """The entries of a directory, sorted by name. Of a file: that file alone."""
        where = self._path(path)
        entry = self._session.stat(where)
        if entry.kind != "d":
            return [info_of(where, entry)]
        entries = [info_of(where / child.name, child) for part in self._session.list(where) for child in part]
        return sorted(entries, key=lambda found: found.name)

    def walk(self, path: str | os.PathLike[str] = "") -> Iterator[FileInfo]:
        """Every entry below a directory, parents before children, as they arrive. Other questions may be asked while
        it goes on: it has a stream of its own."""
        lane = self._session.open_lane()
        try:
            for directory, entries, error in self._session.walk(self._path(path), lane):
                if error:
                    raise error
                for entry in entries:
                    yield info_of(directory / entry.name, entry)
        finally:
            self._session.release(lane)

    def stat(self, path: str | os.PathLike[str] = "") -> FileInfo:
        """What is at `path`; a symlink is not followed."""
        where = self._path(path)
        return info_of(where, self._session.stat(where))

    def open(self, path: str | os.PathLike[str] = "") -> RemoteFile:
        """A file for reading, binary and seekable. It stays at the version it has now: SourceChangedError later."""
        where = self._path(path)
        entry = self._session.stat(where)
        if entry.kind != "f":
            raise NotFoundError(f"{where} is not a file", hint="Only files can be opened.")
        return RemoteFile(self._session, where, entry)

    def get(
        self, path: str | os.PathLike[str] = "", dest: str | os.PathLike[str] | None = None, **options: Any
    ) -> GetResult:
        """Fetches a file or a tree, as `headrace get` does. options: the fields of GetOptions.

        A folder's contents go into `dest`, which is made if missing. Files that fail are counted in the result, whose
        `error` then says why; what ends the whole transfer is raised.
        """
        chosen = GetOptions(**options)
        return Transfer(self._session, self._path(path), dest, chosen).run()

    def put(
        self,
        source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        dest: str | os.PathLike[str] = "",
        **options: Any,
    ) -> GetResult:
        """Sends a file, a tree or several of them, as `headrace put` does, into a share that may be written to.

        A folder's contents go to `dest`; a file becomes `dest`, or goes into it where it is a folder or ends with a
        slash. options: the fields of GetOptions. Files that fail are counted in the result, whose `error` then says
        why; what ends the whole transfer is raised: RefusedError where the share is read-only.
        """
        from headrace.client.put import Put  # most programs only read

        sources = [source] if isinstance(source, str | os.PathLike) else list(source)
        into = os.fsdecode(dest).endswith("/")
        return Put(self._session, sources, self._path(dest), GetOptions(**options), into=into).run()

    def close(self) -> None:
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, why: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _path(self, path: str | os.PathLike[str]) -> RelPath:
        try:
            return self._base.join(RelPath.from_user(os.fsencode(path)))
        except BadPathError as why:
            raise UsageError(f"{os.fspath(path)!r} cannot be a path in a share: {why}") from why


def connect(
    target: str,
    *,
    code: str | None = None,
    protocol: int | None = None,
    home: str | os.PathLike[str] | None = None,
) -> RemoteShare:
    """Connects to a share.

    target: CODE@HOST:PORT[/path], or HOST:PORT[/path] with `code` beside it. protocol: 7 or 8 forces that phase.
    home: where pins, credentials and the chunk index are kept; default as in `headrace.config.home`. Paths asked for
    later are relative to the target's path. Raises UsageError, UnreachableError, WrongCodeError and the other
    RefusedErrors, NoCommonVersionError.
    """
    parsed = Target.parse(target)
    if code is not None:
        parsed = Target(parsed.host, parsed.port, parsed.path, parse_code(code))
    versions = Versions() if protocol is None else Versions(protocol, protocol)
    where = None if home is None else Path(home)
    return RemoteShare(Session.connect(parsed, home=where, versions=versions), parsed.path)


def read_range(session: Session, path: RelPath, offset: int, length: int | None) -> Iterator[memoryview]:
    """The bytes of a file from `offset` (`length` of them, None: to its end), in order, several requests in flight.

    A yielded view is valid until the next one is asked for. Raises NotFoundError, SourceChangedError, IntegrityError.
    """
    entry = session.stat(path)
    if entry.kind != "f":
        raise NotFoundError(f"{path or 'the share'} is not a file", hint="Only files have bytes to read.")
    end = entry.size if length is None else min(entry.size, offset + length)
    exchange = EXCHANGES[session.agreed.version]
    buffer = memoryview(bytearray(RANGE_PIECE))
    flying: deque[int] = deque()
    with session.use() as lane:
        try:
            while offset < end or flying:
                while offset < end and len(flying) < RANGE_WINDOW:
                    size = min(RANGE_PIECE, end - offset)
                    exchange.request(lane, path, entry.version, offset, size)
                    flying.append(size)
                    offset += size
                size = flying.popleft()
                _, zero = exchange.receive(lane, size, buffer, None)
                yield memoryview(bytes(size)) if zero else buffer[:size]
        except (GeneratorExit, SourceChangedError, NotFoundError):
            # The answers to what was asked already still come; the lane is of use again once they are read.
            for size in flying:
                _discard(session, lane, size, buffer)
            raise


def _discard(session: Session, lane: Lane, size: int, buffer: memoryview) -> None:
    try:
        EXCHANGES[session.agreed.version].receive(lane, size, buffer, None)
    except (SourceChangedError, NotFoundError):
        return
