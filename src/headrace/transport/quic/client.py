"""A client's side of QUIC: one connection, verified against the host's certificate, and streams on it.

No byte of headrace's own handshake crosses a connection that is not verified. Where the certificate is not known yet,
a first connection accepts any and does nothing but take the certificate that the host sends on it; it is closed, and a
second one is verified against that certificate. See docs/protocol.md.
"""

from __future__ import annotations

import errno
import socket
import ssl
import threading
import time
from pathlib import Path
from typing import Final

from headrace.errors import CertificateChangedError, ConnectionLostError, RefusedError, UnreachableError
from headrace.protocol.pake import fingerprint_of
from headrace.transport import eyeballs
from headrace.transport.pacing import Limit, pace
from headrace.transport.quic.endpoint import Endpoint
from headrace.transport.quic.known import Known
from headrace.transport.quic.lanes import MIB
from headrace.transport.quic.link import Link, PathFigures
from headrace.transport.quic.probe import REJECTED, Probe
from headrace.transport.quic.stream import QuicStream

CONNECT_TIMEOUT: Final = 10.0
STREAM_WINDOW: Final = 4 * MIB  # QUIC's own, and aiopquic's ring of it: a stream's rate is at most this in a round trip
CONNECTION_WINDOW: Final = 32 * MIB
LINGER: Final = 1.0  # seconds that a close waits for what was sent to arrive
ASK_AGAIN: Final = 0.2  # seconds after which a rejection is believed
LOOK: Final = 0.05  # seconds between two looks at the probe
_WRONG_ALPN: Final = 0x178  # a TLS alert, as QUIC reports it: CRYPTO_ERROR and no_application_protocol
_FULL: Final = 0x2  # CONNECTION_REFUSED


class _Dial:
    """One attempt: an endpoint with one connection on it."""

    def __init__(self, where: eyeballs.Address, congestion: str, *, cafile: Path | None, tickets: Path | None) -> None:
        """cafile: the only certificate to accept; None accepts any. Raises UnreachableError."""
        family, address = where
        self.link: Link | None = None
        self._where = where
        self.endpoint = Endpoint(on_link=self._linked, on_tick=self._look_at_route)
        self.endpoint.start(
            stream_window=STREAM_WINDOW,
            connection_window=CONNECTION_WINDOW,
            streams=1,
            congestion=congestion,
            is_client=True,
            ip_family=int(family),
            verify_peer=cafile is not None,
            ca_file=None if cafile is None else str(cafile),
            ticket_file=None if tickets is None else str(tickets),
        )
        self._address = address
        self.endpoint.dial(address[0], address[1])

    def _linked(self, endpoint: Endpoint, connection: int) -> Link:
        self.link = Link(endpoint, connection, on_stream=None)
        return self.link

    def _look_at_route(self) -> None:
        """Called by the endpoint's thread, with the lock. picoquic goes on to send from an address that this machine no
        longer has, and would find out after half a minute. Dialling anew is what helps, and it resumes."""
        link = self.link
        if link is None or not link.ready or link.closed or link.local is None:
            return
        if source_address(self._where) not in (None, link.local[0]) and not is_ours(link.local[0]):
            self.endpoint.count("quic_address_changed")
            link.close()
            link.fail("this machine's network address changed")

    def stands(self, end: float) -> Link:
        """Waits until the handshake is over. end: by time.monotonic. Raises UnreachableError, _RefusedHereError."""
        where = f"{self._address[0]}:{self._address[1]}"
        probe = Probe((self._address[0], self._address[1]))  # picoquic does not say that nobody listens; this may
        again: float | None = None  # when to ask once more: for some ms a share that starts is rejected, too
        try:
            with self.endpoint.lock:
                while True:
                    link = self.link
                    if link and link.closed:
                        raise _why_not(where, link)
                    if link and link.ready:
                        return link
                    now = time.monotonic()
                    if now >= end:
                        raise UnreachableError(f"{where} does not answer by UDP")
                    found = probe.step()
                    if found and found.outcome == REJECTED:
                        if again is None:
                            again = now + ASK_AGAIN
                        elif probe.started >= again:
                            raise UnreachableError(f"nobody listens on {where} by UDP ({found.reason})")
                        elif now >= again:
                            probe = Probe((self._address[0], self._address[1]))
                    self.endpoint.changed.wait(min(end - now, LOOK))
        finally:
            probe.close()

    def certificate(self, end: float) -> bytes:
        """The host's certificate in DER, as it sent it. Raises UnreachableError."""
        with self.endpoint.lock:
            while True:
                link = self.link
                if link is None or link.closed or (left := end - time.monotonic()) <= 0:
                    raise UnreachableError("what answers by QUIC sends no certificate and is not headrace")
                if link.certificate_whole:
                    return bytes(link.certificate)
                self.endpoint.changed.wait(left)


def source_address(where: eyeballs.Address) -> str | None:
    """The address from which this machine would send there now; None where it has no way. Sends nothing."""
    try:
        with socket.socket(where[0], socket.SOCK_DGRAM) as sock:
            sock.connect(where[1])
            address: str = sock.getsockname()[0]
            return address
    except OSError:
        return None


def is_ours(address: str) -> bool:
    """Whether this machine has that address. One that is merely no longer the preferred one still works."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind((address, 0))
    except OSError as why:
        return why.errno != errno.EADDRNOTAVAIL
    return True


class _RefusedHereError(UnreachableError):
    """Our own side ended the handshake: the certificate is another one."""


def _why_not(where: str, link: Link) -> UnreachableError:
    if not link.code:
        return _RefusedHereError(f"the certificate of {where} was refused")
    if link.code == _WRONG_ALPN:
        return UnreachableError(f"what answers on {where} by QUIC is not headrace")
    if link.code == _FULL:
        return UnreachableError(f"the host at {where} takes no more connections")
    return UnreachableError(f"what answers on {where} by QUIC is not headrace, or hung up (error {link.code:#x})")


class QuicConnection:
    """Implements base.Connection. Thread-safe. Must be closed."""

    transport = "quic"

    def __init__(
        self,
        address: tuple[str, int],
        *,
        pin: bytes | None,
        certificates: Path,
        limit: Limit | None = None,
        timeout: float = CONNECT_TIMEOUT,
        congestion: str = "bbr1",
    ) -> None:
        """Dials. pin: the only fingerprint to accept; None accepts any and stays with it. certificates: a folder for
        those that are known. limit: what all streams together may receive, and send. timeout: seconds for all of it.

        Raises UnreachableError, CertificateChangedError, RefusedError, LocalDiskError.
        """
        self.address = address
        self.limit = limit or Limit(None)
        self._congestion = congestion
        self._known = Known(certificates)
        self._end = time.monotonic() + timeout
        self._aborted = False
        self._closing = threading.Lock()
        self._streams: list[QuicStream] = []
        self._dial = self._connect(pin)
        assert self._dial.link is not None
        self._link = self._dial.link
        self.resumed = self._link.resumed

    # ---- dialling ------------------------------------------------------------------------------------------------

    def _connect(self, pin: bytes | None) -> _Dial:
        failure: UnreachableError | None = None
        addresses = self._addresses()
        deadline = self._end
        for number, where in enumerate(addresses):
            now = time.monotonic()
            self._end = now + (deadline - now) / (len(addresses) - number)  # one that is silent leaves time for others
            try:
                return self._connect_to(where, pin)
            except UnreachableError as why:
                failure = why
        assert failure is not None
        raise failure

    def _addresses(self) -> list[eyeballs.Address]:
        try:
            return eyeballs.resolve(*self.address, socket.SOCK_DGRAM)
        except (OSError, OverflowError, UnicodeError) as why:
            hint = "Check the spelling, or use its address."
            raise UnreachableError(f"no host named {self.address[0]}", hint=hint) from why

    def _connect_to(self, where: eyeballs.Address, pin: bytes | None) -> _Dial:
        cafile = self._known.find(pin) if pin else None
        fresh = cafile is None
        if cafile is None:
            der = self._ask_for_certificate(where, pin)
            pin, cafile = fingerprint_of(der), self._known.add(der)
        assert pin is not None
        self.fingerprint = pin
        dial = _Dial(where, self._congestion, cafile=cafile, tickets=self._known.tickets(pin))
        try:
            dial.stands(self._end)
        except _RefusedHereError as why:
            dial.endpoint.stop()
            if not fresh:
                self._ask_for_certificate(where, pin)  # raises CertificateChangedError, which says more
            raise RefusedError(
                "the host's certificate cannot be verified by QUIC: the host hung up, or somebody is in between",
                hint="Use --transport tcp.",
            ) from why
        except BaseException:
            dial.endpoint.stop()
            raise
        return dial

    def _ask_for_certificate(self, where: eyeballs.Address, pin: bytes | None) -> bytes:
        """Over a connection that accepts any certificate and carries nothing else. Raises CertificateChangedError where
        it is not the pinned one."""
        dial = _Dial(where, self._congestion, cafile=None, tickets=None)
        try:
            dial.stands(self._end)
            der = dial.certificate(self._end)
        finally:
            dial.endpoint.stop()
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=der)
        except (ssl.SSLError, ValueError) as why:
            raise UnreachableError("what answers by QUIC sends no certificate and is not headrace") from why
        shown = fingerprint_of(der)
        if pin is not None and shown != pin:
            raise CertificateChangedError(
                f"the host at {self.address[0]}:{self.address[1]} shows another certificate ({shown.hex()[:16]}…) than "
                f"at first contact ({pin.hex()[:16]}…): it was set up anew, or somebody is in between"
            )
        return der

    # ---- streams -------------------------------------------------------------------------------------------------

    def open_stream(self, *, bulk: bool = False) -> QuicStream:
        """A new stream. The host hears of it with the first bytes that are sent. bulk: it gives way to others.

        Does not block. Raises ConnectionLostError.
        """
        with self._dial.endpoint.lock:
            if self._aborted:
                raise ConnectionLostError("the connection was aborted")
            stream = self._link.open()
            if not bulk:
                stream.hurry()
            self._streams = [known for known in self._streams if not known.released]
            self._streams.append(stream)
        pace(stream, self.limit)
        return stream

    def rtt(self) -> float | None:
        """Seconds; None before the first measurement."""
        with self._dial.endpoint.lock:
            return self._link.rtt()

    def path(self) -> PathFigures:
        """What picoquic says about the path, at most a moment old."""
        with self._dial.endpoint.lock:
            return self._link.path()

    @property
    def bytes_wire(self) -> int:
        """Bytes on the wire so far, both directions, all streams: QUIC's packets, without the heads of UDP and IP.

        Blocks until picoquic has said so, a moment at most."""
        self._dial.endpoint.look(self._link)
        figures = self.path()
        return figures.bytes_in + figures.bytes_out

    # ---- the end -------------------------------------------------------------------------------------------------

    def abort(self) -> None:
        """From any thread: every stream fails at once, and those that will be opened. `close` is still due."""
        with self._dial.endpoint.lock:
            self._aborted = True
            for stream in self._streams:
                stream.abort()

    def close(self) -> None:
        """Waits for what closed streams sent, one second at most; then ends the connection and its threads. May be
        called again."""
        with self._closing:
            if not self._aborted:
                self._dial.endpoint.linger(LINGER)
            self._dial.endpoint.look(self._link)  # so that `bytes_wire` says it all
            self._dial.endpoint.stop()
