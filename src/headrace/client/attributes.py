"""Names and attributes of a share, cached: what a mount shows when somebody lists a directory or looks up a name.

One exchange fills a directory with its entries and their attributes, and answers every later question about a name in
it, whether there is one or not. docs/attributes.md says what is kept, and for how long.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, NoReturn, Self

from headrace.client.flights import Flight, Flights, Key
from headrace.client.folders import UNKNOWN, Folder, Folders, Found
from headrace.client.keeping import Keeper, Store
from headrace.client.link import Link
from headrace.client.looking import TooManyEntriesError, stat, statfs
from headrace.client.watching import Watching
from headrace.errors import HostAwayError, NotFoundError, PermissionRefusedError, ProtocolError
from headrace.protocol.messages import Changed, Entry, StatFsReply, wire_path
from headrace.protocol.paths import ROOT, RelPath

log = logging.getLogger("headrace.mount")

# As NFS has it (nfs(5): acregmin, acregmax): what nobody watches is believed for 3 s. What is watched could be believed
# for ever, but for changes that no kernel reports: memory maps, hard links, other machines.
TTL: Final = 3.0
TTL_WATCHED: Final = 60.0

MAX_ENTRIES: Final = 400_000  # of all directories together, and so of one of them; about 300 bytes each
FIRST: Final = 1000  # entries that are fetched because of one name: 5 ms. For a longer directory there must be a second
FEW: Final = 16  # names that changed; they are asked for one by one before a directory is listed anew
PATIENCE: Final = 2.0  # seconds that a fresh answer is waited for where an old one is at hand
DENIED: Final = 60.0  # seconds after which a directory that may not be read is tried again
TOO_LONG: Final = 600.0  # seconds after which one that is too long is

Callback = Callable[[RelPath | None], None]


class Attributes:
    """The entries of a share. Thread-safe; close it.

    Paths are below `base`. Deadlines are in the link's clock. Every method may raise PermissionRefusedError,
    RemoteIOError, ProtocolError, and HostAwayError where the host is away and nothing is known.
    """

    def __init__(
        self,
        link: Link,
        *,
        base: RelPath = ROOT,
        ttl: float = TTL,
        ttl_watched: float = TTL_WATCHED,
        meta: Store | None = None,
        share: str = "",
        offline: bool = False,
        most: int = MAX_ENTRIES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """ttl, ttl_watched: seconds that an answer is believed without a watch, and while one stands. meta: where
        entries are kept for later, under the name `share`. offline: the host is never asked. most: entries in memory.
        """
        self._base = base
        self._ttl = ttl
        self._ttl_watched = ttl_watched
        self._keeper = Keeper(meta, share.encode() + b"\0" + bytes(base)) if meta is not None else None
        self._offline = offline
        self._most = most
        self._clock = clock
        self._lock = threading.Lock()  # guards what follows
        self._folders = Folders(most)
        self._flights = Flights(
            link, base, self._lock, most, offline=offline, watch=self._watch, landing=self._store, clock=clock
        )
        self._root: tuple[Entry, float] | None = None  # and when it was asked for
        self._valid_from = float("-inf")  # what was asked for before that is not to be believed
        self._space: tuple[StatFsReply | None, float] | None = None
        self._callbacks: list[Callback] = []
        self.stale = 0  # answers that were old because the host was away
        self._watching = None if offline else Watching(link, self._changed)
        if self._watching:
            self._watching.start()

    # ---- what others see -------------------------------------------------------------------------------------------

    @property
    def watching(self) -> bool:
        """Whether the host tells what changes."""
        return self._watch() != 0

    @property
    def exchanges(self) -> int:
        """With the host, so far."""
        return self._flights.exchanges

    def on_invalidate(self, callback: Callback) -> None:
        """`callback` is given each path that is not what it was: its own entry, what is below it, and where it is a
        directory its listing. None: nothing is what it was. On a thread of this object: it must not block for long."""
        self._callbacks.append(callback)

    def stat(self, path: RelPath, deadline: float) -> Entry:
        """The entry at `path`; a symlink is not followed. Raises NotFoundError."""
        if not path:
            return self._stat_root(deadline)
        found = self.find(path.parent, path.name, deadline)
        if found is None:
            raise NotFoundError(f"no such path in the share: {path}")
        return found

    def find(self, folder: RelPath, name: bytes, deadline: float) -> Entry | None:
        """The entry of that name in a directory; None where there is none. Raises BadPathError for what can be none."""
        with self._lock:
            known = self._folders.get(folder)
            found = UNKNOWN if known is None else known.find(name, self._since(known))
        if found is UNKNOWN:
            found = self._ask_name(folder, (folder / name).name, deadline)
        return found

    def list(self, path: RelPath, deadline: float) -> Sequence[Entry]:
        """The entries of the directory at `path`, in no particular order: the same object as before while they are the
        same. Raises NotFoundError, TooManyEntriesError."""
        asked = self._clock()
        while True:
            with self._lock:
                known = self._folders.get(path)
                whole = known is not None and known.whole(self._since(known))
                if known is not None and whole and not known.unknown:
                    return known.sequence()
                names = None
                if known is not None and whole and len(known.unknown) <= FEW:
                    names = tuple(known.unknown)
                patience = known.patience(PATIENCE) if known is not None and known.complete else None
            flight = self._exchange((path, None), names, self._most, deadline, patience)
            if flight is None or isinstance(flight.error, HostAwayError):
                kept = self._last_listing(path)
                if kept is not None:
                    return kept
                self._away(flight)
            if flight.error:
                raise flight.again()
            if flight.looking is None or (flight.looking.more and flight.limit < self._most):
                continue  # some names, or the beginning; what is known now is another matter
            if flight.looking.more:
                raise TooManyEntriesError(f"{path or 'the share'} has more than {self._most:,} entries")
            with self._lock:
                known = self._folders.get(path)
                if known is not None and known.complete and known.asked >= asked and not known.unknown:
                    return known.sequence()
                return tuple(flight.looking.entries.values())

    def statfs(self, deadline: float) -> StatFsReply | None:
        """How full the host's disk is; None where the host does not say."""
        last = self._space
        if self._offline or (last and self._clock() - last[1] < self._ttl):
            return last[0] if last else None
        asked = self._clock()
        try:
            patience = PATIENCE if last else None
            reply = self._flights.run(lambda session, lane: statfs(session, lane, self._base), deadline, patience)
        except HostAwayError:
            if last is None:
                raise
            return last[0]
        self._space = reply, asked
        return reply

    def doubt(self, path: RelPath) -> None:
        """What is at `path` was found to be something else than its entry says: it is asked for anew."""
        with self._lock:
            told = self._change(path, moved=False)
        for callback in self._callbacks:
            for doubted in told:
                callback(doubted)

    def close(self) -> None:
        """Ends the watch, and keeps what is to be kept. May be called again."""
        if self._watching:
            self._watching.close()
        with self._lock:
            unkept = [(path, folder) for path, folder in self._folders.items() if folder.complete and not folder.kept]
        for path, folder in unkept:
            self._keep(path, folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # ---- one name --------------------------------------------------------------------------------------------------

    def _ask_name(self, folder: RelPath, name: bytes, deadline: float) -> Entry | None:
        while True:
            with self._lock:
                known = self._folders.get(folder)
                found = UNKNOWN if known is None else known.find(name, self._since(known))
                if found is not UNKNOWN:
                    return found
                last = UNKNOWN if known is None else known.last(name)
                patience = None if known is None or last is UNKNOWN else known.patience(PATIENCE)
                listing = self._lists(known)
                first = known is None or (not known.misses and len(known.entries) <= FIRST)
            key = (folder, None if listing else name)
            names, instead = None if listing else (name,), name if known is None else None
            flight = self._exchange(key, names, FIRST if first else self._most, deadline, patience, instead)
            if flight is None or isinstance(flight.error, HostAwayError):
                last = self._last_name(folder, name) if last is UNKNOWN else last
                if last is not UNKNOWN:
                    self.stale += 1
                    return last
                self._away(flight)
            if isinstance(flight.error, (PermissionRefusedError, TooManyEntriesError)) and listing:
                continue  # what may not be listed, or is too long, may still be looked into
            if flight.error:
                raise flight.again()
            found = flight.found(name)
            if found is not UNKNOWN:
                return found

    def _lists(self, known: Folder | None) -> bool:
        """Whether a name that is not known has its directory listed. With the lock held.

        A long directory is not fetched for one name alone. The second one says that there will be more.
        """
        if known is None:
            return True
        if known.unlistable > self._clock():
            return False
        if known.whole(self._since(known)):
            return len(known.unknown) > max(FEW, len(known.entries) // 16)
        return known.misses > 0 or (known.complete and len(known.entries) <= FIRST)

    def _stat_root(self, deadline: float) -> Entry:
        with self._lock:
            known, last = self._folders.get(ROOT), self._root
            if last and last[1] >= (self._since(known) if known else self._oldest(self._ttl)):
                return last[0]
        try:
            asked = self._clock()
            (entry,) = self._flights.run(lambda _, lane: stat(lane, [self._base]), deadline, PATIENCE if last else None)
        except HostAwayError:
            found = last[0] if last else self._keeper.entry(ROOT) if self._keeper else UNKNOWN
            if not isinstance(found, Entry):
                raise
            self.stale += 1
            return found
        if entry is None:
            raise NotFoundError(f"no such path in the share: {self._base}")
        with self._lock:
            if self._root is last:  # no word of a change meanwhile
                self._root = entry, asked
        if self._keeper and (last is None or last[0] != entry):
            self._keeper.keep_entry(ROOT, entry)
        return entry

    # ---- exchanges -------------------------------------------------------------------------------------------------

    def _exchange(
        self,
        key: Key,
        names: tuple[bytes, ...] | None,
        limit: int,
        deadline: float,
        patience: float | None,
        instead: bytes | None = None,
    ) -> Flight | None:
        """See Flights.join. What came of it is kept on disk as well."""
        flight, mine = self._flights.join(key, names, limit, deadline, patience, instead)
        if not mine or flight is None or not self._keeper:
            return flight
        folder = flight.folder
        with self._lock:
            known = self._folders.get(folder)
            whole = known is not None and known.complete and not known.unknown
        if known is not None and whole:
            if not known.kept and (flight.looking or len(known.entries) <= FIRST):
                self._keep(folder, known)
            return flight
        for name, entry in flight.singles.items():
            if entry is not None:
                self._keeper.keep_entry(folder.child(name), entry)
        return flight

    def _store(self, flight: Flight) -> None:
        """With the lock held: what came of an exchange."""
        took = self._clock() - flight.asked
        if isinstance(flight.error, (PermissionRefusedError, TooManyEntriesError)) and flight.names is None:
            known = self._folders.get(flight.folder) or Folder()
            known.unlistable = self._clock() + (
                DENIED if isinstance(flight.error, PermissionRefusedError) else TOO_LONG
            )
            self._folders.put(flight.folder, known)
        if isinstance(flight.error, NotFoundError):
            self._folders.drop(flight.folder)
        if flight.error or flight.void:
            return
        if flight.looking is None:
            for name, entry in flight.singles.items():
                if name not in flight.doubted:
                    self._folders.learn(flight.folder, name, entry, flight.asked)
            return
        older = self._folders.get(flight.folder)
        watched = flight.looking.watched and not flight.unwatched
        made = Folder(None if flight.looking.more else flight.looking.entries, flight.asked, flight.watch * watched)
        made.unknown |= flight.doubted if made.complete else set()
        made.took = took
        if older is not None and made.complete:
            made.same_as(older)
        if flight.looking.more and flight.limit >= self._most:
            made.unlistable = self._clock() + TOO_LONG
        self._folders.put(flight.folder, made)
        if flight.folder == ROOT and flight.looking.itself:
            self._root = flight.looking.itself, float("-inf") if flight.doubted else flight.asked

    # ---- what is left when the host is away ------------------------------------------------------------------------

    def _last_name(self, folder: RelPath, name: bytes) -> Found:
        """From disk; from memory it was taken before."""
        if self._keeper is None:
            return UNKNOWN
        kept = self._keeper.folder(folder)
        if kept is None:
            return self._keeper.entry(folder.child(name))
        with self._lock:
            if self._folders.get(folder) is None:
                self._folders.put(folder, kept)
        return kept.last(name)

    def _last_listing(self, path: RelPath) -> Sequence[Entry] | None:
        with self._lock:
            known = self._folders.get(path)
            if known is None or not known.complete:
                known = None
        if known is None and self._keeper:
            known = self._keeper.folder(path)
            with self._lock:
                if known is not None and self._folders.get(path) is None:
                    self._folders.put(path, known)
        if known is None:
            return None
        self.stale += 1
        with self._lock:
            return known.sequence()

    def _away(self, flight: Flight | None) -> NoReturn:
        if flight is not None and flight.error:
            raise flight.again()
        raise HostAwayError("the host did not answer in time")

    def _keep(self, path: RelPath, folder: Folder) -> None:
        """A long directory in which something changes again and again is kept when it is listed, and at the end."""
        if self._keeper is None:
            return
        with self._lock:
            entries = folder.sequence()
            folder.kept = True
        self._keeper.keep(path, entries)

    def _watch(self) -> int:
        """The number of the watch that stands; 0: none does."""
        return self._watching.number if self._watching else 0

    # ---- how long something is believed; with the lock held --------------------------------------------------------

    def _since(self, known: Folder) -> float:
        """Answers to what was asked before that are not believed."""
        watched = known.watch and known.watch == self._watch()
        return self._oldest(self._ttl_watched if watched else self._ttl)

    def _oldest(self, ttl: float) -> float:
        return max(self._valid_from, self._clock() - ttl)

    # ---- what the host tells; on the watch's thread ----------------------------------------------------------------

    def _changed(self, message: Changed) -> None:
        """Raises ProtocolError."""
        try:
            moved, changed, unwatched = (
                [wire_path(raw) for raw in paths] for paths in (message.names, message.entries, message.unwatched)
            )
        except ValueError as why:
            raise ProtocolError(f"the host tells of an impossible path: {why}") from why
        told: dict[RelPath | None, None] = {}
        if message.overflow:
            with self._lock:
                self._forget_all()
            told[None] = None
        for path in map(self._relative, unwatched):
            if path is not None:
                with self._lock:
                    self._folders.unwatch(path)
                    self._flights.unwatch(path)
        for path in changed:
            inside = self._relative(path)
            if inside is not None:
                with self._lock:
                    told.update(self._change(inside, moved=False))
        for path in moved:
            inside = self._relative(path)
            with self._lock:
                if inside:
                    told.update(self._change(inside, moved=True))
                elif inside is not None or self._base.parts[: len(path.parts)] == path.parts:
                    self._forget_all()
                    told[None] = None
        for callback in self._callbacks:
            for path in told:
                callback(path)

    def _change(self, path: RelPath, *, moved: bool) -> dict[RelPath | None, None]:
        """With the lock held. moved: the name came, went, or stands for something else."""
        told: dict[RelPath | None, None] = {}
        for doubted in (path, path.parent) if moved else (path,):
            # What came or went changed the directory that it is in.
            if doubted:
                self._folders.doubt(doubted)
                self._flights.doubt(doubted)
            elif self._root is not None:
                self._root = self._root[0], float("-inf")
            told[doubted] = None
        if moved:
            self._folders.drop_below(path)
            self._flights.void(path)
        return told

    def _forget_all(self) -> None:
        """Old answers stay for when the host is away."""
        self._valid_from = self._clock()
        self._flights.void(ROOT)

    def _relative(self, path: RelPath) -> RelPath | None:
        depth = len(self._base.parts)
        return RelPath(path.parts[depth:]) if path.parts[:depth] == self._base.parts else None
