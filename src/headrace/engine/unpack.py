"""What a client does with a compressed payload: receives it, and decompresses it within limits.

The peer is not trusted: what it announces is checked before it is read, what it sends before anything is allocated.
"""

from __future__ import annotations

from headrace.errors import ProtocolError
from headrace.protocol.messages import MAX_PART, ZSTD_PACKED
from headrace.transport.framed import MessageStream


def check_part(packed: str, payload: int, length: int, *, asked: bool) -> None:
    """Whether a payload of `payload` bytes, `packed` as the message says, can stand for `length` bytes: ProtocolError
    where not. asked: compression is what this side wanted."""
    if packed != ZSTD_PACKED:
        if payload != length:
            raise ProtocolError("the host sent another number of bytes than it was asked for")
    elif not asked:
        raise ProtocolError("the host compresses, which nobody asked for")
    elif not 0 < payload < length <= MAX_PART:  # what did not become smaller is never sent compressed
        raise ProtocolError("a compressed piece of an impossible length")


class Unpacker:
    """Receives compressed payloads of one stream. It holds MAX_PART bytes once there was one. One owner thread."""

    def __init__(self) -> None:
        self._packed = memoryview(b"")

    def receive(self, messages: MessageStream, payload: int, into: memoryview) -> None:
        """Fills `into` with what the next payload, `payload` bytes long, was before it was compressed. Its content is
        undefined when this raises ProtocolError or ConnectionLostError. After `check_part`."""
        if payload > len(self._packed):
            self._packed = memoryview(bytearray(MAX_PART))
        packed = self._packed[:payload]
        messages.read_payload(packed)
        decompress_into(packed, into)


def decompress_into(data: bytes | bytearray | memoryview, buffer: memoryview) -> None:
    """Fills `buffer` with what `data` was before it was compressed. Its content is undefined when this raises.

    The frame must say that it holds exactly len(buffer) bytes, at most MAX_PART, and take no more memory than that to
    decompress; both are checked before anything is allocated. Whether the bytes are right is for their hash to say.
    Raises ProtocolError.
    """
    import zstandard  # 20 ms; most transfers need none

    length = len(buffer)
    check_part(ZSTD_PACKED, len(data), length, asked=True)
    try:
        frame = zstandard.get_frame_parameters(data)
        if frame.content_size != length or frame.dict_id:
            raise ProtocolError("a compressed piece is not as long as it should be")
        if frame.window_size > MAX_PART:
            raise ProtocolError("a compressed piece takes too much memory to decompress")
        context = zstandard.ZstdDecompressor(max_window_size=MAX_PART)
        done = 0
        with context.stream_reader(data, read_size=len(data), read_across_frames=True) as reader:
            while done < length:
                count = reader.readinto(buffer[done:])
                if not count:
                    raise ProtocolError("a compressed piece is cut short")
                done += count
            if reader.read(1):
                raise ProtocolError("a compressed piece is longer than it should be")
    except zstandard.ZstdError as why:
        raise ProtocolError(f"a compressed piece is damaged ({why})") from why
