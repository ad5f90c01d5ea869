"""Mounting: from a folder to a descriptor of /dev/fuse, by fusermount3; and what to say when that cannot be.

fusermount3 mounts for any user, root or not, and keeps the rules that the administrator set (/etc/fuse.conf).
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from headrace.errors import LocalDiskError, MountError, UsageError, printable

log = logging.getLogger("headrace.mount")

DEVICE: Final = "/dev/fuse"
HELPER: Final = "fusermount3"
SUBTYPE: Final = "headrace"  # the mount's type is fuse.headrace
READ_AHEAD_KIB: Final = 512  # what the kernel asks for ahead of a sequential reader, where we may say so
PATIENCE: Final = 10.0  # seconds for fusermount3 to mount
# A file of the host can be no device and no set-user-ID program here. The kernel checks permissions by the modes.
ALWAYS: Final = ("ro", "nosuid", "nodev", "default_permissions", f"subtype={SUBTYPE}")
_COMMFD: Final = "_FUSE_COMMFD"  # where fusermount3 finds the socket for the descriptor (libfuse, lib/mount.c)


def check_here(platform: str = sys.platform) -> None:
    """Raises MountError, which says how to mend it, where nothing can be mounted at all."""
    if platform != "linux":
        raise MountError(f"headrace mounts on Linux only, and this is {platform}", hint="Use headrace get here.")
    if shutil.which(HELPER) is None:
        raise MountError(f"{HELPER} is not in PATH", hint="Install it: apt install fuse3.")
    try:
        os.close(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError as why:
        raise MountError(f"there is no {DEVICE}", hint="Load it: modprobe fuse.") from why
    except PermissionError as why:
        raise MountError(f"this user may not open {DEVICE}", hint=f"As root: chmod 666 {DEVICE}.") from why
    except OSError as why:
        raise MountError(f"{DEVICE} cannot be opened ({why.strerror})", hint="Load it: modprobe fuse.") from why


def mount(point: str, source: str, options: Sequence[str] = ()) -> int:
    """Mounts on the folder `point`; the descriptor of /dev/fuse on which the kernel asks. It is the caller's.

    source: what df and mount(8) show. options: further ones, as for mount(8) -o. Raises MountError, UsageError for an
    option that fusermount3 does not know, and LocalDiskError where the folder is at fault.
    """
    chosen = ",".join([*ALWAYS, f"fsname={_plain(source)}", *options])
    near, far = socket.socketpair()
    with near, far:
        try:
            done = subprocess.run(
                [HELPER, "-o", chosen, "--", point],
                env={**os.environ, _COMMFD: str(far.fileno())},
                pass_fds=[far.fileno()],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=PATIENCE,
                check=False,
            )
        except FileNotFoundError as why:
            raise MountError(f"{HELPER} is not in PATH", hint="Install it: apt install fuse3.") from why
        except (OSError, subprocess.TimeoutExpired) as why:
            raise MountError(f"{HELPER} cannot be run ({why})") from why
        said = done.stderr.decode("utf-8", "backslashreplace").strip()
        if done.returncode != 0:
            raise _refused(said, point)
        near.setblocking(False)
        descriptors: list[int] = []
        with contextlib.suppress(OSError):
            _, descriptors, _, _ = socket.recv_fds(near, 1, 1)
        if not descriptors:
            raise MountError(f"{HELPER} gave no descriptor ({printable(said) or 'and said nothing'})")
        os.set_inheritable(descriptors[0], False)
        return descriptors[0]


def _refused(said: str, point: str) -> MountError | UsageError | LocalDiskError:
    """What fusermount3 said, in our words where we know them."""
    text = printable(said.removeprefix(f"{HELPER}: "))
    if "unknown option" in text:
        return UsageError(f"{HELPER} does not take that: {text}", hint="Correct -o.")
    if "user_allow_other" in text:
        return MountError(
            "other users may not be let in: /etc/fuse.conf does not say so",
            hint="As root: echo user_allow_other >> /etc/fuse.conf; or leave --allow-other out.",
        )
    if "fuse device not found" in text:
        return MountError(f"there is no {DEVICE}", hint="Load it: modprobe fuse.")
    if "failed to open /dev/fuse" in text:
        return MountError(f"this user may not open {DEVICE}", hint=f"As root: chmod 666 {DEVICE}.")
    if "user has no write access to mountpoint" in text or "not owned by user" in text:
        return LocalDiskError(f"{point} is not this user's own folder", hint="Mount on a folder of your own.")
    if "Operation not permitted" in text:
        return MountError(
            f"nothing may be mounted here ({text})", hint="In a container, give it /dev/fuse and CAP_SYS_ADMIN."
        )
    return MountError(f"{HELPER} could not mount on {point}: {text or 'it said nothing'}", hint="See headrace doctor.")


def _plain(text: str) -> str:
    """Without what means something in a list of options."""
    return "".join(c if c.isprintable() and c not in ",\\ \t" else "_" for c in text)


def read_ahead(device: str, *, far: bool = False, kib: int = READ_AHEAD_KIB) -> int:
    """Raises the kernel's read-ahead on a mount; how much it is now, in KiB. device: as in table.Mounted.

    Linux gives a FUSE mount 128 KiB, and only root may give it more. It is no more than 512 as nobody can take back
    what the kernel asked for after a seek, and what comes next is read ahead by us. far: it stays as it is; where the
    round trip is long each request that is for nothing is dear.
    """
    setting = Path("/sys/class/bdi", device, "read_ahead_kb")
    try:
        if far:
            return int(setting.read_text())
        with contextlib.suppress(PermissionError):
            setting.write_text(f"{kib}\n")
        return int(setting.read_text())
    except (OSError, ValueError) as why:
        log.debug("read-ahead stays as it is: %s", why)
        return 128


def detach(point: str, *, lazy: bool, seconds: float) -> str | None:
    """Unmounts by fusermount3; what it said where it could not. lazy: at once, also when it is in use.

    Never blocks longer than `seconds`. Raises TimeoutError, and MountError where fusermount3 is not there.
    """
    command = [HELPER, "-u", *(["-z"] if lazy else []), "--", point]
    pipe = subprocess.PIPE
    try:
        helper = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=pipe, cwd="/")
    except FileNotFoundError as why:
        raise MountError(f"{HELPER} is not in PATH", hint="Install it: apt install fuse3.") from why
    try:
        _, said = helper.communicate(timeout=seconds)
    except subprocess.TimeoutExpired as why:
        helper.kill()  # and not waited for: in the kernel it may be beyond reach
        raise TimeoutError(errno.ETIMEDOUT, f"{HELPER} does not come back") from why
    if helper.returncode == 0:
        return None
    return printable(said.decode("utf-8", "backslashreplace").strip()) or "it said nothing"


def abort(device: str) -> bool:
    """Ends the kernel's side of a mount whose process does not answer: whoever waits for it gets an error. Whether that
    could be done: it needs the fusectl file system. device: as in table.Mounted."""
    try:
        Path("/sys/fs/fuse/connections", device.partition(":")[2], "abort").write_text("1")
    except OSError as why:
        log.debug("the connection cannot be aborted: %s", why)
        return False
    return True
