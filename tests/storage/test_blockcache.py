"""The cache of blocks on disk: what it keeps, what it lets go, and what it survives."""

from __future__ import annotations

import logging
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.protocol.messages import CHUNK_SIZE, KIB, MIB
from headrace.storage import blockcache
from headrace.storage.blockcache import PART, UNIT, BlockCache, DiskFile
from headrace.storage.chunks import hash_bytes

NOISE: Final = random.Random(4).randbytes(2 * CHUNK_SIZE)
SHARE: Final = b"h3ad"
VERSION: Final = b"v" * 16


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[BlockCache]:
    made = BlockCache(tmp_path / "blocks", 64 * MIB)
    yield made
    made.close()


def file_of(cache: BlockCache, version: bytes = VERSION) -> DiskFile:
    return cache.open(SHARE, version, len(NOISE))


def put(file: DiskFile, start: int, end: int) -> None:
    part = memoryview(NOISE)[start:end]
    assert file.put(start, part, hash_bytes(part), lambda: None)


def got(file: DiskFile, start: int, end: int) -> bytes | None:
    into = memoryview(bytearray(end - start))
    return bytes(into) if file.read_into(start, into) else None


def blobs(folder: Path) -> list[Path]:
    return [path for path in (folder / "blobs").rglob("*") if path.is_file()]


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(
    kept=st.lists(st.tuples(st.integers(0, 100), st.integers(1, 12)), max_size=5),
    asked=st.lists(st.tuples(st.integers(0, 14 * PART), st.integers(1, 3 * PART)), min_size=1, max_size=5),
    again=st.booleans(),
)
def test_what_it_gives_are_the_files_bytes(
    tmp_path_factory: pytest.TempPathFactory, kept: list[tuple[int, int]], asked: list[tuple[int, int]], again: bool
) -> None:
    folder = tmp_path_factory.mktemp("cache")
    cache = BlockCache(folder)
    file = file_of(cache)
    for unit, units in kept:
        put(file, unit * UNIT, (unit + units) * UNIT)
    cache.flush()
    if again:  # a later process
        cache.close()
        cache = BlockCache(folder)
        file = file_of(cache)
    for start, length in asked:
        content = got(file, start, start + length)
        assert content in (None, NOISE[start : start + length])
        assert (content is not None) == file.has(start, start + length)
    for unit, _ in kept:
        assert file.extent(unit * UNIT)
    cache.close()


def test_it_survives_a_restart(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path)
    put(file_of(cache), 0, CHUNK_SIZE)
    put(file_of(cache), CHUNK_SIZE, CHUNK_SIZE + 5000)
    cache.put_meta(b"root", b"listing")
    cache.close()
    cache = BlockCache(tmp_path)
    file = file_of(cache)
    assert got(file, 0, CHUNK_SIZE) == NOISE[:CHUNK_SIZE]
    assert got(file, 3 * PART + 17, 5 * PART) == NOISE[3 * PART + 17 : 5 * PART]
    assert got(file, CHUNK_SIZE, CHUNK_SIZE + 5000) == NOISE[CHUNK_SIZE : CHUNK_SIZE + 5000]
    assert cache.get_meta(b"root") == b"listing"
    assert got(file_of(cache, b"w" * 16), 0, PART) is None, "another version"
    assert got(cache.open(b"else", VERSION, len(NOISE)), 0, PART) is None, "another share"
    cache.close()


def test_the_same_bytes_are_kept_once(cache: BlockCache) -> None:
    put(file_of(cache), 0, CHUNK_SIZE)
    put(file_of(cache, b"w" * 16), 0, CHUNK_SIZE)
    assert cache.flush()
    assert cache.figures().size == CHUNK_SIZE
    assert len(blobs(cache.folder)) == 1
    assert got(file_of(cache, b"w" * 16), 0, CHUNK_SIZE) == NOISE[:CHUNK_SIZE]


def test_the_least_recently_used_goes(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, 4 * MIB)
    file = file_of(cache)
    for start in (0, MIB, 2 * MIB, 3 * MIB):
        put(file, start, start + MIB)
        assert cache.flush()
    assert got(file, 0, PART)  # used
    put(file, 5 * MIB, 6 * MIB)
    assert cache.flush()
    assert cache.figures().size <= 4 * MIB
    assert len(blobs(tmp_path)) == 4
    assert got(file, 0, PART) == NOISE[:PART]
    assert got(file, MIB, MIB + PART) is None
    assert got(file, 5 * MIB, 6 * MIB) == NOISE[5 * MIB : 6 * MIB]
    cache.close()


def test_what_was_only_read_counts_as_used_after_a_restart(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, 4 * MIB)
    for start in (0, MIB, 2 * MIB):
        put(file_of(cache), start, start + MIB)
        assert cache.flush()
    cache.close()
    cache = BlockCache(tmp_path, 4 * MIB)
    assert got(file_of(cache), 0, PART)
    cache.close()
    cache = BlockCache(tmp_path, 3 * MIB)
    put(file_of(cache), 5 * MIB, 6 * MIB)
    assert cache.flush()
    assert got(file_of(cache), 0, PART)
    assert got(file_of(cache), MIB, MIB + PART) is None
    cache.close()


def test_small_blocks_and_values_are_bounded_too(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, MIB)
    file = file_of(cache)
    for number in range(128):
        put(file, number * UNIT, (number + 1) * UNIT)
        cache.put_meta(b"%d" % number, NOISE[number : number + 10_000])
    assert cache.flush()
    assert cache.figures().size <= MIB
    assert cache.get_meta(b"127") == NOISE[127:10_127]
    assert cache.get_meta(b"0") is None
    cache.put_meta(b"huge", bytes(MIB))
    assert cache.get_meta(b"huge") is None
    cache.close()


@pytest.mark.parametrize("size", [10_000, 100_000, CHUNK_SIZE])
def test_a_blob_that_was_scribbled_on_is_not_believed(
    tmp_path: Path, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    cache = BlockCache(tmp_path)
    file = file_of(cache)
    put(file, 0, size)
    assert cache.flush()
    if size > 32 * KIB:
        (path,) = blobs(tmp_path)
        raw = bytearray(path.read_bytes())
        raw[size // 2] ^= 1
        path.write_bytes(raw)
    else:
        with sqlite3.connect(tmp_path / "blocks.db") as sql:
            sql.execute("UPDATE blobs SET content = zeroblob(length)")
        sql.close()
    assert got(file, 0, size) is None
    assert got(file, 0, size) is None
    assert cache.figures().damaged == 1
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    put(file, 0, size)  # fetched anew
    assert cache.flush()
    assert got(file, 0, size) == NOISE[:size]
    cache.close()


def test_a_part_can_be_read_where_another_one_is_damaged(cache: BlockCache) -> None:
    put(file_of(cache), 0, CHUNK_SIZE)
    assert cache.flush()
    (path,) = blobs(cache.folder)
    with path.open("r+b") as blob:
        blob.seek(CHUNK_SIZE - 1)
        blob.write(bytes([NOISE[CHUNK_SIZE - 1] ^ 1]))
    assert got(file_of(cache), PART, 2 * PART) == NOISE[PART : 2 * PART]
    assert got(file_of(cache), CHUNK_SIZE - 1, CHUNK_SIZE) is None


def test_blobs_that_vanish_are_missed(cache: BlockCache) -> None:
    put(file_of(cache), 0, CHUNK_SIZE)
    assert cache.flush()
    for path in blobs(cache.folder):
        path.unlink()
    assert got(file_of(cache), 0, PART) is None
    put(file_of(cache), 0, CHUNK_SIZE)
    assert cache.flush()
    assert got(file_of(cache), 0, PART) == NOISE[:PART]


def test_rows_that_were_scribbled_on_are_not_believed(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path)
    put(file_of(cache), 0, PART)
    put(file_of(cache), PART, 2 * PART)
    cache.put_meta(b"root", b"listing")
    cache.close()
    with sqlite3.connect(tmp_path / "blocks.db") as sql:
        sql.execute("UPDATE spans SET start = start + ?, end = end + ? WHERE start = ?", (PART * 4, PART * 4, PART))
        sql.execute("UPDATE meta SET value = x'00'")
    sql.close()
    cache = BlockCache(tmp_path)
    assert got(file_of(cache), 0, PART) == NOISE[:PART]
    assert got(file_of(cache), 5 * PART, 6 * PART) is None
    assert cache.get_meta(b"root") is None
    cache.close()


@pytest.mark.parametrize("content", [b"no database at all" * 1000, b""], ids=["rubbish", "empty"])
def test_a_database_that_is_none_is_begun_anew(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "blocks.db").write_bytes(content)
    cache = BlockCache(tmp_path)
    put(file_of(cache), 0, PART)
    assert cache.flush()
    assert got(file_of(cache), 0, PART) == NOISE[:PART]
    cache.close()


def test_a_database_that_is_overwritten_meanwhile_costs_what_was_cached(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path)
    put(file_of(cache), 0, PART)
    assert cache.flush()
    cache.close()
    cache = BlockCache(tmp_path)
    size = (tmp_path / "blocks.db").stat().st_size
    (tmp_path / "blocks.db").write_bytes(random.Random(1).randbytes(size))
    file = file_of(cache)
    assert got(file, 0, PART) in (None, NOISE[:PART])
    for _ in range(3):  # the writer finds out and mends it
        file.put(0, memoryview(NOISE)[:PART], hash_bytes(NOISE[:PART]), lambda: None)
        assert cache.flush()
    assert cache.figures().failures
    cache.close()
    cache = BlockCache(tmp_path)
    assert cache.works
    cache.close()


def test_a_folder_that_cannot_be_used_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_bytes(b"")
    cache = BlockCache(tmp_path / "file")
    assert not cache.works
    file = file_of(cache)
    assert not file.put(0, memoryview(NOISE)[:PART], bytes(32), lambda: None)
    assert got(file, 0, PART) is None
    cache.put_meta(b"key", b"value")
    assert cache.get_meta(b"key") is None
    assert cache.figures().failures == 1
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    cache.close()


def test_a_full_disk_is_told_once_and_reads_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = [100.0]
    cache = BlockCache(tmp_path, clock=lambda: now[0])
    put(file_of(cache), 0, PART)
    assert cache.flush()
    write = os.write

    def full(fd: int, data: bytes) -> int:
        if len(data) >= PART:
            raise OSError(28, "No space left on device")
        return write(fd, data)

    monkeypatch.setattr(os, "write", full)
    done: list[int] = []
    part = memoryview(NOISE)[PART : 2 * PART]
    assert file_of(cache).put(PART, part, hash_bytes(part), lambda: done.append(1))
    assert cache.flush()
    assert done == [1]
    assert not file_of(cache).put(PART, part, hash_bytes(part), lambda: None), "it pauses"
    assert got(file_of(cache), 0, PART) == NOISE[:PART]
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    monkeypatch.undo()
    now[0] += 61
    put(file_of(cache), PART, 2 * PART)
    assert cache.flush()
    assert got(file_of(cache), PART, 2 * PART) == NOISE[PART : 2 * PART]
    assert not list((tmp_path / "blobs").glob(".*")), "nothing half written is left"
    cache.close()


def test_what_comes_faster_than_the_disk_takes_it_is_not_kept(cache: BlockCache) -> None:
    big = memoryview(bytes(CHUNK_SIZE))
    taken = [file_of(cache).put(0, big, bytes(32), lambda: None) for _ in range(40)]
    assert not all(taken)
    assert cache.figures().skipped == taken.count(False)


def test_files_that_nobody_knows_are_removed(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path)
    put(file_of(cache), 0, PART)
    cache.close()
    left = [tmp_path / "blobs" / "ab" / ("c" * 62), tmp_path / "blobs" / ".1-2.tmp"]
    left[0].parent.mkdir(exist_ok=True)
    for path in left:
        path.write_bytes(b"left by a process that was killed")
        os.utime(path, (1, 1))
    young = tmp_path / "blobs" / "ab" / ("d" * 62)
    young.write_bytes(b"another process is about to say what it is")
    cache = BlockCache(tmp_path)
    put(file_of(cache), PART, 2 * PART)
    assert cache.flush()
    assert not any(path.exists() for path in left)
    assert young.exists()
    assert got(file_of(cache), 0, PART) == NOISE[:PART]
    cache.close()


_ENDLESS: Final = """
import random, sys
from pathlib import Path
from headrace.storage.blockcache import BlockCache
from headrace.storage.chunks import hash_bytes
cache, chance = BlockCache(Path(sys.argv[1]), 16 << 20), random.Random(int(sys.argv[2]))
noise = random.Random(4).randbytes(8 << 20)
print("ready", flush=True)
while True:
    file = cache.open(b"h3ad", b"v" * 16, len(noise))
    start = chance.randrange(500) << 14
    part = memoryview(noise)[start : start + (chance.choice([1, 8, 64]) << 14)]
    file.put(start, part, hash_bytes(part), lambda: None)
    cache.flush()
    start = chance.randrange(500) << 14
    into = memoryview(bytearray(1 << 14))
    assert not file.read_into(start, into) or into == noise[start : start + (1 << 14)]
"""


@pytest.mark.slow
def test_several_processes_and_kill_9_at_any_moment(tmp_path: Path) -> None:
    def start(seed: int) -> subprocess.Popen[bytes]:
        process = subprocess.Popen([sys.executable, "-c", _ENDLESS, str(tmp_path), str(seed)], stdout=subprocess.PIPE)
        assert process.stdout and process.stdout.readline() == b"ready\n"
        return process

    chance = random.Random(2)
    for round in range(4):
        running = [start(round * 2), start(round * 2 + 1)]
        until = time.monotonic() + chance.uniform(0.1, 0.5)
        while time.monotonic() < until:
            assert all(process.poll() is None for process in running)
            time.sleep(0.02)
        for process in running:
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert process.stdout
            process.stdout.close()
        cache = BlockCache(tmp_path, 16 * MIB)
        file = file_of(cache)
        found = 0
        for start_at in range(0, len(NOISE), UNIT):
            content = got(file, start_at, start_at + UNIT)
            found += content is not None
            assert content in (None, NOISE[start_at : start_at + UNIT])
        assert found
        assert not cache.figures().failures
        cache.close()


def test_who_waits_for_the_writer_does_not_wait_for_its_rests(
    cache: BlockCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor for what it gathers: three batches, with an hour after each."""
    monkeypatch.setattr(blockcache, "REST", 1e9)
    monkeypatch.setattr(blockcache, "GATHER", 3600.0)
    monkeypatch.setattr(blockcache, "BATCH", PART)
    file = file_of(cache)
    for number in range(3):
        put(file, number * PART, (number + 1) * PART)
    assert cache.flush(30)
    assert got(file, 0, 3 * PART) == NOISE[: 3 * PART]
    put(file, 3 * PART, 4 * PART)
    cache.close()  # writes what is left, and rests no more
    again = BlockCache(cache.folder)
    assert got(file_of(again), 3 * PART, 4 * PART) == NOISE[3 * PART : 4 * PART]
    again.close()


def test_a_writer_that_rests_is_left_alone(cache: BlockCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blockcache, "GATHER", 3600.0)
    file = file_of(cache)
    for number in range(4):
        put(file, number * PART, (number + 1) * PART)
    assert cache.figures().written == 0, "it gathers"
    assert cache.flush(30)
    assert cache.figures().written == 4
