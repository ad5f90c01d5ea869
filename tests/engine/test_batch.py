"""Batches on the client: what is asked together, what a host may answer, and what becomes of what does not match."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.engine import batch
from headrace.engine.queue import GROUP_BYTES, GROUP_FILES, GROUP_LEAST, Group, Job, Task, WorkQueue
from headrace.errors import ConnectionLostError, HeadraceError, IntegrityError, NotFoundError, ProtocolError
from headrace.protocol.messages import KIB, MAX_BATCH_FILE, Batch, Chunk, Entry, Error, GetBatch, GetChunk
from headrace.protocol.paths import RelPath
from headrace.storage.chunks import hash_bytes
from headrace.storage.destination import Destination

from .scripted import ScriptedHost
from .test_fetch import PATIENCE, Fetching

CONTENT: Final = {f"file {number}": b"%d" % number * 50 for number in range(10)}


@pytest.fixture
def fetching(tmp_path: Path) -> Iterator[Fetching]:
    executor = ThreadPoolExecutor(2)
    with Destination.open(tmp_path, create=False) as destination:
        found = Fetching(destination, executor)
        found.host.lane.batches = True
        yield found
        found.fetcher.queue.cancel()
        found.host.stream.cut()
        executor.shutdown()
        found.fetcher.abandon()


def start(fetching: Fetching, content: dict[str, bytes] = CONTENT) -> Future[None]:
    for name, data in content.items():
        fetching.want(name, data)
    return fetching.start()


def asked(fetching: Fetching) -> GetBatch:
    request = fetching.host.asked()
    assert isinstance(request, GetBatch)
    return request


def answer(
    request: GetBatch, content: dict[str, bytes] = CONTENT, first: int = 0, count: int = 10000
) -> tuple[dict[str, Any], bytes]:
    """The fields of an honest Batch with `count` items from `first` on, and its payload."""
    whole = [content[path.decode()] for path, _ in request.items[first : first + count]]
    payload = b"".join(whole)
    fields = {"id": request.id, "first": first, "sizes": [len(one) for one in whole], "hash": hash_bytes(payload)}
    return fields | {"failed": [], "codes": [], "texts": []}, payload


def say(fetching: Fetching, fields: dict[str, Any], payload: bytes) -> None:
    fetching.host.say(Batch(**fields), payload)


def contents(folder: Path) -> dict[str, bytes]:
    return {found.name: found.read_bytes() for found in folder.iterdir()}


# ---- what is asked together --------------------------------------------------------------------------------------


def job(size: int, **more: Any) -> Job:
    path = RelPath((b"x",))
    return Job(path, path, Entry(b"x", "f", size=size, version=bytes(16), **more))


@given(sizes=st.lists(st.integers(0, MAX_BATCH_FILE), min_size=1, max_size=700))
def test_groups_keep_within_their_limits_and_lose_nothing(sizes: list[int]) -> None:
    queue = WorkQueue(lambda job: [Task(job, 0, 0, job.size)])
    jobs = [job(size) for size in sizes]
    for one in jobs:
        queue.put(one)
    found: list[Job] = []
    while len(found) < len(jobs):
        group = queue.take(idle=True, room=0, groups=True)
        assert isinstance(group, Group)
        assert 0 < len(group.jobs) <= GROUP_FILES
        assert group.length <= max(GROUP_BYTES, group.jobs[0].size)
        found += group.jobs
    assert found == jobs


def test_what_is_no_small_file_comes_alone() -> None:
    queue = WorkQueue(lambda job: [Task(job, 0, 0, job.size)])
    compare = job(10)
    compare.compare = True
    for one in (job(10), job(MAX_BATCH_FILE + 1), job(10), job(100 * KIB, sparse=True), compare, job(10)):
        queue.put(one)
    kinds = [type(queue.take(idle=True, room=0, groups=True)) for _ in range(6)]
    assert kinds == [Group, Task, Group, Task, Task, Group]


def test_a_lane_without_batches_gets_one_after_the_other() -> None:
    queue = WorkQueue(lambda job: [Task(job, 0, 0, job.size)])
    queue.put(job(10))
    assert isinstance(queue.take(idle=True, room=0), Task)


def test_a_busy_worker_waits_until_there_are_enough() -> None:
    queue = WorkQueue(lambda job: [Task(job, 0, 0, job.size)])
    for _ in range(GROUP_LEAST - 1):
        queue.put(job(10))
    assert queue.take(idle=False, room=GROUP_BYTES, groups=True) is None
    queue.put(job(10))
    assert queue.take(idle=False, room=GROUP_BYTES - 1, groups=True) is None
    assert isinstance(queue.take(idle=False, room=GROUP_BYTES, groups=True), Group)
    for _ in range(9):
        queue.put(job(MAX_BATCH_FILE))
    assert isinstance(queue.take(idle=False, room=GROUP_BYTES, groups=True), Group)


# ---- what comes --------------------------------------------------------------------------------------------------


def test_files_come_together_in_several_parts(fetching: Fetching, tmp_path: Path) -> None:
    content = CONTENT | {"empty": b""}
    worker = start(fetching, content)
    request = asked(fetching)
    assert sorted(path.decode() for path, _ in request.items) == sorted(CONTENT)  # who is empty is not asked for
    for first, count in ((0, 1), (1, 5), (6, 4)):
        say(fetching, *answer(request, first=first, count=count))
    worker.result(PATIENCE)
    assert contents(tmp_path) == content
    assert sorted(fetching.told.fetched_) == sorted(content)
    assert fetching.fetcher.queue.over
    assert fetching.host.lane.idle


def test_empty_files_alone_are_not_asked_for(fetching: Fetching, tmp_path: Path) -> None:
    start(fetching, {"one": b"", "two": b""}).result(PATIENCE)
    assert contents(tmp_path) == {"one": b"", "two": b""}


def test_errors_fail_their_files_alone(fetching: Fetching, tmp_path: Path) -> None:
    worker = start(fetching)
    request = asked(fetching)
    fields, _ = answer(request)
    payload = b"".join(data for name, data in CONTENT.items() if name not in ("file 3", "file 9"))
    fields["sizes"][3] = fields["sizes"][9] = 0
    fields |= {"failed": [3, 9], "codes": ["not_found", "denied"], "texts": ["gone", "no"], "hash": hash_bytes(payload)}
    say(fetching, fields, payload)
    worker.result(PATIENCE)
    assert {name: error.code for name, error in fetching.told.failed_.items()} == {
        "file 3": "not_found",
        "file 9": "denied",
    }
    assert contents(tmp_path) == {name: data for name, data in CONTENT.items() if name not in ("file 3", "file 9")}


def test_a_file_that_changed_is_tried_again_later(fetching: Fetching) -> None:
    worker = start(fetching, {"file 1": CONTENT["file 1"]})
    request = asked(fetching)
    fields = answer(request)[0] | {"sizes": [0], "failed": [0], "codes": ["changed"], "texts": ["it did"]}
    say(fetching, fields | {"hash": hash_bytes(b"")}, b"")
    worker.result(PATIENCE)
    assert [job.attempt for job in fetching.fetcher.retries] == [1]


def test_a_part_that_does_not_match_is_asked_for_again_and_then_one_by_one(fetching: Fetching, tmp_path: Path) -> None:
    worker = start(fetching)
    request = asked(fetching)
    say(fetching, *answer(request, count=6))
    damaged = answer(request, first=6)
    say(fetching, damaged[0], bytes([damaged[1][0] ^ 1]) + damaged[1][1:])
    again = asked(fetching)
    assert again.items == request.items[6:]
    damaged = answer(again)
    say(fetching, damaged[0], damaged[1][:-1] + b"!")
    for path, _ in again.items:
        one = fetching.asked()
        assert (one.path, one.offset, one.length) == (path, 0, len(CONTENT[path.decode()]))
        fetching.answer(one, CONTENT[path.decode()])
    worker.result(PATIENCE)
    assert not fetching.told.failed_
    assert contents(tmp_path) == CONTENT


def test_one_bad_file_fails_alone_in_the_end(fetching: Fetching, tmp_path: Path) -> None:
    """Its bytes never match, by whatever request."""
    bad = b"file 4"
    host = fetching.host

    def answering(request: Any) -> None:
        if isinstance(request, GetBatch):
            fields, payload = answer(request)
            host.say(Batch(**fields), payload if bad not in dict(request.items) else bytes(len(payload)))
        else:
            assert isinstance(request, GetChunk)
            data = CONTENT[request.path.decode()]
            host.say(Chunk(request.id, hash_bytes(data)), data if request.path != bad else bytes(len(data)))

    host.answering = answering
    start(fetching).result(PATIENCE)
    assert [type(error) for error in fetching.told.failed_.values()] == [IntegrityError]
    assert contents(tmp_path) == {name: data for name, data in CONTENT.items() if name != bad.decode()}
    assert sum(isinstance(request, GetBatch) for request in host.requests) == 2


def test_a_host_that_refuses_the_whole_request_is_asked_for_each(fetching: Fetching, tmp_path: Path) -> None:
    def answering(request: Any) -> None:
        if isinstance(request, GetBatch):
            fetching.host.say(Error(request.id, NotFoundError.code, "not like this"))
        else:
            data = CONTENT[request.path.decode()]
            fetching.host.say(Chunk(request.id, hash_bytes(data)), data)

    fetching.host.answering = answering
    start(fetching).result(PATIENCE)
    assert contents(tmp_path) == CONTENT


# ---- lies --------------------------------------------------------------------------------------------------------

Lie = Callable[[dict[str, Any], bytes], tuple[dict[str, Any], bytes]]
LIES: Final[dict[str, Lie]] = {
    "a longer payload": lambda f, p: (f, p + b"x"),
    "a shorter payload": lambda f, p: (f, p[:-1]),
    "a size that is not the listed one": lambda f, p: (f | {"sizes": [f["sizes"][0] + 1, *f["sizes"][1:]]}, p + b"x"),
    "sizes that only add up": lambda f, p: (f | {"sizes": [99, 1, *f["sizes"][2:]]}, p),
    "a negative size": lambda f, p: (f | {"sizes": [-50, 150, *f["sizes"][2:]]}, p),
    "an enormous size": lambda f, p: (f | {"sizes": [1 << 62, *f["sizes"][1:]]}, p),
    "no items": lambda f, p: (f | {"sizes": [], "hash": hash_bytes(b"")}, b""),
    "an item too many": lambda f, p: (f | {"sizes": [*f["sizes"], 0]}, p),
    "other items": lambda f, p: (f | {"first": 1}, p),
    "items from before the first": lambda f, p: (f | {"first": -1}, p),
    "an error without a code": lambda f, p: (f | {"failed": [0]}, p),
    "an error for a file with bytes": lambda f, p: (f | {"failed": [0], "codes": ["denied"], "texts": [""]}, p),
    "an error for no item": lambda f, p: (f | {"failed": [77], "codes": ["denied"], "texts": [""]}, p),
    "two errors for one": lambda f, p: (
        f | {"failed": [0, 0], "codes": ["denied"] * 2, "texts": [""] * 2, "sizes": [0, *f["sizes"][1:]]},
        p[50:],
    ),
    "the id of another request": lambda f, p: (f | {"id": f["id"] + 1}, p),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_host_that_lies_ends_the_transfer(fetching: Fetching, tmp_path: Path, lie: str) -> None:
    worker = start(fetching)
    fields, payload = LIES[lie](*answer(asked(fetching)))
    say(fetching, fields, payload)
    worker.result(PATIENCE)
    assert isinstance(fetching.fetcher.failure, ProtocolError)
    assert contents(tmp_path) == {}


def test_nothing_is_allocated_for_a_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    host = ScriptedHost()
    jobs = [job(10), job(20)]
    batch.request(host.lane, Group(jobs))
    host.say(Batch(1, 0, [10, 4 * 1024 * KIB - 10], [], [], [], bytes(32)), bytes(4 * 1024 * KIB))

    class NoBuffers:
        contended = False

        def acquire(self, size: int) -> Any:
            raise AssertionError("a buffer for what was not asked for")

    with pytest.raises(ProtocolError):
        list(batch.receive(host.lane, Group(jobs), NoBuffers()))


@pytest.mark.parametrize("code", ["disk", "stopped", "wrong word", "protocol", "internal", "integrity"])
def test_codes_that_are_not_about_one_file_end_the_transfer_with_no_other_meaning(
    fetching: Fetching, tmp_path: Path, code: str
) -> None:
    worker = start(fetching, {"file 1": CONTENT["file 1"]})
    request = asked(fetching)
    fields = answer(request)[0] | {"sizes": [0], "failed": [0], "codes": [code], "texts": ["\x1b[2J"]}
    say(fetching, fields | {"hash": hash_bytes(b"")}, b"")
    worker.result(PATIENCE)
    failure = fetching.fetcher.failure
    assert isinstance(failure, HeadraceError)
    assert failure.exit_code == 1
    assert "\x1b" not in failure.message


# ---- lanes that break --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batches", [True, False])
def test_what_a_broken_lane_owes_comes_over_another(fetching: Fetching, tmp_path: Path, batches: bool) -> None:
    """Also where another host answers by now, which knows no batches."""
    content = CONTENT | {"empty": b""}
    worker = start(fetching, content)
    say(fetching, *answer(asked(fetching), count=4))
    fetching.host.stream.cut()
    with pytest.raises(ConnectionLostError):
        worker.result(PATIENCE)
    done = len(contents(tmp_path))
    assert done in (0, 4)  # a cut drops what is still on its way
    other = ScriptedHost()

    def answering(request: Any) -> None:
        if isinstance(request, GetBatch):
            fields, payload = answer(request)
            other.say(Batch(**fields), payload)
        else:
            data = CONTENT[request.path.decode()]
            other.say(Chunk(request.id, hash_bytes(data)), data)

    other.answering = answering
    other.lane.batches = batches
    fetching.work(other.lane).result(PATIENCE)
    assert contents(tmp_path) == content
    assert sorted(fetching.told.fetched_) == sorted(content)
    assert len(other.requests) == (1 if batches else len(CONTENT) - done)
    assert fetching.fetcher.queue.over
