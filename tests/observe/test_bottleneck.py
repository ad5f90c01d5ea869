"""Where the time went: each part is found where it is the slow one, and the shares are the whole."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.observe import bottleneck
from headrace.observe.bottleneck import explain
from headrace.observe.times import Spent

seconds = st.floats(0, 1e6)
spent = st.builds(Spent, seconds, seconds, seconds, seconds, seconds, seconds)

# Ten seconds of one stream. What is slow on one side is waited for on the other.
SLOW = {
    bottleneck.SOURCE: (Spent(disk=0.5, hash=0.5, waiting=9), Spent(disk=8.5, hash=0.5, sending=0.5, rest=0.5)),
    bottleneck.HASH: (Spent(disk=0.5, hash=8, receiving=1.5), Spent(disk=0.5, hash=0.5, sending=9)),
    bottleneck.NETWORK: (Spent(disk=0.5, hash=0.5, waiting=1, receiving=8), Spent(disk=0.5, hash=0.5, sending=9)),
    bottleneck.PEER: (Spent(disk=0.5, hash=0.5, waiting=9), Spent(disk=0.5, hash=0.5, sending=0.5, rest=8.5)),
    bottleneck.DESTINATION: (Spent(disk=8, hash=0.5, receiving=1.5), Spent(disk=0.5, hash=0.5, sending=9)),
    bottleneck.REST: (Spent(disk=0.5, waiting=1.5, rest=8), Spent(disk=0.5, sending=0.5, waiting=9)),
}


@pytest.mark.parametrize("slow", SLOW)
def test_the_slow_part_is_named(slow):
    found = explain(*SLOW[slow], 10.0)

    assert found
    assert found.bottleneck == slow
    assert {row.name: row.share for row in found.rows}[slow] > 0.7
    assert found.sentence.endswith("% of the time).")


def test_bytes_that_were_on_the_way_are_the_networks():
    # A long path: the host waits for requests while we wait for answers.
    found = explain(Spent(disk=1, waiting=9), Spent(disk=1, sending=0.5, waiting=8.5), 10.0)

    assert found and found.bottleneck == bottleneck.NETWORK


def test_who_sends_has_the_source_disk_here():
    here, there = Spent(disk=8, hash=0.5, sending=1.5), Spent(disk=0.5, hash=0.5, receiving=9)

    found = explain(here, there, 10.0, sends=True)
    assert found and found.bottleneck == bottleneck.SOURCE and "this machine reads" in found.sentence
    found = explain(Spent(hash=0.5, sending=8, waiting=1), Spent(disk=8, hash=0.5, receiving=1.5), 10.0, sends=True)
    assert found and found.bottleneck == bottleneck.DESTINATION and "the host writes" in found.sentence


@settings(max_examples=40)
@given(spent, spent, seconds)
def test_the_shares_are_the_whole(here, there, passed):
    found = explain(here, there, passed)
    if found is None:
        assert here.total == 0
        return
    assert sum(row.share for row in found.rows) == pytest.approx(1)
    assert sum(row.seconds for row in found.rows) == pytest.approx(passed, rel=1e-6, abs=1e-6)
    assert all(row.share >= 0 for row in found.rows)


def test_without_the_hosts_word_the_network_and_the_host_are_one():
    found = explain(Spent(disk=1, waiting=9), None, 10.0)

    assert found and found.bottleneck == bottleneck.UNTOLD


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ((5e6, 0.0), "this side's limit of 5.0 MB/s"),
        ((0.0, 2e6), "the host's limit of 2.0"),
        ((5e6, 2e6), "the host's"),
    ],
)
def test_a_limit_is_told_where_the_network_is_slow(limits, said):
    found = explain(*SLOW[bottleneck.NETWORK], 10.0, limit=limits[0], their_limit=limits[1])

    assert found and said in found.sentence
