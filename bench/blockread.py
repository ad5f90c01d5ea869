"""How fast the reader behind a mount is, by itself: no FUSE, a real share in another process.

    random 4 KiB, cold   each at a place that nothing cached, through `client.blocks`; a fresh reader each round
    random 4 KiB, warm   the same places once more, out of memory
    random 4 KiB, plain  as --debug-io: one request of the baseline each
    ping-pong 4 KiB      a bare TCP connection to another Python process: 4 bytes there, 4 KiB back
    sequential           the whole file in reads of 128 KiB, cold; MB/s
    bare TCP             the same bytes by a bare TCP connection to another Python process; MB/s
    seek, first 128 KiB  at a random place of the file, cold
    seek, 4 MiB          from there on, in reads of 128 KiB

The cases take turns within each round. With --way long there is a link of 100 Mbit/s and 50 ms in between (as root),
and no ping-pong: its round trip is known.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from bench import session
from bench.bloat import quantile
from bench.latency import NAME, WAYS, Way
from headrace.bench import report
from headrace.bench.netlab import Lab, LabError, why_not
from headrace.bench.peers import Headrace
from headrace.bench.workspace import MIB, parse_size, place, random_file, workspace
from headrace.client.blocks import BlockFile, BlockReader
from headrace.client.link import Link
from headrace.client.session import Session
from headrace.client.target import Target
from headrace.protocol.messages import Entry
from headrace.protocol.paths import RelPath

PIECE: Final = 4096
READ: Final = 128 * 1024
SEEK: Final = 4 * MIB
DEADLINE: Final = 60.0
WHERE: Final = RelPath.from_user(NAME.encode())

Seconds = list[float]


def main() -> int:
    parser = argparse.ArgumentParser(description="The reader behind a mount, by itself.")
    parser.add_argument("--rounds", type=session.positive, default=3, help="(default %(default)s)")
    parser.add_argument("--reads", type=session.positive, default=1000, help="of a round (default %(default)s)")
    parser.add_argument("--seeks", type=session.positive, default=10, help="of a round (default %(default)s)")
    parser.add_argument("--size", type=parse_size, default=512 * MIB, help="of the file (default 512m)")
    parser.add_argument("--way", choices=("loopback", "long"), default="loopback", help="(default %(default)s)")
    parser.add_argument("--folder", type=Path, default=place(), help="where to work (default %(default)s)")
    options = parser.parse_args()
    return session.exit_code(lambda: run(options))


def run(options: argparse.Namespace) -> None:
    """One table. Raises BenchError."""
    way = WAYS[options.way]
    if way.profile and (why := why_not()):
        raise LabError(why)
    facts = report.machine()
    with scene(way, options.size, options.folder) as (link, entry, ping):
        times: dict[str, Seconds] = {}
        for number in range(1, options.rounds + 1):
            report.tell(f"round {number} of {options.rounds}")
            for name, seconds in one_round(link, entry, ping, options, random.Random(number)).items():
                times.setdefault(name, []).extend(seconds)
    print(f"\nThe reader behind a mount, {way.name}\n{report.machine_line(facts)}\n")
    print(report.columns(rows(times, options.size, ping is not None)))
    print(__doc__[__doc__.index("\n") :].rstrip() if __doc__ else "", flush=True)


def rows(times: dict[str, Seconds], size: int, pinged: bool) -> list[list[str]]:
    """Of the table. pinged: there is a ping-pong to compare with."""
    table = [["case", "p50 ms", "p99 ms", "MB/s", "x ping-pong"]]
    bare = quantile(times["ping-pong 4 KiB"], 0.5) if pinged else None
    for name, seconds in times.items():
        middle = quantile(seconds, 0.5)
        amount = {"sequential": size, "bare TCP": size, "seek, 4 MiB": SEEK}.get(name)
        rate = f"{amount / middle / 1e6:,.0f}" if amount else "-"
        ratio = f"{middle / bare:.1f}" if bare and "4 KiB" in name else "-"
        table.append([name, f"{middle * 1000:.3f}", f"{quantile(seconds, 0.99) * 1000:.3f}", rate, ratio])
    return table


def one_round(
    link: Link, entry: Entry, ping: PingPong | None, options: argparse.Namespace, chance: random.Random
) -> dict[str, Seconds]:
    """Seconds of each read, by the name of the case."""
    places = [block * READ + 5 * PIECE for block in chance.sample(range(entry.size // READ), options.reads)]
    found: dict[str, Seconds] = {}
    with reading(link, entry) as (_, file):
        found["random 4 KiB, cold"] = [timed(lambda at=at: get(file, at, PIECE)) for at in places]  # type: ignore[misc]
        found["random 4 KiB, warm"] = [timed(lambda at=at: get(file, at, PIECE)) for at in places]  # type: ignore[misc]
    with reading(link, entry, plain=True) as (_, file):
        found["random 4 KiB, plain"] = [timed(lambda at=at: get(file, at, PIECE)) for at in places]  # type: ignore[misc]
    if ping:
        found["ping-pong 4 KiB"] = [timed(lambda: ping.get(PIECE)) for _ in places]
    with reading(link, entry) as (_, file):
        found["sequential"] = [timed(lambda: walk(file, 0, entry.size))]
    if ping:
        found["bare TCP"] = [timed(lambda: ping.get(entry.size))]
    first, rest = [], []
    with reading(link, entry) as (reader, file):
        for _ in range(options.seeks):
            reader.ram.clear()
            at = chance.randrange(0, entry.size - SEEK, PIECE)
            began = time.perf_counter()
            get(file, at, READ)
            first.append(time.perf_counter() - began)
            walk(file, at, at + SEEK)
            rest.append(time.perf_counter() - began)
    return found | {"seek, first 128 KiB": first, "seek, 4 MiB": rest}


def timed(do: Callable[[], object]) -> float:
    started = time.perf_counter()
    do()
    return time.perf_counter() - started


def get(file: BlockFile, offset: int, length: int) -> None:
    assert len(file.read(offset, length, time.monotonic() + DEADLINE)) == length


def walk(file: BlockFile, start: int, end: int) -> None:
    """As a copy does it: every byte is touched once more on its way to somewhere else."""
    sink = bytearray(READ)
    for at in range(start, end, READ):
        piece = file.read(at, min(READ, end - at), time.monotonic() + DEADLINE)
        sink[: len(piece)] = piece


@contextlib.contextmanager
def reading(link: Link, entry: Entry, *, plain: bool = False) -> Iterator[tuple[BlockReader, BlockFile]]:
    reader = BlockReader(link, plain=plain)
    file = reader.open(WHERE, entry)
    try:
        yield reader, file
    finally:
        file.close()
        reader.close()


@contextlib.contextmanager
def scene(way: Way, size: int, where: Path) -> Iterator[tuple[Link, Entry, PingPong | None]]:
    """A share of one file, a link to it, and who answers bare requests."""
    with ExitStack() as stack:
        folder = stack.enter_context(workspace(size, where))
        (folder / "source").mkdir()
        random_file(folder / "source" / NAME, size)
        lab = stack.enter_context(Lab(way.profile)) if way.profile else None
        host = lab.b.address if lab else "127.0.0.1"
        peer = Headrace("headrace", folder / "headrace", share_options=("--bind", host))
        stack.callback(peer.stop)
        with lab.b.inside() if lab else contextlib.nullcontext():
            peer.start(folder / "source")
        env = peer.client_environment
        target = Target.parse(f"{env['HEADRACE_CODE']}@{host}:{peer.address.rpartition(':')[2]}")

        def connect() -> Session:
            with lab.a.inside() if lab else contextlib.nullcontext():
                return Session.connect(target, home=Path(env["HEADRACE_HOME"]), transport="tcp")

        # Inside for good: the link opens its lanes on threads of its own, which take over where this one is.
        stack.enter_context(lab.a.inside() if lab else contextlib.nullcontext())
        link = Link(connect)
        stack.callback(link.close)
        link.connect(time.monotonic() + DEADLINE)
        entry = link.run(lambda session, lane: session.stat(WHERE), time.monotonic() + DEADLINE)
        yield link, entry, None if lab else stack.enter_context(contextlib.closing(PingPong()))


class PingPong:
    """A bare TCP connection to another Python process, which sends as many bytes as it is asked for."""

    def __init__(self) -> None:
        argv = [sys.executable, "-m", "bench.blockread", "pong"]
        self._process = subprocess.Popen(argv, stdout=subprocess.PIPE)
        assert self._process.stdout
        port = int(self._process.stdout.readline())
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = memoryview(bytearray(MIB))

    def get(self, length: int) -> None:
        self._socket.sendall(length.to_bytes(8, "big"))
        while length:
            count = self._socket.recv_into(self._buffer[: min(length, MIB)])
            assert count
            length -= count

    def close(self) -> None:
        self._socket.close()
        self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()


def pong() -> None:
    """The other process."""
    zeros = memoryview(bytes(MIB))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        connection, _ = listener.accept()
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while asked := connection.recv(8, socket.MSG_WAITALL):
            length = int.from_bytes(asked, "big")
            while length:
                length -= connection.send(zeros[: min(length, MIB)])


if __name__ == "__main__":
    if sys.argv[1:] == ["pong"]:
        pong()
    else:
        sys.exit(main())
