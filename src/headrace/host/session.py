"""One connection to the host: TLS, handshake, requests, goodbye. Runs on a thread of its own."""

from __future__ import annotations

import contextlib
import logging
import os
import ssl
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from headrace.engine.buffers import BufferPool, Buffers
from headrace.engine.compress import Compressors
from headrace.engine.packing import packing_for
from headrace.errors import ConnectionLostError, HeadraceError, LocalDiskError, ProtocolError
from headrace.host.gate import Gate
from headrace.host.guesses import GuessLimit
from headrace.host.limits import HANDSHAKE_TIMEOUT, Limits
from headrace.host.registry import Registry
from headrace.host.requests import RequestHandler
from headrace.host.watch import Watcher
from headrace.observe import logs, metrics, tracing
from headrace.observe.times import Ledger
from headrace.protocol.codes import Code
from headrace.protocol.messages import PHASE_BULK, PUTS, ROLE_CONTROL, Goodbye
from headrace.protocol.session import CLEAR, FEATURES, PUT, SEALED, ZSTD, Agreed, HostHandshake, Versions, error_message
from headrace.storage.manifest import HashCache
from headrace.storage.tree import SharedTree
from headrace.transport.framed import MessageStream
from headrace.transport.identity import Identity
from headrace.transport.pacing import Limit, pace
from headrace.transport.quic.stream import QuicStream
from headrace.transport.tcp import STALL_TIMEOUT, TcpStream
from headrace.transport.trust import Peers

if TYPE_CHECKING:
    from headrace.host.incoming import Incoming
    from headrace.host.workers import Workers
    from headrace.host.writing import Writing

log = logging.getLogger("headrace.host")

Event = dict[str, Any]
Served = TcpStream | QuicStream


@dataclass(frozen=True)
class Share:
    """What every session of one share has in common. Thread-safe.

    compressors: None compresses for nobody. incoming: None where nobody may write.
    """

    tree: SharedTree
    code: Code
    identity: Identity
    peers: Peers
    guesses: GuessLimit
    agent: str
    versions: Versions = Versions()
    hashes: HashCache = field(default_factory=HashCache)
    buffers: Buffers = field(default_factory=BufferPool)
    gate: Gate = field(default_factory=Gate)
    clear: bool = False
    compressors: Compressors | None = field(default_factory=Compressors)
    limit: Limit = field(default_factory=lambda: Limit(None))
    registry: Registry = field(default_factory=Registry)
    watcher: Watcher | None = None
    limits: Limits = Limits()
    incoming: Incoming | None = None
    workers: Workers | None = None
    on_event: Callable[[Event], None] = lambda event: None


class _Policy:
    """The share's policy as one connection's handshake sees it. Implements protocol.session.HostPolicy."""

    def __init__(self, share: Share, address: str) -> None:
        self._share = share
        self._address = address
        self._guessing = False

    def locked_for(self) -> float:
        return self._share.guesses.locked_for(self._address)

    def guess_started(self) -> None:
        self._share.guesses.started(self._address)
        self._guessing = True

    def guess_right(self) -> None:
        self._guessing = False
        self._share.guesses.right(self._address)

    def over(self) -> None:
        """The handshake ended: a guess that was not proved right by now was wrong."""
        if self._guessing:
            self._guessing = False
            self._share.guesses.wrong(self._address)
            log.warning("wrong code from %s (%d so far)", self._address, self._share.guesses.wrong_total)

    def credential(self, peer: bytes) -> bytes | None:
        return self._share.peers.credential(peer, self._share.code)

    def remember(self, peer: bytes, credential: bytes, agent: str) -> None:
        share = self._share
        try:
            share.peers.add(peer, credential, share.code, share.identity.fingerprint, f"{agent} from {self._address}")
        except LocalDiskError as why:
            log.warning("the pairing with %s lasts only as long as this share: %s", self._address, why)


class _Patience:
    """Whether a client that does nothing is borne. It may pause as long as it likes, between requests and while it is
    sent something (a pager does), unless others wait for the buffer that this costs, or the share sets a limit.

    asked_every: seconds without anything on the stream after which it is asked.
    """

    def __init__(self, share: Share, agreed: Agreed, clock: Callable[[], float] = time.monotonic) -> None:
        self._share = share
        self._peer = agreed.peer
        self._clock = clock
        self.writing: Writing | None = None  # who stops in the middle of a chunk holds a buffer as well
        self._moved = -1
        self._since = 0.0
        idle = share.limits.idle
        self.asked_every = STALL_TIMEOUT if idle is None else min(STALL_TIMEOUT, max(idle / 4, 0.01))

    def __call__(self, sending: bool) -> bool:
        if sending or (self.writing and self.writing.holds):
            return not self._share.buffers.contended
        if self._share.limits.idle is None:
            return True
        moved, now = self._share.registry.moved(self._peer), self._clock()
        if moved != self._moved:  # on another connection of the same peer
            self._moved, self._since = moved, now
        return now - self._since < self._share.limits.idle


def serve(stream: Served, share: Share, address: str, granted: Callable[[], None] = lambda: None) -> None:
    """Serves one connection until it ends. Never raises for what a peer does; closes the stream.

    granted: called once the peer is in.
    """
    messages = MessageStream(stream)
    pace(stream, share.limit)
    try:
        stream.set_timeout(share.limits.handshake)
        stream.set_deadline(share.limits.handshake)
        if isinstance(stream, TcpStream):
            stream.handshake(share.limits.handshake)
            # Two ways around TLS's records. QUIC has none.
            agreed = _handshake(messages, share, address, (SEALED, *([CLEAR] if share.clear else [])))
            if agreed.seal:
                stream.seal(agreed.seal)
            if CLEAR in agreed.features:
                messages.clear = stream
        else:
            agreed = _handshake(messages, share, address)
            if agreed.role == ROLE_CONTROL:
                stream.hurry()
        granted()
        stream.set_deadline(None)
        patience = _Patience(share, agreed)
        stream.set_timeout(patience.asked_every)
        stream.patient = patience
        with share.registry.present(stream, agreed, address, share.limit, messages.times) as ledger:
            metrics.HANDSHAKES.add(str(agreed.version))
            with logs.about(peer=agreed.peer.hex()[:8]):
                _requests(messages, share, agreed, address, ledger)
    except (ssl.SSLError, OSError) as why:
        log.debug("no TLS with %s: %s", address, why)  # port scanners; nothing that a user could mend
    except ConnectionLostError as why:
        log.debug("connection to %s ended: %s", address, why.message)
    except HeadraceError as why:
        _tell(messages, why)
        _report(share, why, address)
    finally:
        messages.close()


def _handshake(messages: MessageStream, share: Share, address: str, features: tuple[str, ...] = ()) -> Agreed:
    """features: what this transport has beside those of all."""
    policy = _Policy(share, address)
    handshake = HostHandshake(
        code=share.code,
        fingerprint=share.identity.fingerprint,
        policy=policy,
        entropy=os.urandom,
        name=share.tree.name,
        versions=share.versions,
        features=_offered(share, features),
        agent=share.agent,
    )
    try:
        while handshake.agreed is None:
            message, payload = messages.expect()
            if payload:
                raise ProtocolError("a payload in the handshake")
            messages.send_all(handshake.receive(message))
    finally:
        policy.over()
    messages.enter_session()
    return handshake.agreed


def _requests(messages: MessageStream, share: Share, agreed: Agreed, address: str, ledger: Ledger) -> None:
    peer = {"peer": agreed.peer.hex()[:8], "address": address}
    if agreed.role == ROLE_CONTROL:
        share.on_event(
            {"event": "peer", "state": "connected", "agent": agreed.agent, "protocol": agreed.version, **peer}
        )
    packing = packing_for(share.compressors, messages, agreed, address)
    handler = RequestHandler(
        *(share.tree, share.hashes, messages, agreed, share.buffers, share.gate, share.watcher, packing),
        times=lambda: (ledger.spent(), min(filter(None, (share.limit.rate, share.registry.limits.rate)), default=0.0)),
    )
    writing, patience = _writing(messages, share, agreed), messages.stream.patient
    asked_every = None
    if isinstance(patience, _Patience):
        patience.writing = writing
        asked_every = patience.asked_every if share.limits.idle is not None else None
    started = time.monotonic()
    try:
        if share.workers and isinstance(messages.stream, TcpStream):
            share.workers.lend(messages, messages.stream, agreed, address, handler.served, asked_every)
        while True:
            received = messages.receive()
            if received is None or isinstance(received[0], Goodbye):
                return
            request, payload = received
            if writing and isinstance(request, PUTS):
                with tracing.serving(handler.trace, messages.times):
                    writing.handle(request, payload)
                continue
            if payload:
                raise ProtocolError("a request with a payload")
            if tracing.on():
                with tracing.serving(handler.trace, messages.times):
                    handler.handle(request)
            else:
                handler.handle(request)
    finally:
        handler.close()
        if writing:
            writing.close()
        seconds = {"seconds": round(time.monotonic() - started, 3)}
        if handler.served.bytes:
            share.on_event({"event": "transfer", "direction": "out", "bytes": handler.served.bytes, **seconds, **peer})
        if writing and writing.files + writing.bytes:
            share.on_event(
                {
                    "event": "transfer",
                    "direction": "in",
                    "bytes": writing.bytes,
                    "files": writing.files,
                    **seconds,
                    **peer,
                }
            )
        if agreed.role == ROLE_CONTROL:
            share.on_event(
                {"event": "peer", "state": "gone", "agent": agreed.agent, "protocol": agreed.version, **peer}
            )


def _offered(share: Share, more: Collection[str]) -> set[str]:
    """more: what the transport has beside what all have."""
    kept_back = {name for name, offered in ((ZSTD, share.compressors), (PUT, share.incoming)) if offered is None}
    return {*FEATURES, *more} - kept_back


def _writing(messages: MessageStream, share: Share, agreed: Agreed) -> Writing | None:
    if share.incoming is None or PUT not in agreed.features or agreed.version < PHASE_BULK:
        return None
    from headrace.host.writing import Writing  # most shares are only read

    return Writing(share.incoming, messages, agreed.peer, share.buffers, unpacks=ZSTD in agreed.features)


def _tell(messages: MessageStream, error: HeadraceError) -> None:
    with contextlib.suppress(ConnectionLostError, ssl.SSLError, OSError):
        messages.stream.set_timeout(HANDSHAKE_TIMEOUT)
        if isinstance(error, LocalDiskError):  # this machine's own trouble; its paths are nobody else's business
            error = HeadraceError("the host has a problem of its own and cannot go on")
        messages.send(error_message(error))


def _report(share: Share, error: HeadraceError, address: str) -> None:
    log.info("refused %s: %s", address, error.message)
    share.on_event({"event": "error", "code": error.code, "message": error.message, "address": address})
