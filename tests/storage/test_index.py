"""The chunk index: what was added is found, within its bound, whatever happens to its database."""

from __future__ import annotations

import logging
import os
import random
import select
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.protocol.messages import CHUNK_SIZE
from headrace.storage import index_db, index_file, index_writer
from headrace.storage.chunks import ZERO_HASH
from headrace.storage.index import DEFAULT_ENTRIES, MIN_LENGTH, OFF, ChunkIndex
from headrace.storage.index_file import DAMAGED, FILE

LENGTH = MIN_LENGTH + 1
Chunks = list[tuple[int, int, bytes]]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def index(home: Path) -> Iterator[ChunkIndex]:
    with ChunkIndex(home) as index:
        yield index


def a_file(folder: Path, name: str = "a", size: int = 64 * CHUNK_SIZE) -> tuple[bytes, os.stat_result]:
    """A file with a hole for content: the index does not look."""
    path = folder / name
    with path.open("wb") as file:
        file.truncate(size)
    return os.fsencode(path), path.stat()


def some_chunks(count: int, length: int = LENGTH) -> Chunks:
    return [(number * length, length, os.urandom(32)) for number in range(count)]


def fill(index: ChunkIndex, folder: Path, name: str, chunks: Chunks) -> None:
    assert index.add(*a_file(folder, name), chunks)
    assert index.flush()


def hashes_of(chunks: Chunks) -> list[bytes]:
    return [digest for _, _, digest in chunks]


# ---- what it remembers -----------------------------------------------------------------------------------------------


def test_what_was_added_is_found_and_nothing_else(index: ChunkIndex, tmp_path: Path) -> None:
    path, st = a_file(tmp_path)
    chunks = some_chunks(1000)
    assert index.add(path, st, chunks)
    assert index.flush()

    unknown = os.urandom(32)
    found = index.lookup([*hashes_of(chunks), unknown])

    assert set(found) == set(hashes_of(chunks))
    for offset, length, digest in chunks:
        (place,) = found[digest]
        assert (place.offset, place.length, place.hash, place.file.path) == (offset, length, digest, path)
        assert place.file.facts.size == st.st_size
        assert place.file.facts.inode == st.st_ino
        assert place.file.facts.mtime_ns == st.st_mtime_ns


def test_it_outlives_the_process_s_index(home: Path, tmp_path: Path) -> None:
    chunks = some_chunks(3)
    with ChunkIndex(home) as index:
        index.add(*a_file(tmp_path), chunks)  # closing writes it
    with ChunkIndex(home) as index:
        assert set(index.lookup(hashes_of(chunks))) == set(hashes_of(chunks))


def test_paths_are_bytes(index: ChunkIndex, tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/caf\xe9\n"
    chunks = some_chunks(1)
    index.add(path, a_file(tmp_path)[1], chunks)
    index.flush()

    assert index.lookup(hashes_of(chunks))[chunks[0][2]][0].file.path == path


def test_large_numbers_of_devices_and_inodes_come_back_as_they_are(index: ChunkIndex, tmp_path: Path) -> None:
    """Inodes are unsigned 64-bit numbers, and some network file systems use all of it."""
    path, st = a_file(tmp_path)
    fields = list(st)
    fields[stat.ST_INO], fields[stat.ST_DEV] = (1 << 64) - 3, 1 << 63
    huge = os.stat_result(fields, {"st_mtime_ns": st.st_mtime_ns, "st_ctime_ns": st.st_ctime_ns})
    chunks = some_chunks(1)
    index.add(path, huge, chunks, whole=True)
    index.flush()

    assert index.knows(path, huge)
    assert index.lookup(hashes_of(chunks))


def test_chunks_that_are_not_worth_it_are_left_out(index: ChunkIndex, tmp_path: Path) -> None:
    small, zeros = os.urandom(32), ZERO_HASH(CHUNK_SIZE)
    assert index.add(*a_file(tmp_path), [(0, MIN_LENGTH, small), (CHUNK_SIZE, CHUNK_SIZE, zeros)])
    index.flush()

    assert index.lookup([small, zeros]) == {}
    assert index.stats().files == 0


@pytest.mark.parametrize(
    "chunk", [(-1, LENGTH, b"h" * 32), (0, 0, b"h" * 32), (0, CHUNK_SIZE + 1, b"h" * 32), (0, 9, b"")]
)
def test_what_is_no_chunk_is_refused(index: ChunkIndex, tmp_path: Path, chunk: tuple[int, int, bytes]) -> None:
    with pytest.raises(ValueError, match="no chunk"):
        index.add(*a_file(tmp_path), [chunk])


def test_a_relative_path_is_refused(index: ChunkIndex, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="absolute"):
        index.add(b"a", a_file(tmp_path)[1], [])


def test_a_file_that_is_shorter_than_its_chunks_is_not_remembered(index: ChunkIndex, tmp_path: Path) -> None:
    chunks = some_chunks(1)
    assert not index.add(*a_file(tmp_path, size=LENGTH - 1), chunks)
    index.flush()

    assert index.lookup(hashes_of(chunks)) == {}


def test_a_file_that_changed_has_its_new_chunks_only(index: ChunkIndex, tmp_path: Path) -> None:
    old, new = some_chunks(5), some_chunks(5)
    fill(index, tmp_path, "a", old)
    os.utime(tmp_path / "a", ns=(1, 1))
    path = os.fsencode(tmp_path / "a")
    index.add(path, os.stat(path), new)
    index.flush()

    assert index.lookup(hashes_of(old)) == {}
    assert len(index.lookup(hashes_of(new))) == 5
    assert index.stats().entries == 5
    assert index.stats().files == 1


def test_a_file_that_is_the_same_keeps_what_is_known_and_gains(index: ChunkIndex, tmp_path: Path) -> None:
    path, st = a_file(tmp_path)
    first, second = some_chunks(5), some_chunks(5)
    for chunks in (first, first + second):
        index.add(path, st, chunks)
        index.flush()

    assert len(index.lookup(hashes_of(first + second))) == 10
    assert index.stats().entries == 10


def test_a_file_that_changed_between_two_additions_is_what_it_was_last(index: ChunkIndex, tmp_path: Path) -> None:
    """Both may be written together."""
    path, st = a_file(tmp_path)
    old, new, newer = some_chunks(5), some_chunks(5), some_chunks(5)
    index.add(path, st, old)
    os.utime(path, ns=(1, 1))
    index.add(path, os.stat(path), new, whole=True)
    index.add(path, os.stat(path), newer)
    index.flush()

    assert set(index.lookup(hashes_of(old + new + newer))) == set(hashes_of(new + newer))
    assert index.stats().entries == 10
    assert index.knows(path, os.stat(path))


def test_it_knows_a_file_when_it_has_all_of_it_and_it_did_not_change(index: ChunkIndex, tmp_path: Path) -> None:
    path, st = a_file(tmp_path)
    assert not index.knows(path, st)
    index.add(path, st, some_chunks(2))
    index.flush()
    assert not index.knows(path, st), "some of its chunks are not all of them"
    index.add(path, st, some_chunks(2), whole=True)
    index.flush()
    assert index.knows(path, st)
    os.utime(path, ns=(1, 1))
    assert not index.knows(path, os.stat(path))


def test_a_forgotten_file_is_gone_with_all_its_chunks(index: ChunkIndex, tmp_path: Path) -> None:
    gone, kept = some_chunks(5), some_chunks(5)
    fill(index, tmp_path, "gone", gone)
    fill(index, tmp_path, "kept", kept)

    index.forget(index.lookup(hashes_of(gone))[gone[0][2]][0])
    index.flush()

    assert set(index.lookup(hashes_of(gone + kept))) == set(hashes_of(kept))
    assert index.stats().entries == 5
    assert index.stats().counters["stale"] == 1


def test_a_file_that_was_added_anew_is_not_forgotten_for_what_it_was(index: ChunkIndex, tmp_path: Path) -> None:
    old, new = some_chunks(1), some_chunks(1)
    fill(index, tmp_path, "a", old)
    (stale,) = index.lookup(hashes_of(old))[old[0][2]]
    os.utime(tmp_path / "a", ns=(1, 1))
    path = os.fsencode(tmp_path / "a")
    index.add(path, os.stat(path), new)
    index.flush()

    index.forget(stale)
    index.flush()

    assert len(index.lookup(hashes_of(new))) == 1


def test_of_a_chunk_that_is_everywhere_a_few_places_are_enough(index: ChunkIndex, tmp_path: Path) -> None:
    everywhere, rare = some_chunks(1), some_chunks(1)
    path, st = a_file(tmp_path)
    for number in range(index_db._AT_ONCE):  # enough to make a look-up count
        index.add(path + b"%d" % number, st, everywhere)
    index.add(path, st, everywhere + rare)
    index.flush()

    for wanted in (hashes_of(everywhere), hashes_of(everywhere + rare)):
        found = index.lookup(wanted)
        assert set(found) == set(wanted)
        assert len(found[everywhere[0][2]]) == index_db.MAX_PLACES


def test_the_same_chunk_many_times_in_one_file_is_one_entry(index: ChunkIndex, tmp_path: Path) -> None:
    digest = os.urandom(32)
    fill(index, tmp_path, "a", [(number * LENGTH, LENGTH, digest) for number in range(100)])

    assert len(index.lookup([digest])[digest]) == 1
    assert index.stats().entries == 1


# ---- its bound -------------------------------------------------------------------------------------------------------


def test_the_files_that_were_not_used_for_longest_go_first(home: Path, tmp_path: Path) -> None:
    with ChunkIndex(home, max_entries=100) as index:
        parts = {name: some_chunks(30) for name in "abc"}
        for name, chunks in parts.items():
            fill(index, tmp_path, name, chunks)
        index.touch(index.lookup(hashes_of(parts["a"]))[parts["a"][0][2]])
        index.flush()
        more = some_chunks(30)
        fill(index, tmp_path, "d", more)

        assert len(index.lookup(hashes_of(parts["a"]))) == 30, "it was used"
        assert len(index.lookup(hashes_of(parts["b"]))) == 5, "only as much as is needed: down to 95"
        assert len(index.lookup(hashes_of(parts["c"] + more))) == 60
        assert index.stats().entries == 95
        assert index.stats().counters["evicted"] == 25


def test_a_file_of_which_a_part_was_evicted_is_not_known_as_a_whole(home: Path, tmp_path: Path) -> None:
    with ChunkIndex(home, max_entries=100) as index:
        path, st = a_file(tmp_path)
        index.add(path, st, some_chunks(60), whole=True)
        index.flush()
        assert index.knows(path, st)
        fill(index, tmp_path, "b", some_chunks(60))

        assert index.stats().files == 2
        assert not index.knows(path, st)


def test_a_file_larger_than_the_bound_does_not_evict_itself(home: Path, tmp_path: Path) -> None:
    with ChunkIndex(home, max_entries=100) as index:
        path, st = a_file(tmp_path)
        chunks = some_chunks(500)
        index.add(path, st, chunks, whole=True)
        index.flush()

        assert len(index.lookup(hashes_of(chunks))) == 90
        assert not index.knows(path, st)


def test_a_smaller_bound_is_reached_in_steps(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ChunkIndex(home) as index:
        fill(index, tmp_path, "a", some_chunks(2000))
    steps = []
    real = index_db.Database.evict

    def evict(self: index_db.Database, limit: int, room: int, step: int) -> int:
        steps.append(real(self, limit, room, step))
        return steps[-1]

    monkeypatch.setattr(index_db.Database, "evict", evict)
    monkeypatch.setattr(index_writer, "EVICT_STEP", 500)
    with ChunkIndex(home, max_entries=1000) as index:
        fill(index, tmp_path, "b", some_chunks(1))

        assert index.stats().entries == 950
        assert steps == [500, 500, 51, 0]


def test_a_full_queue_drops_what_comes_and_counts_it(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_writer, "MAX_QUEUED", 10)
    go = threading.Event()
    real = index_db.Database.write

    def write(self: index_db.Database, *arguments: object) -> None:
        assert go.wait(30)
        real(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(index_db.Database, "write", write)
    with ChunkIndex(home) as index:
        path, st = a_file(tmp_path)
        taken = [index.add(path + b"%d" % number, st, some_chunks(4)) for number in range(20)]
        assert taken[0]
        assert not taken[-1]
        go.set()
        assert index.flush()

        counters = index.stats().counters
        assert counters["dropped"] == 4 * taken.count(False)
        assert index.stats().entries == 4 * taken.count(True)


# ---- counters --------------------------------------------------------------------------------------------------------


def test_counters_outlive_the_process_and_are_cleared_with_the_rest(home: Path, tmp_path: Path) -> None:
    chunks = some_chunks(10)
    for _ in range(2):
        with ChunkIndex(home) as index:
            fill(index, tmp_path, "a", chunks)
            found = index.lookup([*hashes_of(chunks), os.urandom(32)])
            index.reused(found[chunks[0][2]][0], "reflink")
    with ChunkIndex(home) as index:
        stats = index.stats()
        counters = {"asked": 22, "found": 20, "reused": 2, "bytes_saved": 2 * LENGTH, "reflink": 2}
        assert {name: stats.counters[name] for name in counters} == counters
        assert (stats.entries, stats.files, stats.bytes_indexed) == (10, 2 - 1, 10 * LENGTH)
        assert stats.max_entries == DEFAULT_ENTRIES
        assert stats.disk > 0

        index.clear()

        stats = index.stats()
        assert (stats.entries, stats.files, stats.counters) == (0, 0, {})


# ---- several processes, and kill -9 ----------------------------------------------------------------------------------

WRITER = """
import os, sys
from pathlib import Path
from headrace.storage.index import ChunkIndex
index = ChunkIndex(Path(sys.argv[1]), max_entries=5000)
path, st = os.fsencode(sys.argv[0]), os.stat(sys.executable)
print("open", flush=True)
for number in range(int(sys.argv[2])):
    rows = [(n, 4097, os.urandom(32)) for n in range(100)]
    index.add(b"/%d/%d" % (os.getpid(), number), st, rows, whole=True)
    index.flush()
index.close()
assert index.off is None, index.off
"""


def writer(home: Path, count: int) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", WRITER, home, str(count)], stdout=subprocess.PIPE)
    assert process.stdout
    assert select.select([process.stdout], [], [], 30)[0]
    assert process.stdout.readline() == b"open\n"
    process.stdout.close()
    return process


def sound(home: Path) -> int:
    """How many entries there are, in a database that is sound and counts right."""
    with ChunkIndex(home, max_entries=5000) as index:
        with index.database() as database:
            database.check()
            entries, _, files = database.totals()
            assert database.numbers().get("entries", 0) == entries
        assert (files > 0) == (entries > 0)
        assert index.off is None
    return entries


def test_several_processes_write_at_once(home: Path) -> None:
    processes = [writer(home, 10) for _ in range(3)]
    assert [process.wait(50) for process in processes] == [0, 0, 0]

    assert sound(home) == 3 * 10 * 100
    assert not (home / DAMAGED).exists()


@pytest.mark.slow
def test_it_survives_kill_9_at_any_moment(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    moments = random.Random()
    entries = []
    for _ in range(5):
        process = writer(home, 100_000)
        time.sleep(moments.uniform(0.0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        entries.append(sound(home))
    assert max(entries) > 0
    assert all(count % 100 == 0 or count >= 4750 for count in entries), "a file's chunks come together"
    assert not (home / DAMAGED).exists()
    assert caplog.records == []


# ---- a database that is not what it should be ------------------------------------------------------------------------


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("content", [b"no database" * 1000, b"\0" * 8192, b"SQLite format 3\0" + b"\xff" * 8000])
def test_garbage_is_set_aside_with_a_warning(home: Path, caplog: pytest.LogCaptureFixture, content: bytes) -> None:
    home.mkdir()
    (home / FILE).write_bytes(content)
    with ChunkIndex(home) as index:
        assert index.off is None
        assert index.stats().damaged

    assert (home / DAMAGED).read_bytes() == content
    (warning,) = warnings(caplog)
    assert "damaged" in warning
    assert str(home / DAMAGED) in warning


def test_a_database_of_something_else_is_set_aside(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    home.mkdir()
    with sqlite3.connect(home / FILE) as sql:
        sql.execute("CREATE TABLE chunks (mine)")
    sql.close()
    with ChunkIndex(home) as index:
        assert index.off is None

    assert "something else" in warnings(caplog)[0]


def damage(home: Path) -> None:
    """Overwrites every page but the first, in place, as a failing disk would."""
    size = (home / FILE).stat().st_size
    with (home / FILE).open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (size - 4096))


def a_full_one(home: Path, folder: Path) -> Chunks:
    chunks = some_chunks(3000)
    with ChunkIndex(home) as index:
        fill(index, folder, "a", chunks)
    return chunks


def test_damage_that_shows_in_a_look_up_ends_in_a_new_index(
    home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chunks = a_full_one(home, tmp_path)
    damage(home)
    with ChunkIndex(home) as index:
        assert index.lookup(hashes_of(chunks)) == {}
        assert index.off is None
        fill(index, tmp_path, "a", chunks)
        assert len(index.lookup(hashes_of(chunks))) == 3000

    assert len(warnings(caplog)) == 1
    assert sound(home) > 0


def test_damage_that_shows_in_writing_ends_in_a_new_index_and_nothing_queued_is_lost(
    home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    a_full_one(home, tmp_path)
    damage(home)
    chunks = some_chunks(3000)
    with ChunkIndex(home) as index:
        fill(index, tmp_path, "b", chunks)
        assert len(index.lookup(hashes_of(chunks))) == 3000

    assert len(warnings(caplog)) == 1


def test_rows_that_nobody_wrote_are_damage_too(home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """SQLite stores anything in any column; a page with a flipped bit can pass its own checks."""
    chunks = a_full_one(home, tmp_path)
    with sqlite3.connect(home / FILE) as sql:
        sql.execute("UPDATE chunks SET length = 'x' WHERE hash = ?", (chunks[7][2],))
    sql.close()
    with ChunkIndex(home) as index:
        assert index.lookup(hashes_of(chunks)) == {}
        assert index.off is None

    assert "never written" in warnings(caplog)[0]


@pytest.mark.parametrize(("column", "value"), [("length", CHUNK_SIZE + 1), ("length", 0), ("offset", -1), ("file", 99)])
def test_places_that_cannot_be_are_not_given(home: Path, tmp_path: Path, column: str, value: int) -> None:
    chunks = a_full_one(home, tmp_path)
    with sqlite3.connect(home / FILE) as sql:
        sql.execute(f"UPDATE chunks SET {column} = ? WHERE hash = ?", (value, chunks[7][2]))
    sql.close()
    with ChunkIndex(home) as index:
        assert set(index.lookup(hashes_of(chunks))) == set(hashes_of(chunks)) - {chunks[7][2]}


def test_a_process_that_still_has_the_damaged_one_does_no_harm_to_the_new_one(
    home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """SQLite opens the log by its name, and deletes it when the last connection closes."""
    chunks = a_full_one(home, tmp_path)
    old = ChunkIndex(home)
    fill(old, tmp_path, "b", some_chunks(10))  # so that it has a log
    index_file.set_aside(home, index_file.identity_of(home), "for a test")
    with ChunkIndex(home) as index:
        fill(index, tmp_path, "a", chunks)
        old.close()
        assert (home / (FILE + "-wal")).exists()
        with ChunkIndex(home) as another:
            assert len(another.lookup(hashes_of(chunks))) == 3000
    assert sound(home) > 0


def test_whoever_comes_second_to_a_damaged_one_takes_the_new_one(home: Path, tmp_path: Path) -> None:
    a_full_one(home, tmp_path)
    identity = index_file.identity_of(home)
    index_file.set_aside(home, identity, "for a test")
    chunks = a_full_one(home, tmp_path)
    index_file.set_aside(home, identity, "another process saw it too")
    with ChunkIndex(home) as index:
        assert len(index.lookup(hashes_of(chunks))) == 3000


def test_an_index_that_was_set_aside_under_us_is_left_for_the_new_one(home: Path, tmp_path: Path) -> None:
    with ChunkIndex(home) as index:
        fill(index, tmp_path, "a", some_chunks(1))
        index_file.set_aside(home, index_file.identity_of(home), "for a test")
        chunks = some_chunks(10)
        fill(index, tmp_path, "b", chunks)
        assert len(index.lookup(hashes_of(chunks))) == 10
        assert index.stats().entries == 10


@pytest.mark.parametrize("where", ["write", "lookup"])
def test_a_disk_that_damages_every_database_turns_it_off(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    def damaged(*arguments: object) -> None:
        raise index_file.IndexDamagedError("injected")

    monkeypatch.setattr(index_db.Database, where, damaged)
    with ChunkIndex(home) as index:
        if where == "write":
            assert index.add(*a_file(tmp_path), some_chunks(1))
            assert not index.flush()
        else:
            assert [index.lookup([os.urandom(32)]) for _ in range(5)] == [{}] * 5
        assert index.off is not None
        assert "damaged 4 times" in index.off.message

    told = warnings(caplog)
    assert len(told) == 4, "three that were set aside, and the end of it"
    assert "off" in told[-1]


def test_a_fault_of_the_writer_itself_turns_the_index_off_and_nobody_waits(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fault(*arguments: object) -> None:
        raise RuntimeError("injected")

    monkeypatch.setattr(index_db.Database, "write", fault)
    with ChunkIndex(home) as index:
        index.add(*a_file(tmp_path), some_chunks(1))
        assert not index.flush(30)
        assert index.off is not None
        assert "unexpected RuntimeError: injected" in index.off.message
    assert len(warnings(caplog)) == 1


def test_a_look_up_that_has_to_wait_too_long_finds_nothing_and_says_so_once(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def busy(*arguments: object) -> None:
        raise index_file.IndexBusyError("injected")

    chunks = a_full_one(home, tmp_path)
    with ChunkIndex(home) as index:
        with monkeypatch.context() as patched:
            patched.setattr(index_db.Database, "lookup", busy)
            assert index.lookup(hashes_of(chunks)) == {}
            assert index.lookup(hashes_of(chunks)) == {}
        assert len(warnings(caplog)) == 1
        assert index.off is None
        assert len(index.lookup(hashes_of(chunks))) == 3000


def test_one_of_a_newer_version_is_left_alone(home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    chunks = a_full_one(home, tmp_path)
    with sqlite3.connect(home / FILE) as sql:
        sql.execute("PRAGMA user_version = 2")
    sql.close()
    before = (home / FILE).read_bytes()
    with ChunkIndex(home) as index:
        assert index.off is not None
        assert "newer headrace" in index.off.message
        assert index.off.exit_code == 8
        assert index.lookup(hashes_of(chunks)) == {}
        assert not index.add(*a_file(tmp_path), chunks)
        assert not index.flush()

    assert (home / FILE).read_bytes() == before
    assert len(warnings(caplog)) == 1


# ---- a disk that does not take it ------------------------------------------------------------------------------------


def test_a_full_disk_turns_it_off(small_disk: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = OFF.counts().get("full", 0)
    with ChunkIndex(small_disk / "home") as index:
        with (small_disk / "fill").open("wb", buffering=0) as file:
            while True:
                try:
                    file.write(bytes(65536))
                except OSError:
                    break
        chunks = some_chunks(5000)
        assert index.add(*a_file(tmp_path), chunks)
        assert not index.flush()
        assert index.off is not None
        assert "no space left" in index.off.message
        assert index.lookup(hashes_of(chunks)) == {}

    assert len(warnings(caplog)) == 1
    assert OFF.counts()["full"] == before + 1


def test_a_read_only_home_turns_it_off(small_disk: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    chunks = a_full_one(small_disk / "home", tmp_path)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with ChunkIndex(small_disk / "home") as index:
        assert index.off is not None
        assert "cannot be written" in index.off.message
        assert index.lookup(hashes_of(chunks)) == {}
        assert not index.add(*a_file(tmp_path), chunks)

    assert len(warnings(caplog)) == 1


def test_a_home_that_is_a_file_turns_it_off(home: Path) -> None:
    home.write_text("")
    with ChunkIndex(home) as index:
        assert index.off is not None


def test_a_lock_that_somebody_holds_turns_it_off(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_file, "_LOCK_SECONDS", 0.05)
    with index_file._locked(home), ChunkIndex(home) as index:
        assert index.off is not None
        assert "another process" in index.off.message


def test_while_another_process_writes_reading_goes_on_and_additions_wait(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_file, "_BUSY_SECONDS", 0.02)
    chunks = a_full_one(home, tmp_path)
    more = some_chunks(10)
    other = sqlite3.connect(home / FILE, isolation_level=None)
    with ChunkIndex(home) as index:
        other.execute("BEGIN IMMEDIATE")
        index.add(*a_file(tmp_path, "b"), more)
        assert not index.flush(0.3)
        assert len(index.lookup(hashes_of(chunks))) == 3000
        other.execute("COMMIT")
        assert index.flush()
        assert len(index.lookup(hashes_of(more))) == 10
    other.close()


def test_closing_does_not_wait_for_another_process_for_ever(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_file, "_BUSY_SECONDS", 0.02)
    monkeypatch.setattr("headrace.storage.index.CLOSE_SECONDS", 0.2)
    a_full_one(home, tmp_path)
    other = sqlite3.connect(home / FILE, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    index = ChunkIndex(home)
    index.add(*a_file(tmp_path, "b"), some_chunks(10))
    started = time.monotonic()
    index.close()
    assert time.monotonic() - started < 10
    other.close()
    if index._writer._thread:  # it may still be at it, and what is sound is counted in two steps
        index._writer._thread.join(30)
    assert sound(home) > 0


def test_nobody_else_may_read_it(home: Path, tmp_path: Path) -> None:
    """It names files."""
    with ChunkIndex(home) as index:
        fill(index, tmp_path, "a", some_chunks(10))
        for name in os.listdir(home):
            assert not (home / name).stat().st_mode & 0o077, name
    assert not home.stat().st_mode & 0o077


def test_a_closed_index_finds_nothing_and_takes_nothing(home: Path, tmp_path: Path) -> None:
    index = ChunkIndex(home)
    chunks = some_chunks(1)
    fill(index, tmp_path, "a", chunks)
    index.close()
    index.close()

    assert index.lookup(hashes_of(chunks)) == {}
    assert not index.add(*a_file(tmp_path), chunks)
