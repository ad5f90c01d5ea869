"""What is to be done with a file of the share, given what lies at its destination. Pure."""

from __future__ import annotations

import enum
import stat
from dataclasses import dataclass
from typing import Final, Protocol

from headrace.protocol.messages import Entry


class OnExist(enum.StrEnum):
    """What to do where the destination exists (`--on-exist`)."""

    SKIP_SAME = "skip-same"
    RENAME = "rename"
    OVERWRITE = "overwrite"
    FAIL = "fail"


class Action(enum.Enum):
    FETCH = enum.auto()  # nothing is there
    SAME = enum.auto()  # the same size and modification time: taken for the same, as rsync does
    COMPARE = enum.auto()  # the same size, another time: the content decides
    DIFFERENT = enum.auto()  # another size
    OCCUPIED = enum.auto()  # a directory or something else that no file may replace
    FORBIDDEN = enum.auto()  # something is there, and `fail` was asked for


class Facts(Protocol):
    """What lies at a destination, as far as it matters here: an os.stat_result has it."""

    @property
    def st_mode(self) -> int: ...
    @property
    def st_size(self) -> int: ...
    @property
    def st_mtime_ns(self) -> int: ...


@dataclass(frozen=True, slots=True)
class RemoteFacts:
    """The same of what lies in a share."""

    st_mode: int
    st_size: int
    st_mtime_ns: int

    @classmethod
    def of(cls, entry: Entry) -> RemoteFacts:
        return cls(_KINDS.get(entry.kind, stat.S_IFSOCK) | entry.mode, entry.size, entry.mtime_ns)


_KINDS: Final = {"f": stat.S_IFREG, "d": stat.S_IFDIR, "l": stat.S_IFLNK}


def decide(entry: Entry, existing: Facts | None, on_exist: OnExist, *, checksum: bool) -> Action:
    """The action for one file. checksum: trust no modification times, compare contents."""
    if existing is None:
        return Action.FETCH
    if on_exist is OnExist.FAIL:
        return Action.FORBIDDEN
    if stat.S_ISLNK(existing.st_mode):
        return Action.DIFFERENT
    if not stat.S_ISREG(existing.st_mode):
        return Action.OCCUPIED
    if existing.st_size != entry.size:
        return Action.DIFFERENT
    if existing.st_mtime_ns == entry.mtime_ns and not checksum:
        return Action.SAME
    return Action.COMPARE
