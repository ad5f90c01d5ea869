"""The host's side of QUIC: one UDP port, many connections, and a thread for each stream, which its owner starts."""

from __future__ import annotations

import logging
import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from headrace.errors import ConnectionLostError
from headrace.transport.identity import Identity
from headrace.transport.quic.endpoint import Endpoint
from headrace.transport.quic.lanes import MIB
from headrace.transport.quic.link import REFUSED, Link
from headrace.transport.quic.stream import QuicStream

log = logging.getLogger("headrace.quic")

STREAM_WINDOW: Final = MIB  # QUIC's own: what a client sends is small, and a host serves many
CONNECTION_WINDOW: Final = 8 * MIB


@dataclass(frozen=True, slots=True)
class Limits:
    """connections: in all. per_address: of them from one address. streams: open at once on one connection.

    handshake, idle: seconds that QUIC's handshake may take, and that a connection may have no stream. As long as that,
    what was sent on a stream before its close may wait for a peer that takes nothing.
    """

    connections: int = 256
    per_address: int = 32
    streams: int = 32
    handshake: float = 10.0
    idle: float = 20.0


class QuicListener:
    """Accepts connections and hands on their streams. counters: how often something was turned away, by reason."""

    def __init__(
        self,
        *,
        port: int,
        bind: str,
        identity: Identity,
        on_stream: Callable[[QuicStream, str], None],
        congestion: str = "bbr1",
        limits: Limits = Limits(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """bind: an address, empty for all. aiopquic binds all of them, so connections to another one are closed.

        on_stream: takes a new stream and its peer's address; called by QUIC's thread and must not block. It may raise
        ConnectionLostError to turn the stream away.

        Raises UnreachableError: no aiopquic, or the port cannot be bound.
        """
        self.limits = limits
        self._bind = bind
        self._on_stream = on_stream
        self._identity = identity
        self._certificate = _certificate(identity)
        self._clock = clock
        self._endpoint = Endpoint(
            on_link=self._linked, on_ready=self._stands, on_end=self._ended, on_tick=self._look_after, clock=clock
        )
        self._endpoint.start(
            stream_window=STREAM_WINDOW,
            connection_window=CONNECTION_WINDOW,
            streams=limits.streams,
            congestion=congestion,
            port=port,
            is_client=False,
            cert_file=str(identity.file),
            key_file=str(identity.file),
            max_connections=limits.connections,
            ip_family=_family(bind),
        )

    @property
    def counters(self) -> Counter[str]:
        """quic_connections, quic_handshakes_failed, quic_handshakes_slow, quic_refused_bind, quic_refused_address,
        quic_refused_streams, quic_rules_broken, quic_idle, quic_streams_given_up."""
        with self._endpoint.lock:
            return Counter(self._endpoint.counters)

    @property
    def connections(self) -> int:
        with self._endpoint.lock:
            return len(self._endpoint.links)

    def stop(self) -> None:
        """Ends every connection, tells the peers, joins the thread. May be called again."""
        self._endpoint.stop()

    # ---- called by the endpoint's thread, with the lock -----------------------------------------------------------

    def _linked(self, endpoint: Endpoint, connection: int) -> Link:
        link: Link
        link = Link(endpoint, connection, on_stream=lambda stream: self._offer(link, stream))
        link.local = endpoint.native_context.local_address(connection)
        link.peer = endpoint.native_context.peer_address(connection)
        self._check_bind(link)  # before the handshake is over, where picoquic knows the address by then
        return link

    def _check_bind(self, link: Link) -> None:
        if link.local and self._bind and not _is_any(self._bind) and _host(link.local) != self._bind:
            self._refuse(link, "quic_refused_bind", "it came to another address than the one shared on")

    def _stands(self, link: Link) -> None:
        address = _host(link.peer)
        self._endpoint.count("quic_connections")
        self._check_bind(link)
        if link.closed:
            return
        if sum(_host(other.peer) == address for other in self._standing()) > self.limits.per_address:
            self._refuse(link, "quic_refused_address", "it has too many connections")
        else:
            link.send_certificate(self._certificate)

    def _standing(self) -> list[Link]:
        return [link for link in self._endpoint.links.values() if link.ready and not link.closed]

    def _refuse(self, link: Link, counter: str, why: str) -> None:
        self._endpoint.count(counter)
        log.debug("turned %s away by QUIC: %s", _host(link.peer), why)
        link.close(REFUSED)
        link.fail("this side refused the connection")

    def _offer(self, link: Link, stream: QuicStream) -> None:
        if link.closed:
            return
        try:
            if len(link.streams) > self.limits.streams:
                raise ConnectionLostError("too many streams")
            self._on_stream(stream, _host(link.peer))
        except ConnectionLostError as why:
            self._endpoint.count("quic_refused_streams")
            log.debug("turned a stream of %s away: %s", _host(link.peer), why.message)
            stream.abort()

    def _ended(self, link: Link) -> None:
        if not link.ready:
            self._endpoint.count("quic_handshakes_failed")

    def _look_after(self) -> None:
        now = self._clock()
        for link in list(self._endpoint.links.values()):
            if link.closed:
                continue
            if not link.ready and now - link.began > self.limits.handshake:
                self._refuse(link, "quic_handshakes_slow", "its handshake takes too long")
            elif link.give_up(now, self.limits.idle):
                link.idle_since = now
            elif link.ready and now - link.idle_since > self.limits.idle:
                self._refuse(link, "quic_idle", "it has no streams")


def _certificate(identity: Identity) -> bytes:
    text = identity.file.read_text("ascii")
    return ssl.PEM_cert_to_DER_cert(text[text.index("-----BEGIN CERTIFICATE-----") :].strip())


def _family(bind: str) -> int:
    """For aiopquic: AF_INET, AF_INET6, or 0 for both."""
    if bind:
        return int(socket.AF_INET6 if ":" in bind else socket.AF_INET)
    return 0 if socket.has_dualstack_ipv6() else int(socket.AF_INET)


def _is_any(bind: str) -> bool:
    return bind in ("0.0.0.0", "::")


def _host(address: tuple[str, int] | None) -> str:
    return address[0] if address else ""
