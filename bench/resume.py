"""How soon an interrupted copy of a huge file goes on. `python -m bench.resume --help`.

A file of 10 GiB of which only the last 15 % hold bytes, random ones; the rest is holes, so that it fits into memory and
comes quickly. Its copy is killed (SIGKILL) when 90 % are there: verified and noted in the journal by that run, nothing
is made up. Then the same command is run again, and timed from its start until more of the file lies on the disk,
looked at every millisecond; it is killed then, and goes on from there in the next round.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Final

from bench import session
from headrace.bench import report
from headrace.bench.measure import Spread
from headrace.bench.peers import HEADRACE, Headrace
from headrace.bench.process import BenchError, Child, Command, tail
from headrace.bench.workspace import GIB, parse_size, place, workspace

SIZE: Final = 10 * GIB
DATA: Final = 0.15  # part of the file that is no hole
KILLED_AT: Final = 0.9
TIMEOUT: Final = 120.0
LOOK_EVERY: Final = 0.001
_PIECE: Final = 8 << 20


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench resume", description="How soon an interrupted copy goes on.")
    parser.add_argument("--size", type=parse_size, default=SIZE, help="of the file: 1g, 10g (default 10g)")
    parser.add_argument("--rounds", type=session.positive, default=5, help="counted runs (default %(default)s)")
    parser.add_argument("--folder", type=Path, default=place(), help="where files and copies lie (default %(default)s)")
    options = parser.parse_args()
    return session.exit_code(lambda: run(options.size, options.rounds, options.folder))


def run(size: int, rounds: int, where: Path) -> list[float]:
    """Seconds of each counted round."""
    facts = report.machine()
    with workspace(round(2 * DATA * size) + GIB // 4, where) as folder:
        source = folder / "source"
        source.mkdir()
        _fill(source / "file", size)
        peer = Headrace("headrace", folder / "headrace")
        try:
            peer.start(source)
            wanted = round((KILLED_AT - 1 + DATA) * size)
            _get_until(peer, folder, wanted)
            report.tell(f"killed at {KILLED_AT:.0%}")
            # The first one is not counted: it still finds the pages of the killed one warm, or the machine busy.
            times = [_get_until(peer, folder, _there(folder) + 1) for _ in range(rounds + 1)][1:]
        finally:
            peer.stop()
    rows = [["what", "s median (min..max)"], ["from the command to the next byte", report.spread(Spread.of(times), 2)]]
    print(
        f"\n{size / GIB:g} GiB, killed at {KILLED_AT:.0%}, {rounds} rounds, in {where}\n{report.machine_line(facts)}\n"
    )
    print(report.columns(rows), flush=True)
    return times


def _fill(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)
        start = round(size * (1 - DATA))
        file.seek(start)
        for position in range(start, size, _PIECE):
            file.write(os.urandom(min(_PIECE, size - position)))


def _there(folder: Path) -> int:
    """Bytes of the copy in flight that are no holes."""
    try:
        return os.stat(folder / ".copy.headrace-part").st_blocks * 512
    except FileNotFoundError:
        return 0


def _get_until(peer: Headrace, folder: Path, wanted: int) -> float:
    """Runs `headrace get`, kills it when so many bytes are there; seconds from its start. Raises BenchError."""
    log = folder / "get.log"
    argv = (*HEADRACE, "get", f"{peer.address}/file", str(folder / "copy"), "--quiet")
    started = time.monotonic()
    with Child(Command(argv, peer.client_environment), log) as child:
        while _there(folder) < wanted:
            if child.ended or time.monotonic() - started > TIMEOUT:
                raise BenchError(f"headrace get did not get that far: {tail(log)}")
            time.sleep(LOOK_EVERY)
        seconds = time.monotonic() - started
        child.kill()
    return seconds


if __name__ == "__main__":
    sys.exit(main())
