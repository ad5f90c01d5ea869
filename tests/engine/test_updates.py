"""Old copies, and what goes wrong beside them, with a scripted host. Whole transfers: tests/product/test_changed.py."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import pytest

from headrace.engine import updates as updates_module
from headrace.engine.buffers import BufferPool
from headrace.engine.exchange import EXCHANGES
from headrace.engine.fetch import Fetcher
from headrace.engine.lane import Lane
from headrace.engine.plan import OnExist
from headrace.engine.progress import Progress
from headrace.engine.queue import Job, Task
from headrace.engine.updates import MAX_WAITING, Feed, Updates
from headrace.engine.worker import Room, Worker, scattered
from headrace.errors import ConnectionLostError, HeadraceError, NotFoundError
from headrace.protocol.messages import (
    CHUNK_SIZE,
    Blocks,
    Chunk,
    Entry,
    GetBlocks,
    GetChunk,
    GetManifest,
    GetRanges,
    ManifestPart,
)
from headrace.protocol.paths import RelPath
from headrace.storage.blocks import block_sums, pack_sums
from headrace.storage.chunks import hash_bytes
from headrace.storage.destination import Destination
from headrace.storage.index_lazy import LazyIndex

from .scripted import ScriptedHost

SECONDS: Final = 20.0
OLD: Final = random.Random(21).randbytes(2 * CHUNK_SIZE + 50_000)
NEW: Final = OLD[:100_000] + bytes(range(256)) * 16 + OLD[104_096:]  # one block and its neighbour


class Told:
    def __init__(self) -> None:
        self.fetched_: list[str] = []
        self.failed_: list[str] = []

    def fetched(self, jobs: Sequence[Job]) -> None:
        self.fetched_ += [str(job.source) for job in jobs]

    def same(self, jobs: Sequence[Job]) -> None:
        raise AssertionError("all of them changed")

    def failed(self, job: Job, error: HeadraceError) -> None:
        self.failed_.append(str(job.source))


class Transfer:
    """A fetcher with one worker and Updates; the same script answers for all. answers: other ones, by request.

    asked: all requests, by class. lanes: what Updates opened.
    """

    def __init__(self, folder: Path, index: LazyIndex, limit: int = 8 * CHUNK_SIZE) -> None:
        self.folder = folder
        self.files: dict[bytes, bytes] = {}
        self.answers: dict[type, Callable[[ScriptedHost, Any], object]] = {}
        self.opening: Callable[[], None] = lambda: None
        self.asked: list[Any] = []
        self.lanes: list[ScriptedHost] = []
        self.told = Told()
        self.progress = Progress()
        self.destination = Destination.open(folder, create=True)
        self.open_read = self.destination.open_read
        self.updates = Updates(
            self.destination.lstat, lambda path: self.open_read(path), index, self._open_lane, lambda lane: None
        )
        self.fetcher = Fetcher(
            self.destination,
            EXCHANGES[8],
            buffers=BufferPool(limit),
            version=8,
            progress=self.progress,
            reports=self.told,
            on_exist=OnExist.OVERWRITE,
            updates=self.updates,
        )
        self._chunks = self._host()

    def _host(self) -> ScriptedHost:
        host = ScriptedHost()
        host.lane.blocks = True
        host.answering = lambda request: self._answer(host, request)
        return host

    def _open_lane(self) -> Lane:
        self.opening()
        self.lanes.append(self._host())
        return self.lanes[-1].lane

    def _answer(self, host: ScriptedHost, request: Any) -> None:
        self.asked.append(request)
        self.answers.get(type(request), self.honest)(host, request)

    def honest(self, host: ScriptedHost, request: Any) -> None:
        content = self.files[request.path]
        if isinstance(request, GetManifest):
            hashes = [hash_bytes(content[at : at + CHUNK_SIZE]) for at in range(0, len(content), CHUNK_SIZE)]
            host.say(ManifestPart(request.id, 0, b"".join(hashes), last=True))
        elif isinstance(request, GetBlocks):
            view = memoryview(content)[request.chunk * CHUNK_SIZE :][:CHUNK_SIZE]
            host.say(Blocks(request.id, pack_sums(block_sums(view)), [], b""))
        else:
            ranges = [(request.offset, request.length)] if isinstance(request, GetChunk) else request.ranges
            data = b"".join(content[offset : offset + length] for offset, length in ranges)
            host.say(Chunk(request.id, hash_bytes(data)), data)

    def want(self, name: str, new: bytes = NEW, old: bytes = OLD) -> Job:
        (self.folder / name).write_bytes(old)
        path = RelPath((name.encode(),))
        self.files[name.encode()] = new
        entry = Entry(name.encode(), "f", size=len(new), mtime_ns=5, mode=0o644, version=bytes(16))
        job = Job(path, path, entry, replace=True, old=path)
        self.fetcher.queue.put(job)
        return job

    def run(self) -> None:
        """To its end."""
        self.fetcher.queue.close()
        worker = Worker(self.fetcher, self._chunks.lane, self.progress.lane(), room=lambda: Room(2 * CHUNK_SIZE))

        def run() -> None:
            with self.fetcher.carrying():
                worker.run()

        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(run)
            try:
                running.result(SECONDS)
            finally:
                self.fetcher.queue.cancel()
        assert self.fetcher.failure is None

    def count(self, kind: type) -> int:
        return sum(isinstance(request, kind) for request in self.asked)

    def end(self) -> None:
        self.fetcher.queue.cancel()
        self.updates.close()
        self.fetcher.abandon()
        self.destination.close()


@pytest.fixture
def transfer(tmp_path: Path) -> Iterator[Transfer]:
    with LazyIndex(tmp_path / "home") as index:
        found = Transfer(tmp_path / "dest", index)
        yield found
        found.end()


def has(transfer: Transfer, name: str, content: bytes = NEW) -> None:
    assert (transfer.folder / name).read_bytes() == content
    assert name in transfer.told.fetched_


def test_two_blocks_are_asked_for_and_the_rest_is_taken_from_the_old_copy(transfer: Transfer) -> None:
    transfer.want("a")
    transfer.run()
    has(transfer, "a")
    assert [request.ranges for request in transfer.asked if isinstance(request, GetRanges)] == [[(98_304, 8192)]]
    assert transfer.count(GetChunk) == 0 and len(transfer.lanes) == 2
    assert transfer.progress.totals().bytes_reused == len(NEW) - 8192


def test_a_pool_of_one_chunk_is_enough(tmp_path: Path) -> None:
    with LazyIndex(tmp_path / "home") as index:
        transfer = Transfer(tmp_path / "dest", index, limit=CHUNK_SIZE)
        transfer.want("a")
        transfer.run()
        has(transfer, "a")
        transfer.end()


def test_a_file_that_fails_leaves_no_answers_for_the_next_one(
    transfer: Transfer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of its manifest, and of what was asked about its blocks, some is not read then."""
    monkeypatch.setattr(updates_module, "IN_FLIGHT", 3)
    failing = transfer.want("a", random.Random(22).randbytes(5 * CHUNK_SIZE))

    def manifest(host: ScriptedHost, request: GetManifest) -> None:
        for number in range(5 if request.path == b"a" else 0):
            host.say(ManifestPart(request.id, number, bytes([number]) * 32, last=number == 4))
        if request.path == b"b":
            transfer.honest(host, request)

    def blocks(host: ScriptedHost, request: GetBlocks) -> None:
        if request.path == b"a" and not failing.over:
            transfer.fetcher.settle(failing, NotFoundError("it is gone"), began=False)
        transfer.honest(host, request)

    transfer.answers |= {GetManifest: manifest, GetBlocks: blocks}
    transfer.want("b")
    transfer.run()
    has(transfer, "b")
    assert transfer.told.failed_ == ["a"]
    assert transfer.count(GetChunk) == 0


def test_an_old_copy_that_cannot_be_read_is_as_good_as_none(transfer: Transfer) -> None:
    def write_only(path: RelPath) -> int:
        return os.open(transfer.folder / str(path), os.O_WRONLY)

    transfer.open_read = write_only
    transfer.want("a")
    transfer.run()
    has(transfer, "a")
    assert transfer.count(GetChunk) == 3


def test_an_old_copy_that_vanishes_is_as_good_as_none(transfer: Transfer) -> None:
    def gone(path: RelPath) -> int:
        raise ConnectionLostError("or whatever it is")

    transfer.open_read = gone
    transfer.want("a")
    transfer.run()
    has(transfer, "a")
    assert transfer.count(GetChunk) == 3


def test_a_lane_that_breaks_is_replaced_and_asked_anew(transfer: Transfer) -> None:
    def once(host: ScriptedHost, request: GetBlocks) -> None:
        del transfer.answers[GetBlocks]
        host.stream.abort()

    transfer.answers[GetBlocks] = once
    transfer.want("a")
    transfer.run()
    has(transfer, "a")
    assert (transfer.count(GetBlocks), transfer.count(GetChunk)) == (2, 0)


def test_a_host_that_always_hangs_up_is_asked_for_everything(transfer: Transfer) -> None:
    transfer.answers[GetBlocks] = lambda host, request: host.stream.abort()
    transfer.want("a")
    transfer.run()
    has(transfer, "a")
    assert transfer.count(GetChunk) == 1


def test_a_host_that_is_out_of_reach_is_waited_for(transfer: Transfer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(updates_module, "AWAY_PAUSE", 0.001)
    tries: list[None] = []

    def away() -> None:
        tries.append(None)
        if len(tries) < 10:
            raise ConnectionLostError("no way")

    transfer.opening = away
    transfer.want("a")
    transfer.run()
    has(transfer, "a")
    assert transfer.count(GetChunk) == 0 and len(tries) >= 10


def test_a_lane_to_a_host_of_before_takes_no_ranges(transfer: Transfer) -> None:
    transfer._chunks.lane.blocks = False
    transfer.want("a")
    transfer.run()
    has(transfer, "a")
    assert (transfer.count(GetRanges), transfer.count(GetChunk)) == (0, 1)


def test_an_old_copy_of_a_few_bytes_is_not_looked_at(transfer: Transfer) -> None:
    transfer.want("a", old=b"short")
    transfer.run()
    has(transfer, "a")
    assert transfer.count(GetManifest) == 0


def test_a_feed_is_put_into_the_queue_when_nobody_draws_from_it() -> None:
    task = Task(Job(RelPath(), RelPath(), Entry(b"", "f")), 0, 0, 0)
    feed = Feed()
    assert feed.put(task, lambda: False)
    assert not feed.put(task, lambda: False)
    assert list(feed) == [task, task]
    assert feed.put(task, lambda: False)
    for _ in range(MAX_WAITING):
        feed.put(task, lambda: True)  # waits for nobody when all is over


def test_pieces_go_where_their_ranges_are() -> None:
    content = memoryview(bytes(range(20)))
    ranges = [(100, 3), (200, 7), (300, 10)]
    for step in range(1, 21):
        found = [
            (at, bytes(part))
            for start in range(0, 20, step)
            for at, part in scattered(ranges, start, content[start : start + step])
        ]
        target = {at + place: byte for at, part in found for place, byte in enumerate(part)}
        flat = [at + place for at, length in ranges for place in range(length)]
        assert target == dict(zip(flat, content, strict=True))
