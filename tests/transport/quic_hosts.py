"""What tests of QUIC share."""

from __future__ import annotations

import socket


def free_udp_port() -> int:
    """A port that was free for UDP, on all addresses, a moment ago."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.bind(("::", 0))
        port: int = sock.getsockname()[1]
        return port
