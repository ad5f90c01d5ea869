"""SPAKE2 over Ed25519 from the code's secret, bound to the host's certificate.

The identities that go into the SPAKE2 transcript carry the fingerprint of the certificate that each side sees, so a
man in the middle, who must show a certificate of his own, ends with a key that matches nobody's. Confirmation and the
credential are HKDF-SHA256 (RFC 5869) of that key. SPAKE2 by the `spake2` package; its M, N and transcript are its own,
not those of RFC 9382.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from headrace.protocol.codes import Code

KEY_SIZE: Final = 32
PEER_SIZE: Final = 16
FINGERPRINT_SIZE: Final = 32  # SHA-256 of the certificate in DER
ELEMENT_SIZE: Final = 33  # the side, `A` or `B`, and a point of Ed25519
_FIELD: Final = 2**255 - 19


class PakeFailedError(Exception):
    """The other side's element is invalid; by itself it says nothing about the code."""


@dataclass(frozen=True, slots=True)
class PairingKeys:
    """What both sides hold after a successful exchange. None of it ever travels, but for the two MACs."""

    client_mac: bytes = field(repr=False)
    host_mac: bytes = field(repr=False)
    peer: bytes
    credential: bytes = field(repr=False)


def _hkdf(key: bytes, label: bytes, size: int) -> bytes:
    """HKDF-SHA256 for outputs of at most one hash block (32 bytes), which is all that is needed here."""
    pseudorandom = hmac.digest(b"headrace", key, "sha256")
    return hmac.digest(pseudorandom, label + b"\x01", "sha256")[:size]


class _Exchange:
    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.element: bytes = engine.start()

    def finish(self, element: bytes) -> PairingKeys:
        """The keys, given the other side's element. Raises PakeFailedError for an element that is none."""
        from spake2 import SPAKEError
        from spake2.ed25519_basic import NotOnCurve

        # The package ignores what follows the 32nd byte and takes y above the field, and by that or by a sign bit also
        # the identity in another spelling: so exactly one spelling of each point, and none where x is 0.
        if len(element) != ELEMENT_SIZE or not 1 < int.from_bytes(element[1:], "little") % (1 << 255) < _FIELD - 1:
            raise PakeFailedError("an invalid SPAKE2 element")
        # It raises a ValueError for a point of small or mixed order, errors of its own for one off the curve, from the
        # wrong side or its own sent back.
        try:
            key: bytes = self._engine.finish(element)
        except (SPAKEError, NotOnCurve, ValueError, AssertionError) as why:
            raise PakeFailedError("an invalid SPAKE2 element") from why
        return PairingKeys(
            client_mac=_hkdf(key, b"client confirmation", KEY_SIZE),
            host_mac=_hkdf(key, b"host confirmation", KEY_SIZE),
            peer=_hkdf(key, b"peer id", PEER_SIZE),
            credential=_hkdf(key, b"credential", KEY_SIZE),
        )


def _identities(code: Code, fingerprint: bytes) -> dict[str, bytes]:
    bound = b" " + code.share.encode() + b" " + fingerprint
    return {"idA": b"headrace client" + bound, "idB": b"headrace host" + bound}


Entropy = Callable[[int], bytes]


def client_exchange(code: Code, fingerprint: bytes, entropy: Entropy) -> _Exchange:
    """The client's half. fingerprint: of the certificate that the connection shows."""
    from spake2 import SPAKE2_A  # pure Python with tables to compute: only those who pair pay for the import

    return _Exchange(SPAKE2_A(code.secret.encode(), **_identities(code, fingerprint), entropy_f=entropy))


def host_exchange(code: Code, fingerprint: bytes, entropy: Entropy) -> _Exchange:
    """The host's half. fingerprint: of the host's own certificate."""
    from spake2 import SPAKE2_B

    return _Exchange(SPAKE2_B(code.secret.encode(), **_identities(code, fingerprint), entropy_f=entropy))


def credential_proof(credential: bytes, fingerprint: bytes, nonce: bytes) -> bytes:
    """What a paired client shows instead of its credential; useless for any other certificate."""
    return hmac.digest(credential, b"headrace credential\0" + fingerprint + nonce, "sha256")


def same(a: bytes, b: bytes) -> bool:
    """Compares secrets in constant time."""
    return hmac.compare_digest(a, b)


def fingerprint_of(der: bytes) -> bytes:
    """The certificate's fingerprint: SHA-256 of its DER form."""
    return hashlib.sha256(der).digest()
