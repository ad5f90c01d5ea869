"""The lanes of a transfer, without a host."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any, cast

import pytest

from headrace.client.crew import Crew
from headrace.client.outage import Outage
from headrace.engine.choice import TransportChoice
from headrace.engine.pool import StreamPool
from headrace.engine.progress import Progress


def test_nobody_waits_for_a_worker_that_could_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    fetcher = SimpleNamespace(progress=Progress(), queue=SimpleNamespace(over=False))
    halt = threading.Event()
    crew = Crew(
        cast("Any", SimpleNamespace(transport="tcp")),
        cast("Any", fetcher),
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
