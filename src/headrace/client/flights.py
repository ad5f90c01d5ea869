"""Exchanges about directories that are under way, each one shared by all who want the same."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from headrace.client.folders import UNKNOWN, Found
from headrace.client.link import Link
from headrace.client.looking import Looking, can_watch, look, stat
from headrace.client.session import Session
from headrace.engine.lane import Lane
from headrace.errors import HeadraceError, HostAwayError
from headrace.protocol.messages import Entry
from headrace.protocol.paths import RelPath

DOUBT: Final = 5.0  # seconds for which a host that was not quick enough is not asked where an old answer is at hand

Key = tuple[RelPath, bytes | None]  # a directory, and a name in it, or None for a listing


@dataclass(eq=False)
class Flight:
    """One exchange, and what happened meanwhile.

    names: those asked for; None: a listing of `limit` entries at most. looking, singles, error: the outcome. asked:
    when; watch: what the directory was to belong to. doubted: names that changed meanwhile; void: the directory itself
    did; unwatched: it is watched no more.
    """

    folder: RelPath
    names: tuple[bytes, ...] | None
    limit: int
    done: threading.Event = field(default_factory=threading.Event)
    looking: Looking | None = None
    singles: dict[bytes, Entry | None] = field(default_factory=dict)
    error: HeadraceError | None = None
    asked: float = 0.0
    watch: int = 0
    doubted: set[bytes] = field(default_factory=set)
    void: bool = False
    unwatched: bool = False

    def found(self, name: bytes) -> Found:
        if self.looking is None:
            return self.singles.get(name, UNKNOWN)
        if self.looking.more:
            return self.looking.entries.get(name, UNKNOWN)
        return self.looking.entries.get(name)

    def again(self) -> HeadraceError:
        """Its error, once for each thread that raises it."""
        assert self.error is not None
        return type(self.error)(self.error.message, hint=self.error.hint)


class Flights:
    """Those that are under way. Thread-safe, except where a method says that the lock is held."""

    def __init__(
        self,
        link: Link,
        base: RelPath,
        lock: threading.Lock,
        most: int,
        *,
        offline: bool,
        watch: Callable[[], int],
        landing: Callable[[Flight], None],
        clock: Callable[[], float],
    ) -> None:
        """lock: the owner's. most: entries of a directory. offline: the host is never asked. watch: the number of the
        watch that stands. landing: given each flight as it ends, with the lock held."""
        self._link = link
        self._base = base
        self._lock = lock
        self._most = most
        self._offline = offline
        self._watch = watch
        self._landing = landing
        self._clock = clock
        self._flying: dict[Key, Flight] = {}
        self._doubt_until = float("-inf")
        self.exchanges = 0  # so far; approximate: threads count without a lock
        link.on_up(self._host_is_back)

    def join(
        self,
        key: Key,
        names: tuple[bytes, ...] | None,
        limit: int,
        deadline: float,
        patience: float | None,
        instead: bytes | None,
    ) -> tuple[Flight | None, bool]:
        """The flight that was under way already, or a new one, over, and whether it was a new one. None: the caller's
        time is over, not the flight's.

        patience: see `run`. instead: the name to ask for in the place of a listing, where the host cannot be asked for
        the beginning of one.
        """
        until = deadline if patience is None else min(deadline, self._clock() + patience)
        while True:
            with self._lock:
                flight = self._flying.get((key[0], None)) or self._flying.get(key)
                mine = flight is None
                if flight is None:
                    flight = self._flying[key] = Flight(key[0], names, limit)
            if mine:
                self._fly(flight, key, deadline, patience, instead)
                return flight, True
            if not flight.done.wait(max(0.0, until - self._clock())):
                return None, False
            # One that had less time than this caller says nothing about the host.
            if not isinstance(flight.error, HostAwayError) or self._offline or self._clock() >= until:
                return flight, False

    def run[T](self, do: Callable[[Session, Lane], T], deadline: float, patience: float | None) -> T:
        """Link.run. patience: seconds that the host has where an old answer is at hand; None: there is none.

        Raises HostAwayError, with patience at once where the host is known to be away, or was slow lately.
        """
        now = self._clock()
        if self._offline:
            raise HostAwayError("it is not among what was kept, and the host is not asked", hint="Leave --offline out.")
        if patience is not None and (not self._link.up or now < self._doubt_until):
            raise HostAwayError("the host is away")
        self.exchanges += 1
        try:
            return self._link.run(do, deadline if patience is None else min(deadline, now + patience))
        except HostAwayError:
            if patience is not None:
                self._doubt_until = self._clock() + DOUBT
            raise

    def _fly(self, flight: Flight, key: Key, deadline: float, patience: float | None, instead: bytes | None) -> None:
        flight.asked = self._clock()
        try:
            self.run(lambda session, lane: self._exchange(session, lane, flight, instead), deadline, patience)
        except HeadraceError as why:
            flight.error = why
        except BaseException:
            flight.error = HeadraceError("a question to the host was given up")
            raise
        finally:
            with self._lock:
                del self._flying[key]
                self._landing(flight)
            flight.done.set()

    def _exchange(self, session: Session, lane: Lane, flight: Flight, instead: bytes | None) -> None:
        """May be called again where the connection broke."""
        folder = self._base.join(flight.folder)
        flight.looking, flight.asked = None, self._clock()
        names = flight.names
        if names is None and instead is not None and not can_watch(session):
            names = (instead,)
        if names is not None:
            answers = stat(lane, [folder / name for name in names])
            flight.singles = dict(zip(names, answers, strict=True))
            return
        flight.watch = self._watch()
        limit = flight.limit if can_watch(session) else self._most
        flight.looking = look(session, lane, folder, watch=flight.watch, limit=limit)

    def _host_is_back(self) -> None:
        self._doubt_until = float("-inf")

    # ---- what the host tells meanwhile; with the lock held ---------------------------------------------------------

    def doubt(self, path: RelPath) -> None:
        """The entry at `path`, which is not the root, is not what it was."""
        for flight in self._flying.values():
            if flight.folder == path.parent:
                flight.doubted.add(path.name)

    def void(self, path: RelPath) -> None:
        """Nothing at or below `path` is what it was."""
        for flight in self._flying.values():
            flight.void |= flight.folder.parts[: len(path.parts)] == path.parts

    def unwatch(self, path: RelPath) -> None:
        """Nothing more is told of that directory."""
        for flight in self._flying.values():
            flight.unwatched |= flight.folder == path
