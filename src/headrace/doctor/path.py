"""Where the time goes on the way to a share: each step of connecting, the round trip, and a short read."""

from __future__ import annotations

import contextlib
import socket
import ssl
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from headrace.client.session import Session
from headrace.client.target import Target
from headrace.client.times import Watch
from headrace.doctor.deadline import within
from headrace.engine.exchange import EXCHANGES, Sink
from headrace.engine.lane import Lane
from headrace.errors import ConnectionLostError, HeadraceError, ProtocolError, printable
from headrace.observe.bottleneck import Breakdown
from headrace.observe.times import Spent, StreamTimes
from headrace.protocol.messages import CHUNK_SIZE, KIB, MIB, Entry, Ping, Pong
from headrace.protocol.paths import RelPath, text_fields
from headrace.transport.framed import PIECE
from headrace.transport.tcp import CONNECT_TIMEOUT, TcpStream, client_context

GIB: Final = 1024 * MIB
PINGS: Final = 10
PING_LIMIT: Final = 30.0  # seconds for all of them
LOOK_SECONDS: Final = 2.0  # for a file to read
READ_BYTES: Final = 64 * MIB
READ_SECONDS: Final = 3.0  # after that nothing more is asked for
READ_LIMIT: Final = 30.0  # seconds that looking and reading may take, whatever the host does
WORTH_READING: Final = CHUNK_SIZE  # bytes; a smaller file says more about the round trip than about the rate
IN_FLIGHT: Final = (512 * KIB, 4 * CHUNK_SIZE)  # bytes asked for and not here yet: at first, and at most
AHEAD: Final = 0.5  # seconds of the rate so far that are in flight; a slow path is then not kept busy for long

Figure = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Step:
    """One part of the way. value: what it took, for people; figures: the same and more, for programs."""

    name: str
    value: str
    text: str
    figures: Mapping[str, Figure]


@dataclass(slots=True)
class Reading:
    """What the read test came to.

    size: bytes that came. sealed: whether in headrace's own larger records. path: raw. skipped: why nothing came.
    """

    size: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    sealed: bool = False
    path: bytes = b""
    skipped: str = ""
    spent: Spent = Spent()

    @property
    def rate(self) -> float:
        return self.size / max(self.seconds, 1e-9)


def measure(
    target: Target, connect: Callable[[], Session], tell: Callable[[Breakdown], None] = lambda breakdown: None
) -> Iterator[Step]:
    """Each step as it is known. connect: makes the session, as every command does; it is left closed. tell: hears last
    of where the time of the read test went.

    Raises what `connect` raises, ConnectionLostError and ProtocolError.
    """
    resolving = _resolve(target)
    started = time.perf_counter()
    session = connect()
    total = time.perf_counter() - started
    try:
        yield from _arriving(target, session, resolving, total)
        yield _limited(session, PING_LIMIT, lambda: _pings(session))
        watch = Watch(session)
        reading = _limited(session, READ_LIMIT, lambda: _reading(session, target.path))
        yield _read_step(reading)
        yield _stream_step(session, reading)
        if reading.size and (breakdown := watch.breakdown(reading.spent, reading.seconds)):
            tell(breakdown)
    finally:
        session.close()


def _limited[T](session: Session, seconds: float, work: Callable[[], T]) -> T:
    """For a host that always sends a little, but never what it was asked for."""
    try:
        return within(seconds, work)
    except TimeoutError as why:
        session.abort()
        raise ConnectionLostError(f"the host takes too long ({why})") from why


# ---- connecting ------------------------------------------------------------------------------------------------------


def _resolve(target: Target) -> tuple[float, str]:
    """(seconds, address). Connecting comes afterwards and says what is wrong where this fails."""
    started = time.perf_counter()
    try:
        found = within(
            CONNECT_TIMEOUT, lambda: socket.getaddrinfo(target.host or None, target.port, type=socket.SOCK_STREAM)
        )
        address = str(found[0][4][0])
    except (OSError, UnicodeError):
        address = ""
    return time.perf_counter() - started, address


def _arriving(target: Target, session: Session, resolving: tuple[float, str], total: float) -> Iterator[Step]:
    """The name, TCP, TLS and the proof. Connecting does all but the first at once, so TCP and TLS are timed on a
    second connection, and the proof is what they leave of the first."""
    seconds, address = resolving
    same = address == target.host
    yield _timed("name", seconds, "it is an address already" if same else f"{printable(target.host)} is {address}")
    split = _split(target)
    if split:
        connecting, shaking, version = split
        yield _timed("connect", connecting, "TCP, one round trip")
        yield _timed("tls", shaking, f"{version}, one round trip and the host's signature")
        total = max(0.0, total - connecting - shaking)
    how = "by the code, at first contact" if session.agreed.keys else "by the credential of an earlier contact"
    yield _timed("handshake", total, f"headrace's own, {how}" + ("" if split else "; TCP and TLS are in it"))


def _split(target: Target) -> tuple[float, float, str] | None:
    """Seconds for TCP and for TLS, and the version; None where a second connection cannot be had."""
    started = time.perf_counter()
    try:
        with socket.create_connection((target.host, target.port), CONNECT_TIMEOUT) as sock:
            connected = time.perf_counter()
            stream = TcpStream(sock, client_context(), server=False)
            stream.handshake(CONNECT_TIMEOUT)
            shaken = time.perf_counter()
            stream.close()
    except (OSError, ssl.SSLError, ConnectionLostError):
        return None
    return connected - started, shaken - connected, "TLS 1.3"


def _timed(name: str, seconds: float, text: str) -> Step:
    return Step(name, _milliseconds(seconds), text, {"ms": round(seconds * 1000, 3)})


def _pings(session: Session) -> Step:
    times = []
    with session.use() as lane:
        for _ in range(PINGS):
            started = time.perf_counter()
            lane.post(Ping(lane.next_id()))
            answer, _ = lane.answer()
            times.append(time.perf_counter() - started)
            if not isinstance(answer, Pong):
                raise ProtocolError("the host answered Ping with something else")
        network = lane.messages.stream.rtt()
    least, median = min(times), statistics.median(times)
    text = f"there and back, the median of {PINGS}; at least {_milliseconds(least)}"
    if network is not None:
        text += f"; TCP alone estimates {_milliseconds(network)}"
    figures: dict[str, Figure] = {
        "ms": round(median * 1000, 3),
        "min_ms": round(least * 1000, 3),
        "tcp_ms": None if network is None else round(network * 1000, 3),
    }
    return Step("ping", _milliseconds(median), text, figures)


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.2f} ms" if seconds < 0.01 else f"{seconds * 1000:.0f} ms"


# ---- reading ---------------------------------------------------------------------------------------------------------


def _reading(session: Session, path: RelPath) -> Reading:
    found = _find(session, path)
    if found is None:
        return Reading(skipped=f"no file of {WORTH_READING // MIB} MiB was found within {LOOK_SECONDS:.0f} s")
    where, entry = found
    lane = session.open_lane()
    try:
        reading = Reading(sealed=_is_sealed(lane), path=bytes(where) or entry.name)
        with lane.lock, _scratch(lane.times) as sink:
            lane.times.settle()
            before = lane.times.spent()
            _read(lane, session.agreed.version, where, entry, reading, sink)
            lane.times.settle()
            reading.spent = lane.times.spent().since(before)
    except (ConnectionLostError, ProtocolError):
        raise
    except HeadraceError as why:  # this file only: it changed, or may not be read
        return Reading(skipped=why.message)
    finally:
        session.release(lane)
    if not reading.size:
        reading.skipped = "the file holds nothing but zeros, which are not sent"
    return reading


def _find(session: Session, path: RelPath) -> tuple[RelPath, Entry] | None:
    """The first file that is large enough, or the largest of those seen in time."""
    top = session.stat(path)
    if top.kind != "d":
        return (path, top) if top.kind == "f" and top.size >= WORTH_READING else None
    best: tuple[RelPath, Entry] | None = None
    deadline = time.monotonic() + LOOK_SECONDS
    lane = session.open_lane()  # one of its own: it is given up in the middle of the answer
    try:
        for directory, entries, _ in session.walk(path, lane):
            for entry in entries:
                more = best is None or entry.size > best[1].size
                if entry.kind == "f" and not entry.sparse and entry.size >= WORTH_READING and more:
                    best = directory / entry.name, entry
            if time.monotonic() > deadline or (best and best[1].size >= READ_BYTES):
                break
    finally:
        session.release(lane)
    return best


def _read(lane: Lane, version: int, path: RelPath, entry: Entry, reading: Reading, sink: Sink) -> None:
    """Asks for pieces, some at a time, and gives them to `sink`."""
    exchange, buffer = EXCHANGES[version], memoryview(bytearray(PIECE))  # with a sink, a piece at a time lies in it
    flying: deque[int] = deque()
    offset, end, arrived = 0, min(entry.size, READ_BYTES), 0
    started, busy = time.perf_counter(), time.process_time()
    while True:
        seconds = time.perf_counter() - started
        window = min(max(IN_FLIGHT[0], int(AHEAD * arrived / max(seconds, 1e-9))), IN_FLIGHT[1])
        while offset < end and seconds < READ_SECONDS and sum(flying) < window:
            size = min(window // 4, CHUNK_SIZE, end - offset)
            exchange.request(lane, path, entry.version, offset, size)
            flying.append(size)
            offset += size
        if not flying:
            break
        size = flying.popleft()
        _, zero = exchange.receive(lane, size, buffer, sink)
        arrived += size
        reading.size += 0 if zero else size
    reading.seconds = time.perf_counter() - started
    reading.cpu_seconds = time.process_time() - busy


@contextlib.contextmanager
def _scratch(times: StreamTimes) -> Iterator[Sink]:
    """Writes to a file without a name in the current folder, for how long that takes; nowhere once that fails."""
    with contextlib.ExitStack() as at_the_end:
        file = None
        with contextlib.suppress(OSError):
            file = at_the_end.enter_context(tempfile.TemporaryFile(dir=".", buffering=0))

        def write(position: int, piece: memoryview) -> None:
            nonlocal file
            if file:
                with times.disk:
                    try:
                        file.write(piece)
                    except OSError:
                        file = None

        yield write


def _is_sealed(lane: Lane) -> bool:
    """Whether the stream left TLS's records for those of protocol.sealed."""
    from headrace.protocol.sealed import SealedRecords  # loaded already where it matters

    stream = lane.messages.stream
    with contextlib.suppress(AttributeError):
        return isinstance(stream, TcpStream) and isinstance(stream._records, SealedRecords)
    return False


def _read_step(reading: Reading) -> Step:
    if reading.skipped:
        return Step("read", "skipped", reading.skipped, {"skipped": reading.skipped})
    per_gib = reading.cpu_seconds / reading.size * GIB
    share = reading.cpu_seconds / max(reading.seconds, 1e-9)
    shown = printable(reading.path.decode("utf-8", "backslashreplace"))
    text = (
        f"{reading.size / MIB:.0f} MiB of {shown} in {reading.seconds:.2f} s; "
        f"this side took {per_gib:.2f} CPU seconds a GiB and was busy {share:.0%} of the time"
    )
    figures: dict[str, Figure] = {
        **text_fields("path", reading.path),
        "bytes": reading.size,
        "seconds": round(reading.seconds, 4),
        "bytes_per_second": round(reading.rate),
        "cpu_seconds_per_gib": round(per_gib, 3),
        "cpu_share": round(share, 3),
    }
    return Step("read", f"{reading.rate / 1e6:.{0 if reading.rate >= 1e7 else 2}f} MB/s", text, figures)


def _stream_step(session: Session, reading: Reading) -> Step:
    transport, version = session.connection.transport, session.agreed.version
    figures: dict[str, Figure] = {"transport": transport, "protocol": version, "sealed": None}
    text = f"protocol {version} with {printable(session.agreed.agent)}"
    if not reading.skipped:
        figures["sealed"] = reading.sealed
        text += "; bulk in sealed records of 256 KiB" if reading.sealed else "; bulk in TLS's records of 16 KiB"
    return Step("stream", transport, text, figures)
