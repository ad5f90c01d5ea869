"""`headrace put`: send files into a share that may be written to."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from headrace.cli import options, output, reach, signals
from headrace.cli.transferring import Human, Json, Run, Show
from headrace.errors import UsageError

if TYPE_CHECKING:
    from headrace.client.put import Put
    from headrace.client.session import Session


@click.command("put", cls=options.Command)
@click.argument("sources", metavar="SRC...", nargs=-1, required=True, type=options.PATH)
@click.argument("target")
@options.of("put")
@click.pass_obj
def put(
    common: options.Common,
    sources: tuple[str, ...],
    target: str,
    on_exist: str,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    links: str,
    checksum: bool,
    dry_run: bool,
    connections: int | None,
    streams: int | None,
    retry_for: float,
    content_addressing: bool,
    buffers: int,
    io: str,
    compress: int,
    fsync: str,
) -> int:
    """Send files into a share that was started with --write. Run it again to resume.

    As with get the other way round: a folder's contents go into TARGET, a file becomes TARGET, or goes into it where
    TARGET is a folder or ends with a slash. Several SRC go into TARGET by their names. SRC - is standard input.

    \b
    headrace put report.pdf 7k2m-xq4c-9dht@192.168.1.20:7420
    headrace put day1 7k2m-xq4c-9dht@192.168.1.20:7420/footage/day1 --exclude '*.tmp'
    pg_dump shop | headrace put - 7k2m-xq4c-9dht@192.168.1.20:7420/backups/shop.sql
    """
    events = output.Events() if common.json else None
    with output.telling(events), contextlib.ExitStack() as at_the_end:
        wanted = reach.target_of(target, common)
        into = target.endswith("/")
        if "-" in sources:
            if len(sources) > 1 or into or not wanted.path:
                raise UsageError("standard input needs a name in the share", hint="Write put - TARGET/name.")
            sources = (at_the_end.enter_context(_standard_input()),)
        from headrace.client.options import GetOptions, Links
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
            content_addressing=content_addressing,
            buffers=buffers,
            io=io,
            compress=compress,
            fsync=fsync != "off",
        )
        show: Show = Json(events) if events else Human(quiet=common.quiet, dry_run=dry_run, verb="send", there="there")

        def transfer(session: Session, show: Show) -> Put:
            from headrace.client.put import Put

            return Put(*(session, sources, wanted.path, chosen, show.event), into=into, tells_files=show.wants_files)

        try:
            return Run("put", wanted, transfer, common, show).run()
        except signals.Stopped:
            output.say("interrupted; run the same command again to resume")
            raise


@contextlib.contextmanager
def _standard_input() -> Iterator[str]:
    """A file with all that comes from there: how much it is has to be known first, and it may have to be sent again."""
    if sys.stdin is None:
        raise UsageError("there is no standard input", hint="Give a file.")
    with tempfile.TemporaryDirectory(prefix="headrace-put-") as folder:
        path = Path(folder) / "stdin"
        with path.open("wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file, 1 << 20)
        yield os.fspath(path)
