"""A share's UDP side: QUIC on the port number that TCP has. It comes up a moment after TCP, on a thread of its own."""

from __future__ import annotations

import errno
import logging
import selectors
import socket
import threading
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from headrace.errors import HeadraceError
from headrace.transport.identity import Identity
from headrace.transport.quic.probe import answer_to

if TYPE_CHECKING:
    from headrace.transport.quic.listener import QuicListener
    from headrace.transport.quic.stream import QuicStream

log = logging.getLogger("headrace.host")

PAUSE: Final = 0.5  # seconds that the import of aiopquic leaves to whatever else starts; a datagram ends it early
LOOK: Final = 0.05

# Why shares went on by TCP alone, since the process started: for metrics.
FALLBACKS: Final[Counter[str]] = Counter()


class UdpSide:
    """Holds the UDP port from the beginning, and listens on it by QUIC once `start` was called."""

    def __init__(
        self, *, port: int, bind: str, identity: Identity, on_stream: Callable[[QuicStream, str], None]
    ) -> None:
        """on_stream: see transport.quic.listener. Raises OSError: the port is not free for UDP."""
        self._port, self._bind, self._identity, self._on_stream = port, bind, identity, on_stream
        self._reserved: socket.socket | None = _reserve(bind, port)
        self._stopping = threading.Event()
        self._asked = threading.Event()  # somebody wants QUIC
        self._loaded = threading.Event()
        self._listener: QuicListener | None = None
        self.problem: str | None = None  # why there is no QUIC, once that is known
        # Not a daemon: an interpreter that ends in the middle of an import crashes.
        self._starting = threading.Thread(target=self._start, name="headrace-udp")
        self._answering = threading.Thread(target=self._answer, name="headrace-udp-probes", daemon=True)

    def start(self) -> None:
        self._answering.start()
        self._starting.start()

    def stop(self) -> None:
        """Ends every connection and joins the threads. May be called again."""
        self._stopping.set()
        self._asked.set()
        if self._starting.ident is not None:
            self._starting.join()
        self._release()
        if self._listener:
            self._listener.stop()

    @property
    def listening(self) -> bool:
        return self._listener is not None

    @property
    def counters(self) -> Counter[str]:
        """What was turned away, by reason; see QuicListener."""
        return self._listener.counters if self._listener else Counter()

    def _start(self) -> None:
        self._asked.wait(PAUSE)
        try:
            if self._stopping.is_set():
                return
            from headrace.transport.quic import binding
            from headrace.transport.quic.listener import QuicListener

            binding.load()
            self._release()  # aiopquic binds for itself
            self._listener = QuicListener(
                port=self._port, bind=self._bind, identity=self._identity, on_stream=self._on_stream
            )
        except HeadraceError as why:
            self._release()  # before it is told: who hears of it may want the port
            fall_back(why.message)
            self.problem = why.message
        finally:
            self._release()

    def _answer(self) -> None:
        """Tells whoever asks that QUIC is to be had here, as the library will, once that is loaded: a client does not
        wait for that."""
        while not self._loaded.is_set():
            sock = self._reserved
            try:
                if sock is None or not _readable(sock, LOOK):
                    continue
                datagram, whence = sock.recvfrom(2048)
                self._asked.set()
                if answer := answer_to(datagram):
                    sock.sendto(answer, whence)
            except (OSError, ValueError):  # nobody to answer; or the socket was closed meanwhile
                continue

    def _release(self) -> None:
        self._loaded.set()
        if self._answering.is_alive():
            self._answering.join()
        if self._reserved:
            self._reserved.close()
            self._reserved = None


def _readable(sock: socket.socket, seconds: float) -> bool:
    """Not by select: that takes no descriptor above 1023."""
    with selectors.DefaultSelector() as selector:
        selector.register(sock, selectors.EVENT_READ)
        return bool(selector.select(seconds))


def fall_back(why: str) -> None:
    """Said once for each share, and counted."""
    FALLBACKS["no_quic"] += 1
    log.warning("no QUIC, this share is reached by TCP alone: %s", why)


def _reserve(bind: str, port: int) -> socket.socket:
    """A UDP socket that holds the port on what aiopquic will bind."""
    both = not bind and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both or ":" in bind else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not both)
        sock.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", port))
    except OSError as why:
        sock.close()
        if both and why.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
            return _reserve("0.0.0.0", port)  # no IPv6 here
        raise
    return sock
