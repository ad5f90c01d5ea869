"""One worker and its lane: what it keeps in flight, what it asks again, and what it leaves behind when it fails.

Whole transfers are tested with real processes in tests/product.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

from headrace.engine.buffers import BufferPool
from headrace.engine.exchange import EXCHANGES
from headrace.engine.fetch import Fetcher
from headrace.engine.lane import Lane
from headrace.engine.plan import OnExist
from headrace.engine.progress import Progress
from headrace.engine.queue import Job
from headrace.engine.worker import MAX_REQUESTS, Room, Worker
from headrace.errors import (
    ConnectionLostError,
    HeadraceError,
    IntegrityError,
    LocalDiskError,
    LocalFileError,
    NotFoundError,
    StoppedError,
)
from headrace.protocol.messages import CHUNK_SIZE, MIB, Chunk, Entry, Error, GetChunk, GetManifest, ManifestPart
from headrace.protocol.paths import RelPath
from headrace.storage.chunks import hash_bytes
from headrace.storage.destination import Destination
from headrace.storage.partial import Partial

from .scripted import ScriptedHost

PATIENCE: Final = 10.0
ROOM: Final = 4  # chunks in flight
NOISE: Final = random.Random(5).randbytes(2 * CHUNK_SIZE + 99)


@dataclass
class Told:
    """What was reported, by name."""

    fetched_: list[str] = field(default_factory=list)
    same_: list[str] = field(default_factory=list)
    failed_: dict[str, HeadraceError] = field(default_factory=dict)

    def fetched(self, jobs: Sequence[Job]) -> None:
        self.fetched_ += [str(job.source) for job in jobs]

    def same(self, jobs: Sequence[Job]) -> None:
        self.same_ += [str(job.source) for job in jobs]

    def failed(self, job: Job, error: HeadraceError) -> None:
        self.failed_[str(job.source)] = error


class Fetching:
    """A fetcher with one worker, which runs on a thread of its own; the test is the host."""

    def __init__(self, destination: Destination, pool: ThreadPoolExecutor) -> None:
        self.host = ScriptedHost()
        self.host.near.set_timeout(PATIENCE)
        self.host.stream.set_timeout(PATIENCE)
        self.told = Told()
        self.progress = Progress()
        self.fetcher = Fetcher(
            destination,
            EXCHANGES[8],
            buffers=BufferPool(),
            version=8,
            progress=self.progress,
            reports=self.told,
            on_exist=OnExist.SKIP_SAME,
        )
        self.leaving = threading.Event()
        self.room = Room(ROOM * CHUNK_SIZE)
        self._pool = pool

    def want(self, name: str, content: bytes) -> None:
        path = RelPath((name.encode(),))
        entry = Entry(name.encode(), "f", size=len(content), mtime_ns=10**18, mode=0o644, version=bytes(16))
        self.fetcher.queue.put(Job(path, path, entry))

    def start(self) -> Future[None]:
        self.fetcher.queue.close()
        return self.work(self.host.lane)

    def work(self, lane: Lane) -> Future[None]:
        """A worker on `lane`. The future has its ConnectionLostError, the fetcher what else ends it."""
        worker = Worker(self.fetcher, lane, self.progress.lane(), room=lambda: self.room, leaves=self.leaving.is_set)

        def run() -> None:
            try:
                worker.run()
            except ConnectionLostError:
                worker.give_back()
                raise
            except HeadraceError as why:
                self.fetcher.fail(why)

        return self._pool.submit(run)

    def asked(self) -> GetChunk:
        request = self.host.asked()
        assert isinstance(request, GetChunk)
        return request

    def answer(self, request: GetChunk, content: bytes) -> None:
        part = content[request.offset : request.offset + request.length]
        self.host.say(Chunk(request.id, hash_bytes(part)), part)


@pytest.fixture
def fetching(tmp_path: Path) -> Iterator[Fetching]:
    executor = ThreadPoolExecutor(2)
    with Destination.open(tmp_path, create=False) as destination:
        found = Fetching(destination, executor)
        yield found
        found.fetcher.queue.cancel()
        found.host.stream.cut()
        executor.shutdown()
        found.fetcher.abandon()


def test_small_and_large_files_over_one_lane(fetching: Fetching, tmp_path: Path) -> None:
    contents = {"a": b"a", "empty": b"", "large": NOISE, "z": b"zz"}
    for name, content in contents.items():
        fetching.want(name, content)
    work = fetching.start()
    for _ in range(5):
        request = fetching.asked()
        fetching.answer(request, contents[request.path.decode()])
    work.result(PATIENCE)
    assert fetching.fetcher.failure is None
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == contents
    assert sorted(fetching.told.fetched_) == sorted(contents)
    totals = fetching.progress.totals()
    assert (totals.files_done, totals.bytes_received) == (4, len(NOISE) + 3)
    assert totals.first_byte is not None


def test_so_many_requests_are_in_flight_and_no_more(fetching: Fetching) -> None:
    for number in range(MAX_REQUESTS + 10):
        fetching.want(f"{number:03}", b"x")
    work = fetching.start()
    waiting = [fetching.asked() for _ in range(MAX_REQUESTS)]
    fetching.host.stream.set_timeout(0.05)
    with pytest.raises(ConnectionLostError):
        fetching.asked()
    fetching.host.stream.set_timeout(PATIENCE)
    assert fetching.host.lane.lock.locked(), "nobody else may use the lane meanwhile"
    for request in waiting:
        fetching.answer(request, b"x")
    for _ in range(10):
        fetching.answer(fetching.asked(), b"x")
    work.result(PATIENCE)
    assert not fetching.host.lane.lock.locked()
    assert fetching.fetcher.failure is None


def test_so_many_bytes_are_in_flight_and_no_more(fetching: Fetching) -> None:
    content = bytes((ROOM + 2) * CHUNK_SIZE)
    fetching.want("large", content)
    work = fetching.start()
    waiting = [fetching.asked() for _ in range(ROOM)]
    fetching.host.stream.set_timeout(0.05)
    with pytest.raises(ConnectionLostError):
        fetching.asked()
    fetching.host.stream.set_timeout(PATIENCE)
    for request in waiting:
        fetching.answer(request, content)
    for _ in range(2):
        fetching.answer(fetching.asked(), content)
    work.result(PATIENCE)
    assert fetching.told.fetched_ == ["large"]


def test_a_chunk_that_comes_in_pieces_counts_when_it_is_whole(fetching: Fetching, tmp_path: Path) -> None:
    fetching.room = Room(MIB, MIB)
    fetching.want("large", NOISE)
    work = fetching.start()
    asked: list[tuple[int, int]] = []
    for _ in range(9 + 1):
        request = fetching.asked()
        asked.append((request.offset // MIB, request.length))
        if asked.count(asked[-1]) == 1 and asked[-1][0] == 2:
            damaged = bytes(MIB)
            fetching.host.say(Chunk(request.id, hash_bytes(b"another")), damaged)
        else:
            fetching.answer(request, NOISE)
        verified = next(iter(fetching.fetcher._open_partials)).verified
        assert (0 in verified) <= (len(asked) > 4)
    work.result(PATIENCE)
    assert asked == [(n, MIB) for n in (0, 1, 2, 2, 3, 4, 5, 6, 7)] + [(8, 99)]
    assert (tmp_path / "large").read_bytes() == NOISE
    assert fetching.fetcher.failure is None


def test_pieces_of_a_broken_lane_come_over_another(fetching: Fetching, tmp_path: Path) -> None:
    fetching.room = Room(3 * MIB, MIB)
    fetching.want("large", NOISE)
    work = fetching.start()
    first = fetching.asked()
    fetching.answer(first, NOISE)
    until = time.monotonic() + PATIENCE
    while fetching.progress.delivered() < MIB:
        assert time.monotonic() < until
    fetching.host.stream.cut()
    with pytest.raises(ConnectionLostError):
        work.result(PATIENCE)

    another = fetching.host = ScriptedHost()
    another.near.set_timeout(PATIENCE)
    another.stream.set_timeout(PATIENCE)
    fetching.room = Room(8 * CHUNK_SIZE)
    work = fetching.work(another.lane)
    came = 0
    while came < len(NOISE) - MIB:
        request = fetching.asked()
        came += request.length
        fetching.answer(request, NOISE)
    work.result(PATIENCE)
    assert (tmp_path / "large").read_bytes() == NOISE


def test_a_damaged_chunk_is_asked_for_once_more(fetching: Fetching, tmp_path: Path) -> None:
    fetching.want("a", b"right")
    work = fetching.start()
    request = fetching.asked()
    fetching.host.say(Chunk(request.id, hash_bytes(b"right")), b"wrong")
    fetching.answer(fetching.asked(), b"right")
    work.result(PATIENCE)
    assert (tmp_path / "a").read_bytes() == b"right"
    assert fetching.told.failed_ == {}
    assert fetching.progress.totals().bytes_received == 10, "both attempts came over the wire"


def test_a_damaged_chunk_is_asked_for_again_where_it_came_from(fetching: Fetching, tmp_path: Path) -> None:
    """A host that remembered a wrong hash takes the second request on one stream as a sign to look anew."""
    fetching.want("a", b"right")
    work = fetching.start()
    request = fetching.asked()
    elsewhere = ScriptedHost()
    elsewhere.near.set_timeout(PATIENCE)
    idle = fetching.work(elsewhere.lane)
    fetching.host.say(Chunk(request.id, hash_bytes(b"right")), b"wrong")
    fetching.answer(fetching.asked(), b"right")
    work.result(PATIENCE)
    idle.result(PATIENCE)
    assert (tmp_path / "a").read_bytes() == b"right"
    assert not elsewhere.near.sent()


def test_a_chunk_that_is_damaged_twice_fails_its_file_alone(fetching: Fetching, tmp_path: Path) -> None:
    fetching.want("a", b"right")
    fetching.want("b", b"other")
    work = fetching.start()
    for _ in range(3):
        request = fetching.asked()
        if request.path == b"a":
            fetching.host.say(Chunk(request.id, hash_bytes(b"right")), b"wrong")
        else:
            fetching.answer(request, b"other")
    work.result(PATIENCE)
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    assert isinstance(fetching.told.failed_["a"], IntegrityError)
    assert fetching.told.fetched_ == ["b"]
    assert fetching.fetcher.failure is None


def test_an_error_fails_its_file_alone(fetching: Fetching, tmp_path: Path) -> None:
    fetching.want("large", NOISE)
    fetching.want("b", b"other")
    work = fetching.start()
    for _ in range(4):
        request = fetching.asked()
        if request.path == b"b":
            fetching.answer(request, b"other")
        else:
            fetching.host.say(Error(request.id, "not_found", "it is gone"))
    work.result(PATIENCE)
    assert isinstance(fetching.told.failed_["large"], NotFoundError)
    assert (tmp_path / "b").read_bytes() == b"other"
    assert not (tmp_path / "large").exists()


def failing_at(monkeypatch: pytest.MonkeyPatch, position: int, error: HeadraceError) -> None:
    """Part files take what lies before `position` and not what lies behind it."""
    honest = Partial.write

    def write(partial: Partial, offset: int, data: memoryview | bytes) -> None:
        if offset >= position:
            raise error
        honest(partial, offset, data)

    monkeypatch.setattr(Partial, "write", write)


@pytest.mark.parametrize("damaged", [False, True])
def test_a_file_that_the_disk_does_not_take_fails_alone_even_in_the_middle_of_a_chunk(
    fetching: Fetching, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: bool
) -> None:
    failing_at(monkeypatch, CHUNK_SIZE + 300_000, LocalFileError("too large for this file system"))
    fetching.want("large", NOISE)
    fetching.want("b", b"other")
    work = fetching.start()
    for _ in range(4):
        request = fetching.asked()
        if request.path == b"b":
            fetching.answer(request, b"other")
        else:
            part = NOISE[request.offset : request.offset + request.length]
            fetching.host.say(Chunk(request.id, bytes(32) if damaged and request.offset else hash_bytes(part)), part)
    work.result(PATIENCE)
    assert fetching.fetcher.failure is None
    assert isinstance(fetching.told.failed_["large"], LocalFileError)
    assert fetching.told.fetched_ == ["b"]
    assert (tmp_path / "b").read_bytes() == b"other"
    assert not (tmp_path / "large").exists()
    with Destination.open(tmp_path, create=False) as again:  # what was right stays for the next time
        path = RelPath((b"large",))
        partial = again.partial(path, size=len(NOISE), version=bytes(16), mtime_ns=10**18, sparse=False)
        assert partial.verified == {0}
        partial.close()


def test_a_disk_that_takes_nothing_ends_the_transfer(fetching: Fetching, monkeypatch: pytest.MonkeyPatch) -> None:
    failing_at(monkeypatch, 0, LocalDiskError("no space left"))
    fetching.want("large", NOISE)
    work = fetching.start()
    fetching.answer(fetching.asked(), NOISE)
    work.result(PATIENCE)
    assert isinstance(fetching.fetcher.failure, LocalDiskError)


@pytest.mark.parametrize("how", ["cut", "nonsense", "close"])
def test_a_lane_that_fails_is_let_go(fetching: Fetching, how: str) -> None:
    """Whoever waits for it, the planner in phase 7 say, finds out by its own request."""
    fetching.want("large", NOISE)
    work = fetching.start()
    request = fetching.asked()
    if how == "nonsense":
        fetching.host.say(Chunk(request.id + 77, bytes(32)))
        work.result(PATIENCE)
        assert isinstance(fetching.fetcher.failure, HeadraceError)
        assert not fetching.fetcher.queue.put(Job(RelPath((b"x",)), RelPath((b"x",)), Entry(b"x", "f")))
    else:
        fetching.host.stream.cut() if how == "cut" else fetching.host.stream.close()
        with pytest.raises(ConnectionLostError):
            work.result(PATIENCE)
        assert fetching.fetcher.failure is None, "another lane can go on"
    assert fetching.host.lane.lock.acquire(timeout=1)


def test_what_a_broken_lane_had_in_flight_comes_over_another(fetching: Fetching, tmp_path: Path) -> None:
    contents = {"large": NOISE, "small": b"small", "damaged": b"right"}
    for name in ("damaged", "small", "large"):
        fetching.want(name, contents[name])
    work = fetching.start()
    first = fetching.asked()
    assert first.path == b"damaged"
    fetching.host.say(Chunk(first.id, hash_bytes(b"right")), b"wrong")  # it waits to be asked for again
    for _ in range(4):  # small, and three chunks of large
        request = fetching.asked()
    fetching.host.say(Chunk(request.id - 3, hash_bytes(b"small")), b"small")
    fetching.host.say(Chunk(request.id - 2, hash_bytes(NOISE[:CHUNK_SIZE])), NOISE[:CHUNK_SIZE])
    until = time.monotonic() + PATIENCE
    while fetching.progress.delivered() < CHUNK_SIZE + 10:
        assert time.monotonic() < until
    fetching.host.stream.cut()
    with pytest.raises(ConnectionLostError):
        work.result(PATIENCE)

    another = fetching.host = ScriptedHost()
    another.near.set_timeout(PATIENCE)
    another.stream.set_timeout(PATIENCE)
    work = fetching.work(another.lane)
    asked: list[tuple[bytes, int]] = []
    while len(asked) < 3:
        request = fetching.asked()
        asked.append((request.path, request.offset))
        fetching.answer(request, contents[request.path.decode()])
    work.result(PATIENCE)
    assert sorted(asked) == [(b"damaged", 0), (b"large", CHUNK_SIZE), (b"large", 2 * CHUNK_SIZE)]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == contents
    assert fetching.fetcher.failure is None


def test_a_comparison_that_a_broken_lane_cut_short_is_made_over_another(fetching: Fetching, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"right")
    path = RelPath((b"a",))
    entry = Entry(b"a", "f", size=5, mtime_ns=10**18, mode=0o644, version=bytes(16))
    fetching.fetcher.queue.put(Job(path, path, entry, compare=True))
    work = fetching.start()
    assert isinstance(fetching.host.asked(), GetManifest)
    fetching.host.stream.cut()
    with pytest.raises(ConnectionLostError):
        work.result(PATIENCE)
    another = ScriptedHost()
    another.near.set_timeout(PATIENCE)
    another.stream.set_timeout(PATIENCE)
    work = fetching.work(another.lane)
    request = another.asked()
    assert isinstance(request, GetManifest)
    another.say(ManifestPart(request.id, 0, hash_bytes(b"right")))
    another.say(ManifestPart(request.id, 1, b"", last=True))
    work.result(PATIENCE)
    assert fetching.told.same_ == ["a"]


def test_a_worker_that_is_to_leave_finishes_what_it_asked_for(fetching: Fetching, tmp_path: Path) -> None:
    fetching.want("large", bytes((ROOM + 1) * CHUNK_SIZE))
    work = fetching.start()
    waiting = [fetching.asked() for _ in range(ROOM)]
    fetching.leaving.set()
    for request in waiting:
        fetching.answer(request, bytes((ROOM + 1) * CHUNK_SIZE))
    work.result(PATIENCE)
    assert not fetching.fetcher.queue.over, "one chunk is left for others"


def test_a_worker_without_work_leaves_when_it_is_woken(fetching: Fetching) -> None:
    work = fetching.work(fetching.host.lane)  # the queue is open: there may be more to come
    fetching.leaving.set()
    fetching.fetcher.queue.wake()
    work.result(PATIENCE)


def test_the_first_failure_is_the_one_that_counts(fetching: Fetching) -> None:
    fetching.fetcher.fail(StoppedError("stopped"))
    fetching.fetcher.fail(ConnectionLostError("which was only the consequence"))
    assert isinstance(fetching.fetcher.failure, StoppedError)


def test_a_cancelled_transfer_ends_its_worker(fetching: Fetching) -> None:
    fetching.want("large", NOISE)
    work = fetching.start()
    request = fetching.asked()
    fetching.fetcher.fail(StoppedError("stopped"))
    threading.Thread(target=fetching.host.near.abort).start()
    with pytest.raises(ConnectionLostError):
        work.result(PATIENCE)
    assert isinstance(fetching.fetcher.failure, StoppedError)
    assert request.offset == 0
    assert not fetching.host.lane.lock.locked()
