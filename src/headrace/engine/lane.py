"""A stream with requests in flight: numbers them, and checks that the answers come in order."""

from __future__ import annotations

import threading
from collections import deque

from headrace.errors import ConnectionLostError, ProtocolError, printable
from headrace.protocol.messages import Error, Message
from headrace.transport.framed import MessageStream


class Lane:
    """One stream to the host. Whoever has requests in flight holds `lock`; the rest is for that thread alone."""

    def __init__(self, messages: MessageStream) -> None:
        self.messages = messages
        self.lock = threading.Lock()
        self._last_id = 0
        self._pending: deque[int] = deque()

    def next_id(self) -> int:
        """The id for the next request; it must be sent before another one is numbered."""
        self._last_id = self._last_id % 0xFFFFFFFF + 1
        self._pending.append(self._last_id)
        return self._last_id

    def part(self) -> tuple[Message, int]:
        """The next part of the answer to the oldest request, and its payload's length in bytes.

        Raises ConnectionLostError, ProtocolError. An Error that answers the request is returned, not raised.
        """
        message, payload = self.messages.expect()
        answers = getattr(message, "id", None)
        if isinstance(message, Error) and answers == 0:
            raise ConnectionLostError(f"the host ended the connection: {printable(message.message)}")
        if not self._pending or answers != self._pending[0]:
            raise ProtocolError("the host answered something that it was not asked")
        return message, payload

    def answered(self) -> None:
        """The oldest request's answer is complete."""
        self._pending.popleft()

    def answer(self) -> tuple[Message, int]:
        """As `part`, for an answer that has only one."""
        received = self.part()
        self.answered()
        return received
