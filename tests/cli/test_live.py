"""What a running get says of itself."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from headrace.cli.live import LiveTransfer
from headrace.cli.progress import Meter
from headrace.client.target import Target
from headrace.engine.progress import Progress


def test_the_transport_is_the_one_that_carries_the_chunks_now() -> None:
    session = SimpleNamespace(
        agreed=SimpleNamespace(name="footage", share="7k2m", version=8),
        connection=SimpleNamespace(transport="quic"),  # what it began with
        transport="tcp",
        streams=2,
        limit=SimpleNamespace(rate=None),
    )
    target = Target.parse("7k2m-xq4c-9dht@127.0.0.1:7420")
    view = Meter().look(Progress().totals())
    program = LiveTransfer("get", cast("Any", session), target, None, lambda: view, lambda event: None)
    assert program.status()["transport"] == "tcp"
