"""One QUIC connection, either side: its streams, and what aiopquic says about it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from headrace.errors import ConnectionLostError, ProtocolError
from headrace.transport.quic import binding, lanes
from headrace.transport.quic.lanes import KIB, Inflow
from headrace.transport.quic.stream import RING, QuicStream

if TYPE_CHECKING:
    from headrace.transport.quic.endpoint import Endpoint

log = logging.getLogger("headrace.quic")

CERTIFICATE_STREAM: Final = 3  # the host's first unidirectional stream
CERTIFICATE_LIMIT: Final = 16 * KIB
NO_ERROR: Final = 0  # application error codes, for resets and closes
BROKE_RULES: Final = 1
REFUSED: Final = 2


@dataclass(frozen=True, slots=True)
class PathFigures:
    """What picoquic says about the path, as of its last word. Times in seconds, sizes in bytes.

    sent, lost: packets. spurious: of those, lost ones that had arrived after all. pacing_rate: bytes a second.
    bytes_out, bytes_in: all of this connection's datagrams' payload.
    """

    rtt: float = 0.0
    rtt_min: float = 0.0
    window: int = 0
    in_flight: int = 0
    pacing_rate: int = 0
    sent: int = 0
    lost: int = 0
    spurious: int = 0
    bytes_out: int = 0
    bytes_in: int = 0

    @classmethod
    def of(cls, told: dict[str, int]) -> PathFigures:
        return cls(
            rtt=told["rtt"] / 1e6,
            rtt_min=told["rtt_min"] / 1e6,
            window=told["cwin"],
            in_flight=told["bytes_in_transit"],
            pacing_rate=told["pacing_rate"],
            sent=told["sent"],
            lost=told["lost"],
            spurious=told["spurious_losses"],
            bytes_out=told["bytes_sent"],
            bytes_in=told["bytes_received"],
        )


class Link:
    """All methods want the endpoint's lock held. `on_stream` is told of streams that the peer opened, by the endpoint's
    thread and with the lock, once the handshake is over: before that, bytes could be replayed ones."""

    def __init__(self, endpoint: Endpoint, connection: int, *, on_stream: Callable[[QuicStream], None] | None) -> None:
        """connection: aiopquic's pointer to it. on_stream: None on the client's side, where the host opens none."""
        self.endpoint = endpoint
        self.connection = connection
        self.began = endpoint.clock()
        self.idle_since = self.began
        self.ready = False
        self.closed: str | None = None  # why, once it is
        self.ended = False  # whether picoquic is done with it
        self.code = 0  # the peer's, or QUIC's, for closing
        self.resumed = False
        self.peer: tuple[str, int] | None = None
        self.local: tuple[str, int] | None = None
        self.streams: dict[int, QuicStream] = {}
        self.certificate = bytearray()
        self.certificate_whole = False
        self._on_stream = on_stream
        self._early: list[QuicStream] = []
        self._contexts: set[int] = set()  # aiopquic's stream states that we hold a reference to
        self._next = 0
        self._figures = PathFigures()

    # ---- events --------------------------------------------------------------------------------------------------

    def event(self, kind: int, number: int, data: memoryview | None, code: int, context: int) -> None:
        """One event of aiopquic's."""
        if context and kind in (binding.STREAM_DATA, binding.STREAM_FIN, binding.STREAM_RESET, binding.STOP_SENDING):
            self._contexts.add(context)
        try:
            if kind in (binding.STREAM_DATA, binding.STREAM_FIN):
                self._arrived(number, data, context, last=kind == binding.STREAM_FIN)
            elif kind == binding.STREAM_RESET and number in self.streams:
                self.streams[number].fail("the other side broke the connection off")
            elif kind == binding.STOP_SENDING:
                self._told_to_stop(number)
            elif kind == binding.STREAM_TX_DRAINED and number in self.streams:
                self.streams[number].drained()
            elif kind == binding.STREAM_DESTROY:
                self._contexts.discard(context)
                self._released(number)
            elif kind == binding.READY and not self.closed:
                self._stands()
            elif kind in (binding.CLOSE, binding.APP_CLOSE):
                self.end("the other side ended the connection" if self.ready else "the QUIC handshake failed", code)
        except ProtocolError as why:
            self.endpoint.count("quic_rules_broken")
            self.close(BROKE_RULES)
            self.fail(why.message)

    def _stands(self) -> None:
        native = self.endpoint.native_context
        self.ready = True
        self.idle_since = self.endpoint.clock()
        self.resumed = native.session_resumed(self.connection)
        self.peer = native.peer_address(self.connection)
        self.local = native.local_address(self.connection)
        self.path()
        early, self._early = self._early, []
        for stream in early:
            self._hand_over(stream)

    def _arrived(self, number: int, data: memoryview | None, context: int, *, last: bool) -> None:
        if self.closed:
            return  # the peer has not heard of it yet
        stream = self.streams.get(number)
        if stream is None and number & 3 == 0 and self._on_stream:
            stream = self._opened_by_peer(number, context)
        if stream is not None:
            stream.arrived(data, last=last)
        elif number == CERTIFICATE_STREAM and not self._on_stream:
            self.certificate += data or b""
            self.certificate_whole = last
            if len(self.certificate) > CERTIFICATE_LIMIT:
                raise ProtocolError("the other side's certificate does not end")
        else:
            raise ProtocolError("the other side opened a stream that is not its to open")

    def _opened_by_peer(self, number: int, context: int) -> QuicStream:
        inflow = Inflow(lanes.FIRST_TO_HOST, lanes.LARGEST_HOST_WINDOW)
        stream = QuicStream(self, number, context, inflow=inflow, credit=lanes.FIRST_TO_CLIENT)
        stream.sent_any = True
        self.streams[number] = stream
        if self.ready:
            self._hand_over(stream)
        else:
            self._early.append(stream)
        return stream

    def _hand_over(self, stream: QuicStream) -> None:
        assert self._on_stream is not None
        self._on_stream(stream)

    def _told_to_stop(self, number: int) -> None:
        stream = self.streams.get(number)
        if stream is not None and not stream.released:
            # What is told to stop has to reset (RFC 9000, section 3.5); after our own end that changes nothing.
            self._command(binding.TX_STREAM_RESET, stream, NO_ERROR)
            stream.refused()

    def _released(self, number: int) -> None:
        stream = self.streams.pop(number, None)
        if stream is not None:
            stream.released = True
            stream.drained()
            if not self.streams:
                self.idle_since = self.endpoint.clock()

    # ---- for streams ---------------------------------------------------------------------------------------------

    def open(self) -> QuicStream:
        """A new stream of the client's. Nothing is sent yet; `prioritise` may be called. Raises ConnectionLostError."""
        if self.closed:
            raise ConnectionLostError(self.closed)
        inflow = Inflow(lanes.FIRST_TO_CLIENT, lanes.LARGEST_CLIENT_WINDOW)
        stream = QuicStream(self, self._next, self._new_context(), inflow=inflow, credit=lanes.FIRST_TO_HOST)
        self.streams[self._next] = stream
        self._next += 4
        return stream

    def _new_context(self) -> int:
        context: int = self.endpoint.native.stream_ctx_create()
        self._contexts.add(context)
        return context

    def push(self, stream: QuicStream, data: bytes, *, last: bool = False) -> bool:
        """Puts bytes into the stream's ring, all or none; False where there is no room now.

        Raises ConnectionLostError."""
        if self.closed:
            raise ConnectionLostError(self.closed)
        if not stream.context:
            stream.context = self._new_context()
        return self._pushed(stream.number, stream.context, data, last=last)

    def _pushed(self, number: int, context: int, data: bytes, *, last: bool) -> bool:
        native = self.endpoint.native_context
        answer: int = native.tx_send_atomic(number, data, last, self.connection, context, RING)
        return answer == binding.SENT

    def push_word(self, stream: QuicStream, word: bytes) -> None:
        """Sends a grant, as soon as there is room; senders leave some."""
        self._soon(stream, lambda: self.push(stream, word))

    def owes(self, stream: QuicStream) -> bool:
        """Whether a grant still waits for room."""
        return self.endpoint.owes(stream)

    def _soon(self, stream: QuicStream, call: Callable[[], bool]) -> None:
        """Once `call` finds room, unless the stream is gone by then."""
        self.endpoint.soon(lambda: bool(self.closed or stream.released) or call(), stream)

    def send_certificate(self, der: bytes) -> None:
        """The host's own, as the connection stands."""
        context = self._new_context()
        self.endpoint.soon(lambda: bool(self.closed) or self._pushed(CERTIFICATE_STREAM, context, der, last=True), self)

    def ring(self, stream: QuicStream) -> tuple[int, int]:
        """Bytes that wait in the stream's ring, and all that ever left it."""
        if self.closed or stream.released or not stream.context:
            return 0, 0
        native = self.endpoint.native_context
        return native.tx_data_ring_used(stream.context), native.tx_data_ring_sent(stream.context)

    def still_holds(self, stream: QuicStream, used: int) -> bool:
        """Asks to be told when bytes leave the ring; False where some of `used` have left it already."""
        if self.closed or stream.released or not stream.context:
            return False
        self.endpoint.native_context.set_tx_data_drain_pending(stream.context)
        return self.ring(stream)[0] >= used

    def finish(self, stream: QuicStream, *, unread: bool) -> None:
        """The stream's own end, behind what it sent. unread: the peer need not go on sending."""
        if self.closed or stream.released:
            return
        if not stream.sent_any:
            self._forget(stream)
            return
        self._soon(stream, lambda: self.push(stream, b"", last=True))
        if unread:
            self._command(binding.TX_STOP_SENDING, stream, NO_ERROR)

    def give_up(self, now: float, patience: float) -> bool:
        """Resets streams that this side closed and of whose rest the peer took nothing for `patience` seconds: each
        holds a ring, and perhaps something that waits for room in it. Whether any stream is in use, or moves."""
        busy = False
        for stream in list(self.streams.values()):
            if not stream.closed:
                busy = True
                continue
            waiting, sent = self.ring(stream)
            if sent != stream.left:
                stream.left, stream.left_at = sent, now
                busy = True
            elif waiting and now - stream.left_at >= patience:
                self.endpoint.count("quic_streams_given_up")
                self.endpoint.forget(stream)
                self.reset(stream)
        return busy

    def reset(self, stream: QuicStream) -> None:
        """Both directions, at once."""
        if self.closed or stream.released:
            return
        if not stream.sent_any:
            self._forget(stream)
            return
        self._command(binding.TX_STREAM_RESET, stream, REFUSED)
        self._command(binding.TX_STOP_SENDING, stream, REFUSED)

    def _forget(self, stream: QuicStream) -> None:
        """One that QUIC never heard of."""
        self.streams.pop(stream.number, None)
        stream.released = True
        self._contexts.discard(stream.context)
        self.endpoint.native.stream_ctx_destroy(stream.context)

    def prioritise(self, stream: QuicStream, priority: int) -> None:
        """The lower goes first; new streams have BULK."""
        if not self.closed and not stream.released:
            self.endpoint.native_context.set_stream_priority(self.connection, stream.number, priority)

    def _command(self, command: int, stream: QuicStream, code: int) -> None:
        native = self.endpoint.native_context

        def post() -> bool:
            try:
                native.push_tx_event(
                    command, stream.number, error_code=code, cnx_ptr=self.connection, stream_ctx=stream.context
                )
            except BufferError:
                return False
            native.wake_up()
            return True

        self._soon(stream, post)

    # ---- the path ------------------------------------------------------------------------------------------------

    def path(self) -> PathFigures:
        """As of picoquic's last word, which this asks for anew."""
        if not self.closed:
            told: dict[str, Any] = self.endpoint.native_context.path_quality(self.connection)
            if told:
                self._figures = PathFigures.of(told)
        return self._figures

    def rtt(self) -> float | None:
        """Seconds; None before the first measurement."""
        return self.path().rtt or None

    # ---- the end -------------------------------------------------------------------------------------------------

    def close(self, code: int = NO_ERROR) -> None:
        """Tells the peer. What the streams still hold is lost; see Endpoint.linger."""
        if self.closed:
            return
        native = self.endpoint.native_context

        def post() -> bool:
            if self.ended:
                return True
            try:
                native.push_tx_event(binding.TX_CLOSE, 0, error_code=code, cnx_ptr=self.connection)
            except BufferError:
                return False
            native.wake_up()
            return True

        self.endpoint.soon(post, self)

    def fail(self, reason: str) -> None:
        """Every stream fails; nothing is sent any more. picoquic may still be at work with its streams."""
        if self.closed:
            return
        self.path()
        self.closed = reason
        for stream in self.streams.values():
            stream.fail(reason)
        self.endpoint.changed.notify_all()

    def end(self, reason: str, code: int = 0) -> None:
        """picoquic is done with it. Nothing of aiopquic's is touched from here on."""
        self.code, self.ended = code, True
        self.fail(reason)
        for context in self._contexts:
            self.endpoint.native.stream_ctx_destroy(context)
        self._contexts.clear()
        self.streams.clear()
        self.endpoint.ended(self)
