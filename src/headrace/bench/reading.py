"""Cases that read: 4 KiB at random places, idle and beside copies; scrubbing; the first byte of a huge file."""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from headrace.bench import procfs
from headrace.bench.context import Bench
from headrace.bench.measure import run
from headrace.bench.mounts import HeadraceMount, Mounted, Mounter, Rclone, Sshfs
from headrace.bench.peers import FAST_CIPHER, HEADRACE, Headrace, Peer, RsyncOverSsh, Scp
from headrace.bench.pingpong import PingPong
from headrace.bench.process import POLL, BenchError, Child, Command, NotInstalledError, environment, tail
from headrace.bench.results import Case, Kind
from headrace.bench.sshd import program
from headrace.bench.turns import Taker, Turn, in_turn
from headrace.bench.web import CurlHttps
from headrace.bench.workspace import GIB, MIB, random_file

LARGE: Final = "large.bin"
PIECE: Final = 4096  # bytes of a random read
SEEK: Final = 4 * MIB  # bytes after a seek
COPIES: Final = 2  # beside the reads under load
WORK_TIMEOUT: Final = 120.0  # seconds for one round of one row
FIRST_TIMEOUT: Final = 60.0
LOOPBACK: Final = "127.0.0.1"
MILLISECONDS: Final = 1000.0


@dataclass(frozen=True, slots=True)
class Reads:
    """A case: `count` reads of `size` bytes at places of a file, by the library and by mounts. loaded: while copies of
    that file run."""

    name: str
    title: str
    size: int
    count: int
    quick: int
    loaded: bool = False

    def needs(self, bench: Bench) -> int:
        """Bytes of room: the file, and what copies of it and caches take."""
        return (4 + COPIES * self.loaded) * self._large(bench)

    def why_not(self) -> str:
        """Nothing: what is missing here is said by its row."""
        return ""

    @staticmethod
    def _large(bench: Bench) -> int:
        return bench.size(GIB, 128 * MIB)

    def run(self, bench: Bench) -> Case:
        """p50 of each round, and what all the reads of a row took."""
        source = bench.folder / "source"
        source.mkdir()
        size, count = self._large(bench), bench.size(self.count, self.quick)
        random_file(source / LARGE, size)
        case = Case(self.name, f"{self.title}, p50 of {count} a round", "ms", False, size=self.size * count)
        with contextlib.ExitStack() as stack:
            takers = list(self._takers(bench, source, size, count, stack))
            case.rows = in_turn(takers, bench)
        return case

    def _takers(
        self, bench: Bench, source: Path, size: int, count: int, stack: contextlib.ExitStack
    ) -> Iterator[Taker]:
        chance = random.Random(1)

        def places() -> list[int]:
            """Others each time: nothing is to be read twice. At no chunk's edge, and not in order."""
            return [page * PIECE + 123 for page in chance.sample(range((size - self.size) // PIECE), count)]

        peer = Headrace("headrace", bench.folder / "headrace")
        stack.callback(peer.stop)
        peer.start(source)

        def by_library(protocol: int) -> Turn:
            arguments = {"address": peer.address, "source": str(source), "name": LARGE, "places": places()}
            said = json.dumps(arguments | {"size": self.size, "protocol": protocol})
            argv = (sys.executable, "-m", "headrace.bench.sharework", said)
            with self._load(peer, bench):
                log = bench.folder / "work.log"
                cost = run(Command(argv, peer.client_environment), log=log, server=peer.server, timeout=WORK_TIMEOUT)
            times = _milliseconds(log.read_text())
            return Turn(times, cost.client_cpu, cost.server_cpu, cost.client_rss, cost.server_rss)

        yield Taker("headrace, library", "headrace", lambda: by_library(8))
        if not bench.quick:
            yield Taker("headrace, library, protocol 7", "headrace", lambda: by_library(7))
        mounts: list[tuple[str, Mounter, Peer | None]] = [
            ("headrace, mount", HeadraceMount("headrace", bench.folder / "headrace-mount", LOOPBACK), None)
        ]
        if "sshfs" in bench.peers:
            scp = Scp("scp", bench.folder / "sshfs-load", FAST_CIPHER)
            mounts.append(("sshfs", Sshfs("sshfs", bench.folder / "sshfs", LOOPBACK), scp))
        if "rclone" in bench.peers:
            scp = Scp("scp", bench.folder / "rclone-load", FAST_CIPHER)
            mounts.append(("rclone mount", Rclone("rclone", bench.folder / "rclone", LOOPBACK), scp))
        for name, mounter, loader in mounts:
            yield self._mounted(name, mounter, loader or peer, bench, source, places, stack)
        if self.size == PIECE and not self.loaded:
            yield Taker("bare TCP exchange", "limit", _pings(count, stack))

    def _mounted(
        self,
        name: str,
        mounter: Mounter,
        loader: Peer,
        bench: Bench,
        source: Path,
        places: Callable[[], Sequence[int]],
        stack: contextlib.ExitStack,
    ) -> Taker:
        """loader: by whose copies the load is made."""
        kind: Kind = "headrace" if isinstance(mounter, HeadraceMount) else "peer"
        point = bench.folder / "point"
        point.mkdir(exist_ok=True)

        def take() -> Turn:
            said, errors = bench.folder / "work.json", bench.folder / "work.log"
            arguments = {"point": str(point), "source": str(source), "name": LARGE, "places": places()}
            work = json.dumps(arguments | {"size": self.size})
            argv = (sys.executable, "-m", "headrace.bench.mountwork", "places", work)
            mounted = Mounted(mounter, point, bench.folder / "mount.log")
            mounted.start()
            server = mounter.server
            with mounted, self._load(loader, bench):
                before = mounted.cpu_seconds(), procfs.cpu_seconds(server) if server else 0.0
                with Child(Command(argv), said, errors) as child:
                    _finish(child, mounted, errors)
                after = mounted.cpu_seconds(), procfs.cpu_seconds(server) if server else 0.0
                rss = sum(procfs.peak_rss(pid) for pid in procfs.family(mounted.pid))
                serving = sum(procfs.peak_rss(pid) for pid in procfs.family(server)) if server else 0
            return Turn(_milliseconds(said.read_text()), after[0] - before[0], after[1] - before[1], rss, serving)

        taker = Taker(name, kind, take)
        try:
            stack.callback(mounter.stop)
            mounter.start(source)
            if self.loaded and not isinstance(loader, Headrace):
                stack.callback(loader.stop)
                loader.start(source)
        except NotInstalledError as why:
            taker.missing = f"not installed ({why})"
        except BenchError as why:
            taker.missing = f"does not start: {why}"
        return taker

    @contextlib.contextmanager
    def _load(self, peer: Peer, bench: Bench) -> Iterator[None]:
        """Inside, with `loaded`, copies of the file run, one after the other in each of COPIES threads."""
        if not self.loaded:
            yield
            return
        over = threading.Event()
        begun = threading.Semaphore(0)
        failed: list[BenchError] = []

        def copy(number: int) -> None:
            dest = bench.folder / f"load-{number}"
            try:
                while not over.is_set():
                    shutil.rmtree(dest, ignore_errors=True)
                    dest.mkdir()
                    log = bench.folder / f"load-{number}.log"
                    with Child(peer.command(LARGE, dest), log) as child:
                        begun.release()
                        while not child.ended and not over.wait(POLL):
                            pass
                        if child.ended and child.reap()[0]:
                            raise BenchError(f"a copy beside the reads failed: {tail(log)}")
            except BenchError as why:
                failed.append(why)
                begun.release()
            finally:
                shutil.rmtree(dest, ignore_errors=True)

        threads = [threading.Thread(target=copy, args=(n,), name=f"bench-load-{n}") for n in range(COPIES)]
        for thread in threads:
            thread.start()
        try:
            for _ in threads:
                begun.acquire(timeout=FIRST_TIMEOUT)
            over.wait(0.5)  # to connect
            yield
        finally:
            over.set()
            for thread in threads:
                thread.join()
        if failed:
            raise failed[0]


def _finish(child: Child, mounted: Mounted, errors: Path) -> None:
    """Waits for the reads. Whoever waits for a file system that hangs cannot be killed before it."""
    try:
        deadline = time.monotonic() + WORK_TIMEOUT
        while not child.ended:
            if time.monotonic() > deadline:
                raise BenchError(f"the reads are not done after {WORK_TIMEOUT:g} s")
            time.sleep(POLL)
    except BaseException:
        mounted.kill()
        raise
    if child.reap()[0]:
        raise BenchError(tail(errors))


def _milliseconds(said: str) -> list[float]:
    return [MILLISECONDS * seconds for seconds in json.loads(said.strip().splitlines()[-1])["reads"]]


def _pings(count: int, stack: contextlib.ExitStack) -> Callable[[], Turn]:
    ping = stack.enter_context(PingPong())

    def take() -> Turn:
        times = []
        for _ in range(count):
            started = time.perf_counter()
            ping.exchange(PIECE)
            times.append(MILLISECONDS * (time.perf_counter() - started))
        return Turn(times)

    return take


# ---- the first byte -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FirstByte:
    """A case: from starting a program to the first byte of a huge file, that nobody has ever hashed, on its standard
    output."""

    name: str = "first-byte"

    @staticmethod
    def _size(bench: Bench) -> int:
        return bench.size(8 * GIB, GIB)

    def needs(self, bench: Bench) -> int:
        """Bytes of room."""
        return self._size(bench) + 64 * MIB

    def why_not(self) -> str:
        """Nothing."""
        return ""

    def run(self, bench: Bench) -> Case:
        """The share is started anew before each run. The file's blocks are there, but for the first chunk zeros."""
        source = bench.folder / "source"
        source.mkdir()
        size = self._size(bench)
        allocate(source / LARGE, size)
        case = Case(self.name, f"the first byte of a file of {size / GIB:g} GiB, from the command on", "ms", False)
        seven = ("--protocol", "7")
        peers: list[tuple[str, Peer]] = [
            ("headrace", Headrace("headrace", bench.folder / "headrace", cold=True)),
            ("headrace-7", Headrace("headrace-7", bench.folder / "headrace-7", cold=True, options=seven)),
        ]
        if "curl-https" in bench.peers:
            peers.append(("curl-https", CurlHttps("curl-https", bench.folder / "web")))
        if {"scp", "scp-gcm", "rsync-ssh"} & bench.peers:
            peers.append(("ssh cat", RsyncOverSsh("ssh", bench.folder / "ssh")))
        with contextlib.ExitStack() as stack:
            takers = []
            for name, peer in peers:
                stack.callback(peer.stop)
                kind: Kind = "headrace" if isinstance(peer, Headrace) else "peer"
                taker = Taker(name, kind, _first(peer, source, bench.folder))
                try:
                    peer.start(source)
                except NotInstalledError as why:
                    taker.missing = f"not installed ({why})"
                except BenchError as why:
                    taker.missing = f"does not start: {why}"
                takers.append(taker)
            case.rows = in_turn(takers, bench)
        return case


def allocate(path: Path, size: int) -> None:
    """A file whose blocks are all there and, but for the first chunk, read as zeros. Raises BenchError."""
    random_file(path, min(size, SEEK))
    with path.open("rb+") as file:
        os.posix_fallocate(file.fileno(), 0, size)
        if os.fstat(file.fileno()).st_blocks * 512 < size:
            raise BenchError(f"{path} came out sparse: this file system has no fallocate")


def _first(peer: Peer, source: Path, folder: Path) -> Callable[[], Turn]:
    def command() -> Command:
        if isinstance(peer, Headrace):
            return Command((*HEADRACE, "cat", f"{peer.address}/{LARGE}", *peer.options), peer.client_environment)
        if isinstance(peer, CurlHttps):
            return Command((program("curl"), *peer.options(), peer.url(LARGE)))
        assert isinstance(peer, RsyncOverSsh)
        return Command((program("ssh"), *peer.sshd.options, peer.sshd.login, f"cat {source / LARGE}"), environment())

    def take() -> Turn:
        peer.before_run()
        made, log = command(), folder / "first.log"
        started = time.monotonic()
        with Child(made, subprocess.PIPE, log) as child:
            assert child.stdout is not None
            readable, _, _ = select.select([child.stdout], [], [], FIRST_TIMEOUT)
            seconds = time.monotonic() - started
            if not readable or not os.read(child.stdout.fileno(), 1):
                raise BenchError(f"it gave nothing: {tail(log)}")
            child.kill()
        return Turn([MILLISECONDS * seconds])

    return take


READS: Final = (
    Reads("reads-idle", "4 KiB at random places of one file", PIECE, 2_000, 300),
    Reads(
        "reads-loaded", f"4 KiB at random places, {COPIES} copies of the file beside it", PIECE, 600, 100, loaded=True
    ),
    Reads("scrub", "a seek and 4 MiB", SEEK, 40, 8),
)
FIRST: Final = FirstByte()
