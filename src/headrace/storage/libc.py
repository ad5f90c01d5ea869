"""The system calls that Python does not offer, with what to do where the system or the file system lacks them."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Callable
from typing import Any, Final

_RENAME_NOREPLACE: Final = 1  # linux/fs.h
_PUNCH_HOLE: Final = 0x02 | 0x01  # linux/falloc.h: and keep the size
_UNSUPPORTED: Final = frozenset({errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP})
_NO_LINKS: Final = _UNSUPPORTED | {errno.EPERM, errno.EMLINK}


def function(name: str, *arguments: Any) -> Callable[..., int] | None:
    try:
        found = getattr(ctypes.CDLL(None, use_errno=True), name)
    except (AttributeError, OSError, TypeError):
        return None
    found.argtypes = arguments
    found.restype = ctypes.c_int
    return found  # type: ignore[no-any-return]


_renameat2 = function("renameat2", ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
_fallocate = function("fallocate", ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)

_syncfs = function("syncfs", ctypes.c_int)


def sync_filesystem(fd: int) -> None:
    """Everything that was written to the file system of `fd` is on its disk when this returns. OSError says why not.

    Where the system cannot do that for one file system, it is done for all.
    """
    if _syncfs is None:
        os.sync()
        return
    code = _call(_syncfs, fd)
    if code in _UNSUPPORTED:
        os.sync()
    elif code:
        raise OSError(code, os.strerror(code))


def _call(function: Callable[..., int], *arguments: Any) -> int:
    """0, or the errno. Tries again when a signal came in between; Python's own handlers run then."""
    while function(*arguments):
        code = ctypes.get_errno()
        if code != errno.EINTR:
            return code
    return 0


def rename_noreplace(dir_fd: int, old: bytes, new: bytes) -> None:
    """Renames within one directory unless `new` exists: then FileExistsError, and `old` stays. Else OSError."""
    if _renameat2 is not None:
        code = _call(_renameat2, dir_fd, old, dir_fd, new, _RENAME_NOREPLACE)
        if not code:
            return
        if code not in _UNSUPPORTED:
            raise OSError(code, os.strerror(code))
    try:
        os.link(old, new, src_dir_fd=dir_fd, dst_dir_fd=dir_fd, follow_symlinks=False)
    except OSError as why:
        if why.errno not in _NO_LINKS:
            raise
        # Neither exclusive rename nor hard links (some FUSE file systems): looking first is the best there is.
        with contextlib.suppress(FileNotFoundError):
            os.stat(new, dir_fd=dir_fd, follow_symlinks=False)
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
        os.rename(old, new, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
        return
    os.unlink(old, dir_fd=dir_fd)


def preallocate(fd: int, offset: int, length: int) -> bool:
    """Reserves disk for a range of the file. False where the file system cannot; OSError (ENOSPC) when full.

    Not os.posix_fallocate: where the file system cannot, glibc writes a byte to every block, which over NFS or FUSE
    takes longer than the transfer.
    """
    if _fallocate is None or not length:
        return False
    code = _call(_fallocate, fd, 0, offset, length)
    if code and code not in _UNSUPPORTED:
        raise OSError(code, os.strerror(code))
    return not code


def punch_hole(fd: int, offset: int, length: int) -> bool:
    """Gives the range back to the disk; it reads as zeros. False where the file system cannot. Raises OSError."""
    if _fallocate is None or not length:
        return False
    code = _call(_fallocate, fd, _PUNCH_HOLE, offset, length)
    if code and code not in _UNSUPPORTED:
        raise OSError(code, os.strerror(code))
    return not code
