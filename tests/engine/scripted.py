"""A host in memory that says what a test wants, on the client's own thread: there is room on the way for all of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.transport.memory import Faults, MemoryStream, memory_pair

from headrace.engine.lane import Lane
from headrace.protocol.messages import MIB, Message
from headrace.transport.framed import MessageStream
from headrace.transport.pacing import Pace


class ScriptedHost:
    """lane: the client's end. near, stream: the two ends of the connection.

    answering: is given each request when the client waits for an answer; without it the test asks with `asked`.
    requests: all that `answering` was given.
    """

    def __init__(self, back: Faults | None = None) -> None:
        self.near, self.stream = memory_pair(None, back, capacity=64 * MIB)
        self.near.set_timeout(0)
        self.stream.set_timeout(0)
        self.answering: Callable[[Any], None] | None = None
        self.requests: list[Message] = []
        self.lane = Lane(MessageStream(_Prompting(self)))
        self.lane.messages.enter_session()
        self._messages = MessageStream(self.stream)
        self._messages.enter_session()

    def asked(self) -> Message:
        """The next request."""
        message, payload = self._messages.expect()
        assert payload == 0
        return message

    def say(self, message: Message, payload: bytes = b"") -> None:
        self._messages.send(message, payload)

    def answer(self) -> None:
        """All that was asked so far, as `answering` has it."""
        while self.answering and (self.near.sent() or not self._messages.idle):
            self.requests.append(self.asked())
            self.answering(self.requests[-1])


class _Prompting:
    """The client's stream: before it waits for bytes the host answers."""

    def __init__(self, host: ScriptedHost) -> None:
        self._host = host
        self._stream: MemoryStream = host.near
        self.bytes_in = self.bytes_out = 0
        self.send = self._stream.send
        self.transport = self._stream.transport
        self.pace_in: Pace | None = None
        self.pace_out: Pace | None = None
        self.patient: Callable[[bool], bool] | None = None
        self.set_timeout = self._stream.set_timeout
        self.set_deadline = self._stream.set_deadline
        self.rtt = self._stream.rtt
        self.close = self._stream.close
        self.abort = self._stream.abort

    def losses(self) -> None:
        """Nothing is ever sent again."""

    def recv_into(self, into: memoryview) -> int:
        self._host.answer()
        return self._stream.recv_into(into)
