"""What cannot be mounted, and what the command says then."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from tests.product.support import CODE, WRONG_CODE, Host, call, free_port, noise

from headrace.mount import device, table

from .support import clearing, needs_fuse, run

ENV = {"HEADRACE_CODE": CODE}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def point(tmp_path: Path):
    with clearing(tmp_path / "mnt") as folder:
        yield folder


def refuse(*arguments: str | Path, home: Path, code: int, env: dict[str, str] | None = None) -> str:
    """In this process: nothing is mounted, so nothing is forked that mattered."""
    outcome = call("mount", "--foreground", *map(str, arguments), home=home, env={**ENV, **(env or {})})
    return outcome.check_failed(code).stderr


@needs_fuse
def test_the_folder_has_to_be_one(home, tmp_path):
    target = f"127.0.0.1:{free_port()}"  # where nobody is: the folder is looked at first
    assert "mkdir" in refuse(target, tmp_path / "none", home=home, code=8)
    (tmp_path / "file").touch()
    assert "not a folder" in refuse(target, tmp_path / "file", home=home, code=8)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    assert "nonempty" in refuse(target, tmp_path / "full", home=home, code=11)
    assert "unreachable" not in refuse(target, tmp_path / "full", "-o", "noatime,nonempty", home=home, code=5)


@needs_fuse
def test_not_above_our_own_state(tmp_path):
    home = tmp_path / "a" / "home"
    home.mkdir(parents=True)
    said = refuse("127.0.0.1:1", tmp_path / "a", "-o", "nonempty", home=home, code=2)
    assert "own state" in said


@needs_fuse
@pytest.mark.parametrize("options", [["-o", "rw"], ["-o", "noatime,fsname=x"], ["--timeout", "0"], ["-o", "suid"]])
def test_options_that_cannot_be(home, point, options):
    refuse("127.0.0.1:1", point, *options, home=home, code=2)


def test_a_target_without_a_code(home, point):
    outcome = call("mount", "127.0.0.1:1", str(point), home=home)
    outcome.check_failed(2)


@needs_fuse
@pytest.mark.slow
def test_hosts_that_do_not_let_us_in(home, point, tmp_path):
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_bytes(noise(10))
    refuse(f"127.0.0.1:{free_port()}", point, home=home, code=5)
    with Host(tmp_path / "tree", home=tmp_path / "host") as host:
        refuse(host.address, point, home=home, code=4, env={"HEADRACE_CODE": WRONG_CODE})
        refuse(f"{host.address}/none", point, home=home, code=3)
        assert "is a file" in refuse(f"{host.address}/file", point, home=home, code=2)
        refuse(host.address, point, "-o", "no_such_option", home=home, code=2)
    assert table.at(str(point)) is None


@needs_fuse
@pytest.mark.slow
def test_the_background_says_what_went_wrong_as_the_foreground_does(home, point, tmp_path):
    gone = run("mount", f"127.0.0.1:{free_port()}", point, home=home).check_failed(5)
    assert gone.stdout == b""
    told = run("mount", "--json", f"127.0.0.1:{free_port()}", point, home=home).check_failed(5)
    (event,) = told.of("error")
    assert event["code"] == "unreachable"


@needs_fuse
@pytest.mark.slow
def test_mounted_already(home, point, tmp_path):
    (tmp_path / "tree").mkdir()
    with Host(tmp_path / "tree", home=tmp_path / "host") as host:
        run("mount", host.address, point, home=home).check_ok()
        assert "mounted already" in run("mount", host.address, point, home=home).check_failed(11).stderr
        link = tmp_path / "link"
        link.symlink_to(point)
        assert "mounted already" in run("mount", host.address, link, home=home).check_failed(11).stderr
        run("unmount", link, home=home).check_ok()


def test_unmounting_what_is_not_ours(home, tmp_path):
    assert "nothing is mounted" in call("unmount", str(tmp_path), home=home).check_failed(3).stderr
    assert "umount" in call("unmount", "/proc", home=home).check_failed(2).stderr


def test_what_is_missing_is_said_with_what_mends_it(home, point, monkeypatch):
    monkeypatch.setattr(device, "DEVICE", str(point / "no device"))
    if shutil.which(device.HELPER):
        assert "modprobe fuse" in refuse("127.0.0.1:1", point, home=home, code=1)
    monkeypatch.setenv("PATH", str(point))
    assert "apt install fuse3" in refuse("127.0.0.1:1", point, home=home, code=1, env={"PATH": str(point)})


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("fusermount3: unknown option 'x'", "Correct -o"),
        ("fusermount3: option allow_other only allowed if 'user_allow_other' is set in /etc/fuse.conf", "echo user_"),
        ("fusermount3: fuse device not found, try 'modprobe fuse' first", "modprobe fuse"),
        ("fusermount3: failed to open /dev/fuse: Permission denied", "chmod 666"),
        ("fusermount3: user has no write access to mountpoint /mnt", "folder of your own"),
        ("fusermount3: mount failed: Operation not permitted", "CAP_SYS_ADMIN"),
        ("what\x1b[31mever", "could not mount on /mnt: what\\x1b[31mever"),
    ],
)
def test_words_of_the_helper_become_ours(said, expected):
    assert expected in str(device._refused(said, "/mnt"))


def test_a_helper_that_hangs_is_given_up(tmp_path, monkeypatch):
    helper = tmp_path / "fusermount3"
    helper.write_text("#!/bin/sh\nexec sleep 30\n")
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(TimeoutError):
        device.detach("/mnt", lazy=False, seconds=0.1)
