"""`headrace cat`: the bytes of one file on standard output."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from headrace.cli import options, output, reach, signals
from headrace.transport.abort import Abort

if TYPE_CHECKING:
    from headrace.client.target import Target


@click.command("cat", cls=options.Command)
@click.argument("target")
@options.of("cat")
@click.pass_obj
def cat(common: options.Common, target: str, offset: int, length: int | None) -> None:
    """Write a file's bytes to standard output.

    \b
    headrace cat 7k2m-xq4c-9dht@192.168.1.20:7420/notes.txt
    """
    to_standard_output(reach.target_of(target, common), common, offset, length)


def to_standard_output(target: Target, common: options.Common, offset: int = 0, length: int | None = None) -> None:
    """Raises signals.Stopped, and a HeadraceError for what fails."""
    abort = Abort()

    def work() -> None:
        from headrace.client.remote import read_range

        session = reach.connect(target, common, ask=target.path, abort=abort)
        with session:
            for piece in read_range(session, target.path, offset, length):
                output.write(piece)
            output.flush()

    signals.run(work, cancel=abort)
