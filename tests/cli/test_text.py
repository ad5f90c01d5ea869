"""Sizes, rates and times as people read them."""

from __future__ import annotations

import pytest

from headrace.cli.text import clock, counted, human_limit, human_rate, human_seconds, human_size, shown_name

KIB, MIB, GIB = 1024, 1024**2, 1024**3


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (KIB, "1.0 KiB"),
        (KIB + KIB // 2, "1.5 KiB"),
        (99 * KIB, "99.0 KiB"),
        (100 * KIB, "100 KiB"),
        (1023 * KIB, "1023 KiB"),
        (MIB - 1, "1.0 MiB"),
        (GIB, "1.0 GiB"),
        (612 * GIB, "612 GiB"),
        (1 << 62, "4.0 EiB"),
    ],
)
def test_sizes_count_in_powers_of_1024(count, text):
    assert human_size(count) == text


@pytest.mark.parametrize(
    ("rate", "text"),
    [
        (0, "0 B/s"),
        (640.4, "640 B/s"),
        (999.6, "1.0 kB/s"),
        (1e6, "1.0 MB/s"),
        (6.14e6, "6.1 MB/s"),
        (612e6, "612 MB/s"),
        (999.7e6, "1.0 GB/s"),
        (99.97e6, "100 MB/s"),
    ],
)
def test_rates_count_in_powers_of_1000(rate, text):
    assert human_rate(rate) == text


@pytest.mark.parametrize(
    ("rate", "text"),
    [(None, "no limit"), (1.0, "1 B/s"), (20 * MIB, "20.0 MiB/s"), (1.5 * MIB, "1.5 MiB/s")],
)
def test_limits_are_in_the_units_in_which_they_are_given(rate, text):
    assert human_limit(rate) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.004, "0.00 s"),
        (0.034, "0.03 s"),
        (1.66, "1.7 s"),
        (9.96, "10 s"),
        (59.6, "1 min 0 s"),
        (185, "3 min 5 s"),
        (7800, "2 h 10 min"),
    ],
)
def test_durations(seconds, text):
    assert human_seconds(seconds) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "0:01"), (5, "0:05"), (760, "12:40"), (11220, "3:07:00")])
def test_time_left_is_rounded_up(seconds, text):
    assert clock(seconds) == text


def test_counts():
    assert [counted(n, "file") for n in (0, 1, 2000)] == ["0 files", "1 file", "2,000 files"]


def test_a_name_cannot_move_the_cursor():
    assert shown_name(b"a\x1b[31m\r\n\xff") == "a\\x1b[31m\\r\\n\\xff"
    assert shown_name(b"x" * 255) == "x" * 255
