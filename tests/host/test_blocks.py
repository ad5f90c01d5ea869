"""GetBlocks and GetRanges on the host: what comes, and what a client may not ask."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from headrace.errors import ProtocolError
from headrace.protocol.messages import (
    CHUNK_SIZE,
    MAX_RANGES,
    MIB,
    READ_SIZE,
    VERSION_SIZE,
    Blocks,
    Chunk,
    Error,
    GetBlocks,
    GetRanges,
)
from headrace.protocol.session import BLOCKS
from headrace.storage.blocks import block_sums, check_marks, pack_sums, unpack_places
from headrace.storage.chunks import hash_bytes
from headrace.storage.source import SourceFile
from headrace.storage.tree import SharedTree
from headrace.transport.pacing import Bucket, Pace

from .test_requests import BASELINE, BULK, Conversation

SIZE: Final = CHUNK_SIZE + 300_000
CONTENT: Final = random.Random(12).randbytes(SIZE)
AGREED: Final = dataclasses.replace(BULK, features=BULK.features | {BLOCKS})


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[SharedTree]:
    (tmp_path / "share").mkdir()
    (tmp_path / "share" / "file").write_bytes(CONTENT)
    (tmp_path / "share" / "empty").touch()
    with SharedTree.open([tmp_path / "share"]) as tree:
        yield tree


@pytest.fixture
def talk(tree: SharedTree) -> Iterator[Conversation]:
    conversation = Conversation(tree, AGREED)
    yield conversation
    conversation.handler.close()


def version(talk: Conversation, path: bytes = b"file") -> bytes:
    return talk.entry(path).version


@pytest.mark.parametrize("index", [0, 1])
def test_sums_and_places_of_a_chunk(talk: Conversation, index: int) -> None:
    answer, payload = talk.ask_one(GetBlocks(3, b"file", version(talk), index))
    chunk = CONTENT[index * CHUNK_SIZE :][:CHUNK_SIZE]
    assert isinstance(answer, Blocks) and not payload
    assert (answer.id, answer.sums) == (3, pack_sums(block_sums(memoryview(chunk))))
    check_marks(answer.marks)
    places = unpack_places(answer.places, len(chunk))
    assert places or index
    assert all(chunk.startswith(tuple(answer.marks), start) for start, _ in places)


def test_a_file_that_did_not_change_is_read_once(talk: Conversation, monkeypatch: pytest.MonkeyPatch) -> None:
    request = GetBlocks(3, b"file", version(talk), 0)
    first = talk.ask_one(request)

    def read(*_: object) -> None:
        raise AssertionError("it was read already")

    monkeypatch.setattr(SourceFile, "read_into", read)
    assert talk.ask_one(request) == first


@pytest.mark.parametrize(("path", "index"), [(b"file", 2), (b"file", 1 << 60), (b"empty", 0)])
def test_a_chunk_that_is_not_there(talk: Conversation, path: bytes, index: int) -> None:
    answer, _ = talk.ask_one(GetBlocks(3, path, version(talk, path), index))
    assert isinstance(answer, Error) and answer.code == "not_found"


def test_another_version(talk: Conversation) -> None:
    for request in (
        GetBlocks(3, b"file", bytes(VERSION_SIZE), 0),
        GetRanges(3, b"file", bytes(VERSION_SIZE), [(0, 1)]),
    ):
        answer, _ = talk.ask_one(request)
        assert isinstance(answer, Error) and answer.code == "changed"


RANGES: Final = [(0, 1), (1, 4096), (READ_SIZE - 7, 2 * READ_SIZE), (CHUNK_SIZE - 1, 2), (SIZE - 1, 1)]


@pytest.mark.parametrize("limited", [False, True])
def test_ranges_come_one_after_the_other(talk: Conversation, limited: bool) -> None:
    if limited:
        talk.stream.pace_out = Pace(Bucket(20 * MIB))
    answer, payload = talk.ask_one(GetRanges(3, b"file", version(talk), RANGES))
    assert payload == b"".join(CONTENT[start : start + length] for start, length in RANGES)
    assert answer == Chunk(3, hash_bytes(payload))


@pytest.mark.parametrize(
    "ranges",
    [
        [],
        [(0, 0)],
        [(0, -1)],
        [(-1, 1)],
        [(1, 1), (0, 1)],
        [(0, 2), (1, 2)],
        [(0, CHUNK_SIZE), (CHUNK_SIZE, 1)],
        [(n, 1) for n in range(MAX_RANGES + 1)],
    ],
    ids=["none", "empty", "negative", "before", "backwards", "overlapping", "too long", "too many"],
)
def test_what_a_client_may_not_ask(talk: Conversation, ranges: list[tuple[int, int]]) -> None:
    with pytest.raises(ProtocolError):
        talk.ask(GetRanges(3, b"file", version(talk), ranges))


def test_ranges_past_the_end(talk: Conversation) -> None:
    answer, _ = talk.ask_one(GetRanges(3, b"file", version(talk), [(0, 1), (SIZE - 1, 2)]))
    assert isinstance(answer, Error) and answer.code == "not_found"


def test_no_chunk_before_the_first(talk: Conversation) -> None:
    with pytest.raises(ProtocolError):
        talk.ask(GetBlocks(3, b"file", version(talk), -1))


@pytest.mark.parametrize("agreed", [BULK, BASELINE], ids=["without the feature", "phase 7"])
def test_who_did_not_agree_on_it_may_not_ask(tree: SharedTree, agreed: object) -> None:
    talk = Conversation(tree, agreed)  # type: ignore[arg-type]
    for request in (GetBlocks(3, b"file", version(talk), 0), GetRanges(3, b"file", version(talk), [(0, 1)])):
        with pytest.raises(ProtocolError):
            talk.ask(request)
    talk.handler.close()
