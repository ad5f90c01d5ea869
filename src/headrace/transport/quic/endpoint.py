"""One UDP socket with picoquic behind it, and the one Python thread that takes what arrives."""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
import os
import select
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, Final

from headrace.errors import UnreachableError
from headrace.transport.quic import binding
from headrace.transport.quic.link import Link
from headrace.transport.quic.stream import BULK

log = logging.getLogger("headrace.quic")

ALPN: Final = "headrace"
NAME: Final = "headrace"  # the name in every host's certificate, and what a client asks for
IDLE_TIMEOUT: Final = 30.0  # seconds until a silent peer is given up
KEEP_ALIVE: Final = 10.0
SOCKET_BUFFER: Final = 4 * 1024 * 1024  # bytes; the system cuts it down to net.core.rmem_max and wmem_max
TICK: Final = 0.5  # seconds between two looks at what timed out
AGAIN: Final = 0.002  # seconds until what found no room is tried again
OPENING: Final = 2.0  # seconds that the socket may take to open
LOOK: Final = 0.02  # seconds that a question to picoquic may take
GOODBYE: Final = 0.5  # seconds that a close may take to reach the wire

_LIVE: weakref.WeakSet[Endpoint] = weakref.WeakSet()


class Endpoint:
    """Owns a transport context, its thread and the connections on it.

    aiopquic's rules: one thread at a time calls a transport context, and nothing may name a connection or a stream's
    state after the event that ended it was handled. So every call happens with `lock`, except for `drain_rx`, which
    only the endpoint's own thread makes; the interpreter lock keeps that apart from the others.
    """

    def __init__(
        self,
        *,
        on_link: Callable[[Endpoint, int], Link],
        on_ready: Callable[[Link], None] = lambda link: None,
        on_end: Callable[[Link], None] = lambda link: None,
        on_tick: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """on_link makes the Link of a new connection. All of them are called by the endpoint's thread with the lock.

        Raises binding.UnavailableError.
        """
        self.native = binding.load()
        self.native_context: Any = self.native.context()
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)  # a connection stands or ended, a certificate came
        self.rounds = 0  # how often what arrived was taken
        self.round = threading.Condition(self.lock)
        self.clock = clock
        self.links: dict[int, Link] = {}
        self.counters: Counter[str] = Counter()
        self._on_link, self._on_ready, self._on_end, self._on_tick = on_link, on_ready, on_end, on_tick
        self._owed: dict[object, deque[Callable[[], bool]]] = {}  # by what keeps them in order
        self._started = False
        self._open = False  # the socket
        self._stopping = False
        self._ended = False
        self._ending = threading.Lock()
        self._wake_read, self._wake_write = os.pipe()
        self._thread = threading.Thread(target=self._run, name="headrace-quic", daemon=True)

    def start(self, *, stream_window: int, connection_window: int, streams: int, congestion: str, **more: Any) -> None:
        """Binds the socket and starts the threads. Windows: QUIC's own, in bytes. streams: that the peer
        may open at once. more: for aiopquic's TransportContext.start. Raises UnreachableError."""
        try:
            self.native_context.start(
                alpn=ALPN,
                congestion_control_algorithm=congestion,
                rx_data_ring_cap=stream_window,
                initial_max_data=connection_window,
                initial_max_streams_bidi=streams,
                initial_max_streams_uni=1,
                idle_timeout_ms=int(IDLE_TIMEOUT * 1000),
                keep_alive_interval_ms=int(KEEP_ALIVE * 1000),
                socket_buffer_size=SOCKET_BUFFER,
                **more,
            )
        except (OSError, RuntimeError, ValueError) as why:
            self.stop()
            raise UnreachableError(f"QUIC cannot open its UDP socket ({why})") from why
        self.native_context.set_default_stream_priority(BULK)
        _stop_at_exit()
        _LIVE.add(self)
        with self._ending:  # the interpreter's exit may stop it at any moment
            if not self._ended:
                self._thread.start()
                self._started = True
        if not self._started:
            self.native_context.stop()
            raise UnreachableError("this program ends")
        with self.lock:
            end = time.monotonic() + OPENING
            while not self._open and (left := end - time.monotonic()) > 0:
                self.changed.wait(left)
            opened = self._open
        if not opened:  # its thread binds the socket, and ends without a word where it cannot
            self.stop()
            raise UnreachableError("QUIC cannot open its UDP socket")

    def dial(self, host: str, port: int) -> None:
        """Begins a connection to an IP address; `on_link` and `on_ready` tell of it."""
        with self.lock:
            self.native_context.create_client_connection(host, port, sni=NAME, alpn=ALPN)

    def count(self, name: str) -> None:
        self.counters[name] += 1

    def soon(self, call: Callable[[], bool], of: object) -> None:
        """Calls now, with the lock, and again until it answers True: aiopquic's command ring may be full for a moment,
        and a stream's own for as long as its peer likes. So the order of asking is kept among those `of` the same
        stream or link, and they hold nobody else up."""
        if of in self._owed:
            self._owed[of].append(call)
        elif not call():
            self._owed[of] = deque([call])

    def forget(self, of: object) -> None:
        """What still waits for room is of no use any more."""
        self._owed.pop(of, None)

    def owes(self, of: object) -> bool:
        """Whether something of `soon` still waits for room."""
        return of in self._owed

    def _pay(self) -> None:
        for of, waiting in list(self._owed.items()):
            while waiting and waiting[0]():
                waiting.popleft()
            if not waiting:
                self._owed.pop(of, None)

    # ---- the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        poller = select.poll()
        poller.register(self.native_context.eventfd, select.POLLIN)
        poller.register(self._wake_read, select.POLLIN)
        due = self.clock() + TICK
        while not self._stopping:
            poller.poll(AGAIN * 1000 if self._owed else TICK * 1000)
            if self._stopping:
                return
            events = self.native_context.drain_rx()
            with self.lock:
                for event in events:
                    self._route(*event)
                self.native_context.release_batch()
                self._guarded(self._pay)
                self.rounds += 1
                self.round.notify_all()
                if self.clock() >= due:
                    due = self.clock() + TICK
                    self._guarded(self._on_tick)

    def _route(
        self,
        kind: int,
        number: int,
        data: memoryview | None,
        is_last: int,
        code: int,
        connection: int,
        context: int,
        other: int,
    ) -> None:
        if not connection:  # the context's own
            if kind == binding.READY:
                self._open = True
                self.changed.notify_all()
            return
        link = self.links.get(connection)
        if link is None:
            if kind not in (binding.READY, binding.ALMOST_READY):
                return  # what came with or after its end
            link = self.links[connection] = self._on_link(self, connection)
        known = link
        was_ready = link.ready
        try:
            link.event(kind, number, data, code, context)
            if link.ready and not was_ready:
                self._on_ready(link)
        except Exception:
            # One connection's bug must not take the others down, and must not be silent.
            log.exception("a QUIC connection failed")
            known.close()
            known.fail("this side failed")
        if not link.closed and kind not in (binding.STREAM_DATA, binding.STREAM_TX_DRAINED):
            self.changed.notify_all()

    def _guarded(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception:
            log.exception("looking after QUIC connections failed")

    def ended(self, link: Link) -> None:
        """For Link.end."""
        if self.links.get(link.connection) is link:
            del self.links[link.connection]
        self._on_end(link)
        self.changed.notify_all()

    # ---- the end -------------------------------------------------------------------------------------------------

    def linger(self, seconds: float) -> None:
        """Waits until what closed streams sent has arrived, for so long at most."""
        end = time.monotonic() + seconds
        with self.lock:
            while any(stream.closed for link in self.links.values() for stream in link.streams.values()):
                left = end - time.monotonic()
                if left <= 0:
                    return
                self.changed.wait(left)

    def look(self, link: Link) -> None:
        """Has picoquic say anew what it knows of the path, and waits for that, a moment at most."""
        with self.lock:
            end, before = time.monotonic() + LOOK, self.rounds
            link.path()
            while not link.closed and self.rounds < before + 2 and (left := end - time.monotonic()) > 0:
                self.round.wait(left)
                link.path()

    def stop(self) -> None:
        """Tells every peer, ends the threads, frees everything. May be called again, from any thread but its own; who
        comes second waits for the first."""
        with self._ending:
            if self._ended:
                return
            self._ended = True
            if self._started:
                self._wind_up()
            self._close_pipe()
            _LIVE.discard(self)

    def _wind_up(self) -> None:
        with self.lock:
            for link in list(self.links.values()):
                link.close()
                link.fail("this side closed the connection")
            end = time.monotonic() + GOODBYE
            while self.links and (left := end - time.monotonic()) > 0:
                self.changed.wait(left)
            self._stopping = True
        os.write(self._wake_write, b"x")
        self._thread.join()
        with self.lock:
            self.native_context.stop()  # picoquic's thread has ended when this returns
            for link in list(self.links.values()):
                link.end("this side closed the connection")
            self._owed.clear()
            self.native_context = None  # frees its memory and its descriptor now

    def _close_pipe(self) -> None:
        for descriptor in (self._wake_read, self._wake_write):
            with contextlib.suppress(OSError):
                os.close(descriptor)


@functools.cache
def _stop_at_exit() -> None:
    atexit.register(_stop_all)


def _stop_all() -> None:
    """At the interpreter's exit: its threads must not meet picoquic's when everything is torn down."""
    for endpoint in list(_LIVE):
        endpoint.stop()
