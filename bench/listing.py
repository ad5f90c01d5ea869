"""Names and attributes as a mount asks for them, from a share in another process. `python -m bench.listing --help`.

  list       one directory of many empty files, cold: entries a second, asked for by Attributes.list
  find       every directory of a tree listed, cold, and every entry's attributes asked for: entries a second
  again      the same once more, warm; and names that are not there, one in each directory
  scandir    what `list` is on the host alone: os.scandir and a stat of each entry, in this process

Rounds in turn, each with a cache of its own; the share and the kernel's caches stay warm.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from pathlib import Path

from bench import session
from headrace.bench import report
from headrace.bench.measure import Spread
from headrace.bench.peers import Headrace
from headrace.bench.process import BenchError
from headrace.bench.workspace import place, workspace
from headrace.client.attributes import Attributes
from headrace.client.link import Link
from headrace.client.session import Session
from headrace.client.target import Target
from headrace.errors import NotFoundError
from headrace.protocol.paths import RelPath

EACH = 10  # files in one directory of the tree
TIMEOUT = 60.0
BLOCK = 4096


def main() -> int:
    parser = argparse.ArgumentParser(description="How fast directories are listed and looked into.")
    parser.add_argument("--entries", type=session.positive, default=100_000, help="in one directory (%(default)s)")
    parser.add_argument("--files", type=session.positive, default=20_000, help="in the tree (default %(default)s)")
    parser.add_argument("--rounds", type=session.positive, default=5, help="counted runs (default %(default)s)")
    options = parser.parse_args()
    return session.exit_code(lambda: _run(options.entries, options.files, options.rounds))


def _run(entries: int, files: int, rounds: int) -> None:
    with workspace((entries + 2 * files) * BLOCK, place()) as folder:
        source = folder / "source"
        make_folder(source / "one", entries)
        for number in range(0, files, EACH):
            make_folder(source / "tree" / f"{number // 500}" / f"{number}", min(EACH, files - number))
        peer = Headrace("headrace", folder / "headrace")
        facts = report.machine()
        times: dict[str, list[float]] = {"list": [], "find": [], "again": [], "scandir": []}
        try:
            peer.start(source)
            for _ in range(rounds + 1):
                one_round(peer, source, folder / "client", times)
        finally:
            peer.stop()
        rows = [[name, rate(seconds[1:])] for name, seconds in times.items()]
        print(f"\n{entries:,} entries, {files:,} files in {folder.parent}\n{report.machine_line(facts)}\n")
        print(report.columns([["what", "entries/s median (min..max)"], *rows]))
        print(__doc__[__doc__.index("\n") :].rstrip() if __doc__ else "", flush=True)


def make_folder(path: Path, files: int) -> None:
    path.mkdir(parents=True)
    for number in range(files):
        (path / f"file-{number:06d}.txt").touch()


def one_round(peer: Headrace, source: Path, home: Path, times: dict[str, list[float]]) -> None:
    """Adds entries a second to each of `times`."""
    target = Target.parse(f"{peer.client_environment['HEADRACE_CODE']}@{peer.address}")
    shutil.rmtree(home, ignore_errors=True)
    os.environ["HEADRACE_HOME"] = str(home)
    link = Link(lambda: Session.connect(target, transport="tcp"))
    try:
        link.connect(time.monotonic() + TIMEOUT)
        with Attributes(link, base=target.path) as attributes:
            end = time.monotonic() + TIMEOUT
            while not attributes.watching:
                if time.monotonic() > end:
                    raise BenchError("the host does not watch")
                time.sleep(0.01)
            started = time.perf_counter()
            count = len(attributes.list(RelPath((b"one",)), end))
            times["list"].append(count / (time.perf_counter() - started))
            for name in ("find", "again"):
                started = time.perf_counter()
                count = walk(attributes, RelPath((b"tree",)), end)
                times[name].append(count / (time.perf_counter() - started))
    finally:
        link.close()
    started = time.perf_counter()
    with os.scandir(source / "one") as found:
        count = len([entry.stat(follow_symlinks=False) for entry in found])
    times["scandir"].append(count / (time.perf_counter() - started))


def walk(attributes: Attributes, top: RelPath, deadline: float) -> int:
    """As `find` and `git status` do it: list, then look at each, and for something that is not there. How many."""
    count = 0
    waiting = [top]
    while waiting:
        folder = waiting.pop()
        try:
            attributes.stat(folder / b".gitignore", deadline)
        except NotFoundError:
            count += 1
        for entry in attributes.list(folder, deadline):
            path = folder.child(entry.name)
            if attributes.stat(path, deadline).kind == "d":
                waiting.append(path)
            count += 1
    return count


def rate(rates: list[float]) -> str:
    return report.spread(Spread.of(rates), 0)


if __name__ == "__main__":
    sys.exit(main())
