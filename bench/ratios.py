"""Whether copies have become dearer. `python -m bench.ratios --help`; docs/performance.md has the method.

Two copies over loopback are measured: one large file, and a tree of small ones. What counts is not what they take but
its ratio to what a bare sendfile loop takes for the large file in the same round, and how that compares with the
ratios in bench/baseline.json. CPU time decides within a narrow band, wall time within a wide one: it is what other
work on the machine disturbs most, and only a stall shows in it alone.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from bench import session
from headrace.bench import facts, report
from headrace.bench.measure import DifferentError, Sample, run, touch_memory
from headrace.bench.noise import Estimate, ratio
from headrace.bench.peers import Headrace, Loopback
from headrace.bench.process import BenchError, Command
from headrace.bench.workspace import MIB, digest, place, random_file, random_tree, workspace

ROOT: Final = Path(__file__).parents[1]
BASELINE: Final = Path(__file__).with_name("baseline.json")
BULK, TREE, REFERENCE = "bulk", "small files", "sendfile"
COPIES: Final = (BULK, TREE)
SIZE: Final = 128 * MIB
FILES: Final = 1_000
LIMITS: Final = {"cpu": 1.25, "wall": 1.60}  # times the baseline
WIDER: Final = 1.5  # times those limits, where the baseline's commit cannot be measured again beside this one
FIRST: Final = 4  # rounds before the first verdict
MOST: Final = 8
BESIDE: Final = 10  # rounds beside the baseline's commit, at most

Ratios = dict[str, list[float]]  # by figure, of each round
Verdict = Literal["fine", "dearer", "undecided"]


def figures() -> list[str]:
    """Their names."""
    return [f"{copy}, {what}" for copy in COPIES for what in LIMITS]


def limit(name: str) -> float:
    """Of a figure."""
    return LIMITS[name.rpartition(", ")[2]]


class From(Headrace):
    """headrace as it is in a folder of sources. slower: how much more CPU time its get takes, 0.3 for 30 %."""

    def __init__(self, name: str, folder: Path, tree: Path, slower: Mapping[str, float]) -> None:
        super().__init__(name, folder, options=("--transport", "tcp"))
        self._path = str(tree / "src")
        self._slower = slower
        self.launcher = ("env", f"PYTHONPATH={self._path}")

    def command(self, source_name: str, dest: Path) -> Command:
        made = super().command(source_name, dest)
        argv = made.argv
        if more := self._slower.get(source_name, 0.0):
            argv = (sys.executable, "-P", str(Path(__file__).with_name("burn.py")), str(more), *argv)
        return Command(argv, {**made.env, "PYTHONPATH": self._path})


@dataclass(slots=True)
class Bench:
    """Makes rounds. `start` and `stop` begin and end it; the folder is the caller's."""

    folder: Path
    slower: Mapping[str, float] = field(default_factory=dict)
    _peers: dict[str, Headrace] = field(default_factory=dict)
    _reference: Loopback | None = None
    _digests: dict[str, str] = field(default_factory=dict)

    def start(self) -> None:
        """The source, and what serves it."""
        source = self.folder / "source"
        source.mkdir()
        random_file(source / BULK, SIZE)
        random_tree(source / TREE, FILES, 10 << 10)
        self._digests = {name: digest(source / name) for name in COPIES}
        self._reference = Loopback(REFERENCE, self.folder / REFERENCE)
        self._reference.start(source)
        self.add("now", ROOT)

    def add(self, name: str, tree: Path) -> None:
        """Another headrace that takes part from the next round on, after one that is not counted."""
        made = From(name, self.folder / name, tree, self.slower if tree == ROOT else {})
        made.start(self.folder / "source")
        self._peers[name] = made
        for copy in COPIES:
            self._copy(made, copy)

    def stop(self) -> None:
        """Ends everything that was started."""
        for peer in self._peers.values():
            peer.stop()
        if self._reference:
            self._reference.stop()

    def round(self) -> dict[str, dict[str, float]]:
        """One round: by headrace, by figure, its ratio. The reference is run on either side of them and its mean
        counts, so that a machine that becomes slower does not make the later ones look dearer."""
        assert self._reference
        before = self._copy(self._reference, BULK)
        samples = {(name, copy): self._copy(peer, copy) for copy in COPIES for name, peer in self._peers.items()}
        after = self._copy(self._reference, BULK)
        cpu = (_cpu(before) + _cpu(after)) / 2
        wall = (before.seconds + after.seconds) / 2
        found: dict[str, dict[str, float]] = {name: {} for name in self._peers}
        for (name, copy), sample in samples.items():
            found[name][f"{copy}, cpu"] = _cpu(sample) / cpu
            found[name][f"{copy}, wall"] = sample.seconds / wall
        return found

    def _copy(self, peer: Headrace | Loopback, name: str) -> Sample:
        """One copy, checked."""
        dest = self.folder / "copies"
        dest.mkdir()
        try:
            peer.before_run()
            touch_memory(self.folder, SIZE)
            sample = run(peer.command(name, dest), log=self.folder / "log", server=peer.server)
            if digest(dest / name) != self._digests[name]:
                raise DifferentError(f"the copy of {name} differs")
        finally:
            _remove(dest)
        return sample


def _cpu(sample: Sample) -> float:
    return sample.client_cpu + sample.server_cpu


def _remove(folder: Path) -> None:
    subprocess.run(["rm", "-rf", str(folder)], check=True)


def gather(bench: Bench, rounds: int, into: dict[str, Ratios]) -> None:
    """So many rounds more."""
    for _ in range(rounds):
        for name, found in bench.round().items():
            for figure, value in found.items():
                into.setdefault(name, {}).setdefault(figure, []).append(value)


def estimates(now: Ratios, before: Ratios) -> dict[str, Estimate]:
    """How many times as dear as before, by figure."""
    return {name: ratio(now[name], before[name]) for name in figures()}


def verdict(name: str, estimate: Estimate, wider: float = 1.0) -> Verdict:
    """dearer and fine where the whole interval says so."""
    most = 1 + (limit(name) - 1) * wider
    if estimate.low > most:
        return "dearer"
    return "fine" if estimate.high <= most else "undecided"


def gate(bench: Bench, baseline: Mapping[str, Any]) -> tuple[dict[str, Estimate], float]:
    """The figures that decide, and how many times the limits they are held to. Raises BenchError."""
    kept: Ratios = baseline["ratios"]
    found: dict[str, Ratios] = {}
    gather(bench, FIRST, found)
    while True:
        known = estimates(found["now"], kept)
        report.tell(f"{len(found['now'][figures()[0]])} rounds: {shown(known)}")
        if same_machine(baseline) and all(one.median <= limit(name) for name, one in known.items()):
            return known, 1.0
        if len(found["now"][figures()[0]]) >= MOST or not same_machine(baseline):
            break
        gather(bench, 2, found)
    tree = checkout(baseline["commit"], bench.folder / "before")
    if tree is None:
        report.tell(f"{baseline['commit'][:12]} is not to be had here, so the baseline decides, with wider limits")
        return known, WIDER
    report.tell(f"{baseline['commit'][:12]} is measured beside this one")
    bench.add("then", tree)
    found = {}
    gather(bench, FIRST + 1, found)
    while True:
        known = estimates(found["now"], found["then"])
        count = len(found["now"][figures()[0]])
        report.tell(f"{count} rounds beside it: {shown(known)}")
        verdicts = [verdict(name, one) for name, one in known.items()]
        if count >= BESIDE or "undecided" not in verdicts:
            return known, 1.0
        gather(bench, 1, found)


def same_machine(baseline: Mapping[str, Any]) -> bool:
    """Whether the baseline was taken on such a machine: ratios depend on it."""
    return bool(baseline["machine"] == machine())


def machine() -> dict[str, str]:
    """What the ratios depend on beside headrace itself."""
    return {"cpu": facts.cpu_model(), "cores": str(os.cpu_count()), "python": sys.version.split()[0]}


def shown(known: Mapping[str, Estimate]) -> str:
    """One line."""
    return "; ".join(f"{name} {one}" for name, one in known.items())


def checkout(commit: str, into: Path) -> Path | None:
    """The sources of a commit; None where this is no repository, or one without it."""
    try:
        said = subprocess.run(["git", "archive", commit, "src"], cwd=ROOT, capture_output=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None
    with tarfile.open(fileobj=io.BytesIO(said.stdout)) as packed:
        packed.extractall(into, filter="data")
    return into


def judge(known: Mapping[str, Estimate], wider: float) -> None:
    """Prints what was found. Raises BenchError where a copy is dearer. What is undecided to the end passes."""
    rows = [["copy", "times the baseline (95 %)", "limit", "verdict"]]
    verdicts = {name: verdict(name, one, wider) for name, one in known.items()}
    for name, one in known.items():
        rows.append([name, str(one), f"{1 + (limit(name) - 1) * wider:.2f}", verdicts[name]])
    print(report.columns(rows), flush=True)
    if dearer := [name for name, one in verdicts.items() if one == "dearer"]:
        raise BenchError(f"dearer than the baseline beyond noise: {', '.join(dearer)}")


def update(bench: Bench) -> None:
    """Writes BASELINE."""
    said = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, check=True, text=True)
    found: dict[str, Ratios] = {}
    gather(bench, 2 * MOST, found)
    ratios = {name: [round(value, 3) for value in found["now"][name]] for name in figures()}
    made = {
        "commit": said.stdout.strip(),
        "when": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "median": {name: round(statistics.median(values), 3) for name, values in ratios.items()},
        "ratios": ratios,
    }
    BASELINE.write_text(json.dumps(made, indent=1) + "\n")


def slower(words: Sequence[str]) -> dict[str, float]:
    """NAME=SHARE. Raises BenchError."""
    found = {}
    for word in words:
        name, _, much = word.partition("=")
        if name not in COPIES:
            raise BenchError(f"{name} is none of {', '.join(COPIES)}")
        found[name] = float(much)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="Whether copies have become dearer.")
    parser.add_argument("--update", action="store_true", help="measure this commit and write the baseline")
    parser.add_argument(
        "--slower",
        action="append",
        default=[],
        metavar="NAME=SHARE",
        help=f"of {', '.join(COPIES)}: make it so much dearer, 0.6 for 60 %%, to see the gate fail",
    )
    parser.add_argument("--folder", type=Path, default=place(), help="where to work (default %(default)s)")
    options = parser.parse_args()
    if sys.platform != "linux":
        report.tell("ratios: not measured, what a program costs is read from Linux's /proc")
        return 0
    return session.exit_code(lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    with workspace(4 * SIZE, options.folder) as folder:
        bench = Bench(folder, slower(options.slower))
        try:
            bench.start()
            if options.update:
                update(bench)
            else:
                judge(*gate(bench, json.loads(BASELINE.read_text())))
        finally:
            bench.stop()


if __name__ == "__main__":
    sys.exit(main())
