"""Adding local folders to the chunk index, and looking after what is in it."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.errors import HeadraceError, LocalDiskError
from headrace.protocol.messages import CHUNK_SIZE
from headrace.storage import index_check, index_seed
from headrace.storage.chunks import hash_bytes
from headrace.storage.index import MIN_LENGTH, ChunkIndex
from headrace.storage.index_check import Checked, gc, verify
from headrace.storage.index_file import DAMAGED, FILE
from headrace.storage.index_seed import Seeded, Seeder

Failures = list[tuple[bytes, str]]


@pytest.fixture
def index(tmp_path: Path) -> Iterator[ChunkIndex]:
    with ChunkIndex(tmp_path / "home") as index:
        yield index


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A file of several chunks, two small ones below, and what is not to be added."""
    tree = tmp_path / "tree"
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "large").write_bytes(os.urandom(3 * CHUNK_SIZE + 10_000))
    (tree / "a" / "small").write_bytes(os.urandom(MIN_LENGTH + 1))
    with open(os.fsencode(tree / "a" / "b") + b"/caf\xe9", "wb") as file:
        file.write(os.urandom(5000))
    (tree / "tiny").write_bytes(b"x" * MIN_LENGTH)
    (tree / "empty").touch()
    (tree / ".movie.headrace-part").write_bytes(os.urandom(9000))
    os.mkfifo(tree / "pipe")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(os.urandom(9000))
    (tree / "link").symlink_to(outside / "secret")
    (tree / "folder-link").symlink_to(outside)
    return tree


def seed(index: ChunkIndex, *paths: Path, threads: int = 3) -> tuple[Seeded, Failures]:
    failures: Failures = []

    def failed(path: bytes, why: HeadraceError) -> None:
        failures.append((path, why.message))

    return Seeder(index, failed, threads).run([os.fsencode(path) for path in paths]), failures


def chunks_of(path: Path | bytes) -> list[bytes]:
    with open(path, "rb") as file:
        return [hash_bytes(chunk) for chunk in iter(lambda: file.read(CHUNK_SIZE), b"")]


def known(index: ChunkIndex, path: Path | bytes) -> bool:
    """Whether each chunk of it is found at its place."""
    hashes = chunks_of(path)
    found = index.lookup(hashes)
    places = [(place.file.path, place.offset) for digest in hashes for place in found.get(digest, [])]
    return places == [(os.fsencode(path), number * CHUNK_SIZE) for number in range(len(hashes))]


# ---- adding ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 4])
def test_a_folder_s_files_are_found_and_nothing_else(index: ChunkIndex, tree: Path, threads: int) -> None:
    done, failures = seed(index, tree, threads=threads)

    assert failures == []
    size = 3 * CHUNK_SIZE + 10_000 + MIN_LENGTH + 1 + 5000
    assert done == Seeded(files=3, bytes=size, added=3, hashed=size)
    assert known(index, tree / "large")
    assert known(index, tree / "a" / "small")
    assert known(index, os.fsencode(tree) + b"/a/b/caf\xe9")
    assert index.stats().files == 3, "no symlink, no pipe, nothing in flight, nothing too small"


def test_a_file_can_be_named_itself(index: ChunkIndex, tree: Path) -> None:
    seed(index, tree / "large")

    assert known(index, tree / "large")
    assert index.stats().files == 1


def test_what_is_known_and_did_not_change_is_not_read_again(
    index: ChunkIndex, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed(index, tree)
    (tree / "large").write_bytes(os.urandom(CHUNK_SIZE))
    os.utime(tree / "large", ns=(1, 1))
    done, _ = seed(index, tree)

    assert (done.added, done.known, done.hashed) == (1, 2, CHUNK_SIZE)
    assert known(index, tree / "large")
    monkeypatch.setattr(index_seed, "hash_bytes", None)
    assert seed(index, tree)[0].known == 3


def test_what_cannot_be_read_is_told_and_the_rest_is_added(
    index: ChunkIndex, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By name: for root, permissions are none."""
    real_open, real_scan = os.open, os.scandir

    def open(path: bytes | Path, flags: int, mode: int = 0o777) -> int:
        if os.fsencode(path).endswith(b"small"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return real_open(path, flags, mode)

    def scandir(path: bytes) -> object:
        if path.endswith(b"/b"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return real_scan(path)

    monkeypatch.setattr("headrace.storage.index_seed.os.open", open)
    monkeypatch.setattr("headrace.storage.index_seed.os.scandir", scandir)
    done, failures = seed(index, tree)

    assert (done.added, done.failed) == (1, 2)
    assert {os.path.basename(path) for path, _ in failures} == {b"small", b"b"}
    assert all("cannot be read (Permission denied)" in message for _, message in failures)


@pytest.mark.parametrize("change", ["written", "cut"])
def test_a_file_that_changes_while_it_is_read_is_not_added(
    index: ChunkIndex, tree: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    real, once = hash_bytes, threading.Lock()

    def hash_and_change(data: memoryview) -> bytes:
        if len(data) == CHUNK_SIZE and once.acquire(blocking=False):
            if change == "cut":
                os.truncate(tree / "large", CHUNK_SIZE)
            os.utime(tree / "large", ns=(1, 1))
        return real(data)

    monkeypatch.setattr(index_seed, "hash_bytes", hash_and_change)
    done, failures = seed(index, tree)

    assert (done.added, done.failed) == (2, 1)
    assert failures[0][0].endswith(b"large")
    assert "changed while" in failures[0][1]
    assert index.stats().files == 2


def test_holes_are_not_read(index: ChunkIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "disk-image"
    data = os.urandom(CHUNK_SIZE)
    with path.open("wb") as file:
        file.seek(50 * CHUNK_SIZE)
        file.write(data)
        file.truncate(100 * CHUNK_SIZE)
    done, _ = seed(index, path)

    assert index.stats().entries == 1
    assert done.hashed == CHUNK_SIZE
    assert index.lookup([hash_bytes(data)])[hash_bytes(data)][0].offset == 50 * CHUNK_SIZE
    assert seed(index, path)[0].known == 1


def test_cancelling_ends_it_and_leaves_no_descriptor(
    index: ChunkIndex, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_before = len(os.listdir("/proc/self/fd"))
    seeder = Seeder(index, lambda path, why: None, 2)
    real = hash_bytes

    def hash_and_cancel(data: memoryview) -> bytes:
        seeder.cancel()
        return real(data)

    monkeypatch.setattr(index_seed, "hash_bytes", hash_and_cancel)
    done = seeder.run([os.fsencode(tree)])

    assert done.added <= 2
    assert index.stats().files == done.added
    assert len(os.listdir("/proc/self/fd")) <= open_before + 2, "what is more is the index's own"


def test_an_index_that_is_off_ends_it(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "home").write_text("no folder")
    with ChunkIndex(tmp_path / "home") as index, pytest.raises(LocalDiskError, match="chunk index is off"):
        seed(index, tree)


def test_more_than_the_queue_holds_is_waited_for(
    index: ChunkIndex, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.storage.index_writer.MAX_QUEUED", 2)
    for number in range(40):
        (tree / f"more{number}").write_bytes(os.urandom(5000))
    done, failures = seed(index, tree)

    assert failures == []
    assert done.added == 43
    assert index.stats().files == 43


# ---- verify and gc ---------------------------------------------------------------------------------------------------


def check(index: ChunkIndex, *, read: bool = False) -> Checked:
    seen: list[int] = []
    checked = verify(index, read=read, stop=lambda: False, moved=lambda checked: seen.append(checked.files))
    assert seen == list(range(1, checked.files + 1))
    return checked


def test_an_index_that_is_right(index: ChunkIndex, tree: Path) -> None:
    seed(index, tree)

    assert check(index) == Checked(files=3)
    assert check(index, read=True) == Checked(files=3, chunks=6, read=seed(index, tree)[0].bytes)
    assert index.stats().files == 3


@pytest.mark.parametrize("look", [check, lambda index: gc(index, stop=lambda: False, moved=lambda checked: None)])
def test_files_that_changed_or_are_gone_are_forgotten(index: ChunkIndex, tree: Path, look) -> None:
    seed(index, tree)
    (tree / "large").unlink()
    (tree / "a" / "small").unlink()
    (tree / "a" / "small").symlink_to(tree / "tiny")

    checked = look(index)

    assert (checked.files, checked.stale, checked.unreadable, checked.different) == (3, 2, 0, [])
    assert index.stats().files == 1
    assert index.stats().entries == 1


def test_more_files_than_are_read_at_once(index: ChunkIndex, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_check, "_FILES", 2)
    for number in range(7):
        (tree / f"more{number}").write_bytes(os.urandom(5000))
    seed(index, tree)
    (tree / "more3").unlink()

    assert check(index) == Checked(files=10, stale=1)
    assert check(index) == Checked(files=9)


def test_bytes_that_changed_without_a_sign_are_found_by_reading(index: ChunkIndex, tree: Path) -> None:
    """As on a failing disk. The index is told the times that the file has after the change."""
    path = tree / "large"
    data = path.read_bytes()
    rows = [
        (offset, min(CHUNK_SIZE, len(data) - offset), hash_bytes(data[offset : offset + CHUNK_SIZE]))
        for offset in range(0, len(data), CHUNK_SIZE)
    ]
    with path.open("r+b") as file:
        file.seek(2 * CHUNK_SIZE + 17)
        file.write(bytes([data[2 * CHUNK_SIZE + 17] ^ 1]))
    index.add(os.fsencode(path), path.stat(), rows, whole=True)

    assert check(index) == Checked(files=1), "only reading shows it"
    checked = check(index, read=True)
    assert checked.different == [os.fsencode(path)]
    assert checked.stale == 0
    assert index.stats().files == 0


def test_a_file_that_cannot_be_read_stays(index: ChunkIndex, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its disk may be back tomorrow, or its permissions."""
    seed(index, tree)

    def fail(*arguments: object) -> int:
        raise OSError(errno.EIO, "injected")

    monkeypatch.setattr(index_check, "pread_all", fail)
    assert check(index, read=True).unreadable == 3
    assert index.stats().files == 3


def test_a_damaged_database_is_told(index: ChunkIndex, tree: Path, tmp_path: Path) -> None:
    seed(index, tree)
    with index.database() as database:
        database._sql.execute("DELETE FROM files")
    with pytest.raises(LocalDiskError, match="damaged"):
        check(index)

    assert (tmp_path / "home" / DAMAGED).exists()
    assert check(index) == Checked()


def test_gc_gives_the_space_back_and_deletes_what_was_damaged(tree: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    with ChunkIndex(home) as index:
        path = os.fsencode(tree / "large")
        rows = [(0, 5000, os.urandom(32)) for _ in range(20_000)]
        index.add(path, os.stat(path), rows)
        index.flush()
        before = index.stats().disk
        (home / DAMAGED).write_bytes(b"x")
        (tree / "large").unlink()
        gc(index, stop=lambda: False, moved=lambda checked: None)

        assert index.stats().disk < before / 10
        assert not (home / DAMAGED).exists()
        assert (home / FILE).exists()


def test_gc_brings_a_larger_index_down_to_a_smaller_bound(tree: Path, tmp_path: Path) -> None:
    path = os.fsencode(tree / "large")
    with ChunkIndex(tmp_path / "home") as index:
        index.add(path, os.stat(path), [(0, 5000, os.urandom(32)) for _ in range(500)])
    with ChunkIndex(tmp_path / "home", max_entries=100) as index:
        gc(index, stop=lambda: False, moved=lambda checked: None)
        assert index.stats().entries == 95


def test_stopping_ends_both_soon(index: ChunkIndex, tree: Path) -> None:
    seed(index, tree)

    assert verify(index, read=True, stop=lambda: True, moved=lambda checked: None) == Checked()
    assert gc(index, stop=lambda: True, moved=lambda checked: None) == Checked()
