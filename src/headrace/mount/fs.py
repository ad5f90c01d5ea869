"""The share as a file system: what each of the kernel's requests comes to.

Attributes and listings come from `Names`, bytes from `Files`, both of which cache and neither of which waits beyond the
deadline it is given. Read-only; the kernel itself refuses to write and checks permissions by the modes.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import stat
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, Protocol

from headrace.errors import (
    HeadraceError,
    HostAwayError,
    NotFoundError,
    RefusedError,
    SourceChangedError,
    UnreachableError,
)
from headrace.mount import wire
from headrace.mount.nodes import Node, Nodes, identity, ino_of
from headrace.mount.server import Handler, Piece, Request
from headrace.mount.wire import Op
from headrace.observe import tracing
from headrace.observe.metrics import RANDOM_READ
from headrace.protocol.messages import Entry
from headrace.protocol.paths import BadPathError, RelPath

log = logging.getLogger("headrace.mount")

TIMEOUT: Final = 30.0  # seconds that one call may take
# How long the kernel may believe what it was told, in seconds. Asking us costs it some 0.03 ms; our own caches decide
# when the host is asked. While the host tells of changes they are passed on, and the time is only the last resort.
BRIEF: Final = 1
LONG: Final = 10
AGAIN: Final = 0.5  # seconds after a read that took too long, in which one of the same handle does not wait
BLOCK: Final = 4096  # bytes; st_blksize and f_bsize
_TYPES: Final = {"f": stat.S_IFREG, "d": stat.S_IFDIR, "l": stat.S_IFLNK, "o": stat.S_IFSOCK}
_LINK_MODE: Final = 0o777
_PADDING: Final = [bytes(-length % 8) for length in range(8)]  # behind a name, to the next multiple of 8
_DOTS: Final = 2  # `.` and `..` come first in a directory

# What a program is told of what went wrong. The first class that fits counts.
ERRNO: Final[Sequence[tuple[type[Exception], int]]] = (
    (NotFoundError, errno.ENOENT),
    (RefusedError, errno.EACCES),
    (SourceChangedError, errno.ESTALE),
    (HostAwayError, errno.EIO),
    (UnreachableError, errno.EIO),
    (HeadraceError, errno.EIO),
    (BadPathError, errno.ENAMETOOLONG),
    (MemoryError, errno.ENOMEM),
)


class Space(Protocol):
    """What statfs(2) says of the host's file system. Bytes; -1 or 0 where it is not known."""

    @property
    def total(self) -> int: ...
    @property
    def free(self) -> int: ...
    @property
    def available(self) -> int: ...
    @property
    def files(self) -> int: ...
    @property
    def files_free(self) -> int: ...


class Names(Protocol):
    """Entries of the share, cached. Paths are below what is mounted. See client.attributes.Attributes."""

    def stat(self, path: RelPath, deadline: float) -> Entry: ...
    def find(self, folder: RelPath, name: bytes, deadline: float) -> Entry | None: ...
    def list(self, path: RelPath, deadline: float) -> Sequence[Entry]: ...
    def statfs(self, deadline: float) -> Space | None: ...
    def doubt(self, path: RelPath) -> None: ...
    @property
    def watching(self) -> bool: ...


class OpenFile(Protocol):
    """See client.blocks.BlockFile."""

    def read(self, offset: int, length: int, deadline: float) -> bytes | memoryview: ...
    def close(self) -> None: ...


class FileSystem:
    """Implements server.Operations. Called from many threads.

    open_file: path below what is mounted, and the entry of the version to open. direct: the kernel caches no pages, so
    that every read comes here.
    """

    def __init__(
        self,
        names: Names,
        open_file: Callable[[RelPath, Entry], OpenFile],
        root: Entry,
        *,
        timeout: float = TIMEOUT,
        direct: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._names = names
        self._open_file = open_file
        self._timeout = timeout
        self._clock = clock
        self._file_flags = wire.FOPEN_NOFLUSH | (wire.FOPEN_DIRECT_IO if direct else wire.FOPEN_KEEP_CACHE)
        self.nodes: Final = Nodes(root)
        self._handles: dict[int, _File | _Directory] = {}
        self._numbers = itertools.count(1)
        self._owner = os.getuid(), os.getgid()
        self.errors: Counter[str] = Counter()  # by the error's word
        self._counting = threading.Lock()
        self.bytes_read = 0  # given to the kernel; approximate: threads count without a lock

    def handlers(self) -> Mapping[int, Handler]:
        return {
            Op.LOOKUP: self._lookup,
            Op.FORGET: self._forget,
            Op.BATCH_FORGET: self._forget_many,
            Op.GETATTR: self._getattr,
            Op.READLINK: self._readlink,
            Op.OPEN: self._open,
            Op.READ: self._read,
            Op.RELEASE: self._release,
            Op.OPENDIR: self._opendir,
            Op.READDIR: self._readdir,
            Op.READDIRPLUS: self._readdirplus,
            Op.RELEASEDIR: self._release,
            Op.STATFS: self._statfs,
            Op.DESTROY: lambda _: b"",
        }

    def unexpected(self, why: Exception) -> int:
        word = why.code if isinstance(why, HeadraceError) else type(why).__name__
        with self._counting:
            self.errors[word] += 1
            first = self.errors[word] == 1
        for kind, number in ERRNO:
            if isinstance(why, kind):
                if first and number == errno.EIO:
                    log.warning("a call in the mounted folder fails: %s (further ones are only counted)", why)
                return number
        if first:
            log.error("a call in the mounted folder failed unexpectedly (further ones are only counted)", exc_info=why)
        return errno.EIO

    @property
    def handles(self) -> int:
        """Files and directories that are open."""
        return len(self._handles)

    def outdated(self, path: RelPath | None) -> tuple[list[tuple[int, bytes]], list[int]]:
        """What the kernel has to forget, for Server.forget, when `path` is not what it was; None: nothing is."""
        if path is None:
            nodes = self.nodes.everything()
            names = [(node.parent.number, node.name) for node in nodes if node.parent]
            folders = [node for node in nodes if node.entry.kind == "d"]
        else:
            parent, node = self.nodes.at(path.parent), self.nodes.at(path)
            names = [(parent.number, path.name)] if parent and path else []  # one that is not there may be known, too
            folders = [node] if node and node.entry.kind == "d" else []
        for folder in folders:
            folder.listed = None
        return names, [folder.number for folder in folders]

    # ---- names -----------------------------------------------------------------------------------------------------

    def _lookup(self, request: Request) -> Piece:
        parent = self._node(request.node)
        name = bytes(request.body).rstrip(b"\0")
        try:
            entry = self._names.find(parent.path, name, self._deadline())
        except NotFoundError:  # the directory itself is gone
            entry = None
        if entry is None:
            return wire.ENTRY_HEAD.pack(0, 0, self._valid(), 0, 0, 0) + bytes(wire.ATTR.size)
        entry = _named(entry, name)
        node = self.nodes.tell(parent, entry)
        valid = self._valid()
        return wire.ENTRY_HEAD.pack(node.number, 0, valid, valid, 0, 0) + wire.ATTR.pack(*self._attr(node.ino, entry))

    def _forget(self, request: Request) -> Piece:
        (times,) = wire.FORGET_IN.unpack_from(request.body)
        self.nodes.forget(request.node, times)
        return b""

    def _forget_many(self, request: Request) -> Piece:
        count, _ = wire.BATCH_FORGET_IN.unpack_from(request.body)
        start = wire.BATCH_FORGET_IN.size
        for node, times in wire.FORGET_ONE.iter_unpack(request.body[start : start + count * wire.FORGET_ONE.size]):
            self.nodes.forget(node, times)
        return b""

    def _getattr(self, request: Request) -> Piece:
        node = self._node(request.node)
        if not (node.opened and node.entry.kind == "f"):  # what is open stays at its version
            node.entry = self._now(node)
        return wire.ATTR_HEAD.pack(self._valid(), 0, 0) + wire.ATTR.pack(*self._attr(node.ino, node.entry))

    def _now(self, node: Node) -> Entry:
        """The entry that has the node's path now. ESTALE, upon which the kernel looks the name up anew, where that is
        another version."""
        try:
            entry = self._names.stat(node.path, self._deadline())
        except NotFoundError as why:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE)) from why
        if identity(entry) != identity(node.entry):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return _named(entry, node.name)

    def _readlink(self, request: Request) -> Piece:
        return self._node(request.node).entry.target

    # ---- files -----------------------------------------------------------------------------------------------------

    def _open(self, request: Request) -> Piece:
        node = self._node(request.node)
        entry = self._now(node)
        if entry.kind != "f":
            raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
        return self._opened(_File(node, self._open_file(node.path, entry)), self._file_flags)

    def _opened(self, handle: _File | _Directory, flags: int) -> bytes:
        number = next(self._numbers)
        with self._counting:
            handle.node.opened += 1
        self._handles[number] = handle
        return wire.OPEN_OUT.pack(number, flags, 0)

    def _read(self, request: Request) -> Piece:
        number, offset, size = wire.READ_IN.unpack_from(request.body)
        handle = self._handles.get(number)
        if not isinstance(handle, _File):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        now = self._clock()
        # The kernel reads a page again that could not be read ahead. Its program has waited for that long enough.
        deadline = now if now - handle.gave_up < AGAIN else now + self._timeout
        try:
            if RANDOM_READ.wanted or tracing.on():
                with tracing.sampled("mount read"), RANDOM_READ.timing():
                    data = handle.file.read(offset, size, deadline)
            else:
                data = handle.file.read(offset, size, deadline)
        except HostAwayError:
            handle.gave_up = self._clock()
            raise
        except SourceChangedError:
            self._names.doubt(handle.node.path)  # who opens it now is to get the new version
            raise
        self.bytes_read += len(data)
        return data

    def _release(self, request: Request) -> Piece:
        (number,) = wire.RELEASE_IN.unpack_from(request.body)
        handle = self._handles.pop(number, None)
        if handle:
            with self._counting:
                handle.node.opened -= 1
            if isinstance(handle, _File):
                handle.file.close()
        return b""

    # ---- directories -----------------------------------------------------------------------------------------------

    def _opendir(self, request: Request) -> Piece:
        """The listing is taken now, and stays as it is for this handle."""
        node = self._node(request.node)
        entries = self._names.list(node.path, self._deadline())
        return self._opened(_Directory(node, entries), self._directory_flags(node, entries))

    def _directory_flags(self, node: Node, entries: Sequence[Entry]) -> int:
        """What the kernel may do with its own copy of this listing."""
        now = self._clock()
        if node.listed is entries and now < node.listed_until:
            return wire.FOPEN_CACHE_DIR | wire.FOPEN_KEEP_CACHE
        if node.listed is not entries and node.opened:
            return 0  # somebody still reads the listing before this one into the copy, and the two must not mix
        # The copy has no attributes. When those that came with it are too old, reading the directory again brings them
        # all at once, and else the kernel would ask for them one by one.
        node.listed, node.listed_until = entries, now + self._valid()
        return wire.FOPEN_CACHE_DIR

    def _readdir(self, request: Request) -> Piece:
        handle, offset, size = self._directory(request)
        answer, pack = bytearray(), wire.DIRENT.pack
        room = size - wire.DIRENT.size
        for position, name, ino, kind in handle.names(offset):
            length = len(name)
            if len(answer) + length > room - 7:
                break
            answer += pack(ino, position, length, kind >> 12)
            answer += name + _PADDING[length & 7]
        return answer

    def _readdirplus(self, request: Request) -> Piece:
        """With the attributes of every entry, so that nobody has to ask for them one by one."""
        handle, offset, size = self._directory(request)
        answer, pack = bytearray(), wire.DIRENT_PLUS.pack
        room = size - wire.DIRENT_PLUS.size - 7
        directory, entries, valid = handle.node, handle.entries, self._valid()
        tell, attr = self.nodes.tell, self._attr
        if offset < _DOTS:
            for position, name, ino, kind in handle.dots()[offset:]:
                answer += pack(*[0] * 22, ino, position, len(name), kind >> 12) + name + _PADDING[len(name)]
            offset = _DOTS
        for position in range(offset - _DOTS, len(entries)):
            entry = entries[position]
            name = entry.name
            length = len(name)
            if len(answer) + length > room:
                break
            node = tell(directory, entry)
            ino = node.ino
            attributes = attr(ino, entry)
            answer += pack(
                *(node.number, 0, valid, valid, 0, 0, *attributes),
                *(ino, position + _DOTS + 1, length, attributes[9] >> 12),
            )
            answer += name + _PADDING[length & 7]
        return answer

    def _directory(self, request: Request) -> tuple[_Directory, int, int]:
        """(the open directory, where to begin, the most bytes to answer)."""
        number, offset, size = wire.READ_IN.unpack_from(request.body)
        handle = self._handles.get(number)
        if not isinstance(handle, _Directory):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return handle, offset, size

    # ---- the whole -------------------------------------------------------------------------------------------------

    def _statfs(self, request: Request) -> Piece:
        space = self._names.statfs(self._deadline())
        if space is None:  # a host that does not say
            return wire.STATFS_OUT.pack(0, 0, 0, 0, 0, BLOCK, 255, BLOCK)
        blocks = (max(0, number) // BLOCK for number in (space.total, space.free, space.available))
        return wire.STATFS_OUT.pack(*blocks, max(0, space.files), max(0, space.files_free), BLOCK, 255, BLOCK)

    def _node(self, number: int) -> Node:
        node = self.nodes.get(number)
        if node is None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return node

    def _deadline(self) -> float:
        return self._clock() + self._timeout

    def _valid(self) -> int:
        return LONG if self._names.watching else BRIEF

    def _attr(self, ino: int, entry: Entry) -> tuple[int, ...]:
        """The fields of wire.ATTR."""
        seconds, rest = divmod(entry.mtime_ns, 1_000_000_000)
        kind = entry.kind
        size = entry.size if kind == "f" else len(entry.target)
        mode = _TYPES[kind] | (_LINK_MODE if kind == "l" else entry.mode)
        # One link: how many there are is not told, and of a directory 1 says that its subdirectories are not counted.
        return (
            *(ino, size, (size + 511) >> 9, seconds, seconds, seconds, rest, rest, rest),
            *(mode, 1, *self._owner, 0, BLOCK, 0),
        )


class _File:
    """gave_up: when a read of it last was not answered in time."""

    __slots__ = ("file", "gave_up", "node")

    def __init__(self, node: Node, file: OpenFile) -> None:
        self.node = node
        self.file = file
        self.gave_up = float("-inf")


class _Directory:
    __slots__ = ("entries", "node")

    def __init__(self, node: Node, entries: Sequence[Entry]) -> None:
        self.node = node
        self.entries = entries

    def dots(self) -> list[tuple[int, bytes, int, int]]:
        """The first two of `names`."""
        node = self.node
        above = node.parent.ino if node.parent else node.ino
        return [(1, b".", node.ino, stat.S_IFDIR), (2, b"..", above, stat.S_IFDIR)]

    def names(self, offset: int) -> Iterator[tuple[int, bytes, int, int]]:
        """(the offset behind it, name, inode number, type) of what lies behind `offset`."""
        own, entries = self.node.ino, self.entries
        yield from self.dots()[offset:]
        for index in range(max(0, offset - _DOTS), len(entries)):
            entry = entries[index]
            yield index + _DOTS + 1, entry.name, ino_of(own, entry.name), _TYPES[entry.kind]


def _named(entry: Entry, name: bytes) -> Entry:
    """The entry under the name it was asked for: the root of a share has none, or another."""
    if entry.name == name:
        return entry
    return Entry(name, entry.kind, entry.size, entry.mtime_ns, entry.mode, entry.target, entry.version, entry.sparse)
