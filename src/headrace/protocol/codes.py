"""The short code: Crockford base32 in groups of four. The first group names the share, the rest is its secret.

Crockford's alphabet and its forgiving of I, L, O: https://www.crockford.com/base32.html
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"
GROUP: Final = 4
SECRET_GROUPS: Final = 2  # 40 bits; one guess per connection, ten before the share locks
MIN_SECRET: Final = 4  # characters a chosen code must have after its first group
MAX_CODE: Final = 64
_FORGIVEN: Final = str.maketrans({"o": "0", "i": "1", "l": "1"})


class BadCodeError(ValueError):
    """The text is no code."""


@dataclass(frozen=True, slots=True)
class Code:
    """A share's code: `share` is public (it is announced), `secret` goes into the PAKE and nowhere else."""

    share: str
    secret: str = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> Code:
        """From what a person typed: any case, dashes and spaces anywhere, O for 0, I and L for 1.

        Raises BadCodeError.
        """
        plain = text.strip().lower().replace("-", "").replace(" ", "").translate(_FORGIVEN)
        if any(c not in ALPHABET for c in plain):
            raise BadCodeError("a code has only letters and digits, without U")
        if not GROUP + MIN_SECRET <= len(plain) <= MAX_CODE:
            raise BadCodeError(f"a code has {GROUP + MIN_SECRET} to {MAX_CODE} characters, such as 7k2m-xq4c-9dht")
        return cls(plain[:GROUP], plain[GROUP:])

    @classmethod
    def generate(cls, random_bytes: Callable[[int], bytes]) -> Code:
        """A fresh code of one public and SECRET_GROUPS secret groups."""
        # 256 is a multiple of 32, so the low five bits of a random byte are uniform.
        text = "".join(ALPHABET[b & 31] for b in random_bytes(GROUP * (1 + SECRET_GROUPS)))
        return cls(text[:GROUP], text[GROUP:])

    @property
    def text(self) -> str:
        """The whole code in groups, for showing to the person who shares. It holds the secret."""
        plain = self.share + self.secret
        return "-".join(plain[i : i + GROUP] for i in range(0, len(plain), GROUP))
