"""A file in flight: what survives, what is believed, and that it appears whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from headrace.errors import DestinationExistsError, LocalDiskError, LocalFileError
from headrace.protocol.messages import CHUNK_SIZE
from headrace.storage import partial as module
from headrace.storage.chunks import chunk_count, hash_bytes
from headrace.storage.partial import forget_leftover, write_whole

from .parts import CONTENT, JOURNAL, NAME, PART, SIZE, V1, V2, fill, finish, hash_of, opened, small


def test_from_the_first_byte_to_the_name(tmp_path: Path, folder: int) -> None:
    before = len(os.listdir("/proc/self/fd"))
    partial = opened(folder)
    assert stat.S_IMODE((tmp_path / PART).stat().st_mode) == 0o600
    fill(partial, 2, 0, 3)
    assert partial.verified == {0, 2, 3} and not partial.complete and not (tmp_path / "a.mov").exists()
    with pytest.raises(ValueError, match="missing"):
        finish(partial)
    fill(partial, 1)
    assert partial.complete
    finish(partial, mode=0o4750)
    st = (tmp_path / "a.mov").stat()
    assert (tmp_path / "a.mov").read_bytes() == CONTENT
    assert (stat.S_IMODE(st.st_mode), st.st_mtime_ns) == (0o750, 1_234_567_890_123_456_789)
    assert os.listdir(tmp_path) == ["a.mov"] and len(os.listdir("/proc/self/fd")) == before


def test_the_next_run_goes_on(folder: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    partial = opened(folder)
    fill(partial, 0, 3)
    partial.write(CHUNK_SIZE, b"unverified")
    partial.close()
    partial.close()
    monkeypatch.setattr(module, "hash_bytes", None)  # nothing is hashed again
    partial = opened(folder)
    assert partial.verified == {0, 3} and not partial.stale
    fill(partial, 1, 2)
    finish(partial)
    assert (tmp_path / "a.mov").read_bytes() == CONTENT


def test_an_empty_file_is_complete_at_once(folder: int, tmp_path: Path) -> None:
    partial = opened(folder, size=0)
    assert partial.complete
    finish(partial)
    assert (tmp_path / "a.mov").read_bytes() == b""


def test_after_a_power_loss_the_disk_is_asked(folder: int, tmp_path: Path) -> None:
    partial = opened(folder)
    fill(partial, 0, 1, 3)
    partial.close()
    with open(tmp_path / PART, "r+b") as file:  # blocks that never reached the disk
        file.seek(CHUNK_SIZE + 4096)
        file.write(bytes(4096))
    partial = opened(folder, boot_id=b"another boot")
    assert partial.verified == {0, 3}
    fill(partial, 1)
    partial.close()
    partial = opened(folder, boot_id=b"another boot")
    assert partial.verified == {0, 1, 3}
    partial.discard()


def test_without_a_boot_id_the_disk_is_asked(folder: int, tmp_path: Path) -> None:
    partial = opened(folder, boot_id=b"")
    fill(partial, 0, 1)
    partial.close()
    with open(tmp_path / PART, "r+b") as file:
        file.write(b"?")
    partial = opened(folder, boot_id=b"")
    assert partial.verified == {1}
    partial.discard()


def test_the_machines_own_boot_id_is_the_default(folder: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if not os.path.exists("/proc/sys/kernel/random/boot_id"):
        pytest.skip("this platform has none")
    partial = opened(folder, boot_id=None)
    fill(partial, 0)
    partial.close()
    monkeypatch.setattr(module, "hash_bytes", None)
    partial = opened(folder, boot_id=None)
    assert partial.verified == {0}
    partial.discard()


@pytest.mark.parametrize("change", [{"version": V2}, {"mtime_ns": 6}])
def test_another_version_keeps_what_is_still_right(folder: int, tmp_path: Path, change: dict[str, Any]) -> None:
    partial = opened(folder)
    fill(partial, 0, 1, 3)
    partial.close()
    partial = opened(folder, **change)
    assert not partial.verified and partial.stale == {index: hash_of(index) for index in (0, 1, 3)}
    changed = CONTENT[:CHUNK_SIZE] + b"!" * CHUNK_SIZE + CONTENT[2 * CHUNK_SIZE :]
    assert [partial.adopt(index, hash_of(index, changed)) for index in range(4)] == [True, False, False, True]
    assert partial.verified == {0, 3} and set(partial.stale) == {1}
    fill(partial, 1, 2, content=changed)
    assert not partial.stale
    finish(partial)
    assert (tmp_path / "a.mov").read_bytes() == changed


@pytest.mark.parametrize(
    ("size", "kept"),
    [(SIZE + 10 * CHUNK_SIZE, {0, 1}), (SIZE + 5, {0, 1}), (CHUNK_SIZE + 7, {0}), (2 * CHUNK_SIZE, {0, 1}), (0, set())],
)
def test_another_size_keeps_chunks_that_are_still_whole(folder: int, tmp_path: Path, size: int, kept: set[int]) -> None:
    partial = opened(folder)
    fill(partial, 0, 1, 3)
    partial.close()
    partial = opened(folder, size=size, version=V2)
    assert set(partial.stale) == kept and (tmp_path / PART).stat().st_size == size
    for index in kept:
        assert partial.adopt(index, hash_of(index))
    content = (CONTENT[: 2 * CHUNK_SIZE] + bytes(20 * CHUNK_SIZE))[:size]
    fill(partial, *(index for index in range(chunk_count(size)) if index not in kept), content=content)
    finish(partial)
    assert (tmp_path / "a.mov").read_bytes() == content


def test_stale_chunks_survive_a_kill_but_are_not_believed_blindly(folder: int) -> None:
    partial = opened(folder)
    fill(partial, 0, 1, 2)
    partial.close()
    partial = opened(folder, version=V2)
    partial.write(CHUNK_SIZE, b"half of something new")  # and now a kill
    partial.close()
    partial = opened(folder, version=V2)
    assert partial.stale == {0: hash_of(0), 2: hash_of(2)} and not partial.verified
    assert partial.adopt(0, hash_of(0))
    partial.close()
    partial = opened(folder, version=V1)
    assert set(partial.stale) == {0, 2}
    partial.discard()


def test_writing_ends_the_claim_of_a_stale_chunk(folder: int) -> None:
    partial = opened(folder)
    fill(partial, 0, 1)
    partial.close()
    partial = opened(folder, version=V2)
    partial.write(10, b"new")
    partial.write_zeros(CHUNK_SIZE, 10)
    assert not partial.stale and not partial.adopt(0, hash_of(0))
    partial.discard()


def test_a_late_duplicate_does_not_touch_a_verified_chunk(folder: int, tmp_path: Path) -> None:
    partial = opened(folder)
    fill(partial, 0, 1, 2, 3)
    partial.write(5, b"late")
    partial.write_zeros(CHUNK_SIZE, CHUNK_SIZE)
    partial.commit(0, hash_bytes(b"something else"))
    finish(partial)
    assert (tmp_path / "a.mov").read_bytes() == CONTENT


def test_what_lies_outside_of_the_file_is_refused(folder: int) -> None:
    partial = opened(folder)
    for offset, data in ((SIZE, b"x"), (-1, b"x"), (SIZE - 1, b"xx"), (CHUNK_SIZE - 1, b"xx")):
        with pytest.raises(ValueError, match="a write"):
            partial.write(offset, data)
    for index, digest in ((4, hash_of(0)), (-1, hash_of(0)), (0, b"short")):
        with pytest.raises(ValueError, match="no such chunk"):
            partial.commit(index, digest)
    partial.discard()


def test_a_journal_without_its_part_file_means_nothing(folder: int, tmp_path: Path) -> None:
    partial = opened(folder)
    fill(partial, 0, 1, 2, 3)
    partial.close()
    os.unlink(tmp_path / PART)
    partial = opened(folder)
    assert not partial.verified and not partial.stale
    partial.close()
    partial = opened(folder)
    assert not partial.verified
    partial.discard()


def test_a_part_file_without_its_journal_means_nothing(folder: int, tmp_path: Path) -> None:
    (tmp_path / PART).write_bytes(b"old" * SIZE)
    partial = opened(folder)
    assert not partial.verified and (tmp_path / PART).read_bytes() == bytes(SIZE)
    partial.discard()
    assert os.listdir(tmp_path) == []


def test_a_single_chunk_is_hashed_rather_than_believed(folder: int, tmp_path: Path) -> None:
    partial = opened(folder, size=100)
    partial.write(0, b"x" * 100)
    partial.commit(0, hash_bytes(b"x" * 100))
    partial.close()
    (tmp_path / PART).write_bytes(b"y" * 100)
    partial = opened(folder, size=100)
    assert not partial.verified
    partial.discard()


@pytest.mark.parametrize("victim", [PART, JOURNAL])
@pytest.mark.parametrize("kind", ["link", "dangling", "folder", "fifo"])
def test_what_is_planted_at_our_names_is_not_followed(folder: int, tmp_path: Path, victim: str, kind: str) -> None:
    other = tmp_path / "precious"
    other.write_text("precious")
    planted = tmp_path / victim
    if kind == "link":
        planted.symlink_to(other)
    elif kind == "dangling":
        planted.symlink_to(tmp_path / "nothing")
    elif kind == "folder":
        planted.mkdir()
    else:
        os.mkfifo(planted)
    with pytest.raises(LocalFileError, match="no regular file"):
        opened(folder)
    if victim == PART:
        with pytest.raises(LocalFileError, match="no regular file"):
            write_whole(folder, NAME, b"small", mode=0o600, mtime_ns=0, replace=True)
    assert other.read_text() == "precious" and not (tmp_path / "nothing").exists()
    assert stat.S_IFMT(planted.lstat().st_mode) != stat.S_IFREG


@pytest.mark.parametrize("name", [PART, JOURNAL])
def test_a_hard_link_to_something_else_is_not_written_through(folder: int, tmp_path: Path, name: str) -> None:
    other = tmp_path / "precious"
    other.write_bytes(b"p" * SIZE)
    os.link(other, tmp_path / name)
    partial = opened(folder)
    fill(partial, 0, 1, 2, 3)
    finish(partial)
    assert other.read_bytes() == b"p" * SIZE and (tmp_path / "a.mov").read_bytes() == CONTENT


def test_only_one_headrace_writes_a_file(folder: int, tmp_path: Path) -> None:
    first = opened(folder)
    with pytest.raises(LocalFileError, match=r"another headrace is writing a\.mov"):
        opened(folder)
    with pytest.raises(LocalFileError, match="another headrace"):
        write_whole(folder, NAME, b"small", mode=0o600, mtime_ns=0, replace=True)
    with pytest.raises(LocalFileError, match="another headrace"):
        forget_leftover(folder, NAME)
    fill(first, 0, 1, 2, 3)
    finish(first)
    assert (tmp_path / "a.mov").read_bytes() == CONTENT
    opened(folder).discard()
    assert (tmp_path / "a.mov").read_bytes() == CONTENT


def test_a_file_finished_between_open_and_lock_is_left_alone(
    folder: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = opened(folder)
    fill(first, 0, 1, 2, 3)
    real = module._lock

    def finish_first(fd: int, name: bytes) -> None:
        monkeypatch.setattr(module, "_lock", real)
        finish(first)
        real(fd, name)

    monkeypatch.setattr(module, "_lock", finish_first)
    second = opened(folder, version=V2)
    second.write(0, b"other")
    assert (tmp_path / "a.mov").read_bytes() == CONTENT
    second.discard()


def test_a_file_system_without_locks(folder: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    opened(folder).discard()


def test_a_name_that_appeared_meanwhile_is_kept(folder: int, tmp_path: Path) -> None:
    partial = opened(folder)
    fill(partial, 0, 1, 2, 3)
    (tmp_path / "a.mov").write_text("somebody else's")
    with pytest.raises(DestinationExistsError):
        finish(partial)
    assert (tmp_path / "a.mov").read_text() == "somebody else's"
    finish(partial, replace=True)
    assert (tmp_path / "a.mov").read_bytes() == CONTENT and os.listdir(tmp_path) == ["a.mov"]


def test_of_many_that_may_not_replace_one_wins(folder: int, tmp_path: Path) -> None:
    """Part files of different names renamed to one name at the same moment."""
    outcomes: list[str] = []
    barrier = threading.Barrier(8)

    def race(number: int) -> None:
        own = b".race-%d" % number
        (tmp_path / os.fsdecode(own)).write_bytes(own)
        barrier.wait()
        try:
            module._rename(folder, own, b"won", replace=False)
            outcomes.append(os.fsdecode(own))
        except DestinationExistsError:
            pass

    threads = [threading.Thread(target=race, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 1 and (tmp_path / "won").read_text() == outcomes[0]


@pytest.mark.parametrize("replace", [True, False])
def test_a_folder_in_the_way(folder: int, tmp_path: Path, replace: bool) -> None:
    (tmp_path / "a.mov").mkdir()
    partial = opened(folder, size=0)
    with pytest.raises(DestinationExistsError):
        finish(partial, replace=replace)
    partial.discard()
    with pytest.raises(DestinationExistsError):
        write_whole(folder, NAME, b"x", mode=0o600, mtime_ns=0, replace=replace)
    assert os.listdir(tmp_path) == ["a.mov"]


def test_a_symlink_at_the_destination_is_replaced_not_followed(folder: int, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    for write in (lambda: finish(opened(folder, size=0), replace=True), lambda: small(folder, b"x")):
        (tmp_path / "a.mov").unlink(missing_ok=True)
        (tmp_path / "a.mov").symlink_to("precious")
        write()
        assert not (tmp_path / "a.mov").is_symlink() and (tmp_path / "precious").read_text() == "precious"


def test_odd_and_long_names(folder: int, tmp_path: Path) -> None:
    for name in (b"\xff\xfe", b"x" * 255, ("ä" * 127).encode(), b".hidden", b"\n"):
        partial = opened(folder, name=name)
        fill(partial, 0, 1)
        partial.close()
        partial = opened(folder, name=name)
        assert partial.verified == {0, 1}
        fill(partial, 2, 3)
        finish(partial)
        assert os.listdir(os.fsencode(tmp_path)) == [name]
        write_whole(folder, name, b"small", mode=0o600, mtime_ns=0, replace=True)
        os.unlink(os.path.join(os.fsencode(tmp_path), name))


def test_a_small_file_that_another_process_is_writing_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second writer of the same name must neither take the first one's part file for left over nor rename it."""
    parent = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    seen: list[Exception] = []

    def second_writer(fd: int, mode: int, mtime_ns: int) -> None:
        monkeypatch.undo()
        try:
            write_whole(parent, b"small", b"second", mode=0o644, mtime_ns=1, replace=True)
        except LocalDiskError as why:
            seen.append(why)

    monkeypatch.setattr("headrace.storage.partial.stamp", second_writer)
    try:
        write_whole(parent, b"small", b"first", mode=0o644, mtime_ns=1, replace=True)
    finally:
        os.close(parent)
    assert len(seen) == 1 and "another headrace is writing" in str(seen[0])
    assert (tmp_path / "small").read_bytes() == b"first"
    assert [*tmp_path.iterdir()] == [tmp_path / "small"]
