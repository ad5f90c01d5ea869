"""A mounted share beside sshfs and rclone: what programs do with a folder, timed. `python -m bench.mount --help`.

Each figure is from a mount that was made for it and has read nothing: cold. What is called warm is the same command
once more on that mount. The source's pages are in the host's page cache all the time, so no disk is in the figures.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any, Final

from bench import session
from bench.bloat import quantile
from bench.mountfiles import Files, make
from headrace.bench import procfs, report
from headrace.bench.far import LOOPBACK
from headrace.bench.measure import Spread, touch_memory
from headrace.bench.mounts import CACHE_RAM, MOUNTERS, Mounted, Mounter
from headrace.bench.netlab import Lab, LabError, Profile, why_not
from headrace.bench.process import POLL, BenchError, Child, Command, NotInstalledError, environment, tail
from headrace.bench.workspace import GIB, MIB, parse_size, workspace

REFERENCE: Final = "sshfs"
TIMEOUT: Final = 900.0  # seconds for one work
LINK: Final = Profile(rate=100e6, delay=0.025, queue=0.1, congestion="bbr")

NOTES: Final = (
    "x: time as a part of sshfs's, round by round; below 1 is faster. Cold: a fresh mount with empty caches; the source"
    " is in the host's page cache. Warm: the same command again on that mount. Whatever was read was compared.",
    f"headrace: --cache-ram {CACHE_RAM}, the disk cache on the same file system as the source, paired anew for each"
    " mount. sshfs: aes128-gcm, otherwise its defaults. rclone: its defaults; only for works on single files.",
    "CPU: of the mount's processes (ssh included) and of the server's, from mounted to done. RSS: the sum of the peaks"
    " of the mount's processes.",
    "git status: with core.checkStat=minimal and core.trustctime=false; else git would read every file on any of them.",
)
SINGLE: Final = {"random", "first", "seek", "copy"}  # works on single files: a tree takes rclone many minutes

Figures = Mapping[str, Sequence[float]]


@dataclass(frozen=True, slots=True)
class Row:
    """A figure of a work. pick: makes it, in seconds. scale: how many of `unit` a second is."""

    label: str
    unit: str
    scale: float
    pick: Callable[[Figures], float]


@dataclass(frozen=True, slots=True)
class Work:
    """What a worker is told to do (bench/mountwork.py). arguments: of the round."""

    name: str
    rows: tuple[Row, ...]
    arguments: Callable[[int], dict[str, Any]]


@dataclass(slots=True)
class Run:
    """One work on one mount. figures: seconds, by label. CPU in seconds, memory in bytes."""

    figures: dict[str, float]
    client_cpu: float
    server_cpu: float
    client_rss: int


@dataclass(slots=True)
class Case:
    """The runs of one mounter, by work; or why there are none."""

    name: str
    missing: str = ""
    runs: dict[str, list[Run]] = field(default_factory=dict)

    def spread(self, work: str, label: str) -> Spread:
        """Over the rounds, in seconds."""
        return Spread.of([run.figures[label] for run in self.runs[work]])

    def ratio(self, other: Case, work: str, label: str) -> Spread:
        """Of the seconds, round by round."""
        pairs = zip(self.runs[work], other.runs[work], strict=True)
        return Spread.of([own.figures[label] / its.figures[label] for own, its in pairs])


def ms(label: str, key: str, pick: Callable[[list[float]], float]) -> Row:
    """Of many samples."""
    return Row(label, "ms", 1000, lambda figures: pick(list(figures[key])))


def once(label: str, key: str = "seconds") -> Row:
    """Of a single one."""
    return Row(label, "s", 1, lambda figures: figures[key][0])


def works(files: Files, options: argparse.Namespace) -> list[Work]:
    """Those of `--works`, in the order of the table."""
    both = (once("cold", "cold"), once("warm", "warm"))
    tree = {"tree": "tree", "files": files.tree}
    every = [
        Work(
            "random",
            (
                ms("4 KiB p50", "reads", lambda reads: quantile(reads, 0.5)),
                ms("4 KiB p99", "reads", lambda reads: quantile(reads, 0.99)),
                ms("4 KiB mean", "reads", fmean),
            ),
            lambda number: {"name": "large.bin", "count": options.reads, "seed": number},
        ),
        Work("first", (ms("open and first byte", "opens", lambda opens: quantile(opens, 0.5)),), files.first),
        Work(
            "seek",
            (
                ms(f"4 MiB in {files.huge / GIB:g} GiB p50", "reads", lambda reads: quantile(reads, 0.5)),
                ms(f"4 MiB in {files.huge / GIB:g} GiB, slowest", "reads", max),
            ),
            lambda number: {"name": "huge.bin", "places": files.places(number)},
        ),
        Work("copy", (once(f"cp of {files.large / MIB:,.0f} MiB"),), lambda number: {"name": "large.bin"}),
        Work("git", both, lambda number: dict(tree)),
        Work("grep", both, lambda number: dict(tree)),
        Work("find", both, lambda number: dict(tree)),
        Work(
            "list",
            (once(f"ls of {files.many:,}"),),
            lambda number: {"name": "many", "entries": files.many, "long": False},
        ),
        Work(
            "long-list",
            (once(f"ls -l of {files.many:,}"),),
            lambda number: {"name": "many", "entries": files.many, "long": True},
        ),
    ]
    return [work for work in every if work.name in options.works]


NEEDS: Final = {
    "random": "large",
    "copy": "large",
    "first": "first",
    "seek": "huge",
    "git": "tree",
    "grep": "tree",
    "find": "tree",
    "list": "many",
    "long-list": "many",
}


class Scene:
    """The shared files, a server for each mounter, and a link to them. A context manager."""

    def __init__(self, files: Files, link: Profile | None, options: argparse.Namespace) -> None:
        self._files = files
        self._link = link
        self._options = options
        self.cases = [Case(name) for name in options.only]

    def __enter__(self) -> Scene:
        files, options = self._files, self._options
        with ExitStack() as stack:
            # The copy, and what headrace's disk cache keeps of it.
            self._folder = folder = stack.enter_context(workspace(files.room + 3 * files.large, options.folder))
            self._source = folder / "source"
            self._source.mkdir()
            report.tell(f"making files in {folder}")
            make(files, self._source, {NEEDS[work] for work in options.works} | {"first"})
            self._lab = stack.enter_context(Lab(self._link)) if self._link else None
            address = self._lab.b.address if self._lab else LOOPBACK
            self._mounters: dict[str, Mounter] = {}
            for case in self.cases:
                mounter = MOUNTERS[case.name](folder / case.name, address)
                stack.callback(mounter.stop)
                self._try(mounter, case)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def _try(self, mounter: Mounter, case: Case) -> None:
        """Whether it can at all."""
        try:
            with self._at("b"):
                mounter.start(self._source)
            self._mounters[case.name] = mounter
            self.run(mounter, "first", self._files.first(0))
        except NotInstalledError as why:
            case.missing = f"not installed ({why})"
        except BenchError as why:
            case.missing = f"does not mount: {why}"
        if case.missing:
            self._mounters.pop(case.name, None)
            report.tell(f"{case.name}: {case.missing}")

    def _at(self, host: str) -> contextlib.AbstractContextManager[None]:
        """On a host of the link, where there is one."""
        if not self._lab:
            return contextlib.nullcontext()
        return (self._lab.a if host == "a" else self._lab.b).inside()

    def measure(self, work: Work, rounds: int) -> None:
        """Each mounter in turn, round after round."""
        for number in range(1, rounds + 1):
            for case in self.cases:
                if case.missing or not takes_part(case, work):
                    continue
                found, run = self.run(self._mounters[case.name], work.name, work.arguments(number))
                run.figures = {row.label: row.pick(found) for row in work.rows}
                case.runs.setdefault(work.name, []).append(run)
                shown = ", ".join(
                    f"{row.label} {run.figures[row.label] * row.scale:.2f} {row.unit}" for row in work.rows
                )
                report.tell(f"{work.name} {number} of {rounds}: {case.name:<9} {shown}")

    def run(self, mounter: Mounter, work: str, arguments: dict[str, Any]) -> tuple[Figures, Run]:
        """On a mount of its own. Raises BenchError."""
        point, log = self._folder / "point", self._folder / "mount.log"
        point.mkdir(exist_ok=True)
        arguments |= {"point": str(point)}
        if work == "copy":
            arguments |= {"dest": str(self._folder / "copy.bin")}
            touch_memory(self._folder, self._files.large)
        if work not in ("git", "grep", "find", "list", "long-list"):
            arguments |= {"source": str(self._source)}
        mounted = Mounted(mounter, point, log)
        with self._at("a"):
            mounted.start()
        with mounted:
            server = mounter.server
            before = mounted.cpu_seconds(), procfs.cpu_seconds(server) if server else 0.0
            figures = self._work(work.removeprefix("long-"), arguments, mounted)
            after = mounted.cpu_seconds(), procfs.cpu_seconds(server) if server else 0.0
            rss = sum(procfs.peak_rss(pid) for pid in procfs.family(mounted.pid))
        return figures, Run({}, after[0] - before[0], after[1] - before[1], rss)

    def _work(self, work: str, arguments: dict[str, Any], mounted: Mounted) -> Figures:
        said, errors = self._folder / "work.json", self._folder / "work.log"
        argv = (sys.executable, "-m", "headrace.bench.mountwork", work, json.dumps(arguments))
        command = Command(argv, environment())
        with Child(command, said, errors) as child:
            try:
                deadline = time.monotonic() + TIMEOUT
                while not child.ended:
                    if time.monotonic() > deadline:
                        raise BenchError(f"{work} is not done after {TIMEOUT:g} s")
                    time.sleep(POLL)
            except BaseException:
                mounted.kill()  # who waits for a file system cannot be killed before it
                raise
            if child.reap()[0]:
                raise BenchError(f"{mounted.name}: {tail(errors)}; {tail(self._folder / 'mount.log')}")
        figures: Figures = json.loads(said.read_text())
        return figures


def takes_part(case: Case, work: Work) -> bool:
    """Whether the work can be asked of it."""
    return case.name != "rclone" or work.name in SINGLE


def table(cases: Sequence[Case], plan: Sequence[Work]) -> str:
    """A line for each figure and case."""
    reference = next((case for case in cases if case.name == REFERENCE and not case.missing), None)
    lines = [["what", "case", "median (min..max)", f"x {REFERENCE}", "CPU s mount+serve", "RSS MB"]]
    for work in plan:
        for row in work.rows:
            for case in (one for one in cases if takes_part(one, work)):
                what = f"{work.name}: {row.label}, {row.unit}"
                if case.missing:
                    lines.append([what, case.name, case.missing.splitlines()[0], "", "", ""])
                    continue
                spread, runs = case.spread(work.name, row.label), case.runs[work.name]
                scaled = Spread(*(value * row.scale for value in (spread.median, spread.low, spread.high)))
                first = row is work.rows[0]
                lines.append(
                    [
                        what,
                        case.name,
                        report.spread(scaled, 2),
                        report.spread(case.ratio(reference, work.name, row.label), 2) if reference else "-",
                        f"{_median(runs, 'client_cpu', 1):.2f} + {_median(runs, 'server_cpu', 1):.2f}" if first else "",
                        f"{_median(runs, 'client_rss', 1e6):.0f}" if first else "",
                    ]
                )
    return report.columns(lines)


def _median(runs: Sequence[Run], name: str, scale: float) -> float:
    return Spread.of([getattr(run, name) for run in runs]).median / scale


def main() -> int:
    parser = session.parser("Mounts a share with each program in turn.", rounds=3, cases=[*MOUNTERS])
    parser.add_argument("--works", type=_works, default=None, metavar="WORK,WORK", help=", ".join(NEEDS))
    parser.add_argument("--size", type=parse_size, help="of the file that is copied (default 1g; 60m with --link)")
    parser.add_argument("--files", type=session.positive, default=20_000, help="in the tree (default %(default)s)")
    parser.add_argument("--entries", type=session.positive, default=100_000, help="of ls (default %(default)s)")
    parser.add_argument("--reads", type=session.positive, help="of 4 KiB (default 2000; 100 with --link)")
    parser.add_argument("--link", action="store_true", help="over 100 Mbit/s, 50 ms, in a netlab: as root")
    parser.add_argument("--quick", action="store_true", help="smaller, two rounds")
    options = parser.parse_args()
    options.works = options.works or (["random", "first", "seek", "copy"] if options.link else list(NEEDS))
    options.size = options.size or (60_000_000 if options.link else 256 * MIB if options.quick else GIB)
    options.reads = options.reads or (100 if options.link else 2000)
    if options.quick:
        options.rounds = min(options.rounds, 2)
        options.files, options.entries = min(options.files, 2_000), min(options.entries, 20_000)
    return session.exit_code(lambda: run(options))


def _works(text: str) -> list[str]:
    if unknown := sorted(set(text.split(",")) - set(NEEDS)):
        raise argparse.ArgumentTypeError(f"no such work: {', '.join(unknown)}; there are {', '.join(NEEDS)}")
    return text.split(",")


def run(options: argparse.Namespace) -> None:
    """One table. Raises BenchError."""
    link = LINK if options.link else None
    if link and (why := why_not()):
        raise LabError(why)
    facts = report.machine()
    files = Files(options.size, 10 * GIB, options.files, options.entries)
    plan = works(files, options)
    with Scene(files, link, options) as scene:
        for work in plan:
            scene.measure(work, options.rounds)
        cases = scene.cases
    where = f"{LINK.rate / 1e6:g} Mbit/s, {LINK.delay * 2000:g} ms" if link else "loopback"
    print(f"\nMounts, {where}, {options.rounds} rounds in turn\n{report.machine_line(facts)}\n")
    print(table(cases, plan))
    print("\n" + "\n".join(f"- {note}" for note in NOTES), flush=True)
    if options.json:
        what = {"bench": "mount", "machine": facts, "notes": NOTES, "results": [asdict(case) for case in cases]}
        options.json.write_text(json.dumps(what, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
