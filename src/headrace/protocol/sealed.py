"""The record layer of bulk streams: AES-128-GCM over records of 256 KiB, under keys that were agreed inside TLS.

TLS 1.3 proves the certificate, and the handshake runs inside it; but its records end at 16 KiB, and from Python each
costs a call and two copies. A stream on which both sides want the feature `sealed` therefore leaves TLS after Granted
(docs/decisions/006-sealed-records.md). A record is

    u32 length of what follows · ciphertext · tag (16 bytes)

with the length as associated data and the number of the record, from 0, as the nonce: one that is changed, dropped,
repeated or put elsewhere fails. An empty record is the orderly end; a stream that stops without one was cut off.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from headrace.errors import ConnectionLostError, ProtocolError

RECORD: Final = 256 * 1024  # bytes of plaintext: decrypted, hashed and written while they are in the L2 cache
TAG: Final = 16
HEADER: Final = struct.Struct(">I")
BATCH: Final = 4 * (HEADER.size + RECORD + TAG)  # bytes that go to the kernel, or come from it, at a time
FIRST_BUFFER: Final = 24 * 1024  # both buffers start small: most streams of a mount or a listing stay so
SHORT: Final = 136 * 1024  # bytes of plaintext that are sealed and opened in one go: a block of 128 KiB with its head
SHORT_BUFFER: Final = HEADER.size + SHORT + TAG
REKEY_AFTER: Final = 1 << 18  # records, 64 GiB: AES-GCM wants a new key before 2^34.5 blocks (RFC 8446, section 5.5)


@dataclass(frozen=True, slots=True)
class SealedState:
    """Where a stream stands between two messages: all that another process needs to go on with it.

    The secrets and the numbers of the next records, outward and inward. arrived: bytes off the wire that were not
    opened yet. opened: plaintext that nobody took. ended: the peer has said that nothing more will come.
    """

    out_secret: bytes = field(repr=False)
    out_number: int
    in_secret: bytes = field(repr=False)
    in_number: int
    arrived: bytes = field(default=b"", repr=False)
    opened: bytes = field(default=b"", repr=False)
    ended: bool = False


class _Key:
    """One direction's keys, each for REKEY_AFTER records. secret: the present one's. number: of the next record."""

    def __init__(self, secret: bytes, number: int = 0) -> None:
        self.secret = secret
        self.number = number
        self._cipher = self._next_cipher()

    def _next_cipher(self) -> AESGCM:
        return AESGCM(_derive(self.secret, b"key")[:16])

    def next(self) -> tuple[AESGCM, bytes]:
        """The cipher and the nonce for the next record."""
        if self.number == REKEY_AFTER:
            self.secret = _derive(self.secret, b"next")
            self._cipher = self._next_cipher()
            self.number = 0
        nonce = self.number.to_bytes(12, "big")
        self.number += 1
        return self._cipher, nonce


def _derive(secret: bytes, label: bytes) -> bytes:
    """HKDF-Expand of RFC 5869 with SHA-256, one block."""
    return hmac.digest(secret, b"headrace sealed 1 " + label + b"\x01", hashlib.sha256)


class SealedRecords:
    """Both directions of one stream after its handshake. Sans-IO; one owner thread.

    secret: what both sides agreed inside TLS, fresh for each stream. early: bytes of it that have arrived already.
    """

    def __init__(self, secret: bytes, *, server: bool, early: bytes = b"") -> None:
        ours, theirs = (b"host", b"client") if server else (b"client", b"host")
        self._begin(SealedState(_derive(secret, ours), 0, _derive(secret, theirs), 0, early))

    def _begin(self, state: SealedState) -> None:
        early = state.arrived
        self._out = _Key(state.out_secret, state.out_number)
        self._in = _Key(state.in_secret, state.in_number)
        self._outbox = memoryview(bytearray(FIRST_BUFFER))
        self._inbox = memoryview(bytearray(max(FIRST_BUFFER, len(early))))
        self._inbox[: len(early)] = early
        self._start, self._stop = 0, len(early)  # of what has arrived and was not opened yet
        self._spare = memoryview(b"")
        self._opened = memoryview(state.opened)  # plaintext that found no room with the reader
        self.ended = state.ended

    @classmethod
    def resumed(cls, state: SealedState) -> Self:
        """Goes on where others stopped: those must never be used again, or a nonce would be used twice."""
        records = cls.__new__(cls)
        records._begin(state)
        return records

    @property
    def state(self) -> SealedState:
        """Where they stand now, for `resumed`."""
        return SealedState(
            *(self._out.secret, self._out.number, self._in.secret, self._in.number),
            arrived=bytes(self._inbox[self._start : self._stop]),
            opened=bytes(self._opened),
            ended=self.ended,
        )

    # ---- out -------------------------------------------------------------------------------------------------------

    def protect_short(self, *parts: bytes | memoryview) -> memoryview | None:
        """The parts as one record, SHORT bytes at most, which must be gone before anything else is protected. None:
        they are longer, and `protect` has to do it. A small answer is a fifth cheaper so."""
        plain = parts[0] if len(parts) == 1 else b"".join(parts)
        length = len(plain) + TAG
        end = HEADER.size + length
        if end > SHORT_BUFFER or not plain:
            return None
        if end > len(self._outbox):
            self._outbox = memoryview(bytearray(SHORT_BUFFER))
        header = HEADER.pack(length)
        outbox = self._outbox
        outbox[: HEADER.size] = header
        cipher, nonce = self._out.next()
        cipher.encrypt_into(nonce, plain, header, outbox[HEADER.size : end])
        return outbox[:end]

    def protect(self, *parts: bytes | memoryview) -> Iterator[memoryview]:
        """The parts as records, in pieces for the kernel. A piece must be gone before the next one is asked for."""
        size = sum(map(len, parts))
        if not size:
            return
        if size + HEADER.size + TAG > len(self._outbox):
            self._outbox = memoryview(bytearray(BATCH))
        elif len(parts) > 1:
            parts = (b"".join(parts),)
        used = 0
        for part in parts:
            view = memoryview(part)
            for position in range(0, len(view), RECORD):
                plain = view[position : position + RECORD]
                if used + HEADER.size + len(plain) + TAG > len(self._outbox):
                    yield self._outbox[:used]
                    used = 0
                used = self._seal(plain, used)
        yield self._outbox[:used]

    def goodbye(self) -> Iterator[memoryview]:
        """The orderly end of this direction."""
        yield self._outbox[: self._seal(memoryview(b""), 0)]

    def _seal(self, plain: memoryview, at: int) -> int:
        """Puts one record into the outbox; where it ends."""
        length = len(plain) + TAG
        body = at + HEADER.size
        HEADER.pack_into(self._outbox, at, length)
        cipher, nonce = self._out.next()
        cipher.encrypt_into(nonce, plain, self._outbox[at:body], self._outbox[body : body + length])
        return body + length

    # ---- in --------------------------------------------------------------------------------------------------------

    def room(self, wanted: int) -> memoryview:
        """Where the next bytes off the wire belong; never empty. wanted: bytes of plaintext that the reader has room
        for."""
        if self._start == self._stop:
            self._start = self._stop = 0
        size = BATCH if wanted >= FIRST_BUFFER else len(self._inbox)
        if self._stop - self._start >= HEADER.size:
            size = max(size, HEADER.size + self._length())
        if size > len(self._inbox):
            self._make_room(memoryview(bytearray(SHORT_BUFFER if size <= SHORT_BUFFER else BATCH)))
        elif len(self._inbox) - self._start < self._needed():
            self._make_room(self._inbox)
        return self._inbox[self._stop :]

    def _needed(self) -> int:
        """Bytes from `start` on that the record there takes; where that is not known yet, its header and one more."""
        if self._stop - self._start < HEADER.size:
            return HEADER.size + 1
        return HEADER.size + self._length()

    def _make_room(self, box: memoryview) -> None:
        rest = self._stop - self._start
        box[:rest] = self._inbox[self._start : self._stop]
        self._inbox, self._start, self._stop = box, 0, rest

    def arrived(self, count: int) -> None:
        """So many bytes were put into `room`."""
        self._stop += count

    def read_into(self, into: memoryview) -> int:
        """Opens what has arrived, straight into `into`; how many bytes. 0: more must arrive first, or it `ended`.

        Raises ConnectionLostError for a record that is not the peer's next one, ProtocolError for an impossible length.
        """
        filled, room = self._take_opened(into) if self._opened else 0, len(into)
        while filled < room and not self.ended and self._stop - self._start >= HEADER.size:
            length = self._length()
            body = self._start + HEADER.size
            if self._stop < body + length:
                break
            size = length - TAG
            direct = size <= room - filled
            self._open(body, length, into[filled : filled + size] if direct else self._spare_room(size))
            if not size:
                self.ended = True
            elif direct:
                filled += size
            else:
                self._opened = self._spare[:size]
                filled += self._take_opened(into[filled:])
        return filled

    def read_whole(self, most: int) -> bytes | None:
        """Opens the next record, of which nothing was read yet, into memory of its own. Empty: it was the end. None: it
        has not arrived, or `beyond` says that it is longer than `most` bytes. Raises as `read_into`."""
        start = self._start
        body = start + HEADER.size
        if self._stop < body or self._opened:
            return None
        length = self._length()
        end = body + length
        if self._stop < end or length > most + TAG:
            return None
        cipher, nonce = self._in.next()
        inbox = self._inbox
        try:
            plain = cipher.decrypt(nonce, inbox[body:end], inbox[start:body])
        except InvalidTag as why:
            raise ConnectionLostError("the encrypted connection failed (a record was changed on the way)") from why
        self._start = end
        if not plain:
            self.ended = True
        return plain

    def beyond(self, most: int) -> bool:
        """Whether `read_whole` will never give the next record, because it is longer than `most` bytes or was begun."""
        if self._opened or self.ended:
            return True
        return self._stop - self._start >= HEADER.size and self._length() > most + TAG

    def take_clear(self, into: memoryview) -> int:
        """Bytes that arrived behind the last record and are none: see `clear` in docs/protocol.md. How many."""
        if len(self._opened):
            raise ProtocolError("bytes in the clear were announced in the middle of a record")
        count = min(len(into), self._stop - self._start)
        into[:count] = self._inbox[self._start : self._start + count]
        self._start += count
        return count

    def _take_opened(self, into: memoryview) -> int:
        count = min(len(self._opened), len(into))
        if count:
            into[:count] = self._opened[:count]
            self._opened = self._opened[count:]
        return count

    def _spare_room(self, size: int) -> memoryview:
        if size > len(self._spare):
            self._spare = memoryview(bytearray(FIRST_BUFFER if size <= FIRST_BUFFER else RECORD))
        return self._spare[:size]

    def _length(self) -> int:
        length: int = HEADER.unpack_from(self._inbox, self._start)[0]
        if not TAG <= length <= RECORD + TAG:
            raise ProtocolError(f"the other side sent a record of {length} bytes; the limit is {RECORD + TAG}")
        return length

    def _open(self, body: int, length: int, into: memoryview) -> None:
        cipher, nonce = self._in.next()
        sealed = self._inbox[body : body + length]
        try:
            cipher.decrypt_into(nonce, sealed, self._inbox[self._start : body], into)
        except InvalidTag as why:
            raise ConnectionLostError("the encrypted connection failed (a record was changed on the way)") from why
        self._start = body + length
