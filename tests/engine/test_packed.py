"""Compressed answers, from hosts that compress well and badly."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Final

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.engine import batch
from headrace.engine.buffers import BufferPool
from headrace.engine.exchange import BulkExchange
from headrace.engine.lane import Lane
from headrace.engine.queue import Group, Job
from headrace.errors import IntegrityError, ProtocolError, SourceChangedError
from headrace.protocol.messages import CHUNK_SIZE, HOST_DECIDES, KIB, MAX_PART, NOT_PACKED, Batch, Chunk, Entry, Error
from headrace.protocol.paths import RelPath
from headrace.storage.chunks import hash_bytes
from headrace.transport.framed import PIECE

from .scripted import ScriptedHost

BULK: Final = BulkExchange()
PATH: Final = RelPath((b"log",))
VERSION: Final = b"v" * 16
TEXT: Final = b"".join(b"%d green bottles hanging on the wall\n" % number for number in range(120_000))[:CHUNK_SIZE]


def pack(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=1).compress(data)


@pytest.fixture
def host() -> ScriptedHost:
    made = ScriptedHost()
    made.lane.zstd = HOST_DECIDES
    return made


def in_parts(host: ScriptedHost, data: bytes, sizes: list[int], packed: Callable[[int], bool]) -> None:
    """It answers each request with these parts of `data`."""

    def answer(request: Any) -> None:
        digest, start = hash_bytes(data), 0
        for number, size in enumerate(sizes):
            part = data[start : start + size]
            start += size
            if packed(number):
                host.say(Chunk(request.id, digest, size=size, packed="zstd"), pack(part))
            else:
                host.say(Chunk(request.id, digest, size=size, packed="entropy"), part)

    host.answering = answer


def fetch(lane: Lane, length: int, room: int | None = None) -> bytes:
    """A range of that length by way of a sink, in a buffer of `room` bytes."""
    got = bytearray()

    def sink(position: int, piece: memoryview) -> None:
        assert position == len(got)
        got.extend(piece)

    BULK.request(lane, PATH, VERSION, 0, length)
    BULK.receive(lane, length, memoryview(bytearray(room or length)), sink)
    return bytes(got)


def test_the_request_says_what_is_wanted(host: ScriptedHost) -> None:
    in_parts(host, TEXT[:2000], [2000], lambda number: True)
    assert fetch(host.lane, 2000) == TEXT[:2000]
    assert host.requests[0].zstd == HOST_DECIDES  # type: ignore[attr-defined]


@pytest.mark.parametrize("room", [CHUNK_SIZE, PIECE])
def test_a_chunk_in_parts_compressed_or_not(host: ScriptedHost, room: int) -> None:
    sizes = [MAX_PART] * (CHUNK_SIZE // MAX_PART)
    in_parts(host, TEXT, sizes, lambda number: number % 2 == 0)
    assert fetch(host.lane, CHUNK_SIZE, room) == TEXT
    assert host.lane.idle
    counters = host.lane.counters
    assert counters.packed == {"zstd": 4, "entropy": 4}
    assert CHUNK_SIZE // 2 < counters.bytes_received < CHUNK_SIZE * 0.8
    assert counters.bytes_delivered == CHUNK_SIZE


@settings(deadline=None, max_examples=40)
@given(sizes=st.lists(st.integers(200, 5000), min_size=1, max_size=8), packed=st.integers(0, 255))
def test_any_parts(sizes: list[int], packed: int) -> None:
    host = ScriptedHost()
    host.lane.zstd = 3
    in_parts(host, TEXT[: sum(sizes)], sizes, lambda number: bool(packed >> number & 1))
    assert fetch(host.lane, sum(sizes)) == TEXT[: sum(sizes)]
    assert host.lane.idle


def test_a_whole_answer_that_was_not_worth_it(host: ScriptedHost) -> None:
    host.answering = lambda request: host.say(Chunk(request.id, hash_bytes(TEXT), packed="link"), TEXT)
    assert fetch(host.lane, CHUNK_SIZE, PIECE) == TEXT
    assert host.lane.counters.packed == {"link": 1}, "one answer, though it was read in pieces"


def test_parts_that_do_not_match_their_hash(host: ScriptedHost) -> None:
    """What they decompress to is hashed; the lane stays usable."""
    wrong = TEXT[:2000].swapcase()

    def answer(request: Any) -> None:
        for start in (0, 1000):
            host.say(Chunk(request.id, hash_bytes(TEXT[:2000]), size=1000, packed="zstd"), pack(wrong[start:][:1000]))

    host.answering = answer
    with pytest.raises(IntegrityError):
        fetch(host.lane, 2000)
    in_parts(host, TEXT[:2000], [1000, 1000], lambda number: True)
    assert fetch(host.lane, 2000) == TEXT[:2000]


def test_an_error_in_the_middle_ends_the_answer(host: ScriptedHost) -> None:
    def answer(request: Any) -> None:
        host.say(Chunk(request.id, bytes(32), size=1000, packed="zstd"), pack(TEXT[:1000]))
        host.say(Error(request.id, "changed", "the file changed"))

    host.answering = answer
    with pytest.raises(SourceChangedError):
        fetch(host.lane, 2000)
    in_parts(host, TEXT[:2000], [2000], lambda number: True)
    assert fetch(host.lane, 2000) == TEXT[:2000]


BOMB: Final = pack(bytes(64 * MAX_PART))


@pytest.mark.parametrize(
    ("fields", "payload"),
    [
        pytest.param([{"size": 2001, "packed": "zstd"}], pack(TEXT[:2001]), id="a part longer than the range"),
        pytest.param([{"size": -5}], b"", id="a negative part"),
        pytest.param([{"size": 1000}, {"size": 1001}], None, id="parts longer than the range"),
        pytest.param([{"size": 1000}, {"size": 0}], None, id="a whole answer behind a part"),
        pytest.param([{"size": 1000}, {"size": 1000, "hash": bytes(32)}], None, id="another hash in the second"),
        pytest.param([{"size": 1000}, {"zero": True}], None, id="a hole behind a part"),
        pytest.param([{"size": 1000, "hash": b""}, {"size": 0, "hash": b""}], None, id="no hash, and the rest whole"),
        pytest.param([{"packed": "zstd"}], pack(TEXT[:2000]), id="a whole answer compressed"),
        pytest.param([{"size": 2000, "packed": "zstd"}], pack(TEXT[:1999]), id="fewer bytes in it"),
        pytest.param([{"size": 2000, "packed": "zstd"}], BOMB, id="a bomb"),
        pytest.param([{"size": 2000, "packed": "zstd"}], BOMB[:1999], id="half a bomb"),
        pytest.param([{"size": 2000, "packed": "zstd"}], TEXT[:2000], id="not compressed at all"),
        pytest.param([{"size": 2000, "packed": "zstd"}], b"", id="nothing"),
        pytest.param([{"size": 2000, "packed": "zstd"}], random.Random(1).randbytes(1500), id="noise"),
        pytest.param([{"size": 2000, "packed": "gzip"}], pack(TEXT[:2000]), id="something else"),
        pytest.param([{"zero": True}], b"x", id="a hole with a payload"),
    ],
)
def test_a_host_that_compresses_badly(host: ScriptedHost, fields: list[dict[str, Any]], payload: bytes | None) -> None:
    def answer(request: Any) -> None:
        for each in fields:
            said = payload if payload is not None else TEXT[: each.get("size", 0) or 1000]
            host.say(Chunk(**{"id": request.id, "hash": hash_bytes(TEXT[:2000])} | each), said)

    host.answering = answer
    with pytest.raises(ProtocolError):
        fetch(host.lane, 2000)


@pytest.mark.parametrize("zstd", [NOT_PACKED, HOST_DECIDES])
def test_parts_and_frames_only_where_they_were_asked_for_and_never_longer_than_allowed(zstd: int) -> None:
    host = ScriptedHost()
    host.lane.zstd = zstd
    size = 1000 if zstd == NOT_PACKED else MAX_PART + 1
    in_parts(host, TEXT[:CHUNK_SIZE], [size], lambda number: True)
    with pytest.raises(ProtocolError):
        fetch(host.lane, CHUNK_SIZE)


def test_what_it_takes_to_receive_them_is_bounded_and_not_taken_before(host: ScriptedHost) -> None:
    assert len(host.lane.unpacker._packed) == 0
    in_parts(host, TEXT, [MAX_PART] * 8, lambda number: True)
    fetch(host.lane, CHUNK_SIZE)
    assert len(host.lane.unpacker._packed) == MAX_PART


# ---- batches ---------------------------------------------------------------------------------------------------------

FILES: Final = [TEXT[start : start + 5 * KIB] for start in range(0, 100 * KIB, 5 * KIB)]


def group() -> Group:
    return Group(
        [Job(path, path, Entry(path.name, "f", size=5 * KIB, version=VERSION)) for path in (PATH,) * len(FILES)]
    )


def receive(host: ScriptedHost) -> list[bytes]:
    wanted = group()
    batch.request(host.lane, wanted)
    parts = batch.receive(host.lane, wanted, BufferPool())
    return [bytes(one[1]) for part in parts for one in part if isinstance(one, tuple)]  # type: ignore[arg-type]


def answer_batch(host: ScriptedHost, payload: bytes, digest: bytes = hash_bytes(b"".join(FILES)), **more: Any) -> None:
    sizes = [len(one) for one in FILES]
    host.answering = lambda request: host.say(Batch(request.id, 0, sizes, [], [], [], digest, **more), payload)


def test_a_batch_compressed(host: ScriptedHost) -> None:
    payload = pack(b"".join(FILES))
    answer_batch(host, payload, packed="zstd")
    assert receive(host) == FILES
    counters = host.lane.counters
    assert (counters.bytes_received, counters.bytes_delivered) == (len(payload), 100 * KIB)
    assert counters.packed == {"zstd": 1}


def test_a_batch_that_was_not_worth_it(host: ScriptedHost) -> None:
    answer_batch(host, b"".join(FILES), packed="entropy")
    assert receive(host) == FILES
    assert host.lane.counters.packed == {"entropy": 1}


def test_a_batch_whose_bytes_are_others(host: ScriptedHost) -> None:
    """The jobs are given back bare, to be asked for again."""
    answer_batch(host, pack(b"".join(FILES)), bytes(32), packed="zstd")
    assert receive(host) == []


@pytest.mark.parametrize(
    "payload", [BOMB, pack(b"".join(FILES)[1:]), b"", b"".join(FILES)], ids=["bomb", "short", "none", "plain"]
)
def test_a_host_that_compresses_batches_badly(host: ScriptedHost, payload: bytes) -> None:
    answer_batch(host, payload, packed="zstd")
    with pytest.raises(ProtocolError):
        receive(host)


def test_a_batch_that_nobody_wanted_compressed(host: ScriptedHost) -> None:
    host.lane.zstd = NOT_PACKED
    answer_batch(host, pack(b"".join(FILES)), packed="zstd")
    with pytest.raises(ProtocolError, match="nobody asked for"):
        receive(host)
