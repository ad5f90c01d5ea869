"""System calls for each MiB, on each path and both ends, counted by strace. What they cost is another question: `bulk`.

A small and a large file are moved; what counts is the difference.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.session import CLEAR
from headrace.bench.calls import parse
from headrace.bench.measure import run
from headrace.bench.peers import HEADRACE, Headrace
from headrace.bench.process import BenchError, Command
from headrace.bench.workspace import MIB, checker, parse_size, place, random_file, workspace

CASES: Final[dict[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {  # options of get, options of share
    "tls": ((), ()),
    "clear": (CLEAR, CLEAR),
    "uring": (("--io", "uring"), ("--io", "uring")),
    "plain": (("--io", "plain"), ("--io", "plain")),
    "protocol 7": (("--protocol", "7"), ()),
    "plain, protocol 7": (("--io", "plain", "--protocol", "7"), ("--io", "plain")),
}
ENDED_WITHIN: Final = 10.0  # seconds for strace to write its table


@dataclass(frozen=True, slots=True)
class Count:
    """Calls of both ends, by name."""

    get: Counter[str]
    share: Counter[str]


class _Traced(Headrace):
    """A share under strace. `-D` keeps the share the process that was started, so it can be ended as ever."""

    def __init__(self, folder: Path, options: tuple[str, ...], table: Path) -> None:
        super().__init__("traced", folder, share_options=options)
        self.launcher = _strace(table)


def _strace(table: Path) -> tuple[str, ...]:
    return ("strace", "-D", "-f", "-c", "-o", str(table))


def measure(case: str, source: Path, folder: Path) -> Count:
    """One transfer under strace, checked."""
    ours, theirs = CASES[case]
    folder.mkdir()
    peer = _Traced(folder / "peer", theirs, folder / "share.txt")
    dest = folder / "dest"
    dest.mkdir()
    try:
        peer.start(source.parent)
        target = f"{peer.address}/{source.name}"
        argv = (*_strace(folder / "get.txt"), *HEADRACE, "get", target, str(dest / source.name), "--quiet", *ours)
        run(Command(argv, peer.client_environment), log=folder / "log")
        checker(source)(dest / source.name)
    finally:
        peer.stop()
    shutil.rmtree(dest)
    return Count(_when_written(folder / "get.txt"), _when_written(folder / "share.txt"))


def _when_written(table: Path) -> Counter[str]:
    deadline = time.monotonic() + ENDED_WITHIN
    while time.monotonic() < deadline:
        if table.exists() and "total" in table.read_text():
            return parse(table.read_text())
        time.sleep(0.05)
    raise BenchError(f"strace wrote no table to {table}")


def marginal(case: str, sources: tuple[Path, Path], folder: Path) -> Count:
    """What the larger file takes more than the smaller one: start-up, connecting and listing cancel out."""
    small, large = (measure(case, source, folder / f"{case}-{source.stem}".replace(" ", "")) for source in sources)
    return Count(large.get - small.get, large.share - small.share)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--size", type=parse_size, default=512 * MIB, help="of the larger file (default 512m)")
    size = options.parse_args().size
    if shutil.which("strace") is None:
        raise SystemExit("strace is not installed; as root: apt install strace")
    mib = (size - size // 8) / MIB
    with workspace(4 * size, place()) as folder:
        sources = folder / "source" / "small", folder / "source" / "large"
        sources[0].parent.mkdir()
        for source, bytes_ in zip(sources, (size // 8, size), strict=True):
            random_file(source, bytes_)
        print("System calls for one MiB more\n")
        print("| path | get | share | most of them, get | share |\n|---|---|---|---|---|")
        for case in CASES:
            count = marginal(case, sources, folder)
            both = (count.get, count.share)
            sums = [f"{one.total() / mib:.1f}" for one in both]
            most = [", ".join(f"{name} {n / mib:.1f}" for name, n in one.most_common(5)) for one in both]
            print(f"| {case} | {' | '.join(sums)} | {' | '.join(most)} |", flush=True)


if __name__ == "__main__":
    main()
