"""Programs that mount a remote folder, behind one face: headrace, sshfs, rclone."""

from __future__ import annotations

import getpass
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Protocol, Self

from headrace.bench import procfs
from headrace.bench.far import LOOPBACK, FarSshd
from headrace.bench.peers import FAST_CIPHER, HEADRACE, Headrace, rclone_settings, ssh_settings
from headrace.bench.process import POLL, READY_TIMEOUT, BenchError, Child, Command, tail
from headrace.bench.sshd import Sshd, program

CACHE_RAM: Final = "256M"  # headrace's default
_MOUNTS: Final = Path("/proc/self/mountinfo")
_POINT: Final = 4  # field of a line there
STOP_TIMEOUT: Final = 10.0  # seconds


class Mounter(Protocol):
    """One way to mount what a server gives out. `stop` always follows `start` and may be called again."""

    name: str

    @property
    def server(self) -> int | None:
        """The pid of the serving process."""

    def start(self, source: Path) -> None:
        """Serves the folder `source`. Raises NotInstalledError, BenchError."""

    def command(self, point: Path) -> Command:
        """Mounts it in the foreground, with empty caches, until SIGTERM."""

    def stop(self) -> None:
        """Ends every process of the server."""


class HeadraceMount:
    """`headrace mount`, with a client state of its own for each mount: no cache survives."""

    def __init__(self, name: str, folder: Path, address: str, options: Sequence[str] = ()) -> None:
        self.name = name
        self._folder = folder
        self._address = address
        self._options = options
        self._peer = Headrace(name, folder, share_options=("--bind", address))
        self._mounts = 0
        self._home = folder / "client-0"

    @property
    def server(self) -> int | None:
        return self._peer.server

    def start(self, source: Path) -> None:
        program("fusermount3")
        self._peer.start(source)

    def command(self, point: Path) -> Command:
        self._mounts += 1
        shutil.rmtree(self._home, ignore_errors=True)  # a disk cache may be as large as what was read
        self._home = self._folder / f"client-{self._mounts}"
        target = self._peer.address.replace(LOOPBACK, self._address)
        argv = (*HEADRACE, "mount", target, str(point), "--foreground", "--cache-ram", CACHE_RAM, *self._options)
        return Command(argv, self._peer.client_environment | {"HEADRACE_HOME": str(self._home)})

    def stop(self) -> None:
        self._peer.stop()


class _OverSftp:
    """What sshfs and rclone share: an sshd."""

    def __init__(self, name: str, folder: Path, address: str) -> None:
        self.name = name
        self._folder = folder
        self._address = address
        self._sshd = Sshd(folder) if address == LOOPBACK else FarSshd(folder, address)
        self._source = Path()

    @property
    def server(self) -> int | None:
        return self._sshd.pid

    def start(self, source: Path) -> None:
        program(self.name)
        program("fusermount3")
        self._source = source
        self._folder.mkdir()
        self._sshd.start()

    def stop(self) -> None:
        self._sshd.stop()


class Sshfs(_OverSftp):
    """With its defaults, but the fastest cipher."""

    def command(self, point: Path) -> Command:
        config = self._folder / "ssh_config"
        config.write_text("\n".join([f"Ciphers {FAST_CIPHER}", *ssh_settings(self._sshd.options), ""]))
        where = f"{getpass.getuser()}@{self._address}:{self._source}"
        return Command((program("sshfs"), "-f", "-F", str(config), "-o", "ro", where, str(point)))


class Rclone(_OverSftp):
    """With its defaults: no cache of contents."""

    def command(self, point: Path) -> Command:
        words = [word.replace(LOOPBACK, self._address) for word in rclone_settings(self._sshd, self._folder)]
        return Command((program("rclone"), "mount", f":sftp:{self._source}", str(point), "--read-only", *words))


class Mounted:
    """A folder mounted by a process of ours. As a context manager it ends with the block; `start` may come before it.

    point: an empty folder. No call in here looks below it: where the file system hangs, so would we.
    """

    def __init__(self, mounter: Mounter, point: Path, log: Path) -> None:
        self.name = mounter.name
        self._command = mounter.command(point)
        self._point = point
        self._log = log

    @property
    def pid(self) -> int:
        return self._child.pid

    def start(self) -> None:
        """Blocks until it is mounted. Raises NotInstalledError, BenchError."""
        self._child = child = Child(self._command, self._log)
        try:
            deadline = time.monotonic() + READY_TIMEOUT
            while not is_mounted(self._point):
                if child.ended:
                    raise BenchError(f"it ended at once: {tail(self._log)}")
                if time.monotonic() > deadline:
                    raise BenchError(f"nothing was mounted within {READY_TIMEOUT:.0f} s: {tail(self._log)}")
                time.sleep(POLL)
        except BaseException:
            self.end()
            raise

    def cpu_seconds(self) -> float:
        """Of its processes so far."""
        return procfs.cpu_seconds(self.pid)

    def kill(self) -> None:
        """Whoever waits for it gets an error."""
        self._child.kill()

    def end(self) -> None:
        """Its processes, and then the mount, should that be left."""
        self._child.end()
        if is_mounted(self._point):
            argv = [program("fusermount3"), "-u", "-z", str(self._point)]
            # A session of its own: Ctrl-C must not end the command that cleans up.
            subprocess.run(argv, capture_output=True, timeout=STOP_TIMEOUT, start_new_session=True)
        if is_mounted(self._point):
            raise BenchError(f"{self.name} left {self._point} mounted")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.end()


def unmount_below(folder: Path) -> None:
    """Whatever is still mounted below `folder`, so that it can be removed. Asks no file system."""
    for line in _MOUNTS.read_text().splitlines():
        point = line.split()[_POINT].replace("\\040", " ").replace("\\134", "\\")
        if Path(point).is_relative_to(folder):
            argv = [program("fusermount3"), "-u", "-z", point]
            subprocess.run(argv, capture_output=True, timeout=STOP_TIMEOUT, start_new_session=True)


def is_mounted(point: Path) -> bool:
    """Whether anything is mounted there, without asking it."""
    wanted = str(point).replace("\\", "\\134").replace(" ", "\\040")
    return any(line.split()[_POINT] == wanted for line in _MOUNTS.read_text().splitlines())


# By name, in the order of the table: (folder, address of the server).
MOUNTERS: Final[dict[str, Callable[[Path, str], Mounter]]] = {
    "headrace": lambda folder, address: HeadraceMount("headrace", folder, address),
    "sshfs": lambda folder, address: Sshfs("sshfs", folder, address),
    "rclone": lambda folder, address: Rclone("rclone", folder, address),
}
