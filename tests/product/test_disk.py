"""The receiver's disk: full, read-only, or in the way."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

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
