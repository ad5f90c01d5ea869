"""Share-relative paths: bytes, never text, and unable to express anything outside the share."""

from __future__ import annotations

from binascii import b2a_base64
from typing import Final

import msgspec

MAX_NAME: Final = 255  # bytes in one component; the limit of every common file system
MAX_PATH: Final = 4096  # bytes in a whole path, separators included (PATH_MAX on Linux)
MAX_DEPTH: Final = 256  # components


class BadPathError(ValueError):
    """The bytes are no share-relative path."""


def check_name(name: bytes) -> bytes:
    """`name` if it can be one component of a path.

    Raises BadPathError for an empty name, `.`, `..`, one with `/` or NUL, or one over MAX_NAME bytes.
    """
    if not name or name in (b".", b".."):
        raise BadPathError("a name is empty, '.' or '..'")
    if b"/" in name or b"\0" in name:
        raise BadPathError("a name holds '/' or NUL")
    if len(name) > MAX_NAME:
        raise BadPathError(f"a name is longer than {MAX_NAME} bytes")
    return name


class RelPath(msgspec.Struct, frozen=True, order=True, gc=False):
    """A path below the root of a share, as its components. `RelPath()` is the root itself.

    The only ways to make one from outside data are `parse` and `/`, and both refuse `..`, absolute paths and NUL,
    so holding a RelPath means holding something that names a place inside the share.
    """

    parts: tuple[bytes, ...] = ()

    @classmethod
    def parse(cls, raw: bytes) -> RelPath:
        """From wire form: components joined by `/`, no leading or trailing `/`; empty means the root.

        Raises BadPathError.
        """
        if not raw:
            return ROOT
        if len(raw) > MAX_PATH:
            raise BadPathError(f"a path is longer than {MAX_PATH} bytes")
        parts = tuple(raw.split(b"/"))
        if len(parts) > MAX_DEPTH:
            raise BadPathError(f"a path is deeper than {MAX_DEPTH} components")
        for part in parts:
            check_name(part)
        return cls(parts)

    @classmethod
    def from_user(cls, raw: bytes) -> RelPath:
        """From what a person typed: leading, trailing and doubled `/` and `.` components are forgiven, `..` is not."""
        return cls.parse(b"/".join(part for part in raw.split(b"/") if part not in (b"", b".")))

    def __truediv__(self, name: bytes) -> RelPath:
        """The entry `name` of this directory. Raises BadPathError, also when the result is too deep or too long."""
        return self.join(RelPath((check_name(name),)))

    def child(self, name: bytes) -> RelPath:
        """As `/`, at a fifth of its cost, for a name that was checked already where the path grows neither too deep nor
        too long: an entry of a listing that client.session has looked at."""
        return RelPath((*self.parts, name))

    def join(self, other: RelPath) -> RelPath:
        """`other` below this path. Raises BadPathError when the result is too deep or too long."""
        parts = self.parts + other.parts
        if len(parts) > MAX_DEPTH:
            raise BadPathError(f"a path is deeper than {MAX_DEPTH} components")
        if sum(map(len, parts)) + len(parts) - 1 > MAX_PATH:
            raise BadPathError(f"a path is longer than {MAX_PATH} bytes")
        return RelPath(parts)

    def relative_to(self, base: RelPath) -> RelPath:
        """This path as seen from `base`, which must be a prefix of it; BadPathError otherwise."""
        if self.parts[: len(base.parts)] != base.parts:
            raise BadPathError("a path lies outside of what was asked for")
        return RelPath(self.parts[len(base.parts) :])

    @property
    def name(self) -> bytes:
        """The last component; empty for the root."""
        return self.parts[-1] if self.parts else b""

    @property
    def parent(self) -> RelPath:
        return RelPath(self.parts[:-1])

    def __bytes__(self) -> bytes:
        return b"/".join(self.parts)

    def __str__(self) -> str:
        """For people: UTF-8 where it is UTF-8, escapes elsewhere, and no control characters."""
        text = bytes(self).decode("utf-8", "backslashreplace")
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)

    def __bool__(self) -> bool:
        return bool(self.parts)


ROOT: Final = RelPath()


def text_fields(name: str, raw: bytes) -> dict[str, str]:
    """For JSON: a name or path as text under `name`; where it is not UTF-8, escaped there, and exact in base64 under
    `name`_b64."""
    try:
        return {name: raw.decode("utf-8")}
    except UnicodeDecodeError:
        return {name: raw.decode("utf-8", "backslashreplace"), f"{name}_b64": b2a_base64(raw, newline=False).decode()}


def link_stays_inside(link: RelPath, target: bytes) -> bool:
    """Whether a symlink at `link` with this target can only lead to places below the root.

    The rule: not absolute, and `..` only at the front, at most as often as the link is deep. `..` after a name is
    refused even where it looks harmless, because that name may itself be a link by the time it is followed. With
    every link obeying the rule, leading `..` climbs from a real directory and the rest only descends.
    """
    if not target or target.startswith(b"/") or b"\0" in target or len(target) > MAX_PATH:
        return False
    parts = [part for part in target.split(b"/") if part not in (b"", b".")]
    climbs = 0
    while climbs < len(parts) and parts[climbs] == b"..":
        climbs += 1
    return climbs <= len(link.parts) - 1 and b".." not in parts[climbs:]
