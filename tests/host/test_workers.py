"""Lanes that are lent to workers: served as ever, and given back for what only the share can do; workers that fail.

The workers here are threads of this process with a socket pair of their own, or scripted; tests/product/test_workers.py
has real ones.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
from tests.product.support import wait_until

from headrace.engine.compress import Compressors
from headrace.errors import ConnectionLostError
from headrace.host import workers
from headrace.host.channel import Back, Channel, Figures, Lane, Log, Setup, ToWorker, Up
from headrace.host.limits import Limits
from headrace.host.registry import Registry
from headrace.host.worker import Worker
from headrace.host.workers import Workers
from headrace.observe import tracing
from headrace.observe.metrics import WORKER_FALLBACKS
from headrace.observe.times import Spent
from headrace.protocol.messages import (
    CHUNK_SIZE,
    MIB,
    ROLE_CONTROL,
    ROLE_DATA,
    Chunk,
    Data,
    Error,
    GetChunk,
    GetTimes,
    Goodbye,
    Message,
    Ping,
    Pong,
    Read,
    Stat,
    StatReply,
    Times,
)
from headrace.protocol.session import CLEAR, FEATURES, SEALED
from headrace.storage.chunks import hash_bytes
from headrace.transport.framed import MessageStream
from headrace.transport.pacing import Limit

from .test_session import PATIENCE, Host, host, identity

__all__ = ["host", "identity"]  # fixtures

BIG: Final = bytes(range(256)) * (CHUNK_SIZE // 256)


class ThreadProcess:
    """What stands for a process: it is over when its thread is."""

    def __init__(self, run: Callable[[Channel[ToWorker]], None], sock: socket.socket) -> None:
        self.returncode = 0
        self.killed = threading.Event()
        self.channel: Channel[ToWorker] = Channel(sock, ToWorker)
        self._thread = threading.Thread(target=self._run, args=(run,), daemon=True)
        self._thread.start()

    def _run(self, run: Callable[[Channel[ToWorker]], None]) -> None:
        with contextlib.suppress(OSError):
            run(self.channel)
        self.channel.shut()

    def wait(self, timeout: float | None = None) -> int:
        self._thread.join(PATIENCE if timeout is None else timeout)
        if self._thread.is_alive():
            raise subprocess.TimeoutExpired("a thread", timeout or PATIENCE)
        return 0

    def kill(self) -> None:
        self.killed.set()
        self.channel.shut()


def serves(channel: Channel[ToWorker]) -> None:
    """What a worker process does."""
    received = channel.receive()
    assert received and isinstance(received[0], Setup)
    worker = Worker(received[0], channel)
    try:
        worker.run()
    finally:
        worker.close()


@dataclass
class Crew:
    """A share's workers, and the processes that were started for it."""

    host: Host
    made: list[Workers] = field(default_factory=list)
    processes: list[ThreadProcess] = field(default_factory=list)
    limit: Limit = field(default_factory=lambda: Limit(None))
    now: float = 1000.0

    def start(
        self, count: int = 1, run: Callable[[Channel[ToWorker]], None] = serves, *, up: int | None = None
    ) -> Workers:
        def spawn(theirs: socket.socket, descriptors: list[int]) -> ThreadProcess:
            self.processes.append(ThreadProcess(run, theirs.dup()))
            return self.processes[-1]

        share = self.host.share
        made = Workers(
            count,
            tree=share.tree,
            home=Path("/nowhere"),
            io="auto",
            buffers=16 * MIB,
            compressors=Compressors(),
            limited=lambda: self.limit.rate is not None,
            clock=lambda: self.now,
            spawn=spawn,
        )
        self.limit.on_change = made.limits_changed
        self.made.append(made)
        made.start()
        wait_until(lambda: made.up == (count if up is None else up), "the workers are up")
        return made

    def lane(self, *, clear: bool = False, role: str = ROLE_DATA, **changed: Any) -> MessageStream:
        """A lane of a new client, whose requests a worker can answer."""
        stream = self.host.connect(workers=self.made[-1], limit=self.limit, clear=clear, **changed)
        offered = {*FEATURES, SEALED, *([CLEAR] if clear else [])}
        messages, agreed = self.host.greet(stream, features=offered, role=role)
        stream.seal(agreed.seal)
        if CLEAR in agreed.features:
            messages.clear = stream
        return messages


@pytest.fixture
def crew(host: Host) -> Iterator[Crew]:
    crew = Crew(host)
    yield crew
    for stream in host.open:
        stream.abort()
    for made in crew.made:
        made.stop()
    host.settled()


def lent(made: Workers) -> int:
    """Lanes that workers have now."""
    return sum(len(worker.loans) for worker in made._all())


def sample(made: Workers, name: str) -> Any:
    return sum(one.value for one in made.samples() if one.name == name)


def ask(messages: MessageStream, request: Message) -> tuple[Message, bytes]:
    messages.send(request)
    return take(messages)


def take(messages: MessageStream) -> tuple[Message, bytes]:
    answer, length = messages.expect()
    payload = bytearray(length)
    messages.read_payload(memoryview(payload))
    return answer, bytes(payload)


def version(messages: MessageStream, path: bytes = b"big") -> bytes:
    reply, _ = ask(messages, Stat(1, path))
    assert isinstance(reply, StatReply)
    return reply.entry.version


def leave(messages: MessageStream) -> None:
    messages.send(Goodbye())
    messages.close()


# ---- served by a worker --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clear", [False, True])
def test_a_lane_is_served_as_ever_and_counted_where_it_came_in(crew: Crew, clear: bool) -> None:
    made = crew.start()
    messages = crew.lane(clear=clear)
    current = version(messages)
    assert lent(made) == 1
    chunk, payload = ask(messages, GetChunk(2, b"big", current, 0, CHUNK_SIZE))
    assert isinstance(chunk, Chunk)
    assert (chunk.clear, chunk.hash, payload) == (clear, hash_bytes(BIG), BIG)
    data, payload = ask(messages, Read(3, b"small", 0, 10, version(messages, b"small")))
    assert isinstance(data, Data)
    assert payload == b"headwater\n"
    registry = crew.host.share.registry
    both = messages.stream
    wait_until(lambda: registry.look().bytes_sent == both.bytes_in, "the bytes are told while the lane is open")
    wait_until(lambda: registry.look().bytes_received == both.bytes_out, "in both directions")
    leave(messages)
    events = crew.host.settled()
    assert [event["bytes"] for event in events] == [CHUNK_SIZE + 10]
    assert (registry.look().peers, registry.spent().sending > 0) == ([], True)
    assert registry.look().bytes_sent == messages.stream.bytes_in


def test_it_is_given_back_for_what_only_the_share_knows_and_nothing_is_lost(crew: Crew) -> None:
    made = crew.start()
    messages = crew.lane()
    chunk = GetChunk(2, b"big", version(messages), 0, CHUNK_SIZE)
    messages.send_all([chunk, Ping(3), GetTimes(4), chunk, Ping(5)])
    answers = [take(messages) for _ in range(5)]
    assert [type(answer) for answer, _ in answers] == [Chunk, Pong, Times, Chunk, Pong]
    assert answers[0][1] == answers[3][1] == BIG
    times = answers[2][0]
    assert isinstance(times, Times)
    assert times.sending > 0 and times.hash > 0  # the worker's time counts
    assert (lent(made), sample(made, "loans")) == (0, 1)
    leave(messages)
    assert [event["bytes"] for event in crew.host.settled()] == [2 * CHUNK_SIZE]


def test_what_a_client_does_wrong_is_told_to_it_and_to_the_share(crew: Crew) -> None:
    crew.start()
    messages = crew.lane()
    answer, _ = ask(messages, Read(1, b"big", 0, CHUNK_SIZE, b""))
    assert isinstance(answer, Error)
    assert "the limit is" in answer.message
    assert messages.receive() is None  # in order: the error is the last word
    assert [event["code"] for event in crew.host.settled()] == ["protocol"]


def test_the_share_ends_a_lane_that_a_worker_has(crew: Crew) -> None:
    made = crew.start()
    messages = crew.lane()
    version(messages)
    (host_end,) = [stream for stream in crew.host.open if stream._server]
    host_end.abort()
    with pytest.raises(ConnectionLostError):
        messages.expect()
    crew.host.settled()
    assert lent(made) == 0


def test_a_client_that_is_gone_ends_the_loan(crew: Crew) -> None:
    made = crew.start()
    messages = crew.lane()
    messages.send(GetChunk(2, b"big", version(messages), 0, CHUNK_SIZE))
    messages.abort()
    crew.host.settled()
    assert lent(made) == 0


def test_lanes_go_to_the_worker_that_has_the_fewest(crew: Crew) -> None:
    made = crew.start(2)
    lanes = [crew.lane() for _ in range(4)]
    for messages in lanes:
        version(messages)
    assert sorted(len(worker.loans) for worker in made._all()) == [2, 2]


# ---- not for a worker ----------------------------------------------------------------------------------------------


def test_a_control_lane_stays(crew: Crew) -> None:
    made = crew.start()
    version(crew.lane(role=ROLE_CONTROL))
    assert sample(made, "loans") == 0


def test_a_client_that_does_nothing_is_not_borne_longer_because_a_worker_has_its_lane(crew: Crew) -> None:
    made = crew.start()
    messages = crew.lane(limits=Limits(idle=0.3))
    version(messages)
    assert lent(made) == 1
    with pytest.raises(ConnectionLostError):
        messages.expect()
    crew.host.settled()
    assert lent(made) == 0


def test_while_there_is_a_limit_lanes_stay_or_come_back(crew: Crew) -> None:
    made = crew.start()
    early = crew.lane()
    version(early)
    assert lent(made) == 1
    crew.limit.rate = 8.0 * MIB
    for _ in range(1000):  # the worker hears of it while it may be serving one more request
        known = version(early)
        if not lent(made):
            break
    chunk, payload = ask(early, GetChunk(2, b"big", known, 0, CHUNK_SIZE))
    assert isinstance(chunk, Chunk) and payload == BIG
    (host_end,) = [stream for stream in crew.host.open if stream._server]
    assert lent(made) == 0 and host_end.pace_out is not None and host_end.pace_out.rate == 8 * MIB
    version(crew.lane())
    assert (lent(made), sample(made, "loans")) == (0, 1)
    crew.limit.rate = None
    version(crew.lane())
    assert lent(made) == 1


def test_a_limit_of_each_peer_is_one_too() -> None:
    told: list[float | None] = []
    limits = Registry().limits
    limits.on_change = lambda: told.append(limits.rate)
    limits.rate = 5.0
    limits.rate = None
    assert told == [5.0, None]


def test_while_spans_are_recorded_lanes_stay(crew: Crew) -> None:
    made = crew.start()
    with tracing.tracing(tracing.Tracer([], serves=True)):
        version(crew.lane())
    assert sample(made, "loans") == 0


# ---- workers that fail ---------------------------------------------------------------------------------------------


@pytest.fixture
def lost(monkeypatch: pytest.MonkeyPatch) -> Callable[[], dict[str, int]]:
    before = WORKER_FALLBACKS.counts()
    return lambda: {
        word: count - before.get(word, 0)
        for word, count in WORKER_FALLBACKS.counts().items()
        if count > before.get(word, 0)
    }


def test_a_worker_that_dies_takes_its_lanes_along_and_no_others(
    crew: Crew, lost: Callable[[], dict[str, int]], caplog: pytest.LogCaptureFixture
) -> None:
    made = crew.start()
    first = crew.lane()
    version(first)
    crew.processes[0].kill()
    with pytest.raises(ConnectionLostError):
        first.expect()
    wait_until(lambda: not made._all(), "the share knows")
    version(crew.lane())  # served by the share
    assert lost() == {"died": 1}
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == [
        "worker 1 ended (exit code 0); 1 connections come again by themselves"
    ]


def test_a_dead_worker_is_replaced_a_minute_after_its_start_at_the_earliest(crew: Crew) -> None:
    made = crew.start()
    crew.processes[0].kill()
    wait_until(lambda: not made._all(), "the share knows")
    crew.now += workers.RESTART_AFTER - 1
    version(crew.lane())
    assert len(crew.processes) == 1
    crew.now += 1
    version(crew.lane())  # is not kept waiting for it
    wait_until(lambda: made.up == 1, "another one")
    version(crew.lane())
    assert lent(made) == 1


def test_a_worker_that_stands_still_is_ended(
    crew: Crew, lost: Callable[[], dict[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "SILENCE", 0.05)
    got: list[Lane] = []

    def stands_still(channel: Channel[ToWorker]) -> None:
        channel.send(Up())
        while received := channel.receive():
            if isinstance(received[0], Lane):
                got.append(received[0])

    crew.start(run=stands_still)
    with pytest.raises(ConnectionLostError):
        version(crew.lane())
    crew.host.settled()
    wait_until(lambda: lost() == {"silent": 1}, "it was told")
    assert len(got) == 1
    assert crew.processes[0].killed.is_set()


def test_a_lane_that_no_worker_takes_is_served_by_the_share(crew: Crew, monkeypatch: pytest.MonkeyPatch) -> None:
    made = crew.start()

    def fails(message: object, descriptor: int | None = None) -> None:
        raise BlockingIOError("it takes nothing")

    (worker,) = made._all()
    monkeypatch.setattr(worker.channel, "send", fails)
    version(crew.lane())
    assert lent(made) == 0


def test_a_lane_that_a_worker_cannot_take_comes_back_untouched(crew: Crew, monkeypatch: pytest.MonkeyPatch) -> None:
    made = crew.start()
    (worker,) = made._all()
    send = worker.channel.send
    monkeypatch.setattr(worker.channel, "send", lambda message, descriptor=None: send(message))  # as by a full table
    version(crew.lane())
    assert (lent(made), sample(made, "loans")) == (0, 1)


def test_a_worker_that_cannot_be_started_is_said_once(
    host: Host, lost: Callable[[], dict[str, int]], caplog: pytest.LogCaptureFixture
) -> None:
    def spawn(theirs: socket.socket, descriptors: list[int]) -> workers.Process:
        raise PermissionError("not here")

    share = host.share
    made = Workers(
        *(2,),
        tree=share.tree,
        home=Path("/nowhere"),
        io="auto",
        buffers=16 * MIB,
        compressors=None,
        limited=lambda: False,
        spawn=spawn,
    )
    made.start()
    wait_until(lambda: lost(), "it was told")
    made.stop()
    assert lost() == {"start": 1}
    assert "not here" in caplog.text


def test_an_error_of_a_worker_is_the_lanes(crew: Crew) -> None:
    """Also one that no session of its own would have: whatever it was, the client is told and the lane ends."""

    def fails(channel: Channel[ToWorker]) -> None:
        channel.send(Up())
        while received := channel.receive():
            if isinstance(lane := received[0], Lane):
                channel.send(Log("headrace.host", logging.WARNING, "something is wrong", {"peer": "ab"}))
                none = Figures(0, 0, 0, Spent())
                channel.send(Back(lane.number, none, lane.state, "disk", "/secret/path is gone"))

    crew.start(run=fails)
    messages = crew.lane()
    answer, _ = take(messages)
    assert isinstance(answer, Error)
    assert "secret" not in answer.message
    assert [event["message"] for event in crew.host.settled()] == ["/secret/path is gone"]


def test_what_a_worker_logs_is_told_by_the_share(crew: Crew, caplog: pytest.LogCaptureFixture) -> None:
    def talks(channel: Channel[ToWorker]) -> None:
        channel.send(Up())
        channel.send(Log("headrace.host", logging.INFO, "100 %s of it", {}))
        channel.send(Log("headrace.host", logging.DEBUG, "too much", {}))
        channel.receive()

    caplog.set_level(logging.INFO, "headrace.host")
    crew.start(run=talks, up=0)
    wait_until(lambda: "100 %s of it" in caplog.text, "it was told")
    assert "too much" not in caplog.text


def test_requests_that_wait_in_the_worker_are_not_lost(crew: Crew) -> None:
    """Whatever waits in the worker's decoder when the lane goes back is used."""
    crew.start()
    messages = crew.lane()
    messages.send_all([*map(Ping, range(200)), GetTimes(200), *map(Ping, range(201, 300))])
    answers = [take(messages)[0] for _ in range(300)]
    assert [type(answer) for answer in answers] == [Pong] * 200 + [Times] + [Pong] * 99
    assert [answer.id for answer in answers] == list(range(300))  # type: ignore[attr-defined]
