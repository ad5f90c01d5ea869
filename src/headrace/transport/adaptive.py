"""One peer over whichever transport reaches it: QUIC and TCP are raced, and what was chosen is told with its reason."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import math
import queue
import selectors
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from headrace.errors import (
    CertificateChangedError,
    ConnectionLostError,
    HeadraceError,
    UnreachableError,
)
from headrace.observe.metrics import QUIC_WANTED
from headrace.transport import eyeballs
from headrace.transport.abort import Abort
from headrace.transport.base import Connection, Stream
from headrace.transport.pacing import Limit
from headrace.transport.quic.probe import Probe
from headrace.transport.tcp_client import TcpConnection

log = logging.getLogger("headrace.transport")

AUTO: Final = "auto"
TCP: Final = "tcp"
QUIC: Final = "quic"
NEAR: Final = 0.005  # seconds of round trip: up to here TCP carries several times what QUIC does from Python
HEAD_START: Final = 0.01  # seconds that the probe, and QUIC on long paths, has before TCP starts as well
TCP_HANDSHAKES: Final = 2  # round trips
LOADING: Final = 0.15  # seconds that the import of aiopquic takes
PROBE_TIMEOUT: Final = 1.0  # seconds without an answer after which UDP counts as blocked
SILENCE: Final = 0.1  # seconds that the probe has when TCP stands already
ASK_AGAIN: Final = 0.2  # seconds after which a rejection is believed, where QUIC is the only way
MAX_PROBED: Final = 4  # addresses of one host

# Why TCP was used where QUIC was wanted, since the process started: for metrics.
FALLBACKS: Final[Counter[str]] = Counter()


@dataclass(frozen=True, slots=True)
class Reach:
    """What a probe found: whether QUIC can be had, and how far the host is.

    rtt: seconds; None where nothing answered. problem: a kind, one word, and a sentence's part; None where it is open.
    """

    rtt: float | None = None
    problem: tuple[str, str] | None = None


class AdaptiveConnection:
    """Implements base.Connection. Thread-safe.

    transport: what the connection began with. reason: why that one. fallback_reason: why not QUIC, where it could not
    be had; None where it was not needed.
    """

    def __init__(
        self,
        address: tuple[str, int],
        dial: Mapping[str, Callable[[], Connection]],
        probe: Callable[[], Reach],
        *,
        head_start: float = HEAD_START,
        abort: Abort | None = None,
    ) -> None:
        """dial: by transport; blocks, and raises UnreachableError, CertificateChangedError. probe: blocks as long as an
        answer can be expected. Both are called on threads of their own.

        abort: ends it, also while it dials; ConnectionLostError is raised then.

        Raises what the last one to fail raised; CertificateChangedError at once.
        """
        self.address = address
        self._dialers = dict(dial)
        self._lock = threading.Lock()
        self._connections: dict[str, Connection] = {}
        self._retired: list[Connection] = []
        self._opening = {name: threading.Lock() for name in dial}
        self._told: queue.SimpleQueue[tuple[str, object]] = queue.SimpleQueue()  # while it dials: who, and what of it
        self._aborted = False
        self._closed = False
        self._reach: Reach | None = None
        self.reason = ""
        self.fallback_reason: str | None = None
        if abort:
            abort.join(self.abort)
        try:
            first = self._race(probe, head_start) if len(dial) > 1 else self._forced()
        except ConnectionLostError:
            self.close()  # and what stands later
            raise
        self.transport = first.transport
        self.fingerprint = first.fingerprint

    # ---- the race --------------------------------------------------------------------------------------------------

    def _forced(self) -> Connection:
        (name,) = self._dialers
        self.reason = "it was asked for"
        self._start(name)
        _, what = self._told.get()
        if isinstance(what, HeadraceError):
            raise what
        return self._connections[name]

    def _start(self, name: str) -> None:
        _on_thread(f"headrace-dial-{name}", lambda: self._told.put((name, self._outcome(name))))

    def _race(self, probe: Callable[[], Reach], head_start: float) -> Connection:
        """The probe says within a round trip whether QUIC can be had and whether it is worth it; TCP starts a moment
        later in any case."""
        QUIC_WANTED.add()
        told = self._told

        def ask() -> None:
            try:
                reach = probe()
            except Exception as why:  # whoever waits is told, whatever happened
                log.exception("asking for QUIC failed")
                reach = Reach(problem=("failed", f"asking for QUIC failed here ({type(why).__name__})"))
            self._reach = reach  # also where TCP stood before the answer came: chunks may still go by QUIC
            told.put(("probe", reach))

        _on_thread("headrace-probe", ask)
        started: set[str] = set()

        def start(name: str) -> None:
            started.add(name)
            self._start(name)

        failures: dict[str, HeadraceError] = {}
        tcp_at, quic_at = time.monotonic() + head_start, math.inf
        while True:
            try:
                until = min(tcp_at if TCP not in started else math.inf, quic_at if QUIC not in started else math.inf)
                who, what = told.get(timeout=None if until == math.inf else max(0.0, until - time.monotonic()))
            except queue.Empty:
                who, what = "clock", None
            if who == "probe":
                assert isinstance(what, Reach)
                if not what.problem and (what.rtt or 0.0) >= NEAR:
                    quic_at = time.monotonic() + _head_start_of_tcp(what.rtt or 0.0)
            elif isinstance(what, ConnectionLostError):
                raise what
            elif isinstance(what, HeadraceError):
                failures[who] = what
            elif who != "clock":
                if who == TCP:
                    self._hear_probe()
                self._explain(who, failures)
                return self._connections[who]
            if QUIC not in started and time.monotonic() >= quic_at:
                start(QUIC)
                continue  # where it goes first, TCP's turn comes by the clock
            if TCP not in started:
                start(TCP)
            if TCP in failures and QUIC not in started and self._reach and not self._reach.problem:
                start(QUIC)  # a host that only UDP reaches
            if started == failures.keys() and self._reach:
                raise failures[TCP]

    def _hear_probe(self) -> None:
        """TCP takes two round trips and the probe one. Where that was not answered all the same, a busy machine may be
        why: nobody shall be told that UDP is blocked for that."""
        end = time.monotonic() + SILENCE
        while self._reach is None and (left := end - time.monotonic()) > 0:
            with contextlib.suppress(queue.Empty):
                self._told.get(timeout=left)

    def _outcome(self, name: str) -> object:
        try:
            self._keep(name, self._dialers[name]())
        except HeadraceError as why:
            return why
        except Exception as why:  # a bug of one transport must not keep those waiting who could have the other
            log.exception("dialling by %s failed", name)
            return UnreachableError(f"{name} failed here ({type(why).__name__}: {why})")
        return None

    def _explain(self, first: str, failures: Mapping[str, HeadraceError]) -> None:
        reach = self._reach
        if first == QUIC:
            self.reason = "QUIC stood first"
        elif QUIC in failures:
            self._fall_back("failed", f"QUIC failed: {failures[QUIC].message}")
        elif reach is None:
            self._fall_back("silent", "UDP gets no answer")
        elif reach.problem:
            self._fall_back(*reach.problem)
        elif (reach.rtt or 0.0) < NEAR:
            self.reason = f"the host is {(reach.rtt or 0.0) * 1000:.1f} ms away, where TCP is faster"
        else:
            self.reason = "TCP stood first"

    def _fall_back(self, kind: str, why: str) -> None:
        """Logged once for each connection, counted, and told."""
        FALLBACKS[kind] += 1
        self.reason = self.fallback_reason = f"{why}; using TCP"
        log.info("%s:%d: %s", *self.address, self.reason)

    def _keep(self, name: str, connection: Connection) -> Connection:
        with self._lock:
            self._connections[name] = connection
            aborted, closed = self._aborted, self._closed
        if aborted or closed:  # it lost the race by far
            connection.abort()
        if closed:
            connection.close()
        return connection

    # ---- streams ---------------------------------------------------------------------------------------------------

    @property
    def transports(self) -> list[str]:
        """Those that may be used, whether or not they work."""
        return list(self._dialers)

    def others(self) -> list[str]:
        """Transports beside the first that can be tried, as far as is known."""
        blocked = self._reach is None or self._reach.problem is not None
        return [name for name in self._dialers if name != self.transport and not (name == QUIC and blocked)]

    def open_stream(self, transport: str | None = None, *, bulk: bool = False) -> Stream:
        """A new stream, by `transport` or by the first one. A connection that broke is dialled anew, once.

        Raises UnreachableError, CertificateChangedError, ConnectionLostError.
        """
        name = transport or self.transport
        connection, fresh = self._connection(name)
        try:
            return connection.open_stream(bulk=bulk)
        except ConnectionLostError:
            if fresh or self._aborted:
                raise
        with self._lock:
            mine = self._connections.get(name) is connection
            if mine:
                self._retired.append(self._connections.pop(name))  # its bytes still count
        if mine:
            connection.abort()
            _on_thread("headrace-close", connection.close)
        return self._connection(name)[0].open_stream(bulk=bulk)

    def _connection(self, name: str) -> tuple[Connection, bool]:
        """The connection by that transport, and whether it was dialled just now."""
        with self._opening[name]:  # one dials, the others wait for it
            with self._lock:
                connection = self._connections.get(name)
            if self._aborted:
                raise ConnectionLostError("the connection was aborted")
            fresh = connection is None
            if connection is None:
                connection = self._dialers[name]()
            # One that lost the race is looked at here, too: without a pin it took whatever certificate it was shown.
            if connection.fingerprint != self.fingerprint:
                with self._lock:
                    self._connections.pop(name, None)
                connection.abort()
                connection.close()
                raise CertificateChangedError(f"the host shows another certificate by {name} than by {self.transport}")
            if not fresh:
                return connection, False
            return self._keep(name, connection), True

    def rtt(self) -> float | None:
        """Seconds; what the probe measured."""
        return self._reach.rtt if self._reach else None

    # ---- base.Connection -------------------------------------------------------------------------------------------

    def _all(self) -> list[Connection]:
        with self._lock:
            return [*self._connections.values(), *self._retired]

    def abort(self) -> None:
        self._aborted = True
        self._told.put(("abort", ConnectionLostError("the connection was aborted")))
        for connection in self._all():
            connection.abort()

    def close(self) -> None:
        """After every stream was closed: says goodbye where a transport has one of its own."""
        with self._lock:
            self._closed = True
        for connection in self._all():
            connection.close()

    @property
    def bytes_wire(self) -> int:
        """Bytes on the wire so far, both directions, all streams and transports."""
        return sum(connection.bytes_wire for connection in self._all())


def _head_start_of_tcp(rtt: float) -> float:
    """Seconds. Loading QUIC takes a core and the interpreter's lock from TCP's handshakes; where TCP stands before that
    is done, it would be in vain."""
    usual = TCP_HANDSHAKES * rtt
    return 2 * usual + LOADING if usual < LOADING else 0.0


def _on_thread(name: str, run: Callable[[], object]) -> None:
    threading.Thread(target=run, name=name, daemon=True).start()


def connect(
    address: tuple[str, int],
    *,
    pin: bytes | None,
    certificates: Path,
    limit: Limit | None = None,
    transport: str = AUTO,
    congestion: str = "bbr",
    abort: Abort | None = None,
) -> AdaptiveConnection:
    """Connects to a host. pin: the only fingerprint to accept; None accepts any and then stays with it.

    certificates: the folder of those that are known, for QUIC. limit: what all streams together may receive, and send.
    transport: `auto`, or the only one to use. congestion: `bbr` or `cubic`, for QUIC.
    abort: ends it, also while it dials.

    Raises UnreachableError, CertificateChangedError, ConnectionLostError (aborted).
    """
    finder = _Finder(address)

    def dial_quic() -> Connection:
        reach = finder.reach or finder.ask()
        if reach.problem and reach.problem[0] == "rejected":  # a share that is just starting does so for some ms
            time.sleep(ASK_AGAIN)
            reach = finder.ask()
        if reach.problem:
            raise UnreachableError(f"{address[0]}:{address[1]} cannot be reached by QUIC: {reach.problem[1]}")
        _load_quic()
        from headrace.transport.quic.client import QuicConnection

        return QuicConnection(
            finder.address,
            pin=pin,
            certificates=certificates,
            limit=limit,
            congestion={"bbr": "bbr1"}.get(congestion, congestion),
        )

    dialers: dict[str, Callable[[], Connection]] = {
        QUIC: dial_quic,
        TCP: lambda: TcpConnection(address, pin=pin, limit=limit),
    }
    if transport != AUTO:
        dialers = {transport: dialers[transport]}
    return AdaptiveConnection(address, dialers, finder.ask, abort=abort)


class _Finder:
    """Asks all addresses of a host at once whether QUIC passes; the first that answers is the one to dial."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.address = address
        self.reach: Reach | None = None

    def ask(self) -> Reach:
        self.reach = self._ask()
        return self.reach

    def _ask(self) -> Reach:
        if importlib.util.find_spec("aiopquic") is None:
            return Reach(problem=("missing", "the package aiopquic is not installed here"))
        try:
            found = eyeballs.resolve(*self.address, socket.SOCK_DGRAM)[:MAX_PROBED]
        except (OSError, OverflowError, UnicodeError) as why:
            return Reach(problem=("name", f"the name was not found ({why})"))
        asking = {Probe((where[0], where[1])): (where[0], where[1]) for _, where in found}
        end = time.monotonic() + PROBE_TIMEOUT
        refusal = ""
        try:
            while asking and (now := time.monotonic()) < end:
                for probe, where in list(asking.items()):
                    result = probe.step()
                    if result and result.rtt is not None:
                        self.address = where
                        return Reach(rtt=result.rtt)
                    if result:
                        refusal = result.reason
                        del asking[probe]
                if asking:
                    until = min(end, *(probe.due for probe in asking))
                    _wait_readable(asking, max(0.0, until - now))
        finally:
            for probe in asking:
                probe.close()
        if not asking:
            return Reach(problem=("rejected", f"UDP is rejected there ({refusal})"))
        return Reach(problem=("silent", f"UDP gets no answer ({PROBE_TIMEOUT:.0f} s)"))


def _wait_readable(asking: Iterable[Probe], seconds: float) -> None:
    """Not by select: that takes no descriptor above 1023."""
    with selectors.DefaultSelector() as selector:
        for probe in asking:
            selector.register(probe, selectors.EVENT_READ)
        selector.select(seconds)


def _load_quic() -> None:
    """Imports what QUIC takes. Not on the calling thread: that one may be left behind when the program ends, and an
    interpreter that ends in the middle of an import crashes. Raises UnreachableError."""
    problem: list[str | None] = []

    def load() -> None:
        from headrace.transport.quic import unavailable

        problem.append(unavailable())

    loading = threading.Thread(target=load, name="headrace-load-quic")
    loading.start()
    loading.join()
    if not problem or problem[0]:
        raise UnreachableError(f"QUIC cannot be used here: {problem[0] if problem else 'it could not be loaded'}")
