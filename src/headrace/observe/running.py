"""The headrace programs that run on this machine: finds their control sockets and asks them."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from headrace import config
from headrace.errors import BY_CODE, HeadraceError, LocalDiskError, NotFoundError, UnreachableError, printable

log = logging.getLogger("headrace.control")

FOLDER: Final = "run"  # in the headrace home
MAX_ANSWER: Final = 4 * 1024 * 1024  # bytes
PATIENCE: Final = 2.0  # seconds from connecting to the last byte of an answer
_NAME: Final = re.compile(r"\.?([a-z]+)-([0-9]{1,10})\.sock")

Answer = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Found:
    """A socket that was found: the kind of its program, and its process."""

    kind: str
    pid: int
    path: Path


class GoneError(NotFoundError):
    """The program has ended."""


def find(home: Path | None = None) -> list[Found]:
    """The sockets of this home, shares first, then by pid. Whether somebody answers there, `ask` finds out.

    Raises LocalDiskError where their folder cannot be read.
    """
    if not hasattr(socket, "AF_UNIX"):
        return []
    folder = (home or config.home()) / FOLDER
    try:
        return sorted(_sockets(folder), key=lambda found: (found.kind != "share", found.pid))
    except OSError as why:
        raise LocalDiskError(f"{folder} cannot be read ({why.strerror})", hint="Check its permissions.") from why


def ask(found: Found, request: Mapping[str, Any], *, patience: float = PATIENCE) -> Answer:
    """The program's answer. Blocks for `patience` seconds at most.

    Raises GoneError where nobody listens (a socket whose owner is dead is removed), UnreachableError where there is no
    answer in time or none that makes sense, and the HeadraceError that the program answered with.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            line = _exchange(sock, found, json.dumps(request).encode("ascii") + b"\n", time.monotonic() + patience)
        answer = json.loads(line)
    except (ConnectionRefusedError, FileNotFoundError) as why:
        _remove_if_dead(found)
        raise GoneError(f"{found.kind} {found.pid} has ended", hint="See headrace status.") from why
    except OSError as why:
        raise _silent(found, why.strerror or str(why)) from why
    except (ValueError, RecursionError) as why:
        raise _silent(found, "it hung up, or its answer makes no sense") from why
    if not isinstance(answer, dict):
        raise _silent(found, "its answer makes no sense")
    if "error" in answer:
        texts = [printable(str(answer.get(name, ""))) for name in ("message", "hint")]
        raise BY_CODE.get(str(answer["error"]), HeadraceError)(texts[0], hint=texts[1])
    return answer


def remove_stale(folder: Path) -> None:
    """Removes sockets whose owners are dead. Raises OSError where the folder cannot be read."""
    for found in _sockets(folder, drafts=True):
        if found.pid == os.getpid():
            continue
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(PATIENCE)
            try:
                sock.connect(os.fspath(found.path))
            except ConnectionRefusedError:
                _remove_if_dead(found)


def _sockets(folder: Path, *, drafts: bool = False) -> Iterator[Found]:
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return
    for name in names:
        if (match := _NAME.fullmatch(name)) and (drafts or not name.startswith(".")):
            yield Found(match[1], int(match[2]), folder / name)


def _exchange(sock: socket.socket, found: Found, request: bytes, deadline: float) -> bytes:
    def wait() -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("it does not answer")
        sock.settimeout(left)

    wait()
    sock.connect(os.fspath(found.path))
    sock.sendall(request)
    answer = bytearray()
    while not answer.endswith(b"\n"):
        wait()
        piece = sock.recv(65536)
        if not piece:
            break
        answer += piece
        if len(answer) > MAX_ANSWER:
            raise ValueError("too long")
    return bytes(answer)


def _silent(found: Found, why: str) -> UnreachableError:
    return UnreachableError(
        f"{found.kind} {found.pid} does not say how it is ({printable(why)})", hint="It may be stopped, or very busy."
    )


def _remove_if_dead(found: Found) -> None:
    """Refused by nobody's listening, and the process is gone: the name is free."""
    if not _alive(found.pid):
        log.debug("removing %s, whose owner is dead", found.path)
        with contextlib.suppress(OSError):
            found.path.unlink()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
