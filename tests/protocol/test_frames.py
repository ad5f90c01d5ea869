"""Frames: however the bytes arrive and however they are read, the same messages and payloads come out."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.protocol.frames import (
    HANDSHAKE_LIMITS,
    PREFIX,
    SESSION_LIMITS,
    FrameDecoder,
    FrameTooLargeError,
    Head,
    Limits,
    MalformedMessageError,
    encode_frame,
)
from headrace.protocol.messages import CHUNK_SIZE, KIB, Data, Goodbye, Message, Ping, encode

from . import strategies


@dataclass(frozen=True)
class Sent:
    """A frame as its sender means it. message: None for one that this version does not know."""

    message: Message | None
    payload: bytes
    raw: bytes


def known(message: Message, payload: bytes) -> Sent:
    return Sent(message, payload, encode_frame(message, len(payload)) + payload)


def unknown(header: bytes, payload: bytes) -> Sent:
    return Sent(None, payload, PREFIX.pack(len(header), len(payload)) + header + payload)


payloads = st.one_of(
    st.just(b""), st.binary(max_size=40), st.integers(1, 3000).map(lambda n: bytes(n % 251 for n in range(n)))
)
frames = st.lists(
    st.one_of(
        st.builds(known, strategies.messages, payloads),
        st.builds(unknown, strategies.unknown_headers, payloads),
    ),
    max_size=6,
)
Received = list[tuple[Message, bytes]]


class Wire:
    """Bytes on their way, handed out in the pieces in which they were cut."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = [piece for piece in pieces if piece]

    def recv(self, most: int) -> bytes:
        """At most `most` bytes, at least one; none at the end."""
        assert most > 0
        if not self._pieces:
            return b""
        piece = self._pieces.pop(0)
        if len(piece) > most:
            self._pieces.insert(0, piece[most:])
        return piece[:most]


def read_fed(wire: Wire, decoder: FrameDecoder, room: int) -> Received:
    """Feeds whatever arrives; takes payloads through the decoder, `room` bytes at a time."""
    received: Received = []
    payload: bytearray | None = None
    while data := wire.recv(1 << 30):
        decoder.feed(data)
        while True:
            if payload is not None:
                into = bytearray(room)
                while count := decoder.take_payload(memoryview(into)):
                    payload += into[:count]
                if decoder.payload_left:
                    break
                received.append((received.pop()[0], bytes(payload)))
                payload = None
            head = decoder.next_head()
            if head is None:
                assert decoder.missing() > 0
                break
            if head.message is not None:
                received.append((head.message, b""))
                payload = bytearray() if head.payload_length else None
    return received


def read_directly(wire: Wire, decoder: FrameDecoder, room: int) -> Received:
    """Asks for what is missing and no more; payload bytes go past the decoder into the caller's buffer."""
    received: Received = []
    while True:
        while (head := decoder.next_head()) is None:
            data = wire.recv(decoder.missing())
            if not data:
                return received
            decoder.feed(data)
        if head.message is None:
            continue
        payload = bytearray(head.payload_length)
        view = memoryview(payload)
        position = decoder.take_payload(view)
        assert position == 0, "only what was missing was ever read, so no payload byte can have come along"
        while position < len(view):
            data = wire.recv(min(room, len(view) - position))
            view[position : position + len(data)] = data
            decoder.payload_taken_elsewhere(len(data))
            position += len(data)
        received.append((head.message, bytes(payload)))


def read_ahead(wire: Wire, decoder: FrameDecoder, room: int) -> Received:
    """Reads more than is missing, so a payload is partly buffered; the rest of it comes straight from the wire."""
    received: Received = []
    while True:
        while (head := decoder.next_head()) is None:
            data = wire.recv(decoder.missing() + room)
            if not data:
                return received
            decoder.feed(data)
        if head.message is None:
            continue
        payload = bytearray(head.payload_length)
        view = memoryview(payload)
        position = decoder.take_payload(view)
        while position < len(view):
            data = wire.recv(len(view) - position)
            view[position : position + len(data)] = data
            decoder.payload_taken_elsewhere(len(data))
            position += len(data)
        received.append((head.message, bytes(payload)))


readers = pytest.mark.parametrize("read", [read_fed, read_directly, read_ahead], ids=lambda read: read.__name__)


@readers
@settings(max_examples=50, deadline=None)
@given(sent=frames, room=st.integers(1, 700), data=st.data())
def test_any_split_gives_the_same_frames(
    read: Callable[[Wire, FrameDecoder, int], Received], sent: list[Sent], room: int, data: st.DataObject
) -> None:
    wire = Wire(strategies.split(data, b"".join(frame.raw for frame in sent)))
    decoder = FrameDecoder(SESSION_LIMITS)
    assert read(wire, decoder, room) == [(frame.message, frame.payload) for frame in sent if frame.message is not None]
    assert decoder.unknown_messages == sum(frame.message is None for frame in sent)
    assert decoder.next_head() is None
    assert decoder.idle
    assert decoder.buffered == decoder.payload_left == 0


@settings(max_examples=50, deadline=None)
@given(sent=frames, data=st.data())
def test_skipped_payloads_do_not_disturb_what_follows(sent: list[Sent], data: st.DataObject) -> None:
    wire = Wire(strategies.split(data, b"".join(frame.raw for frame in sent)))
    decoder = FrameDecoder(SESSION_LIMITS)
    heads: list[Head] = []
    while piece := wire.recv(1 << 30):
        decoder.feed(piece)
        while head := decoder.next_head():
            heads.append(head)
            taken = data.draw(st.integers(0, head.payload_length))
            if head.message is not None:
                decoder.take_payload(memoryview(bytearray(taken)))
                decoder.skip_payload()
    assert heads == [Head(frame.message, len(frame.payload)) for frame in sent]
    assert decoder.next_head() is None
    assert decoder.idle


@settings(max_examples=60, deadline=None)
@given(sent=frames.filter(bool), data=st.data())
def test_idle_only_between_frames(sent: list[Sent], data: st.DataObject) -> None:
    whole = b"".join(frame.raw for frame in sent)
    ends = {sum(len(frame.raw) for frame in sent[:count]) for count in range(len(sent) + 1)}
    cut = data.draw(st.integers(0, len(whole)))
    decoder = FrameDecoder(SESSION_LIMITS)
    decoder.feed(whole[:cut])
    while head := decoder.next_head():
        if head.message is not None:
            decoder.take_payload(memoryview(bytearray(head.payload_length)))
            if decoder.payload_left:
                break
    assert decoder.idle == (cut in ends)


def test_a_byte_at_a_time_never_buffers_more_than_a_header() -> None:
    decoder = FrameDecoder(SESSION_LIMITS)
    frame = unknown(b"\x81\xa4type\xa6future", bytes(70_000))
    for byte in frame.raw:
        decoder.feed(bytes([byte]))
        decoder.next_head()
        assert decoder.buffered < 32
    assert decoder.idle
    assert decoder.unknown_messages == 1


# ---- limits ------------------------------------------------------------------------------------------------------

limits = pytest.mark.parametrize("limit", [HANDSHAKE_LIMITS, SESSION_LIMITS, Limits(100, 0)], ids=str)


@limits
def test_lengths_at_the_limit_are_taken(limit: Limits) -> None:
    decoder = FrameDecoder(limit)
    decoder.feed(PREFIX.pack(limit.header, limit.payload))
    assert decoder.next_head() is None
    assert decoder.missing() == limit.header


@limits
@pytest.mark.parametrize("over", [(1, 0), (0, 1), (1, 1), (1 << 31, 0), (0, 1 << 31)])
def test_lengths_over_the_limit_are_refused_before_anything_is_allocated(limit: Limits, over: tuple[int, int]) -> None:
    decoder = FrameDecoder(limit)
    decoder.feed(PREFIX.pack(limit.header + over[0], limit.payload + over[1]))
    tracemalloc.start()
    try:
        with pytest.raises(FrameTooLargeError):
            decoder.next_head()
        assert tracemalloc.get_traced_memory()[1] < 16 * KIB
    finally:
        tracemalloc.stop()
    assert decoder.buffered == PREFIX.size
    assert decoder.missing() == 0, "nothing more is asked for"
    decoder.feed(b"\x81" * 200)
    with pytest.raises(FrameTooLargeError):
        decoder.next_head()


def test_a_length_at_the_limit_allocates_only_what_arrived() -> None:
    decoder = FrameDecoder(SESSION_LIMITS)
    tracemalloc.start()
    try:
        decoder.feed(PREFIX.pack(SESSION_LIMITS.header, SESSION_LIMITS.payload) + b"\x81")
        assert decoder.next_head() is None
        assert tracemalloc.get_traced_memory()[1] < 16 * KIB
    finally:
        tracemalloc.stop()


def test_the_handshake_allows_no_payload() -> None:
    decoder = FrameDecoder()
    decoder.feed(encode_frame(Goodbye(), 1))
    with pytest.raises(FrameTooLargeError):
        decoder.next_head()


def test_new_limits_hold_from_the_next_frame_on() -> None:
    """What a host does after Granted: the client's first request may lie in the buffer by then."""
    decoder = FrameDecoder(HANDSHAKE_LIMITS)
    decoder.feed(encode_frame(Goodbye()) + encode_frame(Data(1), 3) + b"abc")
    assert decoder.next_head() == Head(Goodbye(), 0)
    decoder.limits = SESSION_LIMITS
    assert decoder.next_head() == Head(Data(1), 3)
    into = bytearray(5)
    assert decoder.take_payload(memoryview(into)) == 3
    assert into == b"abc\0\0"


def test_limits_are_what_the_document_says() -> None:
    assert (HANDSHAKE_LIMITS.header, HANDSHAKE_LIMITS.payload) == (4096, 0)
    assert (SESSION_LIMITS.header, SESSION_LIMITS.payload) == (524_288, CHUNK_SIZE)
    assert CHUNK_SIZE == 4_194_304


# ---- hostile bytes -----------------------------------------------------------------------------------------------


def drain(decoder: FrameDecoder) -> None:
    while (head := decoder.next_head()) is not None:
        if head.message is not None:
            decoder.skip_payload()


@settings(max_examples=150, deadline=None)
@given(raw=st.binary(max_size=200), data=st.data())
def test_random_bytes(raw: bytes, data: st.DataObject) -> None:
    decoder = FrameDecoder(SESSION_LIMITS)
    try:
        for piece in strategies.split(data, raw):
            decoder.feed(piece)
            drain(decoder)
    except (FrameTooLargeError, MalformedMessageError) as why:
        with pytest.raises(type(why)):
            drain(decoder)


@settings(max_examples=100, deadline=None)
@given(lengths=st.tuples(st.integers(0, 60), st.integers(0, 60)), raw=st.binary(max_size=120), data=st.data())
def test_random_bytes_behind_plausible_lengths(lengths: tuple[int, int], raw: bytes, data: st.DataObject) -> None:
    decoder = FrameDecoder(SESSION_LIMITS)
    try:
        for piece in strategies.split(data, PREFIX.pack(*lengths) + raw):
            decoder.feed(piece)
            drain(decoder)
    except (FrameTooLargeError, MalformedMessageError):
        pass


@settings(max_examples=100, deadline=None)
@given(sent=frames.filter(bool), data=st.data())
def test_damaged_streams(sent: list[Sent], data: st.DataObject) -> None:
    raw = bytearray(b"".join(frame.raw for frame in sent))
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    decoder = FrameDecoder(SESSION_LIMITS)
    try:
        decoder.feed(raw)
        drain(decoder)
    except (FrameTooLargeError, MalformedMessageError):
        pass


def test_a_malformed_header_stays_malformed() -> None:
    decoder = FrameDecoder()
    decoder.feed(PREFIX.pack(1, 0) + b"\xc0" + encode_frame(Ping(1)))
    for _ in range(2):
        with pytest.raises(MalformedMessageError):
            decoder.next_head()


def test_an_empty_header_is_malformed() -> None:
    decoder = FrameDecoder()
    decoder.feed(PREFIX.pack(0, 0))
    with pytest.raises(MalformedMessageError):
        decoder.next_head()


# ---- misuse by the caller ----------------------------------------------------------------------------------------


def test_a_payload_has_to_be_taken_before_the_next_head() -> None:
    decoder = FrameDecoder(SESSION_LIMITS)
    decoder.feed(encode_frame(Data(1), 3) + b"ab")
    assert decoder.next_head() == Head(Data(1), 3)
    with pytest.raises(RuntimeError):
        decoder.next_head()
    assert decoder.take_payload(memoryview(bytearray(9))) == 2
    assert decoder.take_payload(memoryview(bytearray(9))) == 0
    with pytest.raises(RuntimeError):
        decoder.payload_taken_elsewhere(2)
    decoder.payload_taken_elsewhere(1)
    assert decoder.next_head() is None


def test_nothing_is_taken_elsewhere_while_payload_is_buffered() -> None:
    decoder = FrameDecoder(SESSION_LIMITS)
    decoder.feed(encode_frame(Data(1), 3) + b"ab")
    decoder.next_head()
    with pytest.raises(RuntimeError):
        decoder.payload_taken_elsewhere(1)


def test_a_frame_is_two_lengths_a_header_and_the_payload() -> None:
    header = encode(Data(7))
    assert encode_frame(Data(7), 5) == len(header).to_bytes(4, "big") + (5).to_bytes(4, "big") + header
