"""How long headrace takes to say its version, and to find that nobody listens. `python -m bench.startup --help`."""

from __future__ import annotations

import argparse
import socket
import sys
from pathlib import Path
from typing import Final

from bench import session
from headrace.bench import report
from headrace.bench.measure import Spread, run
from headrace.bench.peers import HEADRACE
from headrace.bench.process import Command, environment
from headrace.bench.workspace import MIB, place, workspace

VERSION: Final = "python -m headrace --version"
TARGET: Final = 150.0  # milliseconds for it
UNREACHABLE: Final = 5  # the exit code
CODE: Final = "7k2m-xq4c-9dht"


def main() -> int:
    parser = argparse.ArgumentParser(description="How long headrace takes to start.")
    parser.add_argument("--runs", type=session.positive, default=20, help="counted runs (default %(default)s)")
    options = parser.parse_args()
    return session.exit_code(lambda: _run(options.runs))


def _run(runs: int) -> None:
    with workspace(MIB, place()) as folder, socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound and not listening: nobody else can listen there meanwhile
        cases = _cases(nobody.getsockname()[1], folder)
        facts = report.machine()
        times: dict[str, list[float]] = {label: [] for label in cases}
        for number in range(runs + 1):
            for label, (command, expected) in cases.items():
                sample = run(command, expected=expected, log=folder / "log")
                if number:
                    times[label].append(sample.seconds)
    spreads = {label: Spread.of([1000 * each for each in seconds]) for label, seconds in times.items()}
    rows = [[label, report.spread(spread, 0)] for label, spread in spreads.items()]
    met = "met" if spreads[VERSION].median < TARGET else "MISSED"
    print(f"\nStart-up, {runs} runs in turn after one that is not counted\n{report.machine_line(facts)}\n")
    print(report.columns([["command", "ms median (min..max)"], *rows]))
    print(f"\n- target for --version: under {TARGET:.0f} ms: {met}", flush=True)


def _cases(port: int, folder: Path) -> dict[str, tuple[Command, int]]:
    """The commands by their label, with the exit code that they should have."""
    env = environment() | {"HEADRACE_HOME": str(folder / "home"), "HEADRACE_CODE": CODE}
    installed = str(Path(sys.executable).with_name("headrace"))
    get = (*HEADRACE, "get", f"127.0.0.1:{port}", str(folder / "copy"))
    cases = {
        "python -c pass": (Command((sys.executable, "-c", "pass"), env), 0),
        "headrace --version": (Command((installed, "--version"), env), 0),
        VERSION: (Command((*HEADRACE, "--version"), env), 0),
        "headrace get, nobody listens": (Command(get, env), UNREACHABLE),
    }
    if not Path(installed).exists():
        del cases["headrace --version"]
    return cases


if __name__ == "__main__":
    sys.exit(main())
