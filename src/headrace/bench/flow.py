"""A bare TCP stream through a `netlab`: what the link itself lets through, to measure the others against."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import Final

from headrace.bench.netlab import Lab

_PIECE: Final = bytes(1 << 18)
_TIMEOUT: Final = 60.0  # seconds for one read


def goodput(lab: Lab, amount: int) -> float:
    """Payload in bit/s from b to a, from the connection standing to the last of `amount` bytes."""
    with lab.b.inside():
        listening = socket.create_server((lab.b.address, 0))
    with listening:
        sender = threading.Thread(target=_send, args=(listening, amount), name="flow-sender", daemon=True)
        sender.start()
        with lab.a.inside():
            stream = socket.create_connection(listening.getsockname(), timeout=_TIMEOUT)
        started = time.monotonic()
        buffer, left = bytearray(1 << 20), amount
        with stream:
            while left > 0:
                got = stream.recv_into(buffer)
                if not got:
                    raise ConnectionResetError("the stream ended early")
                left -= got
            seconds = time.monotonic() - started
    sender.join(_TIMEOUT)
    return amount * 8 / seconds


def _send(listening: socket.socket, amount: int) -> None:
    stream, _ = listening.accept()
    with stream, contextlib.suppress(ConnectionError):  # the reader says what went wrong
        for start in range(0, amount, len(_PIECE)):
            stream.sendall(_PIECE[: amount - start])
