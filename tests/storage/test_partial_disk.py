"""Files in flight and the disk: holes, small files, and a disk that is full."""

from __future__ import annotations

import errno
import os
import stat
import threading
from pathlib import Path

import pytest

from headrace.errors import DestinationExistsError, LocalDiskError
from headrace.protocol.messages import CHUNK_SIZE
from headrace.storage import libc
from headrace.storage.chunks import ZERO_HASH, chunk_count
from headrace.storage.partial import forget_leftover

from .parts import CONTENT, JOURNAL, NAME, PART, SIZE, blocks_of, fill, finish, hash_of, opened, small

# ---- sparse files ------------------------------------------------------------------------------------------------


def test_sparse_stays_sparse(folder: int, tmp_path: Path) -> None:
    content = bytearray(SIZE)
    content[CHUNK_SIZE + 50_000 : CHUNK_SIZE + 50_010] = b"0123456789"
    partial = opened(folder, sparse=True)
    assert blocks_of(tmp_path / PART) < 64 * 1024
    partial.write_zeros(0, CHUNK_SIZE)
    partial.commit(0, ZERO_HASH(CHUNK_SIZE))
    fill(partial, 1, 2, 3, content=bytes(content))
    finish(partial)
    assert (tmp_path / "a.mov").read_bytes() == content and blocks_of(tmp_path / "a.mov") < 64 * 1024


def test_what_is_not_sparse_is_reserved_ahead_of_writing(folder: int, tmp_path: Path) -> None:
    partial = opened(folder)
    partial.write(0, b"x")
    if blocks_of(tmp_path / PART) < CHUNK_SIZE:
        pytest.skip("this file system cannot reserve space")
    partial.discard()


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("how", ["write", "write_zeros"])
def test_zeros_over_bytes_of_a_first_attempt(folder: int, tmp_path: Path, sparse: bool, how: str) -> None:
    partial = opened(folder, sparse=sparse)
    partial.write(0, b"wrong" * 100_000)  # a first attempt that did not match its hash
    partial.close()
    partial = opened(folder, sparse=sparse)
    if how == "write":
        for offset in range(0, CHUNK_SIZE, CHUNK_SIZE // 4):  # in pieces, as it comes from the network
            partial.write(offset, memoryview(bytes(CHUNK_SIZE // 4)))
    else:
        partial.write_zeros(0, CHUNK_SIZE)
    partial.commit(0, ZERO_HASH(CHUNK_SIZE))
    fill(partial, 1, 2, 3)
    finish(partial)
    assert (tmp_path / "a.mov").read_bytes() == bytes(CHUNK_SIZE) + CONTENT[CHUNK_SIZE:]


def test_several_threads(folder: int, tmp_path: Path) -> None:
    content = os.urandom(12 * CHUNK_SIZE - 77)
    partial = opened(folder, size=len(content), sparse=True)
    indexes = list(range(chunk_count(len(content))))
    threads = [
        threading.Thread(target=fill, args=(partial, *indexes[n::3]), kwargs={"content": content}) for n in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    partial.close()
    partial = opened(folder, size=len(content), sparse=True)
    assert partial.complete
    finish(partial)
    assert (tmp_path / "a.mov").read_bytes() == content


# ---- small files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sparse", [True, False])
def test_small_files(folder: int, tmp_path: Path, sparse: bool) -> None:
    data = b"x" + bytes(100_000) + b"y"
    small(folder, data, sparse=sparse)
    st = (tmp_path / "a.mov").stat()
    assert (tmp_path / "a.mov").read_bytes() == data and os.listdir(tmp_path) == ["a.mov"]
    assert (stat.S_IMODE(st.st_mode), st.st_mtime_ns) == (0o644, 7_000_000_000)
    assert not sparse or blocks_of(tmp_path / "a.mov") < 65536
    small(folder, b"")
    assert (tmp_path / "a.mov").read_bytes() == b""
    with pytest.raises(DestinationExistsError):
        small(folder, b"new", replace=False)
    assert (tmp_path / "a.mov").read_bytes() == b"" and os.listdir(tmp_path) == ["a.mov"]


def test_a_small_file_over_leftovers(folder: int, tmp_path: Path) -> None:
    (tmp_path / PART).write_bytes(b"longer than what comes now")
    (tmp_path / JOURNAL).write_bytes(b"journal")
    small(folder, b"now")
    assert (tmp_path / "a.mov").read_bytes() == b"now" and os.listdir(tmp_path) == ["a.mov"]


def test_forgetting(folder: int, tmp_path: Path) -> None:
    forget_leftover(folder, NAME)
    partial = opened(folder)
    partial.close()
    forget_leftover(folder, NAME)
    (tmp_path / JOURNAL).touch()
    forget_leftover(folder, NAME)
    assert os.listdir(tmp_path) == []


# ---- a disk that fails -------------------------------------------------------------------------------------------


def no_space(*_: object, **__: object) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_no_space_for_a_small_file_leaves_nothing(folder: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pwrite", no_space)
    with pytest.raises(LocalDiskError, match="no space left"):
        small(folder, b"x")
    assert os.listdir(tmp_path) == []


def test_no_space_keeps_what_is_there(folder: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(os.listdir("/proc/self/fd"))
    partial = opened(folder, sparse=True)
    fill(partial, 0)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", no_space)
        with pytest.raises(LocalDiskError, match="no space left"):
            partial.write(CHUNK_SIZE, b"x")
        with pytest.raises(LocalDiskError, match="no space left"):
            partial.commit(1, hash_of(1))
    assert partial.verified == {0}
    fill(partial, 1)  # somebody made room
    partial.close()
    with monkeypatch.context() as patch:
        patch.setattr(libc, "_call", lambda *_: errno.ENOSPC)
        with pytest.raises(LocalDiskError, match="no space left") as caught:
            partial = opened(folder)
            try:
                partial.write(2 * CHUNK_SIZE, b"x")
            finally:
                partial.close()
    assert "Free some space" in caught.value.hint and len(os.listdir("/proc/self/fd")) == before
    partial = opened(folder)
    assert partial.verified == {0, 1}
    partial.discard()


def test_a_disk_that_is_really_full(small_disk: Path) -> None:
    folder = os.open(small_disk, os.O_RDONLY)
    size = 12 * CHUNK_SIZE  # the disk has room for five chunks
    with pytest.raises(LocalDiskError, match="no space left"):
        opened(folder, size=size)
    assert sorted(os.listdir(small_disk)) == [JOURNAL, PART]
    assert os.statvfs(small_disk).f_bfree * 4096 > 4 * CHUNK_SIZE  # a failed try does not fill the disk
    partial = opened(folder, size=size, sparse=True)
    content = b"x" * size
    with pytest.raises(LocalDiskError, match="no space left"):
        fill(partial, *range(12), content=content)
    kept = set(partial.verified)
    partial.close()
    with pytest.raises(LocalDiskError, match="no space left"):
        opened(folder, size=size)
    partial = opened(folder, size=size, sparse=True)
    assert partial.verified == kept and len(kept) >= 3
    partial.discard()
    with pytest.raises(LocalDiskError, match="no space left"):
        small(folder, b"x" * (6 * CHUNK_SIZE))
    assert os.listdir(small_disk) == []
    os.close(folder)
