"""Kernel TLS: whether this machine has it, found out by using it, and whether a given socket is under it.

With it the kernel seals and opens TLS's records, so that sendfile works on an encrypted connection. It takes a kernel
with the module `tls` and an OpenSSL that was built for it.
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import ssl
import struct
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from headrace.errors import HeadraceError
from headrace.transport.identity import Identity
from headrace.transport.tcp import client_context, server_context

TIMEOUT: Final = 5.0  # seconds that a handshake over loopback may take
_TCP_ULP: Final = 31  # linux/tcp.h
_SOL_TLS: Final = 282  # linux/socket.h
_TLS_TX: Final = 1  # linux/tls.h
_CRYPTO_INFO: Final = struct.Struct("=HH")  # struct tls_crypto_info: version, cipher

Lack = Literal["system", "python", "module", "kernel", "openssl", "loopback"]


@dataclass(frozen=True, slots=True)
class KernelTls:
    """What `probe` found. reason: a sentence without its full stop. lack: what is to blame; None where it is ok."""

    status: Literal["ok", "missing"]
    reason: str
    lack: Lack | None = None


def active(sock: socket.socket) -> bool:
    """Whether the kernel seals what is sent on this TLS connection. False also where the system cannot be asked."""
    try:
        info = sock.getsockopt(_SOL_TLS, _TLS_TX, _CRYPTO_INFO.size)
    except OSError:  # no kernel TLS, none on this socket, or no keys yet
        return False
    return len(info) == _CRYPTO_INFO.size and _CRYPTO_INFO.unpack(info)[0] != 0


def attach(sock: socket.socket) -> None:
    """Puts a connected TCP socket under the kernel's TLS, still without keys. Raises OSError where there is none."""
    sock.setsockopt(socket.IPPROTO_TCP, _TCP_ULP, b"tls")


def probe(
    *,
    platform: str = sys.platform,
    option: int | None = getattr(ssl, "OP_ENABLE_KTLS", None),
    attach: Callable[[socket.socket], None] = attach,
    active: Callable[[socket.socket], bool] = active,
) -> KernelTls:
    """Tries it over loopback: first the kernel, then OpenSSL on top of it. Never raises, and takes at most seconds.

    The arguments stand in for the system, in tests.
    """
    if platform != "linux":
        return KernelTls("missing", f"not on this system ({platform})", "system")
    if option is None:
        return KernelTls("missing", "this Python's ssl has no OP_ENABLE_KTLS; it needs OpenSSL 3", "python")
    try:
        with connected() as (near, _):
            try:
                attach(near)
            except OSError as why:
                return _refused(why)
        return _by_openssl(option, active)
    except (OSError, ValueError, ImportError, HeadraceError) as why:
        return KernelTls("missing", f"it could not be tried over loopback ({why})", "loopback")


def _refused(why: OSError) -> KernelTls:
    if why.errno == errno.ENOENT:
        return KernelTls("missing", "this kernel has none, or has not loaded it", "module")
    return KernelTls("missing", f"the kernel refuses it ({why.strerror or why})", "kernel")


def _by_openssl(option: int, active: Callable[[socket.socket], bool]) -> KernelTls:
    import tempfile  # here: with what it imports it costs each start some milliseconds

    with tempfile.TemporaryDirectory(prefix="headrace-") as folder, connected() as (near, far):
        server = server_context(str(Identity.load_or_create(Path(folder)).file))
        client = client_context()
        server.options |= option
        client.options |= option
        with (
            client.wrap_socket(near, do_handshake_on_connect=False) as dialler,
            server.wrap_socket(far, server_side=True, do_handshake_on_connect=False) as listener,
        ):
            _shake(dialler, listener)
            if active(dialler):
                return KernelTls("ok", f"{ssl.OPENSSL_VERSION} hands connections over to the kernel")
    return KernelTls(
        "missing", f"the kernel has it, but {ssl.OPENSSL_VERSION} does not use it: it was built without", "openssl"
    )


def _shake(*ends: ssl.SSLSocket) -> None:
    """Both ends' handshakes, on one thread."""
    waiting = list(ends)
    deadline = time.monotonic() + TIMEOUT
    for end in ends:
        end.setblocking(False)
    while waiting:
        for end in list(waiting):
            with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError):
                end.do_handshake()
                waiting.remove(end)
        if waiting:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select(waiting, [], [], left)[0]:
                raise TimeoutError("the TLS handshake took too long")


@contextlib.contextmanager
def connected() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends of one TCP connection over loopback, with a timeout."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(TIMEOUT)
        near = socket.create_connection(server.getsockname(), TIMEOUT)
        with near:
            far, _ = server.accept()
            with far:
                far.settimeout(TIMEOUT)
                yield near, far
