"""Messages over a Stream: whole, in pieces, too large, unknown, cut off."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import ConnectionLostError, ProtocolError
from headrace.protocol.frames import PREFIX, encode_frame
from headrace.protocol.messages import (
    CHUNK_SIZE,
    KIB,
    Chunk,
    Data,
    Goodbye,
    Hello,
    List,
    ListPart,
    Message,
    Ping,
    Pong,
    Stat,
)
from headrace.transport.framed import MessageStream

from .memory import Faults, MemoryStream, memory_pair

HELLO = Hello((7, 8), ["sparse"], "test")


def conversation(faults: Faults | None = None, capacity: int = 8 * 1024 * KIB) -> tuple[MessageStream, MessageStream]:
    """Two ends in the state after the handshake."""
    near, far = (MessageStream(stream) for stream in memory_pair(faults, capacity=capacity))
    near.enter_session()
    far.enter_session()
    return near, far


def raw_and_reader(raw: bytes) -> tuple[MemoryStream, MessageStream]:
    """An end that has sent `raw`, and a session's reader of it."""
    near, far = memory_pair(capacity=8 * 1024 * KIB)
    near.send(raw)
    reader = MessageStream(far)
    reader.enter_session()
    return near, reader


def unknown(payload: bytes = b"") -> bytes:
    """A frame of a type that this version does not know."""
    header = msgspec.msgpack.encode({"type": "from-the-future", "id": 3})
    return PREFIX.pack(len(header), len(payload)) + header + payload


def test_a_message_arrives() -> None:
    near, far = conversation()
    near.send(Stat(1, b"day1/a.mov"))
    assert far.receive() == (Stat(1, b"day1/a.mov"), 0)


def test_several_messages_in_one_go() -> None:
    near, far = conversation()
    near.send_all([Ping(1), Stat(2, b"a"), Goodbye("done")])
    near.send_all([])
    assert [far.receive() for _ in range(3)] == [(Ping(1), 0), (Stat(2, b"a"), 0), (Goodbye("done"), 0)]


def test_a_payload_is_read_into_the_callers_buffer() -> None:
    near, far = conversation()
    near.send(Data(4), b"headwater\n")
    near.send(Pong(5))
    assert far.receive() == (Data(4), 10)
    buffer = bytearray(b"-" * 12)
    far.read_payload(memoryview(buffer)[1:11])
    assert buffer == b"-headwater\n-"
    assert far.receive() == (Pong(5), 0)


def test_a_payload_may_be_read_in_pieces_and_the_rest_skipped() -> None:
    near, far = conversation()
    near.send(Data(1), b"0123456789")
    near.send(Pong(2))
    assert far.receive() == (Data(1), 10)
    first, second = memoryview(bytearray(3)), memoryview(bytearray(2))
    far.read_payload(first)
    far.read_payload(second)
    far.read_payload(memoryview(b""))
    far.skip_payload()
    assert bytes(first) + bytes(second) == b"01234"
    assert far.receive() == (Pong(2), 0)


def test_the_buffer_of_a_payload_may_be_reused_after_send() -> None:
    near, far = conversation()
    buffer = bytearray(b"first")
    near.send(Data(1), memoryview(buffer))
    buffer[:] = b"XXXXX"
    got = memoryview(bytearray(5))
    far.receive()
    far.read_payload(got)
    assert bytes(got) == b"first"


@settings(deadline=None, max_examples=50)
@given(
    frames=st.lists(
        st.one_of(
            st.tuples(st.builds(Data, id=st.integers(1, 99)), st.binary(min_size=1, max_size=3000)),
            st.tuples(st.builds(Stat, id=st.integers(1, 99), path=st.binary(max_size=50)), st.just(b"")),
            st.tuples(st.none(), st.binary(max_size=3000)),
        ),
        max_size=8,
    ),
    piece=st.integers(1, 40),
    skip=st.booleans(),
)
def test_pieces_of_any_size_give_the_same_messages(
    frames: list[tuple[Message | None, bytes]], piece: int, skip: bool
) -> None:
    near, far = (MessageStream(stream) for stream in memory_pair(Faults(piece=piece), capacity=64 * KIB))
    for message, payload in frames:
        if message is None:
            near.stream.send(unknown(payload))
        else:
            near.send(message, payload)
    near.close()
    far.enter_session()
    got: list[tuple[Message, bytes]] = []
    while received := far.receive():
        message, size = received
        buffer = memoryview(bytearray(size))
        if skip:
            far.skip_payload()
        else:
            far.read_payload(buffer)
        got.append((message, bytes(buffer)))
    wanted = [(message, payload) for message, payload in frames if message is not None]
    assert [message for message, _ in got] == [message for message, _ in wanted]
    if not skip:
        assert got == wanted
    assert far.unknown_messages == len(frames) - len(wanted)


def test_one_byte_at_a_time() -> None:
    near, far = conversation(Faults(piece=1))
    near.send(Chunk(1, bytes(32)), b"payload")
    near.send(Ping(2))
    assert far.receive() == (Chunk(1, bytes(32)), 7)
    buffer = memoryview(bytearray(7))
    far.read_payload(buffer)
    assert bytes(buffer) == b"payload"
    assert far.receive() == (Ping(2), 0)


def test_a_message_of_unknown_type_is_skipped_with_its_payload() -> None:
    near, reader = raw_and_reader(unknown(b"x" * 300_000) + unknown())
    near.send(encode_frame(Ping(1)))
    assert reader.receive() == (Ping(1), 0)
    assert reader.unknown_messages == 2


def test_an_unread_payload_is_a_mistake_of_the_caller_not_of_the_peer() -> None:
    _near, reader = raw_and_reader(encode_frame(Data(1), 3) + b"abc" + encode_frame(Ping(2)))
    assert reader.receive() == (Data(1), 3)
    with pytest.raises(RuntimeError):
        reader.receive()


# ---- the end -------------------------------------------------------------------------------------------------------


def test_the_peer_may_close_between_two_messages() -> None:
    near, far = conversation()
    near.send(Ping(1))
    near.close()
    assert far.receive() == (Ping(1), 0)
    assert far.receive() is None
    assert far.receive() is None


def test_where_a_message_is_expected_a_close_is_a_lost_connection() -> None:
    near, far = conversation()
    near.close()
    with pytest.raises(ConnectionLostError):
        far.expect()


FRAME = encode_frame(Data(9), 20) + b"p" * 20


@pytest.mark.parametrize("orderly", [True, False])
@pytest.mark.parametrize("size", range(1, len(FRAME)))
def test_an_end_in_the_middle_of_a_frame_is_a_lost_connection(size: int, orderly: bool) -> None:
    near, reader = raw_and_reader(FRAME[:size])
    if orderly:
        near.close()
    else:
        near.cut()
    with pytest.raises(ConnectionLostError):
        reader.receive()
        reader.read_payload(memoryview(bytearray(20)))


@pytest.mark.parametrize("orderly", [True, False])
def test_an_end_in_a_payload_that_is_skipped_is_a_lost_connection(orderly: bool) -> None:
    near, reader = raw_and_reader(FRAME[:-1])
    if orderly:
        near.close()
    else:
        near.cut()
    reader.receive()
    reader.skip_payload()
    with pytest.raises(ConnectionLostError):
        reader.receive()


def test_abort_goes_through_to_the_stream() -> None:
    near, far = conversation()
    near.send(Ping(1))
    far.abort()
    with pytest.raises(ConnectionLostError):
        far.receive()


# ---- what breaks the rules -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prefix",
    [
        PREFIX.pack(512 * KIB + 1, 0),
        PREFIX.pack(10, CHUNK_SIZE + 1),
        PREFIX.pack(0xFFFFFFFF, 0xFFFFFFFF),
    ],
)
def test_a_frame_over_the_limits_is_refused_at_its_prefix(prefix: bytes) -> None:
    """Before any of it was waited for, and before there is memory for it."""
    _near, reader = raw_and_reader(prefix)
    with pytest.raises(ProtocolError):
        reader.receive()


@pytest.mark.parametrize(
    "raw",
    [
        PREFIX.pack(0, 0),
        PREFIX.pack(3, 0) + b"\xc1\xc1\xc1",
        PREFIX.pack(1, 0) + b"\x80",
        PREFIX.pack(14, 0) + msgspec.msgpack.encode({"type": "stat"})[:11] + b"\x00\x00\x00",
    ],
)
def test_a_header_that_is_no_message_is_refused(raw: bytes) -> None:
    _near, reader = raw_and_reader(raw + bytes(20))
    with pytest.raises(ProtocolError):
        reader.receive()


def test_the_limits_of_the_handshake_are_narrower() -> None:
    near, far = (MessageStream(stream) for stream in memory_pair())
    near.send(HELLO)
    assert far.receive() == (HELLO, 0)
    near.send(Stat(1, b"x" * 4 * KIB))
    with pytest.raises(ProtocolError):
        far.receive()


def test_the_handshake_has_no_payloads() -> None:
    near, far = (MessageStream(stream) for stream in memory_pair())
    near.send(HELLO, b"x")
    with pytest.raises(ProtocolError):
        far.receive()


def test_what_follows_the_handshake_closely_is_read_under_the_sessions_limits() -> None:
    """A client may send requests right behind its last handshake message."""
    near, far = (MessageStream(stream) for stream in memory_pair())
    near.send_all([HELLO, List(1, b"d" * 4000), Stat(2, b"x" * 5000)])
    assert far.receive() == (HELLO, 0)
    far.enter_session()
    assert far.receive() == (List(1, b"d" * 4000), 0)
    assert far.receive() == (Stat(2, b"x" * 5000), 0)


def test_a_header_may_be_as_large_as_its_limit() -> None:
    near, far = conversation()
    fixed = len(encode_frame(ListPart(1, bytes(70_000), []))) - 70_000 - PREFIX.size
    part = ListPart(1, b"p" * (512 * KIB - fixed), [])
    assert len(encode_frame(part)) == PREFIX.size + 512 * KIB
    near.send(part)
    received = far.receive()
    assert received == (part, 0)
