"""What is mounted on this machine, read from the kernel's table: nothing here touches a mount that may hang."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from headrace.mount.device import SUBTYPE

TABLE: Final = Path("/proc/self/mountinfo")
OURS: Final = f"fuse.{SUBTYPE}"
_MAX_LINKS: Final = 16  # symlinks in the last component that are followed
_ESCAPE: Final = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mounted:
    """One line of the table. point: absolute, without symlinks. kind: the file system's type. device: MAJOR:MINOR."""

    point: str
    kind: str
    source: str
    device: str

    @property
    def ours(self) -> bool:
        return self.kind == OURS


def everything(table: Path = TABLE) -> list[Mounted]:
    """In the order of mounting: of two on the same point the later one is on top. Empty where there is no table."""
    try:
        lines = table.read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return []
    return [found for line in lines if (found := _parsed(line))]


def at(point: str, table: Path = TABLE) -> Mounted | None:
    """What is on top at `point`, which is canonical."""
    return next((found for found in reversed(everything(table)) if found.point == point), None)


def canonical(directory: str | os.PathLike[str]) -> str:
    """The absolute path without symlinks, as the table has it. Never asks the file system that is mounted there.

    stat(2) on a mount point asks the mounted file system, which may not answer; readlink(2) does not.
    """
    path = os.path.abspath(directory)
    for _ in range(_MAX_LINKS):
        path = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
        try:
            target = os.readlink(path)
        except OSError:
            break
        path = os.path.normpath(os.path.join(os.path.dirname(path), target))
    return path


def _parsed(line: str) -> Mounted | None:
    """A line of proc_pid_mountinfo(5): … MAJOR:MINOR ROOT POINT OPTIONS [TAG…] - TYPE SOURCE OPTIONS."""
    before, dash, after = line.partition(" - ")
    fields, rest = before.split(" "), after.split(" ")
    if not dash or len(fields) < 6 or len(rest) < 2:
        return None
    return Mounted(_unescaped(fields[4]), rest[0], _unescaped(rest[1]), fields[2])


def _unescaped(text: str) -> str:
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)
