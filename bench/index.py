"""The chunk index and copies on this disk: look-ups and additions, in an empty and in a full index; each way to copy.

Ratios hold better than seconds on a machine that does other things too. Those of look-ups and additions are to hashing
as many chunks of 4 MiB on one core: what planning costs beside the work it plans. Those of copies are to reading,
hashing and writing.
"""

from __future__ import annotations

import argparse
import errno
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from headrace.protocol.messages import CHUNK_SIZE, HASH_SIZE
from headrace.storage.chunks import hash_bytes
from headrace.storage.clone import Copier
from headrace.storage.index import DEFAULT_ENTRIES, ChunkIndex
from headrace.storage.index_places import Facts, IndexedFile, Place

MIB: Final = 1024 * 1024
AT_ONCE: Final = 10_000  # chunks added in one call, as of a file of 40 GB


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


class Filler:
    """Adds chunks that nobody else has. per_file: chunks in one file."""

    def __init__(self, index: ChunkIndex, folder: Path) -> None:
        self._index = index
        self._path = os.fsencode(folder / "file")
        with open(self._path, "wb") as file:
            file.truncate(AT_ONCE * CHUNK_SIZE)
        self._st = os.stat(self._path)
        self._files = 0

    def fill(self, count: int, per_file: int) -> list[bytes]:
        """Adds `count` chunks and waits until they are written; their hashes."""
        noise = os.urandom(count * HASH_SIZE)
        hashes = [noise[start : start + HASH_SIZE] for start in range(0, len(noise), HASH_SIZE)]
        for start in range(0, count, per_file):
            part = hashes[start : start + per_file]
            rows = [(number * CHUNK_SIZE, CHUNK_SIZE, digest) for number, digest in enumerate(part)]
            self._files += 1
            while not self._index.add(self._path + b"%d" % self._files, self._st, rows, whole=True):
                self._index.flush()
        if not self._index.flush():
            raise SystemExit(str(self._index.off))
        return hashes


def hashing(rounds: int) -> float:
    """Seconds for one chunk."""
    chunk = os.urandom(CHUNK_SIZE)
    return min(seconds(lambda: hash_bytes(chunk)) for _ in range(rounds * 5))


def table(head: str, *columns: str) -> None:
    print(f"\n| {head} | " + " | ".join(columns) + " |\n" + "|---" * (len(columns) + 1) + "|", flush=True)


def row(name: str, amount: int, times: list[float], unit: float) -> None:
    """unit: seconds that a ratio of 1 stands for."""
    median = statistics.median(times)
    cells = (
        f"{median:.2f} ({min(times):.2f}..{max(times):.2f})",
        f"{median / amount * 1e6:.1f}",
        f"{median / unit:.4f}",
    )
    print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def measure_index(folder: Path, count: int, full: int, rounds: int) -> None:
    unit = hashing(rounds) * count
    table(f"{count:,} chunks", "s, median (range)", "µs each", "of hashing them")
    for before in (0, full):
        with ChunkIndex(folder / f"index-{before}", max_entries=max(DEFAULT_ENTRIES, full) * 2) as index:
            for case, work, often in cases(index, folder, count, before):
                name = f"with {before:,}: {case}" if before else f"empty: {case}"
                row(name, count, [seconds(work) for _ in range(rounds if often else 2)], unit)
            if before:
                print(f"\n{index.stats().entries:,} entries take {index.stats().disk // MIB} MiB")


def cases(index: ChunkIndex, folder: Path, count: int, before: int) -> list[tuple[str, Callable[[], object], bool]]:
    """(name, what is timed, whether it can be repeated as often as one likes). before: chunks to add first."""
    filler = Filler(index, folder)
    if before:
        filler.fill(before, AT_ONCE)
    known = filler.fill(count, AT_ONCE)
    unknown = [os.urandom(HASH_SIZE) for _ in range(count)]
    half = [*known[: count // 2], *unknown[: count // 2]]
    return [
        ("look up, all known", lambda: index.lookup(known), True),
        ("look up, half of them known", lambda: index.lookup(half), True),
        ("look up, none known", lambda: index.lookup(unknown), True),
        (f"add, {AT_ONCE:,} a file", lambda: filler.fill(count, AT_ONCE), False),
        ("add, one a file", lambda: filler.fill(count, 1), False),
    ]


def _never(*arguments: int) -> int:
    raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


def measure_copies(folder: Path, size: int, rounds: int) -> None:
    """Whole chunks from one file to another, hashing included. In rounds, so that what else runs hits all ways."""
    source, part = folder / "source", folder / "part"
    chunk = os.urandom(CHUNK_SIZE)
    with source.open("wb") as file:
        for _ in range(0, size, CHUNK_SIZE):
            file.write(chunk)
    facts = IndexedFile(1, os.fsencode(source), Facts.of(source.stat()), True)
    digest = hash_bytes(chunk)
    places = [Place(facts, offset, CHUNK_SIZE, digest) for offset in range(0, size, CHUNK_SIZE)]
    copiers = {"reflink": Copier(), "copy_file_range": Copier(clone=_never), "copy": Copier(_never, _never)}
    times: dict[str, list[float]] = {}
    for _ in range(rounds + 1):
        for wanted, copier in copiers.items():
            part.unlink(missing_ok=True)
            fd = os.open(part, os.O_RDWR | os.O_CREAT)
            try:
                started = time.perf_counter()
                ways = {copier.copy_from(place, fd, place.offset, CHUNK_SIZE).way for place in places}
                if ways == {wanted}:
                    times.setdefault(wanted, []).append(time.perf_counter() - started)
            finally:
                os.close(fd)
    table(f"{size // MIB} MiB copied within {folder.parent}", "s, median (range)", "µs a chunk", "of a plain copy")
    for way in copiers:
        if way in times:
            row(way, len(places), times[way][1:], statistics.median(times["copy"][1:]))
        else:
            print(f"| {way} | not on this file system | | |")


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench index", description=__doc__)
    parser.add_argument("--chunks", type=int, default=100_000, help="looked up, and added")
    parser.add_argument("--full", type=int, default=DEFAULT_ENTRIES, help="how many a full index has")
    parser.add_argument("--size", type=int, default=256, metavar="MIB", help="of the copied file")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--disk", type=Path, default=Path("/var/tmp"), help="a folder on a disk")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.disk, prefix="headrace-bench-") as folder:
        measure_index(Path(folder), arguments.chunks, arguments.full, arguments.rounds)
        measure_copies(Path(folder), arguments.size * MIB, arguments.rounds)


if __name__ == "__main__":
    main()
