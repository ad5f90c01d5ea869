"""What a request and its answer over loopback TCP cost with nothing else in them: 8 bytes say how many come back."""

from __future__ import annotations

import os
import socket
import struct
from typing import Final, Self

ASK: Final = struct.Struct("!Q")
LARGEST: Final = 1 << 20  # bytes of an answer
TIMEOUT: Final = 10.0  # seconds


class PingPong:
    """The asking end, and a process of its own that answers. A context manager; to be entered before threads start."""

    def __enter__(self) -> Self:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.settimeout(TIMEOUT)  # the asking end may be killed before it connects
            self._pid = os.fork()
            if not self._pid:
                try:
                    _answer(listener)
                finally:
                    os._exit(0)
            self._socket = socket.create_connection(listener.getsockname())
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = memoryview(bytearray(LARGEST))
        return self

    def exchange(self, size: int) -> None:
        """One request, and its answer of `size` bytes, up to LARGEST. Raises OSError."""
        self._socket.sendall(ASK.pack(size))
        received = 0
        while received < size:
            count = self._socket.recv_into(self._buffer[received:size])
            if not count:
                raise ConnectionResetError("the answering end is gone")
            received += count

    def __exit__(self, *exception: object) -> None:
        self._socket.close()
        os.waitpid(self._pid, 0)


def _answer(listener: socket.socket) -> None:
    """Until the asking end is gone, however it ended."""
    answers = memoryview(bytes(LARGEST))
    connection, _ = listener.accept()
    listener.close()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while asked := connection.recv(ASK.size, socket.MSG_WAITALL):
        connection.sendall(answers[: ASK.unpack(asked)[0]])
