"""Copies of what is on this disk already: how much quicker they are, and what looking in vain costs.

`python -m bench.dedup --help`. One file of random bytes is shared. In each round it is fetched

  first           by a client that knows nothing
  full index      by a client whose index is full of chunks of other files: what looking in vain costs
  no index        with --no-content-addressing, which leaves out hashing as well
  again           by the first client once more, to where it is already
  second          by the first client once more, to another name
  a tenth changed the same, with other bytes in one chunk of ten
  cp              from the first copy, without headrace: what copying on this disk takes

Times are from the client's start to its end. Each round does all, so that what else the machine does hits all of them.
Rows are compared with `first`. The host has hashed everything before.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from bench import session
from bench.index import Filler
from headrace.bench import report
from headrace.bench.measure import Spread
from headrace.bench.peers import HEADRACE, Headrace
from headrace.bench.process import BenchError, Child, Command, tail
from headrace.bench.workspace import GIB, MIB, digest, parse_size, place, random_file, workspace
from headrace.protocol.messages import CHUNK_SIZE
from headrace.storage.index import DEFAULT_ENTRIES, ChunkIndex

TIMEOUT: Final = 300.0
PER_FILE: Final = 1000  # chunks of each file that the full index knows
CASES: Final = ("first", "full index", "no index", "again", "second", "a tenth changed", "cp")


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench dedup", description="Second copies beside first ones.")
    parser.add_argument("--size", type=parse_size, default=GIB, help="of the file: 256m, 1g (default 1g)")
    parser.add_argument("--rounds", type=session.positive, default=5, help="counted runs (default %(default)s)")
    parser.add_argument("--entries", type=int, default=DEFAULT_ENTRIES, help="of the full index (default %(default)s)")
    parser.add_argument("--folder", type=Path, default=place(), help="where files and copies lie (default %(default)s)")
    options = parser.parse_args()
    return session.exit_code(lambda: run(options.size, options.rounds, options.entries, options.folder))


def run(size: int, rounds: int, entries: int, where: Path) -> None:
    facts = report.machine()
    with workspace(4 * size + 200 * entries, where) as folder:
        source = folder / "source"
        source.mkdir()
        random_file(source / "file", size)
        shutil.copyfile(source / "file", source / "changed")
        with (source / "changed").open("r+b") as file:
            for start in range(0, size, 10 * CHUNK_SIZE):
                file.seek(start)
                file.write(b"changed")
        peer = Headrace("headrace", folder / "headrace")
        try:
            peer.start(source)
            report.tell(f"filling an index with {entries:,} chunks")
            fill(folder / "full", entries)
            times: dict[str, list[float]] = {case: [] for case in CASES}
            received: dict[str, int] = {}
            for number in range(rounds + 1):
                for case, seconds, fetched in one_round(peer, folder, entries):
                    received[case] = fetched
                    if number:  # the first one is for warming up, and for pairing
                        times[case].append(seconds)
        finally:
            peer.stop()
    base = statistics.median(times["first"])
    rows = [["case", "s median (min..max)", "of first", "MiB fetched"]]
    for case in CASES:
        ratio = statistics.median(a / b for a, b in zip(times[case], times["first"], strict=True))
        share = "" if case == "cp" else f"{received[case] / MIB:,.0f}"
        rows.append([case, report.spread(Spread.of(times[case]), 2), f"{ratio:.2f}", share])
    print(f"\n{size / MIB:,.0f} MiB, {rounds} rounds, in {where}\n{report.machine_line(facts)}\n")
    print(report.columns(rows))
    print(f"\nfirst: {size / base / 1e6:,.0f} MB/s", flush=True)


def fill(home: Path, entries: int) -> None:
    home.mkdir()
    with ChunkIndex(home, 2 * entries) as index:
        Filler(index, home).fill(entries, PER_FILE)


def one_round(peer: Headrace, folder: Path, entries: int) -> Iterator[tuple[str, float, int]]:
    """(case, seconds, bytes fetched)"""
    own, full = folder / "headrace" / "client", folder / "full"
    for path in own.glob("index.*"):
        path.unlink()
    wanted = digest(folder / "source" / "file")
    roomy = ("--cache-entries", str(2 * entries))  # what has to be forgotten for room is another question

    def get(case: str, home: Path, name: str, copy: str, *options: str) -> tuple[str, float, int]:
        seconds, fetched = fetch(peer, home, name, folder / copy, folder, *options)
        if name == "file" and digest(folder / copy) != wanted:
            raise BenchError(f"{case}: the copy differs")
        if copy != "copy":
            (folder / copy).unlink()
        return case, seconds, fetched

    yield get("full index", full, "file", "other", *roomy)
    yield get("first", own, "file", "copy")
    yield get("no index", own, "file", "other", "--no-content-addressing")
    yield get("again", own, "file", "copy")
    yield get("second", own, "file", "other")
    yield get("a tenth changed", own, "changed", "other")
    started = time.monotonic()
    subprocess.run(["cp", folder / "copy", folder / "other"], check=True)
    yield "cp", time.monotonic() - started, 0
    for name in ("copy", "other"):
        (folder / name).unlink()


def fetch(peer: Headrace, home: Path, name: str, copy: Path, folder: Path, *options: str) -> tuple[float, int]:
    """(seconds, bytes fetched) of one `headrace get`."""
    events, log = folder / "events.ndjson", folder / "get.log"
    argv = (*HEADRACE, "get", f"{peer.address}/{name}", str(copy), "--json", *options)
    env = peer.client_environment | {"HEADRACE_HOME": str(home)}
    started = time.monotonic()
    with Child(Command(argv, env), events, log) as child:
        child.wait()
        seconds = time.monotonic() - started
        code, _ = child.reap()
    last = json.loads(events.read_text().splitlines()[-1])
    if code or last["event"] != "done":
        raise BenchError(f"headrace get failed: {tail(log)}")
    return seconds, int(last["bytes_received"])


if __name__ == "__main__":
    sys.exit(main())
