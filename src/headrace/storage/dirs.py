"""Folders below one root, kept open a while: consecutive files mostly share theirs."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Iterator
from typing import Final

from headrace.errors import DestinationExistsError, LocalDiskError
from headrace.protocol.paths import RelPath
from headrace.storage.oserrors import label, local_errors

MAX_HELD: Final = 64

_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OURS: Final = 0o700  # what the owner of a folder needs to put files into it


class _Dir:
    """An open folder. `users` hold it; when it was dropped meanwhile, the last of them closes it."""

    __slots__ = ("dropped", "fd", "users", "writable")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.users = 1
        self.dropped = False
        self.writable = False


class DirCache:
    """Thread-safe; keeps at most `limit` folders open beyond those in use. Takes the root's descriptor over.

    adapt: a folder of ours that its owner cannot write to is given the permissions for that.
    """

    def __init__(self, root_fd: int, limit: int = MAX_HELD, *, adapt: bool = True) -> None:
        self._adapt = adapt
        self._root_fd = root_fd
        self._limit = limit
        self._held: OrderedDict[tuple[bytes, ...], _Dir] = OrderedDict()
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def open(self, path: RelPath, *, make: bool) -> Iterator[int]:
        """The descriptor of the folder `path`, valid inside the `with`. make: make it and those above if missing.

        Every component is opened with O_NOFOLLOW in the one before. Raises FileNotFoundError (not make),
        DestinationExistsError when a component is a symlink or no folder, LocalDiskError.
        """
        if not path:
            yield self._root_fd
            return
        held = self._acquire(path, make)
        try:
            yield held.fd
        except (OSError, LocalDiskError):
            self._drop_if_gone(path, held)
            raise
        finally:
            self._release(held)

    def close(self) -> None:
        """Closes everything; nobody may be inside `open` any more."""
        with self._lock:
            for held in self._held.values():
                os.close(held.fd)
            self._held.clear()
            if self._root_fd >= 0:
                os.close(self._root_fd)
                self._root_fd = -1

    def _acquire(self, path: RelPath, make: bool) -> _Dir:
        with self._lock:
            held = self._held.get(path.parts)
            if held is not None:
                self._held.move_to_end(path.parts)
                held.users += 1
        if held is None:
            with self.open(path.parent, make=make) as above:
                held = self._keep(path, _Dir(_open_dir(above, path, make, self._adapt)))
        if make and self._adapt and not held.writable:
            try:
                _make_writable(held.fd, path)
            except BaseException:
                self._release(held)
                raise
            held.writable = True
        return held

    def _keep(self, path: RelPath, new: _Dir) -> _Dir:
        """Puts `new` into the cache, or gives the one that another thread put there meanwhile."""
        with self._lock:
            known = self._held.get(path.parts)
            if known is not None:
                os.close(new.fd)
                known.users += 1
                return known
            self._held[path.parts] = new
            while len(self._held) > self._limit:
                self._forget(next(iter(self._held)))
            return new

    def _release(self, held: _Dir) -> None:
        with self._lock:
            held.users -= 1
            if held.dropped and not held.users:
                os.close(held.fd)

    def _drop_if_gone(self, path: RelPath, held: _Dir) -> None:
        """Forgets a folder that was removed under us, so that the next one to ask looks for it again."""
        with self._lock:
            if self._held.get(path.parts) is held and not os.fstat(held.fd).st_nlink:
                self._forget(path.parts)

    def _forget(self, parts: tuple[bytes, ...]) -> None:
        held = self._held.pop(parts)
        held.dropped = True
        if not held.users:
            os.close(held.fd)


def _open_dir(above: int, path: RelPath, make: bool, adapt: bool) -> int:
    try:
        return os.open(path.name, _FLAGS, dir_fd=above)
    except FileNotFoundError:
        if not make:
            raise
    except OSError as why:
        raise_in_the_way(why, path)
        with local_errors("open the folder", path):
            if make and adapt and isinstance(why, PermissionError) and _let_in(above, path.name):
                return os.open(path.name, _FLAGS, dir_fd=above)
            raise
    with local_errors("make the folder", path):
        with contextlib.suppress(FileExistsError):  # another thread was first, or something else lies there: below
            os.mkdir(path.name, 0o777, dir_fd=above)
        try:
            return os.open(path.name, _FLAGS, dir_fd=above)
        except OSError as why:
            raise_in_the_way(why, path)
            raise


def _let_in(above: int, name: bytes) -> bool:
    """Lets its owner open a folder of ours: an earlier run may have given it a mode that does not even allow that.

    The mode it should have comes back as in `_make_writable`; until then it is nobody else's. False: nothing to be
    done about it.
    """
    st = os.stat(name, dir_fd=above, follow_symlinks=False)
    if not stat.S_ISDIR(st.st_mode) or st.st_uid != os.geteuid() or st.st_mode & _OURS == _OURS:
        return False
    try:
        os.chmod(name, st.st_mode & 0o7000 | _OURS, dir_fd=above, follow_symlinks=False)
    except (ValueError, NotImplementedError):  # a symlink by now, or a platform that cannot
        return False
    return True


def raise_in_the_way(why: OSError, path: RelPath) -> None:
    """DestinationExistsError if `why` says that a symlink or a file is where the folder `path` should be."""
    if why.errno in (errno.ENOTDIR, errno.ELOOP):
        raise DestinationExistsError(
            f"{label(path)} is a symlink or a file where a folder belongs",
            hint="headrace follows no symlinks below the destination. Move it away, or choose another destination.",
        ) from why


def _make_writable(fd: int, path: RelPath) -> None:
    """Lets its owner write into a folder of ours: an earlier run may have given it the source's read-only mode.

    The mode it should have comes back at the end of the transfer, with its time.
    """
    with local_errors("write to the folder", path):
        st = os.fstat(fd)
        if st.st_mode & _OURS != _OURS and st.st_uid == os.geteuid():
            os.fchmod(fd, stat.S_IMODE(st.st_mode) | _OURS)
