"""From a file to a socket without a copy in this process: what each platform offers, and what to do where it does not.

One function for each platform, all with the same contract: some bytes were sent, or nothing could be for now
(BlockingIOError), or this file or this system cannot (UnsupportedError) and the caller reads and sends as ever.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any, Final

from headrace.errors import UsageError

log = logging.getLogger("headrace.zerocopy")

# What sendfile answers where it cannot do it for this file or this socket: FUSE and other odd file systems, procfs,
# overlays, a socket that is no TCP socket (sendfile(2) on Linux and on macOS).
_CANNOT: Final = frozenset({errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.ENOTSOCK, errno.EBADF})
# WSAEINVAL, WSAENOTSOCK, WSAEOPNOTSUPP, ERROR_INVALID_PARAMETER, ERROR_NOT_SUPPORTED, ERROR_INVALID_FUNCTION
_CANNOT_ON_WINDOWS: Final = frozenset({10022, 10038, 10045, 87, 50, 1})

Send = Callable[[socket.socket, int, int, int], int]  # socket, file descriptor, offset, count: how many bytes went


def wants_clear(data_plane: str) -> bool:
    """What `--data-plane` says. UsageError for a word that means nothing, never a silent default."""
    if data_plane not in ("tls", "clear"):
        raise UsageError(f"there is no data plane {data_plane}", hint="It is tls or clear.")
    return data_plane == "clear"


class UnsupportedError(Exception):
    """This file cannot be sent this way; nothing was sent."""


class Fallbacks:
    """How often zero-copy could not be had, by reason. Thread-safe; each reason is logged once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, int] = {}

    def add(self, reason: str) -> None:
        """Counts one, and says so the first time."""
        with self._lock:
            self._counts[reason] = self._counts.get(reason, 0) + 1
            first = self._counts[reason] == 1
        if first:
            log.warning("files are not sent by sendfile, they are read and sent instead: %s", reason)

    def counts(self) -> dict[str, int]:
        """A copy, by reason."""
        with self._lock:
            return dict(self._counts)


FALLBACKS: Final = Fallbacks()


def by_sendfile(sock: socket.socket, fd: int, offset: int, count: int) -> int:
    """Linux, macOS, the BSDs. A partial count of macOS (EAGAIN with bytes sent) is a count like any other: Python gives
    it as one."""
    try:
        return os.sendfile(sock.fileno(), fd, offset, count)
    except BlockingIOError:
        raise
    except OSError as why:
        if why.errno in _CANNOT:
            raise UnsupportedError(f"sendfile: {why.strerror}") from why
        raise


def by_transmit_file(sock: socket.socket, fd: int, offset: int, count: int) -> int:
    """Windows: TransmitFile, which the standard library offers only through its proactor event loop."""
    import asyncio

    loop_of: Any = getattr(asyncio, "ProactorEventLoop", None)
    if loop_of is None:
        raise UnsupportedError("no proactor event loop on this system")
    timeout = sock.gettimeout()
    sock.setblocking(False)
    loop = loop_of()
    try:
        with os.fdopen(os.dup(fd), "rb", buffering=0) as file:
            sending = loop.sock_sendfile(sock, file, offset, count, fallback=False)
            sent: int = loop.run_until_complete(asyncio.wait_for(sending, timeout))
            return sent
    except (NotImplementedError, asyncio.SendfileNotAvailableError) as why:
        raise UnsupportedError(f"TransmitFile: {why}") from why
    except OSError as why:
        if not isinstance(why, TimeoutError) and getattr(why, "winerror", why.errno) in _CANNOT_ON_WINDOWS:
            raise UnsupportedError(f"TransmitFile: {why.strerror or why}") from why
        raise
    finally:
        loop.close()
        sock.settimeout(timeout)


def platform_send(platform: str = sys.platform) -> Send | None:
    """What this platform has; None where there is nothing."""
    if platform == "win32":
        return by_transmit_file
    return by_sendfile if hasattr(os, "sendfile") else None


def wait_writable(sock: socket.socket, timeout: float | None) -> None:
    """Until the socket takes bytes. Raises TimeoutError."""
    if hasattr(select, "poll"):
        poller = select.poll()
        poller.register(sock.fileno(), select.POLLOUT)
        ready: object = poller.poll(None if timeout is None else timeout * 1000)
    else:
        ready = select.select([], [sock], [], timeout)[1]
    if not ready:
        raise TimeoutError("timed out")
