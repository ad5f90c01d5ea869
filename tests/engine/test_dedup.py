"""Which files are held for their hashes, what ends that, and which way each chunk goes then. The host is a script.

Whole transfers are tested with real processes in tests/product/test_dedup.py.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import pytest

from headrace.engine import dedup as dedup_module
from headrace.engine.buffers import BufferPool
from headrace.engine.claims import Claims
from headrace.engine.dedup import HOLD, PATIENCE, TRUST, WORTH, Dedup
from headrace.engine.exchange import EXCHANGES, BulkExchange
from headrace.engine.fetch import Fetcher
from headrace.engine.fillers import LOOK_EVERY
from headrace.engine.lane import Lane
from headrace.engine.plan import OnExist
from headrace.engine.progress import Progress
from headrace.engine.queue import Job
from headrace.engine.worker import Room, Worker
from headrace.errors import ConnectionLostError, HeadraceError, IntegrityError, ProtocolError, SourceChangedError
from headrace.protocol.messages import CHUNK_SIZE, Chunk, Entry, Error, GetChunk, GetManifest, ManifestPart
from headrace.protocol.paths import RelPath
from headrace.storage.chunks import chunk_count, chunk_range, hash_bytes
from headrace.storage.destination import Destination
from headrace.storage.index import ChunkIndex
from headrace.storage.index_lazy import LazyIndex

from .scripted import ScriptedHost

SECONDS: Final = 10.0
HERE: Final = random.Random(1).randbytes(2 * CHUNK_SIZE + 99)
ELSEWHERE: Final = random.Random(2).randbytes(2 * CHUNK_SIZE + 99)


def hashes_of(content: bytes) -> list[bytes]:
    ranges = (chunk_range(len(content), index) for index in range(chunk_count(len(content))))
    return [hash_bytes(content[offset : offset + length]) for offset, length in ranges]


def until(condition: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


class Told:
    def __init__(self) -> None:
        self.fetched_: list[str] = []
        self.failed_: dict[str, HeadraceError] = {}

    def fetched(self, jobs: Sequence[Job]) -> None:
        self.fetched_ += [str(job.source) for job in jobs]

    def same(self, jobs: Sequence[Job]) -> None:
        raise AssertionError("nothing is there before")

    def failed(self, job: Job, error: HeadraceError) -> None:
        self.failed_[str(job.source)] = error


class Clock:
    """Seconds; stands still but for `now`."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Transfer:
    """A fetcher with one worker and a Dedup; `host` answers for both. files: what the host has.

    asked: requests for chunks, as (name, number). lanes: what Dedup opened. manifests: how the host answers for one.
    """

    def __init__(self, folder: Path, index: LazyIndex) -> None:
        self.files: dict[bytes, bytes] = {}
        self.chunks = ScriptedHost()
        self.chunks.answering = self._chunk
        self.asked: list[tuple[str, int]] = []
        self.lanes: list[ScriptedHost] = []
        self.manifests: Callable[[ScriptedHost, GetManifest], None] = self.manifest
        self.clock = Clock()
        self.told = Told()
        self.progress = Progress()
        self.released: list[Lane] = []
        self.dedup = Dedup(index, self._open_lane, self.released.append, self.clock)
        self.destination = Destination.open(folder, create=True)
        self.fetcher = Fetcher(
            self.destination,
            EXCHANGES[8],
            buffers=BufferPool(),
            version=8,
            progress=self.progress,
            reports=self.told,
            on_exist=OnExist.SKIP_SAME,
            dedup=self.dedup,
        )
        self._pool = ThreadPoolExecutor(1)

    def _open_lane(self) -> Lane:
        host = ScriptedHost()
        host.answering = lambda request: self.manifests(host, request)
        self.lanes.append(host)
        return host.lane

    def _chunk(self, request: Any) -> None:
        assert isinstance(request, GetChunk)
        self.asked.append((request.path.decode(), request.offset // CHUNK_SIZE))
        part = self.files[request.path][request.offset : request.offset + request.length]
        self.chunks.say(Chunk(request.id, hash_bytes(part)), part)

    def manifest(self, host: ScriptedHost, request: GetManifest) -> None:
        """In one part."""
        host.say(ManifestPart(request.id, 0, b"".join(hashes_of(self.files[request.path])), last=True))

    def want(self, name: str, content: bytes, mtime_ns: int = 5) -> Job:
        path = RelPath((name.encode(),))
        self.files[name.encode()] = content
        entry = Entry(name.encode(), "f", size=len(content), mtime_ns=mtime_ns, mode=0o644, version=bytes(16))
        job = Job(path, path, entry)
        self.fetcher.queue.put(job)
        return job

    def start(self) -> Future[None]:
        self.fetcher.queue.close()
        worker = Worker(self.fetcher, self.chunks.lane, self.progress.lane(), room=lambda: Room(CHUNK_SIZE))

        def run() -> None:
            with self.fetcher.carrying():
                worker.run()

        return self._pool.submit(run)

    def run(self) -> None:
        """To its end."""
        self.start().result(SECONDS)

    @property
    def reused(self) -> int:
        return self.progress.totals().bytes_reused

    def end(self) -> None:
        self.fetcher.queue.cancel()
        self.dedup.close()
        self._pool.shutdown()
        self.fetcher.abandon()
        self.destination.close()


def remember(home: Path, name: str, content: bytes, mtime_ns: int = 5) -> Path:
    """A file with this content on this disk, in the index."""
    home.mkdir(exist_ok=True)
    path = home.parent / name
    path.write_bytes(content)
    os.utime(path, ns=(mtime_ns, mtime_ns))
    rows = [(*chunk_range(len(content), number), digest) for number, digest in enumerate(hashes_of(content))]
    with ChunkIndex(home) as index:
        assert index.add(os.fsencode(path), path.stat(), rows, whole=True)
        assert index.flush()
    return path


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def transfer(tmp_path: Path, home: Path) -> Iterator[Transfer]:
    """HERE is on this disk."""
    remember(home, "known", HERE)
    with LazyIndex(home) as index:
        index.start()
        found = Transfer(tmp_path / "dest", index)
        yield found
        found.end()


def copy_of(transfer: Transfer, name: str, tmp_path: Path) -> bytes:
    assert transfer.fetcher.failure is None
    return (tmp_path / "dest" / name).read_bytes()


def test_a_file_that_is_here_is_not_asked_for(transfer: Transfer, tmp_path: Path) -> None:
    transfer.want("a", HERE)
    transfer.run()
    assert copy_of(transfer, "a", tmp_path) == HERE
    assert transfer.asked == []
    assert (transfer.reused, transfer.told.fetched_) == (len(HERE), ["a"])


def test_many_manifests_are_asked_for_at_once_and_on_one_lane(transfer: Transfer, tmp_path: Path) -> None:
    for number in range(5):
        transfer.want(f"{number}", HERE)
    transfer.run()
    assert transfer.asked == []
    assert len(transfer.lanes) == 1
    assert transfer.reused == 5 * len(HERE)


def test_a_file_of_another_size_is_fetched_at_once_and_no_hashes_are_asked_for(
    transfer: Transfer, tmp_path: Path
) -> None:
    other = ELSEWHERE + b"more"
    transfer.want("a", other)
    transfer.run()
    assert copy_of(transfer, "a", tmp_path) == other
    assert transfer.asked == [("a", 0), ("a", 1), ("a", 2)]
    assert transfer.lanes == []


def test_files_of_one_chunk_are_not_looked_for(transfer: Transfer, tmp_path: Path) -> None:
    transfer.want("a", HERE[:CHUNK_SIZE])
    transfer.run()
    assert transfer.asked == [("a", 0)]
    assert transfer.lanes == []


def test_what_differs_is_fetched(transfer: Transfer, tmp_path: Path) -> None:
    mixed = HERE[:CHUNK_SIZE] + ELSEWHERE[CHUNK_SIZE:]
    transfer.want("a", mixed)
    transfer.run()
    assert copy_of(transfer, "a", tmp_path) == mixed
    assert transfer.asked == [("a", 1), ("a", 2)]
    assert transfer.reused == CHUNK_SIZE


def test_zeros_need_no_source(transfer: Transfer, tmp_path: Path) -> None:
    zeros = HERE[:CHUNK_SIZE] + bytes(CHUNK_SIZE) + HERE[2 * CHUNK_SIZE :]
    transfer.want("a", zeros)
    transfer.run()
    assert copy_of(transfer, "a", tmp_path) == zeros
    assert transfer.asked == []
    assert transfer.reused == len(HERE) - CHUNK_SIZE, "zeros were not found anywhere"


def test_a_known_file_that_changed_since_is_no_sign(transfer: Transfer, tmp_path: Path) -> None:
    os.utime(tmp_path / "known", ns=(7, 7))
    transfer.want("a", HERE)
    transfer.run()
    assert len(transfer.asked) == 3
    assert transfer.lanes == []


def test_size_alone_is_believed_only_so_often(transfer: Transfer, tmp_path: Path) -> None:
    for number in range(TRUST["size"]):
        transfer.want(f"{number}", ELSEWHERE, mtime_ns=6)
    transfer.run()
    assert len(transfer.asked) == TRUST["size"] * 3
    path = RelPath((b"another",))
    entry = Entry(b"another", "f", size=len(HERE), mtime_ns=6, mode=0o644, version=bytes(16))
    assert not transfer.dedup.holds(Job(path, path, entry))
    entry = Entry(b"another", "f", size=len(HERE), mtime_ns=5, mode=0o644, version=bytes(16))
    assert transfer.dedup.holds(Job(path, path, entry)), "the same time says more"


def test_a_manifest_that_brings_nothing_is_left(home: Path, tmp_path: Path) -> None:
    """The host is spared hashing the rest: the lane is closed in the middle of the answer."""
    count = PATIENCE + WORTH + 8
    path = tmp_path / "known"
    with path.open("wb") as file:
        file.truncate(count * CHUNK_SIZE)
    os.utime(path, ns=(5, 5))
    home.mkdir()
    with ChunkIndex(home) as index:
        index.add(os.fsencode(path), path.stat(), [(0, CHUNK_SIZE, b"h" * 32)], whole=True)
    with LazyIndex(home) as lazy:
        lazy.start()
        transfer = Transfer(tmp_path / "dest", lazy)

        def manifest(host: ScriptedHost, request: GetManifest) -> None:
            for first in range(0, count - 1, 4):
                with_hashes = b"".join(bytes([first % 256, number]) * 16 for number in range(4))
                host.say(ManifestPart(request.id, first, with_hashes[: (count - first) * 32]))

        transfer.manifests = manifest
        entry = Entry(b"a", "f", size=count * CHUNK_SIZE, mtime_ns=5, version=bytes(16), sparse=True)
        job = Job(RelPath((b"a",)), RelPath((b"a",)), entry)
        transfer.fetcher.queue.put(job)
        assert list(transfer.fetcher._expand(job)) == []
        until(lambda: transfer.released, "the lane is closed")
        until(lambda: job in transfer.dedup._watched, "it is looked at what comes")
        watched = transfer.dedup._watched[job]
        assert watched.misses == PATIENCE
        assert transfer.dedup._trust["time"] == TRUST["time"] - 1
        transfer.end()


def test_what_comes_is_looked_for(transfer: Transfer, tmp_path: Path) -> None:
    """A file of another size whose first chunk is here: its manifest is asked for then."""
    answer = transfer._chunk

    def reused() -> bool:
        transfer.clock.now += LOOK_EVERY
        return bool(transfer.reused)

    def slowly(request: GetChunk) -> None:
        if len(transfer.asked) == 1:  # the first chunk came, the second one was asked for and waits
            until(reused, "something is taken from here")
        answer(request)

    transfer.chunks.answering = slowly
    # The third one is drawn from the queue when the second one is on its way.
    second = HERE[:CHUNK_SIZE] + ELSEWHERE[: 2 * CHUNK_SIZE] + HERE[CHUNK_SIZE : 2 * CHUNK_SIZE] + b"an end"
    transfer.want("a", second)
    transfer.run()
    assert copy_of(transfer, "a", tmp_path) == second
    assert transfer.asked == [("a", 0), ("a", 1), ("a", 2), ("a", 4)]
    assert transfer.reused == CHUNK_SIZE


def test_a_host_that_gives_no_hashes_is_not_waited_for(transfer: Transfer, tmp_path: Path) -> None:
    stands = threading.Event()

    def silent(host: ScriptedHost, request: GetManifest) -> None:
        stands.set()
        host.stream.set_timeout(SECONDS)
        host.near.set_timeout(SECONDS)

    transfer.manifests = silent
    transfer.want("a", HERE)
    transfer.want("b", HERE)
    work = transfer.start()
    assert stands.wait(SECONDS)
    assert not work.done()
    assert transfer.asked == []
    transfer.clock.now += HOLD + 1
    work.result(SECONDS)
    assert sorted(transfer.asked) == [(name, number) for name in "ab" for number in range(3)]
    assert copy_of(transfer, "a", tmp_path) == copy_of(transfer, "b", tmp_path) == HERE


def test_a_lane_that_breaks_is_replaced_once(transfer: Transfer, tmp_path: Path) -> None:
    def breaks(host: ScriptedHost, request: GetManifest) -> None:
        if len(transfer.lanes) == 1:
            host.stream.cut()
        else:
            transfer.manifest(host, request)

    transfer.manifests = breaks
    transfer.want("a", HERE)
    transfer.run()
    assert len(transfer.lanes) == 2
    assert transfer.asked == []


def test_where_no_lane_lasts_everything_is_fetched(transfer: Transfer, tmp_path: Path) -> None:
    transfer.manifests = lambda host, request: host.stream.cut()
    for name in "abc":
        transfer.want(name, HERE)
    transfer.run()
    assert len(transfer.lanes) == dedup_module.MAX_BROKEN
    assert len(transfer.asked) == 9
    assert copy_of(transfer, "c", tmp_path) == HERE


def test_a_lane_that_cannot_be_had(transfer: Transfer, tmp_path: Path) -> None:
    def refused() -> Lane:
        raise ConnectionLostError("nobody there")

    transfer.dedup._lane._open_lane = refused
    transfer.want("a", HERE)
    transfer.run()
    assert copy_of(transfer, "a", tmp_path) == HERE
    assert len(transfer.asked) == 3


def test_a_file_without_a_manifest_is_fetched_and_that_tells_why(transfer: Transfer, tmp_path: Path) -> None:
    def changed(host: ScriptedHost, request: GetManifest) -> None:
        host.say(Error(request.id, SourceChangedError.code, "it is another file by now"))

    transfer.manifests = changed
    transfer.want("a", HERE)
    transfer.run()
    assert len(transfer.asked) == 3
    assert transfer.told.fetched_ == ["a"]


@pytest.mark.parametrize(("first", "hashes"), [(1, b"x" * 32), (0, b"x" * 31), (0, b"x" * 32 * 4), (0, b"x" * 32)])
def test_a_manifest_that_is_none_ends_the_transfer(transfer: Transfer, first: int, hashes: bytes) -> None:
    transfer.manifests = lambda host, request: host.say(ManifestPart(request.id, first, hashes, last=True))
    transfer.want("a", HERE)
    transfer.run()
    assert isinstance(transfer.fetcher.failure, ProtocolError)


def test_a_source_that_is_gone_when_it_is_needed(transfer: Transfer, tmp_path: Path) -> None:
    def too_late(host: ScriptedHost, request: GetManifest) -> None:
        (tmp_path / "known").unlink()
        transfer.manifest(host, request)

    transfer.manifests = too_late
    transfer.want("a", HERE)
    transfer.run()
    assert copy_of(transfer, "a", tmp_path) == HERE
    assert len(transfer.asked) == 3
    assert transfer.reused == 0


def test_a_cancelled_transfer_waits_for_nobody(transfer: Transfer) -> None:
    stands = threading.Event()

    def silent(host: ScriptedHost, request: GetManifest) -> None:
        stands.set()
        host.near.set_timeout(60)

    transfer.manifests = silent
    transfer.want("a", HERE)
    work = transfer.start()
    assert stands.wait(SECONDS)
    transfer.fetcher.fail(IntegrityError("for a test"))
    work.result(SECONDS)
    before = time.monotonic()
    transfer.dedup.close()
    assert time.monotonic() - before < SECONDS


def test_an_empty_index_is_not_asked(tmp_path: Path, home: Path) -> None:
    home.mkdir()
    ChunkIndex(home).close()
    with LazyIndex(home) as index:
        index.start()
        transfer = Transfer(tmp_path / "dest", index)
        transfer.want("a", HERE)
        transfer.run()
        assert transfer.dedup._threads == []
        assert len(transfer.asked) == 3
        transfer.end()


# ---- the index, on its thread ------------------------------------------------------------------------------------


def test_an_index_that_takes_long_to_open_is_waited_for_once_and_not_long(tmp_path: Path) -> None:
    opens = threading.Event()

    def slowly(home: Path, entries: int | None) -> ChunkIndex:
        opens.wait(SECONDS)
        return ChunkIndex(home)

    (tmp_path / "index.db").touch()
    with LazyIndex(tmp_path, opening=slowly) as index:
        index.start()
        assert index.ready(0.01) is None
        opens.set()
        index.add(b"/a", os.stat(tmp_path), list)  # too short for any chunk, and none
    assert index.ready(0) is None


def test_a_python_without_sqlite_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def missing(home: Path, entries: int | None) -> ChunkIndex:
        raise ImportError("no module named _sqlite3")

    (tmp_path / "index.db").touch()
    with LazyIndex(tmp_path, opening=missing) as index:
        index.start()
        assert index.ready(SECONDS) is None
        index.add(b"/a", os.stat(tmp_path), list)
    assert [record.levelname for record in caplog.records if "sqlite" in record.message] == ["WARNING"]


def test_the_name_of_the_database_is_said_twice_and_the_same() -> None:
    from headrace.storage import index_file, index_lazy

    assert index_lazy.FILE == index_file.FILE


# ---- claims ------------------------------------------------------------------------------------------------------


def claims(tmp_path: Path, count: int) -> tuple[Claims, Job]:
    entry = Entry(b"a", "f", size=count * CHUNK_SIZE, mtime_ns=5, version=bytes(16), sparse=True)
    job = Job(RelPath((b"a",)), RelPath((b"a",)), entry)
    with Destination.open(tmp_path, create=True) as destination:
        job.partial = destination.partial(job.dest, size=job.size, version=bytes(16), mtime_ns=5, sparse=True)
    return Claims(job), job


def test_each_chunk_goes_one_way(tmp_path: Path) -> None:
    found, job = claims(tmp_path, 10)
    assert job.partial is not None
    job.partial.verified.add(4)
    assert found.claim(1)
    assert not found.claim(1)
    assert not found.claim(4)
    assert not found.claim(10)
    assert found.open_to(3)
    assert not found.open_to(5), "it is in the queue already"
    assert [task.index for task in found] == [0, 2, 3]
    assert not found.claim(3), "it was asked for"
    assert found.claim(7)
    assert found.left == 4
    assert found.open_to(99)
    assert [task.index for task in found] == [5, 6, 8, 9]
    assert found.left == 0
    assert not found.open_to(99)
    job.partial.close()


def test_claims_and_draws_at_once_never_give_a_chunk_twice(tmp_path: Path) -> None:
    found, job = claims(tmp_path, 20_000)
    found.open_to(20_000)
    claimed: list[int] = []

    def claim() -> None:
        claimed.extend(index for index in range(19_999, -1, -1) if found.claim(index))

    other = threading.Thread(target=claim)
    other.start()
    drawn = [task.index for task in found]
    other.join()
    assert sorted(drawn + claimed) == list(range(20_000))
    assert job.partial
    job.partial.close()


def test_without_content_addressing_nothing_is_compared() -> None:
    host = ScriptedHost()
    host.answering = lambda request: host.say(Chunk(request.id, bytes(32)), b"bytes")
    for checks in (True, False):
        exchange = BulkExchange(checks=checks)
        exchange.request(host.lane, RelPath((b"a",)), bytes(16), 0, 5)
        buffer = memoryview(bytearray(5))
        if checks:
            with pytest.raises(IntegrityError):
                exchange.receive(host.lane, 5, buffer, None)
        else:
            assert exchange.receive(host.lane, 5, buffer, None) == (bytes(32), False)
            assert bytes(buffer) == b"bytes"
