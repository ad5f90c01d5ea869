"""Listens on one port and serves every connection on a thread of its own."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from headrace import config
from headrace._version import __version__
from headrace.engine.buffers import DEFAULT_LIMIT, buffers_for, check_limit
from headrace.engine.compress import Compressors, check_level
from headrace.errors import ConnectionLostError, LocalDiskError, NotFoundError, UsageError
from headrace.host.allowed import Allowed
from headrace.host.guesses import GuessLimit
from headrace.host.handshakes import Handshakes
from headrace.host.kept import kept_hashes
from headrace.host.limits import Limits
from headrace.host.registry import Registry
from headrace.host.session import Event, Served, Share, serve
from headrace.host.udp import UdpSide, fall_back
from headrace.host.watch import Watcher
from headrace.observe.metrics import QUIC_WANTED, Sample
from headrace.protocol.codes import Code
from headrace.protocol.messages import CHUNK_SIZE, HOST_DECIDES, NOT_PACKED
from headrace.protocol.paths import ROOT
from headrace.protocol.session import Versions
from headrace.storage.fileio import FileIO
from headrace.storage.manifest import HashCache
from headrace.storage.oserrors import label
from headrace.storage.platform import platform_io
from headrace.storage.tree import SharedTree
from headrace.transport.discovery import Announcer
from headrace.transport.identity import Identity
from headrace.transport.pacing import Limit
from headrace.transport.tcp import TcpStream, is_loopback, server_context, tune
from headrace.transport.trust import Peers
from headrace.transport.zerocopy import wants_clear

if TYPE_CHECKING:
    from headrace.host.incoming import Incoming
    from headrace.host.workers import Workers

log = logging.getLogger("headrace.host")

BACKLOG: Final = 256
MAX_WORKERS: Final = 64
STOP_TIMEOUT: Final = 5.0
GUESS_PATIENCE: Final = 0.8  # of the time that a handshake may take
ANY: Final = ("", "0.0.0.0", "::")  # to bind to these is to bind to all addresses
TRANSPORTS: Final = frozenset({"tcp", "quic"})
_TRIES: Final = 8  # free TCP ports that are looked at until one is free for UDP as well
_PORT_ERRORS: Final = (errno.EADDRINUSE, errno.EACCES, errno.EPERM)


class ShareServer:
    """Shares folders or files until it is stopped.

    `start` returns once the port is bound; accepting and serving happen on threads that `stop` ends and joins. Use it
    as a context manager. on_event is called from those threads with the events of the command line's contract.
    """

    def __init__(
        self,
        paths: Sequence[str | os.PathLike[str]],
        *,
        port: int = config.DEFAULT_PORT,
        bind: str = "",
        code: Code | None = None,
        name: str | None = None,
        home: Path | None = None,
        versions: Versions = Versions(),
        data_plane: str = "tls",
        buffers: int = DEFAULT_LIMIT,
        io: str = "auto",
        compress: int = HOST_DECIDES,
        limit_rate: float | None = None,
        limit_peer: float | None = None,
        transports: Collection[str] = TRANSPORTS,
        discovery: bool = False,
        allow: Sequence[str] = (),
        max_clients: int | None = None,
        limits: Limits = Limits(),
        write: bool = False,
        workers: int = 0,
        on_event: Callable[[Event], None] = lambda event: None,
    ) -> None:
        """paths: at least one. port: 0 picks a free one. bind: an address, empty for all of IPv4 and IPv6.

        data_plane: `clear` lets clients that want it have chunks in the clear. buffers: memory for chunks, in bytes,
        all clients together. io: how files are read, see storage.platform.
        compress: 0 compresses for nobody; 1 to 19 at no higher level than that; -1 as clients ask.
        limit_rate: bytes a second sent to all clients together, and as many received; `limit.rate` changes it later.
        limit_peer: the same for each peer by itself, all its connections together; `limit_peer.rate` changes it later.
        transports: `tcp`, and `quic` for UDP on the same port number beside it; where that cannot be had, a warning
        says so once and the share goes on by TCP.
        discovery: announce the public group of the code on the LAN.
        allow: networks, as in 192.168.0.0/16, from which connections are taken; none: from everywhere. max_clients:
        peers that may be connected at once. limits: what each of them, and strangers, may take of the share.
        write: clients may write into the share, which must be one folder then.
        workers: processes that serve bulk beside this one; see host.workers. The buffers are divided among all.

        Raises NotFoundError, PermissionRefusedError, UsageError, LocalDiskError.
        """
        workers = _possible(workers)
        part = max(CHUNK_SIZE, check_limit(buffers) // (workers + 1))  # every process has its own
        pool, clear = buffers_for(io, part), wants_clear(data_plane)
        home = home or config.home()
        self.code = code or Code.generate(os.urandom)
        self._on_event = on_event
        self.limit = Limit(limit_rate)
        self.limits = limits.with_descriptors(config.descriptors())
        self.registry = Registry(limit_peer, max_peers=max_clients, max_streams=limits.per_peer)
        self._allowed = Allowed(allow)
        self.limit_peer = self.registry.limits
        self._io = platform_io(io)
        with contextlib.ExitStack() as undo:
            undo.callback(self._io.close)
            self._tree = undo.enter_context(SharedTree.open(paths, name, self._io))
            incoming = _incoming(self._tree, paths, home, self._io) if write else None
            if incoming:
                undo.callback(incoming.close)
            identity = Identity.load_or_create(home)
            self._context = server_context(str(identity.file))
            self._bind = bind
            self._listener, self._udp = self._open(identity, port, transports)
            undo.pop_all()
        self._watcher = Watcher(self._tree)
        self.incoming = incoming
        compressors = _compressors(compress)
        self._workers = self._make_workers(workers, home, io, part, compressors) if workers else None
        self._share = Share(
            tree=self._tree,
            code=self.code,
            identity=identity,
            peers=Peers(home),
            guesses=GuessLimit(on_lock=self._locked, patience=GUESS_PATIENCE * self.limits.handshake),
            agent=f"headrace {__version__}",
            versions=versions,
            hashes=HashCache(store=lambda: kept_hashes(home)),
            buffers=pool,
            limit=self.limit,
            registry=self.registry,
            watcher=self._watcher,
            incoming=incoming,
            clear=clear,
            limits=self.limits,
            compressors=compressors,
            workers=self._workers,
            on_event=on_event,
        )
        self.port: int = self._listener.getsockname()[1]
        self._announcer = Announcer(self.code.share, self.port, bind if bind not in ANY else "") if discovery else None
        self._threads: dict[threading.Thread, Served] = {}
        self._lock = threading.Lock()
        self._by_address: Counter[str] = Counter()
        self.turned_away: Counter[str] = Counter()  # connections, by the limit that was in their way
        self._handshakes = Handshakes(
            log.warning, per_address=self.limits.handshakes_per_address, in_all=self.limits.handshakes
        )
        self._stopping = False
        self._accepting = threading.Thread(target=self._accept, name="headrace-accept", daemon=True)

    def _open(self, identity: Identity, port: int, transports: Collection[str]) -> tuple[socket.socket, UdpSide | None]:
        """A listening TCP socket and what holds the same number for UDP."""
        if "tcp" not in transports or not TRANSPORTS.issuperset(transports):
            raise UsageError("a share is reached by tcp, and by quic beside it")
        listener = _listen(self._bind, port)
        if "quic" not in transports:
            return listener, None
        QUIC_WANTED.add()
        refused: list[socket.socket] = []  # kept open meanwhile, so that each try gets another number
        try:
            while True:
                number = listener.getsockname()[1]
                try:
                    return listener, UdpSide(port=number, bind=self._bind, identity=identity, on_stream=self._offered)
                except OSError as why:
                    if port or len(refused) >= _TRIES:
                        fall_back(f"UDP port {number} cannot be used ({why.strerror or why})")
                        return listener, None
                    refused.append(listener)
                    listener = _listen(self._bind, 0)
        finally:
            for sock in refused:
                sock.close()

    def _make_workers(self, count: int, home: Path, io: str, buffers: int, compressors: Compressors | None) -> Workers:
        from headrace.host.workers import Workers

        workers = Workers(
            count,
            tree=self._tree,
            home=home,
            io=io,
            buffers=buffers,
            compressors=compressors,
            limited=lambda: self.limit.rate is not None or self.limit_peer.rate is not None,
        )
        self.limit.on_change = self.limit_peer.on_change = workers.limits_changed
        return workers

    @property
    def transports(self) -> tuple[str, ...]:
        """By which it can be reached, as far as is known; QUIC's part is sure a second after the start."""
        return ("tcp", "quic") if self._udp and not self._udp.problem else ("tcp",)

    @property
    def workers(self) -> int:
        """Worker processes that are ready; those that were asked for start a moment after the share."""
        return self._workers.up if self._workers else 0

    @property
    def name(self) -> str:
        """The share's name, as peers see it."""
        return self._tree.name

    @property
    def target(self) -> str:
        """CODE@HOST:PORT for another process to use. It holds the secret."""
        host = self.addresses[0]
        return f"{self.code.text}@{f'[{host}]' if ':' in host else host}:{self.port}"

    @property
    def addresses(self) -> list[str]:
        """Addresses of this machine under which the share can be reached, the likeliest first."""
        return [self._bind] if self._bind and self._bind not in ANY else _own_addresses()

    @property
    def announced(self) -> bool:
        """Whether the code alone is to find it on the LAN."""
        return self._announcer is not None and self._announcer.reaches_others

    def samples(self) -> Iterator[Sample]:
        """For the metrics."""
        from headrace.host.metrics import share_samples

        yield from share_samples(self._share)
        turned_away = {**self.turned_away, "handshakes": self._handshakes.ended, "allow": self._allowed.turned_away}
        for limit, count in turned_away.items():
            yield Sample("turned_away", count, (limit,))

    def start(self) -> None:
        self._accepting.start()
        if self._workers:
            self._workers.start()
        if self._udp:
            self._udp.start()
        if self._announcer:
            self._announcer.start()

    def stop(self) -> None:
        """Stops accepting, ends every session, joins the threads. May be called again."""
        if self._stopping:
            return
        self._stopping = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the accept call on Linux
        self._listener.close()
        with self._lock:
            serving = dict(self._threads)
        for stream in serving.values():
            stream.abort()
        self._watcher.close()
        if self._workers:
            self._workers.stop()
        if self._accepting.is_alive():
            self._accepting.join(STOP_TIMEOUT)
        for thread in serving:
            thread.join(STOP_TIMEOUT)
        if self._udp:
            self._udp.stop()
        if self._announcer:
            self._announcer.stop()
        if self.incoming:
            self.incoming.close()
        self._tree.close()
        self._io.close()
        self._share.hashes.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, why: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _accept(self) -> None:
        while not self._stopping:
            try:
                sock, address = self._listener.accept()
            except OSError as why:
                if not self._stopping:
                    # Out of descriptors, or the peer left the backlog: the share goes on.
                    log.warning("a connection could not be accepted: %s", why)
                    threading.Event().wait(0.1)
                continue
            whence = str(address[0]).removeprefix("::ffff:")
            if whence not in self._allowed or self._full(whence):
                sock.close()
                continue
            self._serve(sock, whence)

    def _serve(self, sock: socket.socket, address: str) -> None:
        try:
            tune(sock, loopback=is_loopback(sock))
            stream = TcpStream(sock, self._context, server=True)
        except (OSError, ssl.SSLError) as why:  # it hung up already
            log.debug("connection from %s ended at once: %s", address, why)
            sock.close()
            return
        if not self._begin(stream, address):
            sock.close()

    def _offered(self, stream: Served, address: str) -> None:
        """A stream that came by QUIC; called by QUIC's thread. ConnectionLostError turns it away."""
        if address not in self._allowed or self._full(address) or not self._begin(stream, address):
            raise ConnectionLostError("the host takes no more connections")

    def _full(self, address: str) -> bool:
        with self._lock:
            count, own = len(self._threads), self._by_address.get(address, 0)
            full = count >= self.limits.connections or own >= self.limits.per_address
            if full:
                self.turned_away["connections" if count >= self.limits.connections else "per_address"] += 1
        if full and count >= self.limits.connections:
            log.warning("turned %s away: %d connections are open", address, count)
        elif full:
            log.warning("turned %s away: %d connections from there are open", address, own)
        return full or self._stopping

    def _begin(self, stream: Served, address: str) -> bool:
        """Serves a stream on a thread of its own; whether it could be started."""
        thread = threading.Thread(target=self._run, args=(stream, address), name=f"headrace-{address}", daemon=True)
        with self._lock:
            self._threads[thread] = stream
            self._by_address[address] += 1
        self._handshakes.begin(stream, address)
        try:
            thread.start()
        except RuntimeError as why:  # no further thread is allowed here; those that run go on, and so does the share
            log.warning("turned %s away: %s", address, why)
            self._over(stream, thread, address)
            return False
        return True

    def _run(self, stream: Served, address: str) -> None:
        try:
            serve(stream, self._share, address, lambda: self._handshakes.over(stream))
        except Exception:
            # The last line of defence: one session's bug must not take the share down, and must not be silent.
            log.exception("a session with %s failed", address)
        finally:
            self._over(stream, threading.current_thread(), address)

    def _over(self, stream: Served, thread: threading.Thread, address: str) -> None:
        self._handshakes.over(stream)
        with self._lock:
            self._threads.pop(thread, None)
            self._by_address[address] -= 1
            if self._by_address[address] <= 0:
                del self._by_address[address]

    def _locked(self, seconds: float) -> None:
        log.warning(
            "too many wrong codes: no new peers for %.0f s (peers that paired before can still connect)", seconds
        )
        self._on_event(
            {
                "event": "error",
                "code": "locked",
                "message": f"too many wrong codes: this share takes no new peers for {seconds:.0f} s",
                "retry_after": seconds,
            }
        )


def _incoming(tree: SharedTree, paths: Sequence[str | os.PathLike[str]], home: Path, io: FileIO) -> Incoming:
    """Raises UsageError where there is no one folder to write to, LocalDiskError where its owner may not write."""
    hint = "Share that folder alone with --write, and the rest beside it by another share."
    if len(paths) != 1:
        raise UsageError("a share of several paths cannot be written to", hint=hint)
    try:
        fd = tree.open_folder(ROOT)
    except NotFoundError as why:
        raise UsageError("a share of one file cannot be written to", hint="Share the folder that it is in.") from why
    if not os.access(".", os.W_OK | os.X_OK, dir_fd=fd, effective_ids=os.access in os.supports_effective_ids):
        os.close(fd)
        raise LocalDiskError(
            f"you may not write to {label(paths[0])}", hint="Check its permissions, or leave --write out."
        )
    from headrace.host.incoming import Incoming  # most shares are only read

    return Incoming(fd, os.path.realpath(os.fsencode(paths[0])), home, io)


def _compressors(compress: int) -> Compressors | None:
    if check_level(compress) == NOT_PACKED:
        return None
    return Compressors() if compress == HOST_DECIDES else Compressors(compress)


def _possible(workers: int) -> int:
    """So many, or 0 where this system cannot have them. Raises UsageError."""
    if not 0 <= workers <= MAX_WORKERS:
        raise UsageError(f"{workers} is no number of workers", hint=f"There are 0 to {MAX_WORKERS}.")
    if not workers:
        return 0
    from headrace.host.workers import can_lend  # few want it

    return workers if can_lend() else 0


def _listen(bind: str, port: int) -> socket.socket:
    """A listening socket; without `bind` one that takes IPv6 and IPv4 where the machine has both."""
    try:
        if not bind and socket.has_dualstack_ipv6():
            try:
                return socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=BACKLOG)
            except OSError as why:
                if getattr(why, "errno", None) in _PORT_ERRORS:
                    raise
                log.debug("no IPv6 here (%s), listening on IPv4 alone", why)
        family = socket.AF_INET6 if ":" in bind else socket.AF_INET
        return socket.create_server((bind or "0.0.0.0", port), family=family, backlog=BACKLOG)
    except (OSError, OverflowError) as why:
        where = f"{bind or 'any address'}, port {port}"
        if getattr(why, "errno", None) == errno.EADDRINUSE:
            raise UsageError(
                f"port {port} is in use", hint="Choose another with --port, or --port 0 for a free one."
            ) from why
        if isinstance(why, socket.gaierror) or getattr(why, "errno", None) == errno.EADDRNOTAVAIL:
            raise UsageError(f"{bind} is no address of this machine", hint="See ip addr, or leave --bind out.") from why
        if isinstance(why, PermissionError):
            raise LocalDiskError(f"not allowed to listen on {where}", hint="Ports under 1024 need root.") from why
        raise UsageError(f"cannot listen on {where} ({why})") from why


def _own_addresses() -> list[str]:
    """This machine's addresses: the one the default route would use, then loopback."""
    found: list[str] = []
    for family, probe in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        # Connecting a UDP socket sends nothing; it only asks the kernel which address it would send from.
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect((probe, 9))
            found.append(str(sock.getsockname()[0]))
    return [*found, "127.0.0.1"]
