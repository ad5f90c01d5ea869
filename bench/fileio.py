"""The file backends beside each other: chunks hot and cold, many ranges at once, many small files.

Cold means that the page cache was dropped before each run, which takes root; without it those rows are left out.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from headrace.bench.measure import touch_memory
from headrace.errors import UsageError
from headrace.storage.fileio import FileIO, NewFile, Range, Wanted
from headrace.storage.platform import platform_io

KIB: Final = 1024
MIB: Final = 1024 * KIB
CHUNK: Final = 4 * MIB
PIECE: Final = 128 * KIB
DEPTH: Final = 64
SMALL: Final = 10 * KIB
DROP: Final = Path("/proc/sys/vm/drop_caches")

Work = Callable[[FileIO], None]


class Cases:
    """A folder with one large file and many small ones, and what is done with them."""

    def __init__(self, folder: Path, size: int, files: int) -> None:
        self.folder = folder
        self._size = size
        noise = random.Random(7420).randbytes(CHUNK)
        with (folder / "large").open("wb") as file:
            for _ in range(0, size, CHUNK):
                file.write(noise)
        self._fd = os.open(folder / "large", os.O_RDWR)
        self._made = folder / "made"
        (folder / "small").mkdir()
        self._small = os.open(folder / "small", os.O_RDONLY)
        self._files = [NewFile(b"%06d" % n, noise[n : n + SMALL], 0o644, 10**18) for n in range(files)]
        self._wanted = [Wanted(file.name, SMALL) for file in self._files]
        platform_io("posix").create_files(self._small, self._files)
        self._chunk = memoryview(bytearray(noise))
        self._buffers = [memoryview(bytearray(PIECE)) for _ in range(DEPTH)]
        offsets = range(0, size, PIECE)
        self._offsets = random.Random(1).sample(offsets, min(512, len(offsets)))

    def close(self) -> None:
        os.close(self._fd)
        os.close(self._small)

    def read_chunks(self, io: FileIO) -> None:
        for offset in range(0, self._size, CHUNK):
            assert io.read_into(self._fd, self._chunk, offset) == CHUNK

    def write_chunks(self, io: FileIO) -> None:
        for offset in range(0, self._size, CHUNK):
            io.write(self._fd, self._chunk, offset)

    def read_ranges(self, io: FileIO) -> None:
        for start in range(0, len(self._offsets), DEPTH):
            part = self._offsets[start : start + DEPTH]
            ranges = [Range(self._fd, buffer, at) for buffer, at in zip(self._buffers, part, strict=False)]
            assert io.read_ranges(ranges) == [PIECE] * len(ranges)

    def read_files(self, io: FileIO) -> None:
        found = io.read_files(self._small, self._wanted)
        assert not any(isinstance(one, OSError) for one in found)

    def create_files(self, io: FileIO) -> None:
        fd = os.open(self._made, os.O_RDONLY)
        try:
            assert not any(io.create_files(fd, self._files))
        finally:
            os.close(fd)

    # ---- what comes before a run ---------------------------------------------------------------------------------

    def hot(self) -> None:
        """Nothing: the run that is not counted warmed it."""

    def cold(self) -> None:
        os.sync()
        DROP.write_text("3")
        os.listdir(self._small)

    def fresh(self) -> None:
        shutil.rmtree(self._made, ignore_errors=True)
        self._made.mkdir()
        touch_memory(self.folder, 2 * len(self._files) * SMALL)


def compare(name: str, work: Work, before: Callable[[], None], backends: Sequence[FileIO], rounds: int) -> str:
    """A line of the table. Every round has all backends, in another order each time."""
    seconds: dict[str, list[float]] = {io.name: [] for io in backends}
    order = list(backends)
    for number in range(rounds + 1):
        random.shuffle(order)
        for io in order:
            before()
            started = time.perf_counter()
            work(io)
            if number:
                seconds[io.name].append(time.perf_counter() - started)
    cells = [name, *(f"{statistics.median(seconds[io.name]) * 1000:,.0f}" for io in backends)]
    for io in backends:
        if io.name != "posix":
            ratios = [other / own for own, other in zip(seconds["posix"], seconds[io.name], strict=True)]
            cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f}..{max(ratios):.2f})")
    return "| " + " | ".join(cells) + " |"


def measure(folder: Path, size: int, files: int, rounds: int, backends: Sequence[FileIO], cold: bool) -> None:
    cases = Cases(folder, size, files)
    try:
        table: list[tuple[str, Work, Callable[[], None]]] = [
            ("4 MiB reads", cases.read_chunks, cases.hot),
            ("4 MiB writes over what is there", cases.write_chunks, cases.hot),
            (f"128 KiB reads, {DEPTH} at once", cases.read_ranges, cases.hot),
            (f"{files:,} files of 10 KiB read", cases.read_files, cases.hot),
            (f"{files:,} files of 10 KiB made", cases.create_files, cases.fresh),
        ]
        if cold:
            table += [
                ("4 MiB reads, cold", cases.read_chunks, cases.cold),
                (f"128 KiB reads, {DEPTH} at once, cold", cases.read_ranges, cases.cold),
                (f"{files:,} files of 10 KiB read, cold", cases.read_files, cases.cold),
            ]
        names = [io.name for io in backends]
        heads = [*(f"{name} ms" for name in names), *(f"posix × {name}" for name in names if name != "posix")]
        print(f"\n{folder.parent}, {size // MIB} MiB, {rounds} rounds\n")
        print("| case | " + " | ".join(heads) + " |")
        print("|---" * (len(heads) + 1) + "|")
        for name, work, before in table:
            print(compare(name, work, before, backends, rounds), flush=True)
    finally:
        cases.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench fileio", description=__doc__)
    parser.add_argument("--size", type=int, default=256, metavar="MIB", help="of the large file")
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--disk", type=Path, default=Path("/var/tmp"), help="a folder on a disk")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        backends: list[FileIO] = []
        for choice in ("posix", "uring", "plain"):
            try:
                backends.append(platform_io(choice))
                stack.callback(backends[-1].close)
            except UsageError as why:
                print(why)
        for parent in (Path("/dev/shm"), arguments.disk):
            with tempfile.TemporaryDirectory(dir=parent, prefix="headrace-bench-") as folder:
                on_disk = parent == arguments.disk and os.access(DROP, os.W_OK)
                measure(Path(folder), arguments.size * MIB, arguments.files, arguments.rounds, backends, on_disk)


if __name__ == "__main__":
    main()
