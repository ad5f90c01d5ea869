"""A mounted share, all of it: the link to the host, the caches, the file system and the kernel's side."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from headrace import config
from headrace._version import __version__
from headrace.client.attributes import Attributes
from headrace.client.blocks import DEFAULT_RAM, BlockReader
from headrace.client.link import Link
from headrace.client.session import Session
from headrace.client.target import Target
from headrace.errors import HeadraceError, UsageError, printable
from headrace.mount import device, table, unmount
from headrace.mount.fs import TIMEOUT, FileSystem, OpenFile
from headrace.mount.server import Server
from headrace.observe.metrics import Sample
from headrace.protocol.messages import Entry
from headrace.protocol.paths import ROOT, RelPath
from headrace.storage.blockcache import DEFAULT_LIMIT, BlockCache

log = logging.getLogger("headrace.mount")

FOLDER: Final = "blocks"  # of the disk cache, in the headrace home


@dataclass(frozen=True, slots=True)
class MountOptions:
    """timeout: seconds that one call may take. cache_ram, cache_disk: bytes; a disk of 0: none. plain: every read is a
    request to the host, nothing is cached. offline: only what is cached, the host is never asked.
    fuse: further options for fusermount3."""

    timeout: float = TIMEOUT
    cache_ram: int = DEFAULT_RAM
    cache_disk: int = DEFAULT_LIMIT
    plain: bool = False
    offline: bool = False
    fuse: tuple[str, ...] = ()
    nonempty: bool = False


class Mount:
    """One mounted share. A context manager: made means mounted, left means unmounted."""

    def __init__(
        self, target: Target, directory: str, connect: Callable[[], Session], options: MountOptions = MountOptions()
    ) -> None:
        """connect: a new session with the target's share; called again when the host was gone.

        Raises MountError, LocalDiskError, DestinationExistsError (see device and unmount.make_room), what `connect`
        raises, NotFoundError and UsageError where the target is no folder.
        """
        self._started = time.monotonic()
        self._target = target
        self._options = options
        self._session: Session | None = None
        self._limit_rate: float | None = None
        with contextlib.ExitStack() as undo:
            device.check_here()
            self.point = unmount.make_room(directory, nonempty=options.nonempty)
            self._first = None if options.offline else connect()  # not by the link: it would try again where it fails
            self._link = Link(lambda: self._connected(connect))
            undo.callback(self._link.close)
            disk = None
            if options.cache_disk and not options.plain:
                disk = BlockCache(config.home() / FOLDER, options.cache_disk)
                undo.callback(disk.close)
            self._disk = disk
            assert target.code is not None
            self._reader = BlockReader(
                self._link,
                ram=options.cache_ram,
                disk=disk,
                share=target.code.share,
                plain=options.plain,
                offline=options.offline,
            )
            undo.callback(self._reader.close)
            self._names = Attributes(
                self._link, base=target.path, meta=disk, share=target.code.share, offline=options.offline
            )
            undo.callback(self._names.close)
            root = self._names.stat(ROOT, time.monotonic() + options.timeout)
            if root.kind != "d":
                raise UsageError(
                    f"{target.path or 'what is shared there'} is a file, and only a folder can be mounted",
                    hint="Mount the folder that holds it, or fetch it with headrace get.",
                )
            self._fs = FileSystem(self._names, self._open_file, root, timeout=options.timeout, direct=options.plain)
            self._server = Server(device.mount(self.point, f"headrace:{self.shown}", options.fuse), self._fs)
            undo.callback(self._server.close)
            undo.callback(self._unmount)
            self._names.on_invalidate(self._outdated)
            self._server.start()
            found = table.at(self.point)
            far = self._reader.learn_path(time.monotonic() + options.timeout).far
            self.read_ahead = device.read_ahead(found.device, far=far) if found else 0
            self._undo = undo.pop_all()

    @property
    def shown(self) -> str:
        """The target without its code."""
        below = f"/{printable(os.fsdecode(bytes(self._target.path)))}" if self._target.path else ""
        return self._target.address + below

    def on_end(self, callback: Callable[[], None]) -> None:
        """`callback` is called, on another thread, when it was unmounted."""
        self._server.on_end(callback)

    def close(self) -> None:
        """Unmounts, and ends everything. What is still open there fails from here on."""
        self._undo.close()

    def __enter__(self) -> Mount:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def samples(self) -> Iterator[Sample]:
        """For the metrics."""
        from headrace.mount.metrics import block_samples

        return block_samples(self._reader.figures(), self._link.lost)

    # ---- observe.control.Program -----------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        assert self._target.code is not None
        session, figures = self._session, self._reader.figures()
        return {
            "kind": unmount.KIND,
            "pid": os.getpid(),
            "version": __version__,
            "name": session.agreed.name if session else self._target.code.share,
            "share": self._target.code.share,
            "target": self.shown,
            "dir": self.point,
            "up": self._link.up,
            "offline": self._options.offline,
            "transport": session.transport if session else None,
            "protocol": session.agreed.version if session else None,
            "limit_rate": self._limit_rate,
            "seconds": round(time.monotonic() - self._started, 3),
            "clock": time.monotonic(),
            "bytes_read": self._fs.bytes_read,
            "requests": self._server.requests,
            "open": self._fs.handles,
            "errors": dict(self._fs.errors),
            "cache": {**asdict(figures), "disk": asdict(self._disk.figures()) if self._disk else None},
            "watching": self._names.watching,
            "stale": self._names.stale,
        }

    def limit(self, rates: Mapping[str, float | None]) -> dict[str, Any]:
        if "limit_peer" in rates:
            raise UsageError("a mount has no limit per peer", hint="Use --limit-rate.")
        self._limit_rate = rates["limit_rate"]
        if self._session:
            self._session.limit.rate = self._limit_rate
        return {"limit_rate": self._limit_rate}

    # ----------------------------------------------------------------------------------------------------------------

    def _connected(self, connect: Callable[[], Session]) -> Session:
        session, self._first = self._first or connect(), None
        if self._session is None:
            self._limit_rate = session.limit.rate
        session.limit.rate = self._limit_rate  # which may have been changed meanwhile
        self._session = session
        return session

    def _outdated(self, path: RelPath | None) -> None:
        self._server.forget(*self._fs.outdated(path))

    def _open_file(self, path: RelPath, entry: Entry) -> OpenFile:
        return self._reader.open(self._target.path.join(path), entry)

    def _unmount(self) -> None:
        if self._server.wait(0):
            return
        try:
            said = device.detach(self.point, lazy=False, seconds=unmount.PATIENCE)
            if said is not None:
                log.warning("%s is in use, and detached: programs that have files open there get errors", self.point)
                device.detach(self.point, lazy=True, seconds=unmount.PATIENCE)
        except (OSError, HeadraceError) as why:
            log.warning("%s could not be unmounted: %s", self.point, why)
