"""What a stream says on its QUIC stream: blocks of bytes, and credit for more. No I/O, no clock, no lock.

aiopquic gives a QUIC stream's bytes out as they arrive, and opens its flow control window again as it does so. A reader
that pauses would then pile up bytes without bound. So each direction of a stream has a credit of its own, as in SSH: a
sender may send what the receiver granted, and a receiver grants more as its reader takes bytes.

    u32, big-endian:  0 and 31 bits: so many bytes of the stream follow
                      1 and 31 bits: the receiver grants so many bytes more; nothing follows
"""

from __future__ import annotations

import struct
from collections import deque
from typing import Final

from headrace.errors import ProtocolError

KIB: Final = 1024
MIB: Final = 1024 * KIB

WORD: Final = struct.Struct("!I")
GRANT: Final = 1 << 31
MOST: Final = GRANT - 1
BLOCK: Final = 256 * KIB  # what this side puts into one block, at most

FIRST_TO_HOST: Final = 64 * KIB  # what a client may send before the host grants more: a host serves many
FIRST_TO_CLIENT: Final = MIB
LARGEST_HOST_WINDOW: Final = 4 * MIB
LARGEST_CLIENT_WINDOW: Final = 8 * MIB
CREDIT_LIMIT: Final = 1 << 40  # nobody has a reason to grant that much
SMALL: Final = 512  # bytes; pieces below are put together, as each that is kept by itself costs 200 bytes
GATHERED: Final = 64 * KIB


class Inflow:
    """What arrives on one QUIC stream: its bytes, in order and within the credit; and the peer's grants."""

    def __init__(self, first: int, largest: int) -> None:
        """first: bytes that the peer may send before any grant. largest: what the window may grow to."""
        self.window = first
        self._largest = largest
        self._allowed = first  # all since the beginning, as are the next two
        self._arrived = 0
        self._taken = 0
        self._chunks: deque[memoryview] = deque()
        self._small = bytearray()  # small pieces that came after the chunks
        self._word = bytearray()  # the beginning of a word that came in pieces
        self._left = 0  # bytes of the block at hand that are still to come
        self.granted = 0  # by the peer, and not yet collected with `collect`
        self.wire = 0  # bytes of blocks that arrived, their words included

    @property
    def waiting(self) -> int:
        """Bytes that arrived and were not taken."""
        return self._arrived - self._taken

    @property
    def between_blocks(self) -> bool:
        """Whether the stream may end here."""
        return not self._left and not self._word

    def feed(self, data: memoryview) -> None:
        """Takes what arrived. The memory stays in use until it is taken. Raises ProtocolError: more than granted."""
        while data:
            if self._left:
                piece, data = data[: self._left], data[self._left :]
                self._left -= len(piece)
                self._arrived += len(piece)
                self.wire += len(piece)
                self._keep(piece)
                continue
            missing = WORD.size - len(self._word)
            self._word += data[:missing]
            data = data[missing:]
            if len(self._word) == WORD.size:
                (word,) = WORD.unpack(self._word)
                self._word.clear()
                self._begin(word)

    def _keep(self, piece: memoryview) -> None:
        if len(piece) >= SMALL:
            self._gather()
            self._chunks.append(piece)
            return
        self._small += piece
        if len(self._small) >= GATHERED:
            self._gather()

    def _gather(self) -> None:
        if self._small:
            self._chunks.append(memoryview(self._small))
            self._small = bytearray()

    def _begin(self, word: int) -> None:
        if word & GRANT:
            self.granted += word & MOST
            if self.granted > CREDIT_LIMIT:
                raise ProtocolError("the other side grants without end")
            return
        if word > self._allowed - self._arrived:
            raise ProtocolError("the other side sent more than it was granted")
        self._left = word
        self.wire += WORD.size

    def collect(self) -> int:
        """The peer's grants since the last call, in bytes."""
        granted, self.granted = self.granted, 0
        return granted

    def take(self, into: memoryview) -> int:
        """Moves bytes that arrived into `into`; how many."""
        filled = 0
        while filled < len(into):
            if not self._chunks:
                self._gather()
            if not self._chunks:
                break
            chunk = self._chunks[0]
            count = min(len(chunk), len(into) - filled)
            into[filled : filled + count] = chunk[:count]
            filled += count
            if count == len(chunk):
                self._chunks.popleft()
            else:
                self._chunks[0] = chunk[count:]
        self._taken += filled
        return filled

    def drop(self) -> None:
        """Forgets what nobody will take any more, now and later."""
        self._taken = self._arrived
        self._chunks.clear()
        self._small.clear()

    def due(self) -> int:
        """Bytes to grant now: half a window or more, else 0. `grant` says that they were granted."""
        missing = self._taken + self.window - self._allowed
        return missing if missing >= self.window // 2 else 0

    def grant(self, count: int) -> bytes:
        """The word that grants `count` bytes."""
        self._allowed += count
        return WORD.pack(GRANT | count)

    def grow(self) -> None:
        """The window was what limited the sender: doubles it, up to the largest."""
        self.window = min(2 * self.window, self._largest)
