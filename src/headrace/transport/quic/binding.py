"""The only module that touches aiopquic: its transport context, without its asyncio classes, and its numbers."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
from typing import Any, Final

from headrace.errors import UnreachableError

# Events of the transport context: spsc_ring.h, and the same in aiopquic.quic.connection.
STREAM_DATA: Final = 0
STREAM_FIN: Final = 1
STREAM_RESET: Final = 2
STOP_SENDING: Final = 3
CLOSE: Final = 4
APP_CLOSE: Final = 5
READY: Final = 6
ALMOST_READY: Final = 7
STREAM_TX_DRAINED: Final = 15
STREAM_DESTROY: Final = 17

# Commands to it.
TX_CLOSE: Final = 131
TX_STREAM_RESET: Final = 132
TX_STOP_SENDING: Final = 133

SENT: Final = 0  # what tx_send_atomic answers; 1 and 2: a ring is full

# fmt: off
_NEEDED: Final = (
    "start", "stop", "wake_up", "drain_rx", "release_batch", "tx_send_atomic", "push_tx_event", "path_quality",
    "create_client_connection", "set_stream_priority", "set_default_stream_priority", "peer_address", "local_address",
    "session_resumed", "tx_data_ring_used", "tx_data_ring_sent", "set_tx_data_drain_pending", "eventfd",
)
# fmt: on


class UnavailableError(UnreachableError):
    """There is no QUIC on this machine."""

    default_hint = "Use --transport tcp."


class Native:
    """What headrace uses of aiopquic. `context()` makes a transport context; see endpoint.Endpoint for its rules."""

    def __init__(self, module: Any) -> None:
        self.context = module.TransportContext
        self.stream_ctx_create = module.stream_ctx_create
        self.stream_ctx_destroy = module.stream_ctx_destroy
        missing = [name for name in _NEEDED if not hasattr(self.context, name)]
        if missing:
            raise AttributeError(f"its TransportContext has no {missing[0]}")


@functools.cache
def load() -> Native:
    """Imports aiopquic, which takes 0.15 s. Raises UnavailableError with the reason."""
    try:
        return Native(importlib.import_module("aiopquic._binding._transport"))
    except ModuleNotFoundError as why:
        raise UnavailableError(
            f"QUIC needs the package aiopquic, which is not installed ({why.name} is missing)"
        ) from why
    except (ImportError, OSError) as why:
        raise UnavailableError(f"QUIC needs the package aiopquic, which does not load here ({why})") from why
    except AttributeError as why:
        version = importlib.metadata.version("aiopquic")
        raise UnavailableError(f"aiopquic {version} is not one that headrace knows ({why})") from why
