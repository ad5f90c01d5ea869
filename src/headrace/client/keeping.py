"""Directories on disk, so that a mount can show them with the host gone."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final, Protocol

import msgspec

from headrace.client.folders import UNKNOWN, Folder, Found
from headrace.protocol.messages import Entry, check_entries
from headrace.protocol.paths import RelPath

log = logging.getLogger("headrace.mount")

_LISTING: Final = b"listing"
_ENTRY: Final = b"entry"


class Store(Protocol):
    """storage.blockcache.BlockCache, as far as it matters here: it may forget anything at any time."""

    def put_meta(self, key: bytes, value: bytes) -> None: ...
    def get_meta(self, key: bytes) -> bytes | None: ...


_listing = msgspec.msgpack.Decoder(list[Entry])
_entry = msgspec.msgpack.Decoder(Entry)


class Keeper:
    """The directories of one share. Thread-safe as far as the store is. What was damaged is as if it were not there."""

    def __init__(self, store: Store, share: bytes) -> None:
        """share: what tells this share from others in the same store."""
        self._store = store
        self._share = share
        self.damaged = 0

    def keep(self, path: RelPath, entries: Sequence[Entry]) -> None:
        """A complete listing."""
        self._store.put_meta(self._key(_LISTING, path), msgspec.msgpack.encode(entries))

    def keep_entry(self, path: RelPath, entry: Entry) -> None:
        """One entry by itself: of the root, or of a directory that is not known as a whole."""
        self._store.put_meta(self._key(_ENTRY, path), msgspec.msgpack.encode(entry))

    def folder(self, path: RelPath) -> Folder | None:
        """The listing that was kept, as one that was asked for an eternity ago."""
        raw = self._store.get_meta(self._key(_LISTING, path))
        if raw is None:
            return None
        try:
            entries = _listing.decode(raw)
            check_entries(entries)
        except (msgspec.MsgspecError, ValueError) as why:
            self._note(why)
            return None
        folder = Folder({entry.name: entry for entry in entries})
        folder.kept = True
        return folder

    def entry(self, path: RelPath) -> Found:
        raw = self._store.get_meta(self._key(_ENTRY, path))
        if raw is None:
            return UNKNOWN
        try:
            return _entry.decode(raw).check(is_root=True)
        except (msgspec.MsgspecError, ValueError) as why:
            self._note(why)
            return UNKNOWN

    def _key(self, kind: bytes, path: RelPath) -> bytes:
        return b"\0".join((kind, self._share, bytes(path)))

    def _note(self, why: Exception) -> None:
        self.damaged += 1
        if self.damaged == 1:
            log.warning("what was kept of some directories is damaged and not used: %s", why)
