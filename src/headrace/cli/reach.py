"""From what a person typed to a session with a share."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from headrace.cli.options import Common
from headrace.cli.output import stderr_is_terminal
from headrace.client.target import Target, parse_code
from headrace.errors import UsageError
from headrace.protocol.codes import Code
from headrace.protocol.messages import PHASE_BASELINE, PHASE_BULK
from headrace.protocol.session import Versions

if TYPE_CHECKING:
    from headrace.client.session import Session
    from headrace.protocol.paths import RelPath
    from headrace.transport.abort import Abort

CODE_VARIABLE: Final = "HEADRACE_CODE"
MAX_CODE_FILE: Final = 4096  # bytes of a code file that are looked at
_VERSIONS: Final = {
    "auto": Versions(),
    "7": Versions(PHASE_BASELINE, PHASE_BASELINE),
    "8": Versions(PHASE_BULK, PHASE_BULK),
}


def versions(common: Common) -> Versions:
    """What --protocol allows."""
    return _VERSIONS[common.protocol]


def target_of(text: str, common: Common) -> Target:
    """The target with its code: its own, or from --code-file or HEADRACE_CODE, or asked for on a terminal.

    Raises UsageError.
    """
    target = Target.parse(text)
    if target.code is not None:
        return target
    code = elsewhere(common)
    if code is None:
        code = parse_code(_ask(target))
    return replace(target, code=code)


def elsewhere(common: Common) -> Code | None:
    """The code from --code-file or HEADRACE_CODE, whichever was said more directly. Raises UsageError."""
    variable = os.environ.get(CODE_VARIABLE)
    if variable and not common.code_file_given:
        return _parsed(variable, f"the environment variable {CODE_VARIABLE}")
    if common.code_file:
        return _parsed(read_code_file(common.code_file), f"the code file {common.code_file}")
    return None


def read_code_file(path: str) -> str:
    """The first line of the file, `-` for standard input. Raises UsageError."""
    try:
        if path == "-":
            line = sys.stdin.buffer.readline(MAX_CODE_FILE)
        else:
            with open(path, "rb") as file:
                line = file.readline(MAX_CODE_FILE)
    except OSError as why:
        raise UsageError(f"the code file {path} cannot be read ({why.strerror})", hint="Check --code-file.") from why
    if not line.strip():
        raise UsageError(f"the code file {path} has no code in its first line", hint="Put the code there, and no more.")
    return line.decode("utf-8", "replace")


def connect(target: Target, common: Common, *, ask: RelPath | None = None, abort: Abort | None = None) -> Session:
    """Raises what client.session.Session.connect raises. ask, abort: see there."""
    from headrace.client.session import Session

    return Session.connect(
        target,
        versions=versions(common),
        limit_rate=common.limit_rate,
        transport=common.transport,
        congestion=common.congestion,
        ask=ask,
        abort=abort,
    )


def _parsed(text: str, source: str) -> Code:
    try:
        return parse_code(text)
    except UsageError as why:
        raise UsageError(f"{source} holds no code", hint="A code looks like 7k2m-xq4c-9dht.") from why


def _ask(target: Target) -> str:
    if sys.stdin is None or not sys.stdin.isatty() or not stderr_is_terminal():
        raise UsageError(
            f"no code for {target.address}",
            hint=f"Write CODE@HOST:PORT, set {CODE_VARIABLE}, or use --code-file FILE.",
        )
    import getpass

    try:
        return getpass.getpass(f"Code for {target.address}: ", stream=sys.stderr)
    except EOFError as why:
        raise UsageError("no code was typed", hint=f"Set {CODE_VARIABLE}, or use --code-file FILE.") from why
