"""Compression of what one stream is sent: whether, measured by how the stream takes it. One owner thread."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from headrace.engine.compress import Compressors, FileCompressor, is_compressed_format
from headrace.engine.link_rate import LinkRate
from headrace.errors import ProtocolError
from headrace.protocol.messages import CHUNK_SIZE, HOST_DECIDES, MAX_LEVEL, MAX_PART, NOT_PACKED, READ_SIZE
from headrace.protocol.session import ZSTD, Agreed
from headrace.transport.framed import MessageStream
from headrace.transport.tcp import TcpStream, is_local

LONG: Final = 0.005  # seconds of round trip, from which on it says something about a stream that has sent nothing yet
TUNNEL: Final = 20e6  # bytes a second; who takes no more than this on this machine is the end of a longer path
SLOW_START: Final = 8  # round trips in which TCP and QUIC send their first chunk, at ten packets in the first of them


class Packing:
    """Of one stream: of the answers of a host to requests that ask for compression, or of what a client puts."""

    def __init__(
        self,
        compressors: Compressors,
        stream: MessageStream,
        clock: Callable[[], float] = time.monotonic,
        *,
        near: bool = False,
    ) -> None:
        """near: the other side is on this machine, or a tunnel ends here."""
        self._near = near
        self._compressors = compressors
        self._stream = stream
        self._clock = clock
        self._link = LinkRate(_expected(stream))
        self._path: bytes | None = None
        self._file = FileCompressor(compressors)
        self._batches = FileCompressor(compressors)
        self._formats = FileCompressor(compressors, compressed=True)

    def begin(self) -> None:
        """A request came: until now there was nothing to send."""
        self._link.begin(self._clock())

    def wanted(self, zstd: int) -> bool:
        """Whether a request that says so wants compression. ProtocolError for a level that there is not."""
        if not HOST_DECIDES <= zstd <= MAX_LEVEL:
            raise ProtocolError(f"a request for compression at level {zstd}; the highest is {MAX_LEVEL}")
        return zstd != NOT_PACKED

    def of_file(self, path: bytes) -> FileCompressor:
        """For the ranges of that file."""
        if path != self._path:
            self._path = path
            self._file = FileCompressor(self._compressors, compressed=is_compressed_format(path))
        return self._file

    def of_batch(self, paths: Iterable[bytes]) -> FileCompressor:
        """For the parts of a batch of those files."""
        return self._formats if all(map(is_compressed_format, paths)) else self._batches

    @property
    def part(self) -> int:
        """Bytes that are to be compressed at once. The buffer for them is twice as long: what comes of them lies beside
        them. Who is held back by a rate limit holds a small one."""
        return READ_SIZE // 2 if self._stream.held_back else MAX_PART

    @property
    def link(self) -> float | None:
        """Bytes a second: what was measured, or a limit that is lower. None: not known, so fast as far as we know."""
        pace = self._stream.stream.pace_out
        limit = pace.rate if pace else None
        measured = self._link.rate
        if self._near and measured is not None and measured > TUNNEL:
            measured = None  # the client is busy, and what is compressed would make it busier
        return min(measured, limit) if measured is not None and limit is not None else measured or limit

    @contextlib.contextmanager
    def sending(self, count: int) -> Iterator[None]:
        """Around sending `count` bytes of payload."""
        began = self._clock()
        yield
        self._link.sent(count, began, self._clock())


def packing_for(
    compressors: Compressors | None, messages: MessageStream, agreed: Agreed, address: str
) -> Packing | None:
    """None where one of both sides does not compress. address: the peer's."""
    if compressors is None or ZSTD not in agreed.features:
        return None
    stream = messages.stream
    near = stream.near if isinstance(stream, TcpStream) else is_local(address)
    return Packing(compressors, messages, near=near)


def _expected(stream: MessageStream) -> float | None:
    """By the round trip alone: over a long path the first chunk takes so many of them, whatever the link."""
    rtt = stream.stream.rtt()
    return CHUNK_SIZE / (SLOW_START * rtt) if rtt is not None and rtt >= LONG else None
