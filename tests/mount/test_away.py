"""The host stops, dies and comes back under a mount: nothing hangs, and what is cached is there."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.product.support import CODE, Host, free_port, noise, wait_until

from headrace.mount import table

from .support import clearing, ended, needs_fuse, pid_of, run, start

pytestmark = [needs_fuse, pytest.mark.slow]

TIMEOUT = 1.0
SLACK = 3.0  # seconds; a loaded machine takes its time


@pytest.fixture
def point(tmp_path: Path):
    with clearing(tmp_path / "mnt") as folder:
        yield folder


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    for folder in ("known", "unknown"):
        (tree / folder).mkdir(parents=True)
        for name in ("a", "b"):
            (tree / folder / name).write_bytes(noise(300_000, f"{folder}/{name}"))
    return tree


def fails_in_time(call: Callable[[], object]) -> None:
    started = time.monotonic()
    with pytest.raises(OSError) as caught:
        call()
    assert caught.value.errno == errno.EIO
    assert time.monotonic() - started < TIMEOUT + SLACK


def test_a_host_that_stops_dies_and_comes_back(tmp_path, tree, point):
    port, home = free_port(), tmp_path / "home"

    def known() -> None:
        assert (point / "known" / "a").read_bytes() == noise(300_000, "known/a")
        assert sorted(os.listdir(point / "known")) == ["a", "b"]
        assert os.statvfs(point).f_blocks == os.statvfs(tree).f_blocks

    with Host(tree, home=tmp_path / "host", port=port) as host:
        mounted = run("mount", "--json", "--timeout", f"{TIMEOUT}s", host.address, point, home=home).check_ok()
        known()
        handle = os.open(point / "known" / "b", os.O_RDONLY)
        host.kill(signal.SIGSTOP)
        known()
        fails_in_time(lambda: os.pread(handle, 1000, 0))
        fails_in_time(lambda: os.listdir(point / "unknown"))
        fails_in_time(lambda: os.stat(point / "unknown" / "a"))
        host.kill(signal.SIGCONT)
        wait_until(lambda: os.listdir(point) and answers(lambda: os.pread(handle, 4, 0)), "the host's return")
        assert os.pread(handle, 1000, 0) == noise(300_000, "known/b")[:1000]
        host.kill(signal.SIGKILL)
        host.wait()
    known()
    fails_in_time(lambda: os.listdir(point / "unknown"))
    assert "the host is away" in run("status", home=home).stdout.decode()
    with Host(tree, home=tmp_path / "host", port=port):
        wait_until(lambda: answers(lambda: os.listdir(point / "unknown")), "the host's return")
        assert os.pread(handle, 300_000, 0) == noise(300_000, "known/b"), "the open handle goes on"
        os.close(handle)
    started = time.monotonic()
    run("unmount", point, home=home).check_ok()
    assert time.monotonic() - started < 5
    assert table.at(str(point)) is None
    wait_until(lambda: ended(pid_of(mounted)), "the end of its process")


def answers(call: Callable[[], object]) -> bool:
    try:
        call()
    except OSError:
        return False
    return True


def test_a_mount_that_is_stopped_or_in_use_is_detached(tmp_path, tree, point):
    home = tmp_path / "home"
    with Host(tree, home=tmp_path / "host") as host:
        with start("mount", "--json", "--foreground", host.address, point, home=home) as mount:
            mount.wait_event("ready")
            handle = os.open(point / "known" / "a", os.O_RDONLY)
            busy = run("unmount", "--json", point, home=home).check_ok()
            assert busy.of("unmounted")[0]["lazy"] and os.listdir(point) == []
            assert os.pread(handle, 1000, 0) == noise(300_000, "known/a")[:1000], "who has it open keeps it"
            os.close(handle)
            assert mount.wait() == 0, "and with the last user the process ends"
        with start("mount", "--json", "--foreground", host.address, point, home=home) as mount:
            mount.wait_event("ready")
            try:
                mount.kill(signal.SIGSTOP)
                # Not a look at the mount point from here: that would wait for what is stopped.
                done = run("unmount", "--json", point, home=home, seconds=15)
                assert done.exit_code == 0 and table.at(str(point)) is None
            finally:
                mount.kill(signal.SIGCONT)
            assert mount.wait() == 0


def test_offline_shows_what_was_cached(tmp_path, tree, point):
    home = tmp_path / "home"
    with Host(tree, home=tmp_path / "host") as host:
        run("mount", host.address, point, home=home).check_ok()
        assert (point / "known" / "a").read_bytes() == noise(300_000, "known/a")
        assert os.listdir(point / "unknown")
        run("unmount", point, home=home).check_ok()
    run("mount", "--offline", f"{CODE}@{host.address}", point, home=home).check_ok()
    assert (point / "known" / "a").read_bytes() == noise(300_000, "known/a")
    assert sorted(os.listdir(point / "unknown")) == ["a", "b"]
    fails_in_time(lambda: (point / "unknown" / "b").read_bytes())
    run("unmount", point, home=home).check_ok()
