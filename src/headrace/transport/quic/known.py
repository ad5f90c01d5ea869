"""Hosts' certificates on a client's disk, by fingerprint: what aiopquic verifies a connection against is a file."""

from __future__ import annotations

import contextlib
import logging
import os
import ssl
import tempfile
from pathlib import Path

from headrace.errors import LocalDiskError
from headrace.protocol.pake import fingerprint_of

log = logging.getLogger("headrace.quic")


class Known:
    """A folder of FINGERPRINT.pem, and FINGERPRINT.tickets beside each: QUIC's, with which a reconnect resumes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, fingerprint: bytes) -> Path | None:
        """The file of that certificate, if it is there and holds what it should."""
        path = self._path(fingerprint)
        try:
            der = ssl.PEM_cert_to_DER_cert(path.read_text("ascii").strip())
        except (OSError, ValueError):
            return None
        return path if fingerprint_of(der) == fingerprint else None

    def add(self, der: bytes) -> Path:
        """Writes a certificate and syncs nothing: one that is lost is asked for again. Raises LocalDiskError."""
        path = self._path(fingerprint_of(der))
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(prefix=path.name, suffix=".tmp", dir=self._folder)  # mode 0600
            try:
                with os.fdopen(descriptor, "w", encoding="ascii") as file:
                    file.write(ssl.DER_cert_to_PEM_cert(der))
                os.replace(temporary, path)
            except BaseException:
                os.unlink(temporary)
                raise
        except OSError as why:
            raise LocalDiskError(f"the host's certificate cannot be kept in {self._folder} ({why.strerror})") from why
        return path

    def tickets(self, fingerprint: bytes) -> Path | None:
        """Where QUIC keeps this host's session tickets. They are secrets, so the file is made before picoquic would;
        None where it cannot be."""
        path = self._path(fingerprint).with_suffix(".tickets")
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                os.fchmod(descriptor, 0o600)
            finally:
                os.close(descriptor)
            return path
        log.debug("no session tickets in %s", self._folder)
        return None

    def _path(self, fingerprint: bytes) -> Path:
        return self._folder / f"{fingerprint.hex()}.pem"
