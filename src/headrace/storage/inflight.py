"""What a file in flight is called: `.NAME.headrace-part`, and beside it `.NAME.headrace-journal`."""

from __future__ import annotations

import hashlib
from typing import Final

from headrace.protocol.paths import MAX_NAME

PART: Final = b".headrace-part"
JOURNAL: Final = b".headrace-journal"

_MAX_STEM: Final = MAX_NAME - 1 - len(JOURNAL)
_DIGEST: Final = 8  # bytes; written as twice as many hexadecimal digits
_KEPT: Final = _MAX_STEM - 1 - 2 * _DIGEST


def cut(name: bytes, length: int) -> bytes:
    """At most the first `length` bytes of `name`, never half a UTF-8 character: some file systems refuse those."""
    return name if len(name) <= length else name[:length].decode("utf-8", "ignore").encode()


def part_names(name: bytes, slot: int = 0) -> tuple[bytes, bytes]:
    """The names of the part file and the journal for `name`. Long names are shortened; the same name gives the same.

    slot: another one for each of several writers.
    """
    stem = name + b"~w%d" % slot if slot else name
    if len(stem) > _MAX_STEM:
        digest = hashlib.blake2b(stem, digest_size=_DIGEST).hexdigest().encode()
        stem = cut(name, _KEPT) + b"~" + digest
    return b"." + stem + PART, b"." + stem + JOURNAL


def is_inflight_name(name: bytes) -> bool:
    """Whether `name` is what `part_names` makes: such files are never listed, served or asked for."""
    if not name.endswith((PART, JOURNAL)) or not name.startswith(b"."):
        return False
    return len(name) > 1 + len(PART if name.endswith(PART) else JOURNAL)
