"""What a session answers, request by request, over a real folder."""

from __future__ import annotations

import dataclasses
import os
import random
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest
from tests.transport.memory import memory_pair

from headrace.engine.buffers import BufferPool
from headrace.errors import ConnectionLostError, ProtocolError, RemoteIOError
from headrace.host import requests
from headrace.host.requests import RequestHandler
from headrace.protocol.frames import SESSION_LIMITS, encode_frame
from headrace.protocol.messages import (
    CHUNK_SIZE,
    KIB,
    MAX_ENTRIES,
    MIB,
    READ_SIZE,
    ROLE_CONTROL,
    Chunk,
    Data,
    Entry,
    Error,
    GetChunk,
    GetManifest,
    Goodbye,
    Hello,
    List,
    ListPart,
    ManifestPart,
    Message,
    Ping,
    Pong,
    Read,
    Stat,
    StatReply,
    Walk,
)
from headrace.protocol.session import SPARSE, Agreed
from headrace.storage.chunks import hash_bytes
from headrace.storage.manifest import SETTLED, HashCache
from headrace.storage.source import SourceFile
from headrace.storage.tree import SharedTree
from headrace.transport.framed import MessageStream
from headrace.transport.pacing import Bucket, Pace

SIZE: Final = 2 * CHUNK_SIZE + 12_345
CONTENT: Final = random.Random(8).randbytes(SIZE)


BULK: Final = Agreed(8, frozenset({SPARSE}), "a test", "7k2m", ROLE_CONTROL, b"p" * 16)
BASELINE: Final = dataclasses.replace(BULK, version=7)


class Conversation:
    """A client's end, and a handler at the other one. One thread: there is room for every answer on the way."""

    def __init__(self, tree: SharedTree, agreed: Agreed) -> None:
        near, far = memory_pair(capacity=64 * MIB)
        near.set_timeout(0)
        self.stream = far
        self.client, host = MessageStream(near), MessageStream(far)
        self.client.enter_session()
        self.hashes = HashCache(clock=lambda: time.time_ns() + SETTLED)  # no file here is new
        self.handler = RequestHandler(tree, self.hashes, host, agreed)

    def ask(self, request: Message) -> list[tuple[Message, bytes]]:
        """All that the host says to it, with payloads."""
        self.handler.handle(request)
        self.handler.handle(Ping(0xFFFF))
        answers: list[tuple[Message, bytes]] = []
        while True:
            message, size = self.client.expect()
            payload = memoryview(bytearray(size))
            self.client.read_payload(payload)
            if message == Pong(0xFFFF):
                return answers
            answers.append((message, bytes(payload)))

    def ask_one(self, request: Message) -> tuple[Message, bytes]:
        answers = self.ask(request)
        assert len(answers) == 1
        return answers[0]

    def error(self, request: Message) -> Error:
        """The Error that answers it; the session goes on after that."""
        answer, payload = self.ask_one(request)
        assert isinstance(answer, Error)
        assert answer.id == request.id  # type: ignore[attr-defined]
        assert payload == b""
        return answer

    def entry(self, path: bytes) -> Entry:
        answer, _ = self.ask_one(Stat(1, path))
        assert isinstance(answer, StatReply)
        return answer.entry


Talk = Callable[..., Conversation]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """footage/ with big, small, empty, day1/{a,b}, link -> small."""
    root = tmp_path / "footage"
    (root / "day1").mkdir(parents=True)
    (root / "big").write_bytes(CONTENT)
    (root / "small").write_bytes(b"headwater\n")
    (root / "empty").write_bytes(b"")
    (root / "day1" / "a").write_bytes(b"a")
    (root / "day1" / "b").write_bytes(b"bb")
    (root / "link").symlink_to("small")
    return root


@pytest.fixture
def talk(folder: Path) -> Iterator[Talk]:
    opened: list[Conversation] = []
    with SharedTree.open([folder]) as tree:

        def make(agreed: Agreed = BULK) -> Conversation:
            opened.append(Conversation(tree, agreed))
            return opened[-1]

        yield make
        for conversation in opened:
            conversation.handler.close()


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of what was hashed for an answer."""
    sizes: list[int] = []

    def count(data: memoryview) -> bytes:
        sizes.append(len(data))
        return hash_bytes(data)

    monkeypatch.setattr(requests, "hash_bytes", count)
    return sizes


# ---- looking around ------------------------------------------------------------------------------------------------


def test_stat(talk: Talk, folder: Path) -> None:
    conversation = talk()
    root = conversation.entry(b"")
    assert (root.name, root.kind) == (b"footage", "d")
    small = conversation.entry(b"small")
    st = (folder / "small").stat()
    assert (small.name, small.kind, small.size, small.mtime_ns) == (b"small", "f", 10, st.st_mtime_ns)
    assert len(small.version) == 16
    link = conversation.entry(b"link")
    assert (link.kind, link.target) == ("l", b"small")
    assert conversation.entry(b"day1/a").name == b"a"


def test_list(talk: Talk) -> None:
    answers = talk().ask(List(5, b"day1"))
    parts = [answer for answer, _ in answers if isinstance(answer, ListPart)]
    assert len(parts) == len(answers)
    assert [part.last for part in parts] == [False] * (len(parts) - 1) + [True]
    assert {part.path for part in parts} == {b"day1"}
    assert {part.id for part in parts} == {5}
    assert sorted(entry.name for part in parts for entry in part.entries) == [b"a", b"b"]


def test_listing_an_empty_folder_is_one_last_part(talk: Talk, folder: Path) -> None:
    (folder / "nothing").mkdir()
    assert talk().ask(List(5, b"nothing")) == [(ListPart(5, b"nothing", [], last=True), b"")]


def test_a_long_listing_comes_in_parts_that_fit(talk: Talk, folder: Path) -> None:
    for number in range(MAX_ENTRIES + 5):
        (folder / "day1" / f"file {number}").touch()
    sizes = [len(answer.entries) for answer, _ in talk().ask(List(1, b"day1")) if isinstance(answer, ListPart)]
    assert sum(sizes) == MAX_ENTRIES + 7
    assert max(sizes) <= MAX_ENTRIES


@pytest.mark.parametrize("ask", [List, Walk])
def test_long_link_targets_do_not_outgrow_a_frame(talk: Talk, folder: Path, ask: type[List] | type[Walk]) -> None:
    """1000 entries would be 4 MB; a header holds 512 KiB."""
    for number in range(300):
        (folder / "day1" / f"{number:03}{'n' * 200}").symlink_to("x" * 4000)
    answers = talk().ask(ask(1, b"day1"))
    parts = [answer for answer, _ in answers if isinstance(answer, ListPart)]
    assert sum(len(part.entries) for part in parts) == 302
    assert max(len(encode_frame(part)) for part in parts) <= SESSION_LIMITS.header


def test_walk(talk: Talk) -> None:
    answers = [answer for answer, _ in talk().ask(Walk(6, b""))]
    assert all(isinstance(answer, ListPart) for answer in answers)
    parts = [answer for answer in answers if isinstance(answer, ListPart)]
    assert parts[-1].last
    assert not any(part.last for part in parts[:-1])
    found = {part.path: {entry.name for entry in part.entries} for part in parts if part.entries}
    assert found == {b"": {b"big", b"small", b"empty", b"day1", b"link"}, b"day1": {b"a", b"b"}}
    assert [part.path for part in parts if part.entries] == [b"", b"day1"]


def test_walk_below_a_folder_names_paths_from_the_root(talk: Talk) -> None:
    parts = [answer for answer, _ in talk().ask(Walk(6, b"day1")) if isinstance(answer, ListPart)]
    assert {part.path for part in parts} == {b"day1"}


def test_ping(talk: Talk) -> None:
    assert talk().ask_one(Ping(77)) == (Pong(77), b"")


# ---- reading -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "length"),
    [(0, 0), (0, 1), (0, READ_SIZE), (SIZE - 1, 1), (SIZE - 5, 100), (SIZE, 100), (SIZE + 1, 1), (1 << 63, 5)],
)
def test_read(talk: Talk, offset: int, length: int) -> None:
    """Fewer bytes than asked for mean the end of the file; past it there are none."""
    conversation = talk()
    wanted = CONTENT[offset : offset + length]
    assert conversation.ask_one(Read(3, b"big", offset, length)) == (Data(3), wanted)
    version = conversation.entry(b"big").version
    assert conversation.ask_one(Read(4, b"big", offset, length, version)) == (Data(4), wanted)


@pytest.mark.parametrize(
    ("offset", "length"),
    [
        *[(0, 1), (0, 1 * MIB), (0, CHUNK_SIZE), (CHUNK_SIZE, CHUNK_SIZE), (2 * CHUNK_SIZE, SIZE - 2 * CHUNK_SIZE)],
        *[(17, 4711), (CHUNK_SIZE - 1, CHUNK_SIZE), (SIZE - 1, 1)],
    ],
)
def test_chunk(talk: Talk, offset: int, length: int) -> None:
    conversation = talk()
    version = conversation.entry(b"big").version
    wanted = CONTENT[offset : offset + length]
    for _ in range(2):
        answer = conversation.ask_one(GetChunk(9, b"big", version, offset, length))
        assert answer == (Chunk(9, hash_bytes(wanted)), wanted)


def test_short_ranges_of_a_file_that_changes_meanwhile(talk: Talk, folder: Path) -> None:
    """The way of a mount's random reads: it is checked after each of them, too."""
    conversation = talk()
    version = conversation.entry(b"big").version
    for number in range(1, 4):
        answer = conversation.ask_one(GetChunk(number, b"big", version, 4711 * number, 16 * KIB))
        assert answer[1] == CONTENT[4711 * number :][: 16 * KIB]
    assert conversation.error(GetChunk(5, b"big", version, SIZE - 4096, 4097)).code == "not_found"
    with (folder / "big").open("r+b") as file:
        file.write(b"another beginning")
    assert conversation.error(GetChunk(6, b"big", version, 4711, 16 * KIB)).code == "changed"
    assert conversation.handler.served.bytes == 3 * 16 * KIB


@pytest.mark.parametrize(("offset", "length"), [(0, 11), (10, 1), (9, 2), (1 << 63, 1), (0, CHUNK_SIZE)])
def test_a_chunk_past_the_end_is_an_error(talk: Talk, offset: int, length: int) -> None:
    conversation = talk()
    version = conversation.entry(b"small").version
    assert conversation.error(GetChunk(2, b"small", version, offset, length)).code == "not_found"
    assert conversation.ask_one(GetChunk(3, b"small", version, 0, 10))[1] == b"headwater\n"


@pytest.mark.parametrize(
    "request_",
    [
        Read(1, b"big", 0, READ_SIZE + 1),
        Read(1, b"big", 0, -1),
        Read(1, b"big", -1, 1),
        GetChunk(1, b"big", b"", 0, CHUNK_SIZE + 1),
        GetChunk(1, b"big", b"", 0, 0),
        GetChunk(1, b"big", b"", -1, 1),
        GetChunk(1, b"big", b"", 0, -1),
        GetChunk(1, b"big", b"", 0, (1 << 64) - 1),
    ],
)
def test_a_number_outside_of_its_limits_ends_the_connection(talk: Talk, request_: Message) -> None:
    conversation = talk()
    with pytest.raises(ProtocolError):
        conversation.handler.handle(request_)
    assert conversation.stream.sent() == b""


def test_the_hash_of_a_chunk_is_remembered(talk: Talk, hashed: list[int]) -> None:
    conversation, other = talk(), talk()
    other.handler._hashes = conversation.hashes
    version = conversation.entry(b"big").version
    first = conversation.ask(GetChunk(1, b"big", version, CHUNK_SIZE, CHUNK_SIZE))
    assert hashed == [CHUNK_SIZE]
    assert other.ask(GetChunk(1, b"big", version, CHUNK_SIZE, CHUNK_SIZE)) == first
    assert hashed == [CHUNK_SIZE]
    conversation.ask(GetChunk(1, b"big", version, 2 * CHUNK_SIZE, SIZE - 2 * CHUNK_SIZE))
    other.ask(GetChunk(1, b"big", version, 2 * CHUNK_SIZE, SIZE - 2 * CHUNK_SIZE))
    assert hashed == [CHUNK_SIZE, SIZE - 2 * CHUNK_SIZE]


def test_who_asks_for_a_chunk_again_has_it_hashed_again(talk: Talk, hashed: list[int]) -> None:
    """A file that is written through a memory map can change under what is remembered of it."""
    conversation, other = talk(), talk()
    other.handler._hashes = conversation.hashes
    version = conversation.entry(b"big").version
    conversation.hashes.put(version, SIZE, 0, bytes([7]) * 32)
    outdated, _ = conversation.ask_one(GetChunk(1, b"big", version, 0, CHUNK_SIZE))
    assert outdated == Chunk(1, bytes([7]) * 32)
    right = Chunk(1, hash_bytes(CONTENT[:CHUNK_SIZE]))
    assert conversation.ask_one(GetChunk(1, b"big", version, 0, CHUNK_SIZE)) == (right, CONTENT[:CHUNK_SIZE])
    assert other.ask_one(GetChunk(1, b"big", version, 0, CHUNK_SIZE))[0] == right
    assert hashed == [CHUNK_SIZE], "and that is remembered instead"


def test_what_was_asked_for_is_not_kept_without_bounds(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "_MAX_ASKED", 2)
    conversation = talk()
    version = conversation.entry(b"big").version
    for offset, length in ((0, CHUNK_SIZE), (CHUNK_SIZE, CHUNK_SIZE), (2 * CHUNK_SIZE, SIZE - 2 * CHUNK_SIZE)):
        conversation.ask(GetChunk(1, b"big", version, offset, length))
    assert len(conversation.handler._asked) == 2


def test_the_hash_of_another_range_is_computed_each_time(talk: Talk, hashed: list[int]) -> None:
    """The beginning of a chunk is not the chunk."""
    conversation = talk()
    version = conversation.entry(b"big").version
    for _ in range(2):
        conversation.ask(GetChunk(1, b"big", version, 0, 100))
        conversation.ask(GetChunk(1, b"big", version, 100, CHUNK_SIZE))
    assert hashed == [100, CHUNK_SIZE] * 2
    (answer, _) = conversation.ask_one(GetChunk(1, b"big", version, 0, CHUNK_SIZE))
    assert answer == Chunk(1, hash_bytes(CONTENT[:CHUNK_SIZE]))


def test_a_changed_file_is_hashed_anew(talk: Talk, folder: Path, hashed: list[int]) -> None:
    conversation = talk()
    old = conversation.entry(b"small").version
    conversation.ask(GetChunk(1, b"small", old, 0, 10))
    (folder / "small").write_bytes(b"tailwater\n")
    os.utime(folder / "small", ns=(1, 1))
    new = conversation.entry(b"small").version
    answer = conversation.ask_one(GetChunk(2, b"small", new, 0, 10))
    assert answer == (Chunk(2, hash_bytes(b"tailwater\n")), b"tailwater\n")
    assert len(hashed) == 2


def test_hashes_are_shared_by_all_sessions_of_a_share(talk: Talk, hashed: list[int]) -> None:
    one, other = talk(), talk()
    other.handler._hashes = one.hashes
    version = one.entry(b"big").version
    one.ask(GetChunk(1, b"big", version, 0, CHUNK_SIZE))
    other.ask(GetChunk(1, b"big", version, 0, CHUNK_SIZE))
    assert hashed == [CHUNK_SIZE]


def test_manifest(talk: Talk, hashed: list[int]) -> None:
    conversation = talk()
    version = conversation.entry(b"big").version
    conversation.ask(GetChunk(1, b"big", version, 0, CHUNK_SIZE))
    answers = [answer for answer, _ in conversation.ask(GetManifest(8, b"big", version))]
    parts = [answer for answer in answers if isinstance(answer, ManifestPart)]
    assert len(parts) == len(answers)
    assert parts[-1].last
    assert b"".join(part.hashes for part in parts) == b"".join(
        hash_bytes(CONTENT[start : start + CHUNK_SIZE]) for start in range(0, SIZE, CHUNK_SIZE)
    )
    first = 0
    for part in parts:
        assert part.first == first
        first += len(part.hashes) // 32
    before = len(hashed)
    conversation.ask(GetChunk(1, b"big", version, CHUNK_SIZE, CHUNK_SIZE))
    assert len(hashed) == before, "what the manifest hashed is remembered too"


def test_the_manifest_of_an_empty_file_has_no_hashes(talk: Talk) -> None:
    conversation = talk()
    version = conversation.entry(b"empty").version
    assert conversation.ask(GetManifest(8, b"empty", version)) == [(ManifestPart(8, 0, b"", last=True), b"")]


@pytest.fixture
def hole(folder: Path) -> Path:
    path = folder / "hole"
    with path.open("wb") as file:
        file.truncate(2 * CHUNK_SIZE + 100)
        file.seek(CHUNK_SIZE)
        file.write(b"x")
    if path.stat().st_blocks * 512 >= CHUNK_SIZE:
        pytest.skip("no sparse files here")
    return path


@pytest.mark.usefixtures("hole")
def test_a_hole_travels_as_such(talk: Talk) -> None:
    conversation = talk()
    entry = conversation.entry(b"hole")
    assert entry.sparse
    answer = conversation.ask_one(GetChunk(1, b"hole", entry.version, 0, CHUNK_SIZE))
    assert answer == (Chunk(1, hash_bytes(bytes(CHUNK_SIZE)), zero=True), b"")
    answer = conversation.ask_one(GetChunk(2, b"hole", entry.version, 2 * CHUNK_SIZE, 100))
    assert answer == (Chunk(2, hash_bytes(bytes(100)), zero=True), b"")
    message, payload = conversation.ask_one(GetChunk(3, b"hole", entry.version, CHUNK_SIZE, CHUNK_SIZE))
    assert message == Chunk(3, hash_bytes(payload))
    assert payload == b"x" + bytes(CHUNK_SIZE - 1)


@pytest.mark.usefixtures("hole")
def test_who_did_not_agree_to_holes_gets_zeros(talk: Talk) -> None:
    conversation = talk(dataclasses.replace(BULK, features=frozenset()))
    version = conversation.entry(b"hole").version
    answer = conversation.ask_one(GetChunk(1, b"hole", version, 0, CHUNK_SIZE))
    assert answer == (Chunk(1, hash_bytes(bytes(CHUNK_SIZE))), bytes(CHUNK_SIZE))


# ---- what cannot be answered ---------------------------------------------------------------------------------------

V = bytes(16)


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (Stat(4, b"nothing"), "not_found"),
        (Stat(4, b"small/below"), "not_found"),
        (List(4, b"nothing"), "not_found"),
        (List(4, b"small"), "not_found"),
        (List(4, b"link"), "not_found"),
        (Walk(4, b"nothing"), "not_found"),
        (Walk(4, b"small"), "not_found"),
        (Read(4, b"nothing", 0, 1), "not_found"),
        (Read(4, b"day1", 0, 1), "not_found"),
        (Read(4, b"link", 0, 1), "not_found"),
        (Read(4, b"", 0, 1), "not_found"),
        (Read(4, b"small", 0, 1, V), "changed"),
        (GetChunk(4, b"nothing", V, 0, 1), "not_found"),
        (GetChunk(4, b"small", V, 0, 1), "changed"),
        (GetManifest(4, b"nothing", V), "not_found"),
        (GetManifest(4, b"day1", V), "not_found"),
        (GetManifest(4, b"small", V), "changed"),
    ],
)
def test_an_error_is_the_answer_and_the_session_goes_on(talk: Talk, request_: Message, code: str) -> None:
    conversation = talk()
    told = conversation.error(request_)
    assert told.code == code
    assert told.message
    assert conversation.ask_one(Read(5, b"small", 0, 100)) == (Data(5), b"headwater\n")


def test_errors_name_no_path_outside_of_the_share(talk: Talk, folder: Path) -> None:
    for request in (Stat(1, b"nothing"), List(1, b"small"), Read(1, b"day1", 0, 1)):
        assert str(folder.parent) not in talk().error(request).message


@pytest.mark.parametrize(
    "path", [b"..", b"../footage/small", b"/etc/passwd", b"day1/../small", b"day1//a", b"a\0b", b"./a"]
)
@pytest.mark.parametrize(
    "make",
    [
        lambda path: Stat(1, path),
        lambda path: List(1, path),
        lambda path: Walk(1, path),
        lambda path: Read(1, path, 0, 1),
        lambda path: GetChunk(1, path, V, 0, 1),
        lambda path: GetManifest(1, path, V),
    ],
    ids=["stat", "list", "walk", "read", "chunk", "manifest"],
)
def test_an_impossible_path_ends_the_connection(talk: Talk, make: Callable[[bytes], Message], path: bytes) -> None:
    conversation = talk()
    with pytest.raises(ProtocolError):
        conversation.handler.handle(make(path))
    assert conversation.stream.sent() == b""


@pytest.mark.parametrize("request_", [Walk(1, b""), GetManifest(1, b"small", V), GetChunk(1, b"small", V, 0, 1)])
def test_phase_7_has_no_bulk(talk: Talk, request_: Message) -> None:
    conversation = talk(BASELINE)
    with pytest.raises(ProtocolError, match="phase 7"):
        conversation.handler.handle(request_)
    assert conversation.stream.sent() == b""


def test_phase_7_answers_all_else(talk: Talk) -> None:
    conversation = talk(BASELINE)
    version = conversation.entry(b"small").version
    assert conversation.ask_one(Read(1, b"small", 4, 5, version)) == (Data(1), b"water")
    assert len(conversation.ask(List(2, b"day1"))) == 2
    assert conversation.ask_one(Ping(3)) == (Pong(3), b"")


@pytest.mark.parametrize("message", [Pong(1), Hello((7, 8), [], ""), Goodbye(), Data(1), Error(1, "denied", "no")])
def test_what_is_no_request_ends_the_connection(talk: Talk, message: Message) -> None:
    with pytest.raises(ProtocolError):
        talk().handler.handle(message)


def test_a_file_that_changes_while_it_is_read_is_told(talk: Talk, folder: Path) -> None:
    conversation = talk()
    version = conversation.entry(b"big").version
    conversation.ask(GetChunk(1, b"big", version, 0, CHUNK_SIZE))  # it is open now
    with (folder / "big").open("r+b") as file:
        file.truncate(CHUNK_SIZE)
    assert conversation.error(GetChunk(2, b"big", version, CHUNK_SIZE, CHUNK_SIZE)).code == "changed"
    assert conversation.error(GetChunk(3, b"big", version, 0, CHUNK_SIZE)).code == "changed"
    assert conversation.error(GetManifest(4, b"big", version)).code == "changed"


def test_a_manifest_may_end_in_an_error(talk: Talk, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After parts that came before it."""
    from headrace.storage import manifest

    monkeypatch.setattr(manifest, "FIRST_PART", 1)
    conversation = talk()
    version = conversation.entry(b"big").version

    def cut_the_file(data: memoryview) -> bytes:
        os.truncate(folder / "big", 5)
        return hash_bytes(data)

    monkeypatch.setattr(manifest, "hash_bytes", cut_the_file)
    answers = [answer for answer, _ in conversation.ask(GetManifest(4, b"big", version))]
    assert [type(answer) for answer in answers] == [ManifestPart, Error]
    assert isinstance(answers[1], Error)
    assert (answers[1].id, answers[1].code) == (4, "changed")


def test_a_lost_connection_is_no_answer(talk: Talk) -> None:
    """It ends the session; nothing tries to report it."""
    for request in (Stat(1, b""), List(1, b""), Read(1, b"small", 0, 1), Ping(1)):
        conversation = talk()
        conversation.stream.cut()
        with pytest.raises(ConnectionLostError):
            conversation.handler.handle(request)


@pytest.mark.usefixtures("hole")
def test_a_connection_that_is_lost_over_a_hole_is_no_answer_either(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    conversation = talk()
    version = conversation.entry(b"hole").version
    conversation.stream.cut()
    tried: list[Message] = []
    original = MessageStream.send

    def send(self: MessageStream, message: Message, payload: bytes | memoryview = b"") -> None:
        tried.append(message)
        original(self, message, payload)

    monkeypatch.setattr(MessageStream, "send", send)
    with pytest.raises(ConnectionLostError):
        conversation.handler.handle(GetChunk(1, b"hole", version, 0, CHUNK_SIZE))
    assert [type(message) for message in tried] == [Chunk]


def test_what_was_served_is_counted(talk: Talk) -> None:
    conversation = talk()
    version = conversation.entry(b"small").version
    conversation.ask(Read(1, b"small", 2, 3))
    conversation.ask(GetChunk(1, b"small", version, 0, 10))
    conversation.error(Stat(1, b"nothing"))
    assert conversation.handler.served.bytes == 13
    assert conversation.handler.served.requests == 8  # each followed by the ping of `ask`


def test_an_answer_keeps_no_more_memory_than_a_chunk(talk: Talk) -> None:
    conversation = talk()
    version = conversation.entry(b"big").version
    pool = conversation.handler._buffers
    assert isinstance(pool, BufferPool)
    conversation.ask(Read(1, b"big", 0, READ_SIZE))
    assert pool.figures().held == READ_SIZE == 128 * KIB
    for offset in range(0, SIZE - CHUNK_SIZE, MIB):
        conversation.ask(GetChunk(1, b"big", version, offset, CHUNK_SIZE))
    figures = pool.figures()
    assert (figures.held, figures.in_use, figures.allocations) == (READ_SIZE + CHUNK_SIZE, 0, 2)


def test_a_thousand_chunks_allocate_nothing(talk: Talk) -> None:
    conversation = talk()
    version = conversation.entry(b"big").version
    requests = [GetChunk(1, b"big", version, number % 64 * 4096, 256 * KIB) for number in range(1000)]
    for request in requests[:20]:
        conversation.ask(request)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for request in requests[20:]:
            conversation.ask(request)
            tracemalloc.reset_peak() if request is requests[500] else None
        now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    pool = conversation.handler._buffers
    assert isinstance(pool, BufferPool)
    assert pool.figures().allocations == 1
    # What the other side of the test receives is one chunk at a time; nothing piles up on either side.
    assert now - before < 64 * KIB
    assert peak - before < 4 * 256 * KIB


def hold_back(conversation: Conversation) -> None:
    """A rate limit at which a chunk takes a while. The stream of these tests does not wait for it."""
    conversation.stream.pace_out = Pace(Bucket(20 * MIB))


def test_who_is_held_back_by_a_limit_gets_the_same_and_holds_no_chunks_buffer(talk: Talk, hashed: list[int]) -> None:
    conversation = talk()
    hold_back(conversation)
    version = conversation.entry(b"big").version
    ranges = [(0, CHUNK_SIZE), (CHUNK_SIZE, CHUNK_SIZE), (5, CHUNK_SIZE - 1), (7, READ_SIZE + 1), (9, READ_SIZE)]
    for offset, length in ranges:
        content = CONTENT[offset : offset + length]
        answer = conversation.ask_one(GetChunk(1, b"big", version, offset, length))
        assert answer == (Chunk(1, hash_bytes(content)), content)
    assert conversation.handler.served.bytes == sum(length for _, length in ranges)
    assert hashed == [length for _, length in ranges]

    held: list[int] = []
    send = conversation.stream.send

    def sending(*parts: bytes | memoryview) -> None:
        held.append(fresh.figures().in_use)
        send(*parts)

    fresh = BufferPool()
    conversation.handler._buffers = fresh
    conversation.stream.send = sending  # type: ignore[method-assign]
    conversation.ask_one(GetChunk(1, b"big", version, CHUNK_SIZE, CHUNK_SIZE))  # asked for again: hashed again
    assert max(held) == READ_SIZE
    assert fresh.figures().high_water == CHUNK_SIZE


def test_a_file_that_fails_while_it_is_sent_in_pieces_keeps_the_stream_in_step(
    talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversation = talk()
    hold_back(conversation)
    version = conversation.entry(b"big").version
    read_into = SourceFile.read_into

    def failing(source: SourceFile, view: memoryview, offset: int) -> None:
        if len(view) == READ_SIZE and offset == 3 * READ_SIZE:
            raise RemoteIOError("the disk is worn out")
        read_into(source, view, offset)

    monkeypatch.setattr(SourceFile, "read_into", failing)
    answer, payload = conversation.ask_one(GetChunk(1, b"big", version, 0, CHUNK_SIZE))
    good = CONTENT[:CHUNK_SIZE]
    assert answer == Chunk(1, hash_bytes(good))  # so the client sees what happened
    assert payload == good[: 3 * READ_SIZE] + bytes(READ_SIZE) + good[4 * READ_SIZE :]
    assert conversation.ask_one(GetChunk(2, b"big", version, 0, 10))[1] == CONTENT[:10]


def test_a_closed_handler_holds_no_file_open(talk: Talk) -> None:
    conversation = talk()
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    conversation.ask(Read(1, b"small", 0, 1))
    conversation.ask(Read(1, b"big", 0, 1))
    conversation.handler.close()
    after = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    assert after == before
