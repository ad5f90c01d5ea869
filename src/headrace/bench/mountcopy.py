"""Copying by a mount, as a peer: mount, `cp`, unmount, all of it one command.

python -m headrace.bench.mountcopy POINT SOURCE DEST MOUNT...      MOUNT...: mounts POINT in the foreground
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

from headrace.bench.mounts import Mounted, Mounter
from headrace.bench.process import BenchError, Command


class MountCopy:
    """A peer that copies out of what `mounter` mounts. folder: an own one, made by `start`."""

    def __init__(self, name: str, folder: Path, mounter: Mounter) -> None:
        self.name = name
        self._folder = folder
        self._mounter = mounter

    @property
    def server(self) -> int | None:
        return self._mounter.server

    def start(self, source: Path) -> None:
        self._mounter.start(source)
        self._folder.mkdir()
        (self._folder / "point").mkdir()

    def before_run(self) -> None:
        pass

    def command(self, source_name: str, dest: Path) -> Command:
        point = self._folder / "point"
        mount = self._mounter.command(point)
        words = (str(point), source_name, str(dest / source_name), *mount.argv)
        return Command((sys.executable, "-m", "headrace.bench.mountcopy", *words), mount.env)

    def stop(self) -> None:
        self._mounter.stop()


class _Given:
    """A mounter of which only the command is known."""

    name = "mount"
    server = None

    def __init__(self, argv: tuple[str, ...]) -> None:
        self._argv = argv

    def start(self, source: Path) -> None:
        """It is served already."""

    def command(self, point: Path) -> Command:
        return Command(self._argv, dict(os.environ))

    def stop(self) -> None:
        """Whoever serves it stops it."""


def main(point: str, source: str, dest: str, *argv: str) -> int:
    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    mounted = Mounted(_Given(argv), Path(point), Path(point).with_name("mount.log"))
    try:
        mounted.start()
        with mounted:
            return subprocess.run(["cp", "-r", str(Path(point, source)), dest]).returncode
    except BenchError as why:
        print(why, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
