"""`headrace share`: serve folders or files until a signal comes."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any, Final

import click

from headrace.cli import options, output, reach, signals
from headrace.cli.text import counted, human_limit, human_rate, human_seconds, human_size
from headrace.cli.watching import watched
from headrace.client.target import parse_code
from headrace.errors import printable
from headrace.observe import logs

if TYPE_CHECKING:
    from headrace.host.server import ShareServer
    from headrace.protocol.codes import Code

log = logging.getLogger("headrace.share")

# Every client can fall back to TCP, so a share always has it.
_TRANSPORTS: Final = {"auto": ("tcp", "quic"), "quic": ("tcp", "quic"), "tcp": ("tcp",)}
_HOST_LOG: Final = logging.getLogger("headrace.host")


@click.command("share", cls=options.Command)
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=options.PATH)
@options.of("share")
@click.pass_context
def share(
    context: click.Context,
    paths: tuple[str, ...],
    write: bool,
    port: int,
    bind: str,
    no_discovery: bool,
    allow: tuple[str, ...],
    max_clients: int | None,
    max_connections: int,
    max_per_address: int,
    max_per_peer: int,
    max_handshakes: int,
    max_handshakes_per_address: int,
    handshake_timeout: float,
    idle_timeout: float | None,
    expire: float | None,
    name: str | None,
    code: str | None,
    limit_peer: int | None,
    data_plane: str,
    buffers: int,
    workers: int,
    io: str,
    compress: int,
) -> None:
    """Share folders or files until Ctrl-C.

    Prints a code and the line to run on the other machine. Several PATHs become one folder that holds them by name.

    \b
    headrace share ~/footage
    headrace share report.pdf photos/ --port 0
    headrace share inbox --write
    HEADRACE_CODE=7k2m-xq4c-9dht headrace share ~/footage
    """
    common = context.ensure_object(options.Common)
    events = output.Events() if common.json else None
    reporter = _Reporter(events)
    if not common.quiet:
        log.setLevel(logging.INFO)  # who comes and what goes is what somebody who shares wants to see
    while_it_runs = contextlib.ExitStack()
    with output.telling(events), contextlib.ExitStack() as undo:
        undo.callback(while_it_runs.close)
        measure = while_it_runs.enter_context(watched(common, "share", events))
        from headrace.host.limits import Limits
        from headrace.host.server import ShareServer

        server = ShareServer(
            paths,
            port=port,
            bind=bind,
            code=_code(context, code, common),
            name=name,
            versions=reach.versions(common),
            limit_rate=common.limit_rate,
            limit_peer=limit_peer,
            data_plane=data_plane,
            buffers=buffers,
            workers=workers,
            io=io,
            discovery=not no_discovery,
            allow=allow,
            max_clients=max_clients,
            limits=Limits(
                connections=max_connections,
                per_address=max_per_address,
                per_peer=max_per_peer,
                handshakes=max_handshakes,
                handshakes_per_address=max_handshakes_per_address,
                handshake=handshake_timeout,
                idle=idle_timeout,
            ),
            compress=compress,
            write=write,
            transports=_TRANSPORTS[common.transport],
            on_event=reporter.report,
        )
        measure(server.samples)
        while_it_runs.enter_context(logs.about_all(share=server.code.share))
        undo.pop_all()

    with while_it_runs:

        def begin() -> None:
            server.start()
            if events:
                events.emit(_ready(server))
            else:
                with contextlib.suppress(output.ReaderGoneError):  # it was read as far as somebody cared to
                    output.write_text(_announcement(server))
                    output.flush()
            from headrace.cli.live import LiveShare, open_to_status  # only now: nobody waits for it
            from headrace.cli.resident import stay

            while_it_runs.enter_context(open_to_status(LiveShare(server, reporter.report), "share"))
            stay()

        stopped = signals.wait_for_one(begin, expire)
        server.stop()
    if stopped:
        if not common.quiet:
            output.note("stopped")
        raise stopped
    reporter.report({"event": "expired", "seconds": expire})


def _code(context: click.Context, given: str | None, common: options.Common) -> Code | None:
    """--code; else what --code-file or HEADRACE_CODE say; else the config file; else None, for a fresh one."""
    on_command_line = context.get_parameter_source("code") is click.core.ParameterSource.COMMANDLINE
    if given and on_command_line:
        return parse_code(given)
    return reach.elsewhere(common) or (parse_code(given) if given else None)


def _ready(server: ShareServer) -> dict[str, Any]:
    return {
        "event": "ready",
        "code": server.code.text,
        "port": server.port,
        "addresses": server.addresses,
        "target": server.target,
        "name": server.name,
        "write": server.incoming is not None,
    }


def _announcement(server: ShareServer) -> str:
    others = [address for address in server.addresses[1:] if address not in ("127.0.0.1", "::1")]
    lines = [
        f"Sharing {printable(server.name)}. The code is {server.code.text}",
        "On the other machine run:",
        "",
        f"    headrace get {server.target}",
        "",
    ]
    if server.announced:
        lines.append("On the same network the code is enough, without an address.")
    if others:
        lines.append(f"This machine is also {', '.join(others)}.")
    if server.incoming:
        lines.append("Whoever has the code can put files into it, and replace those that are there.")
    lines.append("Ctrl-C stops sharing.")
    return "\n".join(lines) + "\n"


class _Reporter:
    """The share's events: JSON on standard output, or log lines. Called from the server's threads."""

    def __init__(self, events: output.Events | None) -> None:
        self._events = events

    def report(self, event: dict[str, Any]) -> None:
        # Warnings of the host say this as well, but not with -q, and nobody may miss it.
        if event.get("code") == "locked" and "retry_after" in event and not _HOST_LOG.isEnabledFor(logging.WARNING):
            log.error("%s", event["message"])
        if self._events:
            self._events.emit(event)
        elif event["event"] == "peer":
            log.info("%s", _peer(event))
        elif event["event"] == "transfer":
            log.info("%s", _transfer(event))
        elif event["event"] == "expired":
            output.note("the time of this share is over")
        elif event["event"] == "limit":
            limits = (human_limit(event["limit_rate"]), human_limit(event["limit_peer"]))
            log.info("limits are now: %s in all, %s each peer", *limits)


def _peer(event: dict[str, Any]) -> str:
    if event["state"] == "connected":
        return f"{event['address']} connected ({event['agent']}, protocol {event['protocol']})"
    return f"{event['address']} is {event['state']}"


def _transfer(event: dict[str, Any]) -> str:
    size, seconds = event["bytes"], event["seconds"]
    rate = f" ({human_rate(size / seconds)})" if seconds >= 0.1 else ""
    if event["direction"] == "in":
        files = f" and {counted(event['files'], 'file')}" if event["files"] else ""
        return f"received {human_size(size)}{files} from {event['address']} in {human_seconds(seconds)}{rate}"
    return f"sent {human_size(size)} to {event['address']} in {human_seconds(seconds)}{rate}"
