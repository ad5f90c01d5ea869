"""The receiver's disk: full, read-only, or in the way."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from .scripted import ScriptedHost, file_entry, folder_entry
from .support import (
    CHUNK,
    MIB,
    Host,
    assert_same_tree,
    call_get,
    facts_of,
    leftovers,
    make_file,
    make_sparse,
    noise,
    run_get,
    whole_files,
)


@contextlib.contextmanager
def tmpfs(folder: Path, options: str) -> Iterator[Path]:
    """A file system of its own at `folder`, or a skipped test where that is not allowed."""
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a tmpfs takes root")
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "headrace-test", folder], capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {made.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def resize(folder: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", folder], check=True)


def test_a_file_that_does_not_fit_says_so_before_anything_is_fetched(tmp_path: Path) -> None:
    make_file(tmp_path / "file", noise(12 * MIB))
    with Host(tmp_path / "file", home=tmp_path / "host") as host, tmpfs(tmp_path / "disk", "size=8m") as disk:
        full = run_get(host.address, disk / "dest", home=tmp_path / "home").check_failed(8)
        assert "no space left" in full.stderr
        assert full.of("error")[0]["code"] == "disk"
        assert not (disk / "dest").exists()
        assert os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize > 7 * MIB  # it keeps nothing that it cannot use
        resize(disk, "32m")
        run_get(host.address, disk / "dest", home=tmp_path / "home").check_ok()
        assert facts_of(disk / "dest") == facts_of(tmp_path / "file")


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["8", "7"])
def test_a_disk_that_fills_up_half_way_and_is_given_room(tmp_path: Path, protocol: str) -> None:
    """No space can be reserved for a file with holes, so this one ends in the middle."""
    make_sparse(tmp_path / "file", 64 * MIB, {0: noise(14 * MIB), 60 * MIB: b"the end"})
    options = ("--protocol", protocol, "--connections", "1")
    with Host(tmp_path / "file", home=tmp_path / "host") as host, tmpfs(tmp_path / "disk", "size=10m") as disk:
        full = run_get(host.address, disk / "dest", *options, home=tmp_path / "home").check_failed(8)
        assert "no space left" in full.stderr
        assert not (disk / "dest").exists()
        resize(disk, "64m")
        rest = run_get(host.address, disk / "dest", *options, home=tmp_path / "home").check_ok()
        assert facts_of(disk / "dest") == facts_of(tmp_path / "file")
        assert rest.done["bytes_reused"] >= CHUNK
        assert not leftovers(disk)


@pytest.mark.slow
def test_a_tree_that_does_not_fit(tmp_path: Path) -> None:
    for number in range(40):
        make_file(tmp_path / "tree" / str(number % 4) / f"{number}.bin", noise(500_000, number))
    with Host(tmp_path / "tree", home=tmp_path / "host") as host, tmpfs(tmp_path / "disk", "size=8m") as disk:
        full = run_get(host.address, disk / "dest", home=tmp_path / "home").check_failed(8)
        assert "no space left" in full.stderr
        assert whole_files(disk / "dest", tmp_path / "tree") >= 8
        assert not leftovers(disk)
        resize(disk, "32m")
        rest = run_get(host.address, disk / "dest", home=tmp_path / "home").check_ok()
        assert_same_tree(disk / "dest", tmp_path / "tree")
        assert rest.done["bytes_reused"] >= 8 * 500_000


@pytest.mark.slow
def test_a_disk_without_room_for_names(tmp_path: Path) -> None:
    for number in range(40):
        make_file(tmp_path / "tree" / str(number), b"small")
    with (
        Host(tmp_path / "tree", home=tmp_path / "host") as host,
        tmpfs(tmp_path / "disk", "size=8m,nr_inodes=20") as disk,
    ):
        call_get(host.address, disk / "dest", home=tmp_path / "home").check_failed(8)
        whole_files(disk / "dest", tmp_path / "tree")
        subprocess.run(["mount", "-o", "remount,nr_inodes=1000", disk], check=True)
        call_get(host.address, disk / "dest", home=tmp_path / "home").check_ok()
        assert_same_tree(disk / "dest", tmp_path / "tree")


@pytest.mark.slow
def test_a_read_only_destination(tmp_path: Path) -> None:
    make_file(tmp_path / "tree" / "a", b"a")
    make_file(tmp_path / "tree" / "big", noise(2 * CHUNK))
    with Host(tmp_path / "tree", home=tmp_path / "host") as host, tmpfs(tmp_path / "disk", "ro") as disk:
        for dest, path in ((disk, ""), (disk / "new", ""), (disk / "a", "a"), (disk / "big", "big")):
            refused = call_get(host.address, dest, home=tmp_path / "home", path=path).check_failed(8)
            assert "read-only" in refused.stderr


def test_a_home_that_cannot_be_written_is_no_reason_to_fail(tmp_path: Path) -> None:
    """The pairing is not remembered, and that is told; the file comes all the same."""
    make_file(tmp_path / "file", b"content")
    with Host(tmp_path / "file", home=tmp_path / "host") as host, tmpfs(tmp_path / "disk", "ro") as disk:
        result = call_get(host.address, tmp_path / "dest", home=disk / "home").check_ok()
        assert "not remembered" in result.stderr
    assert (tmp_path / "dest").read_bytes() == b"content"


@pytest.mark.slow
def test_things_that_lie_where_the_part_file_belongs(tmp_path: Path) -> None:
    """Nothing is followed, written through or removed that is not headrace's own."""
    make_file(tmp_path / "file", noise(2 * CHUNK))
    make_file(tmp_path / "precious", b"precious")
    (tmp_path / "dest").mkdir()
    part = tmp_path / "dest" / ".copy.headrace-part"
    with Host(tmp_path / "file", home=tmp_path / "host") as host:
        part.symlink_to(tmp_path / "precious")
        call_get(host.address, tmp_path / "dest" / "copy", home=tmp_path / "home").check_failed(8)
        part.unlink()
        part.mkdir()
        call_get(host.address, tmp_path / "dest" / "copy", home=tmp_path / "home").check_failed(8)
        part.rmdir()
        os.mkfifo(part)
        call_get(host.address, tmp_path / "dest" / "copy", home=tmp_path / "home").check_failed(8)
        part.unlink()
        os.link(tmp_path / "precious", part)
        call_get(host.address, tmp_path / "dest" / "copy", home=tmp_path / "home").check_ok()
    assert (tmp_path / "precious").read_bytes() == b"precious"
    assert facts_of(tmp_path / "dest" / "copy") == facts_of(tmp_path / "file")


def foreign(folder: Path) -> Path:
    """A folder of somebody else's that is not for us to write to; a skipped test where that cannot be made."""
    folder.mkdir(parents=True)
    if os.geteuid() != 0:
        pytest.skip("giving a folder away takes root")
    folder.chmod(0o555)
    os.chown(folder, 12345, 12345)
    return folder


@contextlib.contextmanager
def locked(file: Path) -> Iterator[None]:
    """As another headrace that is writing it."""
    with open(file, "wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


def test_what_is_in_the_way_of_one_file_fails_that_file_alone(tmp_path: Path) -> None:
    """A folder that is not ours, a file that we may not read, a busy part file, and things at a part file's name."""
    tree, dest = tmp_path / "tree", tmp_path / "dest"
    for name in ("foreign/a", "unreadable", "planted", "fine", "below/fine"):
        make_file(tree / name, b"content")
    for name in ("busy", "folder", "large"):
        make_file(tree / name, noise(2 * CHUNK + 5))
    foreign(dest / "foreign")
    make_file(dest / "unreadable", b"CONTENT")
    (dest / "unreadable").chmod(0)
    (dest / ".planted.headrace-part").mkdir()
    (dest / ".folder.headrace-part").mkdir()
    with Host(tree, home=tmp_path / "host") as host, locked(dest / ".busy.headrace-part"):
        result = run_get(host.address, dest, home=tmp_path / "home", bound=True).check_clean()
    assert result.exit_code == 10, result.stderr
    errors = {event["path"]: event for event in result.of("error")}
    assert set(errors) == {"foreign/a", "unreadable", "planted", "busy", "folder"}
    assert {event["code"] for event in errors.values()} == {"disk"}
    assert all(event["hint"] for event in errors.values())
    assert "another headrace" in errors["busy"]["message"]
    assert result.done["failed"] == 5
    for name in ("fine", "below/fine", "large"):
        assert facts_of(dest / name) == facts_of(tree / name)


def test_one_file_that_cannot_be_written_is_a_problem_of_the_disk(tmp_path: Path) -> None:
    make_file(tmp_path / "file", b"content")
    (tmp_path / "dest" / ".file.headrace-part").mkdir(parents=True)
    with Host(tmp_path / "file", home=tmp_path / "host") as host:
        failed = call_get(host.address, tmp_path / "dest", home=tmp_path / "home").check_failed(8)
    assert [event["path"] for event in failed.of("error")] == ["file"]


def test_a_destination_that_is_not_ours_ends_it_at_once(tmp_path: Path) -> None:
    for number in range(20):
        make_file(tmp_path / "tree" / str(number % 3) / str(number), b"small")
    dest = foreign(tmp_path / "dest")
    with Host(tmp_path / "tree", home=tmp_path / "host") as host:
        refused = run_get(host.address, dest, home=tmp_path / "home", bound=True).check_failed(8)
    assert "no permission" in refused.stderr and len(refused.of("error")) == 1


def test_a_folder_that_the_last_run_made_unreadable_is_no_trouble(tmp_path: Path) -> None:
    shut = msgspec.structs.replace(folder_entry(b"shut"), mode=0)
    files = [(b"shut", [file_entry(b"a", b"content")]), (b"", [file_entry(b"b", b"other")])]
    content = {b"shut/a": b"content", b"b": b"other"}
    with ScriptedHost(tmp_path / "host", [(b"", [shut]), *files], content) as host:
        for _ in range(2):
            run_get(host.address, tmp_path / "dest", home=tmp_path / "home", bound=True).check_ok()
            assert stat.S_IMODE((tmp_path / "dest" / "shut").stat().st_mode) == 0
        (tmp_path / "dest" / "shut").chmod(0o700)
        assert (tmp_path / "dest" / "shut" / "a").read_bytes() == b"content"
