"""Round trips through a lab are measured, and what is made of them is right."""

from __future__ import annotations

import time

import pytest

from bench.bloat import Growth, quantile, row
from headrace.bench import netlab, ping
from headrace.bench.far import first_byte
from headrace.bench.netlab import Lab, Profile
from headrace.bench.process import BenchError

IP = bytes([0x45]) + bytes(19)
LAB = pytest.mark.skipif(bool(netlab.why_not()), reason=netlab.why_not() or "there is a lab")


def test_an_echo_request_has_a_checksum_that_adds_up():
    assert ping.checksum(ping.request(7, 1, 1_700_000_000_123_456_789)) == 0
    assert ping.checksum(b"\x00\x01\xf2\x03\xf4\xf5\xf6\xf7") == 0x220D, "the example of RFC 1071"


def test_only_the_answer_to_an_own_request_counts():
    asked = ping.request(7, 1, 12345)
    answer = IP + b"\x00" + asked[1:]
    assert ping.sent_at(answer, 7) == 12345
    assert ping.sent_at(answer, 8) is None
    assert ping.sent_at(IP + asked, 7) is None, "the request itself, on loopback"
    assert ping.sent_at(answer[:30], 7) is None
    assert ping.sent_at(b"", 7) is None
    longer = bytes([0x46]) + bytes(23) + answer[20:]
    assert ping.sent_at(longer, 7) == 12345, "an IP header with options"


def test_a_quantile_is_one_of_the_values():
    values = [float(n) for n in range(100, 0, -1)]
    assert [quantile(values, share) for share in (0.5, 0.95, 0.99, 1.0)] == [50.0, 95.0, 99.0, 100.0]
    assert quantile([3.0], 0.5) == 3.0


def test_growth_is_the_difference_of_the_quantiles():
    found = Growth([0.050, 0.051, 0.052], [0.080, 0.110, 0.200], [10.0])
    assert found.by(0.5) == pytest.approx(0.059)
    assert found.by(0.95) == pytest.approx(0.148)
    assert row("x", found, 100_000_000, 100e6) == ["x", "51.0, 52.0", "110.0, 200.0", "59.0, 148.0", "80.0"]


def test_the_first_byte_is_that_of_the_last_event():
    said = '{"event":"connected"}\nsome words\n{"event":"done","first_byte_ms":123.5}\n'
    assert first_byte(said) == 123.5
    with pytest.raises(BenchError, match="out of luck"):
        first_byte('{"event":"error","message":"out of luck"}')
    with pytest.raises(BenchError):
        first_byte('{"event":"done","first_byte_ms":null}')


@LAB
@pytest.mark.slow
def test_round_trips_are_those_of_the_link_and_of_its_time():
    with Lab(Profile(delay=0.010)) as lab, ping.Ping(lab, every=0.02) as echo:
        began = time.monotonic()
        while len(echo.between(began, time.monotonic())) < 10:
            time.sleep(0.01)
        changed = time.monotonic()
        lab.set(delay=0.030)
        after = time.monotonic()
        while len(echo.between(after, time.monotonic())) < 10:
            time.sleep(0.01)
    before, during = echo.between(began, changed), echo.between(after, time.monotonic())
    assert 0.020 <= min(before) < 0.050
    assert min(during) >= 0.060
    assert echo.sent >= 20


@LAB
@pytest.mark.slow
def test_a_silent_link_gives_no_round_trips():
    with Lab(Profile(udp_blocked=True)) as lab:
        lab.cut()
        with ping.Ping(lab, every=0.01) as echo:
            while echo.sent < 5:
                time.sleep(0.01)
    assert echo.between(0.0, float("inf")) == []
