"""The buffer pool: a bound that holds, waiting in turn, reuse, and spilling for who may not wait."""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from headrace.engine import buffers
from headrace.engine.buffers import DEFAULT_LIMIT, BufferPool, Lease, Unpooled
from headrace.errors import LocalDiskError, UsageError
from headrace.protocol.messages import CHUNK_SIZE, KIB, MIB, READ_SIZE

PATIENCE = 10.0


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    executor = ThreadPoolExecutor(8)
    yield executor
    executor.shutdown(wait=False)


def until(condition: Callable[[], bool]) -> None:
    """Polls; there is no event to wait for when another thread begins to wait."""
    give_up = threading.Event()
    timer = threading.Timer(PATIENCE, give_up.set)
    timer.start()
    while not condition():
        assert not give_up.wait(0.001), "it never came to that"
    timer.cancel()


@pytest.mark.parametrize("limit", [0, 1, CHUNK_SIZE - 1, -5])
def test_a_pool_that_cannot_hold_one_chunk_is_a_usage_error(limit: int) -> None:
    with pytest.raises(UsageError, match="one chunk"):
        BufferPool(limit)


@pytest.mark.parametrize("size", [0, 1, READ_SIZE, READ_SIZE + 1, CHUNK_SIZE])
def test_a_buffer_is_as_long_as_was_asked_for_and_can_be_written(size: int) -> None:
    with BufferPool().acquire(size) as view:
        assert len(view) == size
        view[:] = b"x" * size


def test_more_than_a_chunk_is_no_buffer() -> None:
    with pytest.raises(ValueError, match="the most is"):
        BufferPool().acquire(CHUNK_SIZE + 1)


def test_buffers_are_reused_and_not_zeroed() -> None:
    pool = BufferPool()
    for turn in range(1000):
        with pool.acquire(CHUNK_SIZE) as view:
            assert view[7] == (turn - 1) % 256 if turn else view[7] == 0
            view[7] = turn % 256
    figures = pool.figures()
    assert (figures.allocations, figures.held, figures.in_use) == (1, CHUNK_SIZE, 0)
    assert figures.high_water == CHUNK_SIZE
    assert (figures.waits, figures.wait_seconds) == (0, 0.0)


def test_a_lease_is_given_back_once() -> None:
    pool = BufferPool(CHUNK_SIZE)
    lease = pool.acquire(CHUNK_SIZE)
    lease.release()
    lease.release()
    with pool.acquire(CHUNK_SIZE), pytest.raises(TimeoutError):
        pool.acquire(1, timeout=0)


def test_a_lease_is_given_back_when_its_block_fails() -> None:
    pool = BufferPool()
    with pytest.raises(KeyError), pool.acquire(5):
        raise KeyError
    assert pool.figures().in_use == 0


def test_the_bound_holds_over_both_sizes() -> None:
    pool = BufferPool(2 * CHUNK_SIZE)
    first, second = pool.acquire(CHUNK_SIZE), pool.acquire(CHUNK_SIZE)
    with pytest.raises(TimeoutError, match="no buffer within"):
        pool.acquire(1, timeout=0)
    first.release()
    small = [pool.acquire(READ_SIZE) for _ in range(CHUNK_SIZE // READ_SIZE)]  # in the room of the idle large one
    assert pool.figures().held == 2 * CHUNK_SIZE
    with pytest.raises(TimeoutError):
        pool.acquire(READ_SIZE, timeout=0)
    for lease in (*small, second):
        lease.release()
    with pool.acquire(CHUNK_SIZE), pool.acquire(CHUNK_SIZE):
        assert pool.figures().held == 2 * CHUNK_SIZE
    assert pool.figures().high_water == 2 * CHUNK_SIZE


def test_small_ones_do_not_wait_for_large_ones() -> None:
    limit = 16 * CHUNK_SIZE
    pool = BufferPool(limit)
    large = [pool.acquire(CHUNK_SIZE) for _ in range(15)]
    with pytest.raises(TimeoutError):
        pool.acquire(CHUNK_SIZE, timeout=0)
    small = [pool.acquire(READ_SIZE, timeout=0) for _ in range(CHUNK_SIZE // READ_SIZE)]
    assert pool.figures().in_use == pool.figures().held == limit, "the bound holds all the same"
    with pytest.raises(TimeoutError):
        pool.acquire(READ_SIZE, timeout=0)
    for lease in (*large, *small):
        lease.release()
    again = pool.acquire(READ_SIZE)
    assert pool.figures().in_use == READ_SIZE
    assert pool.figures().allocations == 15 + len(small), "those that were given back serve again"
    again.release()


def test_a_small_one_passes_those_that_wait_for_a_large_one(threads: ThreadPoolExecutor) -> None:
    pool = BufferPool(8 * CHUNK_SIZE)
    held = [pool.acquire(CHUNK_SIZE) for _ in range(7)]
    waiting = threads.submit(pool.acquire, CHUNK_SIZE)
    until(lambda: pool.figures().waiting == 1)
    with pool.acquire(READ_SIZE, timeout=0):
        assert pool.contended
    held.pop().release()
    waiting.result(PATIENCE).release()
    for lease in held:
        lease.release()
    assert pool.figures().in_use == 0


def test_who_waits_gets_the_next_one_in_turn(threads: ThreadPoolExecutor) -> None:
    pool = BufferPool(CHUNK_SIZE)
    held = pool.acquire(CHUNK_SIZE)
    order: list[int] = []

    def want(number: int, size: int) -> None:
        with pool.acquire(size):
            order.append(number)

    waiting: list[Future[None]] = []
    for number in range(4):  # small ones must not overtake a large one for ever
        waiting.append(threads.submit(want, number, CHUNK_SIZE if number % 2 == 0 else READ_SIZE))
        until(lambda: pool.figures().waiting == len(waiting))
    assert pool.contended
    held.release()
    for one in waiting:
        one.result(PATIENCE)
    assert sorted(order) == [0, 1, 2, 3]
    assert order[0] == 0
    figures = pool.figures()
    assert (figures.waiting, figures.waits, figures.in_use) == (0, 4, 0)
    assert figures.wait_seconds > 0
    assert not pool.contended


def test_who_gives_up_does_not_keep_the_others_waiting(threads: ThreadPoolExecutor) -> None:
    pool = BufferPool(CHUNK_SIZE)
    held = pool.acquire(CHUNK_SIZE)
    hasty = threads.submit(pool.acquire, CHUNK_SIZE, 0.05)
    until(lambda: pool.figures().waiting == 1)
    patient = threads.submit(pool.acquire, CHUNK_SIZE)
    with pytest.raises(TimeoutError):
        hasty.result(PATIENCE)
    held.release()
    patient.result(PATIENCE).release()


def test_waiting_long_is_counted_and_told_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]

    def clock() -> float:
        now[0] += buffers.PATIENCE + 0.1  # each look at the clock is one more long wait
        return now[0]

    pool = BufferPool(CHUNK_SIZE, clock=clock)
    with pool.acquire(CHUNK_SIZE), caplog.at_level(logging.WARNING, "headrace.buffers"):
        for _ in range(2):
            with pytest.raises(TimeoutError):
                pool.acquire(CHUNK_SIZE, timeout=buffers.PATIENCE)
    assert pool.figures().timeouts == 2
    assert [record.message for record in caplog.records if "slower" in record.message] != []
    assert len(caplog.records) == 1


def test_many_threads_never_hold_more_than_the_bound(threads: ThreadPoolExecutor) -> None:
    pool = BufferPool(3 * CHUNK_SIZE)

    def work(number: int) -> None:
        for turn in range(200):
            with pool.acquire(CHUNK_SIZE if (number + turn) % 3 else READ_SIZE) as view:
                view[0] = number
                assert view[0] == number, "two held the same buffer"

    for done in [threads.submit(work, number) for number in range(8)]:
        done.result(60)
    figures = pool.figures()
    assert figures.in_use == 0
    assert figures.held <= 3 * CHUNK_SIZE
    assert figures.high_water <= 3 * CHUNK_SIZE


class TestSpill:
    def test_there_is_room_so_it_is_memory(self, tmp_path: Path) -> None:
        lease = BufferPool(spill_to=tmp_path).acquire_or_spill(CHUNK_SIZE)
        assert not lease.spilled

    def test_a_spilled_buffer_is_a_buffer_and_leaves_no_file(self, tmp_path: Path) -> None:
        pool = BufferPool(CHUNK_SIZE, spill_to=tmp_path)
        with pool.acquire(CHUNK_SIZE):
            lease = pool.acquire_or_spill(300 * KIB)
            assert lease.spilled
            assert os.listdir(tmp_path) == []
            with lease as view:
                view[:] = b"y" * len(view)
                assert bytes(view[-3:]) == b"yyy"
                assert pool.figures().spilled == MIB
        figures = pool.figures()
        assert (figures.spilled, figures.spilled_ever, figures.in_use) == (0, MIB, 0)
        assert figures.high_water == CHUNK_SIZE  # a file is no memory

    @pytest.mark.parametrize("how", ["no room", "no folder"])
    def test_a_disk_that_cannot_take_it_is_exit_8(
        self, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(fd: int, offset: int, length: int) -> bool:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        if how == "no room":
            monkeypatch.setattr(buffers, "preallocate", full)
        pool = BufferPool(CHUNK_SIZE, spill_to=tmp_path / ("" if how == "no room" else "gone"))
        with pool.acquire(CHUNK_SIZE), pytest.raises(LocalDiskError) as failure:
            pool.acquire_or_spill(1)
        assert failure.value.exit_code == 8
        assert pool.figures().spilled == 0

    def test_a_file_system_that_cannot_reserve_is_written_to(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(buffers, "preallocate", lambda fd, offset, length: False)
        pool = BufferPool(CHUNK_SIZE, spill_to=tmp_path)
        with pool.acquire(CHUNK_SIZE), pool.acquire_or_spill(CHUNK_SIZE) as view:
            view[-1] = 1


def test_the_debug_mode_has_no_pool() -> None:
    source = Unpooled()
    leases: list[Lease] = [source.acquire(MIB) for _ in range(2 * DEFAULT_LIMIT // CHUNK_SIZE)]
    assert len({id(lease.view.obj) for lease in leases}) == len(leases)
    assert not source.contended


def test_a_small_read_that_waits_gets_a_kept_buffer_when_one_comes_back(threads: ThreadPoolExecutor) -> None:
    pool = BufferPool(8 * CHUNK_SIZE)
    kept = pool.acquire(READ_SIZE)  # the first small ones are those that are kept for small reads
    held = [kept]
    while True:
        try:
            held.append(pool.acquire(READ_SIZE, timeout=0))
        except TimeoutError:
            break
    waiting = threads.submit(pool.acquire, READ_SIZE)
    until(lambda: pool.figures().waiting == 1)
    kept.release()
    with waiting.result(PATIENCE) as view:
        assert len(view) == READ_SIZE
    for lease in held:
        lease.release()
    assert pool.figures().in_use == 0
