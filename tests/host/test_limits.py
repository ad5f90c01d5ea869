"""What a share gives to one address and one peer: up to the limit, and not one more. docs/limits.md lists them all."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.product.scripted import Paired, ScriptedClient
from tests.product.support import CODE, give_identity, wait_until

import headrace
from headrace.errors import UsageError
from headrace.host import session
from headrace.host.limits import Limits
from headrace.host.server import ShareServer
from headrace.protocol.messages import Error, Ping, Pong
from headrace.protocol.session import Agreed

FEW = Limits(connections=12, per_address=8, per_peer=3, handshakes=4, handshakes_per_address=2, handshake=5.0)


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[ShareServer]:
    (tmp_path / "file").write_bytes(b"content")
    give_identity(tmp_path / "home")
    with headrace.share(
        tmp_path / "file", bind="127.0.0.1", code=CODE, home=tmp_path / "home", limits=FEW, transports={"tcp"}
    ) as shared:
        yield shared


@pytest.fixture
def paired(shared: ShareServer) -> Paired:
    with ScriptedClient(shared.port) as client:
        return client.pair()


def serving(shared: ShareServer) -> int:
    return len(shared._threads)


def turned_away(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
        with contextlib.suppress(ConnectionError):
            return sock.recv(1) == b""
    return True


def test_so_many_connections_of_one_peer(shared: ShareServer, paired: Paired) -> None:
    with contextlib.ExitStack() as stack:
        clients: list[ScriptedClient] = []
        for _ in range(FEW.per_peer):
            clients.append(stack.enter_context(ScriptedClient(shared.port)))
            clients[-1].come_back(paired)
        for client in clients:
            assert client.ask(Ping(1))[0] == Pong(1)
        with ScriptedClient(shared.port) as one_more:
            one_more.come_back(paired)
            refused = one_more.receive()[0]
            assert isinstance(refused, Error) and (refused.id, refused.code) == (0, "full")
            assert "3 connections of one peer" in refused.message
        with ScriptedClient(shared.port) as other:
            other.pair()
            assert other.ask(Ping(2))[0] == Pong(2)
        clients.pop().stream.close()
        wait_until(lambda: _room(shared), "room")
        with ScriptedClient(shared.port) as again:
            again.come_back(paired)
            assert again.ask(Ping(3))[0] == Pong(3)


def _room(shared: ShareServer) -> bool:
    return all(peer.connections < FEW.per_peer for peer in shared.registry.look().peers)


def test_so_many_connections_from_one_address_and_in_all(shared: ShareServer, paired: Paired) -> None:
    """Those that are in: each is a peer of its own, so that no other limit is in the way."""
    with contextlib.ExitStack() as stack:
        for _ in range(FEW.per_address):
            stack.enter_context(ScriptedClient(shared.port)).pair()
        assert serving(shared) == FEW.per_address
        assert turned_away(shared.port)
        assert shared.turned_away == {"per_address": 1}
        for number in range(2, 2 + FEW.connections - FEW.per_address):  # from other addresses of this machine
            sock = socket.create_connection(
                ("127.0.0.1", shared.port), timeout=5, source_address=(f"127.0.0.{number}", 0)
            )
            stack.enter_context(sock)
        wait_until(lambda: serving(shared) == FEW.connections, "all of them")
        with socket.create_connection(("127.0.0.1", shared.port), timeout=5, source_address=("127.0.0.99", 0)) as sock:
            with contextlib.suppress(ConnectionError):
                assert sock.recv(1) == b""
        assert shared.turned_away == {"per_address": 1, "connections": 1}
    wait_until(lambda: serving(shared) == 0, "their end")
    assert shared._by_address == {}
    with ScriptedClient(shared.port) as client:
        client.come_back(paired)
        assert client.ask(Ping(1))[0] == Pong(1)


def test_a_peer_that_rests_is_cut_off_where_that_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    give_identity(tmp_path / "home")
    limits, home = Limits(idle=0.3), tmp_path / "home"
    with headrace.share(
        tmp_path / "file", bind="127.0.0.1", code=CODE, home=home, limits=limits, transports={"tcp"}
    ) as shared:
        with ScriptedClient(shared.port) as resting:
            resting.pair()
            assert resting.until_closed() == []


class Peer:
    """A registry, and a clock, as one peer's patience sees them."""

    def __init__(self) -> None:
        self.bytes = 0
        self.now = 1000.0

    def moved(self, peer: bytes) -> int:
        return self.bytes


def test_what_travels_on_any_connection_of_a_peer_keeps_all_of_them() -> None:
    peer = Peer()
    limits, buffers = Limits(idle=60.0), SimpleNamespace(contended=False)
    share: Any = SimpleNamespace(limits=limits, registry=peer, buffers=buffers)
    patience = session._Patience(share, Agreed(8, frozenset(), "", "", "control", b"peer"), lambda: peer.now)
    assert patience.asked_every == 15.0
    for _ in range(10):  # another connection is in use
        peer.bytes += 1
        peer.now += 50.0
        assert patience(sending=False)
    peer.now += 59.0
    assert patience(sending=False)
    peer.now += 1.0
    assert not patience(sending=False)
    assert patience(sending=True)
    buffers.contended = True
    assert not patience(sending=True)


@pytest.mark.parametrize("wrong", [{"connections": 0}, {"per_peer": 0}, {"handshake": 0.0}, {"idle": 0.0}], ids=str)
def test_a_limit_that_lets_nobody_in(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        Limits(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("descriptors", "connections", "handshakes"), [(8192, 1024, 192), (1024, 256, 192), (64, 16, 12)]
)
def test_few_descriptors_are_few_connections_and_some_of_them_are_kept(
    descriptors: int, connections: int, handshakes: int
) -> None:
    found = Limits().with_descriptors(descriptors)
    assert (found.connections, found.handshakes) == (connections, handshakes)
