"""What has to be on disk before it counts: the order of flushing and naming, recorded."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.product.support import leftovers, noise

import headrace
from headrace.errors import LocalDiskError
from headrace.protocol.messages import CHUNK_SIZE
from headrace.protocol.paths import RelPath
from headrace.storage import destination, partial
from headrace.storage.destination import Destination

TWO = noise(CHUNK_SIZE + 100)


class Record:
    """What was flushed and named, by name, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fails: int = 0) -> None:
        self.steps: list[tuple[str, str]] = []
        fsync, rename = os.fsync, partial._rename

        def recorded_fsync(fd: int) -> None:
            if fails:
                raise OSError(fails, os.strerror(fails))
            fsync(fd)
            self.steps.append(("flush", Path(os.readlink(f"/proc/self/fd/{fd}")).name))

        def recorded_rename(parent: int, old: bytes, new: bytes, *, replace: bool) -> None:
            rename(parent, old, new, replace=replace)
            self.steps.append(("name", os.fsdecode(new)))

        def recorded_sync(fd: int) -> None:
            self.steps.append(("flush all of", Path(os.readlink(f"/proc/self/fd/{fd}")).name))

        monkeypatch.setattr(os, "fsync", recorded_fsync)
        monkeypatch.setattr(partial, "_rename", recorded_rename)
        monkeypatch.setattr(destination, "sync_filesystem", recorded_sync)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "share" / "sub").mkdir(parents=True)
    (tmp_path / "share" / "two").write_bytes(TWO)
    (tmp_path / "share" / "sub" / "small").write_bytes(b"small")
    return tmp_path


@pytest.fixture
def remote(place: Path) -> Iterator[headrace.RemoteShare]:
    with (
        headrace.share(place / "share", bind="127.0.0.1", home=place / "host", transports={"tcp"}) as shared,
        headrace.connect(shared.target, home=place / "client") as remote,
    ):
        yield remote


def test_a_file_of_several_chunks_is_on_disk_before_it_has_its_name(
    remote: headrace.RemoteShare, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = Record(monkeypatch)
    remote.get("", place / "dest")
    steps = record.steps
    assert steps.index(("flush", ".two.headrace-part")) < steps.index(("name", "two"))
    after = steps[steps.index(("name", "two")) :]
    for name in ("small", "sub", "dest"):
        assert ("flush", name) in after, name


def test_without_it_nothing_is_flushed(
    remote: headrace.RemoteShare, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = Record(monkeypatch)
    remote.get("", place / "dest", fsync=False)
    assert record.steps == [("name", "two")]


def test_many_files_are_flushed_together(
    remote: headrace.RemoteShare, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(300):
        (place / "share" / f"file {number}").write_bytes(b"x")
    record = Record(monkeypatch)
    remote.get("", place / "dest")
    assert record.steps[-1] == ("flush all of", "dest")
    assert ("flush", "file 1") not in record.steps


def test_a_disk_that_does_not_take_it_is_no_success(
    remote: headrace.RemoteShare, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as failing, pytest.raises(LocalDiskError):
        Record(failing, fails=errno.EIO)
        remote.get("two", place / "two")
    assert not (place / "two").exists()
    remote.get("two", place / "two")
    assert (place / "two").read_bytes() == TWO
    assert leftovers(place) == []


def test_one_that_is_gone_again_does_not_matter(tmp_path: Path) -> None:
    with Destination.open(tmp_path, create=False) as dest:
        dest.settle([RelPath.parse(b"a/b/gone"), RelPath.parse(b"gone")])


def test_the_system_call_itself(tmp_path: Path) -> None:
    with Destination.open(tmp_path, create=False) as dest:
        dest.settle(None)
