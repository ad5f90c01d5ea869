"""What a client knows of directories: their entries, since when, and which of them are not to be believed any more.

No I/O, no clock, no lock: `now` is in seconds, and who calls from several threads takes care of that.
"""

from __future__ import annotations

import enum
import math
from collections import OrderedDict
from collections.abc import Iterator
from typing import Final

from headrace.protocol.messages import Entry
from headrace.protocol.paths import ROOT, RelPath

MAX_SINGLES: Final = 4096  # names of one directory that were asked for one by one


class Unknown(enum.Enum):
    """Whether there is such a name is not known."""

    UNKNOWN = enum.auto()


UNKNOWN: Final = Unknown.UNKNOWN
Found = Entry | None | Unknown  # None: there is no such name


class Folder:
    """One directory.

    entries: by name. complete: they are all there were. asked: when they were asked for. watch: the number of the watch
    that says what changes in here; 0: none. unknown: names that changed since. single: names that were asked for one by
    one, with what there was and when that was asked. misses: how many since the last listing. unlistable: until when it
    is not tried again. kept: whether it is on disk as it is here.
    """

    __slots__ = (
        *("_sequence", "asked", "complete", "entries", "kept", "misses", "single", "took", "unknown", "unlistable"),
        "watch",
    )

    def __init__(self, entries: dict[bytes, Entry] | None = None, asked: float = -math.inf, watch: int = 0) -> None:
        """entries: of a complete listing; None: there was none."""
        self.entries: dict[bytes, Entry] = entries or {}
        self.complete = entries is not None
        self.asked = asked
        self.watch = watch
        self.took = 0.0  # seconds that the listing took
        self.unknown: set[bytes] = set()
        self.single: OrderedDict[bytes, tuple[Entry | None, float]] = OrderedDict()
        self.misses = 0
        self.unlistable = -math.inf
        self.kept = False
        self._sequence: tuple[Entry, ...] | None = None

    def __len__(self) -> int:
        """What it counts for the bound on memory, in entries."""
        return 1 + len(self.entries) + len(self.single)

    def find(self, name: bytes, since: float) -> Found:
        """What is known of the name from answers to what was asked at `since` or later."""
        if self.single:
            single = self.single.get(name)
            if single is not None and single[1] >= since:
                return single[0]
        if self.complete and self.asked >= since and name not in self.unknown:
            return self.entries.get(name)
        return UNKNOWN

    def last(self, name: bytes) -> Found:
        """What was known of the name last, however long ago, and whatever changed since."""
        single = self.single.get(name)
        if single is not None:
            return single[0]
        return self.entries.get(name) if self.complete else self.entries.get(name, UNKNOWN)

    def whole(self, since: float) -> bool:
        """Whether all entries are known from `since` or later, but for those that are `unknown`."""
        return self.complete and self.asked >= since

    def patience(self, least: float) -> float:
        """Seconds that are to be waited for a new answer where there is an old one: on a slow link, time enough."""
        return max(least, 3 * self.took)

    def sequence(self) -> tuple[Entry, ...]:
        """The entries. The same object as the last time where nothing changed."""
        if self._sequence is None:
            self._sequence = tuple(self.entries.values())
        return self._sequence

    def learn(self, name: bytes, entry: Entry | None, asked: float) -> None:
        """The answer to what was asked about one name."""
        if self.complete and name in self.unknown:
            self.unknown.discard(name)
            self.single.pop(name, None)
            if entry is None:
                self.entries.pop(name, None)
            else:
                self.entries[name] = entry
            self._sequence = None
            self.kept = False
            return
        self.misses += 1
        self.single[name] = entry, asked
        if len(self.single) > MAX_SINGLES:
            self.single.popitem(last=False)

    def doubt(self, name: bytes) -> None:
        """The name is not what it was."""
        if name in self.single:
            entry, _ = self.single[name]
            self.single[name] = entry, -math.inf
        if self.complete:
            self.unknown.add(name)

    def same_as(self, older: Folder) -> None:
        """Takes over what `older` has, where that is the same: memory, and what was told of it."""
        if older.complete and not older.unknown and older.entries == self.entries:
            self.entries, self._sequence, self.kept = older.entries, older._sequence, older.kept


class Folders:
    """Directories by path, the least recently used dropped when they have too many entries together."""

    def __init__(self, limit: int) -> None:
        """limit: entries."""
        self._limit = limit
        self._folders: OrderedDict[RelPath, Folder] = OrderedDict()
        self._below: dict[RelPath, int] = {}  # how many of them lie below a path
        self.entries = 0

    def __len__(self) -> int:
        return len(self._folders)

    def items(self) -> Iterator[tuple[RelPath, Folder]]:
        return iter(self._folders.items())

    def get(self, path: RelPath) -> Folder | None:
        """Counts as use."""
        folder = self._folders.get(path)
        if folder is not None:
            self._folders.move_to_end(path)
        return folder

    def put(self, path: RelPath, folder: Folder) -> None:
        """In the place of what was there."""
        self.drop(path)
        self._folders[path] = folder
        self.entries += len(folder)
        for above in _above(path):
            self._below[above] = self._below.get(above, 0) + 1
        while self.entries > self._limit and len(self._folders) > 1:
            self.drop(next(iter(self._folders)))

    def learn(self, path: RelPath, name: bytes, entry: Entry | None, asked: float) -> Folder:
        """Folder.learn, of a directory that may not be known yet."""
        folder = self._folders.get(path)
        if folder is None:
            folder = Folder()
            folder.learn(name, entry, asked)
            self.put(path, folder)
            return folder
        before = len(folder)
        folder.learn(name, entry, asked)
        self.entries += len(folder) - before
        return folder

    def doubt(self, path: RelPath) -> None:
        """The entry at `path`, which is not the root, is not what it was."""
        folder = self._folders.get(path.parent)
        if folder is not None:
            folder.doubt(path.name)

    def drop(self, path: RelPath) -> None:
        folder = self._folders.pop(path, None)
        if folder is None:
            return
        self.entries -= len(folder)
        for above in _above(path):
            self._below[above] -= 1
            if not self._below[above]:
                del self._below[above]

    def drop_below(self, path: RelPath) -> None:
        """The directory at `path`, and all below it, where they are known."""
        if path in self._below:
            depth = len(path.parts)
            for known in [known for known in self._folders if known.parts[:depth] == path.parts]:
                self.drop(known)
        else:
            self.drop(path)

    def unwatch(self, path: RelPath) -> None:
        """Nothing is told of that directory any more."""
        folder = self._folders.get(path)
        if folder is not None:
            folder.watch = 0


def _above(path: RelPath) -> Iterator[RelPath]:
    if path != ROOT:
        for depth in range(len(path.parts)):
            yield RelPath(path.parts[:depth])
