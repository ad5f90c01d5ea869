"""The queue between the planner and the workers: order, bounds, who waits and what wakes them."""

from __future__ import annotations

import itertools
import random
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, cast

import pytest

from headrace.engine import queue as queue_module
from headrace.engine.queue import LEAST_PIECE, Exclusive, Job, Task, Work, WorkQueue
from headrace.protocol.messages import CHUNK_SIZE, MIB, Entry
from headrace.protocol.paths import RelPath
from headrace.storage.partial import Partial

PATIENCE: Final = 10.0
MANY: Final = 1 << 40  # room for anything


def job(name: str = "a", size: int = CHUNK_SIZE) -> Job:
    path = RelPath((name.encode(),))
    return Job(path, path, Entry(name.encode(), "f", size=size, version=bytes(16)))


def tasks(job: Job, count: int, length: int = CHUNK_SIZE) -> Iterator[Task]:
    return (Task(job, index, index * length, length) for index in range(count))


def one_task(job: Job) -> list[Work]:
    return [Task(job, 0, 0, job.size)]


made: list[WorkQueue] = []


def make(expand: Callable[[Job], Iterable[Work]] = one_task) -> WorkQueue:
    """A queue whose waits have no end of their own, so that a wake-up that is missing shows."""
    queue = WorkQueue(expand)
    wait = queue._changed.wait
    queue._changed.wait = lambda timeout=None: wait()  # type: ignore[method-assign]
    made.append(queue)
    return queue


def taken(work: Work | None) -> tuple[str, int]:
    assert isinstance(work, Task)
    return str(work.job.source), work.index


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    executor = ThreadPoolExecutor(8)
    yield executor
    while made:
        made.pop().cancel()
    executor.shutdown()


def wait_for_waiters(queue: WorkQueue, count: int) -> None:
    """Until so many threads wait in the queue."""
    pause, deadline = threading.Event(), time.monotonic() + PATIENCE
    while len(queue._changed._waiters) < count:  # type: ignore[attr-defined]
        assert time.monotonic() < deadline, "nobody waits"
        pause.wait(0.001)


# ---- order -----------------------------------------------------------------------------------------------------------


def test_jobs_and_their_chunks_come_in_order() -> None:
    queue = make(lambda job: tasks(job, 3))
    for name in "abc":
        assert queue.put(job(name))
    got = [taken(queue.take(idle=True, room=MANY)) for _ in range(9)]
    assert got == [(name, index) for name in "abc" for index in range(3)]


def test_a_job_is_expanded_when_somebody_gets_to_it() -> None:
    """Its part file is opened then, so files are opened only as fast as they are fetched."""
    expanded: list[str] = []

    def expand(job: Job) -> Iterable[Work]:
        expanded.append(str(job.source))
        return tasks(job, 2)

    queue = make(expand)
    for name in "abc":
        queue.put(job(name))
    assert expanded == []
    for wanted in ["a", "a", "ab", "ab", "abc"]:
        queue.take(idle=False, room=MANY)
        assert expanded == list(wanted)


def test_a_job_without_work_is_passed_over() -> None:
    queue = make(lambda job: [] if job.size == 0 else one_task(job))
    for name, size in [("a", 0), ("b", 0), ("c", 5), ("d", 0)]:
        queue.put(job(name, size))
    assert taken(queue.take(idle=True, room=MANY)) == ("c", 0)
    assert queue.take(idle=False, room=MANY) is None


def test_pushed_work_comes_before_the_rest() -> None:
    queue = make(lambda job: tasks(job, 2))
    first, second = job("a"), job("b")
    queue.put(first)
    queue.put(second)
    assert taken(queue.take(idle=True, room=MANY)) == ("a", 0)
    queue.push([Task(first, 0, 0, 1, attempt=2)])
    work = queue.take(idle=True, room=MANY)
    assert isinstance(work, Task)
    assert (work.index, work.attempt) == (0, 2)
    got = [taken(queue.take(idle=True, room=MANY)) for _ in range(3)]
    assert got == [("a", 1), ("b", 0), ("b", 1)]


def test_a_chunk_is_cut_for_who_may_ask_for_less() -> None:
    queue = make(lambda job: tasks(job, 2))
    large = job(size=2 * CHUNK_SIZE)
    large.partial = cast("Partial", object())
    queue.put(large)
    sizes = []
    for piece in (MIB, MIB, CHUNK_SIZE, CHUNK_SIZE - LEAST_PIECE + 1):
        work = queue.take(idle=True, room=MANY, piece=piece)
        assert isinstance(work, Task)
        sizes.append((work.index, work.offset, work.length, work.pieces is not None))
    assert sizes == [
        (0, 0, MIB, True),
        (0, MIB, MIB, True),
        (0, 2 * MIB, CHUNK_SIZE - 2 * MIB, True),
        (1, CHUNK_SIZE, CHUNK_SIZE, False),  # what would be left is not worth a request
    ]


def test_a_file_without_a_part_file_comes_in_one_piece() -> None:
    queue = make()
    queue.put(job())
    work = queue.take(idle=True, room=MANY, piece=MIB)
    assert isinstance(work, Task)
    assert work.length == CHUNK_SIZE


def test_pushing_nothing_is_harmless() -> None:
    queue = make()
    queue.push([])
    assert queue.take(idle=False, room=MANY) is None


def test_a_job_of_a_thousand_million_chunks_costs_no_memory() -> None:
    drawn = itertools.count()

    def expand(job: Job) -> Iterable[Work]:
        return (task for task, _ in zip(tasks(job, 10**9), drawn, strict=False))

    queue = make(expand)
    queue.put(job(size=10**9 * CHUNK_SIZE))
    queue.take(idle=True, room=MANY)
    tracemalloc.start()
    for index in range(1, 2000):
        assert taken(queue.take(idle=False, room=MANY)) == ("a", index)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 20_000
    assert next(drawn) <= 2001, "drawn from one piece at a time"


# ---- who gets what ---------------------------------------------------------------------------------------------------


def test_without_work_a_busy_worker_goes_back_to_its_answers() -> None:
    queue = make()
    assert queue.take(idle=False, room=MANY) is None
    queue.put(job())
    assert queue.take(idle=False, room=MANY)
    assert queue.take(idle=False, room=MANY) is None


def test_a_busy_worker_gets_only_what_it_has_room_for() -> None:
    queue = make(lambda job: tasks(job, 2, length=100))
    queue.put(job())
    assert queue.take(idle=False, room=99) is None
    assert taken(queue.take(idle=False, room=100)) == ("a", 0)
    assert queue.take(idle=False, room=0) is None
    assert queue.take(idle=False, room=-50) is None
    assert taken(queue.take(idle=True, room=0)) == ("a", 1), "an idle one gets any size"


def test_it_says_whether_only_small_files_were_taken() -> None:
    queue = make()
    queue.put(job("a", 10), job("b"))
    queue.take(idle=True, room=MANY, groups=True)
    assert queue.only_small
    queue.take(idle=True, room=MANY, groups=True)
    assert not queue.only_small


def test_exclusive_work_is_for_idle_workers_only() -> None:
    queue = make(lambda job: [Exclusive(job)] if job.compare else one_task(job))
    compared = job("a")
    compared.compare = True
    queue.put(compared)
    queue.put(job("b"))
    assert queue.take(idle=False, room=MANY) is None
    assert queue.take(idle=False, room=MANY) is None, "nor is it passed by: it drains its lane first"
    work = queue.take(idle=True, room=0)
    assert isinstance(work, Exclusive)
    assert work.job is compared
    assert taken(queue.take(idle=False, room=MANY)) == ("b", 0)


# ---- waiting ---------------------------------------------------------------------------------------------------------


def test_an_idle_worker_waits_for_a_job(pool: ThreadPoolExecutor) -> None:
    queue = make()
    waiting = pool.submit(queue.take, idle=True, room=MANY)
    wait_for_waiters(queue, 1)
    queue.put(job())
    assert taken(waiting.result(PATIENCE)) == ("a", 0)


def test_an_idle_worker_waits_for_pushed_work(pool: ThreadPoolExecutor) -> None:
    queue = make()
    waiting = pool.submit(queue.take, idle=True, room=MANY)
    wait_for_waiters(queue, 1)
    queue.push([Task(job(), 7, 0, 1)])
    assert taken(waiting.result(PATIENCE)) == ("a", 7)


def test_all_idle_workers_share_one_job(pool: ThreadPoolExecutor) -> None:
    queue = make(lambda job: tasks(job, 4))
    waiting = [pool.submit(queue.take, idle=True, room=MANY) for _ in range(4)]
    wait_for_waiters(queue, 4)
    queue.put(job())
    assert sorted(taken(result.result(PATIENCE))[1] for result in waiting) == [0, 1, 2, 3]


def test_work_wakes_the_workers_though_the_planner_waits_there_too(pool: ThreadPoolExecutor) -> None:
    """Of all who wait, the planner may have waited longest; waking it alone would leave the second worker asleep."""
    opening, opened = threading.Event(), threading.Event()

    def expand(job: Job) -> Iterable[Work]:
        opening.set()
        assert opened.wait(PATIENCE)
        return tasks(job, 2)

    queue = make(expand)
    queue.put(job())
    first = pool.submit(queue.take, idle=True, room=MANY)
    assert opening.wait(PATIENCE)
    planner = pool.submit(queue.drained, PATIENCE)
    wait_for_waiters(queue, 1)
    second = pool.submit(queue.take, idle=True, room=MANY)
    wait_for_waiters(queue, 2)
    opened.set()
    assert sorted(taken(result.result(PATIENCE))[1] for result in (first, second)) == [0, 1]
    queue.finished()
    assert planner.result(PATIENCE)


def test_a_new_job_wakes_a_worker_though_somebody_waits_for_the_end(pool: ThreadPoolExecutor) -> None:
    queue = make()
    queue.put(job("a"))
    assert queue.take(idle=True, room=MANY)
    end = pool.submit(queue.drained, PATIENCE)
    wait_for_waiters(queue, 1)
    worker = pool.submit(queue.take, idle=True, room=MANY)
    wait_for_waiters(queue, 2)
    queue.put(job("b"))
    assert taken(worker.result(PATIENCE)) == ("b", 0)
    queue.finished()
    queue.finished()
    assert end.result(PATIENCE)


def test_a_slow_open_holds_up_nobody(pool: ThreadPoolExecutor) -> None:
    opening, opened = threading.Event(), threading.Event()

    def expand(job: Job) -> Iterable[Work]:
        if str(job.source) == "slow":
            opening.set()
            assert opened.wait(PATIENCE)
        return one_task(job)

    queue = make(expand)
    queue.put(job("slow"))
    queue.put(job("quick"))
    slow = pool.submit(queue.take, idle=True, room=MANY)
    assert opening.wait(PATIENCE)
    assert taken(pool.submit(queue.take, idle=True, room=MANY).result(PATIENCE)) == ("quick", 0)
    opened.set()
    assert taken(slow.result(PATIENCE)) == ("slow", 0)


def test_the_planner_is_only_so_far_ahead(pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_module, "MAX_WAITING", 3)
    queue = make()
    put: list[str] = []

    def plan() -> None:
        for name in "abcdefghij":
            queue.put(job(name))
            put.append(name)

    planning = pool.submit(plan)
    for number, name in enumerate("abcdefg"):
        wait_for_waiters(queue, 1)
        assert len(put) == 3 + number
        assert taken(queue.take(idle=False, room=MANY)) == (name, 0)
        if number < 6:
            while len(put) < 4 + number:
                assert not planning.exception() if planning.done() else True
                threading.Event().wait(0.001)
    planning.result(PATIENCE)
    assert len(put) == 10


# ---- the end ---------------------------------------------------------------------------------------------------------


def test_workers_end_when_it_is_closed_and_all_jobs_are(pool: ThreadPoolExecutor) -> None:
    queue = make()
    queue.put(job())
    assert queue.take(idle=True, room=MANY)
    queue.close()
    others = [pool.submit(queue.take, idle=True, room=MANY) for _ in range(3)]
    wait_for_waiters(queue, 3)  # the job may still come to more work: a chunk that is asked for again
    queue.finished()
    assert [other.result(PATIENCE) for other in others] == [None] * 3
    assert queue.take(idle=True, room=MANY) is None


def test_closed_while_nothing_is_left_wakes_the_workers(pool: ThreadPoolExecutor) -> None:
    queue = make()
    others = [pool.submit(queue.take, idle=True, room=MANY) for _ in range(3)]
    wait_for_waiters(queue, 3)
    queue.close()
    assert [other.result(PATIENCE) for other in others] == [None] * 3


def test_work_that_is_there_is_done_after_the_close() -> None:
    queue = make(lambda job: tasks(job, 2))
    queue.put(job())
    queue.close()
    assert taken(queue.take(idle=True, room=MANY)) == ("a", 0)
    assert taken(queue.take(idle=True, room=MANY)) == ("a", 1)
    queue.finished()
    assert queue.take(idle=True, room=MANY) is None


def test_drained_means_that_every_job_has_ended(pool: ThreadPoolExecutor) -> None:
    queue = WorkQueue(one_task)
    assert queue.drained(0)
    queue.put(job("a"))
    queue.put(job("b"))
    assert not queue.drained(0.01)
    queue.take(idle=True, room=MANY)
    queue.take(idle=True, room=MANY)
    assert not queue.drained(0), "taken is not ended"
    queue.finished()
    assert not queue.drained(0)
    waiting = pool.submit(queue.drained, PATIENCE)
    queue.finished()
    assert waiting.result(PATIENCE)
    assert queue.drained(0)


def test_a_job_may_be_put_again_after_it_drained() -> None:
    """A file that changed while it was read."""
    queue = make()
    queue.put(job("a"))
    queue.take(idle=True, room=MANY)
    queue.finished()
    assert queue.drained(0)
    queue.put(job("a"))
    assert taken(queue.take(idle=True, room=MANY)) == ("a", 0)


def test_cancel_wakes_everybody(pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_module, "MAX_WAITING", 0)
    queue = make()
    waiting: list[Future] = [pool.submit(queue.take, idle=True, room=MANY) for _ in range(3)]
    waiting.append(pool.submit(queue.put, job()))
    wait_for_waiters(queue, 4)
    queue._unfinished += 1  # or there would be nothing to wait for
    waiting.append(pool.submit(queue.drained, PATIENCE))
    wait_for_waiters(queue, 5)
    queue.cancel()
    assert [result.result(PATIENCE) for result in waiting] == [None, None, None, False, True]


def test_after_cancel_there_is_no_work_whatever_is_left() -> None:
    queue = make(lambda job: tasks(job, 5))
    queue.put(job("a"))
    queue.put(job("b"))
    assert queue.take(idle=True, room=MANY)
    queue.cancel()
    queue.push([Task(job(), 0, 0, 1)])
    assert queue.take(idle=True, room=MANY) is None
    assert queue.take(idle=False, room=MANY) is None
    assert not queue.put(job("c"))
    assert queue.drained(0)
    queue.cancel()


def test_a_cancel_while_a_file_is_opened_gives_its_work_to_nobody(pool: ThreadPoolExecutor) -> None:
    opening, opened = threading.Event(), threading.Event()

    def expand(job: Job) -> Iterable[Work]:
        opening.set()
        assert opened.wait(PATIENCE)
        return one_task(job)

    queue = make(expand)
    queue.put(job())
    worker = pool.submit(queue.take, idle=True, room=MANY)
    assert opening.wait(PATIENCE)
    queue.cancel()
    opened.set()
    assert worker.result(PATIENCE) is None


# ---- all of it -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2, 6])
def test_many_threads_do_every_piece_once(
    workers: int, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_module, "MAX_WAITING", 5)
    rng = random.Random(workers)
    counts = {f"job {number}": rng.choice([0, 1, 1, 1, 3, 20]) for number in range(150)}
    lock = threading.Lock()
    done: Counter[tuple[str, int]] = Counter()
    left = dict(counts)

    def expand(job: Job) -> Iterable[Work]:
        name = str(job.source)
        if not counts[name]:
            queue.finished()
            return []
        if job.compare:
            return [Exclusive(job)]
        return tasks(job, counts[name], length=10)

    queue = make(expand)

    def plan() -> None:
        for number, name in enumerate(counts):
            new = job(name)
            new.compare = number % 7 == 0
            assert queue.put(new)
        assert queue.drained(PATIENCE)
        queue.close()

    def work() -> int:
        window: list[Task] = []
        while True:
            work = queue.take(idle=not window, room=40 - 10 * len(window))
            if isinstance(work, Exclusive):
                assert not window
                queue.push(tasks(work.job, counts[str(work.job.source)], length=10))
            elif work is not None:
                assert isinstance(work, Task)
                window.append(work)
                assert len(window) <= 4
            elif window:
                task = window.pop(0)
                name = str(task.job.source)
                if task.attempt == 1 and task.index % 5 == 3:  # its hash was wrong
                    queue.push([Task(task.job, task.index, task.offset, task.length, attempt=2)])
                    continue
                with lock:
                    done[name, task.index] += 1
                    left[name] -= 1
                    last = not left[name]
                if last:
                    queue.finished()
            else:
                return len(done)

    threads: list[Future] = [pool.submit(plan), *[pool.submit(work) for _ in range(workers)]]
    for thread in threads:
        thread.result(PATIENCE)
    assert done == {(name, index): 1 for name, count in counts.items() for index in range(count)}
