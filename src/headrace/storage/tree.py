"""What a share offers: its entries and files, reached by descriptor from the root, never by a path that is resolved.

Nothing here follows a symlink below the root, not even one that stays inside, and nothing compares canonical paths:
every component is opened in the directory before it with O_NOFOLLOW, so there is no moment to swap one.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Self

from headrace.errors import HeadraceError, NotFoundError, PermissionRefusedError, RemoteIOError, UsageError
from headrace.protocol.messages import KIB, MAX_ENTRIES, Entry
from headrace.protocol.paths import MAX_NAME, MAX_PATH, ROOT, BadPathError, RelPath, check_name
from headrace.storage.fileio import FileIO
from headrace.storage.inflight import is_inflight_name
from headrace.storage.oserrors import host_error, host_errors, label
from headrace.storage.posix import POSIX

SPARSE_FROM: Final = 64 * KIB  # bytes; below it a hole saves nothing

_DIR_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: a FIFO must not hang us. O_NOCTTY: nor a terminal become ours.
_FILE_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_VERSION: Final = struct.Struct("<qq")
_VERSION_ODD: Final = struct.Struct("<Qq")  # the same bytes, for a time that has to be cut
_U64: Final = (1 << 64) - 1
_ENCODING: Final = sys.getfilesystemencoding()
_ERRORS: Final = sys.getfilesystemencodeerrors()
_DOT: Final = ord(".")
_TYPE: Final = 0o170000  # stat.S_IFMT, and S_IFREG, without a look-up for each entry of a long listing
_REGULAR: Final = stat.S_IFREG
_TIMES: Final = (1 << 63) - 1

Entries = list[Entry]
_Descriptors = list[int]
_Names = list[bytes]  # spelt here, because in SharedTree `list` is a method
Part = tuple[RelPath, Entries, HeadraceError | None]
_Waiting = list[tuple[RelPath, _Names]]  # folders, and the names of those in them that are still to be visited


def version_of(st: os.stat_result) -> bytes:
    """The version token, VERSION_SIZE bytes: another one whenever device, inode, size, mtime or ctime differ.

    The ctime, which no program can set back, and 64 bits of the rest: Python's hash of a tuple of integers, which is
    the same in every process and nine times as fast as a digest. It is made for each file that is listed and read.
    """
    ctime, rest = st.st_ctime_ns, hash((st.st_dev, st.st_ino, st.st_size, st.st_mtime_ns))
    try:
        return _VERSION.pack(ctime, rest)
    except struct.error:  # a broken disk may say anything
        return _VERSION_ODD.pack(ctime & _U64, rest)


def is_sparse(st: os.stat_result) -> bool:
    """Whether the file occupies less disk than its size (compressed file systems may say so too)."""
    return st.st_size >= SPARSE_FROM and st.st_blocks * 512 < st.st_size


@dataclass(frozen=True, slots=True)
class _Anchor:
    """What the user gave. A folder: its descriptor. A file: its folder's, and the name in there, so that a file that
    is replaced (as editors do) is served as it is now."""

    fd: int
    leaf: bytes | None = None


@dataclass(frozen=True, slots=True)
class TreeHandles:
    """An open tree, for a process that has its descriptors under the same numbers."""

    name: bytes
    root: _Anchor | None
    members: dict[bytes, _Anchor]
    mtime_ns: int

    @property
    def descriptors(self) -> _Descriptors:
        """All of them."""
        return [anchor.fd for anchor in (self.root, *self.members.values()) if anchor]


class SharedTree:
    """A folder, a file, or several of them as one virtual folder. A context manager; thread-safe, close() included.

    Errors of all methods: NotFoundError, PermissionRefusedError, RemoteIOError.
    """

    def __init__(
        self, name: bytes, root: _Anchor | None, members: dict[bytes, _Anchor], mtime_ns: int, io: FileIO = POSIX
    ) -> None:
        self.io = io  # how those who open files here read them
        self.name = label(name)  # for people and for the wire's text fields
        self._root_name = name
        self._root = root
        self._members = members
        self._mtime_ns = mtime_ns
        self._closed = False
        self._lock = threading.Lock()  # nobody duplicates a descriptor while close() gives its number away

    @classmethod
    def open(cls, paths: Sequence[str | os.PathLike[str]], name: str | None = None, io: FileIO = POSIX) -> Self:
        """One folder is the share; one file is its root; several are a virtual folder that holds them by name.

        A given path may be a symlink; it is followed now, once. name: what the share is called, otherwise the name of
        the one path, or `share`. io: how files are read; it stays the caller's. Raises UsageError, NotFoundError,
        PermissionRefusedError.
        """
        if not paths:
            raise UsageError("there is nothing to share")
        root_name = _name_of(paths[0]) if len(paths) == 1 else b"share"
        if name is not None:
            try:
                root_name = check_name(os.fsencode(name))
            except BadPathError as why:
                raise UsageError(f"{label(name)} cannot be the name of a share: {why}") from why
        anchors: dict[bytes, _Anchor] = {}
        newest = 0
        try:
            for path in paths:
                own = _name_of(path)
                if own in anchors:
                    raise UsageError(f"two of the shared paths are called {label(own)}", hint="Share their parents.")
                anchors[own], st = _anchor(path)
                newest = max(newest, st.st_mtime_ns)
        except BaseException:
            for anchor in anchors.values():
                os.close(anchor.fd)
            raise
        if len(paths) == 1:
            return cls(root_name, anchors.popitem()[1], {}, newest, io)
        return cls(root_name, None, anchors, newest, io)

    def handles(self) -> TreeHandles:
        """What `inherited` takes, in another process. The descriptors stay this tree's."""
        return TreeHandles(self._root_name, self._root, self._members, self._mtime_ns)

    @classmethod
    def inherited(cls, handles: TreeHandles, io: FileIO = POSIX) -> Self:
        """The same tree, whatever its paths lead to by now. Takes the descriptors over."""
        return cls(handles.name, handles.root, handles.members, handles.mtime_ns, io)

    def close(self) -> None:
        """Ends the share. Files that are open already stay readable; further calls raise NotFoundError."""
        with self._lock:
            anchors = [] if self._closed else [*self._members.values(), *([self._root] if self._root else [])]
            self._closed = True
            for anchor in anchors:
                os.close(anchor.fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def stat(self, path: RelPath) -> Entry:
        """The entry at `path`, symlinks not followed. The root's entry is named after the share."""
        if not path and not self._root:
            return Entry(name=self._root_name, kind="d", mtime_ns=self._mtime_ns, mode=0o755)
        with host_errors(path):
            fd, leaf = self._above(path)
            try:
                st = os.stat(leaf, dir_fd=fd, follow_symlinks=False) if leaf else os.fstat(fd)
                return _entry(path.name or self._root_name, st, fd, leaf)
            finally:
                os.close(fd)

    def list(self, path: RelPath) -> Iterator[Entries]:
        """The entries of the folder at `path` in no particular order, at most MAX_ENTRIES at a time.

        Opened at the first step; a folder that is no longer needed half-way is closed with the iterator. Entries that
        the protocol cannot name (over MAX_NAME bytes) and files in flight are left out.
        """
        if not path and not self._root:
            yield from self._list_members()
            return
        with host_errors(path):
            fd = self._open_dir(path)
        try:
            yield from _scan(path, fd, [])
        finally:
            os.close(fd)

    def walk(self, path: RelPath) -> Iterator[Part]:
        """Everything below `path`: (folder, some of its entries, None), each folder before those below it.

        A folder that cannot be read (to its end) gives (folder, [], why) and the walk goes on; only when the first one
        cannot be opened that is raised. Empty folders give nothing. Holds the names of folders still to be visited
        and one open folder, however large the tree.
        """
        waiting: _Waiting = []
        yield from self._walk_one(path, waiting, first=True)
        while waiting:
            above, names = waiting[-1]
            if not names:
                waiting.pop()
                continue
            name = names.pop()
            try:
                below = above / name
            except BadPathError as why:
                yield above, [], RemoteIOError(f"{label(above)} is nested too deeply: {why}")
                continue
            if len(bytes(below)) > MAX_PATH:
                yield above, [], RemoteIOError(f"a path below {label(above)} is longer than {MAX_PATH} bytes")
                continue
            yield from self._walk_one(below, waiting, first=False)

    def open_file(self, path: RelPath) -> tuple[int, os.stat_result]:
        """A descriptor for reading, which the caller closes, and its fstat. Regular files only: NotFoundError."""
        with host_errors(path):
            above, leaf = self._above(path)
            if leaf is None:
                os.close(above)
                raise NotFoundError(f"{label(path)} is not a file")
            try:
                fd = os.open(leaf, _FILE_FLAGS, dir_fd=above)
            finally:
                os.close(above)
            try:
                st = os.fstat(fd)
                if not stat.S_ISREG(st.st_mode):
                    raise NotFoundError(f"{label(path)} is not a file")
            except BaseException:
                os.close(fd)
                raise
            return fd, st

    def open_folder(self, path: RelPath) -> int:
        """A descriptor of the folder `path`, which the caller closes. NotFoundError where it is no real one, such as
        the one that several shared paths make."""
        with host_errors(path):
            return self._open_dir(path)

    def statfs(self, path: RelPath) -> os.statvfs_result:
        """Of the file system that `path` is on. Where several paths are shared, the root is on that of the first."""
        if not path and not self._root and self._members:
            path = ROOT / next(iter(self._members))
        with host_errors(path):
            fd, _ = self._above(path)
            try:
                return os.fstatvfs(fd)
            finally:
                os.close(fd)

    def _walk_one(self, path: RelPath, waiting: _Waiting, *, first: bool) -> Iterator[Part]:
        """One folder's parts; the folders in it are put on `waiting`."""
        folders: _Names = []
        unnamed: _Names = []
        try:
            if not path and not self._root:
                parts = self._list_members()
                fd = -1
            else:
                with host_errors(path):
                    # From the root each time: a descriptor kept for every level would run into the limit on them.
                    fd = self._open_dir(path)
                parts = _scan(path, fd, unnamed)
        except HeadraceError as why:
            if first:
                raise
            yield path, [], why
            return
        try:
            while True:
                try:
                    entries = next(parts, None)
                except HeadraceError as why:
                    yield path, [], why
                    break
                if entries is None:
                    break
                folders += [entry.name for entry in entries if entry.kind == "d"]
                yield path, entries, None
        finally:
            if fd >= 0:
                os.close(fd)
        if unnamed:
            yield path, [], RemoteIOError(f"{len(unnamed)} names in {label(path)} are longer than {MAX_NAME} bytes")
        if folders:
            folders.reverse()  # taken from the end
            waiting.append((path, folders))

    def _list_members(self) -> Iterator[Entries]:
        found = []
        for name in self._members:
            try:
                found.append(self.stat(ROOT / name))
            except NotFoundError:
                continue  # it was deleted since
        for start in range(0, len(found), MAX_ENTRIES):
            yield found[start : start + MAX_ENTRIES]

    def _anchor_of(self, path: RelPath) -> tuple[int, bytes | None, tuple[bytes, ...]]:
        """(a descriptor that the caller closes, the shared file in it or None, what is left of the path)."""
        with self._lock:
            if self._closed:
                raise NotFoundError("the share has ended")
            anchor, rest = self._root, path.parts
            if anchor is None:
                if not rest:
                    raise NotFoundError(f"{label(path)} is not a file")
                anchor, rest = self._members.get(rest[0]), rest[1:]
            if anchor is None or (rest and anchor.leaf is not None) or any(map(is_inflight_name, rest)):
                raise NotFoundError(f"no such path in the share: {label(path)}")
            return os.dup(anchor.fd), anchor.leaf, rest

    def _above(self, path: RelPath) -> tuple[int, bytes | None]:
        """(the folder that holds `path`, the name in it), or (the shared folder itself, None). The caller closes."""
        fd, leaf, rest = self._anchor_of(path)
        if rest:
            return _descend(fd, rest[:-1]), rest[-1]
        return fd, leaf

    def _open_dir(self, path: RelPath) -> int:
        fd, leaf, rest = self._anchor_of(path)
        if leaf is not None:
            os.close(fd)
            raise NotFoundError(f"{label(path)} is not a folder")
        # A duplicate shares its position with the original, and so with everybody who lists: open the folder anew.
        return _descend(fd, rest or (b".",))


def _descend(fd: int, parts: Sequence[bytes]) -> int:
    """The folder reached from `fd` through `parts`, each one a real folder; takes `fd` over and closes it."""
    for part in parts:
        try:
            below = os.open(part, _DIR_FLAGS, dir_fd=fd)
        finally:
            os.close(fd)
        fd = below
    return fd


def _scan(path: RelPath, fd: int, unnamed: list[bytes]) -> Iterator[list[Entry]]:
    """The entries of the open folder `fd`; names that the protocol cannot say are added to `unnamed`."""
    batch: list[Entry] = []
    with host_errors(path), os.scandir(fd) as found:
        for item in found:
            name = item.name.encode(_ENCODING, _ERRORS)
            if len(name) > MAX_NAME:
                unnamed.append(name)
                continue
            if name[0] == _DOT and is_inflight_name(name):
                continue
            try:
                batch.append(_entry(name, item.stat(follow_symlinks=False), fd, name))
            except FileNotFoundError:
                continue  # deleted since it was listed
            if len(batch) == MAX_ENTRIES:
                yield batch
                batch = []
    if batch:
        yield batch


def _entry(name: bytes, st: os.stat_result, fd: int, leaf: bytes | None) -> Entry:
    """The entry for `st`. A symlink's target is read at `leaf` in the folder `fd`."""
    mode = st.st_mode
    permissions = mode & 0o7777
    mtime_ns = st.st_mtime_ns
    if not -_TIMES <= mtime_ns <= _TIMES:  # a broken disk may say anything
        mtime_ns = max(-_TIMES, min(_TIMES, mtime_ns))
    kind = mode & _TYPE
    if kind == _REGULAR:
        return Entry(name, "f", st.st_size, mtime_ns, permissions, b"", version_of(st), is_sparse(st))
    if kind == stat.S_IFDIR:
        return Entry(name, "d", 0, mtime_ns, permissions)
    if kind == stat.S_IFLNK and leaf is not None:
        try:
            return Entry(name, "l", 0, mtime_ns, permissions, os.readlink(leaf, dir_fd=fd))
        except OSError as why:
            if why.errno == errno.EINVAL:  # no link any more
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)) from why
            raise
    return Entry(name, "o", 0, mtime_ns, permissions)


def _name_of(path: str | os.PathLike[str]) -> bytes:
    """The name that a given path has in the share; `.` and `..` are looked up, `/` is `share`."""
    return os.path.basename(os.path.abspath(os.fsencode(path))) or b"share"


def _anchor(path: str | os.PathLike[str]) -> tuple[_Anchor, os.stat_result]:
    """Opens a path that the user gave, following symlinks. Errors name it as given: the user sees them, no peer."""
    try:
        st = os.stat(path)
        if stat.S_ISDIR(st.st_mode):
            return _Anchor(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)), st
        if not stat.S_ISREG(st.st_mode):
            raise UsageError(f"{label(path)} is neither a folder nor a file")
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))  # may we read it?
        folder, leaf = os.path.split(os.path.realpath(os.fsencode(path)))
        return _Anchor(os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), leaf), st
    except OSError as why:
        error = host_error(why, path)
        if isinstance(error, NotFoundError):
            raise NotFoundError(f"there is no file or folder {label(path)} to share", hint="Check the path.") from why
        if isinstance(error, PermissionRefusedError):
            raise PermissionRefusedError(f"you may not read {label(path)}", hint="Check its permissions.") from why
        raise error from why
