"""What a host compresses, for whom, and what it says where it does not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest
import zstandard
from tests.host.test_requests import BULK, CONTENT, Conversation
from tests.transport.memory import memory_pair

from headrace.engine.buffers import BufferPool
from headrace.engine.compress import Compressors
from headrace.engine.packing import LONG, Packing
from headrace.engine.unpack import decompress_into
from headrace.errors import ProtocolError, SourceChangedError
from headrace.host.requests import RequestHandler
from headrace.protocol.messages import (
    CHUNK_SIZE,
    HOST_DECIDES,
    KIB,
    MAX_PART,
    MIB,
    READ_SIZE,
    Batch,
    Chunk,
    Error,
    GetBatch,
    GetChunk,
)
from headrace.protocol.session import BATCH, ZSTD
from headrace.storage.chunks import hash_bytes
from headrace.storage.source import SourceFile
from headrace.storage.tree import SharedTree
from headrace.transport.framed import MessageStream
from headrace.transport.pacing import Limit, pace

PACKS: Final = dataclasses.replace(BULK, features=BULK.features | {BATCH, ZSTD})
TEXT: Final = b"".join(b"%d green bottles hanging on the wall\n" % number for number in range(120_000))[:CHUNK_SIZE]
SIZE: Final = CHUNK_SIZE
COMPRESSORS: Final = Compressors()


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[SharedTree]:
    """text and text.gz, a chunk each; noise; tiny."""
    root = tmp_path / "share"
    root.mkdir()
    for name, content in {"text": TEXT, "text.gz": TEXT, "noise": CONTENT[:SIZE], "tiny": TEXT[:1000]}.items():
        (root / name).write_bytes(content)
    with SharedTree.open([root]) as opened:
        yield opened


Talk = Callable[..., Conversation]


@pytest.fixture
def talk(tree: SharedTree) -> Iterator[Talk]:
    made: list[Conversation] = []

    def make(
        rate: float | None = None, compressors: Compressors | None = COMPRESSORS, buffers: BufferPool | None = None
    ) -> Conversation:
        conversation = Conversation(tree, BULK)
        pace(conversation.stream, Limit(rate))
        stream = MessageStream(conversation.stream)
        packing = Packing(compressors, stream) if compressors else None
        conversation.handler = RequestHandler(
            tree, conversation.hashes, stream, PACKS, buffers or BufferPool(), packing=packing
        )
        made.append(conversation)
        return conversation

    yield make
    for conversation in made:
        conversation.handler.close()


def ask(talk: Conversation, path: bytes, zstd: int = 3, offset: int = 0, length: int = SIZE) -> list[str]:
    """What the host says of compression in each part; the parts are put together and compared with the file."""
    request = GetChunk(9, path, b"", offset, length, zstd)
    whole, said = bytearray(), []
    for message, payload in talk.ask(request):
        assert isinstance(message, Chunk)
        assert message.size <= MAX_PART
        part = bytearray(message.size or length)
        if message.packed == "zstd":
            decompress_into(payload, memoryview(part))
        else:
            part[:] = payload
        whole += part
        said.append(message.packed)
        digest = message.hash
    expected = (CONTENT if path == b"noise" else TEXT)[offset : offset + length]
    assert whole == expected
    assert digest == hash_bytes(expected)
    return said


def test_what_is_asked_for_at_a_level_is_compressed_whatever_the_link(talk: Talk) -> None:
    conversation = talk()
    assert ask(conversation, b"text") == ["zstd"] * 8
    assert ask(conversation, b"text", 19, 5, 2000) == ["zstd"]
    assert ask(conversation, b"text", 1, 0, MAX_PART + 1) == ["zstd", "small"]
    assert conversation.handler.served.bytes == SIZE + 2000 + MAX_PART + 1


@pytest.mark.parametrize(
    ("path", "zstd", "length", "said"),
    [
        (b"text", 0, SIZE, [""]),
        (b"text", HOST_DECIDES, SIZE, ["link"]),
        (b"text.gz", 3, SIZE, ["format"]),
        (b"noise", 3, SIZE, ["entropy"] * 8),
        (b"text", 3, KIB - 1, ["small"]),
        (b"noise", 0, 100, [""]),
    ],
)
def test_what_is_not(talk: Talk, path: bytes, zstd: int, length: int, said: list[str]) -> None:
    assert ask(talk(), path, zstd, 0, length) == said


def test_a_rate_limit_is_a_slow_link(talk: Talk) -> None:
    """From the first chunk on. It is in small buffers, as everything for those who are held back."""
    buffers = BufferPool(64 * MIB)
    # 2 MiB a second: a compressor that a busy machine holds back is faster than that.
    assert ask(talk(2 * MIB, buffers=buffers), b"text", HOST_DECIDES) == ["zstd"] * (SIZE // (READ_SIZE // 2))
    # All of it was needed once, for the hash.
    assert buffers.figures().high_water == CHUNK_SIZE
    assert buffers.figures().held == CHUNK_SIZE + READ_SIZE
    assert ask(talk(20e9), b"text", HOST_DECIDES) == ["link"]


def test_noise_is_sent_whole_after_some_tries(talk: Talk) -> None:
    conversation = talk()
    said = [ask(conversation, b"noise") for _ in range(6)]
    assert said[0] == ["entropy"] * 8
    assert ["entropy"] in said


def test_nobody_agreed_to_it(talk: Talk) -> None:
    assert ask(talk(compressors=None), b"text") == [""]


@pytest.mark.parametrize("zstd", [-2, 20, 1 << 40])
def test_a_level_that_there_is_not(talk: Talk, zstd: int) -> None:
    with pytest.raises(ProtocolError, match="level"):
        talk().handler.handle(GetChunk(1, b"text", b"", 0, 10, zstd))
    with pytest.raises(ProtocolError, match="level"):
        talk().handler.handle(GetBatch(1, [(b"tiny", bytes(16))], zstd))


def test_the_host_sets_the_highest_level(talk: Talk) -> None:
    conversation = talk(compressors=Compressors(most=1))
    payload = conversation.ask_one(GetChunk(9, b"text", b"", 0, 100_000, 19))[1]
    assert payload == zstandard.ZstdCompressor(level=1).compress(TEXT[:100_000])


def test_a_file_that_changes_in_the_middle_is_an_error(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parts before it stay an answer that the client can end."""
    read, count = SourceFile.read_into, 0

    def fail(self: SourceFile, buffer: memoryview, offset: int) -> None:
        nonlocal count
        count += 1
        if count > 3:
            raise SourceChangedError("it changed")
        read(self, buffer, offset)

    monkeypatch.setattr(SourceFile, "read_into", fail)
    *parts, (last, payload) = talk().ask(GetChunk(9, b"text", b"", 0, SIZE, 3))
    assert [message.packed for message, _ in parts if isinstance(message, Chunk)] == ["zstd"] * 2
    assert isinstance(last, Error)
    assert (last.id, last.code, payload) == (9, "changed", b"")


# ---- batches ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path: Path, tree: SharedTree) -> Path:
    for number in range(40):
        (tmp_path / "share" / f"{number}").write_bytes(TEXT[: 30 * KIB])
        (tmp_path / "share" / f"{number}.jpg").write_bytes(TEXT[: 30 * KIB])
    return tmp_path


def ask_batch(talk: Conversation, paths: list[bytes], zstd: int = 3) -> list[str]:
    items = [(path, talk.entry(path).version) for path in paths]
    said, count = [], 0
    for message, payload in talk.ask(GetBatch(7, items, zstd)):
        assert isinstance(message, Batch)
        whole = bytearray(sum(message.sizes))
        if message.packed == "zstd":
            decompress_into(payload, memoryview(whole))
        else:
            whole[:] = payload
        assert message.hash == hash_bytes(whole)
        assert whole == TEXT[: 30 * KIB] * len(message.sizes)
        count += len(message.sizes)
        said.append(message.packed)
    assert count == len(paths)
    return said


def names(suffix: str = "", count: int = 40) -> list[bytes]:
    return [f"{number}{suffix}".encode() for number in range(count)]


@pytest.mark.parametrize(
    ("paths", "zstd", "said"),
    [
        (names(), 3, ["zstd"] * 3),
        (names(), 0, [""] * 2),
        (names(), HOST_DECIDES, ["link"] * 2),
        (names(".jpg"), 3, ["format"] * 2),
        (names(".jpg", 10) + names(), 3, ["zstd"] * 3),
        (names(count=1), 3, ["zstd"]),
    ],
)
def test_a_batch(small: Path, talk: Talk, paths: list[bytes], zstd: int, said: list[str]) -> None:
    assert ask_batch(talk(), paths, zstd) == said


@pytest.mark.parametrize("contended", [False, True])
def test_a_batch_for_who_is_held_back(
    small: Path, talk: Talk, contended: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a large buffer only while nobody waits for it."""
    monkeypatch.setattr(BufferPool, "contended", contended)
    said = ask_batch(talk(20 * MIB, buffers=BufferPool(64 * MIB)), names(), HOST_DECIDES)
    assert set(said) == {"memory" if contended else "zstd"}


# ---- the link --------------------------------------------------------------------------------------------------------


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def send(packing: Packing, clock: Clock, count: int, seconds: float) -> None:
    packing.begin()
    with packing.sending(count):
        clock.now += seconds


@pytest.mark.parametrize(("rtt", "known"), [(None, False), (LONG / 2, False), (0.05, True)])
def test_over_a_long_path_the_beginning_is_slow(rtt: float | None, known: bool) -> None:
    stream, _ = memory_pair()
    stream.rtt = lambda: rtt  # type: ignore[method-assign]
    link = Packing(Compressors(), MessageStream(stream)).link
    assert (link is not None) == known
    assert link is None or 5e6 < link < 20e6


def test_the_link_is_what_was_measured_or_the_limit() -> None:
    stream, _ = memory_pair()
    clock = Clock()
    packing = Packing(Compressors(), MessageStream(stream), clock)
    send(packing, clock, 1000, 1.0)
    assert packing.link == pytest.approx(1000)
    pace(stream, Limit(400), Limit(None), Limit(500))
    assert packing.link == 400
    pace(stream, Limit(4000))
    assert packing.link == pytest.approx(1000)


@pytest.mark.parametrize(("rate", "near", "slow"), [(50e6, False, True), (50e6, True, False), (5e6, True, True)])
def test_a_client_on_this_machine_that_takes_its_time_is_no_slow_link(rate: float, near: bool, slow: bool) -> None:
    """Unless it is so slow that it must be the end of a tunnel."""
    stream, _ = memory_pair()
    clock = Clock()
    packing = Packing(Compressors(), MessageStream(stream), clock, near=near)
    send(packing, clock, int(rate), 1.0)
    assert packing.link == (pytest.approx(rate) if slow else None)
    pace(stream, Limit(30e6))
    assert packing.link is not None
