"""A client's session with a share: connect, prove, then ask."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from headrace import config
from headrace.client.greeting import Credential, greet
from headrace.client.target import Target
from headrace.engine.lane import Lane
from headrace.errors import (
    CertificateChangedError,
    ConnectionLostError,
    CredentialUnknownError,
    HeadraceError,
    LocalDiskError,
    NotFoundError,
    PermissionRefusedError,
    ProtocolError,
    RefusedError,
    RemoteIOError,
    UnreachableError,
    UsageError,
    from_wire,
)
from headrace.observe import tracing
from headrace.protocol.codes import Code
from headrace.protocol.messages import (
    MAX_FILE_SIZE,
    PHASE_BULK,
    ROLE_CONTROL,
    ROLE_DATA,
    VERSION_SIZE,
    Entry,
    Error,
    Goodbye,
    List,
    ListPart,
    Message,
    Stat,
    StatReply,
    Walk,
    wire_path,
)
from headrace.protocol.paths import MAX_DEPTH, MAX_NAME, MAX_PATH, RelPath
from headrace.protocol.session import BATCH, BLOCKS, ZSTD, Agreed, Versions
from headrace.transport.abort import Abort
from headrace.transport.adaptive import AUTO, TCP, AdaptiveConnection, connect
from headrace.transport.framed import MessageStream
from headrace.transport.pacing import Limit
from headrace.transport.trust import Pins

log = logging.getLogger("headrace.client")

FIRST_ID: Final = 1  # of a lane's requests
LONGEST_EARLY: Final = 2048  # bytes of a path; a host takes heads of 4 KiB at most before it has let somebody in

Entries = list[Entry]
Listing = list[Entries]
Listed = list[tuple[RelPath, Entries, HeadraceError | None]]
Lanes = list[Lane]  # `list` is a method below


class Session:
    """One share, connected. `control` carries listings; `open_lane` gives further lanes for bulk. Thread-safe.

    transport: what `open_lane` uses where it is not told: that of the connection, or TCP for chunks in the clear.
    """

    def __init__(
        self, connection: AdaptiveConnection, control: MessageStream, agreed: Agreed, credential: Credential
    ) -> None:
        self.clear = False  # whether chunks come in the clear; see `use_clear`
        self.connection = connection
        self.transport = connection.transport
        self.agreed = agreed
        self.control = _lane(control, agreed)
        self.limit = Limit(None)  # that of the connection, where `connect` made it
        self.home = config.home()  # where pins, credentials and the index are
        self._credential = credential
        self._lanes = [self.control]
        self._first: tuple[RelPath, Entry | HeadraceError] | None = None  # what was asked with the handshake
        self._listing_lanes = threading.Lock()
        self._renewing = threading.Lock()

    @classmethod
    def connect(
        cls,
        target: Target,
        *,
        home: Path | None = None,
        versions: Versions = Versions(),
        limit_rate: float | None = None,
        transport: str = AUTO,
        congestion: str = "bbr",
        ask: RelPath | None = None,
        abort: Abort | None = None,
    ) -> Session:
        """Connects to the target's share; pairs with the code at first contact, later shows the credential.

        limit_rate: bytes a second that all its streams together may receive, and as many that they may send;
        `limit.rate` changes it later. transport: `auto`, `quic` or `tcp`. congestion: `bbr` or `cubic`, for QUIC.
        ask: a path that the first `stat` will be about. The question leaves with the handshake and costs no round trip.
        abort: ends it from another thread, also while it dials.

        A target without a host is looked for on the LAN.

        Raises UsageError (no code), UnreachableError, RefusedError and below, NoCommonVersionError.
        """
        code = target.code
        if code is None:
            raise UsageError("the target has no code", hint="Write CODE@HOST:PORT, or set HEADRACE_CODE.")
        home = home or config.home()
        pins, limit = Pins(home), Limit(limit_rate)
        pin = pins.get(code.share)
        if not target.host:
            from headrace.client.lan import locate  # only for those who need it

            target = locate(target, code.share, known=pin.label if pin else "")

        def dial() -> AdaptiveConnection:
            return _dial(
                (target.host, target.port),
                code.share,
                pin=bytes.fromhex(pin.fingerprint) if pin else None,
                certificates=home / "certificates",
                limit=limit,
                transport=transport,
                congestion=congestion,
                abort=abort,
            )

        session = None
        if pin and pin.is_for(code):
            credential = Credential(bytes.fromhex(pin.peer), bytes.fromhex(pin.credential))
            with contextlib.suppress(CredentialUnknownError):
                session = cls._with_credential(dial(), credential, versions, ask)
            if session is None:
                log.info("the host at %s does not remember this machine; pairing again", target.address)
        if session is None:
            session = cls._with_code(dial(), code, versions, pins, target.address, ask)
        session.limit, session.home = limit, home
        return session

    @classmethod
    def _with_credential(
        cls, connection: AdaptiveConnection, credential: Credential, versions: Versions, ask: RelPath | None
    ) -> Session:
        with _ending(connection):
            stream, agreed = greet(connection, versions, credential=credential, first=_stat(ask))
            return cls(connection, stream, agreed, credential)._asked(ask)

    @classmethod
    def _with_code(
        cls,
        connection: AdaptiveConnection,
        code: Code,
        versions: Versions,
        pins: Pins,
        label: str,
        ask: RelPath | None,
    ) -> Session:
        with _ending(connection):
            stream, agreed = greet(connection, versions, code=code, first=_stat(ask))
        assert agreed.keys is not None
        try:
            pins.add(agreed.keys, code, connection.fingerprint, label)
        except LocalDiskError as why:
            log.warning("this pairing is not remembered: %s", why)
        with _ending(connection):
            return cls(connection, stream, agreed, Credential(agreed.peer, agreed.keys.credential))._asked(ask)

    def _asked(self, ask: RelPath | None) -> Self:
        """Takes the answer to what left with the handshake. It comes right behind the host's last word in that."""
        if _stat(ask) is None:
            return self
        assert ask is not None
        self.control.left(FIRST_ID)
        try:
            self._first = ask, self._stat_reply(self.control)
        except ConnectionLostError as why:  # it is asked again, as anything else would be
            log.info("the host hung up before it answered the first question: %s", why.message)
        except ProtocolError:
            raise
        except HeadraceError as why:
            self._first = ask, why
        return self

    def use_clear(self) -> None:
        """From here on chunks come in the clear, on lanes of their own. Raises RefusedError where the host does not."""
        hint = "Start the share with --data-plane clear as well, or leave it out here."
        if self.agreed.version < PHASE_BULK:
            raise RefusedError("the baseline protocol has no chunks in the clear", hint="Leave --protocol 7 out.")
        if TCP not in self.connection.transports:
            raise UsageError("chunks in the clear go by TCP", hint="Leave --transport quic or --data-plane clear out.")
        self.clear, self.transport = True, TCP
        lane = self.open_lane()
        agreed = lane.messages.clear is not None
        self.release(lane)
        if not agreed:
            self.clear = False
            raise RefusedError("the host sends nothing in the clear: both sides must want it", hint=hint)

    def open_lane(self, transport: str | None = None, *, role: str = ROLE_DATA) -> Lane:
        """A further stream to the same share, for chunks. Blocks for the handshake."""
        versions = Versions(self.agreed.version, self.agreed.version)
        try:
            stream, agreed = greet(
                self.connection,
                versions,
                transport=transport or self.transport,
                credential=self._credential,
                role=role,
                clear=self.clear,
            )
        except UnreachableError as why:
            raise ConnectionLostError(why.message) from why
        lane = _lane(stream, agreed)
        with self._listing_lanes:
            self._lanes.append(lane)
        return lane

    @contextlib.contextmanager
    def use(self) -> Iterator[Lane]:
        """The control lane, for one exchange. One that was left in the middle of an answer is replaced by a new one."""
        while True:
            lane = self.control
            with lane.lock:
                if lane.idle:
                    yield lane
                    return
            with self._renewing:
                if self.control is lane:
                    self.control = self.open_lane(role=ROLE_CONTROL)
                    self.release(lane)

    def healthy_control(self) -> Lane:
        """The control lane, one that works as far as it is known."""
        with self.use() as lane:
            return lane

    @contextlib.contextmanager
    def _on(self, lane: Lane | None) -> Iterator[Lane]:
        """The given lane for one exchange, or the control lane. A given one that broke is not replaced: its owner has
        to hear of it."""
        if lane is None:
            with self.use() as control:
                yield control
            return
        lane.acquire()
        try:
            yield lane
        finally:
            lane.lock.release()

    @property
    def streams(self) -> int:
        """Streams that are open now, the control lane's included."""
        with self._listing_lanes:
            return len(self._lanes)

    def release(self, lane: Lane) -> None:
        """Closes a lane that `open_lane` gave; the control lane stays."""
        if lane is self.control:
            return
        with self._listing_lanes:
            if lane in self._lanes:
                self._lanes.remove(lane)
        _part_with(lane)

    # ---- questions -------------------------------------------------------------------------------------------------

    def stat(self, path: RelPath, on: Lane | None = None) -> Entry:
        """The entry at `path`, asked for on a lane (`on`, or the control lane). Raises NotFoundError,
        PermissionRefusedError."""
        first, self._first = self._first, None
        if first and first[0] == path:
            if isinstance(first[1], HeadraceError):
                raise first[1]
            return first[1]
        with self._on(on) as lane:
            lane.post(Stat(lane.next_id(), bytes(path)))
            return self._stat_reply(lane)

    def _stat_reply(self, lane: Lane) -> Entry:
        answer, _ = lane.answer()
        if isinstance(answer, Error):
            raise from_wire(answer.code, answer.message)
        if not isinstance(answer, StatReply):
            raise ProtocolError("the host answered Stat with something else")
        return _checked(answer.entry, is_root=True)

    def list(self, path: RelPath, on: Lane | None = None) -> Iterator[Entries]:
        """The entries of one directory, in parts. The lane (`on`, or the control lane) is busy until the last part."""
        with self._on(on) as lane:
            lane.post(List(lane.next_id(), bytes(path)))
            failure: HeadraceError | None = None
            for _, entries, error in self._parts(lane, path):
                failure = failure or error
                yield entries
            if failure:
                raise failure

    def list_many(self, paths: Sequence[RelPath]) -> Listed:
        """The entries of several directories, all asked for at once; why there are none, or not all of them."""
        found: Listed = []
        with self.use() as lane:
            for path in paths:
                lane.post(List(lane.next_id(), bytes(path)))
            for path in paths:
                entries: Entries = []
                error: HeadraceError | None = None
                try:
                    for _, part, failure in self._parts(lane, path):
                        entries += part
                        error = error or failure
                except (NotFoundError, PermissionRefusedError, RemoteIOError) as why:
                    error = why
                found.append((path, entries, error))
        return found

    def ask(self, make: Callable[[int], Message]) -> Message:
        """The answer to a request that has only one; `make` is given its id. Raises what the host reports."""
        with self.use() as lane:
            lane.post(make(lane.next_id()))
            answer, _ = lane.answer()
        if isinstance(answer, Error):
            raise from_wire(answer.code, answer.message)
        return answer

    def walk(self, path: RelPath, on: Lane | None = None) -> Iterator[tuple[RelPath, Entries, HeadraceError | None]]:
        """Every directory at and below `path`, parents first: its path, some of its entries, why it cannot be read."""
        if self.agreed.version < PHASE_BULK:
            yield from self._walk_by_lists(path, on)
            return
        with self._on(on) as lane:
            lane.post(Walk(lane.next_id(), bytes(path)))
            yield from self._parts(lane, path)

    def _walk_by_lists(self, path: RelPath, on: Lane | None) -> Iterator[tuple[RelPath, Entries, HeadraceError | None]]:
        """Phase 7 has no Walk. The lane is given back between two directories: their files use it too."""
        waiting = [path]
        while waiting:
            directory = waiting.pop()
            parts: Listing = []
            error: HeadraceError | None = None
            try:
                parts.extend(self.list(directory, on))
            except HeadraceError as why:
                if directory == path or not isinstance(why, (NotFoundError, PermissionRefusedError, RemoteIOError)):
                    raise
                error = why
            if error:
                yield directory, [], error
            for entries in parts:
                yield directory, entries, None
                waiting += [directory / entry.name for entry in entries if entry.kind == "d"]

    def _parts(self, lane: Lane, path: RelPath) -> Iterator[tuple[RelPath, Entries, HeadraceError | None]]:
        """The parts of a listing. A caller that stops early leaves the lane unusable; see `use`."""
        while True:
            part, _ = lane.part()
            if isinstance(part, Error):
                lane.answered()
                raise from_wire(part.code, part.message)
            if not isinstance(part, ListPart):
                raise ProtocolError("the host answered a listing with something else")
            try:
                directory = wire_path(part.path)
                directory.relative_to(path)
            except ValueError as why:
                raise ProtocolError(f"the host lists an impossible directory: {why}") from why
            if not _are_usual(part.entries):
                for entry in part.entries:
                    _checked(entry)
            entries = _nameable(directory, part.entries)
            error = from_wire(part.error, "it cannot be read") if part.error else None
            if len(entries) < len(part.entries):
                unnamed = len(part.entries) - len(entries)
                error = error or RemoteIOError(f"{unnamed} of the entries in {directory} lie too deep to be named")
            if entries or error:
                yield directory, entries, error
            if part.last:
                lane.answered()
                return

    # ---- the end ---------------------------------------------------------------------------------------------------

    def abort(self) -> None:
        """From any thread: whatever waits for the host fails at once."""
        self.connection.abort()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, why: BaseException | None, trace: TracebackType | None
    ) -> None:
        if why is None:
            self.close()
        else:
            self.drop()

    def drop(self) -> None:
        """After a failure: ends everything at once, and frees it."""
        self.abort()
        for lane in self._all():
            lane.messages.close()
        self.connection.close()

    def close(self) -> None:
        """Says goodbye and closes every lane."""
        for lane in self._all():
            _part_with(lane)
        self.connection.close()

    def _all(self) -> Lanes:
        with self._listing_lanes:
            return self._lanes.copy()


def _stat(path: RelPath | None) -> Stat | None:
    """The question that leaves with a handshake; None where that has no room for it."""
    return Stat(FIRST_ID, bytes(path)) if path is not None and len(bytes(path)) <= LONGEST_EARLY else None


def _lane(stream: MessageStream, agreed: Agreed) -> Lane:
    features = agreed.features
    return Lane(stream, batches=BATCH in features, blocks=BLOCKS in features, packs=ZSTD in features)


def _part_with(lane: Lane) -> None:
    with contextlib.suppress(ConnectionLostError):
        lane.messages.send(Goodbye())
    lane.messages.close()


def _are_usual(entries: Entries) -> bool:
    """Whether Entry.check has nothing against any of them, for a fifth of its time. False: ask it."""
    names = [entry.name for entry in entries]
    sizes = [entry.size for entry in entries]
    times = [entry.mtime_ns for entry in entries]
    all_names = b"\0".join(names)
    return not entries or (
        b"" not in names
        and b"." not in names
        and b".." not in names
        and b"/" not in all_names
        and all_names.count(b"\0") == len(names) - 1
        and max(map(len, names)) <= MAX_NAME
        and min(sizes) >= 0
        and max(sizes) <= MAX_FILE_SIZE
        and min(times) >= 0
        and max(times) < 1 << 63
        and not any(mode & ~0o7777 for mode in {entry.mode for entry in entries})
        and {entry.target for entry in entries} == {b""}
        and {len(entry.version) for entry in entries if entry.kind == "f"} <= {VERSION_SIZE}
        and {len(entry.version) for entry in entries if entry.kind != "f"} <= {0}
    )


def _checked(entry: Entry, *, is_root: bool = False) -> Entry:
    try:
        return entry.check(is_root=is_root)
    except ValueError as why:
        raise ProtocolError(f"the host offers an impossible entry: {why}") from why


def _nameable(directory: RelPath, entries: Entries) -> Entries:
    """Those entries of a directory whose path does not outgrow what the protocol can say."""
    if len(directory.parts) >= MAX_DEPTH:
        return []
    room = MAX_PATH - len(bytes(directory)) - 1
    return entries if room >= MAX_NAME else [entry for entry in entries if len(entry.name) <= room]


@contextlib.contextmanager
def _ending(connection: AdaptiveConnection) -> Iterator[None]:
    """The connection ends where what is inside fails."""
    try:
        yield
    except BaseException:
        connection.abort()
        connection.close()
        raise


@tracing.traced("connect")
def _dial(address: tuple[str, int], share: str, **how: Any) -> AdaptiveConnection:
    try:
        return connect(address, **how)
    except CertificateChangedError as why:
        why.hint = (
            f"If you know that the host was set up anew, forget the old one with: headrace peers forget {share} "
            "and connect again with the code."
        )
        raise
