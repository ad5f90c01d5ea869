"""Reading a file of the share, and noticing that it is not what it was."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from headrace.errors import NotFoundError, RemoteIOError, SourceChangedError
from headrace.protocol.messages import CHUNK_SIZE
from headrace.protocol.paths import RelPath
from headrace.storage.source import SourceCache, SourceFile
from headrace.storage.tree import SharedTree

A = RelPath((b"a",))


@pytest.fixture
def tree(tmp_path: Path):
    (tmp_path / "a").write_bytes(bytes(range(256)) * 1000)
    with SharedTree.open([tmp_path]) as tree:
        yield tree


def room(size: int) -> memoryview:
    return memoryview(bytearray(size))


def test_reading_a_range(tree: SharedTree) -> None:
    with SourceFile.open(tree, A) as source:
        buffer = room(300)
        source.read_into(buffer, 100)
        assert bytes(buffer) == (bytes(range(256)) * 3)[100:400]
        source.read_into(room(0), source.size)


def test_short_reads_are_continued(tree: SharedTree, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, offset: real(fd, [buffers[0][:7]], offset))
    with SourceFile.open(tree, A) as source:
        buffer = room(1000)
        source.read_into(buffer, 0)
        assert bytes(buffer) == (bytes(range(256)) * 4)[:1000]


def test_past_the_end(tree: SharedTree) -> None:
    with SourceFile.open(tree, A) as source, pytest.raises(SourceChangedError):
        source.read_into(room(10), source.size - 5)


@pytest.mark.parametrize("change", ["append", "truncate", "rewrite", "replace"])
def test_a_change_is_noticed(tree: SharedTree, tmp_path: Path, change: str) -> None:
    path = tmp_path / "a"
    with SourceFile.open(tree, A) as source:
        source.read_into(room(10), 0)
        if change == "append":
            with open(path, "ab") as file:
                file.write(b"x")
        elif change == "truncate":
            os.truncate(path, 5)
        elif change == "rewrite":
            path.write_bytes(path.read_bytes())
            os.utime(path, ns=(1, 1))
        else:
            (tmp_path / "b").write_bytes(path.read_bytes())
            os.replace(tmp_path / "b", path)
        with pytest.raises(SourceChangedError):
            source.read_into(room(10), 0)


def test_a_faulty_disk(tree: SharedTree, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    with SourceFile.open(tree, A) as source:
        monkeypatch.setattr(os, "preadv", fail)
        with pytest.raises(RemoteIOError):
            source.read_into(room(10), 0)


def test_holes(tree: SharedTree, tmp_path: Path) -> None:
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(3 * CHUNK_SIZE)
        file.seek(CHUNK_SIZE + 100)
        file.write(b"data")
    with SourceFile.open(tree, RelPath((b"sparse",))) as source:
        assert source.sparse
        holes = [source.is_hole(index * CHUNK_SIZE, CHUNK_SIZE) for index in range(3)]
        assert holes == [True, False, True]
        assert not source.is_hole(3 * CHUNK_SIZE, CHUNK_SIZE)
        os.truncate(tmp_path / "sparse", CHUNK_SIZE)
        with pytest.raises(SourceChangedError):
            source.is_hole(2 * CHUNK_SIZE, CHUNK_SIZE)


def test_where_holes_cannot_be_asked_for(tree: SharedTree, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")

    with SourceFile.open(tree, A) as source:
        monkeypatch.setattr(os, "lseek", refuse)
        assert not source.is_hole(0, 100)


def test_the_cache_keeps_files_open(tree: SharedTree) -> None:
    with SourceCache(tree) as cache:
        source = cache.get(A)
        assert cache.get(A) is source and cache.get(A, source.version) is source


def test_the_cache_knows_versions(tree: SharedTree, tmp_path: Path) -> None:
    with SourceCache(tree) as cache:
        old = cache.get(A)
        (tmp_path / "a").write_bytes(b"new content")
        os.utime(tmp_path / "a", ns=(5, 5))
        new = cache.get(A)
        assert new is not old and new.size == 11
        with pytest.raises(SourceChangedError):
            cache.get(A, b"\0" * 16)
        with pytest.raises(SourceChangedError):
            cache.get(A, old.version).read_into(room(5), 0)
        with pytest.raises(NotFoundError):
            cache.get(RelPath((b"missing",)))


def test_the_cache_is_bounded_and_leaves_nothing_open(tree: SharedTree, tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with SourceCache(tree, limit=4) as cache:
        for number in range(20):
            (tmp_path / str(number)).write_bytes(b"x")
            cache.get(RelPath((b"%d" % number,)))
            assert len(os.listdir("/proc/self/fd")) <= before + 4
    assert len(os.listdir("/proc/self/fd")) == before
