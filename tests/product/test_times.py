"""`get -v` says where the time went, rightly, whichever part is made the slow one."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headrace.client.get import GetOptions, Transfer
from headrace.client.session import Session
from headrace.client.target import Target
from headrace.client.times import Watch, host_times
from headrace.engine import exchange
from headrace.engine.buffers import BufferPool, Lease
from headrace.host import requests
from headrace.host.server import ShareServer
from headrace.observe import bottleneck
from headrace.observe.bottleneck import Breakdown
from headrace.protocol.paths import ROOT
from headrace.protocol.session import Versions
from headrace.storage.chunks import hash_bytes, new_hasher
from headrace.storage.posix import PosixIO

from .support import CHUNK, give_identity

SLOW = 0.1  # seconds a chunk or piece, many times what all the rest takes on a busy machine


class SlowIO(PosixIO):
    """Reads or writes as a tired disk does."""

    def __init__(self, *, reading: float = 0.0, writing: float = 0.0) -> None:
        super().__init__("a test")
        self._reading, self._writing = reading, writing

    def read_into(self, fd: int, buffer: memoryview, offset: int) -> int:
        time.sleep(self._reading)
        return PosixIO.read_into(fd, buffer, offset)

    def write(self, fd: int, data: memoryview | bytes, offset: int) -> None:
        time.sleep(self._writing)
        PosixIO.write(fd, data, offset)


class SlowBuffers(BufferPool):
    """A host that has other things to do."""

    def acquire(self, size: int, timeout: float | None = None) -> Lease:
        time.sleep(SLOW)
        return super().acquire(size, timeout)


class SlowHasher:
    """Hashes as a small processor does."""

    def __init__(self, inner: object) -> None:
        self._inner = inner

    def update(self, data: memoryview) -> None:
        time.sleep(SLOW / 2)
        self._inner.update(data)  # type: ignore[attr-defined]

    def digest(self) -> bytes:
        return self._inner.digest()  # type: ignore[attr-defined]


@pytest.fixture
def copied(tmp_path: Path) -> Callable[..., Breakdown]:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_bytes(os.urandom(4 * CHUNK))

    def copy(*, versions: Versions = Versions(), **share: Any) -> Breakdown:
        give_identity(tmp_path / "host")
        with ShareServer(
            [source], port=0, bind="127.0.0.1", home=tmp_path / "host", transports=["tcp"], discovery=False, **share
        ) as server:
            target = Target.parse(server.target)
            with Session.connect(target, home=tmp_path / "client", versions=versions) as session:
                watch = Watch(session)
                options = GetOptions(fsync=False)  # or the disk of this machine is part of it
                transfer = Transfer(session, ROOT, tmp_path / "dest", options)
                result = transfer.run()
                found = watch.breakdown(transfer.progress.ledger.spent(), result.seconds)
        assert (tmp_path / "dest" / "file").stat().st_size == 4 * CHUNK
        assert found
        return found

    return copy


def slow_source(monkeypatch) -> dict[str, float]:
    monkeypatch.setattr("headrace.host.server.platform_io", lambda io: SlowIO(reading=2 * SLOW))
    return {}


def slow_destination(monkeypatch) -> dict[str, float]:
    monkeypatch.setattr("headrace.client.get.platform_io", lambda io: SlowIO(writing=SLOW))
    return {}


def slow_hash_here(monkeypatch) -> dict[str, float]:
    monkeypatch.setattr(exchange, "new_hasher", lambda: SlowHasher(new_hasher()))
    return {}


def slow_hash_there(monkeypatch) -> dict[str, float]:
    def slowly(data: memoryview) -> bytes:
        time.sleep(2 * SLOW)
        return hash_bytes(data)

    monkeypatch.setattr(requests, "hash_bytes", slowly)
    return {}


def slow_network(monkeypatch) -> dict[str, float]:
    return {"limit_rate": 12e6}


def busy_host(monkeypatch) -> dict[str, float]:
    monkeypatch.setattr("headrace.host.server.buffers_for", lambda io, limit: SlowBuffers(limit))
    return {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("slow", "named"),
    [
        (slow_source, bottleneck.SOURCE),
        (slow_destination, bottleneck.DESTINATION),
        (slow_hash_here, bottleneck.HASH),
        (slow_hash_there, bottleneck.HASH),
        (slow_network, bottleneck.NETWORK),
        (busy_host, bottleneck.PEER),
    ],
)
def test_the_slow_part_is_named(copied, monkeypatch, slow, named):
    found = copied(**slow(monkeypatch))

    assert found.bottleneck == named, found
    assert ("limit" in found.sentence) == (named == bottleneck.NETWORK)


@pytest.mark.slow
def test_in_the_baseline_the_host_says_nothing(copied, monkeypatch):
    found = copied(versions=Versions(7, 7), **slow_network(monkeypatch))

    assert found.bottleneck == bottleneck.UNTOLD


def test_a_host_without_the_feature_is_not_asked(tmp_path, monkeypatch):
    monkeypatch.setattr("headrace.host.session.FEATURES", ("sparse", "batch"))
    give_identity(tmp_path / "host")
    (tmp_path / "file").write_bytes(b"x")
    with (
        ShareServer([tmp_path / "file"], port=0, bind="127.0.0.1", home=tmp_path / "host", discovery=False) as server,
        Session.connect(Target.parse(server.target), home=tmp_path / "client") as session,
    ):
        assert host_times(session) is None
