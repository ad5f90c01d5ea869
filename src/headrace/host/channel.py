"""What a share and its worker processes say to each other, and the socket pair on which they say it.

A message is `u32 length · MessagePack`; a lane comes with the descriptor of its socket (SCM_RIGHTS). Both ends are this
user's own processes, started by one another: what comes is not checked as a peer's would be.
"""

from __future__ import annotations

import array
import contextlib
import selectors
import socket
import struct
import threading
from typing import Final

import msgspec

from headrace.errors import ConnectionLostError
from headrace.observe.metrics import Sample
from headrace.observe.times import Spent
from headrace.protocol.sealed import SealedState
from headrace.storage.tree import TreeHandles

LENGTH: Final = struct.Struct(">I")
MAX_MESSAGE: Final = 1 << 28  # bytes; what arrived on a lane and was not used yet is in one
_DESCRIPTOR: Final = array.array("i", [0]).itemsize
_FLAGS: Final = getattr(socket, "MSG_CMSG_CLOEXEC", 0)


class Setup(msgspec.Struct, tag="setup"):
    """The first message: what the worker serves, and how. Its descriptors are inherited.

    buffers: bytes. compress: the highest level, 0 for none. verbosity: the level of the logs. timing: whether small
    reads are timed.
    """

    tree: TreeHandles
    home: str
    io: str
    buffers: int
    compress: int
    verbosity: int
    timing: bool
    limited: bool


class Lane(msgspec.Struct, tag="lane"):
    """A lane is lent; its socket's descriptor comes with it. version, features, peer: as agreed."""

    number: int
    address: str
    version: int
    features: list[str]
    peer: bytes
    state: SealedState


class Limited(msgspec.Struct, tag="limited"):
    """Whether there is a rate limit: then every lane is given back before its next request."""

    on: bool


class Up(msgspec.Struct, tag="up"):
    """The worker is ready for lanes."""


class Figures(msgspec.Struct, array_like=True):
    """Of one lane since it was lent: bytes on the wire, seconds by stage, bytes of files that were served."""

    bytes_in: int
    bytes_out: int
    served: int
    spent: Spent


class Report(msgspec.Struct, tag="report"):
    """Lanes whose figures changed, by number, and what the worker measures. Also a sign of life."""

    lanes: dict[int, Figures]
    samples: list[Sample]


class Back(msgspec.Struct, tag="back"):
    """A lane is given back, before a request that is not for a worker or after what ended it. error: its code, and what
    it says; empty for none."""

    number: int
    figures: Figures
    state: SealedState
    error: str = ""
    message: str = ""


class Log(msgspec.Struct, tag="log"):
    """A log record of the worker's, to be told by the share. about: as observe.logs.about."""

    name: str
    level: int
    text: str
    about: dict[str, str]


ToWorker = Setup | Lane | Limited
FromWorker = Up | Report | Back | Log


class Channel[In]:
    """One end. Any thread may send; one receives. Both raise OSError where the other end is gone or stands still."""

    def __init__(self, sock: socket.socket, incoming: object, *, patience: float | None = None) -> None:
        """incoming: the union of messages that come. patience: seconds that one message may take; None: for ever."""
        self._sock = sock
        self._decoder: msgspec.msgpack.Decoder[In] = msgspec.msgpack.Decoder(incoming)
        self._encoder = msgspec.msgpack.Encoder()
        self._sending = threading.Lock()
        sock.settimeout(None)
        if patience is not None:
            # Not Python's timeout: that would make the socket non-blocking, and one deadline serve both directions.
            value = struct.pack("@ll", int(patience), int(patience % 1 * 1e6))
            for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
                sock.setsockopt(socket.SOL_SOCKET, option, value)

    def send(self, message: ToWorker | FromWorker, descriptor: int | None = None) -> None:
        """Blocks until it was handed over."""
        body = self._encoder.encode(message)
        data = LENGTH.pack(len(body)) + body
        with self._sending:
            sent = socket.send_fds(self._sock, [data], [descriptor]) if descriptor is not None else 0
            self._sock.sendall(memoryview(data)[sent:])

    def readable(self, seconds: float) -> bool:
        """Waits so long for something to receive, the end included."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._sock, selectors.EVENT_READ)
            return bool(selector.select(seconds))

    def receive(self) -> tuple[In, int | None] | None:
        """The next message and the descriptor that came with it; None: the other end was closed."""
        head, descriptors = bytearray(), array.array("i")
        while len(head) < LENGTH.size:
            data, ancillary, _, _ = self._sock.recvmsg(LENGTH.size - len(head), socket.CMSG_SPACE(_DESCRIPTOR), _FLAGS)
            for level, kind, value in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    descriptors.frombytes(value[: len(value) - len(value) % _DESCRIPTOR])
            if not data:
                return None
            head += data
        (length,) = LENGTH.unpack(head)
        if length > MAX_MESSAGE:
            raise ConnectionLostError(f"a message of {length} bytes between a share and its worker")
        body = memoryview(bytearray(length))
        position = 0
        while position < length:
            count = self._sock.recv_into(body[position:])
            if not count:
                return None
            position += count
        return self._decoder.decode(body), descriptors[0] if descriptors else None

    def shut(self) -> None:
        """From any thread: both ends hear that it is over."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """For the one that receives, after `shut`."""
        with self._sending:
            self._sock.close()
