"""Tries things out on this machine, for real: each method does what headrace would do, and clears up behind itself.

Methods raise OSError as it comes; what that means is for `checks` to say. Sockets have timeouts.
"""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import shutil
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from headrace.storage.platform import uring
from headrace.transport import ktls

PROBE: Final = os.urandom(64 * 1024)  # bytes that are sent or cloned
AES_SIZE: Final = 4 * 1024 * 1024  # bytes that are encrypted for the clock
AES_PIECE: Final = 256 * 1024  # as in the records of bulk
AES_TAG: Final = 16  # bytes
AES_ROUNDS: Final = 3  # the best counts: on a busy machine one round may have had to wait for its turn
NO_LIMIT: Final = 1 << 63
_FICLONE: Final = 0x40049409  # linux/fs.h


class Machine:
    """This machine. Tests put another one in its place."""

    platform: str = sys.platform

    def sysctl(self, name: str) -> str | None:
        """A kernel setting such as net.core.rmem_max; None where there is none."""
        try:
            return Path("/proc/sys", *name.split(".")).read_text().strip()
        except OSError:
            return None

    def has_module(self, name: str) -> bool:
        """Whether the kernel's modules on this disk include `name`, so that modprobe can load it."""
        listing = Path("/lib/modules", platform.release(), "modules.dep")
        wanted = f"/{name}.ko".encode()
        with contextlib.suppress(OSError), listing.open("rb") as lines:
            return any(wanted in line.partition(b":")[0] for line in lines)
        return False

    def has_program(self, name: str) -> bool:
        return shutil.which(name) is not None

    def make_ring(self) -> None:
        """Sets up an io_uring and reads something through it. Raises platform.NoRingError."""
        uring("tried by doctor").close()

    def send_file(self) -> bool:
        """Sends a temporary file over loopback TCP by sendfile; whether what arrived is what was in it."""
        with tempfile.TemporaryFile() as file, ktls.connected() as (near, far):
            file.write(PROBE)
            file.flush()
            sent = os.sendfile(near.fileno(), file.fileno(), 0, len(PROBE))
            near.shutdown(socket.SHUT_WR)
            arrived = bytearray()
            while piece := far.recv(len(PROBE)):
                arrived += piece
            return sent > 0 and arrived == PROBE[:sent]

    def kernel_tls(self) -> ktls.KernelTls:
        return ktls.probe()

    def use_bbr(self) -> None:
        """Sets BBR on a socket, as every connection to another machine does."""
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"bbr")

    def open_fuse(self) -> None:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))

    def udp_buffers(self, wanted: int) -> tuple[int, int]:
        """(receive, send): bytes that a UDP socket gets when it asks for `wanted`."""
        return self._buffer(socket.SO_RCVBUF, wanted), self._buffer(socket.SO_SNDBUF, wanted)

    def _buffer(self, option: int, wanted: int) -> int:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            try:
                sock.setsockopt(socket.SOL_SOCKET, option, wanted)
            except OSError as why:
                if why.errno != errno.ENOBUFS:  # macOS refuses what is too much, Linux gives less
                    raise
            got = sock.getsockopt(socket.SOL_SOCKET, option)
        return got // 2 if self.platform == "linux" else got  # Linux doubles it, for its own bookkeeping

    def clone(self) -> bool:
        """Clones a temporary file within the current folder; whether the clone has its bytes. Neither has a name."""
        import fcntl

        with tempfile.TemporaryFile(dir=".") as source, tempfile.TemporaryFile(dir=".") as copy:
            source.write(PROBE)
            source.flush()
            fcntl.ioctl(copy.fileno(), _FICLONE, source.fileno())
            return os.pread(copy.fileno(), len(PROBE), 0) == PROBE

    def file_system(self) -> str:
        """The type of the one that the current folder lies on, such as ext4; empty where that cannot be told."""
        here, best, kind = os.path.realpath("."), "", ""
        with contextlib.suppress(OSError):
            for line in Path("/proc/self/mounts").read_text("utf-8", "surrogateescape").splitlines():
                _, point, type_, *_ = line.split(" ")
                inside = here == point or here.startswith(point.rstrip("/") + "/")
                if inside and len(point) >= len(best):  # a later mount over the same point hides the earlier
                    best, kind = point, type_
        return kind

    def aes_rate(self) -> float:
        """Bytes a second of AES-128-GCM on one core, in pieces as bulk has them. Raises ImportError as well."""
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        cipher, piece, sealed = AESGCM(bytes(16)), bytes(AES_PIECE), bytearray(AES_PIECE + AES_TAG)
        cipher.encrypt_into(bytes(12), piece, None, sealed)  # so that the clock sees no first use
        best = float("inf")
        for _ in range(AES_ROUNDS):
            started = time.perf_counter()
            for number in range(AES_SIZE // AES_PIECE):
                cipher.encrypt_into(number.to_bytes(12), piece, None, sealed)
            best = min(best, time.perf_counter() - started)
        return AES_SIZE / max(best, 1e-9)

    def open_files(self) -> tuple[int, int]:
        """(now, at most): how many files and sockets a process may have open. Raises ImportError on Windows."""
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        infinite = resource.RLIM_INFINITY
        return (NO_LIMIT if soft == infinite else soft), (NO_LIMIT if hard == infinite else hard)
