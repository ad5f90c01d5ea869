"""Streams over TCP with TLS 1.3: one TLS connection a stream.

TLS runs over memory buffers, not over the socket: the standard library's SSLSocket makes two system calls for every
16 KiB record that it receives; here one `recv_into` fetches what the kernel has, up to RECV_SIZE
(docs/decisions/002-tls-over-memory-buffers.md has the figures).
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import sys
import threading
import time
from collections.abc import Callable
from typing import Final

from headrace.errors import CertificateChangedError, ConnectionLostError, UnreachableError
from headrace.protocol.pake import fingerprint_of

ALPN: Final = "headrace"
RECV_SIZE: Final = 512 * 1024
SEND_SIZE: Final = 256 * 1024  # encrypted bytes gathered before they go to the kernel: stays in the L2 cache
CONNECT_TIMEOUT: Final = 10.0
STALL_TIMEOUT: Final = 30.0
LINGER: Final = 2.0  # seconds that an orderly close may take
_TCP_INFO_RTT: Final = struct.Struct("=I")
_TCP_INFO_RTT_OFFSET: Final = 68  # tcpi_rtt, microseconds: struct tcp_info in linux/tcp.h
_TCP_INFO_SIZE: Final = 104


class TlsStream:
    """One TLS connection as a Stream. See base.Stream."""

    def __init__(
        self, sock: socket.socket, context: ssl.SSLContext, *, server: bool, timeout: float = STALL_TIMEOUT
    ) -> None:
        self._sock = sock
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=server)
        self._inbox = memoryview(bytearray(64 * 1024))  # grows once there is bulk to receive
        self._closed = False
        self._aborted = False
        self.bytes_in = 0
        self.bytes_out = 0
        self._timeout: float | None = timeout
        self._deadline: float | None = None
        sock.settimeout(timeout)

    def handshake(self, timeout: float = CONNECT_TIMEOUT) -> None:
        """The TLS handshake, within `timeout` seconds in all. Raises ssl.SSLError and OSError as they come."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._flush()
            except ssl.SSLError:
                # What OpenSSL has to say about it (an alert) helps the other side to a clear message.
                with contextlib.suppress(OSError, ConnectionLostError):
                    self._flush()
                raise
            else:
                self._flush()
                break
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("the TLS handshake took too long")
            self._sock.settimeout(left)
            count = self._sock.recv_into(self._inbox)
            if not count:
                raise ConnectionResetError("closed during the TLS handshake")
            self.bytes_in += count
            self._incoming.write(self._inbox[:count])
        self._sock.settimeout(self._timeout)

    @property
    def fingerprint(self) -> bytes:
        """SHA-256 of the peer's certificate; empty where it showed none."""
        der = self._tls.getpeercert(binary_form=True)
        return fingerprint_of(der) if der else b""

    @property
    def speaks_headrace(self) -> bool:
        return self._tls.selected_alpn_protocol() == ALPN

    def send(self, *parts: bytes | memoryview) -> None:
        write = self._tls.write
        try:
            for part in parts:
                view = memoryview(part)
                position, size = 0, len(view)
                while position < size:
                    position += write(view[position : position + SEND_SIZE])
                    if self._outgoing.pending >= SEND_SIZE:
                        self._flush()
            self._flush()
        except ssl.SSLError as why:
            raise ConnectionLostError(f"the encrypted connection failed while sending ({why.reason})") from why

    def _flush(self) -> None:
        if not self._outgoing.pending:
            return
        data = memoryview(self._outgoing.read())
        try:
            while data:
                sent = self._sock.send(data)
                self.bytes_out += sent
                data = data[sent:]
        except TimeoutError as why:
            raise ConnectionLostError(f"the other side took nothing for {self._timeout:.0f} s") from why
        except OSError as why:
            raise ConnectionLostError(f"the connection broke while sending ({why.strerror or why})") from why

    def recv_into(self, into: memoryview) -> int:
        read: Callable[[int, memoryview], int] = self._tls.read  # type: ignore[assignment]  # typeshed: bytes only
        size, filled = len(into), 0
        # One call of OpenSSL's gives one record, 16 KiB at most: as many as have arrived are taken at once.
        while True:
            if self._aborted:  # bytes that had arrived could still be read after the shutdown
                raise ConnectionLostError("the connection was aborted")
            try:
                while filled < size:
                    count = read(size - filled, into[filled:])
                    if not count:
                        break
                    filled += count
                return filled
            except ssl.SSLWantReadError:
                if filled:
                    return filled
                self._fill(size)
            except ssl.SSLZeroReturnError:
                return filled
            except ssl.SSLError as why:
                raise ConnectionLostError(f"the encrypted connection failed ({why.reason})") from why

    def _fill(self, wanted: int) -> None:
        if self._outgoing.pending:  # the answer to a key update
            self._flush()
        if wanted >= RECV_SIZE // 4 and len(self._inbox) < RECV_SIZE:
            self._inbox = memoryview(bytearray(RECV_SIZE))
        if self._deadline is not None:
            self._wait_no_longer(self._deadline - time.monotonic())
        try:
            count = self._sock.recv_into(self._inbox)
        except TimeoutError as why:
            if self._deadline is not None:
                raise ConnectionLostError("the other side took too long") from why
            raise ConnectionLostError(f"nothing arrived for {self._timeout:.0f} s") from why
        except OSError as why:
            raise ConnectionLostError(f"the connection broke ({why.strerror or why})") from why
        if not count:
            # Without TLS's own goodbye anybody on the path could have cut the stream short.
            raise ConnectionLostError("the connection was cut off")
        self.bytes_in += count
        self._incoming.write(self._inbox[:count])

    def set_timeout(self, seconds: float | None) -> None:
        self._timeout = seconds
        self._sock.settimeout(seconds)

    def set_deadline(self, seconds: float | None) -> None:
        """Receiving fails when so many seconds are over from now, however many bytes came; None: no such end.

        Until the handshake is over: a peer that sends a byte now and then makes progress, too.
        """
        self._deadline = None if seconds is None else time.monotonic() + seconds
        self._sock.settimeout(self._timeout)

    def _wait_no_longer(self, seconds: float) -> None:
        if seconds <= 0:
            raise ConnectionLostError("the other side took too long")
        self._sock.settimeout(seconds if self._timeout is None else min(seconds, self._timeout))

    def rtt(self) -> float | None:
        if not hasattr(socket, "TCP_INFO"):
            return None
        try:
            info = self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_SIZE)
        except OSError:
            return None
        microseconds: int = _TCP_INFO_RTT.unpack_from(info, _TCP_INFO_RTT_OFFSET)[0]
        return microseconds / 1e6

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(OSError, ssl.SSLError, ConnectionLostError):
            self._sock.settimeout(LINGER)
            # Says goodbye, and then complains that the peer has not, or that bytes of it are left unread.
            with contextlib.suppress(ssl.SSLError):
                self._tls.unwrap()
            self._flush()
            self._sock.shutdown(socket.SHUT_WR)
        self._sock.close()

    def abort(self) -> None:
        self._aborted = True
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)


def client_context() -> ssl.SSLContext:
    """TLS 1.3 without certificate authorities: the caller compares the fingerprint, or binds it into the PAKE."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols([ALPN])
    return context


def server_context(identity_file: str) -> ssl.SSLContext:
    """TLS 1.3 with the host's certificate and key."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0  # peers come back with a credential, not with a TLS session
    context.load_cert_chain(identity_file)
    context.set_alpn_protocols([ALPN])
    return context


def tune(sock: socket.socket, *, loopback: bool) -> None:
    """Socket options for bulk: no Nagle, keep-alive that finds a dead peer in 90 s, BBR where the kernel has it."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sys.platform == "linux":
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
        if not loopback:  # there is no bottleneck to find, and pacing can only slow it
            with contextlib.suppress(OSError):  # module not loaded, or not allowed here: the default is fine
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"bbr")


def is_loopback(sock: socket.socket) -> bool:
    """Whether the peer is on this machine."""
    address = str(sock.getpeername()[0])
    return address.startswith(("127.", "::ffff:127.")) or address == "::1"


class TcpConnection:
    """A client's connection: dials one TLS connection for each stream, all to the same certificate."""

    transport = "tcp"

    def __init__(self, address: tuple[str, int], *, pin: bytes | None, timeout: float = CONNECT_TIMEOUT) -> None:
        """Dials the first stream. pin: the only fingerprint to accept; None accepts any and then stays with it.

        Raises UnreachableError, CertificateChangedError.
        """
        self.address = address
        self._timeout = timeout
        self._context = client_context()
        self._lock = threading.Lock()
        self._streams: list[TlsStream] = []
        self._aborted = False
        self._pin = pin
        self._first: TlsStream | None = self._dial()
        self.fingerprint = self._first.fingerprint
        self._pin = self.fingerprint

    def open_stream(self) -> TlsStream:
        with self._lock:
            stream, self._first = self._first, None
        return stream or self._dial()

    def _dial(self) -> TlsStream:
        where = f"{self.address[0]}:{self.address[1]}"
        try:
            sock = socket.create_connection(self.address, timeout=self._timeout)
        except socket.gaierror as why:
            hint = "Check the spelling, or use its address."
            raise UnreachableError(f"no host named {self.address[0]}", hint=hint) from why
        except TimeoutError as why:
            raise UnreachableError(f"{where} does not answer (waited {self._timeout:.0f} s)") from why
        except ConnectionRefusedError as why:
            raise UnreachableError(f"nobody listens on {where}") from why
        except (OSError, OverflowError, UnicodeError) as why:
            raise UnreachableError(f"{where} cannot be reached ({getattr(why, 'strerror', None) or why})") from why
        stream = None
        try:
            tune(sock, loopback=is_loopback(sock))
            stream = TlsStream(sock, self._context, server=False)
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
            self._streams.append(stream)
            if self._aborted:
                stream.abort()
        return stream

    def _check_pin(self, stream: TlsStream, where: str) -> None:
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

    @property
    def bytes_wire(self) -> int:
        """Bytes on the wire so far, both directions, all streams."""
        with self._lock:
            return sum(stream.bytes_in + stream.bytes_out for stream in self._streams)


def _reason(why: BaseException) -> str:
    if isinstance(why, ssl.SSLError):
        return (why.reason or "TLS error").replace("_", " ").lower()
    return getattr(why, "strerror", None) or str(why)
