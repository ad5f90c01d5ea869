"""Lends lanes to worker processes, so that one interpreter's lock does not bound what a share can serve.

The share's own process accepts, shakes hands, admits and counts, for all. Only then, and only for bulk over TCP, a
worker gets the descriptor of the lane's socket and where its records stand. The thread that would have served the lane
waits meanwhile. A worker serves plain requests; before anything else, and at the end, it gives the lane back with where
it stands now, and the thread goes on with it as if it had served it all along. So whatever is about the share or a peer
as a whole (limits, watches, writes, status, the end) happens in one process. docs/decisions/027-workers.md
"""

from __future__ import annotations

import logging
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from headrace.errors import BY_CODE, ConnectionLostError, HeadraceError
from headrace.host.channel import Back, Channel, Figures, FromWorker, Lane, Limited, Log, Report, Setup, Up
from headrace.observe import logs, tracing
from headrace.observe.metrics import BY_NAME, RANDOM_READ, WORKER_FALLBACKS, Sample, plus
from headrace.observe.times import Spent
from headrace.protocol.messages import ROLE_DATA
from headrace.protocol.session import Agreed
from headrace.storage.tree import SharedTree

if TYPE_CHECKING:
    from headrace.engine.compress import Compressors
    from headrace.host.requests import Served
    from headrace.transport.framed import MessageStream
    from headrace.transport.tcp import TcpStream

log = logging.getLogger("headrace.host")

PATIENCE: Final = 5.0  # seconds that a worker may take for a message, and at the end
SILENCE: Final = 10.0  # seconds; a worker with lanes that says nothing SILENT times so long stands still
SILENT: Final = 3
RESTART_AFTER: Final = 60.0  # seconds from the start of a worker to that of the one in its place

_CODE: Final = "HEADRACE_CODE"  # a worker has no use for the share's secret
_Key = tuple[str, tuple[str, ...]]


def can_lend() -> bool:
    """Whether this system can give a socket to another process; where it cannot, that is said and counted."""
    if hasattr(socket, "send_fds"):
        return True
    _fall_back("unsupported", "this system cannot give sockets to other processes: the share works without workers")
    return False


class Process(Protocol):
    """A process that was started: what is used of subprocess.Popen."""

    @property
    def returncode(self) -> Any:
        """Its exit code, once it was waited for."""

    def wait(self, timeout: float | None = None) -> int:
        """Reaps it. Raises subprocess.TimeoutExpired."""

    def kill(self) -> None: ...


def _spawn(theirs: socket.socket, descriptors: list[int]) -> Process:
    # -P: nothing is imported from the current folder, which may well be the one that is shared.
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "headrace.host.worker", str(theirs.fileno())],
        pass_fds=(theirs.fileno(), *descriptors),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env={name: value for name, value in os.environ.items() if name != _CODE},
    )


@dataclass(eq=False)
class _Loan:
    """A lane that a worker has. news: its figures, then the lane itself, or None where the worker is gone."""

    number: int
    news: queue.SimpleQueue[Figures | Back | None] = field(default_factory=queue.SimpleQueue)


@dataclass(eq=False)
class _Worker:
    """One process, as the share sees it. up: it takes lanes. samples: what it measured last."""

    process: Process
    channel: Channel[FromWorker]
    name: str
    reader: threading.Thread | None = None
    up: bool = False
    loans: dict[int, _Loan] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)


class Workers:
    """The worker processes of one share. Thread-safe. `start` returns at once; `stop` ends and reaps them."""

    def __init__(
        self,
        count: int,
        *,
        tree: SharedTree,
        home: Path,
        io: str,
        buffers: int,
        compressors: Compressors | None,
        limited: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
        spawn: Callable[[socket.socket, list[int]], Process] | None = None,
    ) -> None:
        """buffers: bytes for each. limited: whether there is a rate limit; call `limits_changed` when that changes.

        The rest is for tests. spawn: starts one, which inherits its end of the socket pair and the descriptors.
        """
        self._tree = tree
        self._home = home
        self._io = io
        self._buffers = buffers
        self._compressors = compressors
        self._limited = limited
        self._clock = clock
        self._spawn = spawn or _spawn
        self._lock = threading.Lock()
        self._telling = threading.Lock()  # a worker hears its setup first, and of limits in the order of their setting
        self._workers: list[_Worker | None] = [None] * count
        self._started: list[float | None] = [None] * count  # by the clock; None: never
        self._starting: set[threading.Thread] = set()
        self._last = 0
        self._past: dict[_Key, Sample] = {}  # what workers counted that are gone
        self._stopping = False

    def start(self) -> None:
        """Starts them, on a thread: whoever shares has their code first."""
        self._start_those_due()

    def stop(self) -> None:
        """Ends the workers, and with them what they still have. May be called again."""
        with self._lock:
            self._stopping = True
            starting = list(self._starting)
        for thread in starting:
            thread.join(PATIENCE)
        for worker in self._all():
            worker.channel.shut()
            if worker.reader:
                worker.reader.join(2 * PATIENCE)

    @property
    def up(self) -> int:
        """How many are ready for lanes."""
        return sum(worker.up for worker in self._all())

    def limits_changed(self) -> None:
        """Workers give lanes back as long as there is a limit: one process keeps to it, several could not."""
        with self._telling:
            for worker in self._all():
                self._tell(worker, Limited(self._limited()))

    def samples(self) -> Iterator[Sample]:
        """What all workers measured together, as far as they reported."""
        with self._lock:
            totals = dict(self._past)
            alive = [worker for worker in self._workers if worker]
            for worker in alive:
                _add(totals, worker.samples)
            loans = self._last
        yield from totals.values()
        yield Sample("workers", sum(worker.up for worker in alive))
        yield Sample("loans", loans)

    # ---- lanes -----------------------------------------------------------------------------------------------------

    def lend(
        self,
        messages: MessageStream,
        stream: TcpStream,
        agreed: Agreed,
        address: str,
        served: Served,
        asked_every: float | None = None,
    ) -> None:
        """Lends the lane to a worker, where there is one for it, and blocks until it is given back.

        Counts on the stream, its times and `served` what the worker did. asked_every: seconds without news after which
        the stream's `patient` says whether the client is still borne; None: it always is. Raises the HeadraceError that
        the lane failed with; ConnectionLostError where the worker is gone, or the client is not borne any more.
        """
        if agreed.role != ROLE_DATA or not agreed.seal or not messages.idle or self._limited() or tracing.on():
            return
        self._start_those_due()
        loan = self._begin(stream, agreed, address)
        if loan is None:
            return
        figures = Figures(0, 0, 0, Spent())
        base = Figures(stream.bytes_in, stream.bytes_out, served.bytes, figures.spent)
        borne = True
        while True:
            try:
                news = loan.news.get(timeout=asked_every)
            except queue.Empty:
                borne = borne and (stream.patient is None or stream.patient(False))
                if not borne:
                    stream.abort()  # the worker sees its end, and gives the lane back
                continue
            if news is None:
                stream.abort()  # a worker that stands still has a descriptor of it, too
                raise ConnectionLostError("the worker process that served it is gone")
            before, figures = figures, news.figures if isinstance(news, Back) else news
            stream.bytes_in = base.bytes_in + figures.bytes_in
            stream.bytes_out = base.bytes_out + figures.bytes_out
            served.bytes = base.served + figures.served
            messages.times.count(figures.spent.since(before.spent))
            if isinstance(news, Back):
                stream.go_on(news.state)
                if not borne:
                    raise ConnectionLostError("nothing arrived for too long")
                if news.error:
                    raise BY_CODE.get(news.error, HeadraceError)(news.message)
                return

    def _begin(self, stream: TcpStream, agreed: Agreed, address: str) -> _Loan | None:
        """The lane goes to the worker that has the fewest. None: to none, it is served here."""
        with self._lock:
            ready = [worker for worker in self._workers if worker and worker.up]
            if not ready or self._stopping:
                return None
            worker = min(ready, key=lambda one: len(one.loans))
            self._last += 1
            loan = worker.loans[self._last] = _Loan(self._last)
        state = stream.lend()
        lane = Lane(loan.number, address, agreed.version, sorted(agreed.features), agreed.peer, state)
        try:
            worker.channel.send(lane, stream.fileno())
        except OSError as why:
            log.debug("%s takes no lane: %s", worker.name, why)
            with self._lock:
                worker.loans.pop(loan.number, None)
            worker.channel.shut()  # its reader says the rest
            stream.go_on(state)  # an incomplete message is none: nobody else has it
            return None
        return loan

    # ---- processes -------------------------------------------------------------------------------------------------

    def _all(self) -> list[_Worker]:
        with self._lock:
            return [worker for worker in self._workers if worker]

    def _start_those_due(self) -> None:
        """At the beginning, and where one died and its time has come."""
        now = self._clock()
        with self._lock:
            due = [
                place
                for place, worker in enumerate(self._workers)
                if worker is None and ((began := self._started[place]) is None or now - began >= RESTART_AFTER)
            ]
            if not due or self._stopping:
                return
            for place in due:
                self._started[place] = now
            thread = threading.Thread(target=self._start, args=(due,), name="headrace-workers", daemon=True)
            self._starting.add(thread)
        try:
            thread.start()
        except RuntimeError as why:  # no further thread is allowed here
            self._starting.discard(thread)
            _fall_back("start", f"no thread to start workers ({why})")

    def _start(self, places: list[int]) -> None:
        try:
            for place in places:
                self._start_one(place)
        except (OSError, RuntimeError) as why:
            _fall_back("start", f"a worker process could not be started ({why})")
        finally:
            with self._lock:
                self._starting.discard(threading.current_thread())

    def _start_one(self, place: int) -> None:
        handles = self._tree.handles()
        ours, theirs = socket.socketpair()
        channel: Channel[FromWorker] = Channel(ours, FromWorker, patience=PATIENCE)
        try:
            with theirs:
                process = self._spawn(theirs, handles.descriptors)
        except BaseException:
            channel.close()
            raise
        worker = _Worker(process, channel, f"worker {place + 1}")
        worker.reader = threading.Thread(target=self._read, args=(place, worker), name=f"headrace-{worker.name}")
        worker.reader.daemon = True
        with self._telling:
            with self._lock:
                self._workers[place] = worker
            setup = Setup(
                tree=handles,
                home=str(self._home),
                io=self._io,
                buffers=self._buffers,
                compress=self._compressors.most if self._compressors else 0,
                verbosity=logging.getLogger(logs.ROOT).getEffectiveLevel(),
                timing=RANDOM_READ.wanted,
                limited=self._limited(),
            )
            self._tell(worker, setup)
        worker.reader.start()

    def _tell(self, worker: _Worker, message: Setup | Limited) -> None:
        try:
            worker.channel.send(message)
        except OSError as why:
            log.debug("%s does not listen: %s", worker.name, why)
            worker.channel.shut()

    def _read(self, place: int, worker: _Worker) -> None:
        """The thread that hears what a worker says, until it is gone."""
        why, text = "died", "ended"
        try:
            if self._listen(worker):
                why, text = "silent", "said nothing for too long"
        except (OSError, ConnectionLostError, msgspec.DecodeError) as error:
            text = f"cannot be heard ({error})"
        finally:
            self._bury(place, worker, why, text)

    def _listen(self, worker: _Worker) -> bool:
        """Until the worker's end is closed (False), or it has stood still for too long (True)."""
        missed = 0
        while True:
            # Not one long wait: after this process itself stood still (Ctrl-Z), the first one is over at once.
            if not worker.channel.readable(SILENCE):
                missed = missed + 1 if worker.loans else 0
                if missed >= SILENT:
                    return True
                continue
            missed = 0
            received = worker.channel.receive()
            if received is None:
                return False
            self._hear(worker, received[0])

    def _hear(self, worker: _Worker, message: FromWorker) -> None:
        if isinstance(message, Up):
            worker.up = True
        elif isinstance(message, Report):
            worker.samples = message.samples
            with self._lock:
                known = {number: worker.loans.get(number) for number in message.lanes}
            for number, figures in message.lanes.items():
                if loan := known[number]:
                    loan.news.put(figures)
        elif isinstance(message, Back):
            with self._lock:
                loan = worker.loans.pop(message.number, None)
            if loan:
                loan.news.put(message)
        else:
            _relay(worker.name, message)

    def _bury(self, place: int, worker: _Worker, why: str, text: str) -> None:
        worker.up = False
        worker.channel.shut()
        with self._lock:
            loans, worker.loans = list(worker.loans.values()), {}
        for loan in loans:  # first: a process may take its time to end
            loan.news.put(None)
        if why == "silent":
            worker.process.kill()
        code = _end_of(worker.process)
        if not self._stopping:
            _fall_back(
                why, f"{worker.name} {text} (exit code {code}); {len(loans)} connections come again by themselves"
            )
        with self._lock:
            self._workers[place] = None
            _add(self._past, [sample for sample in worker.samples if BY_NAME[sample.name].kind != "gauge"])
        worker.channel.close()


def _end_of(process: Process) -> int | None:
    """Its exit code; None: it does not end, as where it hangs on a dead disk, although it was killed."""
    for _ in range(2):
        try:
            return process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
    return None


def _fall_back(word: str, text: str) -> None:
    WORKER_FALLBACKS.add(word)
    log.warning("%s", text)


def _relay(worker: str, message: Log) -> None:
    logger = logging.getLogger(message.name)
    if not logger.isEnabledFor(message.level):
        return
    record = logger.makeRecord(message.name, message.level, "", 0, "%s", (message.text,), None)
    record.threadName = f"headrace-{worker}"
    with logs.about(**message.about):
        logger.handle(record)


def _add(totals: dict[_Key, Sample], samples: list[Sample]) -> None:
    for sample in samples:
        key = (sample.name, sample.labels)
        before = totals.get(key)
        totals[key] = sample._replace(value=plus(before.value, sample.value)) if before else sample
