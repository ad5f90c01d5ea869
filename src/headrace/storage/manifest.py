"""The hashes of a file's chunks: computed as they are asked for, and remembered while the file stays the same."""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Final, Protocol

from headrace.protocol.messages import CHUNK_SIZE, HASH_SIZE, MAX_HASHES, READ_SIZE
from headrace.storage.blocks import BlockCache
from headrace.storage.chunks import ZERO_HASH, chunk_count, chunk_range, hash_bytes, should_hash
from headrace.storage.source import SourceFile

MAX_CACHED: Final = 1_000_000  # hashes: 32 MB, and so 4 TB of files
_FILE_COST: Final = 8  # what a file's place in the cache weighs, in hashes
_UNKNOWN: Final = bytes(HASH_SIZE)
# Nanoseconds. A file that changed less long ago may change again without its times showing it: they are as coarse as
# the kernel's tick, or as two seconds on FAT.
SETTLED: Final = 2_000_000_000

# The first part comes early, so that chunks flow while the rest is hashed; later ones are larger: fewer messages.
FIRST_PART: Final = 4
NEXT_PART: Final = 16


class HashStore(Protocol):
    """Where hashes outlive the process: storage.manifest_store. Thread-safe, and raises nothing."""

    def load(self, version: bytes) -> Mapping[int, bytes | bytearray]: ...
    def save(self, version: bytes, index: int, digest: bytes) -> None: ...
    def reused(self, size: int) -> None: ...
    def close(self) -> None: ...


class HashCache:
    """Chunk hashes by version token. Thread-safe, bounded: the least recently used file is forgotten whole.

    max_hashes: how many to keep; each file counts for a few more, so that millions of small ones are bounded too.
    clock: what the times of files are compared with, in nanoseconds. store: opens the place where hashes outlive this
    process, or says that there is none; called when the first file comes that is kept there. `close` it then. blocks:
    what the chunks of files that are being updated somewhere are made of, bounded on its own.
    """

    def __init__(
        self,
        max_hashes: int = MAX_CACHED,
        clock: Callable[[], int] = time.time_ns,
        store: Callable[[], HashStore | None] | None = None,
    ) -> None:
        self.blocks = BlockCache()
        self._max = max_hashes
        self._clock = clock
        self._open_store = store
        self._store: HashStore | None = None
        self._opening = threading.Lock()
        self._weight = 0
        # One bytearray a file: as objects of their own the hashes would take five times the memory.
        self._files: OrderedDict[bytes, bytearray] = OrderedDict()
        self._lock = threading.Lock()
        self._loading = threading.Lock()
        self.hits = 0  # of `get`
        self.misses = 0

    def get(self, version: bytes, index: int) -> bytes | None:
        """The hash of that chunk, or None when it is not known."""
        with self._lock:
            hashes = self._files.get(version)
            found = b""
            if hashes is not None:
                self._files.move_to_end(version)
                found = bytes(hashes[index * HASH_SIZE : (index + 1) * HASH_SIZE])
            if not found or found == _UNKNOWN:
                self.misses += 1
                return None
            self.hits += 1
        return found

    def known(self, source: SourceFile, index: int) -> bytes | None:
        """As `get`, for a file of the share: also what an earlier process knew of it."""
        if store := self._kept_by(source):
            with self._loading:  # connections ask about one file at the same moment; it is looked up once
                with self._lock:
                    looked_for = source.version in self._files
                if not looked_for:
                    self._take(source, store.load(source.version), store)
        return self.get(source.version, index)

    def remember(self, source: SourceFile, index: int, hash: bytes) -> None:
        """As `put`, for what was just read and hashed, unless the file is too young to be known by its version, or the
        chunk so small that it is as quickly hashed again."""
        if not should_hash(*chunk_range(source.size, index)):
            return
        if not self.settled(source):
            return
        self.put(source.version, source.size, index, hash)
        if store := self._kept_by(source):
            store.save(source.version, index, hash)

    def settled(self, source: SourceFile) -> bool:
        """Whether the file is old enough to be known by its version."""
        st, now = os.fstat(source.fileno()), self._clock()
        # A time in the future is no sign of youth: the next change would set it to the present.
        return min(abs(now - st.st_mtime_ns), abs(now - st.st_ctime_ns)) >= SETTLED

    def _kept_by(self, source: SourceFile) -> HashStore | None:
        """The store, unless the file is so small that it comes in batches: those have a hash of their own."""
        if self._open_store is None or source.size <= READ_SIZE:
            return None
        with self._opening:
            if self._store is None and self._open_store is not None:
                self._store = self._open_store()
                if self._store is None:
                    self._open_store = None
            return self._store

    def _take(self, source: SourceFile, stored: Mapping[int, bytes | bytearray], store: HashStore) -> None:
        """What the store has of a file. Nothing is kept as well: it is not asked again then."""
        count = chunk_count(source.size)
        kept = 0
        for first, hashes in stored.items():
            for place in range(min(len(hashes) // HASH_SIZE, count - first)):
                digest = bytes(hashes[place * HASH_SIZE : (place + 1) * HASH_SIZE])
                if digest != _UNKNOWN:
                    self.put(source.version, source.size, first + place, digest)
                    kept += chunk_range(source.size, first + place)[1]
        if kept:
            store.reused(kept)
            return
        with self._lock:
            if source.version not in self._files:
                self._files[source.version] = bytearray()
                self._weight += _FILE_COST
                self._make_room()

    def close(self) -> None:
        """Writes what is to outlive the process."""
        with self._opening:
            if self._store:
                self._store.close()

    def put(self, version: bytes, size: int, index: int, hash: bytes) -> None:
        """Remembers the hash of chunk `index` of a file of `size` bytes. ValueError when it has no such chunk."""
        if not 0 <= index < chunk_count(size) or len(hash) != HASH_SIZE:
            raise ValueError("no such chunk, or no hash")
        if index + _FILE_COST >= self._max:
            return
        with self._lock:
            hashes = self._files.get(version)
            if hashes is None:
                hashes = self._files[version] = bytearray()
                self._weight += _FILE_COST
            self._files.move_to_end(version)
            missing = index + 1 - len(hashes) // HASH_SIZE
            if missing > 0:
                hashes.extend(bytes(missing * HASH_SIZE))
                self._weight += missing
            hashes[index * HASH_SIZE : (index + 1) * HASH_SIZE] = hash
            self._make_room()

    def _make_room(self) -> None:
        """With the lock held."""
        while self._weight > self._max:
            _, dropped = self._files.popitem(last=False)
            self._weight -= _FILE_COST + len(dropped) // HASH_SIZE


def manifest(source: SourceFile, size: int, cache: HashCache) -> Iterator[tuple[int, list[bytes]]]:
    """The hashes of all chunks in order, as parts (index of the first, hashes), while hashing goes on.

    size: bytes, the source's. Known hashes are not computed again and holes are not read. Raises what
    SourceFile.read_into raises. An empty file gives nothing.
    """
    buffer = memoryview(bytearray())
    part: list[bytes] = []
    first = computed = 0
    limit = FIRST_PART
    for index in range(chunk_count(size)):
        known = cache.known(source, index)
        if known is None:
            offset, length = chunk_range(size, index)
            if source.sparse and source.is_hole(offset, length):
                known = ZERO_HASH(length)
            else:
                if not buffer:
                    buffer = memoryview(bytearray(min(size, CHUNK_SIZE)))
                source.read_into(buffer[:length], offset)
                with source.times.hash:
                    known = hash_bytes(buffer[:length])
            cache.remember(source, index, known)
            computed += 1
        part.append(known)
        if computed >= limit or len(part) >= MAX_HASHES:
            yield first, part
            first, part, computed, limit = index + 1, [], 0, NEXT_PART
    if part:
        yield first, part
