"""The kernel's table of mounts, and paths that are resolved without touching what is mounted."""

from __future__ import annotations

import os
from pathlib import Path

from headrace.mount import table

LINES = r"""
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
43 22 0:39 / /mnt/a\040b ro,nosuid,nodev,relatime - fuse.headrace headrace:127.0.0.1:7420 ro,user_id=0,group_id=0
44 22 0:40 / /mnt/other rw shared:2 master:3 - fuse.sshfs me@host:/ rw
45 22 0:41 / /mnt/a\040b ro - tmpfs tmpfs rw
46 nonsense
"""


def test_what_is_mounted(tmp_path):
    file = tmp_path / "mountinfo"
    file.write_text(LINES)
    found = table.everything(file)
    assert [one.point for one in found] == ["/", "/mnt/a b", "/mnt/other", "/mnt/a b"]
    assert found[1] == table.Mounted("/mnt/a b", "fuse.headrace", "headrace:127.0.0.1:7420", "0:39")
    assert [one.ours for one in found] == [False, True, False, False]
    assert table.at("/mnt/a b", file) == found[3], "the one on top"
    assert table.at("/mnt", file) is None
    assert table.everything(tmp_path / "none") == []


def test_a_point_is_named_without_its_links(tmp_path):
    real = tmp_path / "real"
    (real / "mnt").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "direct").symlink_to("link/mnt")
    (tmp_path / "loop").symlink_to("loop")
    top = os.path.realpath(tmp_path)
    for way in ("real/mnt", "link/mnt", "direct", "real/../link/./mnt/"):
        assert table.canonical(tmp_path / way) == f"{top}/real/mnt"
    assert table.canonical(Path("/")) == "/"
    assert table.canonical(tmp_path / "not there") == f"{top}/not there"
    table.canonical(tmp_path / "loop")  # ends
