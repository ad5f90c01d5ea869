"""Messages over a Stream: the sans-IO codec meets the wire."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from headrace.errors import ConnectionLostError, ProtocolError
from headrace.observe import metrics
from headrace.observe.times import StreamTimes
from headrace.protocol.frames import (
    HANDSHAKE_LIMITS,
    SESSION_LIMITS,
    FrameDecoder,
    FrameTooLargeError,
    Head,
    Limits,
    MalformedMessageError,
    encode_frame,
    whole_frame,
)
from headrace.protocol.messages import Chunk, Message
from headrace.transport.base import ClearStream, Stream
from headrace.transport.traffic import TRAFFIC

HEAD: Final = 256  # bytes; most heads are shorter, so that one call gets all of one
WHOLE: Final = 136 * 1024  # bytes; a frame of so much, the answer to a small read for instance, is taken in one go
PIECE: Final = 1024 * 1024  # bytes; what a payload is read, hashed and written in: few calls, and it stays in the cache


class MessageStream:
    """A Stream that speaks frames. One owner thread at a time; only `abort` may be called by another.

    times: where its time goes; whoever does more with what comes and goes adds the stages for that.
    """

    def __init__(self, stream: Stream, limits: Limits = HANDSHAKE_LIMITS) -> None:
        self.stream = stream
        self.times = StreamTimes()
        self.clear: ClearStream | None = None  # the stream again, where both sides agreed on chunks in the clear
        self._in_clear = False  # whether the payload at hand is
        self._decoder = FrameDecoder(limits)
        self._scratch = memoryview(bytearray(4096))
        self._greed = 0  # bytes that are asked for at least where a head is awaited
        self._recv_whole: Callable[[int], bytes | None] | None = None
        self._whole: memoryview | None = None  # the payload of a frame that came whole, or what is left of it

    def enter_session(self) -> None:
        """The handshake is over: from here on the larger limits hold, and no other layer takes over."""
        self._decoder.limits = SESSION_LIMITS
        self._greed = HEAD
        self._recv_whole = getattr(self.stream, "recv_whole", None)  # QUIC has no records
        TRAFFIC.opened(self.stream)

    @property
    def idle(self) -> bool:
        """Whether all that was received was taken, payloads too."""
        return not self._whole and self._decoder.idle

    @property
    def unknown_messages(self) -> int:
        return self._decoder.unknown_messages

    def send(self, message: Message, payload: bytes | memoryview = b"") -> None:
        """Sends one frame. Blocks; the payload may be reused afterwards."""
        head = encode_frame(message, len(payload))
        times = self.times
        times.settle()
        if len(payload):
            self.stream.send(head, payload)
        else:
            self.stream.send(head)
        times.lap(times.sending)

    def send_file(self, message: Message, fd: int, offset: int, count: int, buffer: memoryview) -> None:
        """Sends one frame whose payload is a range of a file, in the clear. buffer: for where that takes a copy."""
        assert self.clear is not None
        self.clear.send_file(head=encode_frame(message, count), fd=fd, offset=offset, count=count, buffer=buffer)

    def send_pieces(self, message: Message, count: int, pieces: Iterable[memoryview]) -> None:
        """Sends one frame whose payload of `count` bytes comes in pieces; each may be reused once the next is asked
        for."""
        with self.times.sending:
            self.stream.send(encode_frame(message, count))
        for piece in pieces:
            with self.times.sending:
                self.stream.send(piece)

    @property
    def held_back(self) -> bool:
        """Whether a rate limit lets so little go at a time that what is sent takes long."""
        pace = self.stream.pace_out
        return pace is not None and pace.portion(PIECE) < PIECE // 4

    def send_all(self, messages: list[Message]) -> None:
        """Sends frames without payload, in one go."""
        if messages:
            with self.times.sending:
                self.stream.send(b"".join(encode_frame(message) for message in messages))

    def receive(self) -> tuple[Message, int] | None:
        """The next message and the length of its payload in bytes; messages of unknown type are skipped.

        None: the peer closed the stream in order. The payload must be read or skipped before the next call.
        Raises ProtocolError, ConnectionLostError.
        """
        while True:
            if self._recv_whole:
                arrived = self._receive_whole(self._recv_whole)
                if arrived:
                    return arrived
            head = self._next_head()
            if head is None:
                return None
            if head.message is not None:
                self._in_clear = getattr(head.message, "clear", False)
                if self._in_clear and self.clear is None:
                    raise ProtocolError("the other side sends a chunk in the clear, which nobody agreed to")
                return head.message, head.payload_length
            metrics.UNKNOWN_MESSAGES.add()

    def _receive_whole(self, recv_whole: Callable[[int], bytes | None]) -> tuple[Message, int] | None:
        """The usual case of what is small: a frame in a record of its own, opened in one go and never copied. None: it
        is something else, which `_next_head` will find."""
        decoder = self._decoder
        if self._whole:
            raise RuntimeError("the payload of the last frame was not taken")
        self._whole = None
        while decoder.idle:
            times = self.times
            times.settle()
            data = recv_whole(WHOLE)
            times.lap(times.waiting)
            if not data:
                return None
            try:
                frame = whole_frame(data, decoder.limits)
            except (FrameTooLargeError, MalformedMessageError) as why:
                raise ProtocolError(f"the other side sent {why}") from why
            if frame is None or (type(frame[0]) is Chunk and frame[0].clear):
                decoder.feed(data)
                return None
            message, payload = frame
            if message is not None:
                self._in_clear = False
                self._whole = payload
                return message, len(payload)
            decoder.unknown_messages += 1
            metrics.UNKNOWN_MESSAGES.add()
        return None

    def take_payload(self) -> memoryview | None:
        """The payload of the message at hand, all of it, in memory that is the caller's from here on; None where it did
        not come whole, and `read_payload` has to be used."""
        payload, self._whole = self._whole, None
        return payload

    def expect(self) -> tuple[Message, int]:
        """As `receive`, where the peer may not close: ConnectionLostError when it does."""
        received = self.receive()
        if received is None:
            raise ConnectionLostError("the other side closed the connection")
        return received

    def _next_head(self) -> Head | None:
        decoder = self._decoder
        try:
            while (head := decoder.next_head()) is None:
                # What comes behind the head would be taken for records where it comes in the clear.
                missing = max(decoder.missing(), 0 if self.clear else self._greed)
                if missing > len(self._scratch):
                    self._scratch = memoryview(bytearray(missing))
                with self.times.waiting:
                    count = self.stream.recv_into(self._scratch[:missing])
                if not count:
                    if decoder.idle:
                        return None
                    raise ConnectionLostError("the connection ended in the middle of a message")
                decoder.feed(self._scratch[:count])
        except (FrameTooLargeError, MalformedMessageError) as why:
            raise ProtocolError(f"the other side sent {why}") from why
        return head

    def read_payload(self, into: memoryview) -> None:
        """Fills `into` with the next payload bytes. Raises ConnectionLostError."""
        if self._whole is not None:
            into[:], self._whole = self._whole[: len(into)], self._whole[len(into) :]
            return
        position = self._decoder.take_payload(into)
        receive = self.clear.recv_clear_into if self._in_clear and self.clear else self.stream.recv_into
        with self.times.receiving:
            while position < len(into):
                count = receive(into[position:])
                if not count:
                    raise ConnectionLostError("the connection ended in the middle of a payload")
                self._decoder.payload_taken_elsewhere(count)
                position += count

    def unused(self, message: Message, payload: int) -> bytes:
        """`message`, which was received and whose payload of so many bytes was not, and whatever came behind it: for
        who goes on with the stream elsewhere. This object is of no use then."""
        return encode_frame(message, payload) + bytes(self._whole or b"") + self._decoder.rest()

    def skip_payload(self) -> None:
        """Drops the rest of the payload as it arrives."""
        self._whole = None
        self._decoder.skip_payload()

    def close(self) -> None:
        TRAFFIC.closed(self.stream)
        self.stream.close()

    def abort(self) -> None:
        self.stream.abort()
