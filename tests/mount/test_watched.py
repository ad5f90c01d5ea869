"""What a mount lets others see: `--metrics` and `--trace`."""

from __future__ import annotations

import json
import os
import re
import urllib.request
from pathlib import Path

import pytest
from tests.product.support import Host, free_port, noise

from headrace.observe.metrics import FAMILIES

from .support import clearing, needs_fuse, run

pytestmark = [needs_fuse, pytest.mark.slow]


def test_a_mount_counts_its_reads_and_traces_them_with_the_host(tmp_path: Path, monkeypatch):
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_bytes(noise(1_000_000))
    where, home = f"127.0.0.1:{free_port()}", tmp_path / "home"
    monkeypatch.chdir(tmp_path)
    with (
        clearing(tmp_path / "mnt") as point,
        Host(tmp_path / "tree", home=tmp_path / "host", options=["--trace", str(tmp_path / "there")]) as host,
    ):
        # In the background, with a path that is relative to a folder that its process does not stay in.
        run("mount", "--json", "--metrics", where, "--trace", "here", host.address, point, home=home).check_ok()
        assert (point / "file").read_bytes() == noise(1_000_000)
        with urllib.request.urlopen(f"http://{where}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        run("unmount", point, home=home).check_ok()
    spans = [json.loads(line) for line in (tmp_path / "here").read_text().splitlines()]
    theirs = [json.loads(line) for line in (tmp_path / "there").read_text().splitlines()]

    rare = {"handshakes", "quic_fallbacks", "io_fallbacks", "rtt_seconds"}
    shown = {family.exported for family in FAMILIES if "mount" in family.where and family.name not in rare}
    missing = {name for name in shown if not re.search(rf"(?m)^{name}(_count)?[{{ ]", text)}
    assert missing == set()
    reads = re.search(r"(?m)^headrace_random_read_seconds_count (\S+)$", text)
    assert reads and float(reads[1]) > 0
    (root,) = (span for span in spans if span["name"] == "mount")
    assert "mount read" in {span["name"] for span in spans} and "serve" in {span["name"] for span in theirs}
    assert {span["trace_id"] for span in spans} == {root["trace_id"]}
    assert root["trace_id"] in {span["trace_id"] for span in theirs}
    assert not os.path.exists("/here")
