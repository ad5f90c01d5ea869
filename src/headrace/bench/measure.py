"""Runs commands, says what they cost, and compares: rounds of A B A B, so that what else the machine does hits all."""

from __future__ import annotations

import math
import shutil
import statistics
import threading
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from headrace.bench import procfs
from headrace.bench.peers import Peer
from headrace.bench.process import BenchError, Child, Command, NotInstalledError, tail

TIMEOUT: Final = 600.0  # seconds for one run
SAMPLE_EVERY: Final = 0.05  # seconds between two looks at the memory
_TOUCH: Final = 1 << 20  # bytes
SETTLE_TIMEOUT: Final = 2.0  # seconds for a server's processes for one client to end after the client


@dataclass(frozen=True, slots=True)
class Sample:
    """One run. Times in seconds, memory in bytes; memory is the sum of the peaks of the processes of that end."""

    seconds: float
    client_cpu: float
    server_cpu: float
    client_rss: int
    server_rss: int


@dataclass(frozen=True, slots=True)
class Spread:
    """What several runs come to."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass(slots=True)
class Result:
    """The counted runs of one case, or why there are none. amount: what one run copies, in bytes or files."""

    name: str
    amount: int
    samples: list[Sample] = field(default_factory=list)
    missing: str = ""

    @property
    def rates(self) -> list[float]:
        """Of each run, in `amount` a second."""
        return [self.amount / sample.seconds for sample in self.samples]

    def ratio_to(self, reference: Result | None) -> Spread | None:
        """How many times as fast, round by round: both runs of a round saw about the same machine."""
        if reference is None or not self.samples or not reference.samples:
            return None
        return Spread.of([own / other for own, other in zip(self.rates, reference.rates, strict=True)])


class CommandFailedError(BenchError):
    """A measured command ended with another exit code than it should."""


class DifferentError(BenchError):
    """What a command copied is not what was there to copy."""


def run(
    command: Command, *, log: Path, server: int | None = None, expected: int = 0, timeout: float = TIMEOUT
) -> Sample:
    """Runs `command` to its end. log: where its output goes. server: the process that serves it.

    Raises CommandFailedError, NotInstalledError. Whatever is raised, no process is left.
    """
    before = procfs.cpu_seconds(server) if server else 0.0
    serving = procfs.family(server) if server else []
    if server:
        procfs.forget_peak(server)
    started = time.monotonic()
    with Child(command, log) as child:
        with _Watch(child, server, started + timeout) as watch:
            child.wait()
            seconds = time.monotonic() - started
        code, client_cpu = child.reap()
    if watch.expired:
        raise CommandFailedError(f"not done after {timeout:.0f} s: {_shown(command)}\n{tail(log)}")
    if code != expected:
        raise CommandFailedError(f"ended with {code}, not {expected}: {_shown(command)}\n{tail(log)}")
    server_cpu = 0.0
    if server:
        _settle(server, len(serving))
        server_cpu = max(0.0, procfs.cpu_seconds(server) - before)
    return Sample(seconds, client_cpu, server_cpu, sum(watch.client.values()), sum(watch.server.values()))


class _Watch:
    """A thread that notes the peak memory of both ends, and kills the client when its time is up.

    The client's `ru_maxrss` would not do: between fork and exec it counts the memory of the benchmark itself.
    """

    def __init__(self, child: Child, server: int | None, deadline: float) -> None:
        self.client: dict[int, int] = {}
        self.server: dict[int, int] = {}
        self.expired = False
        self._child = child
        self._server = server
        self._deadline = deadline
        self._processes = procfs.Processes()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="bench-watch", daemon=True)

    def _watch(self) -> None:
        while not self._over.wait(SAMPLE_EVERY):
            self._processes.look()
            self._note(self.client, self._child.pid)
            if self._server:
                self._note(self.server, self._server)
            if time.monotonic() > self._deadline:
                self.expired = True
                self._child.kill()
                return

    def _note(self, peaks: dict[int, int], pid: int) -> None:
        for member in self._processes.family(pid):
            peaks[member] = max(peaks.get(member, 0), procfs.peak_rss(member))

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()
        if self._server:
            self._note(self.server, self._server)  # it is still there, and this is later than the last look


def _settle(server: int, size: int) -> None:
    """Waits until the server's processes for this client are gone: only then has it all their CPU time."""
    deadline = time.monotonic() + SETTLE_TIMEOUT
    while len(procfs.family(server)) > size and time.monotonic() < deadline:
        time.sleep(SAMPLE_EVERY)
    time.sleep(SAMPLE_EVERY)


def _shown(command: Command) -> str:
    return " ".join(command.argv)


def compare(
    peers: Sequence[Peer],
    source: Path,
    *,
    amount: int,
    rounds: int,
    folder: Path,
    check: Callable[[Path], None],
    tell: Callable[[str], None] = lambda line: None,
    again: bool = False,
    prepare: Callable[[Path], None] | None = None,
    until: float = math.inf,
    once: Collection[str] = (),
    warm: Callable[[str], bool] = lambda name: True,
    failed: Callable[[Result, BenchError], None] | None = None,
) -> list[Result]:
    """Copies `source` with every peer in turn, round after round, after one round that is not counted.

    again: what each peer copied in the first round stays, so that it finds everything there in those that count.
    prepare: lays what a copy shall find at its path. until: no round begins after it, by time.monotonic, but one is
    always counted. once: peers that take part in the first counted round only, as they take too long, at its end and
    where there is time left. warm: which of
    the others take part in the round that is not counted.

    amount: what rates are counted in. folder: an existing one for the copies. check: raises DifferentError when the
    path is no true copy. A peer that cannot start gets a result that says why. Any later failure ends it all, unless
    `failed` takes it: then that peer gets such a result as well.
    """
    results = [Result(peer.name, amount) for peer in peers]
    size = source.stat().st_size if source.is_file() else sum(p.stat().st_size for p in source.rglob("*"))
    with ExitStack() as stack:
        for peer, result in zip(peers, results, strict=True):
            stack.callback(peer.stop)
            try:
                peer.start(source.parent)
            except NotInstalledError as why:
                result.missing = f"not installed ({why})"
                tell(f"{peer.name}: {result.missing}")
            except BenchError as why:
                result.missing = f"does not start: {why}"
                tell(f"{peer.name}: {result.missing}")
        for number in range(rounds + 1):
            if number > 1 and time.monotonic() > until:
                tell(f"no time for round {number} of {rounds}")
                break
            tell(f"round {number} of {rounds}" if number else "warm-up, not counted")
            for peer, result in sorted(zip(peers, results, strict=True), key=lambda pair: pair[0].name in once):
                takes_part = number == 1 if peer.name in once else number > 0 or warm(peer.name)
                if result.missing or not takes_part:
                    continue
                if peer.name in once and time.monotonic() > until:
                    result.missing = "left out: no time for it"
                    tell(f"  {peer.name}: {result.missing}")
                    continue
                try:
                    sample = _copy(peer, source.name, folder, size, check, again=again, prepare=prepare)
                except BenchError as why:
                    if failed is None:
                        raise
                    failed(result, why)
                    peer.stop()
                    continue
                tell(f"  {peer.name:<16}{sample.seconds:8.2f} s")
                if number:
                    result.samples.append(sample)
    return results


def touch_memory(folder: Path, size: int) -> None:
    """Writes and removes `size` bytes, so that the run after it finds memory that the machine really has.

    A virtual machine may give freed memory back to its host ("free page reporting"). Whoever writes to it next waits
    for the host: here 4 s a GiB instead of 0.5 s, and who that is depends on how long the memory lay idle. Without
    this the figures say more about the order of the cases than about the cases.
    """
    piece = memoryview(bytes(_TOUCH))
    with (folder / "touch").open("wb", buffering=0) as file:
        for start in range(0, size, _TOUCH):
            file.write(piece[: size - start])
    (folder / "touch").unlink()


def _copy(
    peer: Peer,
    name: str,
    folder: Path,
    size: int,
    check: Callable[[Path], None],
    *,
    again: bool = False,
    prepare: Callable[[Path], None] | None = None,
) -> Sample:
    """again: into what an earlier run of this peer left, which stays."""
    dest = folder / (f"copies-of-{peer.name}" if again else "copies")
    if not again:
        shutil.rmtree(dest, ignore_errors=True)
    dest.mkdir(exist_ok=again)
    try:
        if prepare:
            prepare(dest / name)
        peer.before_run()
        touch_memory(folder, size)
        sample = run(peer.command(name, dest), server=peer.server, log=folder / "command.log")
        if not getattr(peer, "makes_no_copy", False):
            check(dest / name)
    except BenchError as why:
        why.add_note(f"in the case {peer.name}")
        raise
    finally:
        if not again:
            shutil.rmtree(dest, ignore_errors=True)
    return sample
