"""`headrace get`: fetch a file or a tree."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from headrace.cli import options, output, reach, signals
from headrace.cli.transferring import Human, Json, Run, Show
from headrace.cli.watching import watched
from headrace.errors import UsageError

if TYPE_CHECKING:
    from headrace.client.get import Transfer
    from headrace.client.session import Session


@click.command("get", cls=options.Command)
@click.argument("target")
@click.argument("dest", required=False, type=options.PATH)
@options.of("get")
@click.pass_obj
def get(
    common: options.Common,
    target: str,
    dest: str | None,
    on_exist: str,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    links: str,
    checksum: bool,
    dry_run: bool,
    connections: int | None,
    streams: int | None,
    retry_for: float,
    data_plane: str,
    content_addressing: bool,
    cache_entries: int,
    buffers: int,
    io: str,
    compress: int,
    fsync: str,
) -> int:
    """Fetch a file or a tree. Run it again to resume.

    A folder's contents go into DEST, by default a folder named like the share. A file becomes DEST, or goes into it
    where DEST is a folder. DEST - is standard output, for one file.

    \b
    headrace get 7k2m-xq4c-9dht@192.168.1.20:7420
    headrace get 7k2m-xq4c-9dht@192.168.1.20:7420/day1 copies/day1 --exclude '*.tmp'
    HEADRACE_CODE=7k2m-xq4c-9dht headrace get 192.168.1.20:7420/day1/a.mov .
    """
    if dest == "-" and (common.json or dry_run):
        raise UsageError("standard output cannot take both a file and a report", hint="Give a DEST other than -.")
    events = output.Events() if common.json else None
    with output.telling(events):
        wanted = reach.target_of(target, common)
        if dest == "-":
            from headrace.cli.cat import to_standard_output

            with watched(common, "get", None):
                to_standard_output(wanted, common)
            return 0
        from headrace.client.get import GetOptions, Links
        from headrace.engine.plan import OnExist

        chosen = GetOptions(
            on_exist=OnExist(on_exist),
            include=include,
            exclude=exclude,
            dry_run=dry_run,
            links=Links(links),
            checksum=checksum,
            connections=connections,
            streams=streams,
            retry_for=retry_for,
            data_plane=data_plane,
            content_addressing=content_addressing,
            cache_entries=cache_entries,
            buffers=buffers,
            io=io,
            compress=compress,
            fsync=fsync != "off",
        )
        show: Show = Json(events) if events else Human(quiet=common.quiet, dry_run=dry_run)

        def transfer(session: Session, show: Show) -> Transfer:
            from headrace.client.get import Transfer

            return Transfer(session, wanted.path, dest, chosen, show.event, tells_files=show.wants_files)

        try:
            return Run("get", wanted, transfer, common, show, dest=dest, ask=wanted.path).run()
        except signals.Stopped:
            output.say("interrupted; run the same command again to resume")
            raise
