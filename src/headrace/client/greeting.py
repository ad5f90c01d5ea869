"""The handshake on a new stream: who we are, what both sides can do."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Final

from headrace._version import __version__
from headrace.errors import ConnectionLostError, ProtocolError, UnreachableError
from headrace.observe import metrics, tracing
from headrace.protocol.codes import Code
from headrace.protocol.messages import ROLE_CONTROL, ROLE_DATA, Message, Trace
from headrace.protocol.session import CLEAR, FEATURES, SEALED, TRACE, Agreed, ClientHandshake, Versions
from headrace.transport.adaptive import TCP, AdaptiveConnection
from headrace.transport.base import Stream
from headrace.transport.framed import MessageStream
from headrace.transport.tcp import STALL_TIMEOUT, TcpStream

HANDSHAKE_TIMEOUT: Final = 20.0


@dataclass(frozen=True, slots=True)
class Credential:
    """What later streams of this session show."""

    peer: bytes
    secret: bytes = field(repr=False)


@tracing.traced("handshake")
def greet(
    connection: AdaptiveConnection,
    versions: Versions,
    *,
    transport: str | None = None,
    code: Code | None = None,
    credential: Credential | None = None,
    role: str = ROLE_CONTROL,
    clear: bool = False,
    first: Message | None = None,
) -> tuple[MessageStream, Agreed]:
    """Runs the handshake on a new stream, by `transport` or as the connection began; closes the stream when it fails.

    first: a request that leaves behind the last message of the handshake, before the host has answered that. Not for
    bulk, which is sealed from there on; its id must be the first that the stream's owner would give.

    Raises UnreachableError, RefusedError and below, NoCommonVersionError, ProtocolError.
    """
    stream = connection.open_stream(transport, bulk=role == ROLE_DATA)
    handshake = ClientHandshake(
        fingerprint=connection.fingerprint,
        entropy=os.urandom,
        code=code,
        peer=credential.peer if credential else b"",
        credential=credential.secret if credential else None,
        versions=versions,
        features=_features(stream, role, clear=clear),
        agent=f"headrace {__version__}",
        role=role,
    )
    messages = MessageStream(stream)
    try:
        stream.set_timeout(HANDSHAKE_TIMEOUT)
        stream.set_deadline(HANDSHAKE_TIMEOUT)
        messages.send_all(_with(first, handshake.start(), handshake))
        if SEALED in handshake.features:
            import headrace.protocol.sealed  # noqa: F401  # its library takes 25 ms, in which the host answers
        while handshake.agreed is None:
            message, payload = messages.expect()
            if payload:
                raise ProtocolError("a payload in the handshake")
            messages.send_all(_with(first, handshake.receive(message), handshake))
        if isinstance(stream, TcpStream):
            if handshake.agreed.seal:
                stream.seal(handshake.agreed.seal)
            if CLEAR in handshake.agreed.features:
                messages.clear = stream
    except ConnectionLostError as why:
        messages.close()
        raise UnreachableError(f"the host hung up before it let us in: {why.message}") from why
    except BaseException:
        messages.close()
        raise
    messages.enter_session()
    stream.set_deadline(None)
    stream.set_timeout(STALL_TIMEOUT)
    metrics.HANDSHAKES.add(str(handshake.agreed.version))
    if TRACE in handshake.agreed.features and (context := tracing.traceparent()):
        messages.send(Trace(context))
    return messages, handshake.agreed


def _with(first: Message | None, flight: list[Message], handshake: ClientHandshake) -> list[Message]:
    """A flight of the handshake, and the first request behind it if it is the last."""
    return [*flight, first] if first and flight and handshake.has_proved else flight


def _features(stream: Stream, role: str, *, clear: bool) -> tuple[str, ...]:
    """What to offer. Only bulk is worth what it takes to seal, and QUIC has no records of its own to leave."""
    if role != ROLE_DATA or stream.transport != TCP:
        return FEATURES
    return (*FEATURES, SEALED, *([CLEAR] if clear else []))
