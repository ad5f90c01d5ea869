"""A long link: headrace beside scp and rsync through a `netlab`, by default 100 Mbit/s with 50 ms of round trip.

`python -m bench.wan --help`. --limits says instead what the links of a netlab let through on this machine, --bloat how
long a queue each program makes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from bench import session
from bench.bloat import bloat
from headrace.bench import report
from headrace.bench.far import CASES, TRANSPORTS, Across, peers
from headrace.bench.flow import goodput
from headrace.bench.measure import Result, Spread, compare
from headrace.bench.netlab import Lab, LabError, Profile, why_not
from headrace.bench.peers import FAST_CIPHER
from headrace.bench.workspace import checker, parse_size, random_file, workspace

NOTES: Final = (
    "Wall time of the whole command, start-up and connecting included, as payload by the link's rate. With packets of"
    " 1,500 bytes TCP's payload is at most 96.5 % of it.",
    "headrace: the share has hashed the file and the client is paired; by TCP, or as the name of the row says.",
    f"scp: {FAST_CIPHER}. rsync-daemon: no encryption.",
    "bare TCP: one stream of the same size, connected already: what the link lets through. Limit, not competitor.",
)

LIMITS: Final = (
    ("TUN, MTU 1500", Profile(), 250_000_000),
    ("TUN, MTU 9000", Profile(mtu=9000), 800_000_000),
    ("TUN, MTU 1500, offload", Profile(offload=True), 800_000_000),
    ("TUN, MTU 1500, offload, 1 Gbit/s, 1 ms", Profile(rate=1e9, delay=0.0005, offload=True), 400_000_000),
    ("veth, MTU 1500, 1 Gbit/s by TBF", Profile(rate=1e9, veth=True), 400_000_000),
)


def main() -> int:
    parser = session.parser("Copies one file over a long link with each program in turn.", rounds=5, cases=[*CASES])
    parser.add_argument("--size", type=parse_size, default=200_000_000, help="of the file (default 200,000,000)")
    parser.add_argument("--rate", type=float, default=100.0, help="Mbit/s (default %(default)g)")
    parser.add_argument("--rtt", type=float, default=50.0, help="ms (default %(default)g)")
    parser.add_argument(
        "--queue", type=float, default=100.0, help="ms that the link's queue holds (default %(default)g)"
    )
    parser.add_argument("--loss", type=_losses, default=[0.0, 1.0], help="in %%, each in turn (default 0,1)")
    parser.add_argument(
        "--congestion", help="TCP's congestion control on both hosts (default bbr; with --bloat this machine's default)"
    )
    parser.add_argument(
        "--transport", type=_transports, default=["tcp"], help="headrace's: tcp,quic,auto, a row each (default tcp)"
    )
    parser.add_argument("--fast", action="store_true", help="1 Gbit/s, 1 ms, offload, no loss, instead of the above")
    parser.add_argument("--bloat", action="store_true", help="only how long a queue each makes where it may be 1 s")
    parser.add_argument("--offload", action="store_true", help="lumps instead of packets: for rates over 300 Mbit/s")
    parser.add_argument("--limits", action="store_true", help="only what the links let through on this machine")
    options = parser.parse_args()
    if options.fast:
        options.rate, options.rtt, options.loss, options.offload = 1000.0, 1.0, [0.0], True
    return session.exit_code(lambda: limits(options.rounds) if options.limits else run(options))


def _transports(text: str) -> list[str]:
    names = text.split(",")
    if unknown := sorted(set(names) - set(TRANSPORTS)):
        raise argparse.ArgumentTypeError(f"no such transport: {', '.join(unknown)}")
    return names


def _losses(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def run(options: argparse.Namespace) -> None:
    """One table for each loss, or with --bloat one of round trips."""
    _needs_a_lab()
    profile = Profile(
        rate=options.rate * 1e6,
        delay=options.rtt / 2000,
        queue=options.queue / 1000,
        congestion=options.congestion or (_own_congestion() if options.bloat else "bbr"),
        offload=options.offload,
    )
    if options.bloat:
        bloat(profile, options)
        return
    facts = report.machine()
    tables = []
    with workspace(4 * options.size, options.folder) as folder:
        source = folder / "source" / "large.bin"
        source.parent.mkdir()
        random_file(source, options.size)
        for loss in options.loss:
            report.tell(f"loss {loss:g} %")
            results, bare, firsts = _measure(
                replace(profile, loss=loss / 100), source, folder / f"loss-{loss:g}", options
            )
            if options.json:
                target = options.json.with_stem(f"{options.json.stem}-loss-{loss:g}")
                report.save(target, "netlab", facts | {"loss": loss}, results, NOTES)
            limit = report.spread(Spread.of([100 * one / profile.rate for one in bare]), 1)
            tables.append(f"loss {loss:g} %; bare TCP {limit} % of the link\n{table(results, profile.rate)}{firsts}")
    print(
        f"\nOne file of {options.size / 1e6:,.0f} MB over {options.rate:g} Mbit/s, {options.rtt:g} ms round trip,"
        f" queue {options.queue:g} ms, TCP {profile.congestion}\n{report.machine_line(facts)}\n"
    )
    print("\n\n".join(tables))
    notes = [*NOTES, f"Rounds in turn: {options.rounds}, after one that is not counted. Every copy was checked."]
    print("\n" + "\n".join(f"- {note}" for note in notes), flush=True)


def _measure(
    profile: Profile, source: Path, folder: Path, options: argparse.Namespace
) -> tuple[list[Result], list[float], str]:
    """The cases; the bare stream in bit/s before and after them; when headrace's first bytes came."""
    folder.mkdir()
    with Lab(profile) as lab:
        bare = [goodput(lab, options.size)]
        across = peers(lab, folder, options)
        right = checker(source)

        def check(copy: Path) -> None:
            right(copy)
            max(across, key=lambda peer: peer.commanded).note(folder / "command.log")

        results = compare(
            across,
            source,
            amount=options.size,
            rounds=options.rounds,
            folder=folder,
            check=check,
            tell=report.tell,
        )
        bare.append(goodput(lab, options.size))
        there, back = lab.counts()
        report.tell(f"the link, there: {there}\nthe link, back: {back}")
    return results, bare, "".join(first_bytes(peer, 2 * profile.delay) for peer in across if peer.first_bytes)


def table(results: Sequence[Result], rate: float) -> str:
    """The share of the link first: that is what a long link is about."""
    first = results[0]
    rows = [["case", "% of the link (min..max)", "seconds", f"{first.name} is x as fast", "CPU s get+serve"]]
    for result in results:
        if result.missing:
            rows.append([result.name, result.missing])
            continue
        ratio = first.ratio_to(result)
        rows.append(
            [
                result.name,
                report.spread(Spread.of([100 * one * 8 / rate for one in result.rates]), 1),
                report.spread(Spread.of([sample.seconds for sample in result.samples]), 2),
                report.spread(ratio, 2) if ratio else "-",
                report.both(result.samples, "client_cpu", "server_cpu", 1, 2),
            ]
        )
    return report.columns(rows)


def first_bytes(peer: Across, rtt: float) -> str:
    """One line: how long after the connection the first byte of each copy came. rtt: seconds, 0 where there is none."""
    line = f"\n{peer.name}: first byte {report.spread(Spread.of(peer.first_bytes), 0)} ms after the connection"
    if rtt:
        line += f", {report.spread(Spread.of([ms / 1000 / rtt for ms in peer.first_bytes]), 1)} round trips"
    return line


def limits(rounds: int) -> None:
    """What one TCP stream gets through each kind of link."""
    _needs_a_lab()
    facts = report.machine()
    rows = [["link", "Mbit/s of payload (min..max)"]]
    for name, profile, amount in LIMITS:
        rates = []
        for _ in range(rounds):
            with Lab(profile) as lab:
                rates.append(goodput(lab, amount) / 1e6)
        report.tell(f"{name}: {', '.join(f'{rate:,.0f}' for rate in rates)}")
        rows.append([name, report.spread(Spread.of(rates), 0)])
    print(f"\nWhat one TCP stream gets through a netlab\n{report.machine_line(facts)}\n")
    print(report.columns(rows), flush=True)


def _own_congestion() -> str:
    """What programs get on this machine that do not choose."""
    return Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()


def _needs_a_lab() -> None:
    if why := why_not():
        raise LabError(why)


if __name__ == "__main__":
    sys.exit(main())
