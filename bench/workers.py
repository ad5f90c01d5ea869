"""What `share --workers` gains: several clients at once, at a share with none, one, two workers in turn.

`python -m bench.workers --help`. Two kinds of clients. `get`: whole copies, of a large file or of a tree; client and
host share this machine, and the clients are most of the work. `drain`: clients that ask for chunks and let the kernel
drop what comes, unopened; so nearly all of the work is the host's, as where many clients are on other machines.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench import session
from headrace.bench import procfs, report
from headrace.bench.measure import Spread
from headrace.bench.peers import HEADRACE, Headrace
from headrace.bench.process import BenchError, Child, Command
from headrace.bench.workspace import checker, parse_size, place, random_file, random_tree, workspace
from headrace.client.session import Session
from headrace.client.target import Target, parse_code
from headrace.protocol.messages import CHUNK_SIZE, GetChunk, Goodbye
from headrace.protocol.paths import ROOT, RelPath

PIECE: Final = 1 << 20  # bytes that one call drops
READY: Final = 20.0  # seconds that workers may take to start
PATIENCE: Final = 120.0  # seconds without a byte


@dataclass(frozen=True)
class Run:
    """One measured run. cores: CPU seconds of the host's processes for each second; first: of its first one alone."""

    seconds: float
    cores: float
    first: float


class Case:
    """A share with so many workers, and clients that come back."""

    def __init__(self, workers: int, source: Path, folder: Path, options: argparse.Namespace) -> None:
        self.workers = workers
        self._options = options
        self._source = source
        self._folder = folder / f"workers-{workers}"
        plane = ("--data-plane", options.data_plane)
        self._share = Headrace(f"{workers}", self._folder, share_options=("--workers", str(workers), *plane))
        self._share.start(source.parent)
        server = self._share.server
        assert server
        self.server = server
        deadline = time.monotonic() + READY
        while len(procfs.family(server)) < 1 + workers and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(1.0)  # until they have imported what they need
        port, code = self._share.address.rpartition(":")[2], self._share.client_environment["HEADRACE_CODE"]
        self._target = Target("127.0.0.1", int(port), code=parse_code(code))

    def stop(self) -> None:
        self._share.stop()

    def run(self) -> Run:
        work = self._drain if self._options.clients == "drain" else self._get
        ready = work()
        cpu, own, began = procfs.cpu_seconds(self.server), _own(self.server), time.monotonic()
        ready()
        seconds = time.monotonic() - began
        return Run(seconds, (procfs.cpu_seconds(self.server) - cpu) / seconds, (_own(self.server) - own) / seconds)

    # ---- whole copies ----------------------------------------------------------------------------------------------

    def _get(self) -> Callable[[], None]:
        dests = [self._folder / f"dest-{number}" for number in range(self._options.number)]
        name = self._source.name
        for number, dest in enumerate(dests):
            shutil.rmtree(dest, ignore_errors=True)
            for path in (self._folder / f"client-{number}").glob("index.*"):
                path.unlink()

        def go() -> None:
            with contextlib.ExitStack() as running:
                children = []
                for number, dest in enumerate(dests):
                    argv: tuple[str, ...] = (
                        *HEADRACE,
                        "get",
                        f"{self._share.address}/{name}",
                        str(dest / name),
                        "--quiet",
                    )
                    argv += ("--transport", "tcp", "--data-plane", self._options.data_plane)
                    env = self._share.client_environment | {"HEADRACE_HOME": str(self._folder / f"client-{number}")}
                    log = self._folder / f"client-{number}.log"
                    children.append(running.enter_context(Child(Command(argv, env), log)))
                for child in children:
                    child.wait()
                    if (code := child.reap()[0]) != 0:
                        raise BenchError(f"a get ended with {code}")

        return go

    def check(self) -> None:
        """Whether the last copies are right."""
        if self._options.clients == "get":
            look = checker(self._source)
            for number in range(self._options.number):
                look(self._folder / f"dest-{number}" / self._source.name)
                shutil.rmtree(self._folder / f"dest-{number}")

    # ---- clients that cost nothing ---------------------------------------------------------------------------------

    def _drain(self) -> Callable[[], None]:
        options = self._options
        connected = Session.connect(self._target, home=self._folder / "drain", transport="tcp")
        entry = connected.stat(ROOT / os.fsencode(self._source.name))
        if options.data_plane == "clear":
            connected.use_clear()
        lanes = [connected.open_lane() for _ in range(options.number)]
        chunks = options.size // CHUNK_SIZE
        path = bytes(RelPath.from_user(os.fsencode(self._source.name)))

        def take(lane: int) -> None:
            messages = lanes[lane].messages
            sock: socket.socket = messages.stream._sock  # type: ignore[attr-defined]  # the kernel drops what comes
            messages.send_all(
                [GetChunk(number, path, entry.version, number * CHUNK_SIZE, CHUNK_SIZE) for number in range(chunks)]
                + [Goodbye()]
            )
            sock.settimeout(PATIENCE)
            room, got = bytearray(PIECE), 0
            while count := sock.recv_into(room, PIECE, socket.MSG_TRUNC):
                got += count
            if got < chunks * CHUNK_SIZE:
                raise BenchError(f"only {got} bytes came")

        def go() -> None:
            failed: list[BaseException] = []

            def one(lane: int) -> None:
                try:
                    take(lane)
                except (OSError, BenchError) as why:
                    failed.append(why)

            threads = [threading.Thread(target=one, args=(lane,)) for lane in range(options.number)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            connected.drop()
            if failed:
                raise BenchError(f"a client failed: {failed[0]}")

        return go


def _own(pid: int) -> float:
    """CPU seconds of the one process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / procfs.TICKS


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench workers", description="What worker processes gain.")
    parser.add_argument("--clients", choices=("get", "drain"), default="drain", help="default %(default)s")
    parser.add_argument("--number", type=session.positive, default=4, help="of clients at once (default %(default)s)")
    parser.add_argument("--workers", default="0,1,2", help="the cases (default %(default)s)")
    parser.add_argument("--size", type=parse_size, default=1 << 30, help="of the file (default 1g)")
    parser.add_argument("--files", type=int, default=0, help="a tree of so many files of 10 KiB instead, for get")
    parser.add_argument("--data-plane", choices=("tls", "clear"), default="tls")
    parser.add_argument("--rounds", type=session.positive, default=3, help="counted runs (default %(default)s)")
    parser.add_argument("--folder", type=Path, default=place(), help="where to work (default %(default)s)")
    options = parser.parse_args()
    return session.exit_code(lambda: run(options))


def run(options: argparse.Namespace) -> None:
    facts = report.machine()
    amount = options.files * 10240 if options.files else options.size
    with workspace((2 + options.number) * amount, options.folder) as folder, contextlib.ExitStack() as at_the_end:
        source = folder / "source" / "what"
        source.parent.mkdir()
        if options.files:
            random_tree(source, options.files, 10240)
        else:
            random_file(source, options.size)
        cases = []
        for workers in map(int, options.workers.split(",")):
            case = Case(workers, source, folder, options)
            at_the_end.callback(case.stop)
            cases.append(case)
        runs: dict[int, list[Run]] = {case.workers: [] for case in cases}
        for number in range(options.rounds + 1):  # the first is not counted: files are hashed in it
            for case in cases:
                one = case.run()
                case.check()
                report.tell(f"round {number}, {case.workers} workers: {one.seconds:.2f} s")
                if number:
                    runs[case.workers].append(one)
    first = runs[cases[0].workers]
    rows = [["workers", "s (min..max)", "times as fast (min..max)", "MB/s", "host's cores", "first process's"]]
    for workers, made in runs.items():
        seconds = Spread.of([one.seconds for one in made])
        ratio = Spread.of([base.seconds / one.seconds for base, one in zip(first, made, strict=True)])
        rate = options.number * amount / seconds.median / 1e6
        cores, own = (Spread.of([getattr(one, name) for one in made]).median for name in ("cores", "first"))
        rows.append(
            [
                str(workers),
                report.spread(seconds, 2),
                report.spread(ratio, 2),
                f"{rate:,.0f}",
                f"{cores:.2f}",
                f"{own:.2f}",
            ]
        )
    what = f"{options.files:,} files of 10 KiB" if options.files else f"{options.size / 1e6:,.0f} MB"
    print(f"\n{options.number} clients at once ({options.clients}, {options.data_plane}), {what} each")
    print(f"rounds in turn: {options.rounds}\n{report.machine_line(facts)}\n")
    print(report.columns(rows), flush=True)


if __name__ == "__main__":
    sys.exit(main())
