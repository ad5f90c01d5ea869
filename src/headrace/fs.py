"""A share as an fsspec file system: `fsspec.open("headrace://CODE@HOST:PORT/path")`.

Byte ranges are fetched as they are asked for, several at once and each checked against its hash, so a reader
of Parquet columns moves little more than those columns. Where the share may be written to, files can be put into it:
`open` with "wb" or "xb", `put`, `pipe`. Needs `pip install headrace[fsspec]`.
"""

from __future__ import annotations

import errno
import functools
import io
import os
import stat as modes
import time
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Final

from fsspec.spec import AbstractFileSystem

from headrace.client.blocks import BlockFile, BlockReader
from headrace.client.link import Link
from headrace.client.session import Session
from headrace.client.target import SCHEME, Target, parse_code
from headrace.engine.exchange import EXCHANGES
from headrace.engine.lane import Lane
from headrace.fs_errors import as_os_errors
from headrace.protocol.messages import CHUNK_SIZE, MIB, READ_SIZE, Entry
from headrace.protocol.paths import BadPathError, RelPath
from headrace.protocol.session import PUT, Versions

TIMEOUT: Final = 60.0  # seconds that one call may wait for the host
RAM: Final = 64 * MIB  # of blocks that open files keep
AT_ONCE: Final = 8  # ranges fetched at the same time

_TYPES: Final = {"f": "file", "d": "directory", "l": "link", "o": "other"}
_TYPE_BITS: Final = {"f": modes.S_IFREG, "d": modes.S_IFDIR, "l": modes.S_IFLNK, "o": modes.S_IFSOCK}

Info = dict[str, Any]


class HeadraceFileSystem(AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """Paths are those in the share, without a leading `/`. Thread-safe.

    Errors are those of the operating system's family, as fsspec's users expect them: FileNotFoundError,
    PermissionError (also where the share is read-only), FileExistsError, TimeoutError (the host is away), OSError with
    ESTALE (the file changed while it was open).
    """

    protocol: ClassVar[str] = "headrace"
    root_marker: ClassVar[str] = ""

    def __init__(
        self,
        target: str = "",
        *,
        code: str | None = None,
        home: str | os.PathLike[str] | None = None,
        phase: int | None = None,
        timeout: float = TIMEOUT,
        ram: int = RAM,
        **options: Any,
    ) -> None:
        """target: CODE@HOST:PORT, HOST:PORT or, on the LAN, CODE. code: where the target has none; else it comes from
        HEADRACE_CODE. home: where pins and credentials are kept. phase: 7 or 8 forces that protocol. timeout: seconds
        that one call may wait for the host. ram: bytes of blocks kept for open files. options: fsspec's own.

        Nothing is connected before the first use. Raises ValueError for a target that cannot be one.
        """
        super().__init__(target=target, code=code, home=home, phase=phase, timeout=timeout, ram=ram, **options)
        with as_os_errors(target):
            parsed = Target.parse(target)
            secret = code or os.environ.get("HEADRACE_CODE")
            if parsed.code is None and secret:
                parsed = Target(parsed.host, parsed.port, parsed.path, parse_code(secret))
        self._base = parsed.path
        self._address = parsed.address if parsed.host else parsed.code.share if parsed.code else ""
        self._timeout = timeout
        versions = Versions() if phase is None else Versions(phase, phase)
        where = None if home is None else Path(home)
        self._connect = functools.partial(Session.connect, parsed, home=where, versions=versions)
        self._link = Link(self._connect)
        self._reader = BlockReader(self._link, ram=ram)
        self._end = weakref.finalize(self, _close, self._reader, self._link)

    def close(self) -> None:
        """Ends the connections. Files that are open fail from then on. Who asks fsspec again gets a new one."""
        type(self)._cache.pop(self._fs_token, None)
        self._end()

    # ---- names -------------------------------------------------------------------------------------------------------

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        """The path in the share, of a URL or of such a path."""
        if isinstance(path, list):
            return [cls._strip_protocol(one) for one in path]
        text = os.fspath(path)
        if text[: len(SCHEME)].lower() == SCHEME:
            text = text[len(SCHEME) :].partition("/")[2]
        return text.strip("/")

    @staticmethod
    def _get_kwargs_from_urls(url: str) -> dict[str, Any]:
        if url[: len(SCHEME)].lower() != SCHEME:
            return {}
        return {"target": url[len(SCHEME) :].partition("/")[0]}

    def unstrip_protocol(self, name: str) -> str:
        """A URL without the code, which is a secret."""
        return f"{SCHEME}{self._address}/{self._strip_protocol(name)}"

    def _path(self, text: str) -> RelPath:
        try:
            return self._base.join(RelPath.from_user(os.fsencode(self._strip_protocol(text))))
        except BadPathError as why:
            raise ValueError(f"{text!r} cannot be a path in a share: {why}") from why

    def _text(self, path: RelPath) -> str:
        return os.fsdecode(bytes(path.relative_to(self._base)))

    # ---- listing -----------------------------------------------------------------------------------------------------

    def info(self, path: str, **options: Any) -> Info:
        where = self._path(path)
        entry = self._stat(where)
        if entry.kind == "l":  # fsspec's users think of what a link points to; a share tells only where that is
            return self._info(where, entry) | {"islink": True}
        return self._info(where, entry)

    def ls(self, path: str, detail: bool = True, **options: Any) -> list[Any]:
        where = self._path(path)
        entry = self._stat(where)
        found = [(where, entry)]
        if entry.kind == "d":

            def ask(session: Session, lane: Lane) -> list[tuple[RelPath, Entry]]:
                return [(where / one.name, one) for part in session.list(where, lane) for one in part]

            found = self._ask(ask, path)
        infos = [self._info(child, one) for child, one in found]
        infos.sort(key=lambda info: str(info["name"]))
        return infos if detail else [info["name"] for info in infos]

    def find(
        self, path: str, maxdepth: int | None = None, withdirs: bool = False, detail: bool = False, **options: Any
    ) -> Any:
        """As fsspec has it. The whole tree comes in one exchange."""
        where = self._path(path)
        entry = self._stat(where)
        if entry.kind != "d" or maxdepth is not None:
            return super().find(path, maxdepth=maxdepth, withdirs=withdirs, detail=detail, **options)

        def ask(session: Session, lane: Lane) -> list[tuple[RelPath, Entry]]:
            found = []
            for directory, entries, error in session.walk(where, lane):
                if error:
                    raise error
                found += [(directory / one.name, one) for one in entries]
            return found

        infos = {}
        if withdirs and path:
            infos[self._text(where)] = self._info(where, entry)
        for child, one in self._ask(ask, path):
            if withdirs or one.kind != "d":
                infos[self._text(child)] = self._info(child, one)
        names = sorted(infos)
        return {name: infos[name] for name in names} if detail else names

    def modified(self, path: str) -> datetime:
        return datetime.fromtimestamp(self.info(path)["mtime"], tz=UTC)

    def _info(self, path: RelPath, entry: Entry) -> Info:
        info: Info = {
            "name": self._text(path),
            "size": entry.size if entry.kind == "f" else 0,
            "type": _TYPES[entry.kind],
            "mtime": entry.mtime_ns / 1e9,
            "mtime_ns": entry.mtime_ns,
            "mode": _TYPE_BITS[entry.kind] | entry.mode,
        }
        if entry.kind == "l":
            info["destination"] = os.fsdecode(entry.target)
        if entry.kind == "f":
            info["version"] = entry.version.hex()
        return info

    def ukey(self, path: str) -> str:
        """Another one for every version of the file."""
        return str(self.info(path).get("version") or super().ukey(path))

    # ---- bytes -------------------------------------------------------------------------------------------------------

    def _open(self, path: str, mode: str = "rb", **options: Any) -> io.RawIOBase:
        where = self._path(path)
        if mode in ("wb", "xb"):
            if not self._ask(lambda session, lane: PUT in session.agreed.features, path):
                raise OSError(errno.EROFS, "this share is read-only", path)
            from headrace.fs_write import Upload  # most programs only read

            return Upload(self._connect, where, path, new=mode == "xb", patience=self._timeout)
        if mode != "rb":
            raise OSError(errno.ENOTSUP, f"a share takes whole files, so there is no mode {mode}", path)
        return HeadraceFile(self, path, self._reader.open(where, self._file(where, path)))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        where = self._path(path)
        return self._range(where, self._file(where, path), start, end, path)

    def cat_ranges(
        self,
        paths: Sequence[str],
        starts: Any,
        ends: Any,
        max_gap: int | None = None,
        on_error: str = "return",
        **options: Any,
    ) -> list[Any]:
        """As fsspec has it; the ranges are fetched at the same time, each exactly as it is."""
        if max_gap is not None:
            raise NotImplementedError
        count = len(paths)
        starts = starts if isinstance(starts, list) else [starts] * count
        ends = ends if isinstance(ends, list) else [ends] * count
        if len(starts) != count or len(ends) != count:
            raise ValueError("as many starts and ends as paths")

        entries: dict[str, Entry | Exception] = {}
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="headrace-fs") as threads:

            def look(path: str) -> Entry | Exception:
                try:
                    return self._file(self._path(path), path)
                except (OSError, ValueError) as why:
                    return why

            def fetch(path: str, start: int | None, end: int | None) -> bytes | Exception:
                entry = entries[path]
                if isinstance(entry, Exception):
                    return entry
                try:
                    return self._range(self._path(path), entry, start, end, path)
                except OSError as why:
                    return why

            different = list(dict.fromkeys(paths))
            entries.update(zip(different, threads.map(look, different), strict=True))
            found = list(threads.map(fetch, paths, starts, ends))
        if on_error == "raise":
            for one in found:
                if isinstance(one, Exception):
                    raise one
        return found

    def _range(self, where: RelPath, entry: Entry, start: int | None, end: int | None, path: str) -> bytes:
        """Exactly these bytes; negative positions count from the end, as fsspec has it."""
        first, last, _ = slice(start, end).indices(entry.size)
        return self.range_of(where, entry.version, first, max(0, last - first), path)

    def range_of(self, where: RelPath, version: bytes, first: int, length: int, path: str) -> bytes:
        """These bytes of that version of a file; they must lie inside it."""

        def ask(session: Session, lane: Lane) -> bytes:
            exchange = EXCHANGES[session.agreed.version]
            buffer = memoryview(bytearray(length))
            for offset in range(0, length, CHUNK_SIZE):
                part = buffer[offset : offset + CHUNK_SIZE]
                exchange.request(lane, where, version, first + offset, len(part))
                _, zero = exchange.receive(lane, len(part), part, None)
                if zero:
                    part[:] = bytes(len(part))
            return bytes(buffer)

        return self._ask(ask, path, bulk=length > READ_SIZE) if length else b""

    def _file(self, where: RelPath, path: str) -> Entry:
        entry = self._stat(where)
        if entry.kind == "d":
            raise IsADirectoryError(errno.EISDIR, "is a folder", path)
        if entry.kind != "f":
            raise OSError(errno.EINVAL, "neither a file nor a folder", path)
        return entry

    def _stat(self, where: RelPath) -> Entry:
        entry: Entry = self._ask(lambda session, lane: session.stat(where, lane), self._text(where))
        return entry

    def _ask(self, do: Any, path: str, *, bulk: bool = False) -> Any:
        with as_os_errors(path):
            if not self._link.up:
                self._link.connect(self.deadline())
            return self._link.run(do, self.deadline(), bulk=bulk)

    def deadline(self) -> float:
        """Until when a call that begins now may take; see Link."""
        return time.monotonic() + self._timeout


class HeadraceFile(io.RawIOBase):
    """An open file, in the version that it had then. One thread at a time."""

    def __init__(self, fs: HeadraceFileSystem, path: str, file: BlockFile) -> None:
        self.fs = fs
        self.path = path
        self.mode = "rb"
        self.size = file.size
        self._file = file
        self._position = 0
        self._after = 0  # where the last read ended

    @property
    def name(self) -> str:
        return self.path

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._check_open()
        bases = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}
        if whence not in bases:
            raise ValueError(f"a whence of {whence}")
        if bases[whence] + offset < 0:
            raise ValueError("a position before the start of the file")
        self._position = bases[whence] + offset
        return self._position

    def tell(self) -> int:
        self._check_open()
        return self._position

    def readinto(self, into: Any) -> int:
        target = memoryview(into).cast("B")
        found = self._read(len(target))
        target[: len(found)] = found
        return len(found)

    def read(self, size: int | None = -1) -> bytes:
        return bytes(self._read(self.size if size is None or size < 0 else size))

    def readall(self) -> bytes:
        return self.read()

    def _read(self, size: int) -> bytes | memoryview:
        """A large piece from elsewhere is a column, and comes as it is. What follows on it may be read ahead."""
        self._check_open()
        start, size = self._position, max(0, min(size, self.size - self._position))
        found: bytes | memoryview
        if size > READ_SIZE and start != self._after:
            found = self.fs.range_of(self._file.path, self._file.version, start, size, self.path)
        else:
            with as_os_errors(self.path):
                found = self._file.read(start, size, self.fs.deadline())
        self._position = self._after = start + len(found)
        return found

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("the file is closed")


def _close(reader: BlockReader, link: Link) -> None:
    reader.close()
    link.close()
