"""A small crowd at one share: everybody is served the right bytes, and nothing of them stays. `scripts/bench crowd` has
the large one, with latencies and fair shares."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from bench import crowd

from .support import MIB, Host

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    folder = tmp_path_factory.mktemp("crowd")
    with Host(crowd.make_tree(folder / "tree"), home=folder / "home", options=["--transport", "tcp"]) as host:
        crowd.crowd(host.port, 5, 3)  # what is loaded late is loaded now
        yield host
        assert "Traceback" not in host.stderr


def test_many_at_once_idle_ones_and_ones_that_come_and_go_leave_nothing(host: Host) -> None:
    before = crowd.settled(host.pid, crowd.Weight(9, 3, 0), 2)
    assert len(crowd.crowd(host.port, 40, 5).all) == 200, "more newcomers than there are tries for a code"
    with crowd.idle(host.port, 100), crowd.Client(host.port) as one:
        one.use(random.Random(1))
        assert crowd.Weight.of(host.pid).threads > 100
    assert len(crowd.churn(host.port, 150, 4, lambda done: None).all) == 150
    after = crowd.settled(host.pid, before)
    assert after.descriptors <= before.descriptors and after.threads <= before.threads, (before, after)
    assert after.rss < before.rss + 40 * MIB, (before, after)
