"""What it costs to be watched: a copy with `--metrics` that somebody reads every second, and one with `--trace`, beside
one with neither. `python -m bench.watched --help`. Each round copies in all ways in turn; `again` is `off` once more,
and says what the machine's own noise is. As that is more than a scrape costs, the CPU time of one is measured as well.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from bench import session
from headrace.bench import procfs, report
from headrace.bench.measure import Spread, compare
from headrace.bench.peers import Headrace
from headrace.bench.process import BenchError
from headrace.bench.workspace import checker, parse_size, place, random_file, workspace

TARGET: Final = 0.99  # of the rate without
SCRAPES: Final = 200
EVERY: Final = 1.0  # seconds between two scrapes; Prometheus's default is 15 to 60


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench watched", description="What metrics and traces cost.")
    parser.add_argument("--rounds", type=session.positive, default=10, help="counted runs (default %(default)s)")
    parser.add_argument("--size", type=parse_size, default=1 << 30, help="of the file (default 1g)")
    parser.add_argument("--folder", type=Path, default=place(), help="where to work (default %(default)s)")
    options = parser.parse_args()
    return session.exit_code(lambda: run(options))


def run(options: argparse.Namespace) -> None:
    facts = report.machine()
    with workspace(6 * options.size, options.folder) as folder:
        source = folder / "source" / "file"
        source.parent.mkdir()
        random_file(source, options.size)
        ports = [_free_port() for _ in range(2)]
        host, client = [("--metrics", f"127.0.0.1:{port}") for port in ports]
        tracing = [("--trace", str(folder / side)) for side in ("host.trace", "client.trace")]
        peers = [
            Headrace("off", folder / "off"),
            Headrace("again", folder / "again"),
            Headrace("metrics", folder / "metrics", options=client, share_options=host),
            Headrace("trace", folder / "trace", options=tracing[1], share_options=tracing[0]),
        ]
        with _scraping(ports):
            results = compare(
                peers,
                source,
                amount=options.size,
                rounds=options.rounds,
                folder=folder,
                check=checker(source),
                tell=report.tell,
            )
        scrape = _scrape_seconds(folder, source.parent, host, ports[0])
    rows = [["way", "s (min..max)", "times the rate of off (min..max)"]]
    for result in results:
        seconds = report.spread(Spread.of([sample.seconds for sample in result.samples]), 2)
        ratio = result.ratio_to(results[0])
        assert ratio
        rows.append([result.name, seconds, report.spread(ratio, 3)])
    print(f"\n{options.size / 1e6:,.0f} MB, rounds in turn: {options.rounds}\n{report.machine_line(facts)}\n")
    print(report.columns(rows))
    print(f"\n- Scraped every {EVERY:g} s, both sides. Target: at least {TARGET:g}.")
    print(
        f"- One scrape of a share costs it {scrape * 1e3:.2f} ms of CPU, {SCRAPES} in a row: every {EVERY:g} s that is"
        f" {scrape / EVERY:.2%} of a core, every 15 s {scrape / 15:.3%}.",
        flush=True,
    )


def _scrape_seconds(folder: Path, source: Path, options: tuple[str, ...], port: int) -> float:
    """CPU seconds that a share spends on one scrape, answering included."""
    peer = Headrace("scraped", folder / "scraped", share_options=options)
    try:
        peer.start(source)
        server = peer.server
        if server is None:
            raise BenchError("the share did not start")
        _scrape(port)  # what is loaded with the first one
        before = procfs.cpu_seconds(server)
        for _ in range(SCRAPES):
            _scrape(port)
        return (procfs.cpu_seconds(server) - before) / SCRAPES
    finally:
        peer.stop()


def _scrape(port: int) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as got:
        got.read()


@contextlib.contextmanager
def _scraping(ports: list[int]) -> Iterator[None]:
    """Reads the metrics of whoever has them. One that does not answer is not running just now."""
    over = threading.Event()

    def scrape() -> None:
        while not over.wait(EVERY):
            for port in ports:
                with contextlib.suppress(OSError):
                    _scrape(port)

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
