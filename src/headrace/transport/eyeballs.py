"""Connecting to a name with several addresses: the next one is tried before the first has failed (RFC 8305)."""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

ATTEMPT_DELAY: Final = 0.25  # seconds before the next address is tried beside the others (RFC 8305, section 5)

Address = tuple[socket.AddressFamily, tuple[Any, ...]]


def resolve(host: str, port: int, kind: socket.SocketKind = socket.SOCK_STREAM) -> list[Address]:
    """The addresses of a host, IPv6 and IPv4 in turns, the family that the system prefers first.

    Raises socket.gaierror; OverflowError and UnicodeError for what can be no port or name.
    """
    found: list[Address] = []
    for family, _, _, _, address in socket.getaddrinfo(host, port, type=kind):
        if (family, address) not in found:
            found.append((family, address))
    preferred = deque(entry for entry in found if entry[0] == found[0][0])
    other = deque(entry for entry in found if entry[0] != found[0][0])
    mixed: list[Address] = []
    while preferred or other:
        for family_queue in (preferred, other):
            if family_queue:
                mixed.append(family_queue.popleft())
    return mixed


def connect(
    addresses: list[Address], timeout: float, *, stop: Callable[[], bool] = lambda: False
) -> tuple[socket.socket, Address]:
    """The first TCP connection that stands, and its address. All others are closed.

    stop: looked at several times a second; the race is given up when it is true. Raises TimeoutError, and otherwise the
    OSError of the attempt that failed last; ConnectionRefusedError where one was refused, as that says most.
    """
    deadline = time.monotonic() + timeout
    coming = deque(addresses)
    failure: OSError | None = None
    next_start = 0.0
    with selectors.DefaultSelector() as selector, contextlib.ExitStack() as losers:
        while True:
            now = time.monotonic()
            if now >= deadline or stop():
                raise TimeoutError("timed out")
            if coming and (now >= next_start or not selector.get_map()):
                entry = coming.popleft()
                next_start = now + ATTEMPT_DELAY
                try:
                    sock = losers.enter_context(_start(entry))
                    selector.register(sock, selectors.EVENT_WRITE, entry)
                except OSError as why:
                    failure = _telling(failure, why)
                    next_start = now
                continue
            if not selector.get_map():
                raise failure or OSError(errno.EADDRNOTAVAIL, "no address to connect to")
            until = min(deadline, next_start if coming else deadline, now + 0.1)
            for key, _ in selector.select(max(0.0, until - now)):
                sock = key.fileobj  # type: ignore[assignment]
                selector.unregister(sock)
                code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if code:
                    sock.close()
                    failure = _telling(failure, OSError(code, os.strerror(code)))
                    next_start = now  # what failed early makes way for the next at once
                    continue
                won = sock.dup()  # the stack closes the original with the others
                won.setblocking(True)
                return won, key.data


def _start(entry: Address) -> socket.socket:
    sock = socket.socket(entry[0], socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            sock.connect(entry[1])
    except BaseException:
        sock.close()
        raise
    return sock


def _telling(before: OSError | None, now: OSError) -> OSError:
    """Which of two failures says more."""
    return before if isinstance(before, ConnectionRefusedError) else now
