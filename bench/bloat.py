"""How long the queue of a link becomes while a program copies through it: `scripts/bench netlab --bloat`.

The link's queue takes a second of packets, as those of many home routers do. Echo requests go through it before a copy
and while it runs. What their round trip grows by is what a call or a game on the same line would feel.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from headrace.bench import report
from headrace.bench.far import Across, peers
from headrace.bench.measure import run as run_command
from headrace.bench.netlab import Lab, Profile
from headrace.bench.ping import Ping
from headrace.bench.process import BenchError, NotInstalledError
from headrace.bench.workspace import checker, random_file, workspace

QUEUE: Final = 1.0  # seconds
QUIET: Final = 3.0  # seconds of echoes before each copy
SETTLED: Final = 1.0  # seconds of a copy that are left out: its program starts
AIM: Final = 0.060  # seconds that headrace may add at the median

NOTES: Final = (
    "Echo requests 20 times a second; the far kernel answers, and the near one notes when. Before: 3 s without a copy."
    " During: from 1 s after the command was started to its end.",
    "Hosts use the congestion control named above unless a program chooses its own. headrace: with its defaults.",
)


@dataclass(frozen=True, slots=True)
class Growth:
    """Round trips in seconds, of one copy or of several. seconds: of each copy."""

    before: list[float]
    during: list[float]
    seconds: list[float]

    def by(self, share: float) -> float:
        """What the round trip grew by, at a share of them: 0.5 for the median."""
        return quantile(self.during, share) - quantile(self.before, share)


def quantile(values: list[float], share: float) -> float:
    """The smallest of `values` (at least one) that as many as `share` of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, min(len(ordered), -int(-share * len(ordered) // 1)) - 1)]


def bloat(profile: Profile, options: argparse.Namespace) -> None:
    """Prints one row for each program. Raises BenchError."""
    profile = replace(profile, queue=QUEUE)
    facts = report.machine()
    rows = [["case", "ping before ms p50, p95", "during ms p50, p95", "growth ms p50, p95", "% of the link"]]
    with workspace(3 * options.size, options.folder) as folder, Lab(profile) as lab:
        source = folder / "source" / "large.bin"
        source.parent.mkdir()
        random_file(source, options.size)
        for peer in peers(lab, folder, options):
            try:
                found = _watch(peer, source, folder, lab, options.rounds)
            except NotInstalledError as why:
                rows.append([peer.name, f"not installed ({why})"])
                continue
            except BenchError as why:
                rows.append([peer.name, f"failed: {why}"])
                continue
            finally:
                peer.stop()
            rows.append(row(peer.name, found, options.size, profile.rate))
            report.tell("  ".join(rows[-1]))
        there, back = lab.counts()
        report.tell(f"the link, there: {there}\nthe link, back: {back}")
    print(
        f"\nRound trip through {profile.rate / 1e6:g} Mbit/s, {profile.delay * 2000:g} ms, a queue of {QUEUE:g} s, TCP"
        f" {profile.congestion}, while {options.size / 1e6:,.0f} MB are copied\n{report.machine_line(facts)}\n"
    )
    print(report.columns(rows))
    print("\n" + "\n".join(f"- {note}" for note in NOTES), flush=True)


def row(name: str, found: Growth, size: int, rate: float) -> list[str]:
    """Of the table."""
    both = [", ".join(f"{quantile(which, share) * 1000:.1f}" for share in (0.5, 0.95)) for which in _pair(found)]
    growth = ", ".join(f"{found.by(share) * 1000:.1f}" for share in (0.5, 0.95))
    shares = [100 * size * 8 / seconds / rate for seconds in found.seconds]
    return [name, *both, growth, ", ".join(f"{share:.1f}" for share in shares)]


def _pair(found: Growth) -> tuple[list[float], list[float]]:
    return found.before, found.during


def _watch(peer: Across, source: Path, folder: Path, lab: Lab, rounds: int) -> Growth:
    """Copies `rounds` times."""
    check = checker(source)
    found = Growth([], [], [])
    dest = folder / "copies"
    dest.mkdir(exist_ok=True)
    peer.start(source.parent)
    for _ in range(rounds):
        peer.before_run()
        with Ping(lab) as ping:
            began = time.monotonic()
            time.sleep(QUIET)
            started = time.monotonic()
            sample = run_command(peer.command(source.name, dest), log=folder / "command.log", server=peer.server)
            ended = started + sample.seconds
        found.before.extend(ping.between(began, started))
        found.during.extend(ping.between(started + SETTLED, ended))
        found.seconds.append(sample.seconds)
        check(dest / source.name)
        (dest / source.name).unlink()
    if not found.before or not found.during:
        raise BenchError("no echo came back: choose a larger --size")
    return found
