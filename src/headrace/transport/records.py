"""TLS as a record layer without a socket: the standard library's OpenSSL over memory buffers.

SSLSocket would make two system calls for every 16 KiB record that it receives; here one `recv_into` fetches what the
kernel has (docs/decisions/002-tls-over-memory-buffers.md has the figures).
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable, Iterator
from typing import Final, Protocol

from headrace.errors import ConnectionLostError, ProtocolError

RECV_SIZE: Final = 512 * 1024
SEND_SIZE: Final = 256 * 1024  # encrypted bytes gathered before they go to the kernel: stays in the L2 cache
FIRST_BUFFER: Final = 64 * 1024


class Records(Protocol):
    """What turns bytes into records on the wire and back. Sans-IO; `TlsRecords` and `SealedRecords` implement it."""

    ended: bool  # the peer has said that nothing more will come

    def protect(self, *parts: bytes | memoryview) -> Iterator[memoryview]:
        """The parts as records, in pieces for the wire. A piece must be gone before the next one is asked for."""

    def protect_short(self, *parts: bytes | memoryview) -> memoryview | None:
        """As `protect`, where that makes one short piece; None where it does not."""

    def goodbye(self) -> Iterator[memoryview]:
        """What tells the peer that nothing more will come."""

    def room(self, wanted: int) -> memoryview:
        """Where the next bytes off the wire belong; never empty. wanted: what the reader has room for, in bytes."""

    def arrived(self, count: int) -> None:
        """So many bytes were put into `room`."""

    def read_whole(self, most: int) -> bytes | None:
        """Opens what the peer protected at once, `most` bytes at most, into memory of its own. Empty: it was the end.
        None: more must arrive, or, where it is `beyond` that, `read_into` has to be used. Raises as that."""

    def beyond(self, most: int) -> bool:
        """Whether `read_whole` gives nothing, whatever arrives."""

    def take_clear(self, into: memoryview) -> int:
        """Takes what has arrived as it is, unopened, where both sides agreed that clear bytes come now. How many."""

    def read_into(self, into: memoryview) -> int:
        """Opens what has arrived. How many bytes; 0: more must arrive first, or it `ended`.

        Raises ConnectionLostError or ProtocolError where the records are not what the peer sealed.
        """


class TlsRecords:
    """One TLS connection. Implements Records, and makes the handshake."""

    def __init__(self, context: ssl.SSLContext, *, server: bool) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_side=server)
        self._inbox = memoryview(bytearray(FIRST_BUFFER))  # grows once there is bulk to receive
        self.ended = False

    def shake(self) -> bool:
        """One step of the handshake; whether it is over. Raises ssl.SSLError. `pending` goes to the peer either way."""
        try:
            self.tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def pending(self) -> Iterator[memoryview]:
        """What OpenSSL wants sent: steps of the handshake, alerts, answers to key updates."""
        if self._outgoing.pending:
            yield memoryview(self._outgoing.read())

    def protect(self, *parts: bytes | memoryview) -> Iterator[memoryview]:
        write = self.tls.write
        try:
            for part in parts:
                view = memoryview(part)
                position, size = 0, len(view)
                while position < size:
                    position += write(view[position : position + SEND_SIZE])
                    if self._outgoing.pending >= SEND_SIZE:
                        yield from self.pending()
            yield from self.pending()
        except ssl.SSLError as why:
            raise ConnectionLostError(f"the encrypted connection failed while sending ({why.reason})") from why

    def protect_short(self, *parts: bytes | memoryview) -> None:
        return None

    def read_whole(self, most: int) -> None:
        return None

    def beyond(self, most: int) -> bool:
        return True

    def goodbye(self) -> Iterator[memoryview]:
        # Says goodbye, and then complains that the peer has not, or that bytes of it are left unread.
        with contextlib.suppress(ssl.SSLError):
            self.tls.unwrap()
        yield from self.pending()

    def room(self, wanted: int) -> memoryview:
        if wanted >= RECV_SIZE // 4 and len(self._inbox) < RECV_SIZE:
            self._inbox = memoryview(bytearray(RECV_SIZE))
        return self._inbox

    def arrived(self, count: int) -> None:
        self._incoming.write(self._inbox[:count])

    def read_into(self, into: memoryview) -> int:
        read: Callable[[int, memoryview], int] = self.tls.read  # type: ignore[assignment]  # typeshed: bytes only
        size, filled = len(into), 0
        # One call of OpenSSL's gives one record, 16 KiB at most: as many as have arrived are taken at once.
        try:
            while filled < size:
                count = read(size - filled, into[filled:])
                if not count:
                    self.ended = True
                    break
                filled += count
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.ended = True
        except ssl.SSLError as why:
            raise ConnectionLostError(f"the encrypted connection failed ({why.reason})") from why
        return filled

    def take_clear(self, into: memoryview) -> int:
        raise ProtocolError("TLS carries nothing in the clear")

    def leave(self) -> bytes:
        """TLS ends here without a goodbye: what has arrived behind its last record, still sealed by something else.

        Raises ProtocolError where the peer went on with TLS.
        """
        if self.tls.pending() or self._outgoing.pending:
            raise ProtocolError("the other side went on with TLS where it had agreed to leave it")
        return self._incoming.read()
