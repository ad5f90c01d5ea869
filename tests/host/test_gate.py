"""Small reads go before bulk, and bulk goes on whatever the readers do."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest
from tests.transport.memory import MemoryStream, memory_pair

from headrace.engine.buffers import BufferPool
from headrace.errors import ProtocolError
from headrace.host.gate import NAP, PAUSE_DEPTH, PIECE, SMALL, SMALL_DEPTH, SMALL_RATE, STUCK, Allowance, Gate
from headrace.host.requests import RequestHandler
from headrace.protocol.messages import CHUNK_SIZE, MIB, ROLE_CONTROL, GetChunk, Message, Read
from headrace.protocol.session import Agreed
from headrace.storage.manifest import HashCache
from headrace.storage.tree import SharedTree
from headrace.transport.framed import MessageStream

AGREED: Final = Agreed(8, frozenset(), "a test", "7k2m", ROLE_CONTROL, b"p" * 16)


class Time:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class SleepyGate(Gate):
    """Whoever stands still sleeps on the test's clock. meanwhile: what happens during each nap."""

    def __init__(self, clock: Time) -> None:
        super().__init__(clock, self._nap)
        self.time = clock
        self.naps = 0
        self.meanwhile: Callable[[], object] = lambda: None

    def _nap(self, seconds: float) -> None:
        assert 0 < seconds <= NAP
        self.time.now += seconds
        self.naps += 1
        self.meanwhile()


@pytest.fixture
def gate() -> SleepyGate:
    return SleepyGate(Time())


# ---- the rule --------------------------------------------------------------------------------------------------------


def test_an_allowance_is_its_depth_and_then_its_rate() -> None:
    allowance = Allowance(rate=10.0, depth=3.0, now=0.0)
    assert allowance.left(5.0) == 3.0, "rest saves up no more than that"
    allowance.spend(4.0)
    assert allowance.left(5.0) == -1.0
    assert allowance.left(5.2) == pytest.approx(1.0)


def test_bulk_is_held_up_for_at_most_half_of_any_100_ms(gate: SleepyGate) -> None:
    """Readers come without end, and each is new: the worst that they can do."""
    sender = gate.sender()
    pauses: list[tuple[float, float]] = []
    chance = random.Random(7)
    gate.meanwhile = gate.enter
    while gate.time.now < 103.0:
        began = gate.time.now
        gate.enter()
        sender.give_way()
        if gate.time.now > began:
            pauses.append((began, gate.time.now))
        gate.time.now += 0.05 if chance.random() < 0.003 else 0.0002  # a piece; seldom a time without any
    for start, _ in pauses:
        held = sum(max(0.0, min(to, start + 0.1) - max(since, start)) for since, to in pauses if to > start)
        assert held <= 0.05 + 1e-9
    assert max(to - since for since, to in pauses) <= PAUSE_DEPTH + 1e-9


def test_readers_do_get_their_share_of_the_time(gate: SleepyGate) -> None:
    sender = gate.sender()
    gate.meanwhile = gate.enter
    while gate.time.now < 101.0:
        gate.enter()
        sender.give_way()
        gate.time.now += 0.0002
    assert gate.paused == pytest.approx(0.4, rel=0.1)
    assert gate.pauses > 30


def test_a_read_that_hangs_holds_nobody_up_for_long(gate: SleepyGate) -> None:
    """Its client takes nothing, say. It is inside until the connection is given up, 30 s later."""
    gate.enter()
    sender = gate.sender()
    for _ in range(1000):
        sender.give_way()
        gate.time.now += 0.01
    assert gate.waiting == 1
    assert gate.paused <= STUCK + 1e-9


def test_what_hangs_does_not_hide_what_came_after_it(gate: SleepyGate) -> None:
    gate.enter()
    gate.time.now += 1.0
    gate.enter()
    gate.sender().give_way()
    assert gate.paused == pytest.approx(PAUSE_DEPTH)


def test_bulk_goes_on_as_soon_as_the_reads_are_answered(gate: SleepyGate) -> None:
    numbers = [gate.enter(), gate.enter()]
    gate.meanwhile = lambda: gate.leave(numbers.pop())
    gate.sender().give_way()
    assert not gate.waiting
    assert gate.naps == 2


def test_a_connection_that_reads_much_by_small_reads_is_bulk_itself(gate: SleepyGate) -> None:
    reader = gate.reader()
    entered = 0
    for _ in range(1000):
        with reader.reading(SMALL):
            entered += gate.waiting
        gate.time.now += 0.001
    assert entered * SMALL <= SMALL_DEPTH + SMALL_RATE + SMALL
    gate.time.now += 10
    with reader.reading(SMALL):
        assert gate.waiting == 1
    assert gate.waiting == 0


def test_each_connection_has_an_allowance_of_its_own(gate: SleepyGate) -> None:
    busy, quiet = gate.reader(), gate.reader()
    for _ in range(100):
        with busy.reading(SMALL):
            pass
    with busy.reading(4096):
        assert gate.waiting == 0
    with quiet.reading(4096):
        assert gate.waiting == 1


# ---- on a share ------------------------------------------------------------------------------------------------------


Serve = Callable[[Gate], tuple[RequestHandler, MemoryStream]]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """A handler for a new connection, and its stream, on which there is room for what is sent."""
    (tmp_path / "big").write_bytes(random.Random(1).randbytes(CHUNK_SIZE))
    handlers: list[RequestHandler] = []
    with SharedTree.open([tmp_path]) as tree:
        hashes, buffers = HashCache(), BufferPool()

        def make(gate: Gate) -> tuple[RequestHandler, MemoryStream]:
            _, far = memory_pair(capacity=64 * MIB)
            handlers.append(RequestHandler(tree, hashes, MessageStream(far), AGREED, buffers, gate))
            return handlers[-1], far

        yield make
        for handler in handlers:
            handler.close()


CHUNK: Final = GetChunk(1, b"big", b"", 0, CHUNK_SIZE)


def test_a_chunk_stops_between_two_pieces_while_a_small_read_waits(serve: Serve, gate: SleepyGate) -> None:
    handler, stream = serve(gate)
    numbers: list[int] = []
    sent: list[int] = []
    send = stream.send

    def send_and_let_a_read_come(*parts: bytes | memoryview) -> None:
        send(*parts)
        if not sent and sum(map(len, parts)) > PIECE:
            numbers.append(gate.enter())

    def answer() -> None:
        sent.append(len(stream.sent()))
        gate.leave(numbers.pop())

    stream.send = send_and_let_a_read_come  # type: ignore[method-assign]
    gate.meanwhile = answer
    handler.handle(CHUNK)
    assert len(sent) == 1, "it stood still once"
    assert PIECE < sent[0] < PIECE + 1024, "behind the first piece"
    assert len(stream.sent()) > CHUNK_SIZE


class CountingGate(Gate):
    """Counts what enters, and whoever has to stand still does not."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = self.asked = 0

    def enter(self) -> int:
        self.entered += 1
        return super().enter()

    def stand_still(self, longest: float) -> float:
        self.asked += 1
        return 0.0


def test_bulk_asks_before_each_piece_and_only_while_somebody_waits(serve: Serve) -> None:
    gate = CountingGate()
    handler, _ = serve(gate)
    handler.handle(CHUNK)
    assert gate.asked == 0
    gate.enter()
    handler.handle(CHUNK)
    assert gate.asked == CHUNK_SIZE // PIECE


@pytest.mark.parametrize(
    ("request_", "entered"),
    [
        (Read(1, b"big", 0, 4096), 1),
        (GetChunk(1, b"big", b"", 4096, SMALL), 1),
        (GetChunk(1, b"big", b"", 4096, SMALL + 1), 0),
        (Read(1, b"no such", 0, 4096), 1),
        (GetChunk(1, b"big", b"", CHUNK_SIZE, 4096), 1),
    ],
)
def test_what_is_small_enters_and_always_leaves(serve: Serve, request_: Message, entered: int) -> None:
    gate = CountingGate()
    handler, _ = serve(gate)
    handler.handle(request_)
    assert (gate.entered, gate.waiting) == (entered, 0)


def test_a_read_that_ends_the_connection_leaves_too(serve: Serve) -> None:
    gate = CountingGate()
    handler, _ = serve(gate)
    with pytest.raises(ProtocolError):
        handler.handle(Read(1, b"big", -1, 4096))
    assert (gate.entered, gate.waiting) == (1, 0)
