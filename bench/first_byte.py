"""How soon the first byte of a huge file is here that the host has never hashed. `python -m bench.first_byte --help`.

The huge file is made by fallocate, so that it takes no minutes to write: its blocks are there (st_blocks is full, it
is not sparse) and read as zeros, only its first chunk holds random bytes. Nobody has ever hashed it: the share is
started anew before each run. Two ways of fetching are timed, each beside the same with a small file, which is what a
share that hashed everything first would be slow against:

  cat   from starting the program to the first byte on its standard output; then the program is stopped
  get   from its `connected` event to the first byte that is not zero in the file in flight, looked at every
        millisecond; then the program is stopped. This holds the preallocation of the destination as well.

`get`'s own `progress` events are half a second apart, which is too coarse for this.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from bench import session
from headrace.bench import report
from headrace.bench.measure import Spread
from headrace.bench.peers import HEADRACE, Headrace
from headrace.bench.process import BenchError, Child, Command, tail
from headrace.bench.reading import allocate
from headrace.bench.workspace import GIB, MIB, free, parse_size, place, random_file, workspace

SIZE: Final = 10 * GIB
SMALL: Final = 64 * MIB
ROOM_IN_MEMORY: Final = 22 * GIB  # from here on the huge file and its copy go there
TIMEOUT: Final = 120.0
LOOK_EVERY: Final = 0.001
_ON_DISK: Final = Path("/tmp")


def main() -> int:
    parser = argparse.ArgumentParser(description="How soon the first byte of a huge, never hashed file is here.")
    parser.add_argument("--size", type=parse_size, default=SIZE, help="of the huge file: 1g, 10g (default 10g)")
    parser.add_argument("--rounds", type=session.positive, default=5, help="counted runs (default %(default)s)")
    options = parser.parse_args()
    return session.exit_code(lambda: _run(options.size, options.rounds))


def _run(size: int, rounds: int) -> None:
    # The file in flight takes the same again.
    needed = 2 * (size + SMALL)
    fits = needed <= free(place()) * 0.8 if size < SIZE else free(place()) > ROOM_IN_MEMORY
    with workspace(needed, place() if fits else _ON_DISK) as folder:
        source = folder / "source"
        source.mkdir()
        random_file(source / "small.bin", SMALL)
        allocate(source / "huge.bin", size)
        facts = report.machine()
        peer = Headrace("headrace", folder / "headrace", cold=True)
        try:
            peer.start(source)
            rows = [_row(label, run, name, peer, folder, rounds) for label, run, name in _cases(size)]
        finally:
            peer.stop()
        print(f"\nFirst byte, in {folder.parent}\n{report.machine_line(facts)}\n")
        print(report.columns([["what", "ms median (min..max)"], *rows]))
        print(__doc__[__doc__.index("\n") :].rstrip() if __doc__ else "", flush=True)


def _cases(size: int) -> list[tuple[str, Callable[[Headrace, str, Path], float], str]]:
    huge, small = f"{size / GIB:g} GiB", f"{SMALL / MIB:g} MiB"
    return [
        (f"cat, {small}: start to first byte", cat, "small.bin"),
        (f"cat, {huge}: start to first byte", cat, "huge.bin"),
        (f"get, {small}: connected to first byte", get, "small.bin"),
        (f"get, {huge}: connected to first byte", get, "huge.bin"),
    ]


def _row(
    label: str, run: Callable[[Headrace, str, Path], float], name: str, peer: Headrace, folder: Path, rounds: int
) -> list[str]:
    """One run more than is counted."""
    times = []
    for _ in range(rounds + 1):
        peer.before_run()
        times.append(run(peer, name, folder) * 1000)
    report.tell(f"{label}: {', '.join(f'{one:.0f}' for one in times)} ms")
    return [label, report.spread(Spread.of(times[1:]), 0)]


def cat(peer: Headrace, name: str, folder: Path) -> float:
    """Seconds from starting `headrace cat` to the first byte on its standard output."""
    log = folder / "cat.log"
    command = Command((*HEADRACE, "cat", f"{peer.address}/{name}"), peer.client_environment)
    started = time.monotonic()
    with Child(command, subprocess.PIPE, log) as child:
        assert child.stdout is not None
        readable, _, _ = select.select([child.stdout], [], [], TIMEOUT)
        seconds = time.monotonic() - started
        if not readable or not os.read(child.stdout.fileno(), 1):
            raise BenchError(f"headrace cat gave nothing: {tail(log)}")
        child.kill()
    return seconds


def get(peer: Headrace, name: str, folder: Path) -> float:
    """Seconds from the `connected` event of `headrace get` to the first byte in the file in flight."""
    events, log = folder / "events.ndjson", folder / "get.log"
    copy = folder / f"copy-of-{name}"
    flying = folder / f".{copy.name}.headrace-part"
    command = Command((*HEADRACE, "get", f"{peer.address}/{name}", str(copy), "--json"), peer.client_environment)
    connected = 0.0
    deadline = time.monotonic() + TIMEOUT
    try:
        with Child(command, events, log) as child:
            while True:
                now = time.monotonic()
                if not connected and any(event["event"] == "connected" for event in _events(events)):
                    connected = now
                if connected and (_has_data(flying) or _has_data(copy)):
                    break
                if now > deadline or child.ended:
                    raise BenchError(f"headrace get fetched nothing: {tail(events)} {tail(log)}")
                time.sleep(LOOK_EVERY)
            child.kill()
    finally:
        for path in folder.glob(f"*{copy.name}*"):  # `*` stands for the leading dot as well
            path.unlink()
    return now - connected


def _has_data(path: Path) -> bool:
    """Whether the first chunk has begun to arrive. Its first bytes are random: all zeros never come by chance."""
    try:
        with path.open("rb") as file:
            return any(file.read(16))
    except FileNotFoundError:
        return False


def _events(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


if __name__ == "__main__":
    sys.exit(main())
