"""A worker process of a share: serves lanes that the share lends it, and gives them back. See host.workers.

`python -m headrace.host.worker FD`, started by the share; FD is its end of a socket pair. It ends when the other end is
closed, however that came about.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from headrace.engine.buffers import buffers_for
from headrace.engine.compress import Compressors
from headrace.engine.metrics import buffer_samples
from headrace.engine.packing import packing_for
from headrace.errors import ConnectionLostError, HeadraceError
from headrace.host.channel import Back, Channel, Figures, Lane, Limited, Log, Report, Setup, ToWorker, Up
from headrace.host.gate import Gate
from headrace.host.kept import kept_hashes
from headrace.host.requests import RequestHandler
from headrace.observe import logs
from headrace.observe.metrics import RANDOM_READ, UNKNOWN_MESSAGES, Sample
from headrace.observe.times import Spent
from headrace.protocol.messages import (
    ROLE_DATA,
    GetBatch,
    GetBlocks,
    GetChunk,
    GetManifest,
    GetRanges,
    List,
    Ping,
    Read,
    Stat,
    StatFs,
    Trace,
    Walk,
)
from headrace.protocol.session import CLEAR, Agreed
from headrace.storage.manifest import HashCache
from headrace.storage.platform import platform_io
from headrace.storage.tree import SharedTree
from headrace.transport import zerocopy
from headrace.transport.framed import MessageStream
from headrace.transport.tcp import TcpStream

log = logging.getLogger("headrace.host")

REPORT_EVERY: Final = 0.5  # seconds
ALIVE_EVERY: Final = 10  # reports after which one is sent though nothing changed
# What a lane may ask for here. The rest is about the share or the peer as a whole (watches, times, the end of the
# stream), or writes, or is nonsense: the share's own process answers it, and the lane is its again from then on.
SERVED_HERE: Final = frozenset(
    {Stat, List, Walk, Read, GetChunk, GetManifest, GetBatch, GetBlocks, GetRanges, Ping, StatFs, Trace}
)
_NOTHING: Final = Figures(0, 0, 0, Spent())


@dataclasses.dataclass(eq=False)
class _Lent:
    """A lane that is served here."""

    stream: TcpStream
    messages: MessageStream
    handler: RequestHandler
    told: tuple[int, int] = (0, 0)

    def figures(self) -> Figures:
        return Figures(
            self.stream.bytes_in, self.stream.bytes_out, self.handler.served.bytes, self.messages.times.spent()
        )


class Worker:
    """One worker. Its main thread takes lanes; each is served by a thread of its own, and one thread reports."""

    def __init__(self, setup: Setup, channel: Channel[ToWorker]) -> None:
        self._channel = channel
        self._tree = SharedTree.inherited(setup.tree, platform_io(setup.io))
        home = Path(setup.home)
        self._hashes = HashCache(store=lambda: kept_hashes(home))
        self._buffers = buffers_for(setup.io, setup.buffers)
        self._compressors = Compressors(setup.compress) if setup.compress else None
        self._gate = Gate()
        self._limited = setup.limited
        self._lock = threading.Lock()
        self._lanes: dict[int, _Lent] = {}
        self._over = threading.Event()
        RANDOM_READ.wanted = setup.timing

    def run(self) -> None:
        """Until the share closes its end."""
        threading.Thread(target=self._report, name="headrace-report", daemon=True).start()
        self._channel.send(Up())
        while (received := self._channel.receive()) is not None:
            message, descriptor = received
            if isinstance(message, Limited):
                self._limited = message.on
            elif isinstance(message, Lane):
                self._take(message, descriptor)

    def close(self) -> None:
        """Ends every lane, and keeps what is known of files."""
        self._over.set()
        with self._lock:
            lanes = list(self._lanes.values())
        for lane in lanes:
            lane.stream.abort()
        self._hashes.close()

    def _take(self, lane: Lane, descriptor: int | None) -> None:
        if descriptor is None:  # the kernel had none left for this process
            self._refuse(lane, "the worker has too many open files")
            return
        sock = socket.socket(fileno=descriptor)
        thread = threading.Thread(target=self._serve, args=(lane, sock), name=f"headrace-{lane.address}", daemon=True)
        try:
            thread.start()
        except RuntimeError as why:  # no further thread is allowed here
            sock.close()
            self._refuse(lane, f"the worker has no thread for it ({why})")

    def _refuse(self, lane: Lane, why: str) -> None:
        """The share serves it."""
        log.info("%s is served by the share itself: %s", lane.address, why)
        self._channel.send(Back(lane.number, _NOTHING, lane.state))

    def _serve(self, lane: Lane, sock: socket.socket) -> None:
        try:
            self._serve_lent(lane, sock)
        except BaseException:  # the share would wait for the lane for ever; so it hears that this process is gone
            log.exception("the lane of %s is lost", lane.address)
            os._exit(1)

    def _serve_lent(self, lane: Lane, sock: socket.socket) -> None:
        stream = TcpStream.resumed(sock, lane.state)
        messages = MessageStream(stream)
        messages.enter_session()
        unused, error = b"", None
        try:
            with logs.about(peer=lane.peer.hex()[:8]):
                unused = self._answer(lane, messages, stream)
        except HeadraceError as why:
            error = why
        except OSError as why:
            error = ConnectionLostError(f"the connection broke ({why.strerror or why})")
        except Exception:
            # As in the share's own process: one session's bug must not take the others down, and must not be silent.
            log.exception("a session with %s failed", lane.address)
            error = ConnectionLostError("a session failed")
        with self._lock:
            lent = self._lanes.pop(lane.number, None)
        messages.times.settle()
        figures = lent.figures() if lent else _NOTHING
        state = stream.lend()
        messages.close()  # not with a goodbye: it is lent
        code, text = (error.code, error.message) if error else ("", "")
        back = Back(lane.number, figures, dataclasses.replace(state, opened=unused + state.opened), code, text)
        with contextlib.suppress(OSError):  # the share is gone; so is this process in a moment
            self._channel.send(back)

    def _answer(self, lane: Lane, messages: MessageStream, stream: TcpStream) -> bytes:
        """Serves the lane as long as that can be done here; what the share has to look at first."""
        buffers = self._buffers
        stream.patient = lambda sending: not (sending and buffers.contended)
        if CLEAR in lane.features:
            messages.clear = stream
        agreed = Agreed(lane.version, frozenset(lane.features), "", "", ROLE_DATA, lane.peer)
        packing = packing_for(self._compressors, messages, agreed, lane.address)
        handler = RequestHandler(self._tree, self._hashes, messages, agreed, buffers, self._gate, None, packing)
        with self._lock:
            self._lanes[lane.number] = _Lent(stream, messages, handler)
        with contextlib.closing(handler):
            while (received := messages.receive()) is not None:
                request, payload = received
                if payload or self._limited or type(request) not in SERVED_HERE:
                    return messages.unused(request, payload)
                handler.handle(request)
        return b""

    def _report(self) -> None:
        quiet = 0
        while not self._over.wait(REPORT_EVERY):
            changed = {}
            with self._lock:
                for number, lent in self._lanes.items():
                    figures = lent.figures()
                    if (now := (figures.bytes_in, figures.bytes_out)) != lent.told:
                        lent.told = now
                        changed[number] = figures
            quiet = 0 if changed else quiet + 1
            if changed or quiet >= ALIVE_EVERY:
                quiet = 0
                with contextlib.suppress(OSError):
                    self._channel.send(Report(changed, list(self._samples())))

    def _samples(self) -> Iterator[Sample]:
        yield Sample("unknown_messages", UNKNOWN_MESSAGES.total())
        yield Sample("random_read_seconds", RANDOM_READ.figures())
        yield Sample("zero_copy_fallbacks", sum(zerocopy.FALLBACKS.counts().values()))
        yield Sample("cache_lookups", self._hashes.hits, ("host-hashes", "hit"))
        yield Sample("cache_lookups", self._hashes.misses, ("host-hashes", "miss"))
        yield from buffer_samples(self._buffers)


class _Handler(logging.Handler):
    """Gives records to the share, which knows where logs go and what they look like."""

    def __init__(self, channel: Channel[ToWorker]) -> None:
        super().__init__()
        self._channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)  # with the traceback, where there is one
        with contextlib.suppress(OSError):
            self._channel.send(Log(record.name, record.levelno, text, dict(logs.now_about())))


def main() -> None:
    # Ctrl-C reaches every process of the terminal. The share ends first, in order, and its workers with it.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    channel: Channel[ToWorker] = Channel(socket.socket(fileno=int(sys.argv[1])), ToWorker)
    received = channel.receive()
    if received is None or not isinstance(received[0], Setup):
        return
    setup = received[0]
    logger = logging.getLogger(logs.ROOT)
    logger.addHandler(_Handler(channel))
    logger.setLevel(setup.verbosity)
    logger.propagate = False
    worker = Worker(setup, channel)
    try:
        worker.run()
    except OSError as why:
        log.debug("the share is gone: %s", why)
    finally:
        worker.close()
    os._exit(0)  # threads that hang on a dead disk must not keep the process


if __name__ == "__main__":
    main()
