"""headrace mount as people use it: real FUSE, real processes."""

from __future__ import annotations

import filecmp
import os
import signal
from pathlib import Path

import pytest
from tests.product.support import Host, contents, make_tree, noise, wait_until
from tests.product.support import facts_of as facts

from headrace.mount import table

from .support import clearing, ended, needs_fuse, pid_of, run, start

pytestmark = [needs_fuse, pytest.mark.slow]


@pytest.fixture
def point(tmp_path: Path):
    with clearing(tmp_path / "mnt") as folder:
        yield folder


def test_a_mount_shows_the_share_as_it_is_until_it_is_unmounted(tmp_path, point):
    tree = make_tree(tmp_path / "tree", 150)
    with Host(tree, home=tmp_path / "host") as host:
        mounted = run("mount", "--json", host.address, point, home=tmp_path / "home").check_ok()
        assert contents(point) == contents(tree)
        for name in (b"old", b"future", b"locked/inside", b"modes/640", b"odd/\xff\xfe\x80/\xff\xfe\x80"):
            here, there = (facts(os.path.join(os.fsencode(root), name)) for root in (point, tree))
            assert here == there
        assert os.readlink(point / "links" / "inside") == "../sizes/4096.bin"
        assert filecmp.cmp(point / "sizes" / "8388609.bin", tree / "sizes" / "8388609.bin", shallow=False)
        with pytest.raises(OSError, match="Read-only"):
            (point / "new").touch()
        done = run("unmount", "--json", point, home=tmp_path / "home").check_ok()
        (unmounted,) = done.of("unmounted")
        assert not unmounted["lazy"] and unmounted["pid"] is None, "its process has ended"
        assert ended(pid_of(mounted))
        assert table.at(str(point)) is None and os.listdir(point) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_unmounts(tmp_path, point, number, code):
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_bytes(noise(1000))
    with Host(tmp_path / "tree", home=tmp_path / "host") as host:
        with start("mount", "--json", "--foreground", host.address, point, home=tmp_path / "home") as mount:
            mount.wait_event("ready")
            assert (point / "file").read_bytes() == noise(1000)
            mount.kill(number)
            assert mount.wait() == code
    assert table.at(str(point)) is None


def test_what_a_killed_mount_left_is_cleared_by_the_next_one(tmp_path, point):
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_bytes(noise(1000))
    home = tmp_path / "home"
    with Host(tmp_path / "tree", home=tmp_path / "host") as host:
        for _ in range(2):
            mounted = run("mount", "--json", host.address, point, home=home).check_ok()
            assert (point / "file").read_bytes() == noise(1000)
            os.kill(pid_of(mounted), signal.SIGKILL)
            wait_until(lambda: ended(pid_of(mounted)), "the end of its process")  # noqa: B023
        run("unmount", point, home=home).check_ok()
        assert table.at(str(point)) is None
