"""What programs do with a mounted folder, timed. A benchmark starts it: a mount that hangs then hangs this process.

    python -m headrace.bench.mountwork WORK '{"point": FOLDER, ...}'

Prints one JSON object of figures in seconds. Whatever was read is compared with what was shared, after it was timed.
Exits with 1 and says why on standard error where that differs.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

PIECE: Final = 4096  # bytes of a random read
SEEK: Final = 4 << 20  # bytes read after a seek
_GIT: Final = (
    "git",
    *("-c", "safe.directory=*"),
    *("-c", "core.checkStat=minimal", "-c", "core.trustctime=false"),  # no mount keeps ctime and inode of the share
)

Figures = dict[str, list[float]]


class WrongError(Exception):
    """What the mount gave is not what is there."""


def random_reads(point: Path, source: Path, name: str, count: int, seed: int) -> Figures:
    """`count` reads of 4 KiB at places of a file that nobody read before, one after the other."""
    pages = (source / name).stat().st_size // PIECE
    places = [page * PIECE for page in random.Random(seed).sample(range(pages), count)]
    return {"reads": _reads(point / name, source / name, places, PIECE)}


def at_places(point: Path, source: Path, name: str, places: list[int], size: int) -> Figures:
    """`size` bytes at each place."""
    return {"reads": _reads(point / name, source / name, places, size)}


def seeks(point: Path, source: Path, name: str, places: list[int]) -> Figures:
    """4 MiB at each place."""
    return {"reads": _reads(point / name, source / name, places, SEEK)}


def _reads(copy: Path, original: Path, places: Sequence[int], size: int) -> list[float]:
    took, pieces = [], []
    file = os.open(copy, os.O_RDONLY)
    for place in places:
        started = time.perf_counter()
        piece = _pread(file, size, place)
        took.append(time.perf_counter() - started)
        pieces.append(piece)
    os.close(file)
    with original.open("rb") as known:
        for place, piece in zip(places, pieces, strict=True):
            if os.pread(known.fileno(), size, place) != piece:
                raise WrongError(f"{size} bytes at {place} of {copy} are other ones")
    return took


def _pread(file: int, size: int, place: int) -> bytes:
    """As programs read: again until all is there."""
    piece = os.pread(file, size, place)
    while len(piece) < size and (more := os.pread(file, size - len(piece), place + len(piece))):
        piece += more
    return piece


def first_bytes(point: Path, source: Path, names: list[str]) -> Figures:
    """Opening a file and its first byte, of one file after the other."""
    took, found = [], []
    for name in names:
        started = time.perf_counter()
        file = os.open(point / name, os.O_RDONLY)
        found.append(os.pread(file, 1, 0))
        took.append(time.perf_counter() - started)
        os.close(file)
    for name, byte in zip(names, found, strict=True):
        with (source / name).open("rb") as known:
            if known.read(1) != byte:
                raise WrongError(f"the first byte of {name} is another one")
    return {"opens": took}


def copy(point: Path, source: Path, name: str, dest: Path) -> Figures:
    """`cp` of one file to `dest`."""
    took, _ = _run(["cp", str(point / name), str(dest)])
    same = subprocess.run(["cmp", "--quiet", str(dest), str(source / name)]).returncode == 0
    dest.unlink()
    if not same:
        raise WrongError(f"the copy of {name} is another file")
    return {"seconds": [took]}


def git_status(point: Path, tree: str, files: int) -> Figures:
    """Cold, then again."""
    argv = [*_GIT, "-C", str(point / tree), "status", "--porcelain"]
    return _twice(lambda: _expect(_run(argv, env={"GIT_OPTIONAL_LOCKS": "0"}), ""))


def grep(point: Path, tree: str, files: int) -> Figures:
    """All of the files are read; nothing is found."""
    argv = ["grep", "-r", "--exclude-dir=.git", "no such words in here", str(point / tree)]
    return _twice(lambda: _expect(_run(argv, code=1), ""))


def find(point: Path, tree: str, files: int) -> Figures:
    """It looks at each file's size."""

    def once() -> float:
        argv = ["find", str(point / tree), "-name", ".git", "-prune", "-o", "-type", "f", "-size", "-1000k", "-print"]
        took, said = _run(argv)
        return _counted(took, said, files)

    return _twice(once)


def listing(point: Path, name: str, entries: int, long: bool) -> Figures:
    """`ls`, with `long` `ls -l`."""
    took, said = _run(["ls", *(["-l"] if long else []), str(point / name)])
    return {"seconds": [_counted(took, said, entries + long)]}


def _twice(work: Callable[[], float]) -> Figures:
    return {"cold": [work()], "warm": [work()]}


def _run(argv: Sequence[str], *, code: int = 0, env: dict[str, str] | None = None) -> tuple[float, str]:
    started = time.perf_counter()
    ran = subprocess.run(argv, capture_output=True, text=True, errors="replace", env=os.environ | (env or {}))
    took = time.perf_counter() - started
    if ran.returncode != code or ran.stderr:
        raise WrongError(f"{' '.join(argv)} ended with {ran.returncode}: {ran.stderr.strip()[-500:]}")
    return took, ran.stdout


def _expect(ran: tuple[float, str], wanted: str) -> float:
    took, said = ran
    if said != wanted:
        raise WrongError(f"it said {said[:200]!r}, not {wanted!r}")
    return took


def _counted(took: float, said: str, lines: int) -> float:
    found = said.count("\n")
    if found != lines:
        raise WrongError(f"{found} lines, not {lines}")
    return took


WORKS: Final[dict[str, Callable[..., Figures]]] = {
    "random": random_reads,
    "seek": seeks,
    "places": at_places,
    "first": first_bytes,
    "copy": copy,
    "git": git_status,
    "grep": grep,
    "find": find,
    "list": listing,
}
_PATHS: Final = ("point", "source", "dest")


def main(work: str, said: str) -> int:
    arguments: dict[str, Any] = json.loads(said)
    for name in _PATHS:
        if name in arguments:
            arguments[name] = Path(arguments[name])
    try:
        json.dump(WORKS[work](**arguments), sys.stdout)
    except (WrongError, OSError) as why:
        print(f"{work}: {why}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
