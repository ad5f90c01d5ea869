"""Walking a share over a connection that may break: it goes on where it was."""

from __future__ import annotations

from array import array
from collections.abc import Iterator

from headrace.client.outage import Outage
from headrace.client.session import Entries, Session
from headrace.errors import ConnectionLostError, HeadraceError
from headrace.protocol.messages import PHASE_BULK
from headrace.protocol.paths import RelPath

Part = tuple[RelPath, Entries, HeadraceError | None]


class Walk:
    """Every directory at and below `top`, as Session.walk gives them, each entry once.

    The host lists a directory in parts, and all of it before the next one. So three things say where it was: the
    directory under way, what was seen of it (as hashes, 8 bytes an entry), and the directories that are still to come.
    """

    def __init__(self, session: Session, top: RelPath, outage: Outage) -> None:
        self._session = session
        self._top = top
        self._outage = outage
        self._current: RelPath | None = None
        self._seen = array("q")
        self._coming: dict[RelPath, None] = {top: None}

    def parts(self) -> Iterator[Part]:
        """Raises ConnectionLostError when the outage lasts too long, and what Session.walk raises of `top`."""
        attempt = 0
        while True:
            try:
                for part in self._once():
                    attempt = 0
                    self._outage.over()
                    yield part
                return
            except ConnectionLostError as why:
                self._outage.again(why, attempt)
                attempt += 1

    def _once(self) -> Iterator[Part]:
        """What is left, until the connection breaks."""
        if self._current is not None:
            yield from self._rest_of(self._current)
            self._current = None
        while self._coming:
            top = next(iter(self._coming))
            try:
                for directory, entries, error in self._session.walk(top):
                    self._note(directory, entries)
                    yield directory, entries, error
            except ConnectionLostError:
                raise
            except HeadraceError as why:
                if top == self._top:
                    raise
                yield top, [], why  # it was there when its parent was listed
            self._current = None
            depth = len(top.parts)  # those that are empty were never heard of
            self._coming = {path: None for path in self._coming if path.parts[:depth] != top.parts}

    def _rest_of(self, directory: RelPath) -> Iterator[Part]:
        known = set(self._seen)
        try:
            parts = self._session.list(directory)
            if self._session.agreed.version < PHASE_BULK:
                parts = iter(list(parts))  # the lane is the files' as well, and must not be held while they are queued
            for entries in parts:
                fresh = [entry for entry in entries if hash(entry.name) not in known]
                self._note(directory, fresh)
                if fresh:
                    yield directory, fresh, None
        except ConnectionLostError:
            raise
        except HeadraceError as why:
            yield directory, [], why

    def _note(self, directory: RelPath, entries: Entries) -> None:
        self._coming.pop(directory, None)
        if not entries:
            return
        if directory != self._current:
            self._current = directory
            self._seen = array("q")
        self._seen.extend(hash(entry.name) for entry in entries)
        for entry in entries:
            if entry.kind == "d":
                self._coming[directory / entry.name] = None
