"""The lanes of a transfer, without a host."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any, cast

import pytest

from headrace.client import crew as crew_module
from headrace.client.crew import Crew
from headrace.client.outage import Outage
from headrace.engine.choice import TransportChoice
from headrace.engine.pool import StreamPool
from headrace.engine.progress import Progress
from headrace.engine.worker import Room
from headrace.errors import ConnectionLostError
from headrace.protocol.messages import CHUNK_SIZE, KIB, MIB


def test_nobody_waits_for_a_worker_that_could_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    fetcher = SimpleNamespace(progress=Progress(), queue=SimpleNamespace(over=False))
    halt = threading.Event()
    crew = Crew(
        cast("Any", SimpleNamespace(transport="tcp")),
        cast("Any", fetcher),
        cast("Any", None),  # no worker begins
        Outage(lambda event: None, halt, limit=0),
        StreamPool(fixed_connections=1),
        TransportChoice("tcp", None),
        halt=halt,
    )

    def no_thread(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched, pytest.raises(RuntimeError):
        patched.setattr(threading.Thread, "start", no_thread)
        crew.run()
    waiting = threading.Thread(target=crew.join, daemon=True)
    waiting.start()
    waiting.join(10)
    assert not waiting.is_alive()


def test_answers_end_an_outage_as_bytes_do() -> None:
    """Who compares files gets parts of manifests, and no chunk for a long time."""
    session = SimpleNamespace(transport="tcp", clear=False, connection=SimpleNamespace(others=list))
    halt = threading.Event()
    outage = Outage(lambda event: None, halt, limit=60)
    crew = Crew(
        cast("Any", session),
        cast("Any", SimpleNamespace(progress=Progress(), queue=SimpleNamespace(over=False))),
        cast("Any", None),
        outage,
        StreamPool(fixed_connections=1),
        TransportChoice("tcp", None),
        halt=halt,
    )
    stream = SimpleNamespace(rtt=lambda: None, bytes_in=0, bytes_out=0)
    lane = SimpleNamespace(heard=0, idle=True, messages=SimpleNamespace(stream=stream))
    crew._members.append(crew_module._Member(Progress().lane(), "tcp", lane=cast("Any", lane)))
    outage.again(ConnectionLostError("gone"), 0)
    crew._look()
    assert outage.lasts
    lane.heard += 1
    crew._look()
    assert not outage.lasts


@pytest.mark.parametrize(("only_small", "lanes"), [(True, 1), (False, 2)])
def test_one_lane_for_small_files_where_both_ends_share_few_cores(only_small: bool, lanes: int) -> None:
    halt = threading.Event()
    crew = Crew(
        cast("Any", SimpleNamespace(transport="tcp")),
        cast("Any", SimpleNamespace(progress=Progress(), queue=SimpleNamespace(over=False, only_small=only_small))),
        cast("Any", None),
        Outage(lambda event: None, halt, limit=0),
        StreamPool(),
        TransportChoice("tcp", None),
        cramped=True,
        halt=halt,
    )
    hired: list[str] = []
    crew._hire = lambda transport, **how: hired.append(transport)  # type: ignore[method-assign]
    crew._adjust()
    assert hired == ["tcp"] * lanes


def ending(rates: list[float], left: int, *, near: bool = False) -> list[Room]:
    """What lanes of these rates, in bytes a second, may ask for when so many bytes are left."""
    progress = Progress()
    progress.found(1, left)
    progress.planned()
    session = SimpleNamespace(transport="tcp", clear=False, connection=SimpleNamespace(others=list))
    halt = threading.Event()
    crew = Crew(
        cast("Any", session),
        cast("Any", SimpleNamespace(progress=progress, queue=SimpleNamespace(over=False))),
        cast("Any", None),
        Outage(lambda event: None, halt, limit=60),
        StreamPool(),
        TransportChoice("tcp", None),
        near=near,
        halt=halt,
        clock=lambda: 1.0,
    )
    stream = SimpleNamespace(rtt=lambda: 0.05, bytes_in=0, bytes_out=0)
    for rate in rates:
        lane = cast("Any", SimpleNamespace(heard=0, idle=True, messages=SimpleNamespace(stream=stream)))
        crew._members.append(crew_module._Member(Progress().lane(), "tcp", rate=rate, lane=lane))
        crew._members[-1].mark = (1.0, 0)
    crew._look()
    return [crew._room(member) for member in crew._members]


def test_towards_the_end_lanes_ask_for_little_at_a_time() -> None:
    assert ending([6e6, 6e6], 100 * MIB) == [Room(2 * CHUNK_SIZE)] * 2
    fast, slow = ending([10e6, 2e6], 16 * MIB)
    assert fast == Room(2_500_000, 512 * KIB)
    assert slow == Room(512 * KIB, 256 * KIB)


def test_a_slow_lane_makes_the_end_begin_early() -> None:
    assert ending([10e6, 2e6], 40 * MIB)[1].bytes < CHUNK_SIZE
    assert ending([6e6, 6e6], 40 * MIB)[1] == Room(2 * CHUNK_SIZE)


def test_fast_lanes_and_a_lane_alone_ask_for_whole_chunks_to_the_end() -> None:
    assert {room.piece for room in ending([300e6, 300e6], 8 * MIB)} == {CHUNK_SIZE}
    assert ending([6e6], MIB) == [Room(2 * CHUNK_SIZE)]


def test_a_host_on_this_machine_is_asked_for_whole_chunks_to_the_end() -> None:
    rooms = ending([10e6, 2e6], 16 * MIB, near=True)
    assert {room.piece for room in rooms} == {CHUNK_SIZE}
    assert min(room.bytes for room in rooms) >= 2 * CHUNK_SIZE
