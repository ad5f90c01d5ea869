"""Who is connected: counted while they are, forgotten after; each peer's limit is shared by its connections."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field

import pytest

from headrace.errors import ShareFullError
from headrace.host.registry import Registry
from headrace.protocol.session import Agreed
from headrace.transport.base import Stream
from headrace.transport.pacing import Limit, Pace

ALICE = b"a" * 16
BOB = b"b" * 16


def agreed(peer: bytes = ALICE, version: int = 8) -> Agreed:
    return Agreed(version, frozenset(), "headrace 1", "7k2m", "control", peer)


@dataclass(eq=False)
class Wire:
    """As much of a Stream as the registry looks at."""

    transport: str = "tcp"
    bytes_in: int = 0
    bytes_out: int = 0
    pace_in: Pace | None = None
    pace_out: Pace | None = None


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Place:
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.registry = Registry(clock=self.clock)
        self.total = Limit(None)

    def join(self, stack: ExitStack, wire: Wire, who: Agreed, address: str = "192.0.2.7") -> Stream:
        stream: Stream = wire  # type: ignore[assignment]
        stack.enter_context(self.registry.present(stream, who, address, self.total))
        return stream


def test_a_peer_is_all_its_connections() -> None:
    place = Place()
    with ExitStack() as stack:
        place.join(stack, Wire(bytes_out=10, bytes_in=1), agreed(), "192.0.2.6")
        place.clock.now += 2
        place.join(stack, Wire(bytes_out=20, bytes_in=2), agreed())
        place.join(stack, Wire("quic", 3, 30), agreed(BOB, 7), "192.0.2.8")
        view = place.registry.look()
    assert (view.clock, view.bytes_sent, view.bytes_received) == (102.0, 60, 6)
    alice, bob = view.peers
    assert (alice.peer, alice.address, alice.connections, alice.seconds) == ("61616161", "192.0.2.7", 2, 2.0)
    assert (alice.bytes_sent, alice.bytes_received, alice.protocol, alice.transport) == (30, 3, 8, "tcp")
    assert (bob.peer, bob.connections, bob.protocol, bob.transport) == ("62626262", 1, 7, "quic")


def test_what_closed_connections_sent_still_counts() -> None:
    place = Place()
    with ExitStack() as stays:
        place.join(stays, Wire(bytes_out=1), agreed())
        with ExitStack() as goes:
            place.join(goes, Wire(bytes_out=10), agreed())
        (alice,) = place.registry.look().peers
        assert (alice.bytes_sent, alice.connections) == (11, 1)
    view = place.registry.look()
    assert view.peers == []
    assert view.bytes_sent == 11
    with ExitStack() as again:
        place.join(again, Wire(), agreed())
        (alice,) = place.registry.look().peers
        assert alice.bytes_sent == 0


def test_a_session_that_fails_is_forgotten_too() -> None:
    place = Place()
    with pytest.raises(OSError, match="broke"), ExitStack() as stack:
        place.join(stack, Wire(), agreed())
        raise OSError("broke")
    assert place.registry.look().peers == []
    assert place.registry.limits._limits == {}


def test_connections_of_a_peer_share_a_limit_and_other_peers_have_their_own() -> None:
    place = Place()
    place.registry.limits.rate = 1e6
    with ExitStack() as stack:
        first, second, other = (place.join(stack, Wire(), agreed(peer)) for peer in (ALICE, ALICE, BOB))
        assert first.pace_out
        assert second.pace_out
        assert other.pace_out
        assert first.pace_out._buckets == second.pace_out._buckets
        # The last one is the limit for all.
        assert first.pace_out._buckets[0] is not other.pace_out._buckets[0]
        assert first.pace_out._buckets[1] is other.pace_out._buckets[1] is place.total.outward
        assert first.pace_in
        assert first.pace_in._buckets[1] is place.total.inward
        assert first.pace_out.portion(10**9) == 20_000
        place.registry.limits.rate = None
        assert first.pace_out.portion(10**9) == 10**9
        place.registry.limits.rate = 2e6
        assert first.pace_out.portion(10**9) == other.pace_out.portion(10**9) == 40_000


def test_a_peer_that_comes_later_has_the_limit_of_then() -> None:
    place = Place()
    place.registry.limits.rate = 1e6
    with ExitStack() as stack:
        stream = place.join(stack, Wire(), agreed())
        assert stream.pace_out
        assert stream.pace_out.portion(10**9) == 20_000


@pytest.mark.parametrize("rate", [0, -1, float("nan")])
def test_a_rate_of_nothing_is_none(rate: float) -> None:
    with pytest.raises(ValueError, match="positive"):
        Registry(rate)
    registry = Registry(5.0)
    with pytest.raises(ValueError, match="positive"):
        registry.limits.rate = rate
    assert registry.limits.rate == 5.0


def test_one_peer_more_than_may_be_there_is_refused_and_further_connections_of_one_are_not() -> None:
    registry = Registry(max_peers=1)
    total = Limit(None)
    with registry.present(Wire(), agreed(ALICE), "192.0.2.6", total):  # type: ignore[arg-type]
        with registry.present(Wire(), agreed(ALICE), "192.0.2.6", total):  # type: ignore[arg-type]
            pass
        with pytest.raises(ShareFullError), registry.present(Wire(), agreed(BOB), "192.0.2.7", total):  # type: ignore[arg-type]
            pytest.fail("it was let in")
        assert [peer.connections for peer in registry.look().peers] == [1]
    with registry.present(Wire(), agreed(BOB), "192.0.2.7", total):  # type: ignore[arg-type]
        assert len(registry.look().peers) == 1
