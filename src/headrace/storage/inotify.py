"""Linux's inotify(7): which names in which directories change. Directories are watched by descriptor, never by path."""

from __future__ import annotations

import ctypes
import errno
import os
import select
import struct
import sys
from typing import Final, NamedTuple

from headrace.storage.libc import function

MODIFY: Final = 0x2
ATTRIB: Final = 0x4
CLOSE_WRITE: Final = 0x8
MOVED_FROM: Final = 0x40
MOVED_TO: Final = 0x80
CREATE: Final = 0x100
DELETE: Final = 0x200
OVERFLOW: Final = 0x4000
IGNORED: Final = 0x8000
IS_DIR: Final = 0x40000000
NAMES: Final = MOVED_FROM | MOVED_TO | CREATE | DELETE
CONTENT: Final = MODIFY | ATTRIB | CLOSE_WRITE  # a memory map that was written to shows when the file is closed
_ONLYDIR: Final = 0x01000000
_EXCL_UNLINK: Final = 0x04000000  # nothing about files that have no name any more
_HEAD: Final = struct.Struct("=iIII")  # inotify(7): watch, mask, cookie, length of the name with its padding
_BUFFER: Final = 256 * 1024

_init = function("inotify_init1", ctypes.c_int)
_add = function("inotify_add_watch", ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32)
_rm = function("inotify_rm_watch", ctypes.c_int, ctypes.c_int)


class Event(NamedTuple):
    """mask: of the words above. name: in the watched directory; empty: the directory itself."""

    watch: int
    mask: int
    name: bytes


class Inotify:
    """One queue of the kernel's, 16384 events long unless fs.inotify.max_queued_events says otherwise.

    One thread reads; `add`, `remove` and `wake` are for all. Raises OSError: EMFILE and ENFILE where there are too many
    such queues, ENOSPC where there are too many watches, ENOSYS where there is no inotify or no /proc.
    """

    def __init__(self) -> None:
        if sys.platform != "linux" or _init is None or not os.path.isdir("/proc/self/fd"):
            raise OSError(errno.ENOSYS, "it is there on Linux only, with /proc")
        self._fd = _checked(_init(os.O_NONBLOCK | os.O_CLOEXEC))
        try:
            self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        except OSError:
            os.close(self._fd)
            raise
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)
        self._poll.register(self._wake, select.POLLIN)

    def add(self, fd: int) -> int:
        """Watches an open directory, which may be closed then; the number of the watch.

        A directory that is watched already has the same number again.
        """
        assert _add is not None
        return _checked(_add(self._fd, b"/proc/self/fd/%d" % fd, NAMES | CONTENT | _ONLYDIR | _EXCL_UNLINK))

    def remove(self, watch: int) -> None:
        """Events that are in the queue already still come. Nothing happens where it has gone by itself."""
        assert _rm is not None
        _rm(self._fd, watch)

    def read(self, seconds: float | None = None) -> list[Event]:
        """What happened, oldest first; waits until something did, `wake` was called or the time is over."""
        self._poll.poll(None if seconds is None else seconds * 1000)
        try:
            raw = os.read(self._fd, _BUFFER)
        except BlockingIOError:
            return []
        return parse(raw)

    def wake(self) -> None:
        """Ends the wait of `read`, now and from now on."""
        os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """After the reader is done. All watches end."""
        for fd in (self._fd, self._wake):
            os.close(fd)


def parse(raw: bytes) -> list[Event]:
    """The events that the kernel wrote."""
    events = []
    start = 0
    while start < len(raw):
        watch, mask, _, length = _HEAD.unpack_from(raw, start)
        start += _HEAD.size
        events.append(Event(watch, mask, raw[start : start + length].rstrip(b"\0")))
        start += length
    return events


def _checked(number: int) -> int:
    if number < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return number


# Of these, other machines change files without this kernel knowing. A FUSE file system may be sshfs, or worse.
_REMOTE: Final = frozenset({"nfs", "nfs4", "cifs", "smb3", "9p", "virtiofs", "ceph", "afs", "lustre", "gfs2", "ocfs2"})


def remote_devices(mountinfo: str) -> set[int]:
    """Device numbers of the mounts that other machines may write to. mountinfo: the text of /proc/self/mountinfo,
    proc_pid_mountinfo(5)."""
    found = set()
    for line in mountinfo.splitlines():
        facts, _, rest = line.partition(" - ")
        kind = rest.partition(" ")[0]
        if kind in _REMOTE or kind == "fuse" or kind.startswith("fuse."):
            major, _, minor = facts.split(" ", 3)[2].partition(":")
            found.add(os.makedev(int(major), int(minor)))
    return found
