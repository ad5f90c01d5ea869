"""Which transport a connection begins with, and why; what happens when one breaks. Transports are made up here."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from headrace.errors import CertificateChangedError, ConnectionLostError, HeadraceError, UnreachableError
from headrace.transport.abort import Abort
from headrace.transport.adaptive import FALLBACKS, AdaptiveConnection, Reach
from headrace.transport.base import Connection, Stream

from .memory import memory_pair

VERY_FAR, FAR, NEAR = Reach(rtt=0.2), Reach(rtt=0.02), Reach(rtt=0.0002)
SILENT = Reach(problem=("silent", "UDP gets no answer"))


@dataclass
class Made:
    """A connection that gives streams until it is `broken`."""

    transport: str
    fingerprint: bytes = b"f" * 32
    address: tuple[str, int] = ("host", 1)
    broken: bool = False
    aborted: bool = False
    closed: bool = False
    bytes_wire: int = 100
    opened: list[bool] = field(default_factory=list)

    def open_stream(self, *, bulk: bool = False) -> Stream:
        if self.broken or self.aborted:
            raise ConnectionLostError("broken")
        self.opened.append(bulk)
        return memory_pair()[0]

    def abort(self) -> None:
        self.aborted = True

    def close(self) -> None:
        self.closed = True


class Dialer:
    """Dials when it is let; what it made is in `made`."""

    def __init__(self, transport: str, *, error: Exception | None = None, at_once: bool = True) -> None:
        self.transport = transport
        self.error = error
        self.go = threading.Event()
        if at_once:
            self.go.set()
        self.asked = threading.Event()
        self.made: list[Made] = []

    def __call__(self) -> Connection:
        self.asked.set()
        assert self.go.wait(10)
        if self.error:
            raise self.error
        self.made.append(Made(self.transport))
        return self.made[-1]


def connect(tcp: Dialer, quic: Dialer, probe: Callable[[], Reach], head_start: float = 0.03) -> AdaptiveConnection:
    return AdaptiveConnection(("host", 1), {"quic": quic, "tcp": tcp}, probe, head_start=head_start)


def never() -> Reach:
    threading.Event().wait(0.5)
    return SILENT


def test_an_answer_that_comes_a_little_after_tcp_stands_is_no_silence() -> None:
    tcp, quic = Dialer("tcp"), Dialer("quic")

    def late() -> Reach:
        assert tcp.asked.wait(10)
        threading.Event().wait(0.02)
        return NEAR

    found = connect(tcp, quic, late)
    assert (found.transport, found.fallback_reason) == ("tcp", None)
    assert "where TCP is faster" in found.reason


def test_a_near_host_is_reached_by_tcp_and_quic_is_not_even_dialled() -> None:
    tcp, quic = Dialer("tcp"), Dialer("quic")
    connection = connect(tcp, quic, lambda: NEAR, head_start=10)
    assert (connection.transport, connection.fallback_reason) == ("tcp", None)
    assert "0.2 ms away" in connection.reason
    assert not quic.asked.is_set()
    assert connection.others() == ["quic"]


def test_a_far_host_is_reached_by_whichever_stands_first() -> None:
    tcp, quic = Dialer("tcp", at_once=False), Dialer("quic")
    connection = connect(tcp, quic, lambda: VERY_FAR)
    tcp.go.set()
    assert (connection.transport, connection.fallback_reason) == ("quic", None)
    assert connection.others() == ["tcp"]
    tcp, quic = Dialer("tcp"), Dialer("quic", at_once=False)
    connection = connect(tcp, quic, lambda: VERY_FAR)
    quic.go.set()
    assert (connection.transport, connection.fallback_reason) == ("tcp", None)


def test_quic_is_not_loaded_where_tcp_stands_before_that_is_done() -> None:
    tcp, quic = Dialer("tcp"), Dialer("quic")
    connection = connect(tcp, quic, lambda: FAR, head_start=10)
    assert (connection.transport, connection.fallback_reason) == ("tcp", None)
    assert not quic.asked.is_set()
    assert connection.others() == ["quic"]


def test_quic_is_dialled_where_tcp_does_not_stand_in_its_time() -> None:
    tcp, quic = Dialer("tcp", at_once=False), Dialer("quic")
    connection = connect(tcp, quic, lambda: FAR)
    tcp.go.set()
    assert connection.transport == "quic"


def test_tcp_waits_for_its_turn_and_no_longer() -> None:
    tcp, quic = Dialer("tcp"), Dialer("quic", at_once=False)
    probing = threading.Event()

    def probe() -> Reach:
        assert not tcp.asked.wait(0.2), "QUIC has a head start"
        probing.set()
        return VERY_FAR

    connection = connect(tcp, quic, probe, head_start=0.4)
    assert probing.is_set()
    assert connection.transport == "tcp"
    quic.go.set()


@pytest.mark.parametrize(
    ("probe", "kind", "words"),
    [
        (lambda: SILENT, "silent", "UDP gets no answer"),
        (never, "silent", "UDP gets no answer"),
        (lambda: Reach(problem=("rejected", "UDP is rejected")), "rejected", "UDP is rejected"),
    ],
)
def test_without_udp_it_is_tcp_and_the_reason_is_told_and_counted(
    probe: Callable[[], Reach], kind: str, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = FALLBACKS[kind]
    tcp, quic = Dialer("tcp"), Dialer("quic")
    with caplog.at_level("INFO", "headrace.transport"):
        connection = connect(tcp, quic, probe)
    assert connection.transport == "tcp"
    assert connection.fallback_reason == f"{words}; using TCP"
    assert FALLBACKS[kind] == before + 1
    assert len(caplog.records) == 1
    assert not quic.asked.is_set()
    assert connection.others() == []


def test_quic_that_fails_is_a_fallback_too() -> None:
    tcp, quic = Dialer("tcp", at_once=False), Dialer("quic", error=UnreachableError("the handshake failed"))
    threading.Timer(0.2, tcp.go.set).start()
    connection = connect(tcp, quic, lambda: VERY_FAR)
    assert connection.transport == "tcp"
    assert connection.fallback_reason == "QUIC failed: the handshake failed; using TCP"


def test_a_host_that_only_udp_reaches_is_reached() -> None:
    tcp = Dialer("tcp", error=UnreachableError("nobody listens"))
    assert connect(tcp, Dialer("quic"), lambda: NEAR).transport == "quic"
    assert connect(tcp, Dialer("quic"), lambda: FAR).transport == "quic"


def test_what_tcp_says_is_told_where_nobody_can_be_reached() -> None:
    tcp = Dialer("tcp", error=UnreachableError("nobody listens"))
    quic = Dialer("quic", error=UnreachableError("no QUIC"))
    for probe in (never, lambda: SILENT, lambda: NEAR, lambda: FAR, lambda: VERY_FAR):
        with pytest.raises(UnreachableError, match="nobody listens"):
            connect(tcp, quic, probe)


def test_nobody_waits_for_a_probe_or_a_dial_that_failed_in_an_unforeseen_way() -> None:
    def broken() -> Reach:
        raise ValueError("filedescriptor out of range")

    for probe, failure in ((broken, UnreachableError("nobody listens")), (lambda: NEAR, ValueError("odd"))):
        result: queue.SimpleQueue[HeadraceError | None] = queue.SimpleQueue()
        tcp, quic = Dialer("tcp", error=failure), Dialer("quic", error=UnreachableError("no QUIC"))

        def dial(
            probe: Callable[[], Reach] = probe,
            tcp: Dialer = tcp,
            quic: Dialer = quic,
            result: queue.SimpleQueue[HeadraceError | None] = result,
        ) -> None:
            try:
                connect(tcp, quic, probe)
            except HeadraceError as why:
                result.put(why)

        threading.Thread(target=dial, daemon=True).start()
        assert isinstance(result.get(timeout=10), UnreachableError)


def test_a_forced_transport_is_the_only_one() -> None:
    connection = AdaptiveConnection(("host", 1), {"quic": Dialer("quic")}, never)
    assert (connection.transport, connection.others(), connection.fallback_reason) == ("quic", [], None)
    with pytest.raises(UnreachableError, match="it is missing"):
        AdaptiveConnection(("host", 1), {"quic": Dialer("quic", error=UnreachableError("it is missing"))}, never)


def test_streams_by_either_transport() -> None:
    tcp, quic = Dialer("tcp"), Dialer("quic")
    connection = connect(tcp, quic, lambda: NEAR)
    connection.open_stream()
    connection.open_stream("quic", bulk=True)
    connection.open_stream("quic", bulk=True)
    assert tcp.made[0].opened == [False]
    assert [made.opened for made in quic.made] == [[True, True]], "one connection for all of them"
    assert connection.bytes_wire == 200
    connection.close()
    assert tcp.made[0].closed
    assert quic.made[0].closed


def test_a_connection_that_broke_is_dialled_anew_and_its_bytes_still_count() -> None:
    tcp, quic = Dialer("tcp"), Dialer("quic")
    connection = connect(tcp, quic, lambda: NEAR)
    connection.open_stream("quic")
    quic.made[0].broken = True
    connection.open_stream("quic")
    assert len(quic.made) == 2
    assert connection.bytes_wire == 300
    quic.made[1].broken = True
    quic.error = UnreachableError("gone")
    with pytest.raises(UnreachableError):
        connection.open_stream("quic")
    quic.error = None
    connection.open_stream("quic")


def test_another_certificate_by_the_other_transport_is_refused() -> None:
    tcp, quic = Dialer("tcp"), Dialer("quic")
    connection = connect(tcp, quic, lambda: NEAR)
    honest = quic.__call__

    def another() -> Connection:
        made = honest()
        made.fingerprint = b"x" * 32
        return made

    connection._dialers["quic"] = another
    with pytest.raises(CertificateChangedError):
        connection.open_stream("quic")
    assert quic.made[0].aborted
    assert quic.made[0].closed


def test_another_certificate_of_the_one_that_lost_the_race_is_refused_too() -> None:
    """At first contact both dial without a pin. What the handshake proves holds for the certificate of the first."""
    tcp, quic = Dialer("tcp"), Dialer("quic", at_once=False)
    honest = quic.__call__

    def another() -> Connection:
        made = honest()
        made.fingerprint = b"x" * 32
        return made

    dialers: dict[str, Callable[[], Connection]] = {"quic": another, "tcp": tcp}
    connection = AdaptiveConnection(("host", 1), dialers, lambda: VERY_FAR, head_start=0.03)
    assert connection.transport == "tcp"
    quic.go.set()
    until = time.monotonic() + 10
    while "quic" not in connection._connections:
        assert time.monotonic() < until
        time.sleep(0.01)
    for _ in range(2):
        with pytest.raises(CertificateChangedError):
            connection.open_stream("quic")
    assert [(made.opened, made.closed) for made in quic.made] == [([], True)] * 2


def test_abort_holds_for_what_comes_later_too() -> None:
    tcp, quic = Dialer("tcp"), Dialer("quic", at_once=False)
    connection = connect(tcp, quic, lambda: VERY_FAR)
    connection.abort()
    quic.go.set()
    assert tcp.made[0].aborted
    for name in ("tcp", "quic"):
        with pytest.raises(ConnectionLostError):
            connection.open_stream(name)


@pytest.mark.parametrize("names", [["tcp"], ["quic", "tcp"]])
def test_who_dials_can_be_stopped_and_what_stands_later_is_closed(names: list[str]) -> None:
    dialers = {name: Dialer(name, at_once=False) for name in names}
    abort = Abort()

    def stop() -> None:
        assert dialers["tcp"].asked.wait(10)
        abort()

    threading.Thread(target=stop, daemon=True).start()
    with pytest.raises(ConnectionLostError, match="aborted"):
        AdaptiveConnection(("host", 1), dict(dialers), lambda: NEAR, head_start=0.01, abort=abort)
    with pytest.raises(ConnectionLostError, match="aborted"):
        AdaptiveConnection(("host", 1), dict(dialers), lambda: NEAR, head_start=0.01, abort=abort)
    dialers["tcp"].go.set()
    until = time.monotonic() + 10
    while not dialers["tcp"].made or not all(made.aborted and made.closed for made in dialers["tcp"].made):
        assert time.monotonic() < until


def test_one_that_stands_after_the_end_is_closed() -> None:
    tcp, quic = Dialer("tcp"), Dialer("quic", at_once=False)
    connection = connect(tcp, quic, lambda: VERY_FAR)
    assert quic.asked.wait(10)
    connection.close()
    quic.go.set()
    until = time.monotonic() + 10
    while not (quic.made and quic.made[0].closed):
        assert time.monotonic() < until
