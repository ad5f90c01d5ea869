"""Random access to the files of a share, for whoever reads them often: cached, read ahead, and never too late."""

from __future__ import annotations

from typing import Final

from headrace.client.link import Link
from headrace.client.session import Session
from headrace.engine.exchange import EXCHANGES
from headrace.engine.lane import Lane
from headrace.errors import HostAwayError
from headrace.protocol.messages import MIB, PHASE_BASELINE, READ_SIZE, Entry
from headrace.protocol.paths import RelPath
from headrace.storage.blockcache import BlockCache

DEFAULT_RAM: Final = 256 * MIB


class BlockReader:
    """Opens files of one share. Thread-safe; close it after its files.

    ram: bytes of blocks that are kept in memory, those in flight included. disk: where blocks are kept besides; None:
    nowhere. share: the public group of the share's code, which tells shares apart on the disk. plain: every read is a
    request of its own, nothing is cached or read ahead. offline: only what is cached, the link is never used and may be
    None.
    """

    def __init__(
        self,
        link: Link | None,
        *,
        ram: int = DEFAULT_RAM,
        disk: BlockCache | None = None,
        share: str = "",
        plain: bool = False,
        offline: bool = False,
    ) -> None:
        self._link = link
        self._offline = offline or link is None

    def open(self, path: RelPath, entry: Entry) -> BlockFile:
        """A handle on the file at `path`, in the version that `entry` has. Asks nobody. entry: of a file."""
        return BlockFile(self, path, entry)

    def close(self) -> None:
        """Ends what is read ahead and frees all memory. The link and the disk's cache stay their owner's."""

    def fetch(self, path: RelPath, entry: Entry, offset: int, length: int, deadline: float) -> memoryview:
        if self._link is None or self._offline:
            raise HostAwayError("that part of the file is not cached, and --offline asks nobody")
        buffer = memoryview(bytearray(length))

        def ask(session: Session, lane: Lane) -> None:
            exchange = EXCHANGES[session.agreed.version if length > READ_SIZE else PHASE_BASELINE]
            exchange.request(lane, path, entry.version, offset, length)
            exchange.receive(lane, length, buffer, None)

        self._link.run(ask, deadline)
        return buffer


class BlockFile:
    """An open file in one version. Thread-safe. size: bytes."""

    def __init__(self, reader: BlockReader, path: RelPath, entry: Entry) -> None:
        self._reader = reader
        self.path = path
        self.entry = entry
        self.size = entry.size

    def read(self, offset: int, length: int, deadline: float) -> bytes | memoryview:
        """The bytes at `offset`; fewer than `length` only at the end of the file. What it gives stays as it is for as
        long as somebody holds it. Blocks until `deadline` at most, a time by the link's clock.

        Raises SourceChangedError (the file on the host is another version by now), HostAwayError, NotFoundError,
        PermissionRefusedError, RemoteIOError, IntegrityError, ProtocolError.
        """
        length = min(length, self.size - offset)
        if length <= 0:
            return b""
        return self._reader.fetch(self.path, self.entry, offset, length, deadline)

    def close(self) -> None:
        """The handle is of no further use; what it cached stays cached. May be called again."""
