"""One file that comes into a share in chunks, or is compared with the one that is there.

Several streams of one peer may send to it at once, and any of them may end at any time. So whoever touches its
descriptors is counted, and they are closed by the last one out: a number that was given away is never written to.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

from headrace.errors import HeadraceError, NotFoundError, ProtocolError, RefusedError, SourceChangedError
from headrace.protocol.messages import CHUNK_SIZE, KIB, MAX_HELD, Entry
from headrace.protocol.paths import RelPath
from headrace.storage.chunks import ZERO_HASH, chunk_count, chunk_range, new_hasher
from headrace.storage.clone import Copier
from headrace.storage.destination import Destination
from headrace.storage.index_lazy import LazyIndex
from headrace.storage.index_places import Facts, IndexedFile, Place
from headrace.storage.oserrors import label, local_errors
from headrace.storage.partial import Partial
from headrace.storage.rawio import pread_all

if TYPE_CHECKING:
    from headrace.storage.index import ChunkIndex

Key = tuple[bytes, RelPath, bytes]  # peer, path, version token

INDEX_OPENS: Final = 0.25  # seconds that the first file waits for the index; some 15 ms are usual
# Chunks. So a commit has no more than that left to flush, and the client hears of it before it takes us for gone.
SYNC_EVERY: Final = 64
BUSY: Final = 30.0  # seconds that a file waits for others to be done with a write to it

_PIECE: Final = 256 * KIB
_COPIER: Final = Copier()


class Arriving:
    """See the module. Thread-safe.

    compare: nothing is written. count: of its chunks. index: where chunks lie on this disk; only places below `root`
    are used: else whoever knows the hash of a secret could have it put into the share.
    """

    def __init__(
        self, key: Key, entry: Entry, *, compare: bool, index: LazyIndex | None = None, root: bytes = b""
    ) -> None:
        self.key = key
        self.path = key[1]
        self.entry = entry
        self.compare = compare
        self.count = chunk_count(entry.size)
        self.there = False
        self.offered = False  # the client offers hashes; it need not be told to
        self._lazy = index
        self._root = os.path.join(root, b"")
        self._changed = threading.Condition()
        self._begun = threading.Event()
        self._users: set[object] = set()
        self._inside = 0
        self._closed = False
        self._discard = False
        self._partial: Partial | None = None
        self._old = -1
        self._equal: set[int] = set()
        self._unsynced = 0  # chunks since the last flush
        self.chunks: Callable[[], Iterable[tuple[int, int, bytes]]] = tuple  # (offset, length, hash), once finished

    def begin(self, destination: Destination, partial: Partial | None, old: RelPath) -> None:
        """Takes the part file over. old: what may have something in common with it. NotFoundError: there is nothing
        to compare with."""
        self._partial = partial
        there = destination.lstat(self.path)
        self.there = bool(there and there.st_size == self.entry.size and there.st_mtime_ns == self.entry.mtime_ns)
        with contextlib.suppress(HeadraceError):
            self._old = destination.open_read(old)
        if self.compare and (self._old < 0 or os.fstat(self._old).st_size != self.entry.size):
            raise SourceChangedError(f"{label(self.path)} on the host is not what it was")
        self._begun.set()

    # ---- who uses it -----------------------------------------------------------------------------------------------

    def join(self, user: object) -> bool:
        """False: it is over."""
        with self._changed:
            if not self._closed:
                self._users.add(user)
            return not self._closed

    def part(self, user: object) -> bool:
        """Whether nobody uses it any more."""
        with self._changed:
            self._users.discard(user)
            return not self._users

    def close(self, *, discard: bool = False) -> None:
        """What came stays for the next time, unless it is to be discarded."""
        with self._changed:
            self._closed = True
            self._discard = self._discard or discard
            self._begun.set()
            if not self._inside:
                self._end()

    def _end(self) -> None:
        """With the lock held."""
        partial, self._partial = self._partial, None
        old, self._old = self._old, -1
        if partial:
            (partial.discard if self._discard else partial.close)()
        if old >= 0:
            os.close(old)

    @contextlib.contextmanager
    def _inside_of_it(self, *, alone: bool = False) -> Iterator[None]:
        """Nothing is closed while somebody is in here. alone: nobody else is, either."""
        self._begun.wait(BUSY)
        with self._changed:
            if alone and not self._changed.wait_for(lambda: not self._inside, BUSY):
                raise RefusedError(f"{label(self.path)} is still being written to")
            if self._closed:
                raise NotFoundError(f"{label(self.path)} is not being sent")
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()
                if self._closed and not self._inside:
                    self._end()

    # ---- what is there already -------------------------------------------------------------------------------------

    def held(self) -> list[tuple[int, int]]:
        """Runs of chunks that came before, as (first, number); MAX_HELD of them at most."""
        runs: list[tuple[int, int]] = []
        with self._inside_of_it():
            for number in sorted(self._partial.verified if self._partial else ()):
                if runs and sum(runs[-1]) == number:
                    runs[-1] = runs[-1][0], runs[-1][1] + 1
                elif len(runs) < MAX_HELD:
                    runs.append((number, 1))
                else:
                    break
        return runs

    def wants_offers(self) -> bool:
        """Whether something speaks for chunks of it being here: an older version, or a file of the same size."""
        with self._inside_of_it():
            if self._old >= 0 or (self._partial and self._partial.stale):
                self.offered = True
            elif self._lazy and (index := self._lazy.ready(INDEX_OPENS)):
                similar = index.similar(self.entry.size, self.entry.mtime_ns)
                self.offered = any(file.path.startswith(self._root) and file.is_still() for file in similar)
        return self.offered

    def knows(self, digest: bytes) -> bool:
        """Whether a chunk that just came lies elsewhere in the share as well."""
        if self.offered or not self._lazy or not (index := self._lazy.ready(0)):
            return False
        return any(place.file.is_still() for place in self._places(index, [digest]).get(digest, ()))

    def _places(self, index: ChunkIndex, hashes: Sequence[bytes]) -> dict[bytes, list[Place]]:
        found = index.lookup(hashes)
        inside = {
            digest: [place for place in places if place.file.path.startswith(self._root)]
            for digest, places in found.items()
        }
        return {digest: places for digest, places in inside.items() if places}

    def offer(self, first: int, hashes: Sequence[bytes]) -> list[int]:
        """Puts those chunks in their places that can be had here; the numbers of the others. Raises LocalDiskError."""
        if first + len(hashes) > self.count:
            raise ProtocolError("the client offers chunks past the end of its file")
        index = self._lazy.ready(INDEX_OPENS) if self._lazy and not self.compare else None
        places = self._places(index, hashes) if index else {}
        wanted: list[int] = []
        for number, digest in enumerate(hashes, first):
            with self._inside_of_it():
                if not self._has(number, digest, index, places.get(digest, [])):
                    wanted.append(number)
        return wanted

    def _has(self, number: int, digest: bytes, index: ChunkIndex | None, places: list[Place]) -> bool:
        offset, length = chunk_range(self.entry.size, number)
        partial = self._partial
        if partial is None:
            if self._old_is(offset, length, digest):
                self._equal.add(number)
            return number in self._equal
        if number in partial.verified or partial.adopt(number, digest):
            return True
        if length == CHUNK_SIZE and digest == ZERO_HASH(length):
            partial.write_zeros(offset, length)
        elif not self._copy_old(partial, offset, length, digest) and not self._copy(
            *(partial, index, places),
            *(offset, length),
        ):
            return False
        partial.commit(number, digest)
        return True

    def _old_is(self, offset: int, length: int, digest: bytes) -> bool:
        """Whether the older version has that chunk at the same place."""
        if self._old < 0:
            return False
        hasher, buffer = new_hasher(), memoryview(bytearray(min(length, _PIECE)))
        with local_errors("read", self.path):
            for start in range(offset, offset + length, _PIECE):
                piece = buffer[: min(_PIECE, offset + length - start)]
                if pread_all(self._old, piece, start) < len(piece):
                    return False
                hasher.update(piece)
        return hasher.digest() == digest

    def _copy_old(self, partial: Partial, offset: int, length: int, digest: bytes) -> bool:
        """From the older version, by its descriptor."""
        if not self._old_is(offset, length, digest):
            return False
        file = IndexedFile(0, bytes(self.path), Facts.of(os.fstat(self._old)), whole=False)
        place = Place(file, offset, length, digest)
        return partial.fill(offset, length, lambda fd: _COPIER.copy_open(self._old, place, fd, offset).way is not None)

    def _copy(self, partial: Partial, index: ChunkIndex | None, places: list[Place], offset: int, length: int) -> bool:
        if index is None or not places:
            return False
        return partial.fill(offset, length, lambda fd: _COPIER.fill(index, places, fd, offset, length))

    # ---- what comes ------------------------------------------------------------------------------------------------

    def write(self, offset: int, data: memoryview) -> None:
        """A piece of a chunk. Raises NotFoundError where it is over, LocalDiskError."""
        with self._inside_of_it():
            self._writable.write(offset, data)

    def write_zeros(self, offset: int, length: int) -> None:
        with self._inside_of_it():
            self._writable.write_zeros(offset, length)

    def complete(self, number: int, digest: bytes) -> None:
        """The chunk is written whole, and has this hash."""
        with self._inside_of_it():
            self._writable.commit(number, digest)
            with self._changed:
                self._unsynced += 1
                flush = self._unsynced >= SYNC_EVERY
                if flush:
                    self._unsynced = 0
            if flush:
                self._writable.sync()

    @property
    def _writable(self) -> Partial:
        if self._partial is None:
            raise RefusedError(f"{label(self.path)} was opened to be compared, and not to be written")
        return self._partial

    # ---- the end ---------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Its bytes go to the disk before it gets its name, while others may name theirs."""
        with self._inside_of_it():
            partial = self._writable
            if not partial.complete:
                raise RefusedError(f"chunks of {label(self.path)} are missing")
            partial.sync()

    def finish(self, *, replace: bool) -> os.stat_result:
        """It gets its permissions, its time and its name. What it is then."""
        with self._inside_of_it(alone=True):
            partial = self._writable
            st = partial.finish(mode=self.entry.mode, mtime_ns=self.entry.mtime_ns, replace=replace)
            self.chunks = partial.chunks
            return st

    def check_equal(self, destination: Destination) -> None:
        """RefusedError unless all chunks were found equal; SourceChangedError where another file has the name now."""
        with self._inside_of_it():
            if len(self._equal) < self.count:
                raise RefusedError(f"not all of {label(self.path)} was compared, or found equal")
            there = destination.lstat(self.path)
            if there is None or not os.path.samestat(there, os.fstat(self._old)):
                raise SourceChangedError(f"{label(self.path)} on the host is not what it was")
