"""The kernel's notices, from real changes in real directories."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.storage import inotify
from headrace.storage.inotify import Event, Inotify, parse, remote_devices

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="inotify is there on Linux only")


@pytest.fixture
def queue() -> Iterator[Inotify]:
    made = Inotify()
    yield made
    made.close()


def watch(queue: Inotify, folder: Path) -> int:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return queue.add(fd)
    finally:
        os.close(fd)


def test_what_happens_in_a_directory(queue: Inotify, tmp_path: Path) -> None:
    number = watch(queue, tmp_path)
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "a").rename(tmp_path / "b\n")
    (tmp_path / "sub").mkdir()
    seen = {(event.watch, event.name, bool(event.mask & inotify.NAMES)) for event in queue.read(5)}
    assert seen >= {(number, b"a", True), (number, b"a", False), (number, b"b\n", True), (number, b"sub", True)}


def test_a_directory_has_one_watch_wherever_it_is(queue: Inotify, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    number = watch(queue, tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    assert watch(queue, tmp_path / "b") == number


def test_a_directory_that_goes_says_so(queue: Inotify, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    number = watch(queue, tmp_path / "a")
    (tmp_path / "a").rmdir()
    assert queue.read(5)[-1] == Event(number, inotify.IGNORED, b"")


def test_only_directories(queue: Inotify, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    try:
        with pytest.raises(NotADirectoryError):
            queue.add(fd)
    finally:
        os.close(fd)


def test_a_reader_can_be_woken(queue: Inotify) -> None:
    queue.wake()
    assert queue.read(5) == []


def test_nothing_is_left_open_where_there_is_no_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> int:
        raise OSError(errno.EMFILE, "full")

    monkeypatch.setattr(os, "eventfd", full)
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="full"):
        Inotify()
    assert set(os.listdir("/proc/self/fd")) == before


def test_parse_takes_several() -> None:
    raw = inotify._HEAD.pack(1, 2, 3, 16) + b"name".ljust(16, b"\0") + inotify._HEAD.pack(4, 5, 6, 0)
    assert parse(raw) == [Event(1, 2, b"name"), Event(4, 5, b"")]


def test_file_systems_that_others_write_to() -> None:
    text = (
        "36 35 98:0 / /mnt1 rw,noatime master:1 - ext3 /dev/root rw\n"
        "37 35 0:45 / /mnt2 rw - nfs4 there:/ rw\n"
        "38 35 0:46 / /mnt3 rw shared:2 - fuse.sshfs there: rw\n"
        "39 35 8:3 / /mnt4 rw - fuseblk /dev/sda3 rw\n"
    )
    assert remote_devices(text) == {os.makedev(0, 45), os.makedev(0, 46)}
