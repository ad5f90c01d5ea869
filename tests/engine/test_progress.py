"""The counters of a transfer."""

from __future__ import annotations

import threading

from headrace.engine.progress import Progress, Totals


class Clock:
    now = 50.0

    def __call__(self) -> float:
        return self.now


def test_it_begins_with_nothing() -> None:
    assert Progress(Clock()).totals() == Totals()


def test_what_is_counted() -> None:
    clock = Clock()
    progress = Progress(clock)
    progress.found(2, 1000)
    progress.found(1, 24)
    progress.resized(-4)
    progress.reused(100)
    progress.reused(20)
    progress.files_done(1)
    progress.files_done(1)
    progress.file_failed()
    clock.now += 2.5
    assert progress.totals() == Totals(
        files=3, bytes=1020, files_done=2, files_failed=1, bytes_reused=120, planned=False, seconds=2.5
    )
    progress.planned()
    assert progress.totals().planned


def test_the_first_byte_is_told_once() -> None:
    clock = Clock()
    progress = Progress(clock)
    assert progress.totals().first_byte is None
    clock.now += 0.25
    progress.first_byte()
    clock.now += 1
    progress.first_byte()
    assert progress.totals().first_byte == 0.25


def test_each_worker_counts_for_itself_and_the_sum_is_shown() -> None:
    progress = Progress(Clock())
    one, other = progress.lane(), progress.lane()
    one.bytes_received += 10
    other.bytes_received += 5
    one.bytes_received += 1
    assert progress.totals().bytes_received == 16


def test_what_the_host_says_of_compression_is_counted_by_its_word() -> None:
    progress = Progress(Clock())
    one, other = progress.lane(), progress.lane()
    one.arrived(30, 100, "zstd")
    one.arrived(100, 100, "link")
    one.arrived(10, 10, "")
    other.arrived(20, 50, "zstd")
    for number in range(1000):
        other.arrived(1, 1, f"a word of {number}")
    assert progress.packed() == {"zstd": 2, "link": 1, "other": 1000}
    totals = progress.totals()
    assert (totals.bytes_received, totals.bytes_saved) == (1160, 100)
    assert progress.delivered() == 1260


def test_a_snapshot_stays_as_it_is() -> None:
    progress = Progress(Clock())
    before = progress.totals()
    progress.found(1, 1)
    assert before.files == 0


def test_many_threads_lose_no_count() -> None:
    progress = Progress()

    def work() -> None:
        lane = progress.lane()
        for _ in range(500):
            lane.bytes_received += 3
            progress.found(1, 3)
            progress.reused(1)
            progress.files_done(1)
            progress.totals()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    totals = progress.totals()
    assert (totals.files, totals.bytes, totals.files_done) == (2000, 6000, 2000)
    assert (totals.bytes_received, totals.bytes_reused) == (6000, 2000)
    assert totals.seconds >= 0
