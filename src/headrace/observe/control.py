"""A local control socket: what a running share or get is doing, and limits that change while it runs.

A Unix stream socket for this user alone, HEADRACE_HOME/run/KIND-PID.sock. A client sends one request and gets one
answer, each a line of JSON; then the program hangs up. See docs/status.md.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import selectors
import socket
import stat
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, Self

from headrace import config
from headrace.errors import HeadraceError, UsageError
from headrace.observe.running import FOLDER, PATIENCE, remove_stale

log = logging.getLogger("headrace.control")

SCHEMA: Final = 1
MAX_REQUEST: Final = 4096  # bytes
MAX_CLIENTS: Final = 16  # at once; further ones are hung up on
PAUSE: Final = 1.0  # seconds after an accept that failed: the process is out of descriptors, say
MAX_RATE: Final = 2**62  # bytes a second
LIMITS: Final = ("limit_rate", "limit_peer")

Answer = dict[str, Any]


class Program(Protocol):
    """What a program offers on its socket. Called from one thread of the socket's own. Must not block for long."""

    def status(self) -> Answer:
        """How things stand: what JSON can express, and no secrets."""

    def limit(self, rates: Mapping[str, float | None]) -> Answer:
        """Sets limits, some of LIMITS: bytes a second, None for no limit; how all limits are now.

        Raises UsageError for one that this program does not have.
        """


class Control:
    """A program's socket. `close` ends its thread and removes it. A context manager.

    Nobody can make it cost more than MAX_CLIENTS descriptors and requests of MAX_REQUEST bytes: one thread serves all
    clients without waiting for any of them.
    """

    def __init__(
        self, kind: str, program: Program, home: Path | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """kind: lower-case letters. Raises OSError where there can be no such socket."""
        if not hasattr(socket, "AF_UNIX"):
            raise OSError("this system has no Unix sockets")
        self._program = program
        self._clock = clock
        self._clients: dict[socket.socket, _Client] = {}
        self._stopping = threading.Event()
        self._folder = _own_folder(home or config.home())
        self.path = self._folder / f"{kind}-{os.getpid()}.sock"
        with contextlib.ExitStack() as undo:
            self._listener = undo.enter_context(_listen(self.path))
            undo.callback(self.path.unlink, missing_ok=True)
            self._wake, self._woken = map(undo.enter_context, socket.socketpair())
            self._selector = undo.enter_context(selectors.DefaultSelector())
            self._thread = threading.Thread(target=self._run, name="headrace-control", daemon=True)
            try:
                self._thread.start()
            except RuntimeError as why:  # no further thread is allowed here
                raise OSError(str(why)) from why
            undo.pop_all()

    def close(self) -> None:
        """May be called again."""
        self._stopping.set()
        with contextlib.suppress(OSError):
            self._wake.send(b"x")
        self._thread.join(PATIENCE)
        with contextlib.suppress(OSError):
            self.path.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, why: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            remove_stale(self._folder)
        with self._selector as selector, self._listener, self._wake, self._woken:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            while not self._stopping.is_set():
                for key, _ in selector.select(self._next_deadline()):
                    if key.fileobj is self._listener:
                        self._accept(selector)
                    elif isinstance(key.data, _Client):
                        self._move(selector, key.data)
                now = self._clock()
                for client in [client for client in self._clients.values() if client.deadline <= now]:
                    self._drop(selector, client)
            for client in list(self._clients.values()):
                self._drop(selector, client)

    def _next_deadline(self) -> float | None:
        if not self._clients:
            return None
        return max(0.0, min(client.deadline for client in self._clients.values()) - self._clock())

    def _accept(self, selector: selectors.BaseSelector) -> None:
        try:
            sock, _ = self._listener.accept()
        except BlockingIOError:  # it left again
            return
        except OSError as why:
            log.debug("the control socket cannot accept: %s", why)
            self._stopping.wait(PAUSE)
            return
        if len(self._clients) >= MAX_CLIENTS:
            sock.close()
            return
        sock.setblocking(False)
        client = self._clients[sock] = _Client(sock, self._clock() + PATIENCE)
        selector.register(sock, selectors.EVENT_READ, client)

    def _move(self, selector: selectors.BaseSelector, client: _Client) -> None:
        """Reads or writes what is possible now."""
        try:
            if client.answer:
                client.answer = client.answer[client.sock.send(client.answer) :]
                if not client.answer:
                    self._drop(selector, client)
                return
            piece = client.sock.recv(MAX_REQUEST)
        except BlockingIOError:
            return
        except OSError:
            self._drop(selector, client)
            return
        client.request += piece
        line, newline, _ = client.request.partition(b"\n")
        if newline or len(client.request) > MAX_REQUEST:
            client.answer = memoryview(self._answer(bytes(line)))
            selector.modify(client.sock, selectors.EVENT_WRITE, client)
        elif not piece:
            self._drop(selector, client)

    def _drop(self, selector: selectors.BaseSelector, client: _Client) -> None:
        del self._clients[client.sock]
        selector.unregister(client.sock)
        client.sock.close()

    def _answer(self, line: bytes) -> bytes:
        try:
            return _line(self._result(_parsed(line)))
        except HeadraceError as why:
            return _line({"error": why.code, "message": why.message, "hint": why.hint})
        except Exception as why:  # whatever is wrong with a status must not end the transfer that it is about
            log.debug("a request on the control socket failed", exc_info=True)
            return _line(
                {"error": HeadraceError.code, "message": f"unexpected {type(why).__name__}: {why}", "hint": ""}
            )

    def _result(self, request: Answer) -> Answer:
        if request.get("ask") == "status":
            return self._program.status()
        if request.get("ask") == "limit":
            return self._program.limit(_rates(request))
        raise UsageError("a request asks for status or limit")


@dataclass(slots=True, eq=False)
class _Client:
    sock: socket.socket
    deadline: float
    request: bytearray = field(default_factory=bytearray)
    answer: memoryview = field(default_factory=lambda: memoryview(b""))


def start(kind: str, program: Program, home: Path | None = None) -> Control | None:
    """A control socket for this process, where there can be one; else None, and a debug line says why."""
    try:
        return Control(kind, program, home)
    except OSError as why:
        log.debug("no control socket, so headrace status will not see this program: %s", why)
        return None


def _own_folder(home: Path) -> Path:
    """The folder for sockets, made and closed to others where need be. OSError where it is not this user's own."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = home / FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise OSError(f"{folder} is not this user's own folder")
    if found.st_mode & 0o077:
        folder.chmod(0o700)
    return folder


def _listen(path: Path) -> socket.socket:
    """A listening socket at `path`. It appears there when it listens already: one that refuses is nobody's."""
    draft = path.with_name(f".{path.name}")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        draft.unlink(missing_ok=True)
        listener.bind(os.fspath(draft))  # OSError, too, where the path is too long for a socket's address
        draft.chmod(0o600)
        listener.listen(MAX_CLIENTS)
        listener.setblocking(False)
        draft.replace(path)
    except BaseException:
        listener.close()
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise
    return listener


def _line(answer: Answer) -> bytes:
    return json.dumps({"schema": SCHEMA, **answer}).encode("ascii") + b"\n"


def _parsed(line: bytes) -> Answer:
    """Raises UsageError."""
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        request = None
    if not isinstance(request, dict) or len(line) > MAX_REQUEST:
        raise UsageError(f"a request is a JSON object on one line of at most {MAX_REQUEST} bytes")
    return request


def _rates(request: Answer) -> dict[str, float | None]:
    """Raises UsageError."""
    rates: dict[str, Any] = {name: request[name] for name in LIMITS if name in request}
    if not rates:
        raise UsageError(f"a limit needs {' or '.join(LIMITS)}")
    for name, rate in rates.items():
        if rate is None:
            continue
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 1 <= rate <= MAX_RATE:
            raise UsageError(f"{name} is bytes a second, at least 1, or null")
    return rates
