"""Whole ranges, holes, and the system calls that Python lacks."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.storage import libc
from headrace.storage.rawio import BLOCK, pwrite_all, stamp, write_sparse, write_zeros, zero_runs


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


blocks = st.lists(
    st.sampled_from([bytes(BLOCK), b"x" * BLOCK, bytes(BLOCK - 1) + b"x", b"\0x" * (BLOCK // 2)]), max_size=6
)


@given(blocks=blocks, head=st.binary(max_size=50), tail=st.integers(0, 50), offset=st.integers(0, 3 * BLOCK))
def test_runs_cover_the_data_and_tell_the_truth(blocks: list[bytes], head: bytes, tail: int, offset: int) -> None:
    data = head + b"".join(blocks) + bytes(tail)
    end = 0
    for start, stop, is_zero in zero_runs(memoryview(data), offset):
        assert start == end < stop
        end = stop
        if is_zero:
            assert not any(data[start:stop]) and (offset + start) % BLOCK == (offset + stop) % BLOCK == 0
    assert end == len(data)


@settings(max_examples=60, deadline=None)
@given(first=blocks, second=blocks, offset=st.integers(0, 2 * BLOCK))
def test_writing_sparsely_twice_is_writing_twice(
    tmp_path_factory: pytest.TempPathFactory, first: list[bytes], second: list[bytes], offset: int
) -> None:
    path = tmp_path_factory.mktemp("sparse") / "file"
    expected = bytearray(10 * BLOCK)
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, len(expected))
    for content in (b"".join(first), b"".join(second)):
        write_sparse(fd, memoryview(content), offset)
        expected[offset : offset + len(content)] = content
        assert path.read_bytes() == expected
    os.close(fd)


def test_zeros_over_data_and_holes(fd: int) -> None:
    os.ftruncate(fd, 1 << 20)
    pwrite_all(fd, b"x" * 100, 500_000)
    write_zeros(fd, 0, 400_000)
    write_zeros(fd, 500_050, 100_000)
    assert os.pread(fd, 1 << 20, 0) == bytes(500_000) + b"x" * 50 + bytes((1 << 20) - 500_050)
    assert os.fstat(fd).st_blocks * 512 < 1 << 18


def test_zeros_where_holes_cannot_be_asked_for(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")

    pwrite_all(fd, b"x" * 1_000_000, 0)
    monkeypatch.setattr(os, "lseek", refuse)
    write_zeros(fd, 10, 999_980)
    assert os.pread(fd, 1_000_000, 0) == b"x" * 10 + bytes(999_980) + b"x" * 10


def test_short_writes_are_continued(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: real(fd, bytes(data)[:7], offset))
    pwrite_all(fd, bytes(range(100)), 3)
    assert os.pread(fd, 200, 3) == bytes(range(100))


def test_a_stamp_never_sets_more_than_permissions(fd: int) -> None:
    stamp(fd, 0o7640, 1_234_567_890_123_456_789)
    st = os.fstat(fd)
    assert (st.st_mode & 0o7777, st.st_mtime_ns) == (0o640, 1_234_567_890_123_456_789)
    for odd in (-1, 0, -(1 << 63), (1 << 63) - 1):
        stamp(fd, 0o600, odd)


def test_a_file_system_without_modes_and_times(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "fchmod", refuse)
    monkeypatch.setattr(os, "utime", refuse)
    stamp(fd, 0o644, 5)


@pytest.mark.parametrize("lacking", ["nothing", "renameat2", "the file system's support", "links too"])
def test_renaming_without_replacing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacking: str) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    if lacking == "renameat2":
        monkeypatch.setattr(libc, "_renameat2", None)
    elif lacking != "nothing":
        monkeypatch.setattr(libc, "_call", lambda *_: errno.EINVAL)
    if lacking == "links too":
        monkeypatch.setattr(os, "link", refuse)
    folder = os.open(tmp_path, os.O_RDONLY)
    (tmp_path / "old").write_text("old")
    (tmp_path / "taken").write_text("taken")
    with pytest.raises(FileExistsError):
        libc.rename_noreplace(folder, b"old", b"taken")
    assert (tmp_path / "taken").read_text() == "taken" and (tmp_path / "old").exists()
    libc.rename_noreplace(folder, b"old", b"new")
    assert (tmp_path / "new").read_text() == "old" and not (tmp_path / "old").exists()
    with pytest.raises(FileNotFoundError):
        libc.rename_noreplace(folder, b"old", b"newer")
    os.close(folder)


def test_reserving(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if not libc.preallocate(fd, 1 << 20, 1 << 20):
        pytest.skip("this file system cannot reserve space")
    st = os.fstat(fd)
    assert (1 << 20) <= st.st_blocks * 512 < 1 << 21 and st.st_size == 1 << 21
    assert not libc.preallocate(fd, 0, 0)
    monkeypatch.setattr(libc, "_call", lambda *_: errno.EOPNOTSUPP)
    assert not libc.preallocate(fd, 0, 1 << 20)
    monkeypatch.setattr(libc, "_call", lambda *_: errno.ENOSPC)
    with pytest.raises(OSError, match="No space"):
        libc.preallocate(fd, 0, 1 << 20)


def test_signals_do_not_end_a_system_call(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [errno.EINTR, errno.EINTR, 0]
    monkeypatch.setattr(ctypes, "get_errno", lambda: errno.EINTR)
    assert libc._call(lambda: answers.pop(0)) == 0
