"""Sizes, rates and times as people read them: sizes in powers of 1024, rates in powers of 1000, as networks' are."""

from __future__ import annotations

import math
from typing import Final

from headrace.errors import printable

_SIZES: Final = ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_RATES: Final = ("kB/s", "MB/s", "GB/s", "TB/s")


def human_size(count: int) -> str:
    """`count` bytes: 512 B, 1.0 KiB, 23.4 MiB, 612 GiB."""
    return f"{count} B" if count < 1024 else _scaled(count, 1024, _SIZES)


def human_rate(per_second: float) -> str:
    """Bytes a second: 640 B/s, 6.1 MB/s, 612 MB/s."""
    return f"{per_second:.0f} B/s" if per_second < 999.5 else _scaled(per_second, 1000, _RATES)


def human_limit(per_second: float | None) -> str:
    """A rate limit, in the units in which it is given: 640 B/s, 20.0 MiB/s, no limit."""
    return "no limit" if per_second is None else f"{human_size(round(per_second))}/s"


def _scaled(value: float, step: int, units: tuple[str, ...]) -> str:
    value /= step
    # 999.95 would be shown as 1000.0: such a value belongs to the next unit.
    for unit in units[:-1]:
        if round(value, 0 if value >= 99.95 else 1) < (1000 if step == 1000 else 1024):
            return f"{value:.0f} {unit}" if value >= 99.95 else f"{value:.1f} {unit}"
        value /= step
    return f"{value:.0f} {units[-1]}" if value >= 99.95 else f"{value:.1f} {units[-1]}"


def human_seconds(seconds: float) -> str:
    """A duration that is over: 0.03 s, 1.7 s, 42 s, 3 min 5 s, 2 h 10 min."""
    if seconds < 0.0995:
        return f"{seconds:.2f} s"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def clock(seconds: float) -> str:
    """A time left, rounded up: 0:05, 12:40, 3:07:00."""
    whole = math.ceil(seconds)
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d}"
    return f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"


def counted(count: int, noun: str) -> str:
    """1 file, 2,000 files."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def shown_name(raw: bytes) -> str:
    """A name or path as a terminal may show it: escapes for control characters and for what is not UTF-8."""
    return printable(raw.decode("utf-8", "backslashreplace"), limit=len(raw) * 10 + 1)
