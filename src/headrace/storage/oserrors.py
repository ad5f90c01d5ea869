"""The operating system's errors become headrace's here, once, with a sentence and a hint. Thread-safe.

The same errno means different things on the two sides: a file that the host may not read is a refusal, a file that
the receiver may not write is a problem of this disk.
"""

from __future__ import annotations

import errno
import os
from types import TracebackType
from typing import Final

from headrace.errors import (
    HeadraceError,
    LocalDiskError,
    LocalFileError,
    NotFoundError,
    PermissionRefusedError,
    RemoteIOError,
    printable,
)
from headrace.protocol.paths import RelPath

_AGAIN: Final = "then run the same command again to resume"

# errno -> (what happened, what to do). `{}` is the doing, such as "write a.bin".
_LOCAL: Final[dict[int, tuple[str, str]]] = {
    errno.ENOSPC: ("no space left on this disk to {}", f"Free some space, {_AGAIN}."),
    errno.EDQUOT: ("your disk quota is used up; cannot {}", f"Free some space or raise the quota, {_AGAIN}."),
    errno.EROFS: ("the file system is read-only; cannot {}", "Choose a destination that can be written to."),
    errno.EACCES: ("no permission to {}", "Check who owns the destination folder and what is in it."),
    errno.EPERM: ("the system does not permit to {}", "Check the owner and attributes (lsattr) of what is there."),
    errno.EIO: ("the disk reported an error; cannot {}", "The disk may be failing: see the system's log (dmesg)."),
    errno.EFBIG: ("too large for this file system; cannot {}", "FAT32 ends at 4 GiB; choose another file system."),
    errno.ENAMETOOLONG: ("the name is too long for this disk; cannot {}", "Choose a destination nearer the root."),
    errno.EMFILE: ("too many open files; cannot {}", "Raise the limit (ulimit -n), or use fewer --connections."),
    errno.ENFILE: ("too many open files on this machine; cannot {}", f"Close other programs, {_AGAIN}."),
    errno.ENOENT: ("it, or its folder, is not there (any more); cannot {}", f"Leave the destination alone, {_AGAIN}."),
    errno.ENOTDIR: ("something that is no folder is in the way; cannot {}", "Move it away or choose another place."),
    errno.ELOOP: ("a symlink is in the way; cannot {}", "Move it away or choose another place."),
    errno.EINVAL: ("this file system does not take that name or size; cannot {}", "Choose another file system."),
    errno.EILSEQ: ("this file system does not take that name; cannot {}", "Choose another file system."),
    errno.ESTALE: ("the network file system lost it; cannot {}", f"Check the mount, {_AGAIN}."),
}

# These are about one name: the next file may well be taken. Everything else is taken to be about the whole disk.
_ONE_FILE: Final = frozenset(
    {
        *(errno.EACCES, errno.EPERM, errno.EBUSY, errno.ETXTBSY),
        *(errno.EFBIG, errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ, errno.EMLINK, errno.EOVERFLOW),
        *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EEXIST, errno.ENOTEMPTY, errno.ENXIO),
    }
)

_NOT_THERE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO})
_NOT_ALLOWED: Final = frozenset({errno.EACCES, errno.EPERM})


def label(name: bytes | str | os.PathLike[str] | RelPath) -> str:
    """A name for people: printable, whatever is in it. The empty share-relative path is the share itself."""
    if isinstance(name, RelPath):
        return printable(str(name)) or "the share"
    raw = name if isinstance(name, bytes) else os.fsencode(name)
    return printable(raw.decode("utf-8", "backslashreplace"))


def local_error(why: OSError, doing: str) -> HeadraceError:
    """The receiving side's error for `why`: LocalFileError where it is about one name, else LocalDiskError.

    doing: what was tried and on what, as in "write a.bin".
    """
    kind = LocalFileError if why.errno in _ONE_FILE else LocalDiskError
    known = _LOCAL.get(why.errno or 0)
    if known:
        return kind(known[0].format(doing), hint=known[1])
    return kind(f"cannot {doing}: {why.strerror or why}")


def host_error(why: OSError, path: bytes | str | os.PathLike[str] | RelPath) -> HeadraceError:
    """The sharing side's error for `why`, about `path`. Share-relative paths only: peers see the message."""
    if why.errno in _NOT_THERE:
        return NotFoundError(f"no such path in the share: {label(path)}")
    if why.errno in _NOT_ALLOWED:
        return PermissionRefusedError(f"the host may not read {label(path)}")
    return RemoteIOError(f"the host could not read {label(path)}: {why.strerror or why}")


class local_errors:  # a context manager, used as a verb
    """`with local_errors("write", name):` OSError inside becomes local_error. Nothing is formatted unless it fails."""

    __slots__ = ("_name", "_verb")

    def __init__(self, verb: str, name: bytes | str | os.PathLike[str] | RelPath) -> None:
        self._verb = verb
        self._name = name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, why: BaseException | None, at: TracebackType | None) -> None:
        if isinstance(why, OSError):
            raise local_error(why, f"{self._verb} {label(self._name)}") from why


class host_errors:  # a context manager, used as a verb
    """`with host_errors(path):` OSError inside becomes host_error."""

    __slots__ = ("_path",)

    def __init__(self, path: RelPath) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, why: BaseException | None, at: TracebackType | None) -> None:
        if isinstance(why, OSError):
            raise host_error(why, self._path) from why
