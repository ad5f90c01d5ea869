"""Chunks taken from this disk: cloned or copied, and never a wrong byte under a hash."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from headrace.protocol.messages import CHUNK_SIZE
from headrace.storage.chunks import hash_bytes
from headrace.storage.clone import Copied, Copier
from headrace.storage.index import ChunkIndex
from headrace.storage.index_places import Facts, IndexedFile, Place

MIB = 1024 * 1024
SIZE = 2 * CHUNK_SIZE + 12345
LAST = SIZE - 2 * CHUNK_SIZE


def no(number: int) -> Callable[..., int]:
    """A system call that fails."""

    def call(*arguments: int) -> int:
        raise OSError(number, os.strerror(number))

    return call


NO_CLONE = no(errno.EOPNOTSUPP)


def place_of(path: Path | bytes, offset: int, length: int, content: bytes | None = None) -> Place:
    """As the index has it for the file as it is now."""
    path = os.fsencode(path)
    if content is None:
        with open(path, "rb") as file:
            file.seek(offset)
            content = file.read(length)
    return Place(IndexedFile(1, path, Facts.of(os.stat(path)), True), offset, length, hash_bytes(content))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two chunks and a bit. Its times are in the past, so a change shows."""
    path = tmp_path / "source"
    path.write_bytes(os.urandom(SIZE))
    os.utime(path, ns=(10**18, 10**18))
    return path


@pytest.fixture
def into(tmp_path: Path) -> Iterator[int]:
    """A part file of the size of the source, full of ones."""
    fd = os.open(tmp_path / "part", os.O_RDWR | os.O_CREAT)
    os.pwrite(fd, b"\xff" * SIZE, 0)
    yield fd
    os.close(fd)


def content(path: Path) -> bytes:
    return path.read_bytes()


# ---- each way gives the same bytes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [0, 1, 2], ids=["first", "second", "last"])
@pytest.mark.parametrize("target", [0, CHUNK_SIZE, 777], ids=["at the start", "in the middle", "at an odd place"])
def test_a_chunk_arrives_where_it_is_wanted_and_nothing_else_changes(
    source: Path, into: int, index: int, target: int
) -> None:
    length = LAST if index == 2 else CHUNK_SIZE
    place = place_of(source, index * CHUNK_SIZE, length)
    copied = Copier().copy_from(place, into, target, length)

    assert copied.miss is None
    expected = bytearray(b"\xff" * SIZE)
    expected[target : target + length] = content(source)[index * CHUNK_SIZE : index * CHUNK_SIZE + length]
    assert os.pread(into, 2 * SIZE, 0) == expected


@pytest.mark.parametrize(
    ("number", "remembered"),
    [(errno.EXDEV, True), (errno.EOPNOTSUPP, True), (errno.ENOTTY, True), (errno.EINVAL, False), (errno.ENOSPC, False)],
)
def test_where_one_way_does_not_work_the_next_one_does_and_the_reason_is_counted(
    source: Path, into: int, number: int, remembered: bool
) -> None:
    copier = Copier(clone=no(number), copy=no(number))
    for _ in range(2):
        assert copier.copy_from(place_of(source, 0, CHUNK_SIZE), into, 0, CHUNK_SIZE) == Copied(way="copy")

    word, tries = errno.errorcode[number], 1 if remembered else 2
    assert copier.counts() == {f"reflink:{word}": tries, f"copy_file_range:{word}": tries, "copy": 2}
    assert os.pread(into, CHUNK_SIZE, 0) == content(source)[:CHUNK_SIZE]


def test_a_place_that_no_clone_can_start_at_is_not_tried(source: Path, into: int) -> None:
    copier = Copier(clone=no(errno.EIO))
    assert copier.copy_from(place_of(source, 1, CHUNK_SIZE), into, 0, CHUNK_SIZE).way
    assert copier.copy_from(place_of(source, 0, CHUNK_SIZE), into, 1, CHUNK_SIZE).way
    assert copier.copy_from(place_of(source, 0, CHUNK_SIZE - 1), into, 0, CHUNK_SIZE - 1).way

    assert copier.counts()["reflink:unaligned"] == 3
    assert "reflink:EIO" not in copier.counts()


def test_a_call_that_copies_less_than_asked_is_called_again(source: Path, into: int) -> None:
    def little(fd: int, into: int, length: int, source_offset: int, offset: int) -> int:
        return os.copy_file_range(fd, into, min(length, 100_000), source_offset, offset)

    copied = Copier(clone=NO_CLONE, copy=little).copy_from(place_of(source, 0, CHUNK_SIZE), into, 0, CHUNK_SIZE)

    assert copied.way == "copy_file_range"
    assert os.pread(into, CHUNK_SIZE, 0) == content(source)[:CHUNK_SIZE]


def test_a_call_that_fails_half_way_is_finished_by_another(source: Path, into: int) -> None:
    calls = []

    def once(fd: int, into: int, length: int, source_offset: int, offset: int) -> int:
        calls.append(offset)
        if len(calls) > 1:
            raise OSError(errno.EIO, "injected")
        return os.copy_file_range(fd, into, 4096, source_offset, offset)

    copied = Copier(clone=NO_CLONE, copy=once).copy_from(place_of(source, 0, CHUNK_SIZE), into, 0, CHUNK_SIZE)

    assert copied.way == "copy"
    assert os.pread(into, CHUNK_SIZE, 0) == content(source)[:CHUNK_SIZE]


def test_a_call_that_copies_nothing_does_not_go_on_for_ever(source: Path, into: int) -> None:
    """As on /proc, whose files have no size."""
    copied = Copier(NO_CLONE, lambda *_: 0).copy_from(place_of(source, 0, CHUNK_SIZE), into, 0, CHUNK_SIZE)

    assert copied.way == "copy"


# ---- a source that is not what it was --------------------------------------------------------------------------------


def no_longer(place: Place, into: int) -> str | None:
    """Why it was not taken; nothing was written."""
    before = os.pread(into, SIZE, 0)
    copier = Copier()
    copied = copier.copy_from(place, into, 0, place.length)
    assert copied.way is None
    assert copier.counts() == {f"miss:{copied.miss}": 1}
    assert os.pread(into, SIZE, 0) == before
    return copied.miss


def test_changed_since(source: Path, into: int) -> None:
    place = place_of(source, 0, CHUNK_SIZE)
    with source.open("r+b") as file:
        file.write(b"x")
    assert no_longer(place, into) == "changed"


def test_cut_since(source: Path, into: int) -> None:
    place = place_of(source, 0, CHUNK_SIZE)
    os.truncate(source, 100)
    os.utime(source, ns=(10**18, 10**18))
    assert no_longer(place, into) == "changed"


def test_gone_since(source: Path, into: int) -> None:
    place = place_of(source, 0, CHUNK_SIZE)
    source.unlink()
    assert no_longer(place, into) == "gone"


def test_replaced_by_a_symlink_to_the_very_same_file(source: Path, into: int) -> None:
    place = place_of(source, 0, CHUNK_SIZE)
    moved = source.rename(source.with_name("moved"))
    source.symlink_to(moved)
    assert no_longer(place, into) == "changed"


def test_replaced_by_a_symlink_in_the_last_moment(source: Path, into: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look at it and opening it."""
    place = place_of(source, 0, CHUNK_SIZE)
    real = os.open

    def swap(path: bytes, flags: int) -> int:
        if not source.is_symlink():
            source.rename(source.with_name("moved"))
            source.symlink_to("moved")
        return real(path, flags)

    monkeypatch.setattr("headrace.storage.clone.os.open", swap)
    assert no_longer(place, into) == "unreadable"


def test_replaced_by_another_file_in_the_last_moment(source: Path, into: int, monkeypatch: pytest.MonkeyPatch) -> None:
    place = place_of(source, 0, CHUNK_SIZE)
    real = os.open

    def swap(path: bytes, flags: int) -> int:
        other = source.with_name("other")
        shutil.copy2(source, other)
        other.replace(source)
        return real(path, flags)

    monkeypatch.setattr("headrace.storage.clone.os.open", swap)
    assert no_longer(place, into) == "changed"


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_replaced_by_something_that_is_no_file(source: Path, into: int, make: Callable[[Path], None]) -> None:
    place = place_of(source, 0, CHUNK_SIZE)
    source.unlink()
    make(source)
    assert no_longer(place, into) == "changed"


def test_a_folder_above_it_became_a_file(source: Path, into: int) -> None:
    folder = source.with_name("folder")
    folder.mkdir()
    place = place_of(source.rename(folder / "source"), 0, CHUNK_SIZE)
    shutil.rmtree(folder)
    folder.touch()
    assert no_longer(place, into) == "gone"


def test_unreadable(source: Path, into: int, monkeypatch: pytest.MonkeyPatch) -> None:
    place = place_of(source, 0, CHUNK_SIZE)
    monkeypatch.setattr("headrace.storage.clone.os.open", no(errno.EACCES))
    assert no_longer(place, into) == "unreadable"


def test_a_file_of_somebody_else_is_read_without_keeping_its_time(
    source: Path, into: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """O_NOATIME is for the owner."""
    real = os.open

    def open(path: bytes, flags: int) -> int:
        if flags & os.O_NOATIME:
            raise PermissionError(errno.EPERM, "injected")
        return real(path, flags)

    place = place_of(source, 0, CHUNK_SIZE)
    monkeypatch.setattr("headrace.storage.clone.os.open", open)
    assert Copier().copy_from(place, into, 0, CHUNK_SIZE).way


@pytest.mark.parametrize("length", [CHUNK_SIZE - 1, CHUNK_SIZE + 1, 0])
def test_a_place_of_another_length_would_reach_into_its_neighbours(source: Path, into: int, length: int) -> None:
    before = os.pread(into, SIZE, 0)
    copied = Copier().copy_from(place_of(source, 0, CHUNK_SIZE), into, 0, length)

    assert copied == Copied(miss="length")
    assert os.pread(into, SIZE, 0) == before


@pytest.mark.parametrize("copier", [Copier(), Copier(clone=NO_CLONE), Copier(NO_CLONE, no(errno.EXDEV))])
def test_other_bytes_with_the_same_times_are_found_out(source: Path, into: int, copier: Copier) -> None:
    """A change within one tick of the clock, or a disk that forgets."""
    place = place_of(source, 0, CHUNK_SIZE, b"something else")

    assert copier.copy_from(place, into, 0, CHUNK_SIZE) == Copied(miss="different")


@pytest.mark.parametrize("way", ["reflink", "copy_file_range"])
def test_a_change_in_the_very_moment_of_copying_is_found_out(source: Path, into: int, way: str) -> None:
    """The times of the source may be the same before and after: what counts is what arrived."""

    def tampered(fd: int, into: int, length: int, source_offset: int, offset: int) -> int:
        data = bytearray(os.pread(fd, length, source_offset))
        data[len(data) // 2] ^= 1
        return os.pwrite(into, data, offset)

    copier = Copier(clone=tampered) if way == "reflink" else Copier(NO_CLONE, tampered)
    assert copier.copy_from(place_of(source, 0, CHUNK_SIZE), into, 0, CHUNK_SIZE) == Copied(miss="different")
    assert way not in copier.counts()


def test_a_destination_that_is_full_is_an_error_and_no_miss(source: Path, small_disk: Path) -> None:
    with (small_disk / "fill").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(bytes(65536))
    fd = os.open(small_disk / "part", os.O_RDWR | os.O_CREAT)
    try:
        with pytest.raises(OSError, match="No space"):
            Copier().copy_from(place_of(source, 0, CHUNK_SIZE), fd, 0, CHUNK_SIZE)
    finally:
        os.close(fd)


def test_from_another_disk(source: Path, small_disk: Path) -> None:
    fd = os.open(small_disk / "part", os.O_RDWR | os.O_CREAT)
    try:
        copier = Copier()
        copied = copier.copy_from(place_of(source, 0, CHUNK_SIZE), fd, 0, CHUNK_SIZE)

        assert copied.way in ("copy", "copy_file_range"), "a clone needs one disk"
        assert "reflink:EXDEV" in copier.counts()
        assert os.pread(fd, CHUNK_SIZE, 0) == content(source)[:CHUNK_SIZE]
    finally:
        os.close(fd)


# ---- together with the index -----------------------------------------------------------------------------------------


def test_of_several_places_the_first_good_one_is_taken_and_the_others_are_forgotten(
    source: Path, into: int, tmp_path: Path
) -> None:
    chunk = content(source)[:CHUNK_SIZE]
    digest = hash_bytes(chunk)
    with ChunkIndex(tmp_path / "home") as index:
        for name in ("one", "two", "three"):
            path = tmp_path / name
            path.write_bytes(chunk)
            index.add(os.fsencode(path), path.stat(), [(0, CHUNK_SIZE, digest)])
        index.flush()
        places = index.lookup([digest])[digest]
        assert len(places) == 3
        with open(places[0].file.path, "r+b") as file:
            file.write(b"changed")

        assert Copier(NO_CLONE, no(errno.EXDEV)).fill(index, places, into, 0, CHUNK_SIZE)

        index.flush()
        assert places[0] not in index.lookup([digest])[digest]
        assert os.pread(into, CHUNK_SIZE, 0) == chunk
        counters = index.stats().counters
        assert (counters["stale"], counters["reused"], counters["copy"]) == (1, 1, 1)
        assert counters["bytes_saved"] == CHUNK_SIZE


def test_when_no_place_is_good_it_has_to_be_fetched(source: Path, into: int, tmp_path: Path) -> None:
    with ChunkIndex(tmp_path / "home") as index:
        place = place_of(source, 0, CHUNK_SIZE)
        source.unlink()
        assert not Copier().fill(index, [place], into, 0, CHUNK_SIZE)
        assert not Copier().fill(index, [], into, 0, CHUNK_SIZE)


# ---- a file system that clones ---------------------------------------------------------------------------------------


@pytest.fixture(params=["btrfs", "xfs"])
def cloning_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A disk of 400 MiB in a file, with a file system that can clone."""
    make = shutil.which(f"mkfs.{request.param}")
    if os.geteuid() or not make:
        pytest.skip(f"takes root and mkfs.{request.param}")
    image, disk = tmp_path / "image", tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(400 * MIB)
    disk.mkdir()
    subprocess.run([make, "-q", image], check=True, capture_output=True)
    ran = subprocess.run(["mount", "-o", "loop", image, disk], capture_output=True, text=True)
    if ran.returncode:
        pytest.skip(f"no loop mount of {request.param} here: {ran.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def free(disk: Path) -> int:
    """Bytes, after everything is written."""
    fd = os.open(disk, os.O_RDONLY)
    try:
        os.fsync(fd)
        subprocess.run(["sync", "-f", disk], check=True)
        return os.fstatvfs(fd).f_bavail * os.fstatvfs(fd).f_frsize
    finally:
        os.close(fd)


def test_a_real_clone_takes_no_space_and_has_the_right_bytes(cloning_disk: Path) -> None:
    source, part = cloning_disk / "source", cloning_disk / "part"
    data = os.urandom(8 * CHUNK_SIZE + LAST)
    source.write_bytes(data)
    fd = os.open(part, os.O_RDWR | os.O_CREAT)
    try:
        os.truncate(part, len(data))
        before = free(cloning_disk)
        copier = Copier()
        for offset in range(0, len(data), CHUNK_SIZE):
            length = min(CHUNK_SIZE, len(data) - offset)
            assert copier.copy_from(place_of(source, offset, length), fd, offset, length) == Copied(way="reflink")
        assert copier.counts() == {"reflink": 9}
        assert before - free(cloning_disk) < 4 * MIB
        assert part.read_bytes() == data

        os.pwrite(fd, b"mine", 0)
        assert source.read_bytes() == data, "a clone is a file of its own"
    finally:
        os.close(fd)


def test_a_real_clone_of_a_chunk_in_the_wrong_place_is_copied(cloning_disk: Path) -> None:
    source = cloning_disk / "source"
    source.write_bytes(os.urandom(CHUNK_SIZE + 5000))
    fd = os.open(cloning_disk / "part", os.O_RDWR | os.O_CREAT)
    try:
        copier = Copier()
        assert copier.copy_from(place_of(source, 1000, CHUNK_SIZE), fd, 0, CHUNK_SIZE).way == "copy_file_range"
        # The end of the source, in the middle of the destination: the kernel refuses half a block.
        os.pwrite(fd, b"x" * CHUNK_SIZE, CHUNK_SIZE)
        assert copier.copy_from(place_of(source, CHUNK_SIZE, 5000), fd, CHUNK_SIZE, 5000).way == "copy_file_range"
        assert copier.counts()["reflink:EINVAL"] == 1
        assert os.pread(fd, 5001, CHUNK_SIZE) == content(source)[CHUNK_SIZE:] + b"x"
    finally:
        os.close(fd)
