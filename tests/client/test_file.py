"""A remote file as a file object, over a host that says what the test wants."""

from __future__ import annotations

import contextlib
import io
import os
import random
from typing import Any, Final

import pytest
from tests.engine.scripted import ScriptedHost

from headrace.client.file import RemoteFile
from headrace.engine.lane import Lane
from headrace.errors import ConnectionLostError, IntegrityError, SourceChangedError
from headrace.protocol.messages import CHUNK_SIZE, KIB, MIB, READ_SIZE, Chunk, Data, Entry, Error, GetChunk, Read
from headrace.protocol.paths import RelPath
from headrace.protocol.session import Agreed
from headrace.storage.chunks import hash_bytes

SIZE: Final = 12 * MIB + 345
NOISE: Final = random.Random(6).randbytes(SIZE)
PATH: Final = RelPath((b"day1", b"caf\xe9.mov"))
VERSION: Final = b"v" * 16


class FakeSession:
    """As much of a session as a file needs."""

    def __init__(self, host: ScriptedHost, version: int) -> None:
        self.agreed = Agreed(version, frozenset(), "", "", "control", b"p" * 16)
        self._lane = host.lane

    def use(self) -> contextlib.AbstractContextManager[Lane]:
        return contextlib.nullcontext(self._lane)


class Remote:
    """A file on a scripted host. asked: the (offset, length) of each request so far."""

    def __init__(self, content: bytes, version: int) -> None:
        self.content = content
        self.host = ScriptedHost()
        self.host.answering = self.answer
        self.asked: list[tuple[int, int]] = []
        entry = Entry(PATH.name, "f", size=len(content), version=VERSION)
        session: Any = FakeSession(self.host, version)
        self.file = RemoteFile(session, PATH, entry)

    def answer(self, request: Read | GetChunk) -> None:
        assert (request.path, request.version) == (bytes(PATH), VERSION)
        self.asked.append((request.offset, request.length))
        part = self.content[request.offset : request.offset + request.length]
        if isinstance(request, Read):
            self.host.say(Data(request.id), part)
        else:
            self.host.say(Chunk(request.id, hash_bytes(part)), part)


@pytest.fixture(params=[7, 8], ids=["phase 7", "phase 8"])
def remote(request: pytest.FixtureRequest) -> Remote:
    return Remote(NOISE, request.param)


@pytest.fixture
def bulk() -> Remote:
    return Remote(NOISE, 8)


# ---- reading ---------------------------------------------------------------------------------------------------------


def test_from_end_to_end(remote: Remote) -> None:
    assert remote.file.read() == NOISE
    assert remote.file.read() == b""
    assert remote.file.read(10) == b""
    assert remote.file.tell() == SIZE


def test_in_small_steps(remote: Remote) -> None:
    got = [remote.file.read(1000) for _ in range(500)]
    assert b"".join(got) == NOISE[: remote.file.tell()]
    assert all(got)


def test_at_random_is_as_reading_a_local_file(remote: Remote) -> None:
    local, rng = io.BytesIO(NOISE), random.Random(1)
    for _ in range(60):
        position = rng.randrange(SIZE + 1000)
        assert remote.file.seek(position) == local.seek(position)
        size = rng.choice([0, 1, 100, READ_SIZE, 300 * KIB])
        got = remote.file.read(size)
        assert got == local.read(len(got))
        assert got or not size or position >= SIZE, "at the end, and only there, there is nothing"
        assert remote.file.tell() == max(local.tell(), position)


def test_a_buffered_reader_fills_what_one_block_does_not(remote: Remote) -> None:
    reader = io.BufferedReader(remote.file, 64 * KIB)
    reader.seek(READ_SIZE - 5)
    assert reader.read(READ_SIZE + 10) == NOISE[READ_SIZE - 5 : 2 * READ_SIZE + 5]


def test_readinto(bulk: Remote) -> None:
    buffer = bytearray(b"-" * 12)
    assert bulk.file.readinto(memoryview(buffer)[1:11]) == 10
    assert buffer == b"-" + NOISE[:10] + b"-"
    assert bulk.file.readinto(bytearray()) == 0
    bulk.file.seek(-3, os.SEEK_END)
    assert bulk.file.readinto(buffer) == 3
    assert bulk.file.readinto(buffer) == 0


def test_readinto_takes_any_buffer(bulk: Remote) -> None:
    from array import array

    numbers = array("I", bytes(40))
    assert bulk.file.readinto(numbers) == 40
    assert numbers.tobytes() == NOISE[:40]


def test_readall_from_the_middle(remote: Remote) -> None:
    remote.file.seek(SIZE - 300 * KIB)
    assert remote.file.readall() == NOISE[-300 * KIB :]
    assert remote.file.readall() == b""
    remote.file.seek(SIZE + 10)
    assert remote.file.readall() == b""


def test_an_empty_file_is_never_asked_for() -> None:
    remote = Remote(b"", 8)
    assert remote.file.read() == b""
    assert remote.file.read(1) == b""
    assert remote.file.seek(0, os.SEEK_END) == 0
    assert remote.asked == []


def test_lines() -> None:
    remote = Remote(b"one\ntwo\nthree", 8)
    assert remote.file.readline() == b"one\n"
    assert list(remote.file) == [b"two\n", b"three"]


def test_a_hole_reads_as_zeros(bulk: Remote) -> None:
    bulk.host.answering = lambda request: bulk.host.say(Chunk(request.id, hash_bytes(bytes(request.length)), zero=True))
    assert bulk.file.read(1000) == bytes(1000)


# ---- where -----------------------------------------------------------------------------------------------------------


def test_seek_and_tell(bulk: Remote) -> None:
    file = bulk.file
    assert file.tell() == 0
    assert file.seek(100) == 100
    assert file.seek(-30, os.SEEK_CUR) == 70
    assert file.seek(30, os.SEEK_CUR) == 100
    assert file.seek(-1, os.SEEK_END) == SIZE - 1
    assert file.read(10) == NOISE[-1:]
    assert file.seek(5, os.SEEK_END) == SIZE + 5
    assert file.read(10) == b""
    assert file.tell() == SIZE + 5
    assert len(bulk.asked) == 1, "seeking asks for nothing"


@pytest.mark.parametrize(("offset", "whence"), [(-1, os.SEEK_SET), (-1, os.SEEK_CUR), (-SIZE - 1, os.SEEK_END)])
def test_there_is_nothing_before_the_start(bulk: Remote, offset: int, whence: int) -> None:
    with pytest.raises(ValueError, match="before the start"):
        bulk.file.seek(offset, whence)
    assert bulk.file.tell() == 0


@pytest.mark.parametrize("whence", [3, 4, -1])
def test_an_unknown_whence_is_a_value_error(bulk: Remote, whence: int) -> None:
    with pytest.raises(ValueError, match="whence"):
        bulk.file.seek(0, whence)


# ---- what is asked for -----------------------------------------------------------------------------------------------


def test_a_sequential_reader_asks_for_larger_and_larger_blocks(bulk: Remote) -> None:
    while bulk.file.read(10_000):
        pass
    sizes = [128 * KIB, 256 * KIB, 512 * KIB, MIB, 2 * MIB, 4 * MIB, 4 * MIB]
    offsets = [sum(sizes[:number]) for number in range(len(sizes) + 1)]
    assert bulk.asked == [*zip(offsets, [*sizes, SIZE - offsets[-1]], strict=True)]


def test_a_random_reader_asks_for_little(bulk: Remote) -> None:
    for position in (5 * MIB, MIB, 9 * MIB, 3 * MIB):
        bulk.file.seek(position)
        bulk.file.read(100)
    assert bulk.asked == [(position, READ_SIZE) for position in (5 * MIB, MIB, 9 * MIB, 3 * MIB)]


def test_a_jump_ends_the_read_ahead(bulk: Remote) -> None:
    for _ in range(3):
        bulk.file.read(MIB)
    bulk.file.seek(9 * MIB)
    bulk.file.read(1)
    assert bulk.asked[-1] == (9 * MIB, READ_SIZE)


def test_what_is_at_hand_is_not_asked_for_again(bulk: Remote) -> None:
    for position in (1000, 0, 5000, READ_SIZE - 1, 4):
        bulk.file.seek(position)
        assert bulk.file.read(1) == NOISE[position : position + 1]
    assert bulk.asked == [(1000, READ_SIZE), (0, READ_SIZE)]


def test_a_large_read_is_one_request(bulk: Remote) -> None:
    assert bulk.file.read(MIB) == NOISE[:MIB]
    assert bulk.asked == [(0, MIB)]
    assert len(bulk.file.read(10 * MIB)) == CHUNK_SIZE
    assert bulk.asked[1] == (MIB, CHUNK_SIZE)


def test_phase_7_asks_in_reads_of_128_kib() -> None:
    remote = Remote(NOISE, 7)
    remote.file.read(300 * KIB)
    assert remote.asked == [(0, READ_SIZE), (READ_SIZE, READ_SIZE), (2 * READ_SIZE, 44 * KIB)]


# ---- what goes wrong -------------------------------------------------------------------------------------------------


def test_a_file_that_changed_is_told_and_the_next_read_may_work(remote: Remote) -> None:
    remote.file.seek(10)
    remote.host.answering = lambda request: remote.host.say(Error(request.id, "changed", "it is another one"))
    with pytest.raises(SourceChangedError):
        remote.file.read(10)
    assert remote.file.tell() == 10
    remote.host.answering = remote.answer
    assert remote.file.read(10) == NOISE[10:20]
    assert not remote.host.lane.lock.locked()


def test_damaged_bytes_are_not_given_out(bulk: Remote) -> None:
    bulk.host.answering = lambda request: bulk.host.say(Chunk(request.id, bytes(32)), bytes(request.length))
    with pytest.raises(IntegrityError):
        bulk.file.read(10)
    bulk.host.answering = bulk.answer
    assert bulk.file.read(10) == NOISE[:10]


def test_a_lost_connection(remote: Remote) -> None:
    assert remote.file.read(10) == NOISE[:10]
    remote.host.stream.cut()
    assert remote.file.read(10) == NOISE[10:20], "at hand"
    remote.file.seek(5 * MIB)
    with pytest.raises(ConnectionLostError):
        remote.file.read(10)
    assert not remote.host.lane.lock.locked()


# ---- a file object ---------------------------------------------------------------------------------------------------


def test_it_is_a_file_object_for_reading(bulk: Remote) -> None:
    file = bulk.file
    assert isinstance(file, io.RawIOBase)
    assert (file.readable(), file.seekable(), file.writable(), file.isatty()) == (True, True, False, False)
    assert file.size == SIZE
    assert file.name == "day1/caf\udce9.mov"
    for write in (lambda: file.write(b"x"), lambda: file.truncate(1), file.fileno):
        with pytest.raises(io.UnsupportedOperation):
            write()


def test_a_closed_file_gives_nothing(bulk: Remote) -> None:
    with bulk.file as file:
        file.read(1)
    assert file.closed
    for use in (lambda: file.read(1), file.read, file.tell, lambda: file.seek(0), lambda: file.readinto(bytearray(1))):
        with pytest.raises(ValueError, match="closed"):
            use()
    file.close()
