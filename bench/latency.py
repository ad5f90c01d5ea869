"""How long a small read takes while others copy from the same share. `python -m bench.latency --help`.

One process shares a folder. This one reads 4 KiB at random places of a file, over and over: alone, and while two
`headrace get` of the same share run. Both ways to read are timed in turn:

  lane   a GetChunk of 4 KiB on a stream of its own, until it is verified
  file   `headrace.connect(...).open(...)`, seek and read: that fetches the 128 KiB at the place

A read counts as one under load where both copies had a file in flight before it and after it. The aim is a median
under load of at most twice that of a read alone, and one round trip.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bench import session
from bench.bloat import quantile
from headrace.bench import report
from headrace.bench.far import TRANSPORTS
from headrace.bench.netlab import Lab, LabError, Profile, why_not
from headrace.bench.peers import HEADRACE, Headrace
from headrace.bench.process import BenchError, Child, Command, tail
from headrace.bench.workspace import MIB, place, random_file, workspace
from headrace.client.remote import RemoteShare
from headrace.client.session import Session
from headrace.client.target import Target
from headrace.engine.exchange import EXCHANGES
from headrace.protocol.paths import RelPath

PIECE: Final = 4096  # bytes of a read
COPIES: Final = 2
UNDER_WAY: Final = 60.0  # seconds for both copies to have a file in flight
SETTLED: Final = 1.0  # seconds after that before a read counts
POLL: Final = 0.005
NAME: Final = "large.bin"
SHARES: Final = (0.5, 0.95, 0.99)

Read = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Way:
    """Between the share and its clients. profile: None is loopback. size: bytes of the file. reads: for each row."""

    name: str
    profile: Profile | None
    size: int
    reads: int

    @property
    def rtt(self) -> float:
        """Seconds, without any queue."""
        return 2 * self.profile.delay if self.profile else 0.0


WAYS: Final = {
    "loopback": Way("loopback", None, 1024 * MIB, 400),
    "long": Way("100 Mbit/s, 50 ms", Profile(rate=100e6, delay=0.025), 256 * MIB, 60),
    "fast": Way("1 Gbit/s, 1 ms", Profile(rate=1e9, delay=0.0005, offload=True), 1024 * MIB, 300),
}


@dataclass(slots=True)
class Times:
    """Seconds of each read: alone, and while others copied."""

    alone: list[float] = field(default_factory=list)
    loaded: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """Of the medians."""
        return quantile(self.loaded, 0.5) / quantile(self.alone, 0.5)


def main() -> int:
    parser = argparse.ArgumentParser(description="How long a read of 4 KiB takes, alone and while two copies run.")
    parser.add_argument("--rounds", type=session.positive, default=2, help="alone, then loaded (default %(default)s)")
    parser.add_argument("--only", default=",".join(WAYS), metavar="WAY,WAY", help=f"of {', '.join(WAYS)} (default all)")
    parser.add_argument("--transport", choices=TRANSPORTS, default="tcp", help="of all (default %(default)s)")
    parser.add_argument("--folder", type=Path, default=place(), help="where to work (default %(default)s)")
    options = parser.parse_args()
    if unknown := sorted(set(options.only.split(",")) - set(WAYS)):
        parser.error(f"no such way: {', '.join(unknown)}")
    return session.exit_code(lambda: run(options))


def run(options: argparse.Namespace) -> None:
    """One table. Raises BenchError."""
    facts = report.machine()
    rows = [["way", "read", "alone ms p50, p95, p99", "loaded ms p50, p95, p99", "ratio", "p50 ms, aim", "load avg"]]
    for name in options.only.split(","):
        way = WAYS[name]
        if way.profile and (why := why_not()):
            raise LabError(why)
        with Scene(way, options.transport, options.folder) as scene:
            found = scene.measure(options.rounds)
        for read, times in found.items():
            rows.append([*row(way, read, times), str(report.load())])
            report.tell("  ".join(rows[-1]))
    print(f"\nReads of 4 KiB, {COPIES} copies beside them, by {options.transport}\n{report.machine_line(facts)}\n")
    print(report.columns(rows))
    print(__doc__[__doc__.index("\n") :].rstrip() if __doc__ else "", flush=True)


def row(way: Way, read: str, times: Times) -> list[str]:
    """Of the table."""
    aim = 2 * quantile(times.alone, 0.5) + way.rtt
    shown = [", ".join(f"{quantile(one, share) * 1000:.2f}" for share in SHARES) for one in (times.alone, times.loaded)]
    return [way.name, read, *shown, f"{times.ratio:.2f}", f"{quantile(times.loaded, 0.5) * 1000:.2f}, {aim * 1000:.2f}"]


class Scene:
    """A share, whoever reads from it, and those who copy from it beside that. A context manager."""

    def __init__(self, way: Way, transport: str, place: Path) -> None:
        self._way = way
        self._transport = transport
        self._place = place
        self._stack = ExitStack()

    def __enter__(self) -> Scene:
        way = self._way
        with ExitStack() as stack:
            self._folder = folder = stack.enter_context(workspace((COPIES + 1) * way.size, self._place))
            source = folder / "source"
            source.mkdir()
            random_file(source / NAME, way.size)
            self._lab = lab = stack.enter_context(Lab(way.profile)) if way.profile else None
            self._host = lab.b.address if lab else "127.0.0.1"
            self._peer = peer = Headrace("headrace", folder / "headrace", share_options=("--bind", self._host))
            stack.callback(peer.stop)
            with lab.b.inside() if lab else contextlib.nullcontext():
                peer.start(source)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    @property
    def _address(self) -> str:
        return f"{self._host}:{self._peer.address.rpartition(':')[2]}"

    def measure(self, rounds: int) -> dict[str, Times]:
        """Alone, loaded, alone, loaded. By the name of the way to read."""
        with self._reads() as reads:
            found = {name: Times() for name in reads}
            for number in range(1, rounds + 1):
                report.tell(f"{self._way.name}: round {number} of {rounds}, alone")
                for _ in range(self._way.reads):
                    for name, read in reads.items():
                        found[name].alone.append(_timed(read))
                with self._load() as running:
                    report.tell(f"{self._way.name}: round {number} of {rounds}, loaded")
                    for _ in range(self._way.reads):
                        for name, read in reads.items():
                            found[name].loaded.append(_timed_under(running, read))
        return found

    @contextlib.contextmanager
    def _reads(self) -> Iterator[dict[str, Read]]:
        """By name: each reads 4 KiB at a random place."""
        env, size = self._peer.client_environment, self._way.size
        target = Target.parse(f"{env['HEADRACE_CODE']}@{self._address}")
        chance, where = random.Random(1), RelPath.from_user(NAME.encode())
        buffer = memoryview(bytearray(PIECE))
        with self._lab.a.inside() if self._lab else contextlib.nullcontext():
            made = Session.connect(target, home=Path(env["HEADRACE_HOME"]), transport=self._transport)
            with RemoteShare(made) as share, share.open(NAME) as file:
                version = made.stat(where).version
                exchange = EXCHANGES[made.agreed.version]
                own = made.open_lane()

                def lane() -> None:
                    with own.lock:
                        exchange.request(own, where, version, chance.randrange(size - PIECE), PIECE)
                        exchange.receive(own, PIECE, buffer, None)

                def by_file() -> None:
                    file.seek(chance.randrange(size - PIECE))
                    file.read(PIECE)

                yield {"lane": lane, "file": by_file}

    @contextlib.contextmanager
    def _load(self) -> Iterator[Callable[[], object]]:
        """COPIES of `headrace get` over and over. Gives what says which copies run; nothing where one does not."""
        over = threading.Event()
        numbers = [0] * COPIES
        failed: list[BaseException] = []

        def copy(number: int) -> None:
            try:
                while not over.is_set():
                    numbers[number] += 1
                    self._copy(number, over)
            except BaseException as why:  # noqa: BLE001  # raised in `running`, on the thread that measures
                failed.append(why)

        def running() -> object:
            if failed:
                raise failed[0]
            flying = [self._dest(number).with_name(f".{NAME}.headrace-part") for number in range(COPIES)]
            return list(numbers) if all(path.exists() for path in flying) else None

        threads = [threading.Thread(target=copy, args=(number,), name=f"copy-{number}") for number in range(COPIES)]
        for thread in threads:
            thread.start()
        try:
            deadline = time.monotonic() + UNDER_WAY
            while not running():
                if time.monotonic() > deadline:
                    raise BenchError("the copies do not get under way")
                time.sleep(POLL)
            time.sleep(SETTLED)
            yield running
        finally:
            over.set()
            for thread in threads:
                thread.join()

    def _dest(self, number: int) -> Path:
        return self._folder / f"copy-{number}" / NAME

    def _copy(self, number: int, over: threading.Event) -> None:
        """One copy, to its end or until `over`. Raises BenchError."""
        dest, log = self._dest(number), self._folder / f"copy-{number}.log"
        shutil.rmtree(dest.parent, ignore_errors=True)
        dest.parent.mkdir()
        argv = [*HEADRACE, "get", f"{self._address}/{NAME}", str(dest), "--quiet", "--transport", self._transport]
        if self._lab:
            argv = self._lab.a.argv(argv)
        with Child(Command(tuple(argv), self._peer.client_environment), log) as child:
            while not child.ended:
                if over.wait(POLL):
                    return
            if child.reap()[0]:
                raise BenchError(tail(log))


def _timed(read: Read) -> float:
    started = time.perf_counter()
    read()
    return time.perf_counter() - started


def _timed_under(running: Callable[[], object], read: Read) -> float:
    """As `_timed`, again and again until the same copies ran before and after it."""
    deadline = time.monotonic() + UNDER_WAY
    while time.monotonic() < deadline:
        before = running()
        if not before:
            time.sleep(POLL)
            continue
        seconds = _timed(read)
        if running() == before:
            return seconds
    raise BenchError("the copies do not stay under way: the file is too small")


if __name__ == "__main__":
    sys.exit(main())
