"""A lane numbers its requests and takes no answers but to them."""

from __future__ import annotations

import msgspec
import pytest

from headrace.errors import ConnectionLostError, ProtocolError
from headrace.protocol.frames import PREFIX
from headrace.protocol.messages import (
    Chunk,
    Data,
    Entry,
    Error,
    Goodbye,
    ListPart,
    ManifestPart,
    Message,
    Ping,
    Pong,
    Stat,
    StatReply,
    Welcome,
)

from .scripted import ScriptedHost


@pytest.fixture
def host() -> ScriptedHost:
    return ScriptedHost()


def test_requests_are_numbered_from_one(host: ScriptedHost) -> None:
    assert [host.lane.next_id() for _ in range(3)] == [1, 2, 3]


def test_numbers_begin_anew_before_they_outgrow_32_bits(host: ScriptedHost) -> None:
    host.lane._last_id = 0xFFFFFFFE
    assert [host.lane.next_id() for _ in range(3)] == [0xFFFFFFFF, 1, 2], "0 is the connection itself"


def test_answers_come_in_the_order_of_the_requests(host: ScriptedHost) -> None:
    lane = host.lane
    for _ in range(2):
        lane.post(Ping(lane.next_id()))
    lane.post(Stat(lane.next_id(), b"a"))
    host.say(Pong(1))
    host.say(Pong(2))
    host.say(Error(3, "not_found", "no"))
    assert lane.answer() == (Pong(1), 0)
    assert [host.asked() for _ in range(3)] == [Ping(1), Ping(2), Stat(3, b"a")]
    assert lane.answer() == (Pong(2), 0)
    assert lane.answer() == (Error(3, "not_found", "no"), 0), "an error is an answer, not an exception"
    lane.post(Ping(lane.next_id()))
    host.say(Pong(4))
    assert lane.answer() == (Pong(4), 0)


def test_what_was_posted_leaves_together_with_the_wait_for_an_answer(host: ScriptedHost) -> None:
    lane = host.lane
    sent: list[int] = []
    original = lane.messages.stream.send
    lane.messages.stream.send = lambda *parts: (sent.append(len(parts)), original(*parts))[1]  # type: ignore[method-assign,func-returns-value]
    for _ in range(50):
        lane.post(Ping(lane.next_id()))
    assert sent == []
    host.answering = lambda request: host.say(Pong(request.id))
    for number in range(1, 51):
        assert lane.answer() == (Pong(number), 0)
    assert sent == [1], "one encryption and one system call"
    assert host.requests == [Ping(number) for number in range(1, 51)]


def test_an_answer_may_have_parts(host: ScriptedHost) -> None:
    lane = host.lane
    lane.next_id()
    lane.next_id()
    for part in (ListPart(1, b"", []), ListPart(1, b"d", []), ListPart(1, b"", [], last=True), Pong(2)):
        host.say(part)
    assert [lane.part()[0] for _ in range(3)] == [
        ListPart(1, b"", []),
        ListPart(1, b"d", []),
        ListPart(1, b"", [], True),
    ]
    assert lane.heard == 3
    lane.answered()
    assert lane.answer() == (Pong(2), 0)


def test_the_length_of_a_payload_comes_with_the_answer(host: ScriptedHost) -> None:
    lane = host.lane
    lane.next_id()
    host.say(Data(1), b"headwater\n")
    assert lane.answer() == (Data(1), 10)
    buffer = memoryview(bytearray(10))
    lane.messages.read_payload(buffer)
    assert bytes(buffer) == b"headwater\n"


def test_messages_of_unknown_type_are_no_answers(host: ScriptedHost) -> None:
    lane = host.lane
    lane.next_id()
    header = msgspec.msgpack.encode({"type": "weather", "id": 1})
    host.stream.send(PREFIX.pack(len(header), 3), header, b"sun")
    host.say(Pong(1))
    assert lane.answer() == (Pong(1), 0)


@pytest.mark.parametrize(
    "message",
    [Pong(2), Pong(0), Data(99), Error(2, "denied", ""), Welcome(8, [], "", ""), ListPart(-1, b"", [])],
)
def test_what_was_not_asked_breaks_the_protocol(host: ScriptedHost, message: Message) -> None:
    host.lane.next_id()
    host.say(message)
    with pytest.raises(ProtocolError):
        host.lane.part()


def test_an_answer_without_a_request_breaks_the_protocol(host: ScriptedHost) -> None:
    host.say(Pong(1))
    with pytest.raises(ProtocolError):
        host.lane.part()
    host = ScriptedHost()
    host.lane.next_id()
    host.say(Pong(1))
    host.say(Pong(1))
    host.lane.answer()
    with pytest.raises(ProtocolError):
        host.lane.part()


@pytest.mark.parametrize(
    "message",
    [
        Pong(1),
        StatReply(1, Entry(b"a", "d")),
        ListPart(1, b"", []),
        ManifestPart(1, 0, b""),
        Error(1, "denied", "no"),
    ],
)
def test_a_payload_where_none_belongs_breaks_the_protocol(host: ScriptedHost, message: Message) -> None:
    """Unread it would be in the way of the next answer."""
    host.lane.next_id()
    host.say(message, b"x")
    with pytest.raises(ProtocolError):
        host.lane.part()


@pytest.mark.parametrize("message", [Data(1), Chunk(1, bytes(32))])
def test_a_payload_where_one_belongs(host: ScriptedHost, message: Message) -> None:
    host.lane.next_id()
    host.say(message, b"x")
    assert host.lane.part() == (message, 1)


def test_an_error_about_the_connection_ends_it(host: ScriptedHost) -> None:
    host.lane.next_id()
    host.say(Error(0, "internal", "out of \x1b[31mluck"))
    with pytest.raises(ConnectionLostError, match=r"out of \\x1b\[31mluck"):
        host.lane.part()


def test_a_goodbye_ends_the_connection_too(host: ScriptedHost) -> None:
    """Either side may say it at any time; running the command again can help."""
    host.lane.next_id()
    host.say(Goodbye("the share \x1bstops"))
    with pytest.raises(ConnectionLostError, match=r"the share \\x1bstops"):
        host.lane.part()


def test_a_close_is_a_lost_connection(host: ScriptedHost) -> None:
    host.lane.next_id()
    host.stream.close()
    with pytest.raises(ConnectionLostError):
        host.lane.part()
