"""Where the time went, as a table for people and as an event."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from headrace.observe.bottleneck import Breakdown

_NAME: Final = 22  # columns


def lines(breakdown: Breakdown) -> list[str]:
    """A line for each part of the way, and the sentence."""
    rows = [f"{row.name:<{_NAME}}{row.share:>4.0%}{row.seconds:>9.2f} s" for row in breakdown.rows]
    return [*rows, breakdown.sentence]


def event(breakdown: Breakdown) -> dict[str, Any]:
    """The same as an event. Shares from 0 to 1, seconds."""
    return {
        "event": "times",
        "bottleneck": breakdown.bottleneck,
        "message": breakdown.sentence,
        "parts": [
            {"name": row.name, "share": round(row.share, 4), "seconds": round(row.seconds, 4)} for row in breakdown.rows
        ],
    }
