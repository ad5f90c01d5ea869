"""Small files written without a name first, and what happens where that cannot be done."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace.errors import DestinationExistsError, LocalDiskError, LocalFileError
from headrace.protocol.paths import RelPath
from headrace.storage import small
from headrace.storage.destination import Destination
from headrace.storage.inflight import part_names
from headrace.storage.platform import FALLBACKS

MTIME = 1_700_000_000_123_456_789


def path(text: str) -> RelPath:
    return RelPath.parse(text.encode())


@pytest.fixture
def dest(tmp_path: Path) -> Iterator[Destination]:
    with Destination.open(tmp_path / "dest", create=True) as found:
        yield found


@pytest.fixture(params=["nameless", "unsupported", "no proc", "no link"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What this system can do."""
    how: str = request.param
    honest_open, honest_link = os.open, os.link

    def no_open(where: Any, flags: int, *more: Any, **named: Any) -> int:
        if flags & small._NAMELESS == small._NAMELESS:
            raise OSError(errno.EOPNOTSUPP, "not here")
        return honest_open(where, flags, *more, **named)

    def no_proc(where: Any, *more: Any, **named: Any) -> int:
        if os.fsencode(where).startswith(b"/proc/"):
            raise OSError(errno.ENOENT, "no /proc")
        return honest_open(where, *more, **named)

    def no_link(source: Any, *more: Any, **named: Any) -> None:
        if "src_dir_fd" in named:
            raise OSError(errno.EXDEV, "not here")
        honest_link(source, *more, **named)

    if how == "unsupported":
        monkeypatch.setattr(os, "open", no_open)
    if how == "no proc":
        monkeypatch.setattr(os, "open", no_proc)
    if how == "no link":
        monkeypatch.setattr(os, "link", no_link)
    return how


def write(writer: small.SmallWriter, name: str, data: bytes = b"content", **more: Any) -> None:
    how: dict[str, Any] = {"mode": 0o640, "mtime_ns": MTIME, "replace": False, "fresh": False}
    writer.write(path(name), data, **how | more)


def test_the_same_files_come_of_it_either_way(dest: Destination, tmp_path: Path, way: str) -> None:
    modes = [0o600, 0o644, 0o777, 0o400, 0o000, 0o666]
    with dest.small_files() as writer:
        for number, mode in enumerate(modes):
            write(writer, f"sub{number % 2}/{number}", bytes(number * 1000), mode=mode, fresh=number > 2)
    for number, mode in enumerate(modes):
        found = tmp_path / "dest" / f"sub{number % 2}" / str(number)
        facts = found.stat()
        assert (facts.st_size, stat.S_IMODE(facts.st_mode), facts.st_mtime_ns) == (number * 1000, mode, MTIME)
    assert len(list((tmp_path / "dest").rglob("*"))) == len(modes) + 2  # and nothing in flight
    if way != "nameless":
        assert any(reason.startswith("nameless-") for reason in FALLBACKS.counts())


def test_a_name_that_is_taken_stays_as_it_is(dest: Destination, tmp_path: Path, way: str) -> None:
    (tmp_path / "dest" / "file").write_bytes(b"mine")
    (tmp_path / "dest" / "link").symlink_to("nowhere")
    (tmp_path / "dest" / "folder").mkdir()
    with dest.small_files() as writer:
        for name in ("file", "link", "folder"):
            for fresh in (False, True):
                with pytest.raises(DestinationExistsError):
                    write(writer, name, fresh=fresh)
        write(writer, "file", b"theirs", replace=True)
    assert (tmp_path / "dest" / "file").read_bytes() == b"theirs"
    assert not (tmp_path / "dest" / "nowhere").exists()
    assert sorted(os.listdir(tmp_path / "dest")) == ["file", "folder", "link"]


def test_what_an_earlier_run_left_goes(dest: Destination, tmp_path: Path, way: str) -> None:
    left = tmp_path / "dest" / os.fsdecode(part_names(b"file")[0])
    left.write_bytes(b"half of it")
    with dest.small_files() as writer:
        write(writer, "file")
    assert os.listdir(tmp_path / "dest") == ["file"]


def test_names_of_files_in_flight_are_refused(dest: Destination, tmp_path: Path, way: str) -> None:
    with dest.small_files() as writer:
        for name in (".a.headrace-part", "sub/.a.headrace-part", ".a.headrace-part/b"):
            with pytest.raises(DestinationExistsError):
                write(writer, name, fresh=True)
        write(writer, "sub/b")
        with pytest.raises(DestinationExistsError):
            write(writer, "sub/.a.headrace-part", fresh=True)


def test_a_folder_that_is_a_link_is_not_followed(dest: Destination, tmp_path: Path, way: str) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "dest" / "sub").symlink_to(tmp_path / "outside")
    with dest.small_files() as writer, pytest.raises(DestinationExistsError):
        write(writer, "sub/file", fresh=True)
    assert os.listdir(tmp_path / "outside") == []


def test_a_folder_that_is_removed_meanwhile_fails_its_file_alone(dest: Destination, tmp_path: Path) -> None:
    with dest.small_files() as writer:
        write(writer, "sub/one")
        (tmp_path / "dest" / "sub" / "one").unlink()
        (tmp_path / "dest" / "sub").rmdir()
        with pytest.raises(LocalFileError):
            write(writer, "sub/two")
        write(writer, "other/three")
    with dest.small_files() as writer:
        write(writer, "sub/two")
    assert (tmp_path / "dest" / "sub" / "two").exists()


def test_a_full_disk_is_said_to_be_one_and_keeps_nothing(
    dest: Destination, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        name = "posix"

        def write(self, fd: int, data: memoryview | bytes, offset: int) -> None:
            os.pwrite(fd, b"x", offset)
            raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(dest, "_io", Full())
    with dest.small_files() as writer, pytest.raises(LocalDiskError, match="no space") as caught:
        write(writer, "file")
    assert not isinstance(caught.value, LocalFileError)
    assert os.listdir(tmp_path / "dest") == []


def test_no_descriptor_is_left(dest: Destination) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with dest.small_files() as writer:
        for number in range(300):
            write(writer, f"sub{number % 3}/{number}")
    assert len(os.listdir("/proc/self/fd")) <= before + 4  # the folders that the destination keeps, and /proc/self/fd
    dest.close()
    assert len(os.listdir("/proc/self/fd")) == before - 1  # its root
