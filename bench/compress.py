"""Compression: `--compress auto` beside `off`, for text and for noise, over a slow link and over loopback.

`python -m bench.compress --help`. The slow link is a `netlab`, by default 100 Mbit/s; without root it is a rate limit
of the share instead. Text is the source of Python's standard library, in one file. Each round copies with both in turn.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from bench import session
from headrace.bench import report
from headrace.bench.far import Across
from headrace.bench.measure import Result, Spread, compare
from headrace.bench.netlab import Lab, Profile, why_not
from headrace.bench.peers import Headrace, Peer
from headrace.bench.workspace import checker, parse_size, place, random_file, text_file, workspace

TARGETS: Final = {("slow", "text"): 2.0, ("slow", "noise"): 0.98}  # how many times as fast auto has to be
CASES: Final = ("auto", "off")
KINDS: Final = ("text", "noise")
LINKS: Final = ("slow", "loopback")


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench compress", description="--compress auto beside off.")
    parser.add_argument("--rounds", type=session.positive, default=5, help="counted runs (default %(default)s)")
    parser.add_argument("--size", type=parse_size, default=60_000_000, help="of the file over the slow link")
    parser.add_argument("--loopback-size", type=parse_size, default=512 << 20, help="of that over loopback")
    parser.add_argument("--rate", type=float, default=100.0, help="Mbit/s of the slow link (default %(default)g)")
    parser.add_argument("--rtt", type=float, default=20.0, help="ms (default %(default)g)")
    parser.add_argument("--limited", action="store_true", help="a rate limit instead of a netlab, as without root")
    parser.add_argument("--only", choices=LINKS, help="one of both")
    parser.add_argument("--folder", type=Path, default=place(), help="where to work (default %(default)s)")
    options = parser.parse_args()
    return session.exit_code(lambda: run(options))


def run(options: argparse.Namespace) -> None:
    facts = report.machine()
    rows = [["link", "file", "auto s (min..max)", "off s (min..max)", "auto is x as fast (min..max)", "target"]]
    links = {"slow": options.size, "loopback": options.loopback_size}
    with workspace(4 * max(links.values()), options.folder) as folder:
        for link, size in links.items():
            if options.only not in (None, link):
                continue
            for kind in KINDS:
                where = folder / f"{link}-{kind}"
                (where / "source").mkdir(parents=True)
                source = where / "source" / kind
                (text_file if kind == "text" else random_file)(source, size)
                report.tell(f"{link}, {kind}")
                rows.append(_row(link, kind, _measure(link, source, where, options)))
                source.unlink()
    print(f"\n{_title(options)}\n{report.machine_line(facts)}\n")
    print(report.columns(rows))
    print(f"\n- Wall time of the whole command. Rounds in turn: {options.rounds}. Every copy was checked.", flush=True)


def _title(options: argparse.Namespace) -> str:
    slow = f"{options.rate:g} Mbit/s" + (
        " by --limit-rate" if options.limited or why_not() else f", {options.rtt:g} ms round trip"
    )
    return f"slow: {slow}, {options.size / 1e6:,.0f} MB; loopback: {options.loopback_size / 1e6:,.0f} MB"


def _measure(link: str, source: Path, folder: Path, options: argparse.Namespace) -> list[Result]:
    with _peers(link, folder, options) as peers:
        return compare(
            peers,
            source,
            amount=source.stat().st_size,
            rounds=options.rounds,
            folder=folder,
            check=checker(source),
            tell=report.tell,
        )


@contextlib.contextmanager
def _peers(link: str, folder: Path, options: argparse.Namespace) -> Iterator[Sequence[Peer]]:
    def made(*share_options: str) -> list[Headrace]:
        wishes = {case: ("--compress", case, "--transport", "tcp") for case in CASES}
        return [
            Headrace(case, folder / case, options=wish, share_options=share_options) for case, wish in wishes.items()
        ]

    if link == "loopback":
        yield made()
    elif options.limited or why_not():
        yield made("--limit-rate", f"{options.rate * 1e6 / 8:.0f}")
    else:
        with Lab(Profile(rate=options.rate * 1e6, delay=options.rtt / 2000)) as lab:
            yield [Across(lab, peer) for peer in made("--bind", lab.b.address)]


def _row(link: str, kind: str, results: Sequence[Result]) -> list[str]:
    auto, off = results
    if missing := auto.missing or off.missing:
        return [link, kind, missing]
    ratio = auto.ratio_to(off)
    assert ratio
    target = TARGETS.get((link, kind))
    seconds = [report.spread(Spread.of([sample.seconds for sample in result.samples]), 2) for result in results]
    return [link, kind, *seconds, report.spread(ratio, 3), "" if target is None else f"at least {target:g}"]


if __name__ == "__main__":
    sys.exit(main())
