"""The host's identity: a persistent self-signed certificate, made at first use."""

from __future__ import annotations

import contextlib
import os
import ssl
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from headrace.errors import LocalDiskError
from headrace.protocol.pake import fingerprint_of

FILE: Final = "identity.pem"


@dataclass(frozen=True, slots=True)
class Identity:
    """file: PEM with key and certificate, for ssl.SSLContext.load_cert_chain. fingerprint: SHA-256 of its DER."""

    file: Path
    fingerprint: bytes

    @classmethod
    def load_or_create(cls, home: Path) -> Identity:
        """The identity that lives in `home`. Raises LocalDiskError: not readable, not writable, or open to others."""
        path = home / FILE
        try:
            if not path.exists():
                _create(path)
            mode = stat.S_IMODE(path.stat().st_mode)
            text = path.read_text("ascii")
        except (OSError, UnicodeDecodeError) as why:
            reason = why.strerror if isinstance(why, OSError) else str(why)
            raise LocalDiskError(
                f"the identity in {path} cannot be used ({reason})", hint="Check its permissions, or set HEADRACE_HOME."
            ) from why
        if os.name == "posix" and mode & 0o077:
            raise LocalDiskError(
                f"the private key in {path} can be read by others (mode {mode:03o})", hint=f"Run: chmod 600 {path}"
            )
        start = text.find("-----BEGIN CERTIFICATE-----")
        try:
            der = ssl.PEM_cert_to_DER_cert(text[start:].strip() if start >= 0 else "")
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(path, password="")  # or it would ask for one
        except (ValueError, OSError) as why:
            raise LocalDiskError(
                f"{path} holds no certificate with its key",
                hint="Move it away to get a new identity; every peer then has to pair again.",
            ) from why
        return cls(path, fingerprint_of(der))


def _create(path: Path) -> None:
    """Makes key and certificate; when two do so at once, one of them wins and both use that."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    import tempfile  # here: with what it imports it costs each start some milliseconds

    descriptor, temporary = tempfile.mkstemp(prefix=f"{FILE}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(_self_signed_pem())
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        os.unlink(temporary)


def _self_signed_pem() -> bytes:
    # Imported here: only the first share on a machine needs it, and it costs 80 ms.
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "headrace")])
    # The pin is what is trusted, not the dates; the wide range keeps a wrong clock from mattering.
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC))
        .not_valid_after(datetime.datetime(2120, 1, 1, tzinfo=datetime.UTC))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return private + certificate.public_bytes(serialization.Encoding.PEM)
