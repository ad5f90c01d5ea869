"""A stream with requests in flight: numbers them, and checks that the answers come in order."""

from __future__ import annotations

import logging
import threading
from collections import deque
from typing import Final

from headrace.engine.progress import Lane as Counters
from headrace.engine.unpack import Unpacker
from headrace.errors import (
    ConnectionLostError,
    EndedByHostError,
    ProtocolError,
    ShareFullError,
    from_wire,
    printable,
)
from headrace.protocol.messages import NOT_PACKED, Batch, Chunk, Data, Error, Goodbye, Message
from headrace.transport.framed import MessageStream

log = logging.getLogger("headrace.lane")

_ENDS: Final = (Error, Goodbye)  # what may say that the host ends the connection
LAST_WORDS: Final = 1.0  # seconds in which they come, if there are any


class Lane:
    """One stream to the host. Whoever has requests in flight holds `lock`; the rest is for that thread alone.

    batches, blocks: whether the host at its other end answers GetBatch; GetBlocks and GetRanges. packs: whether both
    sides take what is compressed; zstd is what the host is asked for. counters: of whoever uses the lane now.
    """

    def __init__(
        self, messages: MessageStream, *, batches: bool = False, blocks: bool = False, packs: bool = False
    ) -> None:
        self.messages = messages
        self.times = messages.times
        self.batches = batches
        self.blocks = blocks
        self.packs = packs
        self.zstd = NOT_PACKED
        self.counters = Counters()
        self.unpacker = Unpacker()
        self.lock = threading.Lock()
        self._last_id = 0
        self._pending: deque[int] = deque()
        self._unsent: list[Message] = []
        self._arrived: tuple[Message, int] | None = None
        self.heard = 0  # answers so far, and parts of answers

    def acquire(self) -> None:
        """Takes `lock`. Raises ConnectionLostError where whoever had it last left the lane of no use."""
        self.lock.acquire()
        if not self.idle:
            self.lock.release()
            raise ConnectionLostError("the connection broke in the middle of an answer")

    @property
    def idle(self) -> bool:
        """Whether every answer was read. A lane that was left in the middle of one is of no further use."""
        return not self._pending and self.messages.idle

    def next_id(self) -> int:
        """The id for the next request; it must be posted before another one is numbered."""
        self._last_id = self._last_id % 0xFFFFFFFF + 1
        self._pending.append(self._last_id)
        return self._last_id

    def left(self, request_id: int) -> None:
        """A request with the first id went out before this lane was made."""
        if self.next_id() != request_id:
            raise ValueError(f"request {request_id} is not the first of its lane")

    def post(self, request: Message) -> None:
        """The request leaves with the next wait for an answer, together with the others that were posted till then:
        one encryption and one system call for many small requests."""
        self._unsent.append(request)

    def send(self, request: Message, payload: memoryview) -> None:
        """A request with a payload leaves at once, after what was posted; blocks. The payload may be reused afterwards.
        Raises ConnectionLostError."""
        self.flush()
        try:
            self.messages.send(request, payload)
        except ConnectionLostError:
            self._hear_why()
            raise

    def flush(self) -> None:
        """What was posted leaves now. Raises ConnectionLostError."""
        if self._unsent:
            unsent, self._unsent = self._unsent, []
            try:
                self.messages.send_all(unsent)
            except ConnectionLostError:
                self._hear_why()
                raise

    def ask(self, request: Message) -> tuple[Message, int]:
        """As `post` and `part` of a lane that has nothing else under way."""
        try:
            self.messages.send(request)
        except ConnectionLostError:
            self._hear_why()
            raise
        return self._expect()

    def put_back(self, message: Message, payload: int) -> None:
        """What `ask` gave, for the next `part` to give once more."""
        self._arrived = message, payload

    def wait(self) -> int:
        """Until the head of the next answer is here; `part` then gives it. The length of its payload. Raises as `part`
        does.

        Who takes a buffer for the payload only after this never holds one while the host waits for one itself.
        """
        if self._arrived is None:
            self._arrived = self._receive()
            self.heard += 1
        return self._arrived[1]

    def part(self) -> tuple[Message, int]:
        """Sends what was posted, then receives the next part of the oldest request's answer, and its payload's length.

        Raises ConnectionLostError, ProtocolError. An Error that answers the request is returned, not raised.
        """
        self.wait()
        arrived, self._arrived = self._arrived, None
        assert arrived
        return arrived

    def _receive(self) -> tuple[Message, int]:
        self.flush()
        return self._expect()

    def _expect(self) -> tuple[Message, int]:
        message, payload = self.messages.expect()
        if isinstance(message, _ENDS):
            _raise_if_over(message)
        answers = getattr(message, "id", None)
        if not self._pending or answers != self._pending[0]:
            raise ProtocolError("the host answered something that it was not asked")
        if payload and not isinstance(message, (Chunk, Data, Batch)):
            raise ProtocolError(f"the host sent {type(message).__name__} with a payload")
        return message, payload

    def _hear_why(self) -> None:
        """The host takes nothing any more. What it said last may lie here, and tells more than that."""
        try:
            self.messages.stream.set_deadline(LAST_WORDS)
            _raise_if_over(self.messages.expect()[0])
        except EndedByHostError:
            raise
        except (ConnectionLostError, ProtocolError, OSError) as also:  # OSError: it was closed on this side
            log.debug("the host said nothing more (%s)", also)

    def answered(self) -> None:
        """The oldest request's answer is complete."""
        self._pending.popleft()

    def answer(self) -> tuple[Message, int]:
        """As `part`, for an answer that has only one."""
        received = self.part()
        self.answered()
        return received


def _raise_if_over(message: Message) -> None:
    """Where the host ends the whole connection: why it does."""
    if isinstance(message, Error) and message.id == 0:
        if message.code == ShareFullError.code:  # at the beginning, before anything was answered
            raise from_wire(message.code, message.message)
        raise EndedByHostError(f"the host ended the connection: {printable(message.message)}")
    if isinstance(message, Goodbye):
        raise EndedByHostError(f"the host said goodbye: {printable(message.reason) or 'it gave no reason'}")
