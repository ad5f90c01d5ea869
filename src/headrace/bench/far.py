"""The programs that `peers` copies with, across a `netlab`: they serve on host b and copy on host a."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from headrace.bench.netlab import Lab
from headrace.bench.peers import FAST_CIPHER, Headrace, Peer, RsyncDaemon, Scp
from headrace.bench.process import POLL, BenchError, Child, Command, listen, tail
from headrace.bench.sshd import Sshd, program

LOOPBACK: Final = "127.0.0.1"
EVERY: Final = "0.0.0.0"
TRANSPORTS: Final = ("tcp", "quic", "auto")
TRY_TIMEOUT: Final = 30.0  # seconds for headrace to say whether it can


class FarSshd(Sshd):
    """Listens on every address of its host, and is known by the one that the other host sees."""

    def __init__(self, folder: Path, address: str) -> None:
        super().__init__(folder)
        self._address = address

    def _configure(self, port: int) -> None:
        super()._configure(port)
        for name, address in (("sshd_config", EVERY), ("known_hosts", self._address)):
            file = self._folder / name
            file.write_text(file.read_text().replace(LOOPBACK, address))


class _FarScp(Scp):
    def __init__(self, name: str, folder: Path, address: str) -> None:
        super().__init__(name, folder, FAST_CIPHER)
        self._sshd = FarSshd(folder, address)


class _FarRsyncDaemon(RsyncDaemon):
    def start(self, source: Path) -> None:
        rsync = program("rsync")
        self._folder.mkdir()
        config = self._folder / "rsyncd.conf"
        config.write_text(self._config(source))

        def command(port: int) -> Command:
            return Command((rsync, "--daemon", "--no-detach", "--config", str(config), "--port", str(port)))

        self._child, self._port = listen(command, self._folder / "rsyncd.log")


def far_rsync_daemon(name: str, folder: Path) -> RsyncDaemon:
    """One that the other host reaches."""
    return _FarRsyncDaemon(name, folder)


class Across:
    """A peer that serves on host b and copies on host a. The peer's server has to listen on b's address as well.

    first_bytes: of headrace, ms from the connection to the first byte of each copy so far; `note` reads them.
    commanded: when the last command was made, by time.monotonic.
    """

    def __init__(self, lab: Lab, peer: Peer) -> None:
        self.name = peer.name
        self.first_bytes: list[float] = []
        self.commanded = 0.0
        self._lab = lab
        self._peer = peer

    @property
    def server(self) -> int | None:
        return self._peer.server

    def start(self, source: Path) -> None:
        with self._lab.b.inside():
            self._peer.start(source)
        if isinstance(self._peer, Headrace):
            self._try(next(source.iterdir()))

    def _try(self, file: Path) -> None:
        """Whether headrace can at all: a transport may not be there. Raises BenchError."""
        with tempfile.TemporaryDirectory() as folder:
            made = self.command(file.name, Path(folder))
            log = Path(folder, "log")
            argv = (*made.argv, "--dry-run")
            with Child(Command(argv, made.env), log) as child:
                deadline = time.monotonic() + TRY_TIMEOUT
                while not child.ended:
                    if time.monotonic() > deadline:
                        raise BenchError(f"{self.name} does not connect: {tail(log)}")
                    time.sleep(POLL)
                if child.reap()[0]:
                    raise BenchError(tail(log))

    def before_run(self) -> None:
        with self._lab.b.inside():
            self._peer.before_run()

    def command(self, source_name: str, dest: Path) -> Command:
        self.commanded = time.monotonic()
        made = self._peer.command(source_name, dest)
        argv = [word.replace(LOOPBACK, self._lab.b.address) for word in made.argv]
        if isinstance(self._peer, Headrace):
            argv[argv.index("--quiet")] = "--json"  # its last event says when the first byte came
        return Command(tuple(self._lab.a.argv(argv)), made.env)

    def note(self, log: Path) -> None:
        """Reads what a copy said."""
        if isinstance(self._peer, Headrace):
            self.first_bytes.append(first_byte(log.read_text()))

    def stop(self) -> None:
        self._peer.stop()


def first_byte(said: str) -> float:
    """Of the events of `get --json`: ms from the connection to the first byte. Raises BenchError."""
    for line in reversed(said.splitlines()):
        event = json.loads(line) if line.startswith("{") else {}
        if event.get("event") == "done" and event["first_byte_ms"] is not None:
            return float(event["first_byte_ms"])
    raise BenchError(f"headrace get said nothing of its first byte: {said[-500:]}")


# By name, in the order of the table: (folder, address of the server). headrace comes once for each transport.
CASES: Final[dict[str, Callable[[Path, str], Peer]]] = {
    "headrace": lambda folder, address: _headrace(folder, address, TRANSPORTS[0]),
    "scp": lambda folder, address: _FarScp("scp", folder, address),
    "rsync-daemon": lambda folder, address: _FarRsyncDaemon("rsync-daemon", folder),
}


def _headrace(folder: Path, address: str, transport: str) -> Headrace:
    name = "headrace" if transport == TRANSPORTS[0] else f"headrace-{transport}"
    folder = folder.with_name(name)
    return Headrace(name, folder, options=("--transport", transport), share_options=("--bind", address))


def peers(lab: Lab, folder: Path, options: argparse.Namespace) -> list[Across]:
    """Those of `--only`, on the hosts of a lab."""
    made: list[Across] = []
    for name in options.only:
        if name == "headrace":
            made += [Across(lab, _headrace(folder / name, lab.b.address, one)) for one in options.transport]
        else:
            made.append(Across(lab, CASES[name](folder / name, lab.b.address)))
    return made
