"""How a range is asked for and received, in each phase, from hosts that answer well and badly."""

from __future__ import annotations

import random
from typing import Final

import pytest
from tests.transport.memory import Faults

from headrace.engine.exchange import EXCHANGES, BaselineExchange, BulkExchange, Exchange
from headrace.errors import (
    ConnectionLostError,
    HeadraceError,
    IntegrityError,
    NotFoundError,
    PermissionRefusedError,
    ProtocolError,
    RemoteIOError,
    SourceChangedError,
)
from headrace.protocol.messages import (
    CHUNK_SIZE,
    KIB,
    READ_SIZE,
    Chunk,
    Data,
    Error,
    GetChunk,
    Message,
    Pong,
    Read,
)
from headrace.protocol.paths import RelPath
from headrace.storage.chunks import hash_bytes
from headrace.transport.framed import PIECE

from .scripted import ScriptedHost

PATH: Final = RelPath((b"day1", b"a.mov"))
VERSION: Final = b"v" * 16
NOISE: Final = random.Random(4).randbytes(CHUNK_SIZE)
BULK, BASELINE = BulkExchange(), BaselineExchange()
BOTH = pytest.mark.parametrize("exchange", [BASELINE, BULK], ids=["phase 7", "phase 8"])
# In phase 7 a range comes in pieces of READ_SIZE: one, two, some with a short one behind.
SIZES: Final = (1, 10, READ_SIZE, READ_SIZE + 1, 3 * READ_SIZE, PIECE, PIECE + 1, CHUNK_SIZE - 1, CHUNK_SIZE)


@pytest.fixture
def host() -> ScriptedHost:
    return ScriptedHost()


def honest(host: ScriptedHost, content: bytes = NOISE) -> None:
    """From here on it answers as a host with that file does."""

    def answer(request: Message) -> None:
        assert isinstance(request, (Read, GetChunk))
        assert (request.path, request.version) == (bytes(PATH), VERSION)
        part = content[request.offset : request.offset + request.length]
        if isinstance(request, Read):
            assert request.length <= READ_SIZE
            host.say(Data(request.id), part)
        else:
            host.say(Chunk(request.id, hash_bytes(part)), part)

    host.answering = answer


def saying(host: ScriptedHost, message: Message, payload: bytes = b"") -> None:
    """From here on it answers with this, whatever it is asked."""
    host.answering = lambda request: host.say(message, payload)


def requests_for(exchange: Exchange, length: int) -> int:
    return 1 if exchange is BULK else -(-length // READ_SIZE)


def still_usable(exchange: Exchange, host: ScriptedHost) -> bool:
    """Whether the next range arrives as if nothing had been."""
    buffer = memoryview(bytearray(20))
    honest(host)
    exchange.request(host.lane, PATH, VERSION, 3, 20)
    digest, zero = exchange.receive(host.lane, 20, buffer, None)
    return bytes(buffer) == NOISE[3:23] and digest == hash_bytes(NOISE[3:23]) and not zero


def test_each_phase_has_its_own() -> None:
    assert isinstance(EXCHANGES[7], BaselineExchange)
    assert isinstance(EXCHANGES[8], BulkExchange)
    assert set(EXCHANGES) == {7, 8}


# ---- as it should be -------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("length", SIZES)
def test_a_range_lands_in_the_buffer(exchange: Exchange, length: int, host: ScriptedHost) -> None:
    buffer = memoryview(bytearray(b"\xff") * (length + 10))
    honest(host)
    exchange.request(host.lane, PATH, VERSION, 0, length)
    digest, zero = exchange.receive(host.lane, length, buffer, None)
    assert len(host.requests) == requests_for(exchange, length)
    assert (digest, zero) == (hash_bytes(NOISE[:length]), False)
    assert buffer[:length] == NOISE[:length]
    assert buffer[length:] == b"\xff" * 10


@BOTH
@pytest.mark.parametrize("length", SIZES)
def test_a_sink_gets_the_pieces_while_they_are_hot(exchange: Exchange, length: int, host: ScriptedHost) -> None:
    got = bytearray()

    def sink(position: int, piece: memoryview) -> None:
        assert position == len(got)
        assert 0 < len(piece) <= PIECE
        got.extend(piece)

    honest(host)
    exchange.request(host.lane, PATH, VERSION, 0, length)
    digest, _ = exchange.receive(host.lane, length, memoryview(bytearray(PIECE)), sink)
    assert got == NOISE[:length]
    assert digest == hash_bytes(NOISE[:length])


@BOTH
def test_a_range_in_the_middle(exchange: Exchange, host: ScriptedHost) -> None:
    buffer = memoryview(bytearray(300 * KIB))
    honest(host)
    exchange.request(host.lane, PATH, VERSION, 1_000_001, len(buffer))
    exchange.receive(host.lane, len(buffer), buffer, None)
    assert buffer == NOISE[1_000_001 : 1_000_001 + len(buffer)]


@BOTH
def test_several_ranges_in_flight(exchange: Exchange, host: ScriptedHost) -> None:
    ranges = [(0, 200 * KIB), (5, 10), (100, READ_SIZE)]
    honest(host)
    for offset, length in ranges:
        exchange.request(host.lane, PATH, VERSION, offset, length)
    buffer = memoryview(bytearray(200 * KIB))
    for offset, length in ranges:
        exchange.receive(host.lane, length, buffer, None)
        assert len(host.requests) == sum(requests_for(exchange, length) for _, length in ranges), "asked at once"
        assert buffer[:length] == NOISE[offset : offset + length]


@BOTH
def test_a_byte_at_a_time(exchange: Exchange) -> None:
    host = ScriptedHost(Faults(piece=1))
    assert still_usable(exchange, host)


def test_all_zeros_come_without_a_payload(host: ScriptedHost) -> None:
    told: list[int] = []
    for length in (1, 100, CHUNK_SIZE):
        BULK.request(host.lane, PATH, VERSION, 0, length)
        digest = hash_bytes(bytes(length))
        host.answering = lambda request: host.say(Chunk(request.id, hash_bytes(bytes(request.length)), zero=True))
        buffer = memoryview(bytearray(b"\xff" * 10))
        answer = BULK.receive(host.lane, length, buffer, lambda position, piece: told.append(position))
        assert answer == (digest, True)
        assert buffer == b"\xff" * 10, "the caller makes the hole, or the zeros"
    assert told == []
    assert still_usable(BULK, host)


# ---- answers that are errors -----------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("not_found", NotFoundError),
        ("denied", PermissionRefusedError),
        ("changed", SourceChangedError),
        ("remote_io", RemoteIOError),
        ("from-the-future", HeadraceError),
    ],
)
def test_an_error_is_raised_and_the_lane_goes_on(
    exchange: Exchange, code: str, error: type[HeadraceError], host: ScriptedHost
) -> None:
    saying(host, Error(1, code, "the disk \x07rings"))
    exchange.request(host.lane, PATH, VERSION, 0, 10)
    with pytest.raises(error, match=r"the disk \\x07rings") as raised:
        exchange.receive(host.lane, 10, memoryview(bytearray(10)), None)
    assert type(raised.value) is error
    assert still_usable(exchange, host)


@pytest.mark.parametrize("failing", [{0}, {1}, {3}, {0, 1, 2, 3}, {1, 2}])
def test_phase_7_reads_all_answers_of_a_range_that_failed(failing: set[int], host: ScriptedHost) -> None:
    def answer(request: Message) -> None:
        assert isinstance(request, Read)
        number = request.offset // READ_SIZE
        if number in failing:
            host.say(Error(request.id, "changed" if number == min(failing) else "not_found", f"error {number}"))
        else:
            host.say(Data(request.id), NOISE[request.offset : request.offset + request.length])

    host.answering = answer
    BASELINE.request(host.lane, PATH, VERSION, 0, 4 * READ_SIZE)
    told: list[int] = []
    with pytest.raises(SourceChangedError, match=f"error {min(failing)}"):
        BASELINE.receive(
            host.lane, 4 * READ_SIZE, memoryview(bytearray(PIECE)), lambda position, piece: told.append(position)
        )
    assert told == [number * READ_SIZE for number in range(min(failing))], "nothing after the failure is written"
    assert still_usable(BASELINE, host)


@pytest.mark.parametrize("short", [0, 1, 2])
@pytest.mark.parametrize("payload", [0, 1, READ_SIZE - 1])
def test_phase_7_a_file_that_became_shorter_has_changed(short: int, payload: int, host: ScriptedHost) -> None:
    """Fewer bytes than asked for mean the end of the file, which is not where it was."""

    def answer(request: Message) -> None:
        assert isinstance(request, Read)
        number = request.offset // READ_SIZE
        size = READ_SIZE if number < short else payload if number == short else 0
        host.say(Data(request.id), NOISE[:size])

    host.answering = answer
    BASELINE.request(host.lane, PATH, VERSION, 0, 3 * READ_SIZE)
    with pytest.raises(SourceChangedError):
        BASELINE.receive(host.lane, 3 * READ_SIZE, memoryview(bytearray(3 * READ_SIZE)), None)
    assert still_usable(BASELINE, host)


def test_a_chunk_that_does_not_match_its_hash(host: ScriptedHost) -> None:
    damaged = bytearray(NOISE[: 600 * KIB])
    damaged[-1] ^= 1
    wrong = hash_bytes(NOISE[: 600 * KIB])
    for sink in (None, lambda position, piece: None):
        host.answering = lambda request: host.say(Chunk(request.id, wrong), bytes(damaged))
        BULK.request(host.lane, PATH, VERSION, 0, 600 * KIB)
        with pytest.raises(IntegrityError):
            BULK.receive(host.lane, 600 * KIB, memoryview(bytearray(600 * KIB)), sink)
        assert still_usable(BULK, host)


@pytest.mark.parametrize("digest", [hash_bytes(b"\0" * 99), hash_bytes(b"x" * 100), bytes(32), b""])
def test_zeros_that_do_not_match_their_hash(host: ScriptedHost, digest: bytes) -> None:
    saying(host, Chunk(1, digest, zero=True))
    BULK.request(host.lane, PATH, VERSION, 0, 100)
    with pytest.raises(IntegrityError):
        BULK.receive(host.lane, 100, memoryview(bytearray(100)), None)
    assert still_usable(BULK, host)


@pytest.mark.parametrize("digest", [b"", bytes(31), bytes(33), bytes(4000)])
def test_a_hash_that_is_none_matches_nothing(host: ScriptedHost, digest: bytes) -> None:
    saying(host, Chunk(1, digest), NOISE[:100])
    BULK.request(host.lane, PATH, VERSION, 0, 100)
    with pytest.raises(IntegrityError):
        BULK.receive(host.lane, 100, memoryview(bytearray(100)), None)


# ---- answers that break the protocol ---------------------------------------------------------------------------------

DIGEST: Final = hash_bytes(NOISE[:100])


@pytest.mark.parametrize(
    ("message", "payload"),
    [
        (Chunk(1, DIGEST), NOISE[:99]),
        (Chunk(1, DIGEST), NOISE[:101]),
        (Chunk(1, DIGEST), b""),
        (Chunk(1, DIGEST, zero=True), NOISE[:100]),
        (Chunk(1, DIGEST, zero=True), b"\0"),
        (Chunk(2, DIGEST), NOISE[:100]),
        (Chunk(0, DIGEST), NOISE[:100]),
        (Data(1), NOISE[:100]),
        (Pong(1), b""),
        (Error(1, "denied", "no"), b"x"),
    ],
)
def test_phase_8_answers_that_are_none(message: Message, payload: bytes, host: ScriptedHost) -> None:
    saying(host, message, payload)
    BULK.request(host.lane, PATH, VERSION, 0, 100)
    with pytest.raises(ProtocolError):
        BULK.receive(host.lane, 100, memoryview(bytearray(1000)), None)


@pytest.mark.parametrize(
    ("message", "payload"),
    [
        (Data(1), NOISE[:101]),
        (Data(2), NOISE[:100]),
        (Data(0), NOISE[:100]),
        (Chunk(1, DIGEST), NOISE[:100]),
        (Pong(1), b""),
        (Error(1, "denied", "no"), b"x"),
    ],
)
def test_phase_7_answers_that_are_none(message: Message, payload: bytes, host: ScriptedHost) -> None:
    saying(host, message, payload)
    BASELINE.request(host.lane, PATH, VERSION, 0, 100)
    with pytest.raises(ProtocolError):
        BASELINE.receive(host.lane, 100, memoryview(bytearray(1000)), None)


@BOTH
def test_a_connection_that_breaks_in_a_payload(exchange: Exchange) -> None:
    host = ScriptedHost(Faults(cut_after=70_000))
    answer = Data(1) if exchange is BASELINE else Chunk(1, hash_bytes(NOISE[:READ_SIZE]))

    def break_off(request: Message) -> None:
        with pytest.raises(ConnectionLostError):
            host.say(answer, NOISE[:READ_SIZE])

    host.answering = break_off
    exchange.request(host.lane, PATH, VERSION, 0, READ_SIZE)
    buffer = memoryview(bytearray(READ_SIZE))
    with pytest.raises(ConnectionLostError):
        exchange.receive(host.lane, READ_SIZE, buffer, None)
    assert buffer[:60_000] == NOISE[:60_000]


@BOTH
def test_an_error_of_the_sink_comes_through(exchange: Exchange, host: ScriptedHost) -> None:
    def full(position: int, piece: memoryview) -> None:
        raise OSError(28, "No space left on device")

    honest(host)
    exchange.request(host.lane, PATH, VERSION, 0, 10)
    with pytest.raises(OSError, match="No space"):
        exchange.receive(host.lane, 10, memoryview(bytearray(10)), full)
