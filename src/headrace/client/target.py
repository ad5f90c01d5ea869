"""Targets: how a person names a share and a path in it. The forms are those of the command line's contract."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Final

from headrace.config import DEFAULT_PORT
from headrace.errors import UsageError
from headrace.protocol.codes import BadCodeError, Code
from headrace.protocol.paths import ROOT, BadPathError, RelPath

SCHEME: Final = "headrace://"
_FORMS: Final = "A target looks like CODE@HOST:PORT, CODE@HOST:PORT/path, HOST:PORT/path or, on the LAN, CODE."


@dataclass(frozen=True, slots=True)
class Target:
    """host: empty when only the code was given. code: None when it must come from somewhere else."""

    host: str
    port: int
    path: RelPath = ROOT
    code: Code | None = field(default=None)

    @classmethod
    def parse(cls, text: str) -> Target:
        """CODE@HOST:PORT[/path], CODE[/path], headrace://CODE@HOST:PORT/path or HOST:PORT[/path].

        Raises UsageError, whose message never repeats the code.
        """
        raw = os.fsencode(text)
        is_url = text[: len(SCHEME)].lower() == SCHEME
        if is_url:
            raw = raw[len(SCHEME) :]
        authority, _, rest = raw.partition(b"/")
        if is_url:
            from urllib.parse import unquote_to_bytes  # 4 ms that few need

            rest = unquote_to_bytes(rest)
        place = authority.decode("utf-8", "replace")
        user, at, address = place.rpartition("@")
        try:
            path = RelPath.from_user(rest)
        except BadPathError as why:
            raise UsageError(
                f"the path in the target cannot be used: {why}", hint="Paths are relative to the share."
            ) from why
        if not at and not _looks_like_address(place):
            return cls("", DEFAULT_PORT, path, parse_code(place))
        host, port = _address(address)
        return cls(host, port, path, parse_code(user) if user else None)

    @property
    def address(self) -> str:
        """HOST:PORT, for messages. It never holds the code."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_code(text: str) -> Code:
    """The code, or UsageError, which does not repeat it."""
    try:
        return Code.parse(text)
    except BadCodeError as why:
        raise UsageError(f"that is no code: {why}", hint=_FORMS) from why


def _looks_like_address(place: str) -> bool:
    return ":" in place or "." in place


def _address(text: str) -> tuple[str, int]:
    if text.startswith("["):
        host, closing, tail = text[1:].partition("]")
        port = tail.removeprefix(":")
        if not closing or (tail and not tail.startswith(":")):
            raise UsageError("an IPv6 address is written [ADDRESS]:PORT", hint=_FORMS)
    else:
        host, _, port = text.partition(":")
        if ":" in port:
            raise UsageError("an IPv6 address is written [ADDRESS]:PORT", hint=_FORMS)
    if not host:
        raise UsageError("the target names no host", hint=_FORMS)
    if not port:
        return host, DEFAULT_PORT
    if not port.isascii() or not port.isdigit() or len(port) > 5 or not 0 < int(port) < 65536:
        raise UsageError("the port is a number from 1 to 65535", hint=_FORMS)
    return host, int(port)
