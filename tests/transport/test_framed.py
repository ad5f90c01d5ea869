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


# ---- where the transport has records ---------------------------------------------------------------------------------


class Recorded:
    """A Stream whose bytes come in records, as far as a reader uses it. An empty record is the orderly end."""

    transport = "tcp"

    def __init__(self, records: list[bytes]) -> None:
        self._records = [memoryview(record) for record in records]
        self._begun = False

    def recv_whole(self, most: int) -> bytes | None:
        if self._begun or not self._records or len(self._records[0]) > most:
            return None
        return bytes(self._records.pop(0))

    def recv_into(self, into: memoryview) -> int:
        if not self._records:
            return 0
        count = min(len(into), len(self._records[0]))
        into[:count] = self._records[0][:count]
        self._records[0] = self._records[0][count:]
        self._begun = len(self._records[0]) > 0
        if not self._begun:
            self._records.pop(0)
        return count


def recorded(records: list[bytes]) -> MessageStream:
    reader = MessageStream(Recorded(records))  # type: ignore[arg-type]
    reader.enter_session()
    return reader


def frame(number: int, payload: bytes) -> bytes:
    message = Data(number) if payload else Pong(number)
    return encode_frame(message, len(payload)) + payload


@given(
    sizes=st.lists(st.sampled_from([0, 1, 300, 5000, 200 * KIB]), max_size=8),
    cuts=st.lists(st.integers(1, 400_000), max_size=12),
    data=st.data(),
)
def test_however_frames_lie_in_records_the_messages_are_the_same(
    sizes: list[int], cuts: list[int], data: st.DataObject
) -> None:
    """One to a record, several in one, one in several; the payload taken, read in pieces or skipped."""
    payloads = [bytes([number + 1]) * size for number, size in enumerate(sizes)]
    frames = [frame(number + 1, payload) for number, payload in enumerate(payloads)]
    if data.draw(st.booleans(), label="a record for each frame"):
        records = list(frames)
    else:
        wire, records = b"".join(frames), []
        while wire:
            cut = cuts.pop() if cuts else len(wire)
            records.append(wire[:cut])
            wire = wire[cut:]
    reader = recorded(records)
    for number, payload in enumerate(payloads, 1):
        message, size = reader.expect()
        assert (message, size) == (Data(number) if payload else Pong(number), len(payload))
        assert reader.idle == (not payload and not reader._decoder.buffered)
        how = data.draw(st.sampled_from(["take", "read", "skip"]), label="how")
        if how == "take" and (whole := reader.take_payload()) is not None:
            assert whole == payload
        elif how != "skip":
            into = memoryview(bytearray(size))
            half = size // 2
            reader.read_payload(into[:half])
            reader.read_payload(into[half:])
            assert into == payload
        else:
            reader.skip_payload()
    assert reader.receive() is None
    assert reader.idle


def test_a_frame_in_a_record_of_its_own_is_not_copied() -> None:
    reader = recorded([frame(1, bytes(16 * KIB)), frame(2, bytes(200 * KIB))])
    reader.expect()
    assert len(reader.take_payload() or b"") == 16 * KIB
    reader.expect()
    assert reader.take_payload() is None, "too long for that"
    reader.skip_payload()
    assert reader.receive() is None


def test_unknown_messages_in_records_are_skipped_and_counted() -> None:
    reader = recorded([unknown(), unknown(b"payload"), frame(1, b"")])
    assert reader.expect() == (Pong(1), 0)
    assert reader.unknown_messages == 2


def test_an_unread_payload_of_a_record_is_a_mistake_of_the_caller() -> None:
    reader = recorded([frame(1, b"payload"), frame(2, b"")])
    reader.expect()
    with pytest.raises(RuntimeError, match="was not taken"):
        reader.receive()


@pytest.mark.parametrize(
    "record",
    [
        PREFIX.pack(600 * KIB, 0) + bytes(100),
        PREFIX.pack(3, 1) + b"\xc1\xc1\xc1.",
        encode_frame(Pong(1), 5 * 1024 * KIB),
    ],
)
def test_a_record_that_is_no_frame_is_refused(record: bytes) -> None:
    with pytest.raises(ProtocolError):
        recorded([record]).receive()


def test_a_chunk_in_the_clear_is_refused_where_nobody_agreed_to_it() -> None:
    head = encode_frame(Chunk(1, bytes(32), clear=True), 4)
    for records in ([head + b"abcd"], [head, b"abcd"]):
        with pytest.raises(ProtocolError, match="in the clear"):
            recorded(records).receive()
