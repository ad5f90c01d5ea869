"""Several copies at once, as one command: what a share does for several clients.

    python -m headrace.bench.together '[[{"NAME": "VALUE"}, ["PROGRAM", "ARGUMENT"]], ...]'

Each program runs in this environment and its own addition. Exits with the first exit code that is not 0.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from headrace.bench.peers import Peer
from headrace.bench.process import Command


class Crowd:
    """`count` clients of one peer. They copy to dest/0/NAME, dest/1/NAME, …; each headrace has a state of its own."""

    def __init__(self, peer: Peer, count: int, folder: Path) -> None:
        self.name = peer.name
        self._peer = peer
        self._count = count
        self._folder = folder

    @property
    def server(self) -> int | None:
        return self._peer.server

    def start(self, source: Path) -> None:
        self._peer.start(source)

    def before_run(self) -> None:
        self._peer.before_run()
        for path in self._folder.glob("client-*/index.*"):  # what is here already would not be fetched
            path.unlink()

    def command(self, source_name: str, dest: Path) -> Command:
        all_of_them = []
        for number in range(self._count):
            (dest / str(number)).mkdir()
            made = self._peer.command(source_name, dest / str(number))
            own = {"HEADRACE_HOME": str(self._folder / f"client-{number}")}
            all_of_them.append((own, made.argv))
        self._folder.mkdir(exist_ok=True)
        argv = (sys.executable, "-m", "headrace.bench.together", json.dumps(all_of_them))
        return Command(argv, self._peer.command(source_name, dest).env)

    def stop(self) -> None:
        self._peer.stop()


def main(said: str) -> int:
    running = [subprocess.Popen(argv, env=os.environ | own) for own, argv in json.loads(said)]
    codes = [process.wait() for process in running]
    return next((code for code in codes if code), 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
