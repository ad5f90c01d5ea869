"""Unmounting, and making room for a mount: neither may hang, whatever became of the process that served it."""

from __future__ import annotations

import errno
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from headrace import config
from headrace.errors import (
    DestinationExistsError,
    HeadraceError,
    LocalDiskError,
    MountError,
    NotFoundError,
    UsageError,
    printable,
)
from headrace.mount import device, table
from headrace.observe import running

KIND: Final = "mount"  # of the control socket of a mount's process
PATIENCE: Final = 3.0  # seconds for each step; a healthy mount takes milliseconds
POLL: Final = 0.02
_DEAD: Final = frozenset({errno.ENOTCONN, errno.ECONNABORTED})


@dataclass(frozen=True, slots=True)
class Unmounted:
    """point: where it was. lazy: it was in use or did not answer, and was only detached. left: the pid of its process,
    where that still runs. aborted: whoever waited for an answer there got an error."""

    point: str
    lazy: bool = False
    reason: str = ""
    left: int | None = None
    aborted: bool = False


def unmount(directory: str, *, patience: float = PATIENCE) -> Unmounted:
    """Unmounts what headrace mounted there, and waits until its process has ended.

    Where that cannot be done at once the mount is detached: it is gone from the tree, and from the kernel when its last
    user has left. Raises NotFoundError where nothing is mounted, UsageError where something else is, MountError.
    """
    point = table.canonical(directory)
    found = table.at(point)
    if found is None:
        raise NotFoundError(f"nothing is mounted on {printable(point)}", hint="headrace status shows what is.")
    if not found.ours:
        raise UsageError(
            f"what is mounted on {printable(point)} is {printable(found.kind)}, not headrace", hint="Use umount."
        )
    pid = _process(point)
    reason = _try(point, lazy=False, patience=patience)
    lazy = reason is not None
    aborted = False
    if lazy:
        failure = _try(point, lazy=True, patience=patience)
        if failure is not None and table.at(point) == found:
            raise MountError(f"{printable(point)} could not be unmounted: {failure}", hint="As root: umount -l.")
        if pid is None:  # nobody answers what is asked there
            aborted = device.abort(found.device)
    left = None
    if pid is not None and not _wait_gone(pid, patience if not lazy else 0.5):
        left = pid
    return Unmounted(point, lazy, reason or "", left, aborted)


def _try(point: str, *, lazy: bool, patience: float) -> str | None:
    """Why it could not be done; None: it could."""
    try:
        return device.detach(point, lazy=lazy, seconds=patience)
    except TimeoutError as why:
        return why.strerror or str(why)


def _process(point: str) -> int | None:
    """The process that serves this mount, where it answers."""
    for found in running.find():
        if found.kind != KIND:
            continue
        try:
            if running.ask(found, {"ask": "status"}, patience=1.0).get("dir") == point:
                return found.pid
        except HeadraceError:
            continue
    return None


def _wait_gone(pid: int, seconds: float) -> bool:
    """Whether the process has ended in time."""
    deadline = time.monotonic() + seconds
    while Path("/proc", str(pid)).exists() and not _zombie(pid):
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL)
    return True


def _zombie(pid: int) -> bool:
    try:
        return Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (OSError, IndexError):
        return True


# ---- before a mount --------------------------------------------------------------------------------------------------


def make_room(directory: str, *, nonempty: bool = False) -> str:
    """The canonical path of a folder on which can be mounted. What a killed mount left there is unmounted.

    Raises LocalDiskError (it is not there, or no folder), DestinationExistsError (mounted already, or not empty).
    """
    point = table.canonical(directory)
    found = table.at(point)
    if found is not None and found.kind.startswith("fuse"):
        _clear(point, found)
    shown = printable(directory)
    try:
        names = os.scandir(point)
    except FileNotFoundError as why:
        raise LocalDiskError(f"there is no folder {shown}", hint=f"Make it: mkdir -p {shown}.") from why
    except NotADirectoryError as why:
        raise LocalDiskError(f"{shown} is not a folder", hint="Mount on an empty folder.") from why
    except OSError as why:
        raise LocalDiskError(f"{shown} cannot be looked into ({why.strerror})", hint="Check its permissions.") from why
    with names:
        empty = next(names, None) is None
    if not empty and not nonempty:
        raise DestinationExistsError(
            f"{shown} is not empty, and a mount would hide what is in it",
            hint="Mount on an empty folder, or say -o nonempty.",
        )
    _check_not_home(point, shown)
    return point


def _clear(point: str, found: table.Mounted) -> None:
    """Unmounts what nobody serves any more; refuses where somebody does."""
    state = _state(point)
    if state == "dead" and found.ours:
        unmount(point)
        return
    what = "headrace" if found.ours else printable(found.kind)
    hint = "Unmount it: headrace unmount." if found.ours else f"Unmount it: {device.HELPER} -uz."
    how = {"dead": ", whose process is gone", "silent": ", which does not answer"}.get(state, "")
    raise DestinationExistsError(f"{printable(point)} is mounted already ({what}{how})", hint=hint)


def _state(point: str) -> str:
    """live, dead (its process is gone) or silent (it does not answer)."""
    results: list[str] = []

    def look() -> None:
        try:
            os.statvfs(point)  # never from the kernel's cache, as stat(2) may be
            results.append("live")
        except OSError as why:
            results.append("dead" if why.errno in _DEAD else "live")

    thread = threading.Thread(target=look, name="headrace-mount-look", daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return results[0] if results else "silent"


def _check_not_home(point: str, shown: str) -> None:
    """Our own state below the mount would be asked of ourselves."""
    home = os.path.realpath(config.home())
    if home == point or home.startswith(point.rstrip("/") + "/"):
        raise UsageError(f"headrace keeps its own state below {shown}", hint="Mount somewhere else.")
