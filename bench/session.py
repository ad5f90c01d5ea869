"""What the bulk and the tree benchmark share: the options, the cases, and the way from them to a table."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from headrace.bench import report
from headrace.bench.measure import Result, compare
from headrace.bench.peers import FAST_CIPHER, Cp, Headrace, HeadracePut, Loopback, Peer, RsyncDaemon, RsyncOverSsh, Scp
from headrace.bench.process import BenchError, orderly
from headrace.bench.workspace import checker, place

CLEAR: Final = ("--data-plane", "clear")
REFERENCES: Final = ("scp-gcm", "rsync-daemon")

# By name, in the order of the table. Each is given a folder of its own, which does not exist yet.
CASES: Final[dict[str, Callable[[Path], Peer]]] = {
    "headrace-cold": lambda folder: Headrace("headrace-cold", folder, cold=True, options=("--protocol", "8")),
    "headrace-warm": lambda folder: Headrace("headrace-warm", folder, options=("--protocol", "8")),
    "headrace-clear": lambda folder: Headrace("headrace-clear", folder, options=CLEAR, share_options=CLEAR),
    "headrace-put": lambda folder: HeadracePut("headrace-put", folder, share_options=("--write",)),
    "headrace-7": lambda folder: Headrace("headrace-7", folder, options=("--protocol", "7")),
    "scp": lambda folder: Scp("scp", folder),
    "scp-gcm": lambda folder: Scp("scp-gcm", folder, FAST_CIPHER),
    "rsync-ssh": lambda folder: RsyncOverSsh("rsync-ssh", folder),
    "rsync-daemon": lambda folder: RsyncDaemon("rsync-daemon", folder),
    "cp": lambda folder: Cp("cp"),
    "sendfile": lambda folder: Loopback("sendfile", folder),
}

NOTES: Final = (
    "Wall time of the whole command, start-up and connecting included. x: times as fast, round by round.",
    "headrace-cold: the share was started anew for this run and has hashed nothing; the client starts from an empty"
    " HEADRACE_HOME and pairs with the code (SPAKE2). headrace-warm: hashes remembered, client paired. Both phase 8.",
    "headrace-clear: as warm, with --data-plane clear on both ends: not encrypted, checked all the same.",
    "headrace-put: the other way round, into a share with --write; client paired.",
    "headrace-7: the baseline protocol, forced; client paired. There are no hashes on the wire in it.",
    f"scp, rsync-ssh: the cipher that ssh chooses; scp-gcm: {FAST_CIPHER}. rsync-daemon: no encryption.",
    "Memory: the sum of the peaks of all processes of that end, shared pages counted in each.",
)
LIMIT_NOTE: Final = (
    "Limits, not competitors: cp copies within the same file system; sendfile is a bare sendfile-to-recv_into loop"
    " between two Python processes over loopback, no protocol, no encryption, no check, into a preallocated file."
)


def parser(description: str, *, rounds: int, cases: Sequence[str]) -> argparse.ArgumentParser:
    """With the options that both have."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--rounds", type=positive, default=rounds, help="counted runs of each case (default %(default)s)")
    made.add_argument("--only", type=_chooser(cases), default=list(cases), metavar="CASE,CASE", help=", ".join(cases))
    made.add_argument("--folder", type=Path, default=place(), help="where to work (default %(default)s)")
    made.add_argument("--json", type=Path, metavar="FILE", help="write every run to this file")
    return made


def positive(text: str) -> int:
    """For argparse: a number from 1."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def _chooser(cases: Sequence[str]) -> Callable[[str], list[str]]:
    def choose(text: str) -> list[str]:
        names = text.split(",")
        unknown = sorted(set(names) - set(cases))
        if unknown:
            raise argparse.ArgumentTypeError(f"no such case: {', '.join(unknown)}; there are {', '.join(cases)}")
        return [name for name in cases if name in names]

    return choose


def measure(
    bench: str,
    source: Path,
    folder: Path,
    *,
    only: Sequence[str],
    amount: int,
    unit: report.Unit,
    rounds: int,
    title: str,
    json: Path | None = None,
    again: bool = False,
) -> list[Result]:
    """Compares the cases `only` at copying `source`; prints the table and its notes. folder: an existing one. again:
    to where each has copied it already.

    Raises BenchError when a case could be started and then failed.
    """
    facts = report.machine()
    results = compare(
        [CASES[name](folder / name) for name in only],
        source,
        amount=amount,
        rounds=rounds,
        folder=folder,
        check=checker(source),
        tell=report.tell,
        again=again,
    )
    notes = [*NOTES, LIMIT_NOTE, f"Rounds in turn: {rounds}, after one that is not counted. Every copy was checked."]
    print(f"\n{title}\n{report.machine_line(facts)}\n")
    print(report.table(results, unit, REFERENCES))
    print("\n" + "\n".join(f"- {note}" for note in notes), flush=True)
    if json:
        report.save(json, bench, facts, results, notes)
    return results


def exit_code(work: Callable[[], object]) -> int:
    """Runs a benchmark as a program: signals clean up, failures are one message."""
    try:
        with orderly():
            work()
    except BenchError as why:
        print(f"bench: {' '.join([*getattr(why, '__notes__', ()), ''])}{why}", file=sys.stderr)
        return 1
    return 0
