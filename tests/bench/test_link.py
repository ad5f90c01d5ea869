"""The arithmetic of the link, without a device and with a clock that the test moves."""

from __future__ import annotations

import random
import struct
from dataclasses import replace

import pytest

from headrace.bench.link import CREDIT, Direction, Profile, is_udp, line_length

KILOBYTE = bytes(1000)


def direction(profile: Profile, header: int = 0) -> Direction:
    return Direction(profile, random.Random(profile.seed), header)


def busy(link: Direction, until: float) -> None:
    """The line is without credit at that time, as in the midst of a stream."""
    link._free_at = until


def number(n: int) -> bytes:
    """A packet of 1,000 bytes that can be told from others."""
    return n.to_bytes(4) + bytes(996)


def test_a_packet_arrives_after_the_delay_and_not_before():
    link = direction(Profile(delay=0.025))
    link.offer(KILOBYTE, 1.0)
    assert link.next_due == pytest.approx(1.025)
    assert link.take(1.024) == []
    assert link.take(1.026) == [KILOBYTE]
    assert link.next_due == float("inf")


def test_each_packet_takes_the_line_for_its_length():
    link = direction(Profile(rate=8e6, delay=0.010))  # 1,000 bytes a millisecond
    busy(link, 0.0)
    for n in range(3):
        link.offer(number(n), 0.0)
    assert [len(link.take(at)) for at in (0.0105, 0.0115, 0.0125, 0.0135)] == [0, 1, 1, 1]


def test_an_idle_line_saves_up_no_more_than_its_credit():
    link = direction(Profile(rate=8e6))
    for n in range(10):
        link.offer(number(n), 5.0)
    assert len(link.take(5.0005)) == CREDIT / 0.001
    assert link.next_due == pytest.approx(5.001)
    assert len(link.take(5.0085)) == 8


def test_credit_makes_no_packet_arrive_before_its_delay():
    link = direction(Profile(rate=1e9, delay=0.0005))
    link.offer(KILOBYTE, 5.0)
    assert link.next_due == pytest.approx(5.0005)


@pytest.mark.parametrize("profile", [Profile(rate=8e6, queue=0.0105), Profile(rate=8e6, queue_bytes=10_500)])
def test_the_queue_drops_what_would_wait_longer(profile: Profile):
    link = direction(profile)
    busy(link, 0.0)
    for n in range(30):
        link.offer(number(n), 0.0)
    arrived = link.take(1.0)
    assert arrived == [number(n) for n in range(11)]  # ten wait, one is on the line
    assert link.counts.overflowed == 19


def test_without_a_rate_nothing_waits_and_nothing_is_dropped():
    link = direction(Profile())
    for n in range(1000):
        link.offer(number(n), 1.0)
    assert link.take(1.0) == [number(n) for n in range(1000)]


def test_loss_is_the_share_asked_for_and_the_same_for_a_seed():
    def survivors(seed: int) -> list[int]:
        link = direction(Profile(loss=0.05, seed=seed))
        for n in range(10_000):
            link.offer(number(n), 0.0)
        return [int.from_bytes(packet[:4]) for packet in link.take(0.0)]

    assert 400 < 10_000 - len(survivors(7)) < 600
    assert survivors(7) == survivors(7)
    assert survivors(7) != survivors(8)


def test_a_reordered_packet_is_overtaken():
    link = direction(Profile(delay=0.010, reorder=0.2, reorder_delay=0.005))
    for n in range(100):
        link.offer(number(n), n * 0.001)
    arrived = [int.from_bytes(packet[:4]) for packet in link.take(1.0)]
    assert sorted(arrived) == list(range(100))
    assert arrived != sorted(arrived)


def test_a_cut_loses_what_is_on_its_way_and_what_comes_until_it_is_mended():
    link = direction(Profile(delay=0.010))
    link.offer(number(1), 0.0)
    link.change(replace(link.profile, down=True))
    link.offer(number(2), 0.0)
    assert link.take(1.0) == []
    link.change(replace(link.profile, down=False))
    link.offer(number(3), 1.0)
    assert link.take(1.02) == [number(3)]
    assert link.counts.cut == 2


def test_a_new_rate_counts_for_what_is_offered_from_then_on():
    link = direction(Profile(rate=8e6))
    busy(link, 0.0)
    link.offer(KILOBYTE, 0.0)
    link.change(replace(link.profile, rate=0.8e6))
    link.offer(KILOBYTE, 0.0)
    assert len(link.take(0.0015)) == 1
    assert link.next_due == pytest.approx(0.011)


def test_blocked_udp_vanishes_and_tcp_does_not():
    tcp, udp = (bytes([0x45]) + bytes(8) + bytes([protocol]) + bytes(10) for protocol in (6, 17))
    link = direction(Profile(udp_blocked=True))
    link.offer(udp, 0.0)
    link.offer(tcp, 0.0)
    assert link.take(0.0) == [tcp]
    assert link.counts.blocked == 1


def test_udp_is_found_in_both_versions_of_ip_and_behind_a_header():
    udp6 = bytes([0x60]) + bytes(5) + bytes([17]) + bytes(33)
    assert is_udp(udp6)
    assert is_udp(bytes(10) + udp6, header=10)
    assert not is_udp(udp6[:6])
    assert not is_udp(b"")


def test_the_header_before_a_packet_takes_no_time_on_the_line():
    link = direction(Profile(rate=8e6), header=10)
    busy(link, 0.0)
    link.offer(bytes(1010), 0.0)  # its virtio_net_hdr is all zeros: no lump
    assert link.next_due == pytest.approx(0.001)
    link.take(1.0)
    assert link.counts.carried_bytes == 1000
    assert link.counts.late == 1
    assert link.counts.latest == pytest.approx(0.999)


def test_a_lump_takes_the_line_as_long_as_its_packets_with_their_headers():
    tcp = bytes(12) + bytes([8 << 4]) + bytes(19)  # 32 bytes, as it says
    lump = struct.pack("=BBHHHH", 1, 1, 52, 1448, 20, 16) + bytes(20) + tcp + bytes(10 * 1448)
    assert line_length(lump, 10) == 10 * 1500
    assert line_length(lump + b"x", 10) == 10 * 1500 + 53
    assert line_length(lump[:30], 10) == 20


@pytest.mark.parametrize(
    "wrong",
    [{"rate": -1}, {"delay": -0.1}, {"loss": 1.5}, {"reorder": -0.1}, {"veth": True, "delay": 0.1}],
)
def test_what_no_link_is_like_is_refused(wrong: dict):
    with pytest.raises(ValueError):
        Profile(**wrong)
