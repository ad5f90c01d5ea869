"""What a transfer asks of the disk to take chunks from it: ranges filled by others, finished files, similar ones."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from headrace.errors import LocalDiskError
from headrace.protocol.messages import CHUNK_SIZE
from headrace.storage.index import ChunkIndex

from .parts import CONTENT, PART, SIZE, blocks_of, fill, finish, hash_of, opened


def test_a_chunk_that_somebody_else_writes(folder: int, tmp_path: Path) -> None:
    partial = opened(folder)
    piece = CONTENT[CHUNK_SIZE : 2 * CHUNK_SIZE]
    assert partial.fill(CHUNK_SIZE, CHUNK_SIZE, lambda fd: os.pwrite(fd, piece, CHUNK_SIZE) == CHUNK_SIZE)
    assert partial.verified == set(), "whether it is right is for whoever commits it"
    partial.commit(1, hash_of(1))
    assert partial.fill(CHUNK_SIZE, CHUNK_SIZE, lambda fd: pytest.fail("it is there")) is True
    fill(partial, 0, 2, 3)
    finish(partial)
    assert (tmp_path / "a.mov").read_bytes() == CONTENT


def test_a_chunk_that_somebody_else_cannot_write(folder: int, tmp_path: Path) -> None:
    partial = opened(folder)
    assert not partial.fill(0, CHUNK_SIZE, lambda fd: os.pwrite(fd, b"half", 0) == CHUNK_SIZE)
    fill(partial, 0, 1, 2, 3)  # what is undefined is written over
    finish(partial)
    assert (tmp_path / "a.mov").read_bytes() == CONTENT


def test_where_nothing_may_be_filled(folder: int) -> None:
    partial = opened(folder)
    for offset, length in ((SIZE, 1), (-1, 1), (CHUNK_SIZE - 1, 2)):
        with pytest.raises(ValueError, match="a write"):
            partial.fill(offset, length, lambda fd: pytest.fail("outside"))

    def full(fd: int) -> bool:
        raise OSError(errno.ENOSPC, "full")

    with pytest.raises(LocalDiskError, match="no space left"):
        partial.fill(0, CHUNK_SIZE, full)
    partial.close()


def test_a_copy_into_a_sparse_file_leaves_holes(folder: int, tmp_path: Path) -> None:
    partial = opened(folder, sparse=True)
    island = CONTENT[:5000]

    def dense(fd: int) -> bool:
        os.pwrite(fd, bytes(CHUNK_SIZE), 0)
        return os.pwrite(fd, island, 100_000) == len(island)

    assert partial.fill(0, CHUNK_SIZE, dense)
    assert blocks_of(tmp_path / PART) <= 16 * 1024
    with (tmp_path / PART).open("rb") as file:
        assert file.read(CHUNK_SIZE) == bytes(100_000) + island + bytes(CHUNK_SIZE - 105_000)
    partial.close()


def test_what_arrives_is_told_once_and_on_request(folder: int) -> None:
    partial = opened(folder)
    fill(partial, 0)
    assert partial.arrivals(more=True) == []
    fill(partial, 1, 2, 1)
    assert partial.arrivals(more=False) == [hash_of(1), hash_of(2)]
    fill(partial, 3)
    assert partial.arrivals(more=True) == []
    partial.close()


def test_a_finished_file_says_what_it_is_and_has(folder: int, tmp_path: Path) -> None:
    """As it is under its name: renaming changes the ctime, and the index goes by that."""
    partial = opened(folder)
    fill(partial, 2, 0)
    partial.close()
    partial = opened(folder)  # the other chunks were there before
    fill(partial, 1, 3)
    st = partial.finish(mode=0o640, mtime_ns=5, replace=False)
    assert st == os.stat(tmp_path / "a.mov")
    chunks = sorted(partial.chunks())
    assert [(offset, length) for offset, length, _ in chunks] == [
        (index * CHUNK_SIZE, min(CHUNK_SIZE, SIZE - index * CHUNK_SIZE)) for index in range(4)
    ]
    assert [digest for _, _, digest in chunks] == [hash_of(index) for index in range(4)]


# ---- the index: files that may be the same -----------------------------------------------------------------------


def a_file(folder: Path, name: str, size: int, mtime_ns: int) -> tuple[bytes, os.stat_result]:
    path = folder / name
    with path.open("wb") as file:
        file.truncate(size)
    os.utime(path, ns=(mtime_ns, mtime_ns))
    return os.fsencode(path), path.stat()


def test_files_of_a_size_those_of_the_same_time_first(tmp_path: Path) -> None:
    size = 2 * CHUNK_SIZE
    with ChunkIndex(tmp_path / "home") as index:
        assert index.similar(size, 5) == []
        assert not index.has_large_files()
        index.add(*a_file(tmp_path, "small", CHUNK_SIZE, 5), [(0, CHUNK_SIZE, os.urandom(32))])
        assert index.flush()
        assert not index.has_large_files(), "one of one chunk is not looked for"
        for number in range(20):
            index.add(*a_file(tmp_path, f"{number}", size, number), [(0, CHUNK_SIZE, os.urandom(32))])
        index.add(*a_file(tmp_path, "other", size + 1, 17), [(0, CHUNK_SIZE, os.urandom(32))])
        assert index.flush()
        assert index.has_large_files()
        found = index.similar(size, 17)
        assert found[0].path == os.fsencode(tmp_path / "17")
        assert {file.facts.size for file in found} == {size}
        assert 1 < len(found) < 20, "not all of them: there may be many"
        assert index.similar(size + 2, 17) == []


def test_the_last_piece_of_a_large_file_counts_however_short(tmp_path: Path) -> None:
    digest = os.urandom(32)
    with ChunkIndex(tmp_path / "home") as index:
        index.add(*a_file(tmp_path, "a", CHUNK_SIZE + 1, 5), [(CHUNK_SIZE, 1, digest)])
        assert index.flush()
        assert index.lookup([digest])


def test_an_index_of_before_is_asked_as_well(tmp_path: Path) -> None:
    """What finds files by size is made where it is missing."""
    import sqlite3

    size = 2 * CHUNK_SIZE
    with ChunkIndex(tmp_path) as index:
        index.add(*a_file(tmp_path, "a", size, 5), [(0, CHUNK_SIZE, os.urandom(32))])
        assert index.flush()
    sql = sqlite3.connect(tmp_path / "index.db")
    sql.execute("DROP INDEX files_size")
    sql.close()
    with ChunkIndex(tmp_path) as index:
        assert len(index.similar(size, 5)) == 1
        with index.database() as database:
            plan = database._sql.execute(
                f"EXPLAIN QUERY PLAN SELECT 1 FROM files WHERE size = ? AND size > {CHUNK_SIZE} AND mtime_ns = ?",
                (size, 5),
            ).fetchall()
    assert "files_size" in str(plan)
