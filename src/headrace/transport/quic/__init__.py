"""Streams over QUIC, by aiopquic (picoquic). Importing this package imports neither aiopquic nor asyncio.

The client's side, beside `tcp.TcpConnection`:

    from headrace.transport.quic.client import QuicConnection

    connection = QuicConnection(
        ("192.168.1.20", 7420),
        pin=fingerprint or None,              # SHA-256 of the certificate; None at first contact
        certificates=home / "certificates",   # a folder for known certificates and session tickets
        limit=Limit(rate) or None,            # bytes a second that all its streams together receive, and send
        timeout=10.0,                         # seconds for the dial
        congestion="bbr1",                    # or "cubic"
    )                                         # UnreachableError, CertificateChangedError, ConnectionLostError
    connection.fingerprint, .address, .transport ("quic"), .limit, .bytes_wire, .resumed
    stream = connection.open_stream(bulk=True)  # a base.Stream; the host hears of it with the first bytes sent
    connection.rtt()                          # seconds, or None
    connection.path()                         # PathFigures: loss, window, bytes
    connection.abort()                        # from any thread
    connection.close()                        # must be called: says goodbye and ends the connection's threads

`unavailable()` says in one sentence why there is no QUIC on this machine, or None. It imports aiopquic (0.15 s).
`probe.probe(address)` asks in one round trip whether UDP passes and a QUIC host listens, without aiopquic.

`probe` is UDP open? · `binding` the only module that touches aiopquic · `endpoint` a UDP socket and its one thread ·
`link` a QUIC connection · `lanes` credit and blocks, without I/O · `stream` the blocking face · `client`, `listener`
the two sides · `known` certificates on disk.
"""

from __future__ import annotations


def unavailable() -> str | None:
    """Why QUIC cannot be used on this machine, in one sentence; None where it can. Imports aiopquic."""
    from headrace.transport.quic import binding

    try:
        binding.load()
    except binding.UnavailableError as why:
        return why.message
    return None
