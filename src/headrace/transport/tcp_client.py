"""A client's side of TCP: dials one TLS connection for each stream."""

from __future__ import annotations

import socket
import ssl
import threading

from headrace.errors import CertificateChangedError, ConnectionLostError, UnreachableError
from headrace.transport import eyeballs
from headrace.transport.pacing import Limit, pace
from headrace.transport.tcp import CONNECT_TIMEOUT, TcpStream, client_context, is_loopback, tune


class TcpConnection:
    """A client's connection: dials one TLS connection for each stream, all to the same certificate."""

    transport = "tcp"

    def __init__(
        self,
        address: tuple[str, int],
        *,
        pin: bytes | None,
        limit: Limit | None = None,
        timeout: float = CONNECT_TIMEOUT,
    ) -> None:
        """Dials the first stream. pin: the only fingerprint to accept; None accepts any and then stays with it.
        limit: what all streams together may receive, and send.

        Raises UnreachableError, CertificateChangedError.
        """
        self.address = address
        self.limit = limit or Limit(None)
        self._timeout = timeout
        self._context = client_context()
        self._lock = threading.Lock()
        self._streams: list[TcpStream] = []  # those that are open
        self._bytes_over = 0  # of the others
        self._aborted = False
        self._pin = pin
        self._won: eyeballs.Address | None = None  # the host's address that answered first
        self._first: TcpStream | None = self._dial()
        self.fingerprint = self._first.fingerprint
        self._pin = self.fingerprint

    def open_stream(self, *, bulk: bool = False) -> TcpStream:
        first = self._take_first()
        if first and first.hung_up():  # nobody took it for so long that the host ended it
            first.close()
            first = None
        return first or self._dial()

    def _take_first(self) -> TcpStream | None:
        with self._lock:
            stream, self._first = self._first, None
        return stream

    def _dial(self) -> TcpStream:
        where = f"{self.address[0]}:{self.address[1]}"
        try:
            sock = self._connect()
        except socket.gaierror as why:
            hint = "Check the spelling, or use its address."
            raise UnreachableError(f"no host named {self.address[0]}", hint=hint) from why
        except TimeoutError as why:
            if self._aborted:
                raise ConnectionLostError("the connection was aborted") from why
            hint = f"Check the address; a firewall may drop TCP and UDP {self.address[1]} there, or the machine sleeps."
            raise UnreachableError(f"{where} does not answer (waited {self._timeout:.0f} s)", hint=hint) from why
        except ConnectionRefusedError as why:
            raise UnreachableError(f"nobody listens on {where}") from why
        except (OSError, OverflowError, UnicodeError) as why:
            raise UnreachableError(f"{where} cannot be reached ({getattr(why, 'strerror', None) or why})") from why
        stream = None
        try:
            tune(sock, loopback=is_loopback(sock))
            stream = TcpStream(sock, self._context, server=False)
            pace(stream, self.limit)
            stream.handshake(self._timeout)
            if not stream.speaks_headrace:
                raise UnreachableError(f"what answers on {where} is not headrace")
            self._check_pin(stream, where)
        except (ssl.SSLError, OSError, ConnectionLostError) as why:
            sock.close()
            raise UnreachableError(f"what answers on {where} is not headrace, or hung up ({_reason(why)})") from why
        except BaseException:
            sock.close()
            raise
        with self._lock:
            self._forget_closed()
            self._streams.append(stream)
            if self._aborted:
                stream.abort()
        return stream

    def _forget_closed(self) -> None:
        """Each holds its buffers, a MiB and more."""
        closed = [stream for stream in self._streams if stream.closed]
        self._bytes_over += sum(stream.bytes_in + stream.bytes_out for stream in closed)
        self._streams = [stream for stream in self._streams if stream not in closed]

    def _connect(self) -> socket.socket:
        addresses = eyeballs.resolve(*self.address)
        addresses.sort(key=lambda address: address != self._won)  # it goes first; the others keep their order
        sock, self._won = eyeballs.connect(addresses, self._timeout, stop=lambda: self._aborted)
        return sock

    def _check_pin(self, stream: TcpStream, where: str) -> None:
        shown = stream.fingerprint
        if not shown:
            raise UnreachableError(f"what answers on {where} shows no certificate")
        if self._pin is not None and shown != self._pin:
            raise CertificateChangedError(
                f"the host at {where} shows another certificate ({shown.hex()[:16]}…) than at first contact "
                f"({self._pin.hex()[:16]}…): it was set up anew, or somebody is in between"
            )

    def abort(self) -> None:
        with self._lock:
            self._aborted = True
            streams = list(self._streams)
        for stream in streams:
            stream.abort()

    def close(self) -> None:
        """Closes the first stream where nobody took it; every other one is its owner's."""
        if first := self._take_first():
            first.close()

    @property
    def bytes_wire(self) -> int:
        """Bytes on the wire so far, both directions, all streams."""
        with self._lock:
            return self._bytes_over + sum(stream.bytes_in + stream.bytes_out for stream in self._streams)


def _reason(why: BaseException) -> str:
    if isinstance(why, ssl.SSLError):
        return (why.reason or "TLS error").replace("_", " ").lower()
    return getattr(why, "strerror", None) or str(why)
