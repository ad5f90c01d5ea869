"""Streams over TCP: one connection a stream, TLS 1.3, and once both sides agreed on it the larger records of bulk."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import selectors
import socket
import ssl
import struct
import sys
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final, Self

from headrace.errors import ConnectionLostError, ProtocolError
from headrace.protocol.pake import fingerprint_of
from headrace.transport.pacing import Pace
from headrace.transport.records import Records, TlsRecords
from headrace.transport.shaping import Shaper, shaper
from headrace.transport.zerocopy import FALLBACKS, UnsupportedError, platform_send, wait_writable

if TYPE_CHECKING:
    from headrace.protocol.sealed import SealedState

log = logging.getLogger("headrace.tcp")

ALPN: Final = "headrace"
CONNECT_TIMEOUT: Final = 10.0
STALL_TIMEOUT: Final = 30.0
LINGER: Final = 2.0  # seconds that an orderly close may take
_ZEROS: Final = bytes(64 * 1024)
_U32: Final = struct.Struct("=I")
# Where things are in struct tcp_info, linux/tcp.h, and how much of it is asked for.
_TCPI_RTT: Final = 68  # microseconds
_TCPI_TOTAL_RETRANS: Final = 100
_TCPI_SEGS_OUT: Final = 136  # since Linux 4.2
_TCP_INFO_SIZE: Final = 140


class TcpStream:
    """One TCP connection as a Stream: moves bytes between the socket and a record layer. See base.Stream."""

    transport = "tcp"

    def __init__(
        self, sock: socket.socket, context: ssl.SSLContext, *, server: bool, timeout: float = STALL_TIMEOUT
    ) -> None:
        self._prepare(sock, timeout, server=server)
        self._tls: TlsRecords | None = TlsRecords(context, server=server)
        self._records: Records = self._tls

    @classmethod
    def resumed(cls, sock: socket.socket, state: SealedState, *, timeout: float = STALL_TIMEOUT) -> Self:
        """A host's stream that another process lends; see `lend`. Takes `sock` over. It counts from 0."""
        stream = cls.__new__(cls)
        stream._prepare(sock, timeout, server=True)
        stream._tls = None
        stream.go_on(state)
        return stream

    def _prepare(self, sock: socket.socket, timeout: float, *, server: bool) -> None:
        self._sock = sock
        self._server = server
        self.zero_copy = platform_send()
        self.pace_in: Pace | None = None
        self.pace_out: Pace | None = None
        self.patient: Callable[[bool], bool] | None = None
        self._closed = False
        self._aborted = False
        self._lent = False
        self.bytes_in = 0
        self.bytes_out = 0
        self._timeout: float | None = timeout
        self._deadline: float | None = None
        sock.settimeout(timeout)

    def handshake(self, timeout: float = CONNECT_TIMEOUT) -> None:
        """The TLS handshake, within `timeout` seconds in all. Raises ssl.SSLError and OSError as they come."""
        deadline = time.monotonic() + timeout
        tls = self._tls
        assert tls is not None
        while True:
            try:
                over = tls.shake()
            except ssl.SSLError:
                # What OpenSSL has to say about it (an alert) helps the other side to a clear message.
                with contextlib.suppress(OSError, ConnectionLostError):
                    self._put(tls.pending())
                raise
            self._put(tls.pending())
            if over:
                break
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("the TLS handshake took too long")
            self._sock.settimeout(left)
            count = self._sock.recv_into(tls.room(0))
            if not count:
                raise ConnectionResetError("closed during the TLS handshake")
            self.bytes_in += count
            tls.arrived(count)
        self._sock.settimeout(self._timeout)

    def seal(self, secret: bytes) -> None:
        """From here on both directions use the records of protocol.sealed instead of TLS's.

        secret: agreed inside this TLS connection. Raises ProtocolError where the peer went on with TLS.
        """
        from headrace.protocol.sealed import SealedRecords  # its library takes 25 ms to import

        if self._tls is None or self._records is not self._tls:
            raise ProtocolError("a stream that is sealed already")
        self._records = SealedRecords(secret, server=self._server, early=self._tls.leave())

    def lend(self) -> SealedState:
        """Where a sealed stream stands, for another process that has a descriptor of its socket: `resumed` there.

        Until `go_on` this side may do no more than abort it, and close it without a goodbye. ProtocolError for one that
        is not sealed.
        """
        from headrace.protocol.sealed import SealedRecords

        if not isinstance(self._records, SealedRecords):
            raise ProtocolError("a stream that is not sealed cannot be lent")
        self._lent = True
        return self._records.state

    def go_on(self, state: SealedState) -> None:
        """It is this process's again, as the other one left it."""
        from headrace.protocol.sealed import SealedRecords

        self._records = SealedRecords.resumed(state)
        self._lent = False
        self._sock.settimeout(self._timeout)  # the other process may have changed how the socket blocks

    def fileno(self) -> int:
        """The socket's descriptor; the stream's own."""
        return self._sock.fileno()

    @property
    def fingerprint(self) -> bytes:
        """SHA-256 of the peer's certificate; empty where it showed none."""
        assert self._tls is not None
        der = self._tls.tls.getpeercert(binary_form=True)
        return fingerprint_of(der) if der else b""

    @property
    def speaks_headrace(self) -> bool:
        return self._tls is not None and self._tls.tls.selected_alpn_protocol() == ALPN

    def send(self, *parts: bytes | memoryview) -> None:
        record = self._records.protect_short(*parts)
        if record is None:
            self._put(self._records.protect(*parts))
        elif self.pace_out and self.pace_out.limited:
            self._put((record,))
        else:
            self._put_short(record)

    def _put_short(self, record: memoryview) -> None:
        """As `_put`, in as few calls as can be."""
        try:
            sent = self._sock.send(record)
        except TimeoutError as why:
            self._stalled(why, sending=True)
            sent = 0
        except OSError as why:
            raise ConnectionLostError(f"the connection broke while sending ({why.strerror or why})") from why
        self.bytes_out += sent
        if sent < len(record):
            self._put((record[sent:],))

    def _put(self, pieces: Iterable[memoryview]) -> None:
        try:
            for data in pieces:
                while data:
                    allowed = self.pace_out.grant(len(data)) if self.pace_out else len(data)
                    try:
                        sent = self._sock.send(data[:allowed] if allowed < len(data) else data)
                    except TimeoutError as why:
                        self._stalled(why, sending=True)
                        sent = 0
                    if self.pace_out:
                        self.pace_out.refund(allowed - sent)
                    self.bytes_out += sent
                    data = data[sent:]
        except OSError as why:
            raise ConnectionLostError(f"the connection broke while sending ({why.strerror or why})") from why

    def _stalled(self, why: TimeoutError, *, sending: bool) -> None:
        """A timeout ran out; ConnectionLostError unless somebody said that waiting goes on."""
        if self._deadline is not None:
            raise ConnectionLostError("the other side took too long") from why
        if self.patient is None or not self.patient(sending):
            what = "the other side took nothing" if sending else "nothing arrived"
            raise ConnectionLostError(f"{what} for {self._timeout:.0f} s") from why

    def send_file(self, *, head: bytes, fd: int, offset: int, count: int, buffer: memoryview) -> int:
        """Sends `head` as ever, then `count` bytes of the file in the clear, without a copy where the platform can.

        buffer: for where it cannot. A file that turns out shorter is filled up with zeros, so that the stream stays in
        step. How many bytes were the file's own. Both sides must have agreed on it: the peer takes them by
        `recv_clear_into`.
        """
        self.send(head)
        position, end = offset, offset + count
        send = self.zero_copy
        try:
            while position < end:
                try:
                    if send is None:
                        raise UnsupportedError("this system has nothing of the kind")
                    allowed = self.pace_out.grant(end - position) if self.pace_out else end - position
                    sent = send(self._sock, fd, position, allowed)
                    if self.pace_out:
                        self.pace_out.refund(allowed - sent)
                    if not sent:
                        break
                    position += sent
                    self.bytes_out += sent
                except BlockingIOError:
                    if self.pace_out:
                        self.pace_out.refund(allowed)
                    try:
                        wait_writable(self._sock, self._timeout)
                    except TimeoutError as why:
                        self._stalled(why, sending=True)
                except UnsupportedError as why:
                    FALLBACKS.add(str(why))
                    position = self._copy_file(fd, position, end, buffer)
                    break
        except OSError as why:
            if why.errno != errno.EIO:  # that is the file's, and the peer finds out by the hash
                raise ConnectionLostError(f"the connection broke while sending ({why.strerror or why})") from why
            log.warning("a file could not be read to its end while it was sent: %s", why.strerror)
        own = position - offset
        for start in range(own, count, len(_ZEROS)):
            self._put([memoryview(_ZEROS)[: count - start]])
        return own

    def _copy_file(self, fd: int, position: int, end: int, buffer: memoryview) -> int:
        """What sendfile would do, by reading and sending; where in the file it came to."""
        while position < end:
            got = os.preadv(fd, [buffer[: end - position]], position)
            if not got:
                break
            self._put([buffer[:got]])
            position += got
        return position

    def recv_clear_into(self, into: memoryview) -> int:
        """As `recv_into`, for bytes that the peer sends by `send_file`. Straight from the kernel into `into`."""
        if self._aborted:
            raise ConnectionLostError("the connection was aborted")
        count = self._records.take_clear(into)
        return count or self._receive(into)

    def recv_into(self, into: memoryview) -> int:
        records = self._records
        while True:
            if self._aborted:  # bytes that had arrived could still be read after the shutdown
                raise ConnectionLostError("the connection was aborted")
            filled = records.read_into(into)
            if filled or records.ended or not into:
                return filled
            self._fill(len(into))

    def recv_whole(self, most: int) -> bytes | None:
        """The next record in memory of its own, where it has `most` bytes or less: a small message with all there is
        of it. Empty: the peer closed the stream in order. None: `recv_into` has to be used. Blocks as that does."""
        records = self._records
        while True:
            if self._aborted:
                raise ConnectionLostError("the connection was aborted")
            plain = records.read_whole(most)
            if plain is not None or records.beyond(most):
                return plain
            room = records.room(0)
            if self._deadline is not None or (self.pace_in and self.pace_in.limited):
                records.arrived(self._receive(room))
                continue
            try:
                count = self._sock.recv_into(room)
            except TimeoutError as why:
                self._stalled(why, sending=False)
                continue
            except OSError as why:
                raise ConnectionLostError(f"the connection broke ({why.strerror or why})") from why
            if not count:
                raise ConnectionLostError("the connection was cut off")  # as in `_receive`
            self.bytes_in += count
            records.arrived(count)

    def _fill(self, wanted: int) -> None:
        if self._tls is not None and self._records is self._tls:
            self._put(self._tls.pending())  # the answer to a key update
        self._records.arrived(self._receive(self._records.room(wanted)))

    def _receive(self, into: memoryview) -> int:
        """What the kernel has, at least one byte."""
        while True:
            if self._deadline is not None:
                self._wait_no_longer(self._deadline - time.monotonic())
            try:
                count = self._sock.recv_into(into[: self.pace_in.portion(len(into))] if self.pace_in else into)
                break
            except TimeoutError as why:
                self._stalled(why, sending=False)
            except OSError as why:
                raise ConnectionLostError(f"the connection broke ({why.strerror or why})") from why
        if not count:
            # Without the peer's own goodbye anybody on the path could have cut the stream short.
            raise ConnectionLostError("the connection was cut off")
        self.bytes_in += count
        if self.pace_in:
            self.pace_in.pay(count)
        return count

    def hung_up(self) -> bool:
        """Before anything was asked of the peer: whether it said something all the same, which can only be its end."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._sock, selectors.EVENT_READ)
            return bool(selector.select(0))

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
        microseconds = self._kernel(_TCPI_RTT)
        return None if microseconds is None else microseconds / 1e6

    def losses(self) -> tuple[int, int] | None:
        sent, again = self._kernel(_TCPI_SEGS_OUT), self._kernel(_TCPI_TOTAL_RETRANS)
        return None if sent is None or again is None else (sent, again)

    def _kernel(self, offset: int) -> int | None:
        """A number of the kernel's tcp_info; None where it has none."""
        if not hasattr(socket, "TCP_INFO"):
            return None
        try:
            info = self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_SIZE)
        except OSError:
            return None
        return _U32.unpack_from(info, offset)[0] if len(info) >= offset + _U32.size else None

    @property
    def near(self) -> bool:
        """Whether the peer is on this machine. OSError where it is gone."""
        return is_loopback(self._sock)

    def shaper(self) -> Shaper | None:
        """By which whoever sends bulk keeps the path's queue short. None on loopback and where the system lacks it."""
        return None if self.near else shaper(self._sock)

    @property
    def closed(self) -> bool:
        """Whether this side closed it."""
        return self._closed

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._lent:  # whoever has it says the goodbye
            self._sock.close()
            return
        with contextlib.suppress(OSError, ssl.SSLError, ConnectionLostError):
            self._sock.settimeout(LINGER)
            self._put(self._records.goodbye())
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
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return True
    peer = str(sock.getpeername()[0])
    return is_local(peer) or peer == sock.getsockname()[0]


def is_local(address: str) -> bool:
    """Whether an address can only be this machine's."""
    return address.startswith(("127.", "::ffff:127.")) or address == "::1"
