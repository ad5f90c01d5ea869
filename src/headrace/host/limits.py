"""How much of a share one address, one peer, and all of them together may take. What the protocol itself limits, such
as frames and paths, is in docs/protocol.md; docs/limits.md lists both."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Self

from headrace.errors import UsageError

HANDSHAKE_TIMEOUT: Final = 10.0  # seconds
_DESCRIPTORS: Final = 4  # for each connection: the rest is for the files that it reads
_KEPT_FREE: Final = 4  # one connection in so many is never taken by one that is not in yet


@dataclass(frozen=True, slots=True)
class Limits:
    """connections: in all; each costs a thread. per_address, per_peer: of them. A client uses a dozen at most, and many
    clients may share an address.

    handshakes, handshakes_per_address: connections that are not in yet; the oldest makes room for the newest.
    handshake: seconds that one may take. idle: seconds in which nothing travels on any connection of a peer, after
    which it is cut off; None: it may rest for as long as it likes, as a mount does.
    """

    connections: int = 1024
    per_address: int = 512
    per_peer: int = 64
    handshakes: int = 192
    handshakes_per_address: int = 64
    handshake: float = HANDSHAKE_TIMEOUT
    idle: float | None = None

    def __post_init__(self) -> None:
        numbers = (self.connections, self.per_address, self.per_peer, self.handshakes, self.handshakes_per_address)
        if min(numbers) < 1 or self.handshake <= 0 or (self.idle is not None and self.idle <= 0):
            raise UsageError("a limit that lets nobody in", hint="Every limit of a share is at least 1.")

    def with_descriptors(self, most: int) -> Self:
        """As far as a process gets that may have so many files and sockets open."""
        connections = min(self.connections, max(1, most // _DESCRIPTORS))
        handshakes = min(self.handshakes, max(1, connections - connections // _KEPT_FREE))
        return replace(self, connections=connections, handshakes=handshakes)
