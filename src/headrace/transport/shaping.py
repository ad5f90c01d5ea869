"""What the kernel says of a TCP connection's path, and a rate that it keeps to. Linux; elsewhere there is nothing."""

from __future__ import annotations

import socket
import struct
import sys
from dataclasses import dataclass
from typing import Final

_INFO_SIZE: Final = 152  # struct tcp_info in linux/tcp.h, up to and with tcpi_min_rtt (Linux 4.6)
_RTT: Final = struct.Struct("=I")  # microseconds
_RTT_AT, _LEAST_AT = 68, 148  # tcpi_rtt, tcpi_min_rtt
_ACKED: Final = struct.Struct("=Q")
_ACKED_AT: Final = 120  # tcpi_bytes_acked
_MAX_PACING_RATE: Final = 47  # SO_MAX_PACING_RATE, asm-generic/socket.h
_RATE: Final = struct.Struct("=Q")  # bytes a second
_UNLIMITED: Final = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Path:
    """rtt: seconds, smoothed. least: the least round trip of the last minutes. acked: bytes that arrived so far."""

    rtt: float
    least: float
    acked: int


class Shaper:
    """Of one socket. One owner thread."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    def path(self) -> Path | None:
        """None where the connection is gone, or this system does not say."""
        try:
            info = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_SIZE)
        except OSError:
            return None
        if len(info) < _INFO_SIZE:
            return None
        rtt, least = (_RTT.unpack_from(info, at)[0] / 1e6 for at in (_RTT_AT, _LEAST_AT))
        return Path(rtt, least, _ACKED.unpack_from(info, _ACKED_AT)[0])

    def limit(self, rate: float | None) -> None:
        """The kernel sends no faster than that, in bytes a second; None: as fast as ever. Of a broken connection:
        nothing happens."""
        try:
            value = _RATE.pack(_UNLIMITED if rate is None else int(rate))
            self._socket.setsockopt(socket.SOL_SOCKET, _MAX_PACING_RATE, value)
        except OSError:
            return


def shaper(sock: socket.socket, platform: str = sys.platform) -> Shaper | None:
    """None where this system has nothing of the kind."""
    made = Shaper(sock)
    return made if platform == "linux" and made.path() is not None else None
