"""`headrace unmount`: ends a mount, and never hangs doing so."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from headrace.cli import options, output
from headrace.errors import printable

if TYPE_CHECKING:
    from headrace.mount.unmount import Unmounted


@click.command("unmount", cls=options.Command)
@click.argument("directory", metavar="DIR")  # no click.Path: it asks the file system, which may be dead
@options.of("unmount")
@click.pass_obj
def unmount(common: options.Common, directory: str) -> None:
    """End the mount on DIR. What a killed mount left there is cleared as well.

    Where the mount is in use, or its process does not answer, it is detached: gone from DIR at once, and said so.

    \b
    headrace unmount ~/footage
    """
    events = output.Events() if common.json else None
    with output.telling(events):
        from headrace.mount import unmount as work

        done = work.unmount(directory)
        if events:
            events.emit(
                {
                    "event": "unmounted",
                    "dir": done.point,
                    "lazy": done.lazy,
                    "reason": done.reason or None,
                    "pid": done.left,
                    "aborted": done.aborted,
                }
            )
        elif done.lazy:
            output.say(_lazy(done))
        elif not common.quiet:
            output.note(f"{printable(done.point)} is unmounted")


def _lazy(done: Unmounted) -> str:
    what = f"{printable(done.point)} is detached, as it could not be unmounted at once ({printable(done.reason)})."
    if done.left is not None:
        return f"{what} Its process ({done.left}) ends when nobody uses it any more."
    if done.aborted:
        return f"{what} Whoever waited for an answer there got an error."
    return what
