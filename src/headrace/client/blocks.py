"""Random access to the files of a share, for whoever reads them often: cached, read ahead, and never too late."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from typing import Final

from headrace.client.link import Link
from headrace.client.pipeline import stream
from headrace.client.prefetch import More, Prefetcher
from headrace.client.session import Session
from headrace.engine.exchange import EXCHANGES
from headrace.engine.lane import Lane
from headrace.engine.ramcache import SHIFT, RamCache, RamFigures, Span, new_buffer
from headrace.engine.readahead import BLOCK, LARGEST_WINDOW, Path, RateMeter, ReadAhead
from headrace.errors import (
    HeadraceError,
    HostAwayError,
    IntegrityError,
    NotFoundError,
    PermissionRefusedError,
    SourceChangedError,
)
from headrace.protocol.messages import CHUNK_SIZE, MIB, PHASE_BASELINE, Entry
from headrace.protocol.paths import RelPath
from headrace.storage.blockcache import BlockCache, DiskFile

log = logging.getLogger("headrace.blocks")

DEFAULT_RAM: Final = 256 * MIB
LARGE_READ: Final = MIB  # bytes; what somebody waits for goes by a lane for small reads unless it is more
TICK: Final = 0.2  # seconds between two looks at the clock of who waits for somebody else's fetch
RTT_EVERY: Final = 5.0  # seconds between two looks at the round trip time, after the first ones
RTT_FIRST: Final = 32

# What a fetch for somebody else failed of and an own one would, too.
OF_THE_FILE: Final = (SourceChangedError, NotFoundError, PermissionRefusedError)


@dataclass(frozen=True, slots=True)
class BlockFigures:
    """What a BlockReader did so far. Bytes, unless they are called reads.

    reads: how often somebody asked; hits: of those, how often memory had all of it. fetched: came from the host;
    from_disk: came from the disk's cache; ahead: of both, before anybody had asked.
    """

    reads: int
    hits: int
    fetched: int
    from_disk: int
    ahead: int
    ram: RamFigures


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
        self._link = None if offline else link
        self.clock = link.clock if link else time.monotonic
        self.plain = plain
        self.ram = RamCache(ram)
        self._disk = disk
        self._share = share.encode()
        self.window = max(BLOCK, min(LARGEST_WINDOW, ram // 4))
        self.path = Path()
        self._meter = RateMeter()
        self._metering = threading.Lock()
        self._rtt_at = -RTT_EVERY
        self._rtt_looks = 0
        self.ahead = Prefetcher[BlockFile](self._fill_ahead, self._drop, lambda: self.path.lanes)
        self.reads = self.hits = 0  # counted without a lock: they are for people
        self._fetched = self._from_disk = self._ahead_bytes = 0

    def open(self, path: RelPath, entry: Entry) -> BlockFile:
        """A handle on the file at `path`, in the version that `entry` has. Asks nobody. entry: of a file."""
        disk = self._disk.open(self._share, entry.version, entry.size) if self._disk and not self.plain else None
        return BlockFile(self, path, entry, disk)

    def figures(self) -> BlockFigures:
        """A snapshot."""
        return BlockFigures(
            self.reads, self.hits, self._fetched, self._from_disk, self._ahead_bytes, self.ram.figures()
        )

    def close(self) -> None:
        """Ends what is read ahead and frees all memory. The link and the disk's cache stay their owner's."""
        self.ahead.close()
        self.ram.clear()

    # ---- fetching --------------------------------------------------------------------------------------------------

    def fill(self, file: BlockFile, span: Span, deadline: float, *, bulk: bool = False) -> None:
        """Gets the bytes of a span that the caller claimed. Raises as BlockFile.read; the span has failed then."""
        try:
            view, digest = self._cached(file, span), None
            if view is None:
                view, digest = self._fetch(file, span, deadline, bulk=bulk)
        except HeadraceError as why:
            self._failed(file, span, why)
            raise
        except BaseException:
            self._failed(file, span, HeadraceError("reading was interrupted"))
            raise
        self._arrived(file, span, view, digest)

    def _fill_ahead(self, file: BlockFile, span: Span, more: More[BlockFile]) -> None:
        """On a thread of the prefetcher. Nobody is told of a failure but who waits for the span, and tries anew."""

        def following() -> tuple[BlockFile, Span] | None:
            """One that the disk's cache has is enough for now: meanwhile something may come from the host."""
            if not self.path.far or not (wanted := more()) or self._settled(*wanted):
                return None
            self._measure(None)
            return wanted

        def arrived(file: BlockFile, span: Span, view: memoryview, digest: bytes) -> None:
            self._measure(span.length)
            self._ahead_bytes += span.length
            self._arrived(file, span, view, digest)

        def failed(file: BlockFile, span: Span, why: HeadraceError) -> None:
            self._measure(0)
            self._failed(file, span, why)

        try:
            if not self._settled(file, span):
                assert self._link is not None
                self._measure(None)
                deadline = self.clock() + Prefetcher.PATIENCE
                stream(self._link, deadline, lambda: self.path.depth, (file, span), following, arrived, failed)
        except Exception:  # the thread is for others, too; who waits for the span tries by itself and hears of it
            log.exception("reading ahead failed")

    def _measure(self, came: int | None) -> None:
        """Something was asked for ahead (None), or so many bytes of it came."""
        with self._metering:
            if came is None:
                self._meter.began(self.clock())
            else:
                self._meter.ended(self.clock(), came)
                self.path = Path(self.path.rtt, self._meter.rate)

    def _settled(self, file: BlockFile, span: Span) -> bool:
        """Whether the host need not be asked for a span: the disk's cache has it, or it cannot come."""
        try:
            view = self._cached(file, span)
        except HeadraceError as why:
            self._failed(file, span, why)
            return True
        except BaseException:
            self._failed(file, span, HeadraceError("reading was interrupted"))
            raise
        if view is None:
            return False
        self._ahead_bytes += span.length
        self._arrived(file, span, view, None)
        return True

    def _arrived(self, file: BlockFile, span: Span, view: memoryview, digest: bytes | None) -> None:
        """digest: None where the bytes are from the disk's cache."""
        if digest is None:
            self._from_disk += span.length
        else:
            self._fetched += span.length
        self.ram.arrived(span, view)
        if digest and file.disk:
            self._keep(file.disk, span, digest)

    def _failed(self, file: BlockFile, span: Span, why: HeadraceError) -> None:
        if isinstance(why, SourceChangedError):
            span.file.stale = True
        log.debug("%d bytes at %d of a file did not come: %s", span.length, span.offset, why.message)
        self.ram.failed(span, why)

    def _drop(self, span: Span) -> None:
        self.ram.failed(span, HeadraceError("nobody reads ahead there any more"))

    def _cached(self, file: BlockFile, span: Span) -> memoryview | None:
        """What the disk's cache has of a span; None: the host has to be asked. Raises HostAwayError where it is not to
        be, SourceChangedError where it has another version."""
        disk = file.disk
        if disk is not None and disk.has(span.offset, span.end):
            buffer = new_buffer(span.length)
            if disk.read_into(span.offset, buffer):
                return buffer
        if self._link is None:
            raise HostAwayError("that part of the file is not cached, and nobody is asked", hint="Leave --offline out.")
        if span.file.stale:
            raise SourceChangedError(f"{file.path} is another version on the host by now")
        return None

    def _fetch(self, file: BlockFile, span: Span, deadline: float, *, bulk: bool) -> tuple[memoryview, bytes]:
        """The bytes and their verified hash, from the host."""
        assert self._link is not None
        path, version, offset, length = file.raw_path, file.version, span.offset, span.length

        def ask(session: Session, lane: Lane) -> tuple[memoryview, bytes]:
            exchange = EXCHANGES[session.agreed.version]
            try:
                answer = exchange.fetch(lane, path, version, offset, length)
            except IntegrityError:  # once more on the same lane: the host takes it as a sign to look anew
                answer = exchange.fetch(lane, path, version, offset, length)
            self._look_at_path(lane)
            return answer

        return self._link.run(ask, deadline, bulk=bulk)

    def learn_path(self, deadline: float) -> Path:
        """What is known of the way to the host, before anything was read. Raises as Link.run."""
        if self._link is not None:
            self._link.run(lambda _session, lane: self._look_at_path(lane), deadline)
        return self.path

    def _look_at_path(self, lane: Lane) -> None:
        now = self.clock()
        if now - self._rtt_at >= RTT_EVERY or self._rtt_looks < RTT_FIRST:
            self._rtt_at = now
            self._rtt_looks += 1
            known, rtt = self.path.rtt, lane.messages.stream.rtt()
            if rtt is not None:  # the least: what is above it is load
                self.path = Path(rtt if known is None else min(known, rtt), self.path.rate)

    def _keep(self, disk: DiskFile, span: Span, digest: bytes) -> None:
        """Gives the span to the disk's cache, which writes it a moment later; it stays in memory until then."""
        view = span.view
        assert view is not None
        if not self.ram.pin(span):
            if self._disk:
                self._disk.press()
        elif not disk.put(span.offset, view, digest, lambda: self.ram.unpin(span)):
            self.ram.unpin(span)

    # ---- the plain way ---------------------------------------------------------------------------------------------

    def read_plainly(self, file: BlockFile, offset: int, length: int, deadline: float) -> memoryview:
        """By requests of the baseline, which have no hash; nothing is kept."""
        if self._link is None:
            raise HostAwayError("nothing is cached, and nobody is asked", hint="Leave --offline or --debug-io out.")
        exchange = EXCHANGES[PHASE_BASELINE]

        def ask(session: Session, lane: Lane) -> memoryview:
            buffer = memoryview(bytearray(length))
            for start in range(0, length, CHUNK_SIZE):
                part = buffer[start : start + CHUNK_SIZE]
                exchange.request(lane, file.path, file.version, offset + start, len(part))
                exchange.receive(lane, len(part), part, None)
            return buffer

        return self._link.run(ask, deadline)


class BlockFile:
    """An open file in one version. Thread-safe. size: bytes."""

    def __init__(self, reader: BlockReader, path: RelPath, entry: Entry, disk: DiskFile | None) -> None:
        self._reader = reader
        self.path = path
        self.raw_path = bytes(path)
        self.version = entry.version
        self.size = entry.size
        self.disk = disk
        self._file = reader.ram.open(entry.version, entry.size)
        self._lock = threading.Lock()  # for what follows
        self._ahead = ReadAhead(entry.size, most=reader.window)
        self._runs = 0
        self._wasted = 0
        self._closed = False

    def read(self, offset: int, length: int, deadline: float) -> bytes | memoryview:
        """The bytes at `offset`; fewer than `length` only at the end of the file. What it gives stays as it is for as
        long as somebody holds it. Blocks until `deadline` at most, a time by the link's clock.

        Raises SourceChangedError (the file on the host is another version by now), HostAwayError, NotFoundError,
        PermissionRefusedError, RemoteIOError, IntegrityError, ProtocolError.
        """
        end = min(offset + length, self.size)
        if end <= offset:
            return b""
        reader = self._reader
        reader.reads += 1
        if reader.plain:
            return reader.read_plainly(self, offset, end - offset, deadline)
        span = self._file.spans.get(offset >> SHIFT)
        if span is not None and (view := span.view) is not None and end <= span.end:
            reader.hits += 1
            reader.ram.used(span)
            self._read_ahead(offset, end)
            return view[offset - span.offset : end - span.offset]
        return self._collect(offset, end, deadline)

    def close(self) -> None:
        """The handle is of no further use; what it cached stays cached. May be called again."""
        with self._lock:
            closed, self._closed = self._closed, True
        if not closed:
            self._reader.ahead.cancel(self)
            self._reader.ram.close(self._file)

    # ---- what is not in memory yet -----------------------------------------------------------------------------------

    def _collect(self, offset: int, end: int, deadline: float) -> bytes | memoryview:
        with self._lock:
            unit = self._ahead.unit(offset, end - offset, self._reader.path)
        pieces = []
        position = offset
        # Where a round trip is long, others fetch what comes next meanwhile. Else they would only be in the way.
        far = self._reader.path.far
        if far:
            self._read_ahead(offset, end)
        while position < end:
            span = self._have(position, end, unit, deadline)
            view = span.view
            assert view is not None
            pieces.append(view[position - span.offset : end - span.offset])
            position = min(end, span.end)
        if not far:
            self._read_ahead(offset, end)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _have(self, position: int, end: int, unit: int, deadline: float) -> Span:
        """The span that holds `position`, once it is there."""
        reader = self._reader
        while True:
            span, mine = reader.ram.claim(self._file, position, self._want(position, end, unit), must=True)
            assert span is not None
            if mine and self._ahead.window:
                with self._lock:  # it may have been asked for before, and not have come
                    self._ahead.retreat(span.end)
            if reader.path.far and not mine:
                reader.ahead.hurry(span)
            elif mine or reader.ahead.steal(span):
                reader.fill(self, span, deadline, bulk=span.length > LARGE_READ)
                return span
            if span.view is not None:
                reader.ram.used(span)
                return span
            left = deadline - reader.clock()
            if left <= 0:
                raise HostAwayError("the host did not answer in time")
            reader.ram.wait(span, min(left, TICK))
            if isinstance(span.error, OF_THE_FILE):
                raise span.error
            if span.view is not None:
                reader.ram.used(span)
                return span

    def _want(self, position: int, end: int, unit: int) -> tuple[int, int]:
        """From where to where a new span at `position` is to reach: what the disk has, or else whole units."""
        if self.disk is not None and (kept := self.disk.extent(position)):
            return kept
        start = position // unit * unit
        return start, min(start + CHUNK_SIZE, -(-end // unit) * unit)

    def _read_ahead(self, offset: int, end: int) -> None:
        reader, ahead = self._reader, self._ahead
        with self._lock:
            if self._wasted:
                ahead.wasted(self._wasted)
                self._wasted = 0
            extents = ahead.advance(offset, end - offset, reader.path)
            runs, self._runs = self._runs, ahead.runs
        if runs != ahead.runs:
            reader.ahead.cancel(self)
        for start, length in extents:
            until = self._ask_for(start, start + length)
            if until < start + length:
                with self._lock:
                    ahead.retreat(until, full=True)
                return

    def _ask_for(self, start: int, end: int) -> int:
        """Up to where there was room."""
        reader = self._reader
        while start < end:
            span, mine = reader.ram.claim(self._file, start, (start, end), must=False)
            if span is None:
                return start
            if mine:
                span.unread, span.waste = True, self._note_waste
                reader.ahead.push(self, span)
            start = span.end
        return end

    def _note_waste(self, length: int) -> None:
        self._wasted += length
