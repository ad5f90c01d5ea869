"""Memory stays the same however large the file is."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .support import MIB, Host, make_file, noise, run_get

SIZE = 300 * MIB
MOST = 150 * MIB


@pytest.fixture
def in_memory(tmp_path: Path) -> Iterator[Path]:
    """A folder without a disk behind it, where there is one."""
    shm = Path("/dev/shm")
    if not shm.is_dir() or shutil.disk_usage(shm).free < 4 * SIZE:
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=shm, prefix="headrace-test-") as folder:
        yield Path(folder)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("protocol", ["8", "7"])
def test_a_large_file_takes_little_memory_on_both_sides(in_memory: Path, protocol: str) -> None:
    block = noise(SIZE // 10)
    make_file(in_memory / "file", block * 10)
    options = ("--protocol", protocol)
    with Host(in_memory / "file", home=in_memory / "host") as host:
        result = run_get(host.address, in_memory / "dest", *options, home=in_memory / "home", measure=True).check_ok()
        host.watch_rss()
        assert result.done["bytes_received"] == SIZE
        assert os.path.getsize(in_memory / "dest") == SIZE
        assert (in_memory / "dest").read_bytes() == block * 10
        assert 0 < result.peak_rss < MOST, result.peak_rss
        assert 0 < host.peak_rss < MOST, host.peak_rss
        # What is there already is compared by its hashes, which takes no more.
        os.utime(in_memory / "dest")
        again = run_get(host.address, in_memory / "dest", *options, home=in_memory / "home", measure=True).check_ok()
        assert again.done["bytes_reused"] == SIZE
        assert again.peak_rss < MOST


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_64_chunks_in_flight_stay_within_the_pools_bound(in_memory: Path) -> None:
    """16 lanes with 4 requests each; the pools hold 64 MiB each, and 16 MiB where they were told so."""
    make_file(in_memory / "file", noise(SIZE // 10) * 10)
    peaks = {}
    for buffers in ("16M", "64M"):
        with Host(in_memory / "file", home=in_memory / "host", options=("--buffers", buffers)) as host:
            options = ("--connections", "16", "--buffers", buffers)
            result = run_get(host.address, in_memory / buffers, *options, home=in_memory / "home", measure=True)
            host.watch_rss()
        result.check_ok()
        assert result.done["streams"] == 16
        peaks[buffers] = (result.peak_rss, host.peak_rss)
        (in_memory / buffers).unlink()
    assert max(peaks["64M"]) < 200 * MIB, peaks
    assert max(peaks["16M"]) < 130 * MIB, peaks
