"""Files of which an older version is here: what crosses the network and how long it takes, beside rsync's delta.

`python -m bench.changed --help`. In each case the destination holds the old version and the source is the new one:

  insert    1 KiB more at the front
  append    a tenth more at the end
  tenth     other bytes in one chunk of ten
  image     2,000 blocks of 4 KiB each changed, anywhere
  tree      the sources of Python's library: a line more at the front of every tenth file, and all times are new

Each round does `update` (get --on-exist overwrite), `full` (the same, into an empty folder), rsync over ssh and rsync
from its daemon (--archive, so by its delta). Received: bytes of files; for rsync, and as `wire`, all that came.
The host has hashed everything before, unless --cold.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import statistics
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from bench import session
from headrace.bench import report
from headrace.bench.measure import Spread
from headrace.bench.peers import HEADRACE, Headrace, RsyncDaemon, RsyncOverSsh
from headrace.bench.process import BenchError, Child, Command, tail
from headrace.bench.workspace import GIB, MIB, digest, parse_size, place, random_file, workspace
from headrace.protocol.messages import BLOCK_SIZE, CHUNK_SIZE, KIB

WRITES: Final = 2_000
OLD: Final = 1_600_000_000  # seconds since 1970


def insert(file: Path, size: int) -> None:
    new = file.with_suffix(".new")
    with file.open("rb") as old, new.open("wb") as out:
        out.write(os.urandom(KIB))
        shutil.copyfileobj(old, out, MIB)
    new.replace(file)


def append(file: Path, size: int) -> None:
    with file.open("ab") as out:
        for _ in range(0, size // 10, MIB):
            out.write(os.urandom(MIB))


def tenth(file: Path, size: int) -> None:
    with file.open("r+b") as out:
        for start in range(0, size, 10 * CHUNK_SIZE):
            out.seek(start)
            out.write(os.urandom(min(CHUNK_SIZE, size - start)))


def image(file: Path, size: int) -> None:
    choice = random.Random(1)
    with file.open("r+b") as out:
        for _ in range(WRITES):
            out.seek(choice.randrange(size // BLOCK_SIZE) * BLOCK_SIZE)
            out.write(os.urandom(BLOCK_SIZE))


def tree(folder: Path, size: int) -> None:
    for number, path in enumerate(sorted(folder.rglob("*.py"))):
        if number % 10 == 0:
            path.write_bytes(b"# changed\n" + path.read_bytes())


CASES: Final[dict[str, Callable[[Path, int], None]]] = {
    "insert": insert,
    "append": append,
    "tenth": tenth,
    "image": image,
    "tree": tree,
}
WAYS: Final = ("update", "full", "rsync over ssh", "rsync daemon")


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench changed", description="Updates of what changed.")
    parser.add_argument("--size", type=parse_size, default=GIB, help="of the file: 256m, 1g (default 1g)")
    parser.add_argument("--rounds", type=session.positive, default=3, help="counted runs (default %(default)s)")
    parser.add_argument("--only", default=",".join(CASES), help="cases, by comma (default all)")
    parser.add_argument("--cold", action="store_true", help="the host hashes and sums anew each time")
    parser.add_argument("--folder", type=Path, default=place(), help="where files and copies lie (default %(default)s)")
    options = parser.parse_args()
    return session.exit_code(lambda: run(options))


def run(options: argparse.Namespace) -> None:
    facts = report.machine()
    rows = [["case", "way", "s median (min..max)", "of full", "received", "of all", "wire"]]
    names = options.only.split(",")
    if unknown := sorted(set(names) - set(CASES)):
        raise BenchError(f"no such case: {', '.join(unknown)}")
    for case in names:
        with workspace(4 * options.size, options.folder) as folder:
            found = one_case(case, folder, options)
        report.tell(report.columns([rows[0], *found]))
        rows += found
    print(f"\n{options.size / MIB:,.0f} MiB, {options.rounds} rounds, in {options.folder}")
    print(f"{report.machine_line(facts)}\n\n{report.columns(rows)}", flush=True)


def one_case(case: str, folder: Path, options: argparse.Namespace) -> list[list[str]]:
    source, old = folder / "source", folder / "old"
    source.mkdir()
    new = source / "data"
    if case == "tree":
        library = sysconfig.get_path("stdlib")
        shutil.copytree(library, old, ignore=lambda path, names: [n for n in names if not _is_source(path, n)])
        shutil.copytree(old, new)
    else:
        random_file(old, options.size)
        shutil.copyfile(old, new)
    CASES[case](new, options.size)
    for path in [old, *old.rglob("*")] if old.is_dir() else [old]:
        os.utime(path, (OLD, OLD))
    for path in [new, *new.rglob("*")] if new.is_dir() else [new]:
        os.utime(path, (OLD + 1, OLD + 1))
    wanted = digest(new)
    total = sum(path.stat().st_size for path in ([new] if new.is_file() else new.rglob("*")) if path.is_file())
    headrace = Headrace("headrace", folder / "headrace", cold=options.cold)
    peers = (headrace, RsyncOverSsh("rsync-ssh", folder / "ssh"), RsyncDaemon("rsync-daemon", folder / "daemon"))
    figures: dict[str, list[tuple[float, int, int]]] = {way: [] for way in WAYS}
    try:
        for peer in peers:
            peer.start(source)
        for number in range(options.rounds + 1):
            for way in WAYS:
                dest = folder / "dest"
                dest.mkdir()
                if way != "full":
                    _copy(old, dest / "data")
                headrace.before_run()
                if "rsync" in way:
                    result = by_rsync(peers[1 + WAYS.index(way) - 2].command("data", dest), folder)
                else:
                    result = by_headrace(headrace, dest / "data", folder)
                if digest(dest / "data") != wanted:
                    raise BenchError(f"{case}, {way}: the copy differs")
                shutil.rmtree(dest)
                if number:
                    figures[way].append(result)
            report.tell(f"{case}: round {number} of {options.rounds}")
    finally:
        for peer in peers:
            peer.stop()
    rows = []
    for way in WAYS:
        times = [seconds for seconds, _, _ in figures[way]]
        ratio = statistics.median(a / b[0] for a, b in zip(times, figures["full"], strict=True))
        received, wire = (statistics.median(figure[number] for figure in figures[way]) for number in (1, 2))
        row = [case, way, report.spread(Spread.of(times), 2), f"{ratio:.2f}"]
        rows.append([*row, f"{received:,.0f}", f"{received / total:.2%}", f"{wire:,.0f}"])
    return rows


def _is_source(folder: str, name: str) -> bool:
    path = Path(folder, name)
    return path.is_dir() and name not in ("site-packages", "__pycache__", "dist-packages") or name.endswith(".py")


def _copy(old: Path, dest: Path) -> None:
    if old.is_dir():
        shutil.copytree(old, dest)
    else:
        shutil.copy2(old, dest)


def by_headrace(peer: Headrace, dest: Path, folder: Path) -> tuple[float, int, int]:
    """(seconds, bytes of files that came, bytes on the wire)"""
    argv = (*HEADRACE, "get", f"{peer.address}/data", str(dest), "--json", "--on-exist", "overwrite")
    seconds, said = _timed(Command(argv, peer.client_environment), folder)
    last = json.loads(said.splitlines()[-1])
    if last["event"] != "done":
        raise BenchError(f"headrace get failed: {said[-1000:]}")
    return seconds, last["bytes_received"], last["bytes_wire"]


def by_rsync(command: Command, folder: Path) -> tuple[float, int, int]:
    """(seconds, and twice the bytes that it received)"""
    seconds, said = _timed(Command((*command.argv, "--stats"), command.env), folder)
    found = re.search(r"Total bytes received: ([0-9,]+)", said)
    if not found:
        raise BenchError(f"rsync failed: {said[-1000:]}")
    received = int(found[1].replace(",", ""))
    return seconds, received, received


def _timed(command: Command, folder: Path) -> tuple[float, str]:
    said, log = folder / "said", folder / "log"
    started = time.monotonic()
    with Child(command, said, log) as child:
        child.wait()
        seconds = time.monotonic() - started
        code, _ = child.reap()
    if code:
        raise BenchError(f"{command.argv[0]} failed: {tail(log)}")
    return seconds, said.read_text()


if __name__ == "__main__":
    sys.exit(main())
