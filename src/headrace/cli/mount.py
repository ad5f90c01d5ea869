"""`headrace mount`: a share as a folder of this machine."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import click

from headrace.cli import options, output, reach, signals
from headrace.cli.watching import watched
from headrace.errors import UsageError, printable

if TYPE_CHECKING:
    from headrace.client.target import Target
    from headrace.mount.mounted import Mount, MountOptions

# What is the same by another name here, or always so.
_OURS: Final = frozenset({"nonempty", "allow_other", "ro", "nosuid", "nodev", "default_permissions"})
_NEVER: Final = {
    "rw": "a mount is read-only",
    "suid": "programs of the host never run as another user here",
    "dev": "the host's devices are none here",
    "fsname": "the name shows what is mounted",
    "subtype": "the type is how headrace knows its mounts",
}

Word = dict[str, Any]


@click.command("mount", cls=options.Command)
@click.argument("target")
@click.argument("directory", metavar="DIR")  # no click.Path: it asks the file system, which may be dead
@options.of("mount")
@click.pass_obj
def mount(
    common: options.Common,
    target: str,
    directory: str,
    foreground: bool,
    allow_other: bool,
    fuse_options: tuple[str, ...],
    timeout: float,
    cache_ram: int,
    cache_disk: int,
    offline: bool,
    debug_io: bool,
) -> None:
    """Show a share as a folder of this machine, read-only.

    The command returns when DIR can be used; a process in the background serves it. What was read is cached; a call
    that needs the host waits for it --timeout at most. End it with headrace unmount DIR.

    \b
    headrace mount 7k2m-xq4c-9dht@192.168.1.20:7420 ~/footage
    headrace mount 7k2m-xq4c-9dht@192.168.1.20:7420/day1 ~/day1 --foreground
    headrace unmount ~/footage
    """
    events = output.Events() if common.json else None
    with output.telling(events):
        wanted = reach.target_of(target, common)
        where = os.path.abspath(directory)  # the process in the background has another folder
        from headrace.mount import device, process, unmount
        from headrace.mount.mounted import MountOptions

        passed, nonempty = _fuse(fuse_options, allow_other=allow_other)
        chosen = MountOptions(
            timeout=timeout,
            cache_ram=cache_ram,
            cache_disk=cache_disk,
            plain=debug_io,
            offline=offline,
            fuse=passed,
            nonempty=nonempty,
        )
        if timeout <= 0:
            raise UsageError("a timeout is more than 0", hint="Leave --timeout out for 30 seconds.")
        device.check_here()  # before anybody is called
        unmount.make_room(where, nonempty=nonempty)
        if not foreground:
            _ready(process.in_background(lambda ready: _serve(wanted, where, common, chosen, ready) and 0), events)
            return
        stopped = _serve(wanted, where, common, chosen, lambda word: _ready(word, events))
    if stopped:
        raise signals.Stopped(stopped)


def _serve(
    target: Target, directory: str, common: options.Common, chosen: MountOptions, ready: Callable[[Word], None]
) -> int:
    """Mounts, and serves until a signal comes or it is unmounted. The signal's number, or 0."""
    from headrace.cli.live import open_to_status
    from headrace.cli.resident import stay
    from headrace.mount.mounted import Mount
    from headrace.mount.process import waking

    with (
        watched(common, "mount", None) as measure,
        Mount(target, directory, lambda: reach.connect(target, common), chosen) as mounted,
        waking() as wake,
    ):
        measure(mounted.samples)
        mounted.on_end(wake.wake)
        with open_to_status(mounted, "mount"):
            stay()
            ready(_word(mounted))
            return wake.wait()


def _word(mounted: Mount) -> Word:
    status = mounted.status()
    wanted = ("target", "dir", "name", "share", "pid", "up", "offline", "transport", "protocol")
    return {"event": "ready", **{name: status[name] for name in wanted}, "read_ahead_kib": mounted.read_ahead}


def _ready(word: Word, events: output.Events | None) -> None:
    if events:
        events.emit(word)
        return
    where = printable(str(word["dir"]))
    output.note(f"{printable(str(word['name']))} is mounted on {where}. End it with: headrace unmount {where}")


def _fuse(given: tuple[str, ...], *, allow_other: bool) -> tuple[tuple[str, ...], bool]:
    """(options for fusermount3, whether the folder may hold something). Raises UsageError."""
    found = [option.strip() for group in given for option in group.split(",") if option.strip()]
    for option in found:
        name = option.partition("=")[0]
        if name in _NEVER:
            raise UsageError(f"-o {printable(name)} cannot be: {_NEVER[name]}", hint="Leave it out.")
    passed = tuple(option for option in found if option not in _OURS)
    if allow_other or "allow_other" in found:
        passed += ("allow_other",)
    return passed, "nonempty" in found
