"""Who is connected to a share, what went to and fro, and how fast each peer may go."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from headrace.errors import ShareFullError
from headrace.observe.times import Ledger, Spent, StreamTimes
from headrace.protocol.session import Agreed
from headrace.transport.base import Stream
from headrace.transport.pacing import Limit, pace

SHOWN_ID: Final = 8  # hex digits of a peer's id; enough to tell peers apart


@dataclass(frozen=True, slots=True)
class PeerView:
    """One peer at one moment. peer: the beginning of its id, in hex. bytes_*: on the wire, by all its connections since
    it came; who has no connection any more is forgotten. seconds: since it came. agent: what it calls itself."""

    peer: str
    address: str
    agent: str
    protocol: int
    transport: str
    connections: int
    bytes_sent: int
    bytes_received: int
    seconds: float


@dataclass(frozen=True, slots=True)
class View:
    """A share at one moment. clock: seconds of the registry's clock, to tell rates by; bytes_*: of all peers so far."""

    clock: float
    bytes_sent: int
    bytes_received: int
    peers: list[PeerView]


@dataclass(slots=True)
class _Peer:
    """agent and so on: as its latest connection has it. sent, received: bytes of its connections that are over."""

    limit: Limit
    since: float
    ledger: Ledger = field(default_factory=Ledger)
    agent: str = ""
    address: str = ""
    protocol: int = 0
    transport: str = ""
    streams: list[Stream] = field(default_factory=list)
    sent: int = 0
    received: int = 0


class PeerLimits:
    """One rate for every peer, and a limit of its own for each. Thread-safe; holds who is connected, no more."""

    def __init__(self, rate: float | None = None) -> None:
        """rate: bytes a second in each direction; None: no limit. ValueError unless it is positive."""
        Limit(rate)  # for its check
        self.on_change: Callable[[], None] | None = None  # called after the rate was set
        self._rate = rate
        self._lock = threading.Lock()
        self._limits: dict[bytes, Limit] = {}

    @property
    def rate(self) -> float | None:
        """Bytes a second to and from each peer; None: no limit. May be set at any time."""
        return self._rate

    @rate.setter
    def rate(self, rate: float | None) -> None:
        with self._lock:
            Limit(rate)
            self._rate = rate
            for limit in self._limits.values():
                limit.rate = rate
        if self.on_change:
            self.on_change()

    def begin(self, peer: bytes) -> Limit:
        """The limit of a peer that comes."""
        with self._lock:
            return self._limits.setdefault(peer, Limit(self._rate))

    def end(self, peer: bytes) -> None:
        """The peer is gone. All that it got was paid for, so it gains nothing by coming again."""
        with self._lock:
            self._limits.pop(peer, None)


class Registry:
    """The connections of one share that got in. Thread-safe; as large as the number of connections."""

    def __init__(
        self,
        limit_peer: float | None = None,
        *,
        max_peers: int | None = None,
        max_streams: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """limit_peer: bytes a second to each peer, and as many from it; `limits.rate` changes it later.

        max_peers: how many may be connected at once; None: no limit. max_streams: connections of each of them.
        """
        self._max_peers = max_peers
        self._max_streams = max_streams
        self.limits = PeerLimits(limit_peer)
        self._clock = clock
        self._lock = threading.Lock()
        self._peers: dict[bytes, _Peer] = {}
        self._sent = 0  # bytes of connections that are over
        self._received = 0
        self._over = Spent()  # by peers that are gone

    @contextlib.contextmanager
    def present(
        self, stream: Stream, agreed: Agreed, address: str, limit: Limit, times: StreamTimes | None = None
    ) -> Iterator[Ledger]:
        """As long as the block runs, the stream counts as its peer's, and keeps to that peer's limit and to `limit`.
        times: the stream's. What is given is where the time of all the peer's streams goes.

        Raises ShareFullError where one peer more would be too many, or one connection more of this one.
        """
        peer = self._enter(stream, agreed, address)
        # Its own first: whoever waits for that holds nothing of what is there for all.
        pace(stream, peer.limit, limit)
        try:
            with peer.ledger.counting(times or StreamTimes()):
                yield peer.ledger
        finally:
            self._leave(stream, agreed.peer, peer)

    def look(self) -> View:
        """How things stand now."""
        with self._lock:
            now = self._clock()
            peers = [_view(identity, peer, now) for identity, peer in self._peers.items()]
            open_streams = [stream for peer in self._peers.values() for stream in peer.streams]
            sent = self._sent + sum(stream.bytes_out for stream in open_streams)
            received = self._received + sum(stream.bytes_in for stream in open_streams)
        return View(now, sent, received, peers)

    def moved(self, peer: bytes) -> int:
        """Bytes to and from that peer on the connections that it has; it changes while anything travels."""
        with self._lock:
            known = self._peers.get(peer)
            return sum(stream.bytes_in + stream.bytes_out for stream in known.streams) if known else 0

    def spent(self) -> Spent:
        """Where the time of all streams went so far."""
        with self._lock:
            total = self._over
            for peer in self._peers.values():
                total = total.plus(peer.ledger.spent())
        return total

    def _enter(self, stream: Stream, agreed: Agreed, address: str) -> _Peer:
        with self._lock:
            peer = self._peers.get(agreed.peer)
            if peer is None:
                if self._max_peers is not None and len(self._peers) >= self._max_peers:
                    raise ShareFullError(
                        f"this share takes no more than {self._max_peers} at once, and that many are connected"
                    )
                peer = self._peers[agreed.peer] = _Peer(self.limits.begin(agreed.peer), self._clock())
            elif self._max_streams is not None and len(peer.streams) >= self._max_streams:
                raise ShareFullError(
                    f"this share takes no more than {self._max_streams} connections of one peer, and has that many",
                    hint="Is the same home used by several machines? Raise --max-per-peer on the sharing side.",
                )
            peer.agent, peer.address, peer.protocol = agreed.agent, address, agreed.version
            peer.transport = stream.transport
            peer.streams.append(stream)
            return peer

    def _leave(self, stream: Stream, identity: bytes, peer: _Peer) -> None:
        with self._lock:
            peer.streams.remove(stream)
            peer.sent += stream.bytes_out
            peer.received += stream.bytes_in
            self._sent += stream.bytes_out
            self._received += stream.bytes_in
            if not peer.streams:
                del self._peers[identity]
                self._over = self._over.plus(peer.ledger.spent())
                self.limits.end(identity)


def _view(identity: bytes, peer: _Peer, now: float) -> PeerView:
    return PeerView(
        peer=identity.hex()[:SHOWN_ID],
        address=peer.address,
        agent=peer.agent,
        protocol=peer.protocol,
        transport=peer.transport,
        connections=len(peer.streams),
        bytes_sent=peer.sent + sum(stream.bytes_out for stream in peer.streams),
        bytes_received=peer.received + sum(stream.bytes_in for stream in peer.streams),
        seconds=round(now - peer.since, 3),
    )
