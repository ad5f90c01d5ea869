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
from headrace.errors import ConnectionLostError


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
    """Who compares files gets hashes, and no chunk for a long time."""
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
    lane = SimpleNamespace(answers=0, idle=True, messages=SimpleNamespace(stream=stream))
    crew._members.append(crew_module._Member(Progress().lane(), "tcp", lane=cast("Any", lane)))
    outage.again(ConnectionLostError("gone"), 0)
    crew._look()
    assert outage.lasts
    lane.answers += 1
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
