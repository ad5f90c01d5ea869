"""Whether small requests have become slower. `python -m bench.regression --help`; docs/performance.md has the method.

Three requests are timed over loopback: a read of 4 KiB at a random place, the opening of a file and its first byte, the
list of a folder. What counts is not their time but its ratio to that of a bare TCP exchange of the same size, taken in
turn (bench/sampler.py), and how that compares with the ratio in bench/latency.json.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Self

from bench import session
from bench.sampler import ENTRIES, FILE, FILE_SIZE, FOLDER, NAMES, Timed
from headrace.bench import report
from headrace.bench.peers import Headrace
from headrace.bench.process import BenchError
from headrace.bench.workspace import MIB, place, random_file, workspace

ROOT: Final = Path(__file__).parents[1]
BASELINE: Final = Path(__file__).with_name("latency.json")
LIMIT: Final = 1.10  # times the baseline
FIRST: Final = 4  # launches before the first verdict
MOST: Final = 12
RESAMPLES: Final = 1000
INTERVAL: Final = (0.025, 0.975)
TIMEOUT: Final = 60.0  # seconds for one launch

Launch = dict[str, Timed]
Blocks = Sequence[Sequence[float]]  # the ratios of each launch
Verdict = Literal["fine", "undecided", "slower"]


@dataclass(frozen=True, slots=True)
class Figure:
    """How many times as slow as the baseline, with the interval that it lies in."""

    median: float
    low: float
    high: float

    @property
    def verdict(self) -> Verdict:
        """`slower` and `fine` where the whole interval says so."""
        if self.low > LIMIT:
            return "slower"
        return "fine" if self.high <= LIMIT else "undecided"

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.low:.3f}..{self.high:.3f})"


def figure(now: Blocks, before: Blocks, seed: int = 1) -> Figure:
    """The median ratio by that of the baseline. The interval is a bootstrap: launches are drawn, of each its blocks."""
    chance = random.Random(seed)
    drawn = sorted(_drawn_median(now, chance) / _drawn_median(before, chance) for _ in range(RESAMPLES))
    low, high = (drawn[int(share * (RESAMPLES - 1))] for share in INTERVAL)
    return Figure(_median(now) / _median(before), low, high)


def _median(blocks: Blocks) -> float:
    return statistics.median(ratio for launch in blocks for ratio in launch)


def _drawn_median(blocks: Blocks, chance: random.Random) -> float:
    launches = chance.choices(blocks, k=len(blocks))
    return statistics.median(ratio for launch in launches for ratio in chance.choices(launch, k=len(launch)))


class Bench:
    """Makes launches. A context manager: its folder goes with it. slower: what the sampler is told of this headrace."""

    def __init__(self, place: Path, slower: Sequence[str] = ()) -> None:
        self._place = place
        self.slower = tuple(slower)
        self._cpus = itertools.cycle(sorted(os.sched_getaffinity(0)))
        self._numbers = itertools.count(1)

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._folder = stack.enter_context(workspace(FILE_SIZE + 16 * MIB, self._place))
            self._source = self._folder / "source"
            (self._source / FOLDER).mkdir(parents=True)
            random_file(self._source / FILE, FILE_SIZE)
            for number in range(ENTRIES):
                (self._source / FOLDER / f"{number:03d}.bin").write_bytes(b"1")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def launch(self, cpu: int, tree: Path = ROOT) -> Launch:
        """One of the headrace in `tree`, all of it on one core. Raises BenchError."""
        path = os.pathsep.join([str(tree / "src"), str(tree)])
        peer = Headrace("headrace", self._folder / f"launch-{next(self._numbers)}")
        peer.launcher = ("env", f"PYTHONPATH={path}")
        slower = self.slower if tree == ROOT else ()
        with pinned(cpu):
            try:
                peer.start(self._source)
                # -P: else the `bench` in the current folder would be taken.
                argv = (sys.executable, "-P", "-m", "bench.sampler", peer.address, *slower)
                said = subprocess.run(
                    argv, env=peer.client_environment | {"PYTHONPATH": path}, capture_output=True, timeout=TIMEOUT
                )
            except subprocess.TimeoutExpired as why:
                raise BenchError(f"a launch took more than {TIMEOUT:g} s") from why
            finally:
                peer.stop()
        if said.returncode:
            raise BenchError(f"the sampler failed: {said.stderr.decode(errors='replace').strip()[-1000:]}")
        launch: Launch = json.loads(said.stdout)
        return launch

    def checkout(self, commit: str) -> Path | None:
        """The sources of a commit; None where this is no repository, or one without it."""
        try:
            archive = git("archive", commit, "src", "bench")
        except BenchError as why:
            report.tell(str(why))
            return None
        tree = self._folder / "before"
        with tarfile.open(fileobj=io.BytesIO(archive)) as packed:
            packed.extractall(tree, filter="data")
        return tree

    def next_cpu(self) -> int:
        """The cores in turn."""
        return next(self._cpus)


@contextlib.contextmanager
def pinned(cpu: int) -> Iterator[None]:
    """This thread, and what it starts meanwhile, run on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def blocks(launches: Sequence[Launch], name: str) -> list[list[float]]:
    """The ratios of one request."""
    return [launch[name]["ratios"] for launch in launches]


def compare(bench: Bench, baseline: Mapping[str, Blocks], tree: Path | None = None) -> dict[str, Figure]:
    """Launches until every request is fine or one is slower: FIRST at least, MOST at most.

    tree: another headrace that is measured in turn, launch by launch on the same core, and compared with instead.
    """
    now: list[Launch] = []
    before: list[Launch] = []
    while True:
        cpu = bench.next_cpu()
        now.append(bench.launch(cpu))
        if tree:
            before.append(bench.launch(cpu, tree))
        if len(now) < FIRST:
            continue
        known = {name: blocks(before, name) for name in NAMES} if tree else baseline
        figures = {name: figure(blocks(now, name), known[name]) for name in NAMES}
        report.tell(f"{len(now)} launches: {shown(figures)}")
        verdicts = {one.verdict for one in figures.values()}
        if len(now) == MOST or verdicts == {"fine"} or "slower" in verdicts:
            return figures


def shown(figures: Mapping[str, Figure]) -> str:
    """One line."""
    return ", ".join(f"{name} {one}" for name, one in figures.items())


def gate(bench: Bench, baseline: Mapping[str, Any]) -> dict[str, Figure]:
    """The figures that decide. Raises BenchError."""
    if machine() == baseline["machine"]:
        figures = compare(bench, baseline["blocks"])
        if all(one.median <= LIMIT for one in figures.values()):
            return figures
        report.tell("that looks slower: the baseline's commit is measured beside this one")
    else:
        report.tell("the baseline was taken on another kind of machine: its commit is measured beside this one")
    tree = bench.checkout(baseline["commit"])
    if not tree:
        report.tell("that commit is not to be had here, so the ratios in the baseline decide")
    return compare(bench, baseline["blocks"], tree)


def machine() -> dict[str, str]:
    """What the ratios depend on beside headrace itself."""
    facts = report.machine()
    return {name: str(facts[name]) for name in ("cpu", "cores", "python")}


def update(bench: Bench) -> None:
    """Writes BASELINE."""
    commit = git("rev-parse", "HEAD").decode().strip()
    launches = [bench.launch(bench.next_cpu()) for _ in range(2 * MOST)]
    rounded = {name: [[round(ratio, 3) for ratio in launch] for launch in blocks(launches, name)] for name in NAMES}
    made = {
        "commit": commit,
        "machine": machine(),
        "median": {name: round(_median(rounded[name]), 3) for name in NAMES},
        "blocks": rounded,
    }
    lines = json.dumps(made, indent=1)
    BASELINE.write_text(
        re.sub(r"\[\s+([\d.,\s]+?)\s+\]", lambda launch: f"[{' '.join(launch[1].split())}]", lines) + "\n"
    )


def git(*arguments: str) -> bytes:
    """Raises BenchError."""
    try:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=True).stdout
    except (FileNotFoundError, subprocess.CalledProcessError) as why:
        raise BenchError(f"git {arguments[0]}: {why}") from why


def main() -> int:
    parser = argparse.ArgumentParser(description="Whether small requests have become slower.")
    parser.add_argument("--update", action="store_true", help="measure this commit and write the baseline")
    parser.add_argument(
        "--slower",
        action="append",
        default=[],
        metavar="NAME=SHARE",
        help=f"of {', '.join(NAMES)}: make it so much slower, 0.15 for 15 %%, to see the gate fail",
    )
    parser.add_argument("--folder", type=Path, default=place(), help="where to work (default %(default)s)")
    options = parser.parse_args()
    if sys.platform != "linux":
        report.tell("latency regression: not measured, only Linux lets a process choose its core")
        return 0
    return session.exit_code(lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    with Bench(options.folder, options.slower) as bench:
        if options.update:
            update(bench)
        else:
            judge(gate(bench, json.loads(BASELINE.read_text())))


def judge(figures: Mapping[str, Figure]) -> None:
    """Prints what was found. Raises BenchError where a request is slower. What is undecided to the end passes."""
    rows = [["request", "times the baseline (95 %)", "verdict"]]
    rows += [[name, str(one), one.verdict] for name, one in figures.items()]
    print(report.columns(rows), flush=True)
    if slower := [name for name, one in figures.items() if one.verdict == "slower"]:
        raise BenchError(f"slower by more than {LIMIT - 1:.0%} than the baseline: {', '.join(slower)}")


if __name__ == "__main__":
    sys.exit(main())
