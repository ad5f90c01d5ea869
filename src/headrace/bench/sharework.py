"""Reads by headrace's library, timed: what a program sees that uses no mount.

    HEADRACE_CODE=... python -m headrace.bench.sharework WORK '{"address": HOST:PORT, "name": FILE, ...}'

Prints one JSON object of figures in seconds, as `mountwork` does. Whatever was read is compared with what was shared.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import headrace
from headrace.bench.mountwork import Figures, WrongError


def reads(
    address: str, source: str, name: str, places: Sequence[int], size: int, protocol: int | None = None
) -> Figures:
    """`size` bytes at each place, one after the other. protocol: None for the highest."""
    took, pieces = [], []
    target = f"{os.environ['HEADRACE_CODE']}@{address}"
    with headrace.connect(target, protocol=protocol) as share, share.open(name) as file:
        for place in places:
            started = time.perf_counter()
            file.seek(place)
            pieces.append(_read(file, size))
            took.append(time.perf_counter() - started)
    with Path(source, name).open("rb") as known:
        for place, piece in zip(places, pieces, strict=True):
            if os.pread(known.fileno(), size, place) != piece:
                raise WrongError(f"{size} bytes at {place} are other ones")
    return {"reads": took}


def _read(file: headrace.RemoteFile, size: int) -> bytes:
    """As programs read: again until all is there."""
    piece = bytearray(size)
    view, filled = memoryview(piece), 0
    while filled < size and (count := file.readinto(view[filled:])):
        filled += count
    return bytes(view[:filled])


def main(said: str) -> int:
    arguments: dict[str, Any] = json.loads(said)
    try:
        json.dump(reads(**arguments), sys.stdout)
    except (WrongError, OSError, headrace.HeadraceError) as why:
        print(why, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
