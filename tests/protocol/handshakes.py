"""Two handshake machines talking to each other, with a policy that remembers what it was asked."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from headrace.errors import HeadraceError, ShareLockedError
from headrace.protocol.codes import Code
from headrace.protocol.messages import Message, decode, encode
from headrace.protocol.session import ClientHandshake, HostHandshake, error_message

CODE: Final = Code.parse("7k2m-xq4c-9dht")
OTHER_CODE: Final = Code.parse("7k2m-xq4c-9dhv")
FINGERPRINT: Final = hashlib.sha256(b"the certificate of a test").digest()
OTHER_FINGERPRINT: Final = hashlib.sha256(b"the certificate of somebody in between").digest()


@dataclass
class Policy:
    """A share's policy. calls: what the handshake asked of it, in order. race: a lock that sets in between."""

    locked: float = 0.0
    race: bool = False
    peers: dict[bytes, bytes] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)

    def locked_for(self) -> float:
        self.calls.append("locked_for")
        return self.locked

    def guess_started(self) -> None:
        if self.race:
            raise ShareLockedError("too many wrong codes: this share takes no new peers for 60 s")
        self.calls.append("guess_started")

    def guess_right(self) -> None:
        self.calls.append("guess_right")

    def credential(self, peer: bytes) -> bytes | None:
        self.calls.append("credential")
        return self.peers.get(peer)

    def remember(self, peer: bytes, credential: bytes, agent: str) -> None:
        self.calls.append("remember")
        self.peers[peer] = credential


def make_client(**overrides: Any) -> ClientHandshake:
    """A client with the right code, unless told otherwise."""
    defaults: dict[str, Any] = {"fingerprint": FINGERPRINT, "entropy": os.urandom, "code": CODE}
    return ClientHandshake(**defaults | overrides)


def make_host(policy: Policy | None = None, **overrides: Any) -> HostHandshake:
    defaults: dict[str, Any] = {"code": CODE, "fingerprint": FINGERPRINT, "entropy": os.urandom, "name": "footage"}
    return HostHandshake(**defaults | {"policy": policy or Policy()} | overrides)


@dataclass
class Talk:
    """What was said: (side, message), and with which error each side ended, if it did."""

    said: list[tuple[str, Message]] = field(default_factory=list)
    client_error: HeadraceError | None = None
    host_error: HeadraceError | None = None

    def of(self, side: str) -> list[Message]:
        return [message for who, message in self.said if who == side]


Tamper = Callable[[str, Message], Message]


def talk(client: ClientHandshake, host: HostHandshake, tamper: Tamper = lambda side, message: message) -> Talk:
    """Lets both talk until nothing is left to say; every message crosses the wire as bytes.

    tamper: what somebody in between makes of a message. A host that fails says so to the client.
    """
    result = Talk()
    waiting = deque(("client", message) for message in client.start())
    while waiting:
        side, message = waiting.popleft()
        result.said.append((side, message))
        arrived = decode(encode(tamper(side, message)))
        if side == "client" and not result.host_error:
            try:
                waiting.extend(("host", answer) for answer in host.receive(arrived))
            except HeadraceError as why:
                result.host_error = why
                waiting.append(("host", error_message(why)))
        elif side == "host" and not result.client_error:
            try:
                waiting.extend(("client", answer) for answer in client.receive(arrived))
            except HeadraceError as why:
                result.client_error = why
    return result
