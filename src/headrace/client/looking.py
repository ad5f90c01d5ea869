"""What is asked of the host about directories: one exchange each, on a lane that nobody else uses meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headrace.client.session import Session
from headrace.engine.lane import Lane
from headrace.errors import HeadraceError, NotFoundError, ProtocolError, RefusedError, from_wire
from headrace.protocol.messages import (
    Entry,
    Error,
    List,
    ListPart,
    Look,
    Looked,
    Message,
    Stat,
    StatFs,
    StatFsReply,
    StatReply,
    check_entries,
)
from headrace.protocol.paths import RelPath
from headrace.protocol.session import STATFS, WATCH


class TooManyEntriesError(RefusedError):
    """A directory has more entries than this side keeps in memory."""

    default_hint = "Its files can be opened by name; copy it with headrace get."


@dataclass(frozen=True, slots=True)
class Looking:
    """A directory's entries by name. itself: its own entry, where the host told. watched: by the watch asked for.

    more: the host has more entries than were asked for.
    """

    entries: dict[bytes, Entry]
    itself: Entry | None = None
    watched: bool = False
    more: bool = False


def can_watch(session: Session) -> bool:
    """Whether the host knows Watch and Look."""
    return WATCH in session.agreed.features


def look(session: Session, lane: Lane, path: RelPath, *, watch: int, limit: int) -> Looking:
    """The entries of a directory, at most `limit`. watch: to which it shall belong; 0: none.

    A host that does not know Look gives them by List; TooManyEntriesError then where it has more than `limit`. Raises
    NotFoundError, PermissionRefusedError, RemoteIOError, ProtocolError.
    """
    if not can_watch(session):
        lane.post(List(lane.next_id(), bytes(path)))
    else:
        lane.post(Look(lane.next_id(), bytes(path), watch, limit))
    entries: dict[bytes, Entry] = {}
    while True:
        message, _ = lane.part()
        if isinstance(message, Error):
            lane.answered()
            raise from_wire(message.code, message.message)
        if isinstance(message, Looked):
            lane.answered()
            return Looking(entries, _checked(message.entry), message.watched, message.more)
        if not isinstance(message, ListPart) or message.path != bytes(path):
            raise ProtocolError("the host answered a listing with something else")
        _check_all(message.entries)
        entries.update((entry.name, entry) for entry in message.entries)
        if len(entries) > limit:  # what still comes is not waited for: the lane is given up
            raise TooManyEntriesError(f"{path or 'the share'} has more than {limit:,} entries")
        if message.error:
            # Part of a directory would pass for all of it.
            if message.last:
                lane.answered()
            raise from_wire(message.error, f"{path or 'the share'} cannot be read to its end")
        if message.last:
            lane.answered()
            return Looking(entries)


def stat(lane: Lane, paths: Sequence[RelPath]) -> list[Entry | None]:
    """The entries at the paths, asked for all at once; None where there is none.

    Raises what the host says of any of them beside that; ProtocolError.
    """
    for path in paths:
        lane.post(Stat(lane.next_id(), bytes(path)))
    answers = [lane.answer()[0] for _ in paths]
    return [_entry(path, answer) for path, answer in zip(paths, answers, strict=True)]


def statfs(session: Session, lane: Lane, path: RelPath) -> StatFsReply | None:
    """How full the host's disk is; None where the host does not say."""
    if STATFS not in session.agreed.features:
        return None
    lane.post(StatFs(lane.next_id(), bytes(path)))
    answer, _ = lane.answer()
    if isinstance(answer, Error):
        raise from_wire(answer.code, answer.message)
    if not isinstance(answer, StatFsReply):
        raise ProtocolError("the host answered StatFs with something else")
    try:
        return answer.check()
    except ValueError as why:
        raise ProtocolError(f"the host says of its disk: {why}") from why


def _entry(path: RelPath, answer: Message) -> Entry | None:
    if isinstance(answer, Error):
        error: HeadraceError = from_wire(answer.code, answer.message)
        if isinstance(error, NotFoundError):
            return None
        raise error
    if not isinstance(answer, StatReply):
        raise ProtocolError("the host answered Stat with something else")
    entry = _checked(answer.entry)
    if path and entry.name != path.name:
        raise ProtocolError("the host answered Stat with the entry of another path")
    return entry


def _checked(entry: Entry) -> Entry:
    try:
        return entry.check(is_root=True)
    except ValueError as why:
        raise ProtocolError(f"the host offers an impossible entry: {why}") from why


def _check_all(entries: Sequence[Entry]) -> None:
    try:
        check_entries(entries)
    except ValueError as why:
        raise ProtocolError(f"the host offers an impossible entry: {why}") from why
