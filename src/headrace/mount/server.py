"""Answers the kernel's FUSE requests, on threads.

Each thread reads one request, answers it, and reads the next. While one waits for the host, others go on: there is
always one that reads, up to MAX_THREADS. The kernel's device is read and written directly, without libfuse: see
docs/decisions/019-fuse-without-libfuse.md.
"""

from __future__ import annotations

import errno
import heapq
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple, Protocol

from headrace.mount import wire
from headrace.mount.wire import Op

log = logging.getLogger("headrace.mount")

MAX_THREADS: Final = 256  # requests that wait for the host at the same time
KEEP_THREADS: Final = 4  # that wait for the kernel at the same time; a fifth ends
BUFFER: Final = 64 * 1024  # bytes of a request: a name, mostly. The kernel wants 8 KiB at least
MAX_WRITE: Final = 4096  # bytes; nothing is written, and the kernel's requests stay below BUFFER
MAX_READ: Final = 1024 * 1024  # bytes of one read: what the kernel allows at most (fs.fuse.max_pages_limit)
PAGE: Final = os.sysconf("SC_PAGESIZE")
MAX_BACKGROUND: Final = 64  # the kernel's own requests (read-ahead) in flight
INTERRUPT_GRACE: Final = 1.0  # seconds from a signal to the EINTR: most answers come before, and need none

Piece = bytes | bytearray | memoryview


class Request(NamedTuple):
    """One request. body: what follows the header; valid until the answer."""

    unique: int
    node: int
    body: memoryview


Handler = Callable[[Request], Piece]


class Operations(Protocol):
    """A file system, as the server calls it: from many threads at once."""

    def handlers(self) -> Mapping[int, Handler]:
        """By opcode: what answers it. An OSError becomes its errno."""

    def unexpected(self, why: Exception) -> int:
        """The errno of what a handler raised that is no OSError."""


class Server:
    """Serves one mounted device until it is unmounted. `close` first, then `wait`."""

    def __init__(self, device: int, operations: Operations, *, clock: Callable[[], float] = time.monotonic) -> None:
        """device: descriptor of /dev/fuse, mounted; the server owns it from here on."""
        self._device = device
        self._operations = operations
        self._clock = clock
        self._handlers: Final = dict(operations.handlers())
        self._lock = threading.Lock()
        self._idle = 0
        self._threads = 0
        self._ended = threading.Event()
        self._on_end: Callable[[], None] = lambda: None
        self._later = _Later(clock)
        self.requests = 0  # approximate: threads count without a lock
        self.minor = 0

    def start(self) -> None:
        """Answers the kernel's INIT on this thread, then serves on others. Raises OSError."""
        self._greet()
        self._later.start()
        self._more()

    def wait(self, timeout: float | None = None) -> bool:
        """Until it is unmounted; whether it is."""
        return self._ended.wait(timeout)

    def on_end(self, callback: Callable[[], None]) -> None:
        """`callback` is called on one of its threads when it was unmounted; at once where it was already."""
        self._on_end = callback
        if self._ended.is_set():
            callback()

    def close(self) -> None:
        """After unmounting. The device is closed by the last thread that reads it."""
        self._later.close()

    # ---- notices -------------------------------------------------------------------------------------------------

    def forget(self, names: Iterable[tuple[int, bytes]], nodes: Iterable[int]) -> None:
        """The kernel asks anew for these names, each with its directory's node, and for the attributes and the listings
        of these nodes. Does not block: a notice may have to wait for a request that is under way in that directory."""

        def tell() -> None:
            for parent, name in names:
                body = wire.INVAL_ENTRY.pack(parent, len(name), wire.EXPIRE_ONLY) + name + b"\0"
                self._notify(wire.NOTIFY_INVAL_ENTRY, body)
            for node in nodes:
                self._notify(wire.NOTIFY_INVAL_INODE, wire.INVAL_INODE.pack(node, 0, 0))

        self._later.at(0.0, tell)

    def _notify(self, code: int, body: bytes) -> None:
        self._write([wire.OUT_HEADER.pack(wire.OUT_HEADER.size + len(body), code, 0), body])

    # ---- serving -------------------------------------------------------------------------------------------------

    def _greet(self) -> None:
        buffer = bytearray(BUFFER)
        while True:
            size = os.readv(self._device, [buffer])
            _, op, unique, *_ = wire.IN_HEADER.unpack_from(buffer)
            if op != Op.INIT:
                raise OSError(errno.EPROTO, "the kernel began with something else than INIT")
            major, minor, readahead, flags = wire.INIT_IN.unpack_from(buffer, wire.IN_HEADER.size)
            if major < wire.MAJOR or (major == wire.MAJOR and minor < wire.OLDEST_MINOR):
                raise OSError(errno.EPROTO, f"this kernel speaks FUSE {major}.{minor}; 7.31 (Linux 5.4) is needed")
            log.debug("the kernel speaks FUSE %d.%d, flags %#x (%d bytes)", major, minor, flags, size)
            self.minor = min(minor, wire.MINOR)
            pages = MAX_READ // PAGE
            answer = wire.INIT_OUT.pack(
                *(wire.MAJOR, self.minor, max(readahead, MAX_READ), flags & wire.WANTED),
                *(MAX_BACKGROUND, MAX_BACKGROUND * 3 // 4, MAX_WRITE, 1, pages, 0, 0),
            )
            self._answer(unique, answer)
            if major == wire.MAJOR:
                return

    def _more(self) -> None:
        """Starts a thread, where there is none that reads and there may be one more."""
        with self._lock:
            if self._idle or self._threads >= MAX_THREADS:
                return
            self._threads += 1
            self._idle += 1
        try:
            threading.Thread(target=self._serve, name="headrace-fuse", daemon=True).start()
        except RuntimeError:  # no further thread is allowed here: those that are there have to do
            with self._lock:
                self._threads -= 1
                self._idle -= 1

    def _serve(self) -> None:
        buffer = bytearray(BUFFER)
        view = memoryview(buffer)
        into = [buffer]
        unpack, header = wire.IN_HEADER.unpack_from, wire.IN_HEADER.size
        lock, handlers, device = self._lock, self._handlers, self._device
        while True:
            try:
                size = os.readv(device, into)
            except OSError as why:
                if why.errno in (errno.EINTR, errno.EAGAIN, errno.ENOENT):  # ENOENT: it was interrupted meanwhile
                    continue
                self._end(why)
                return
            with lock:
                self._idle -= 1
                last = not self._idle
            if last:
                self._more()
            _, op, unique, node, *_ = unpack(buffer)
            self.requests += 1
            if op == Op.INTERRUPT:
                self._interrupt(view[header:size])
            else:
                self._handle(handlers.get(op), op, Request(unique, node, view[header:size]))
            with lock:
                if self._idle >= KEEP_THREADS:
                    self._threads -= 1
                    return
                self._idle += 1

    def _handle(self, handler: Handler | None, op: int, request: Request) -> None:
        try:
            if handler is None:
                if op not in wire.NO_REPLY:
                    self._fail(request.unique, errno.ENOSYS)
                return
            answer = handler(request)
        except OSError as why:
            failure = why.errno or errno.EIO
        except Exception as why:  # noqa: BLE001  # the request must be answered, whatever is wrong
            failure = self._operations.unexpected(why)
        else:
            if op not in wire.NO_REPLY:
                self._answer(request.unique, answer)
            return
        if op not in wire.NO_REPLY:
            self._fail(request.unique, failure)

    def _answer(self, unique: int, body: Piece) -> None:
        self._write((wire.OUT_HEADER.pack(wire.OUT_HEADER.size + len(body), 0, unique), body))

    def _fail(self, unique: int, error: int) -> None:
        self._write((wire.OUT_HEADER.pack(wire.OUT_HEADER.size, -error, unique),))

    def _write(self, pieces: Sequence[Piece]) -> None:
        try:
            os.writev(self._device, pieces)
        except OSError as why:
            # ENOENT: nobody waits for it any more. ENODEV, EBADF: unmounted, which the readers notice.
            if why.errno not in (errno.ENOENT, errno.ENODEV, errno.EBADF, errno.ENOTCONN):
                log.warning("the kernel does not take an answer: %s", why)

    def _interrupt(self, body: memoryview) -> None:
        """A signal came for who waits. The answer that it waits for may come at any moment, and many programs cannot
        bear EINTR from a file; but Ctrl-C must end what waits for a host that is gone."""
        (unique,) = wire.INTERRUPT_IN.unpack_from(body)
        self._later.at(INTERRUPT_GRACE, lambda: self._fail(unique, errno.EINTR))

    def _end(self, why: OSError) -> None:
        if why.errno not in (errno.ENODEV, errno.EBADF, errno.ECONNABORTED) and not self._ended.is_set():
            log.warning("the kernel's device cannot be read any more: %s", why)
        with self._lock:
            self._threads -= 1
            self._idle -= 1
            first, last = not self._ended.is_set(), not self._threads
            self._ended.set()
        if first:
            self._on_end()
        if last:
            os.close(self._device)


class _Later:
    """Calls things later, on one thread of its own."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._ready = threading.Condition()
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0
        self._closed = False

    def start(self) -> None:
        threading.Thread(target=self._run, name="headrace-fuse-later", daemon=True).start()

    def at(self, seconds: float, call: Callable[[], None]) -> None:
        """Calls `call` after so many seconds."""
        with self._ready:
            self._number += 1
            heapq.heappush(self._heap, (self._clock() + seconds, self._number, call))
            self._ready.notify()

    def close(self) -> None:
        with self._ready:
            self._closed = True
            self._ready.notify()

    def _run(self) -> None:
        while True:
            with self._ready:
                while not self._closed and (not self._heap or self._heap[0][0] > self._clock()):
                    self._ready.wait(None if not self._heap else self._heap[0][0] - self._clock())
                if self._closed:
                    return
                _, _, call = heapq.heappop(self._heap)
            call()
