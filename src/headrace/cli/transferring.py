"""A transfer on the command line, whichever way it goes: run, told, and shown while it runs."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Final

from headrace.cli import options, output, reach, signals
from headrace.cli.progress import Meter, View, progress_event, progress_line
from headrace.cli.text import counted, human_limit, human_rate, human_seconds, human_size
from headrace.cli.times import event as times_event
from headrace.cli.times import lines as times_lines
from headrace.cli.watching import watched
from headrace.errors import StoppedError, printable
from headrace.observe import logs
from headrace.transport.abort import Abort

if TYPE_CHECKING:
    from headrace.client.options import GetResult
    from headrace.client.running import Running
    from headrace.client.session import Session
    from headrace.client.target import Target
    from headrace.observe.bottleneck import Breakdown
    from headrace.observe.metrics import Source
    from headrace.protocol.paths import RelPath

log = logging.getLogger("headrace.get")

EVENT_EVERY: Final = 0.5  # seconds between two `progress` events


class Show:
    """How a transfer is told. `event` is called from the transfer's threads, the rest from one each."""

    wants_files = True  # an event for each file that came, or was there
    events: output.Events | None = None

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._told: set[str] = set()

    def _complain(self, event: dict[str, Any]) -> None:
        """One line for a file that failed."""
        with self._lock:
            self._told.add(event["message"])
        fields = {name: event.get(name) for name in ("path", "hint", "code", "errno", "retryable")}
        output.say(_complaint(event), fields)

    def _conclude(self, result: GetResult) -> None:
        """One line for the whole, unless its one file's said it already."""
        if result.error and result.error.message not in self._told:
            output.complain(result.error)

    def connected(self, session: Session) -> None:
        """The host let us in."""

    def event(self, event: dict[str, Any]) -> None:
        """`plan`, `file`, `warning`, `error` as the transfer makes them; `limit` when somebody changed it."""

    def moved(self, view: View) -> None:
        """Called a few times a second."""

    def where_time_went(self, breakdown: Breakdown) -> None:
        """With -v, just before `done`."""

    def done(self, result: GetResult, view: View) -> None:
        """It ran to its end; some files may have failed."""


class Run:
    """One transfer, on a thread that the main thread waits for.

    make: the transfer itself, once the session stands. kind: what it is called, `get` or `put`; dest: where to, for
    `headrace status`. ask: the path that it asks about first.
    """

    def __init__(
        self,
        kind: str,
        target: Target,
        make: Callable[[Session, Show], Running],
        common: options.Common,
        show: Show,
        *,
        dest: str | None = None,
        ask: RelPath | None = None,
    ) -> None:
        self._kind = kind
        self._target = target
        self._make = make
        self._dest = dest
        self._ask = ask
        self._abort = Abort()
        self._common = common
        self._show = show
        self._meter = Meter()
        self._session: Session | None = None
        self._transfer: Running | None = None
        self._cancelled = threading.Event()
        self._view: View | None = None  # the latest, for `headrace status`
        self._while_it_runs = contextlib.ExitStack()
        self._measure: Callable[[Source], None] = lambda source: None

    def run(self) -> int:
        """The exit code. Raises signals.Stopped, and a HeadraceError for what ends the transfer as a whole."""
        with _progress_line(self._show), self._while_it_runs:
            self._measure = self._while_it_runs.enter_context(watched(self._common, self._kind, self._show.events))
            result = signals.run(self._work, cancel=self._cancel, tick=self._tick)
        assert self._transfer is not None
        self._show.done(result, self._meter.look(self._transfer.progress.totals()))
        return result.error.exit_code if result.error else 0

    def _work(self) -> GetResult:
        import headrace.client.session  # noqa: F401  # what dialling takes; the rest while the host answers

        with _loading(self._kind):
            session = self._session = reach.connect(self._target, self._common, ask=self._ask, abort=self._abort)
        from headrace.client.metrics import transfer_samples
        from headrace.client.times import Watch

        ids = {"share": session.agreed.share, "peer": session.agreed.peer.hex()[:8], "transfer": os.urandom(4).hex()}
        with logs.about_all(**ids), session:
            self._show.connected(session)
            transfer = self._make(session, self._show)
            self._transfer = transfer
            self._measure(lambda: transfer_samples(transfer))
            if self._cancelled.is_set():
                raise StoppedError("stopped")
            watch = Watch(session) if self._common.verbose else None
            result = transfer.run()
            if watch:
                breakdown = watch.breakdown(transfer.progress.ledger.spent(), result.seconds, sends=self._kind == "put")
                if breakdown:
                    self._show.where_time_went(breakdown)
            return result

    def _cancel(self) -> None:
        self._cancelled.set()
        if self._transfer:
            self._transfer.cancel()
        else:
            self._abort()

    def _tick(self) -> None:
        if self._transfer:
            first, self._view = self._view is None, self._meter.look(self._transfer.progress.totals())
            self._show.moved(self._view)
            if first:
                self._open_to_status()

    def _open_to_status(self) -> None:
        from headrace.cli.live import LiveTransfer, open_to_status  # only now: a short transfer has no need of it

        assert self._session is not None

        def look() -> View:
            assert self._view is not None
            return self._view

        program = LiveTransfer(self._kind, self._session, self._target, self._dest, look, self._show.event)
        self._while_it_runs.enter_context(open_to_status(program, self._kind))


class Json(Show):
    """Events on standard output; what failed also in words, on standard error."""

    def __init__(self, events: output.Events) -> None:
        super().__init__()
        self._events = self.events = events
        self._next = 0.0

    def where_time_went(self, breakdown: Breakdown) -> None:
        self._events.emit(times_event(breakdown))

    def connected(self, session: Session) -> None:
        rtt = session.control.messages.stream.rtt()
        self._events.emit(
            {
                "event": "connected",
                "transport": session.connection.transport,
                "protocol": session.agreed.version,
                "rtt_ms": None if rtt is None else round(rtt * 1000, 3),
                "reason": session.connection.reason,
                "fallback_reason": session.connection.fallback_reason,
            }
        )

    def event(self, event: dict[str, Any]) -> None:
        self._events.emit(event)
        if event["event"] == "error":
            self._complain(event)

    def moved(self, view: View) -> None:
        if view.totals.seconds >= self._next:
            self._next = view.totals.seconds + EVENT_EVERY
            self._events.emit(progress_event(view))

    def done(self, result: GetResult, view: View) -> None:
        self._events.emit(progress_event(view))
        figures = {field.name: getattr(result, field.name) for field in fields(result) if field.name != "error"}
        self._events.emit({"event": "done", **figures})
        self._conclude(result)


class Human(Show):
    """A progress line on a terminal, a line for each failure, a summary on standard output."""

    def __init__(self, *, quiet: bool, dry_run: bool, verb: str = "fetch", there: str = "here") -> None:
        """verb, there: what is done with files, and where those are that need none of it."""
        super().__init__()
        self._dry_run = dry_run
        self._verb = verb
        self._there = there
        self._quiet = quiet
        self.wants_files = log.isEnabledFor(logging.INFO)
        self._would = self._would_bytes = 0
        self.line: output.ProgressLine | None = None
        if not quiet and output.stderr_is_terminal() and os.environ.get("TERM") != "dumb":
            self.line = output.ProgressLine(sys.stderr)

    def connected(self, session: Session) -> None:
        if session.connection.fallback_reason and not self._quiet:
            output.say(session.connection.fallback_reason, level=logging.WARNING)

    def event(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "error":
            self._complain(event)
        elif kind == "warning" and not self._quiet:
            output.say(f"warning: {_complaint(event)}", {"path": event.get("path")}, level=logging.WARNING)
        elif kind == "transport" and not self._quiet:
            output.say(f"chunks go by {event['transport'].upper()} from here on: {event['reason']}", level=logging.INFO)
        elif kind == "file":
            self._file(event["action"], printable(event["path"]), event["bytes"])
        elif kind == "limit":
            log.info("the limit is now: %s", human_limit(event["limit_rate"]))

    def _file(self, action: str, path: str, size: int) -> None:
        if action.startswith("would-"):
            with self._lock:
                self._would += 1
                self._would_bytes += size
                if not self._quiet:
                    output.write_text(f"would {self._verb} {path} ({human_size(size)})\n")
        log.info("%s %s", action, path)

    def moved(self, view: View) -> None:
        if self.line:
            self.line.show(progress_line(view))

    def where_time_went(self, breakdown: Breakdown) -> None:
        for line in times_lines(breakdown):
            log.info("%s", line)

    def done(self, result: GetResult, view: View) -> None:
        if result.compression:
            log.info("compression: %s", ", ".join(f"{word} {n}" for word, n in sorted(result.compression.items())))
        if not self._quiet:
            output.write_text(self._summary(result, view.totals.files_same) + "\n")
            output.flush()
        self._conclude(result)

    def _summary(self, result: GetResult, same: int) -> str:
        """1.0 GiB in 1 file, 612 MB/s, 1.7 s, over tcp (protocol 8)"""
        if self._dry_run:
            wanted = counted(self._would, "file")
            parts = [f"would {self._verb} {human_size(self._would_bytes)} in {wanted}"]
        else:
            parts = [f"{human_size(result.bytes)} in {counted(result.files, 'file')}"]
        came = result.bytes_received + result.bytes_saved
        if came and result.seconds:
            parts.append(human_rate(came / result.seconds))
        parts.append(human_seconds(result.seconds))
        parts.append(f"over {result.transport} (protocol {result.protocol})")
        if result.bytes_saved:
            parts.append(f"{human_size(result.bytes_received)} on the way, compressed")
        if result.bytes_reused:
            parts.append(f"{human_size(result.bytes_reused)} of it were {self._there} already")
        if same:
            parts.append(f"{counted(same, 'identical file')} skipped")
        if result.failed:
            parts.append(f"{counted(result.failed, 'file')} failed")
        return ", ".join(parts)


@contextlib.contextmanager
def _loading(kind: str) -> Iterator[None]:
    """Imports what a transfer takes, on a thread, while what is inside waits for the network."""

    def load() -> None:
        importlib.import_module(f"headrace.client.{kind}")
        importlib.import_module("headrace.client.times")

    loading = threading.Thread(target=load, name="headrace-load")
    loading.start()
    try:
        yield
    finally:
        loading.join()  # an interpreter that ends in the middle of an import crashes


def _complaint(event: dict[str, Any]) -> str:
    """PATH: MESSAGE. HINT, where the message does not name the path itself."""
    path, message, hint = printable(event.get("path") or ""), event["message"], event.get("hint")
    where = f"{path}: " if path and path not in message else ""
    return f"{where}{message}. {hint}" if hint else f"{where}{message}."


@contextlib.contextmanager
def _progress_line(show: Show) -> Iterator[None]:
    """While it stands at the bottom of the terminal, everything else for standard error goes above it."""
    line = show.line if isinstance(show, Human) else None
    if line is None:
        yield
        return
    with contextlib.redirect_stderr(line):
        try:
            yield
        finally:
            line.clear()
