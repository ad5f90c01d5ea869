"""Frames: `u32 header length · u32 payload length · header · payload`, big-endian, no alignment.

The decoder is incremental and never asks for memory before both lengths passed the limits. A payload can be taken
in pieces into the caller's own buffer, so that chunk bytes are copied no more often than the transport forces.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from headrace.protocol.messages import CHUNK_SIZE, KIB, MalformedMessageError, Message, decode, encode

PREFIX: Final = struct.Struct(">II")


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that one frame may claim, in bytes."""

    header: int = 512 * KIB
    payload: int = CHUNK_SIZE


HANDSHAKE_LIMITS: Final = Limits(header=4 * KIB, payload=0)
SESSION_LIMITS: Final = Limits()


class FrameTooLargeError(ValueError):
    """A frame claims more than the limits allow."""


@dataclass(frozen=True, slots=True)
class Head:
    """A frame whose header arrived. message: None for an unknown type, whose payload the decoder skips."""

    message: Message | None
    payload_length: int


def encode_frame(message: Message, payload_length: int = 0) -> bytes:
    """Prefix and header of a frame; the payload's bytes follow it on the wire as they are."""
    header = encode(message)
    return PREFIX.pack(len(header), payload_length) + header


def whole_frame(data: bytes, limits: Limits) -> tuple[Message | None, memoryview] | None:
    """The message and the payload of bytes that are one frame and nothing else; None where they are not. The message is
    None where its type is unknown. The payload is a view of `data`.

    Raises FrameTooLargeError, MalformedMessageError.
    """
    size = len(data)
    if size < PREFIX.size:
        return None
    header, payload = PREFIX.unpack_from(data)
    start = PREFIX.size + header
    if start + payload != size:
        return None
    if header > limits.header or payload > limits.payload:
        raise FrameTooLargeError(too_large(header, payload, limits))
    view = memoryview(data)
    return decode(view[PREFIX.size : start]), view[start:]


def too_large(header: int, payload: int, limits: Limits) -> str:
    return f"a frame of {header} + {payload} bytes; allowed: {limits.header} + {limits.payload}"


class FrameDecoder:
    """Bytes in, frames out. One owner at a time; not thread-safe.

    Use: `feed` what arrived; `next_head` until None; after a head with a payload, `take_payload` until all of it
    was taken (or `skip_payload`), before `next_head` is asked again. A caller that reads from the wire itself asks
    `missing` for how many bytes to fetch next, and tells `payload_taken_elsewhere` for payload bytes that it read
    past this decoder. Raises FrameTooLargeError and MalformedMessageError; the stream is unusable after that.
    """

    def __init__(self, limits: Limits = HANDSHAKE_LIMITS) -> None:
        self.limits = limits
        self.unknown_messages = 0
        self.payload_left = 0
        self._buffer = bytearray()
        self._start = 0
        self._skipping = False
        self._lengths: tuple[int, int] | None = None

    @property
    def buffered(self) -> int:
        """Bytes fed and not yet consumed."""
        return len(self._buffer) - self._start

    @property
    def idle(self) -> bool:
        """Whether the decoder stands between two frames: the one place where a stream may end."""
        return self._lengths is None and not self.payload_left and len(self._buffer) == self._start

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        if self._start:
            del self._buffer[: self._start]
            self._start = 0
        self._buffer += data

    def missing(self) -> int:
        """How many more bytes must be fed before `next_head` can get further. 0: call it."""
        if self.payload_left:
            return 0 if not self._skipping else max(0, min(self.payload_left, 64 * KIB) - self.buffered)
        want = PREFIX.size if self._lengths is None else self._lengths[0]
        return max(0, want - self.buffered)

    def next_head(self) -> Head | None:
        """The next frame's head, or None when more bytes are needed."""
        if self._skipping:
            self._drop()
        if self.payload_left:
            if self._skipping:
                return None
            raise RuntimeError("the payload of the last frame was not taken")
        buffer, start = self._buffer, self._start
        have = len(buffer) - start
        if self._lengths is None:
            if have < PREFIX.size:
                return None
            header, payload = PREFIX.unpack_from(buffer, start)
            if header > self.limits.header or payload > self.limits.payload:
                raise FrameTooLargeError(too_large(header, payload, self.limits))
            self._lengths = header, payload
            self._start = start = start + PREFIX.size
            have -= PREFIX.size
        header, payload = self._lengths
        if have < header:
            return None
        message = decode(buffer[start : start + header])
        self._start = start + header
        self._lengths = None
        self.payload_left = payload
        if message is None:
            self.unknown_messages += 1
            self.skip_payload()
        return Head(message, payload)

    def rest(self) -> bytes:
        """What was fed and not used, where no frame has begun."""
        return bytes(self._buffer[self._start :])

    def take_payload(self, into: memoryview) -> int:
        """Moves buffered payload bytes into `into`; how many that were (0 when none are buffered)."""
        count = min(len(into), self.payload_left, self.buffered)
        if count:
            into[:count] = memoryview(self._buffer)[self._start : self._start + count]
            self._consume(count)
        return count

    def payload_taken_elsewhere(self, count: int) -> None:
        """The caller read `count` payload bytes straight from the wire. Only while nothing is buffered."""
        if self.buffered or count > self.payload_left:
            raise RuntimeError("payload bytes out of step")
        self.payload_left -= count

    def skip_payload(self) -> None:
        """What is left of the payload is of no interest; it is dropped as it arrives."""
        self._skipping = True
        self._drop()

    def _drop(self) -> None:
        self._consume(min(self.payload_left, self.buffered))
        self._skipping = self.payload_left > 0

    def _consume(self, count: int) -> None:
        self._start += count
        self.payload_left -= count


__all__ = [
    "HANDSHAKE_LIMITS",
    "PREFIX",
    "SESSION_LIMITS",
    "FrameDecoder",
    "FrameTooLargeError",
    "Head",
    "Limits",
    "MalformedMessageError",
    "encode_frame",
    "whole_frame",
]
