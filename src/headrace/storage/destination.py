"""The receiver's folder. Everything happens below one descriptor, one component at a time, following no symlink.

So nothing that a host names can be outside, whatever lies in the folder already or is put there meanwhile.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from collections.abc import Iterator, Sequence
from typing import Final, Self

from headrace.errors import (
    DestinationExistsError,
    HeadraceError,
    LocalDiskError,
    LocalFileError,
    NotFoundError,
    ProtocolError,
)
from headrace.protocol.paths import ROOT, RelPath
from headrace.storage.chunks import chunk_range, hash_bytes
from headrace.storage.dirs import DirCache, raise_in_the_way
from headrace.storage.fileio import FileIO
from headrace.storage.inflight import is_inflight_name, part_names
from headrace.storage.libc import sync_filesystem
from headrace.storage.naming import first_free
from headrace.storage.oserrors import label, local_error, local_errors
from headrace.storage.partial import Partial, forget_leftover, write_whole
from headrace.storage.posix import POSIX
from headrace.storage.rawio import stamp
from headrace.storage.small import Nameless, SmallWriter

_NOT_OURS: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.EACCES, errno.EPERM})
_FILE_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class Destination:
    """Thread-safe. A context manager; close it when nobody uses it any more.

    All methods raise LocalDiskError (LocalFileError where it is about that path alone), and DestinationExistsError when
    a symlink or a file is where a folder belongs.
    Paths name something below the root unless said otherwise; the root itself is a ValueError then.
    """

    def __init__(
        self, root_fd: int, io: FileIO = POSIX, *, fresh: bool = False, durable: bool = False, guarded: bool = False
    ) -> None:
        """Takes `root_fd` over. io: how contents are read and written; it stays the caller's. fresh: the root is new,
        so nothing is in it but what comes by this object. durable: a file's bytes are on disk before it gets its name;
        see `settle` for the name itself. guarded: it is somebody's own folder that others write into: what is moved
        out of it is left at once, and a folder that is not to be written to stays so."""
        self._io = io
        self._durable = durable
        self.fresh = fresh
        self._nameless = Nameless()
        self._dirs = DirCache(root_fd, limit=0, adapt=False) if guarded else DirCache(root_fd)
        self._claimed: set[RelPath] = set()
        self._claiming = threading.Lock()

    @classmethod
    def open(
        cls,
        root: str | os.PathLike[str],
        create: bool,
        io: FileIO = POSIX,
        *,
        mode: int = 0o777,
        durable: bool = False,
    ) -> Self:
        """The folder `root`, which may be reached through symlinks: that is the user's own choice.

        create: make it, and those above it, if missing; else NotFoundError. mode: its permissions at the most when
        it is made (the owner's are added). DestinationExistsError: it is no folder.
        """
        try:
            fresh = create and not os.path.lexists(root)
            if create:
                os.makedirs(root, mode & 0o777 | 0o700, exist_ok=True)
            fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            return cls(fd, io, fresh=fresh, durable=durable)
        except (FileExistsError, NotADirectoryError) as why:
            raise DestinationExistsError(f"{label(root)}, or something above it, is not a folder") from why
        except FileNotFoundError as why:
            if create:
                raise local_error(why, f"make the folder {label(root)}") from why
            raise NotFoundError(f"there is no folder {label(root)} here", hint="Check the path.") from why
        except OSError as why:
            raise local_error(why, f"open the folder {label(root)}") from why

    def close(self) -> None:
        self._dirs.close()
        self._nameless.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def lstat(self, path: RelPath) -> os.stat_result | None:
        """What is at `path` (the root included), symlinks not followed; None if nothing. Changes nothing."""
        with local_errors("look at", path):
            try:
                with self._dirs.open(path.parent, make=False) as fd:
                    if not path:
                        return os.fstat(fd)
                    try:
                        return os.stat(path.name, dir_fd=fd, follow_symlinks=False)
                    except FileNotFoundError:
                        if os.fstat(fd).st_nlink:
                            return None
                        raise  # the folder itself is gone: let the cache know
            except FileNotFoundError:
                return None

    def lstat_all(self, folder: RelPath, names: Sequence[bytes]) -> list[os.stat_result | None]:
        """As `lstat`, for some names in one folder, at a third of the cost. What fails may be about any one of them."""
        found: list[os.stat_result | None] = []
        with local_errors("look at", folder):
            try:
                with self._dirs.open(folder, make=False) as fd:
                    for name in names:
                        try:
                            found.append(os.stat(name, dir_fd=fd, follow_symlinks=False))
                        except FileNotFoundError:
                            found.append(None)
                    if None in found and not os.fstat(fd).st_nlink:
                        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))  # let the cache know
            except FileNotFoundError:
                return [None] * len(names)
        return found

    @contextlib.contextmanager
    def parent(self, path: RelPath) -> Iterator[int]:
        """The descriptor of the folder that `path` is in, valid inside the `with`. Missing folders are made.

        They get the permissions that the umask leaves, at least u+rwx. What fails in there because the root takes
        nothing at all is no LocalFileError: it would fail again with every other path.
        """
        if not path:
            raise ValueError("the destination itself has no folder here")
        if any(map(is_inflight_name, path.parts)):
            # A host that sent those could pass off bytes of its choice as verified.
            raise DestinationExistsError(f"{label(path)} is a name that headrace keeps for files in flight", hint="")
        try:
            with self._dirs.open(path.parent, make=True) as fd:
                yield fd
        except LocalFileError as why:
            if self._takes_nothing():
                raise LocalDiskError(why.message, hint=why.hint) from why
            raise

    def _takes_nothing(self) -> bool:
        """Whether the root is gone, or not ours to write to."""
        with self._dirs.open(ROOT, make=False) as fd:
            effective = os.access in os.supports_effective_ids
            writable = os.access(".", os.W_OK | os.X_OK, dir_fd=fd, effective_ids=effective)
            return not writable or not os.fstat(fd).st_nlink

    def make_dir(self, path: RelPath, *, mode: int = 0o777) -> bool:
        """Makes the folder `path` and those above it, if missing; the root is there. Whether it was missing. mode:
        permissions at the most (the owner's are added), so that what is private at the source is never open here."""
        if not path:
            return False
        made = False
        with self.parent(path) as above:
            with local_errors("make the folder", path), contextlib.suppress(FileExistsError):
                os.mkdir(path.name, mode & 0o777 | 0o700, dir_fd=above)
                made = True
            with self._dirs.open(path, make=True):
                pass
        return made

    def open_read(self, path: RelPath) -> int:
        """A descriptor for reading the regular file at `path`, which the caller closes. LocalFileError: it is none."""
        with local_errors("read", path), self._dirs.open(path.parent, make=False) as above:
            fd = os.open(path.name, _FILE_FLAGS, dir_fd=above)
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                os.close(fd)
                raise LocalFileError(f"{label(path)} is not a file", hint="Move it away or choose another place.")
            return fd

    def consists_of(self, path: RelPath, size: int, hashes: Sequence[bytes], buffer: memoryview) -> bool:
        """Whether the file at `path` has `size` bytes and exactly these chunks. buffer: of CHUNK_SIZE bytes."""
        fd = self.open_read(path)
        try:
            with local_errors("read", path):
                if os.fstat(fd).st_size != size:
                    return False
                for index, digest in enumerate(hashes):
                    offset, length = chunk_range(size, index)
                    piece = buffer[:length]
                    if self._io.read_into(fd, piece, offset) != length or hash_bytes(piece) != digest:
                        return False
                return True
        finally:
            os.close(fd)

    def partial(
        self, path: RelPath, *, size: int, version: bytes, mtime_ns: int, sparse: bool, slot: int = 0
    ) -> Partial:
        """The file in flight for `path`: see Partial.open. It outlives this object's descriptors."""
        with self.parent(path) as fd:
            found = Partial.open(
                fd, path.name, size=size, version=version, mtime_ns=mtime_ns, sparse=sparse, io=self._io, slot=slot
            )
            found.durable = self._durable
            return found

    def forget_partial(self, path: RelPath) -> None:
        """Removes what an earlier run left in flight for `path`, if it can; not what another headrace is writing.

        Raises nothing: it is tidying up.
        """
        with contextlib.suppress(OSError, HeadraceError), self._dirs.open(path.parent, make=False) as fd:
            forget_leftover(fd, path.name)

    def write_whole(
        self,
        path: RelPath,
        data: bytes | memoryview,
        *,
        mode: int,
        mtime_ns: int,
        replace: bool,
        sparse: bool = False,
        slot: int = 0,
    ) -> None:
        """Writes a small file in one go: see partial.write_whole."""
        with self.parent(path) as fd:
            write_whole(
                *(fd, path.name, data),
                mode=mode,
                mtime_ns=mtime_ns,
                replace=replace,
                sparse=sparse,
                durable=self._durable,
                io=self._io,
                slot=slot,
            )

    def small_files(self) -> SmallWriter:
        """For writing many small files: a context manager for one thread."""
        return SmallWriter(self.parent, self.write_whole, self._io, self._nameless, durable=self._durable)

    def symlink(self, path: RelPath, target: bytes, *, replace: bool, mtime_ns: int) -> None:
        """A symlink at `path`. Whether the target is acceptable is the caller's to decide.

        An identical one may be there; anything else is DestinationExistsError unless `replace` (and for a folder
        always). Replacing is one step: there is always either the old or the new one. ProtocolError for a target that
        no symlink can have.
        """
        if b"\0" in target or not target:
            raise ProtocolError(f"{label(path)} has a target that no symlink can have")
        with self.parent(path) as fd, local_errors("make the symlink", path):
            try:
                os.symlink(target, path.name, dir_fd=fd)
            except FileExistsError as why:
                if _link_at(fd, path.name) != target:
                    if not replace:
                        raise DestinationExistsError(f"there is already a {label(path)}") from why
                    _replace_link(fd, path, target)
            with contextlib.suppress(OSError, NotImplementedError, OverflowError):  # nice to have
                os.utime(path.name, ns=(mtime_ns, mtime_ns), dir_fd=fd, follow_symlinks=False)

    def set_times_and_mode(self, path: RelPath, *, mode: int | None, mtime_ns: int) -> None:
        """Permissions (0o777 of them at most; None: as they are) and time of a folder, the root included, or of a file
        that is there. A folder keeps its setgid and sticky bits.

        Raises NotFoundError when it is not.
        """
        try:
            with local_errors("set permissions and time of", path), self._dirs.open(path.parent, make=False) as above:
                fd = os.open(path.name or b".", _FILE_FLAGS, dir_fd=above)
                try:
                    now = os.fstat(fd).st_mode
                    special = now & 0o7000 if stat.S_ISDIR(now) else 0
                    stamp(fd, now if mode is None else mode, mtime_ns, special=special)
                finally:
                    os.close(fd)
        except LocalDiskError as why:
            if isinstance(why.__cause__, FileNotFoundError):
                raise NotFoundError(f"there is no {label(path)} here any more", hint="") from why.__cause__
            raise

    def settle(self, written: Sequence[RelPath] | None) -> None:
        """What was written is on disk when this returns, names included. written: those files; None: too many to tell,
        and all of the file system is flushed, whoever wrote it.

        Raises LocalDiskError: the disk did not take it, so nothing may be said to be done.
        """
        with local_errors("flush to the disk", "what was written"):
            with self._dirs.open(ROOT, make=False) as root:
                if written is None:
                    sync_filesystem(root)
                    return
                os.fsync(root)
            for path in written:
                self._settle_file(path)
            for folder in _folders_of(written):
                with contextlib.suppress(NotFoundError, FileNotFoundError), self._dirs.open(folder, make=False) as fd:
                    os.fsync(fd)

    def _settle_file(self, path: RelPath) -> None:
        """One that is gone again, or is something else by now, is not ours to flush."""
        try:
            with self._dirs.open(path.parent, make=False) as above:
                fd = os.open(path.name, _FILE_FLAGS, dir_fd=above)
        except OSError as why:
            if why.errno in _NOT_OURS:
                return
            raise
        try:
            if stat.S_ISREG(os.fstat(fd).st_mode):
                os.fsync(fd)
        finally:
            os.close(fd)

    def free_name(self, path: RelPath) -> RelPath:
        """`path` if nothing is there, else the first of `NAME (1).ext`, `NAME (2).ext`, … that is free.

        A name is given out once: two files of one transfer never get the same.
        """
        with self._claiming:
            found = first_free(path, lambda name: self.lstat(name) is not None or name in self._claimed)
            self._claimed.add(found)
            return found


def _link_at(fd: int, name: bytes) -> bytes | None:
    try:
        return os.readlink(name, dir_fd=fd)
    except OSError:
        return None


def _replace_link(fd: int, path: RelPath, target: bytes) -> None:
    temporary = part_names(path.name)[0]
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary, dir_fd=fd)
    os.symlink(target, temporary, dir_fd=fd)
    try:
        os.rename(temporary, path.name, src_dir_fd=fd, dst_dir_fd=fd)
    except OSError as why:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=fd)
        if why.errno == errno.EISDIR:
            raise DestinationExistsError(f"a folder is in the way of {label(path)}") from why
        raise_in_the_way(why, path)
        raise


def _folders_of(paths: Sequence[RelPath]) -> set[RelPath]:
    """Every folder that one of them lies in, at any depth; not the root."""
    found: set[RelPath] = set()
    for path in paths:
        folder = path.parent
        while folder and folder not in found:
            found.add(folder)
            folder = folder.parent
    return found
