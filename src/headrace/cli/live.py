"""What a running share or get says to `headrace status`, and the limits it lets itself be given while it runs."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from headrace._version import __version__
from headrace.cli.progress import View, progress_event
from headrace.errors import UsageError, printable
from headrace.observe import control

if TYPE_CHECKING:
    from headrace.client.session import Session
    from headrace.client.target import Target
    from headrace.host.server import ShareServer

Event = dict[str, Any]
Rates = Mapping[str, float | None]


class LiveShare:
    """Implements observe.control.Program. tell: is given a `limit` event when limits were changed."""

    def __init__(self, server: ShareServer, tell: Callable[[Event], None]) -> None:
        self._server = server
        self._tell = tell
        self._started = time.monotonic()

    def status(self) -> Event:
        """Rates are the reader's business: it sees the counters twice, with the clock."""
        server = self._server
        view = server.registry.look()
        return {
            "kind": "share",
            "pid": os.getpid(),
            "version": __version__,
            "name": server.name,
            "share": server.code.share,
            "port": server.port,
            "addresses": server.addresses,
            "transports": list(server.transports),
            "write": server.incoming is not None,
            "workers": server.workers,
            "seconds": round(time.monotonic() - self._started, 3),
            **self._limits(),
            "clock": view.clock,
            "bytes_sent": view.bytes_sent,
            "bytes_received": view.bytes_received,
            "peers": [asdict(peer) for peer in view.peers],
        }

    def limit(self, rates: Rates) -> Event:
        if "limit_rate" in rates:
            self._server.limit.rate = rates["limit_rate"]
        if "limit_peer" in rates:
            self._server.limit_peer.rate = rates["limit_peer"]
        self._tell({"event": "limit", **self._limits()})
        return self._limits()

    def _limits(self) -> Event:
        return {"limit_rate": self._server.limit.rate, "limit_peer": self._server.limit_peer.rate}


class LiveTransfer:
    """Implements observe.control.Program. kind: `get` or `put`. look: how far the transfer is; from any thread."""

    def __init__(
        self,
        kind: str,
        session: Session,
        target: Target,
        dest: str | None,
        look: Callable[[], View],
        tell: Callable[[Event], None],
    ) -> None:
        self._kind = kind
        self._session = session
        self._target = target
        self._dest = dest
        self._look = look
        self._tell = tell

    def status(self) -> Event:
        session, target = self._session, self._target
        below = f"/{printable(os.fsdecode(bytes(target.path)))}" if target.path else ""
        progress = progress_event(self._look())
        del progress["event"]
        return {
            "kind": self._kind,
            "pid": os.getpid(),
            "version": __version__,
            "name": session.agreed.name,
            "share": session.agreed.share,
            "target": target.address + below,  # the code is no part of it
            "dest": None if self._dest is None else printable(self._dest),
            "transport": session.transport,
            "protocol": session.agreed.version,
            "streams": session.streams,
            "limit_rate": session.limit.rate,
            **progress,
        }

    def limit(self, rates: Rates) -> Event:
        if "limit_peer" in rates:
            raise UsageError(f"a {self._kind} has no limit per peer", hint="Use --limit-rate.")
        self._session.limit.rate = rates["limit_rate"]
        changed = {"limit_rate": self._session.limit.rate}
        self._tell({"event": "limit", **changed})
        return changed


@contextlib.contextmanager
def open_to_status(program: control.Program, kind: str) -> Iterator[None]:
    """The control socket is there as long as the block runs, where there can be one."""
    socket = control.start(kind, program)
    try:
        yield
    finally:
        if socket:
            socket.close()
