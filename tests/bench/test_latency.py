"""The latency benchmark's arithmetic, and that it leaves nothing behind. Nothing here looks at how long it took."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from bench.latency import Scene, Times, Way, row
from headrace.bench.netlab import Profile
from headrace.bench.workspace import MIB


def test_a_row_has_the_quantiles_the_ratio_and_the_aim():
    times = Times(alone=[0.051, 0.050, 0.060], loaded=[0.102, 0.100, 0.300])
    way = Way("a link", Profile(delay=0.025), 1, 1)
    assert way.rtt == 0.050
    assert row(way, "lane", times) == [
        "a link",
        "lane",
        "51.00, 60.00, 60.00",
        "102.00, 300.00, 300.00",
        "2.00",
        "102.00, 152.00",
    ]


@pytest.mark.slow
def test_every_way_to_read_is_timed_alone_and_under_load(tmp_path: Path):
    way = Way("loopback", None, 256 * MIB, 3)
    before = set(threading.enumerate())
    with Scene(way, "tcp", tmp_path) as scene:
        found = scene.measure(1)
    assert {name: (len(times.alone), len(times.loaded)) for name, times in found.items()} == {
        "lane": (3, 3),
        "file": (3, 3),
    }
    assert min(min(times.alone) for times in found.values()) > 0
    assert list(tmp_path.iterdir()) == []
    assert set(threading.enumerate()) == before
