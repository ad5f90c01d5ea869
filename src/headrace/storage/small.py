"""Small files whole, many of one folder after another, by as few system calls as is safe: read on the host, written
where they are received."""

from __future__ import annotations

import errno
import logging
import os
import stat
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Final, NamedTuple, Protocol, Self

from headrace import config
from headrace.errors import DestinationExistsError, HeadraceError, LocalFileError, NotFoundError, SourceChangedError
from headrace.protocol.messages import KIB
from headrace.protocol.paths import MAX_NAME, MAX_PATH, RelPath, check_name
from headrace.storage.fileio import FileIO
from headrace.storage.inflight import is_inflight_name, part_names
from headrace.storage.libc import sync_filesystem
from headrace.storage.oserrors import host_errors, label, local_errors
from headrace.storage.plain import PlainIO
from headrace.storage.platform import FALLBACKS
from headrace.storage.posix import READ_FLAGS
from headrace.storage.tree import SharedTree, version_of

log = logging.getLogger("headrace.storage")

_DOT: Final = ord(".")
_FIRST_READ: Final = 32 * KIB  # bytes; who wants a file that does not fit reads little of it in vain
_NO_FILE: Final = frozenset({errno.EISDIR, errno.ESPIPE})  # what reading a folder or a FIFO at a position says
_NO_FOLDER: Final = b"/"  # no path begins like that
_NAMELESS: Final = getattr(os, "O_TMPFILE", 0) | os.O_WRONLY | os.O_CLOEXEC
# What opening or linking a file without a name says where that cannot be done at all (old kernels, network and FUSE
# file systems, no /proc). Everything else may be about this file, or passes.
_CANNOT: Final = frozenset({errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.EISDIR, errno.ENOSYS, errno.EPERM})
_UNLINKABLE: Final = _CANNOT | {errno.ENOENT, errno.EXDEV, errno.EACCES}
_TOO_MANY_OPEN: Final = frozenset({errno.EMFILE, errno.ENFILE})
_ONE_FILE: Final = (LocalFileError, DestinationExistsError)  # what is about one file; the rest would fail as well
MAX_STAGED: Final = 128  # files; each holds a descriptor until it has its name
_STAGED_SHARE: Final = 16  # of all descriptors, as others write small files at the same time, and folders take some too
_FLUSHED_SINGLY: Final = 8  # files; more are flushed with all else on their file system, which costs about as much


class SmallReader:
    """Files of a share, each read whole. It keeps the folder of the last one open, so use it for one request: a folder
    that is moved out of the share meanwhile is read to the end of that. One owner thread; close it."""

    def __init__(self, tree: SharedTree) -> None:
        self._tree = tree
        self._read = tree.io.read_into
        self._folder = _NO_FOLDER
        self._fd = -1

    def read(self, raw: bytes, version: bytes, room: memoryview) -> int | None:
        """Reads the file at `raw`, a path as it came off the wire, into the front of `room`. Its size in bytes; None,
        and nothing was read: it is larger than `room`.

        Raises BadPathError where `raw` is no path; SourceChangedError when it is not `version` or changes meanwhile;
        NotFoundError, PermissionRefusedError, RemoteIOError.
        """
        name = raw[raw.rfind(b"/") + 1 :]
        folder = raw[: len(raw) - len(name)]
        if folder != self._folder or len(raw) > MAX_PATH:
            self._enter(raw, folder)
        if not raw or self._fd < 0:  # the root of a share may be a file
            return self._read_open(self._tree.open_file(RelPath.parse(raw))[0], raw, version, room)
        if not _is_plain(name):
            check_name(name)
            if is_inflight_name(name):
                raise NotFoundError(f"no such path in the share: {label(raw)}")
        try:
            fd = os.open(name, READ_FLAGS, dir_fd=self._fd)
        except OSError:
            with host_errors(RelPath.parse(raw)):
                raise
        return self._read_open(fd, raw, version, room)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._folder = -1, _NO_FOLDER

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, why: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _enter(self, raw: bytes, folder: bytes) -> None:
        """Opens the folder of `raw`. What cannot be opened, or is none (several paths that are shared as one folder),
        is left to SharedTree.open_file, which says why."""
        self.close()
        path = RelPath.parse(raw)
        try:
            self._fd = self._tree.open_folder(path.parent)
        except HeadraceError:
            self._fd = -1
        self._folder = folder

    def _read_open(self, fd: int, raw: bytes, version: bytes, room: memoryview) -> int | None:
        """Takes `fd` over.

        Its facts are looked at once, afterwards: where they are those of `version` then, they were so all the while.
        """
        try:
            piece = room[:_FIRST_READ]
            done = self._read_once(fd, piece)
            st = os.fstat(fd)
            if not stat.S_ISREG(st.st_mode):
                raise NotFoundError(f"{label(raw)} is not a file")
            if version_of(st) != version:
                raise SourceChangedError(f"{label(raw)} is not the version that was listed, or changed meanwhile")
            size = st.st_size
            if size > len(room):
                return None
            if done != size:
                self._read_rest(fd, room[:size], done, raw, version)
            return size
        except OSError as why:
            if why.errno in _NO_FILE:
                raise NotFoundError(f"{label(raw)} is not a file") from why
            with host_errors(RelPath.parse(raw)):
                raise
        finally:
            os.close(fd)

    def _read_once(self, fd: int, room: memoryview) -> int:
        """What one system call gives. Backends are for more than that."""
        return os.preadv(fd, [room], 0) if room else 0

    def _read_rest(self, fd: int, room: memoryview, done: int, raw: bytes, version: bytes) -> None:
        """A file that is larger than most, or a file system that gives less than it was asked for."""
        if done > len(room) or self._read(fd, room[done:], done) < len(room) - done:
            raise SourceChangedError(f"{label(raw)} changed while it was being read")
        if version_of(os.fstat(fd)) != version:
            raise SourceChangedError(f"{label(raw)} changed while it was being read")


def _is_plain(name: bytes) -> bool:
    """Whether `name`, in which there is no `/`, is surely the name of a file that may be asked for: most are."""
    return 0 < len(name) <= MAX_NAME and name[0] != _DOT and b"\0" not in name


class WriteWhole(Protocol):
    """Destination.write_whole: the way that works everywhere and says what is wrong."""

    def __call__(
        self,
        path: RelPath,
        data: bytes | memoryview,
        *,
        mode: int,
        mtime_ns: int,
        replace: bool,
        sparse: bool = False,
    ) -> None: ...


class Nameless:
    """Whether files without a name can be used at one destination, as far as is known. May be shared by threads."""

    def __init__(self, works: bool = hasattr(os, "O_TMPFILE")) -> None:
        self.works = works
        self._numbers = -1  # /proc/self/fd, open: the way there from the root costs as much as the link
        self._lock = threading.Lock()

    def numbers(self) -> int:
        """A folder in which each descriptor of this process has its number for a name. OSError where there is none."""
        with self._lock:
            if self._numbers < 0:
                self._numbers = os.open(b"/proc/self/fd", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            return self._numbers

    def close(self) -> None:
        with self._lock:
            if self._numbers >= 0:
                os.close(self._numbers)
            self._numbers = -1

    def fails(self, why: OSError) -> None:
        """They cannot be: from here on every file is made the longer way."""
        self.works = False
        reason = errno.errorcode.get(why.errno or 0, "unknown")
        if FALLBACKS.add(f"nameless-{reason}"):
            log.info("small files are written under a name of their own first: no file without one here (%s)", why)


class _Staged(NamedTuple):
    """A file that is written and has no name yet."""

    fd: int
    folder: int
    path: RelPath
    data: bytes | memoryview
    mode: int
    mtime_ns: int


class SmallWriter:
    """Writes small files, best those of one folder after another: it keeps the folder of the last one open.

    A file has no name until it is whole, with permissions and time; then it is linked to its name, which must be free.
    So there is nothing to lock, and nothing to remove after a kill. Whatever does not work is done over by
    `write_whole`. One owner thread; a context manager.

    durable: its bytes are on disk by then, too. As flushing costs, that is done for many at once: what was written has
    its name after `name_all` only.
    """

    def __init__(
        self,
        parent: Callable[[RelPath], AbstractContextManager[int]],
        write_whole: WriteWhole,
        io: FileIO,
        nameless: Nameless,
        *,
        durable: bool = False,
    ) -> None:
        """parent: Destination.parent."""
        self._durable = durable
        self._most_staged = min(MAX_STAGED, config.descriptors() // _STAGED_SHARE)
        self._staged: list[_Staged] = []
        self._folders: dict[int, int] = {}  # what they are named in, each with its file system
        self._failed: dict[RelPath, HeadraceError] = {}
        self._parent = parent
        self._write_whole = write_whole
        self._write = io.write
        self._nameless = nameless
        self._usable = io.name != PlainIO.name  # the debug mode does nothing clever
        self._folder: tuple[bytes, ...] | None = None
        self._held: AbstractContextManager[int] | None = None
        self._fd = self._numbers = self._staging = -1
        self._kept: set[int] = set()  # permissions that a new file has as they were asked for: umask and ACL allow it

    def write(
        self, path: RelPath, data: bytes | memoryview, mode: int, mtime_ns: int, *, replace: bool, fresh: bool
    ) -> None:
        """As Destination.write_whole. fresh: nothing of an earlier run can be in its folder.

        durable: `data` has to stay as it is until `name_all`.
        """
        if self._usable and not replace and self._nameless.works:
            folder = path.parts[:-1]
            if folder != self._folder:
                self._enter(path)
            if self._link(path, data, mode & 0o777, mtime_ns, fresh):
                return
        self._write_whole(path, data, mode=mode, mtime_ns=mtime_ns, replace=replace)

    def name_all(self) -> dict[RelPath, HeadraceError]:
        """All that was written has its name when this returns, but for what is in the answer, with why.

        Raises LocalDiskError: the disk did not take it, and none of it has a name.
        """
        if self._staged:
            self._name_staged()
        failed, self._failed = self._failed, {}
        return failed

    def close(self) -> None:
        self._forget_staged()
        held, self._held, self._folder = self._held, None, None
        if held is not None:
            held.__exit__(None, None, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, why: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _enter(self, path: RelPath) -> None:
        held, self._held, self._folder = self._held, None, None
        if held is not None:
            held.__exit__(None, None, None)
        held = self._parent(path)
        self._fd = held.__enter__()
        self._held, self._folder = held, path.parts[:-1]
        self._kept.clear()
        self._staging = -1

    def _name_staged(self) -> None:
        try:
            with local_errors("flush to the disk", "what was written"):
                if len(self._staged) <= _FLUSHED_SINGLY:
                    for one in self._staged:
                        os.fsync(one.fd)
                else:
                    for folder in {disk: folder for folder, disk in self._folders.items()}.values():
                        sync_filesystem(folder)
            for one in self._staged:
                if not self._name(one.fd, one.folder, one.path.parts[-1]):
                    try:
                        self._write_whole(one.path, one.data, mode=one.mode, mtime_ns=one.mtime_ns, replace=False)
                    except _ONE_FILE as why:
                        self._failed[one.path] = why
        finally:
            self._forget_staged()

    def _forget_staged(self) -> None:
        for one in self._staged:
            os.close(one.fd)
        for folder in self._folders:
            os.close(folder)
        self._staged.clear()
        self._folders.clear()
        self._staging = -1

    def _open_nameless(self, folder: int, mode: int) -> int:
        try:
            return os.open(b".", _NAMELESS, mode, dir_fd=folder)
        except OSError as why:
            if why.errno not in _TOO_MANY_OPEN or not self._staged:
                raise
        self._name_staged()  # ours may be the ones that are too many
        return os.open(b".", _NAMELESS, mode, dir_fd=folder)

    def _stage(self, fd: int, path: RelPath, data: bytes | memoryview, mode: int, mtime_ns: int) -> None:
        if self._staging < 0:
            self._staging = os.dup(self._fd)
            self._folders[self._staging] = os.fstat(self._staging).st_dev
        self._staged.append(_Staged(fd, self._staging, path, data, mode, mtime_ns))
        if len(self._staged) >= self._most_staged:
            self._name_staged()

    def _name(self, fd: int, folder: int, name: bytes) -> bool:
        """Whether what is open as `fd` has that name now."""
        try:
            os.link(b"%d" % fd, name, src_dir_fd=self._numbers, dst_dir_fd=folder, follow_symlinks=True)
        except OSError as why:
            if why.errno in _UNLINKABLE:
                self._nameless.fails(why)
            return False
        return True

    def _link(self, path: RelPath, data: bytes | memoryview, mode: int, mtime_ns: int, fresh: bool) -> bool:
        """Whether the file stands under its name, or is staged. False: nothing was changed."""
        name = path.parts[-1]
        if is_inflight_name(name):
            return False
        folder = self._fd
        # What an earlier run left of it is to go: only the longer way looks after that.
        if not fresh and os.access(part_names(name)[0], os.F_OK, dir_fd=folder, follow_symlinks=False):
            return False
        try:
            if self._numbers < 0:
                self._numbers = self._nameless.numbers()
        except OSError as why:
            if why.errno in _UNLINKABLE:
                self._nameless.fails(why)
            return False
        try:
            fd = self._open_nameless(folder, mode)
        except OSError as why:
            if why.errno in _CANNOT:
                self._nameless.fails(why)
            return False
        try:
            if data:
                self._write(fd, data, 0)
            if mode not in self._kept:
                if stat.S_IMODE(os.fstat(fd).st_mode) == mode:
                    self._kept.add(mode)
                else:
                    os.fchmod(fd, mode)
            os.utime(fd, ns=(mtime_ns, mtime_ns))
        except (OSError, OverflowError):
            os.close(fd)
            return False
        if self._durable:
            self._stage(fd, path, data, mode, mtime_ns)
            return True
        try:
            return self._name(fd, folder, name)
        finally:
            os.close(fd)
