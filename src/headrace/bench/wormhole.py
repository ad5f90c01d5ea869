"""magic-wormhole with a mailbox server of its own: nothing leaves this machine. A sender serves one copy."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Final

from headrace.bench.process import POLL, READY_TIMEOUT, BenchError, Child, Command, environment, listen, tail
from headrace.bench.sshd import program

LOOPBACK: Final = "127.0.0.1"
NO_RELAY: Final = "tcp:127.0.0.1:1"  # nobody listens there: direct connections only


class Wormhole:
    """`wormhole send` and `wormhole receive`, over loopback. folder: an own one, made by `start`.

    The server is the sender, which is started anew before each run. It listens on every address: it cannot be told
    otherwise.
    """

    def __init__(self, name: str, folder: Path, address: str = LOOPBACK) -> None:
        self.name = name
        self._folder = folder
        self._source = Path()
        self._mailbox: Child | None = None
        self._sender: Child | None = None
        self._port = 0
        self._sent = 0

    @property
    def server(self) -> int | None:
        return self._sender.pid if self._sender else None

    def start(self, source: Path) -> None:
        program("wormhole")
        twist = program("twist")
        self._source = source
        self._folder.mkdir()

        def command(port: int) -> Command:
            database = f"--channel-db={self._folder / 'mailbox.sqlite'}"
            return Command((twist, "wormhole-mailbox", f"--port=tcp:{port}:interface={LOOPBACK}", database))

        self._mailbox, self._port = listen(command, self._folder / "mailbox.log")

    def before_run(self) -> None:
        self._sent += 1
        self._end_sender()
        source = min(self._source.iterdir())
        log = self._folder / "send.log"
        self._sender = self._command("send", "--no-qr", "--hide-progress", "--code", self._code, str(source), log=log)
        deadline = time.monotonic() + READY_TIMEOUT
        while self._code not in tail(log):
            if self._sender.ended or time.monotonic() > deadline:
                raise BenchError(f"wormhole send was not ready: {tail(log)}")
            time.sleep(POLL)

    @property
    def _code(self) -> str:
        return f"{self._sent}-headrace-bench"

    def _words(self) -> tuple[str, ...]:
        return (program("wormhole"), "--relay-url", f"ws://{LOOPBACK}:{self._port}/v1", "--transit-helper", NO_RELAY)

    def _command(self, *words: str, log: Path) -> Child:
        return Child(Command((*self._words(), *words), self._environment()), log)

    @staticmethod
    def _environment() -> dict[str, str]:
        return environment() | {"PYTHONUNBUFFERED": "1"}

    def command(self, source_name: str, dest: Path) -> Command:
        words = ("receive", "--hide-progress", "--accept-file", "-o", str(dest / source_name), self._code)
        return Command((*self._words(), *words), self._environment())

    def _end_sender(self) -> None:
        if self._sender:
            self._sender.end(signal.SIGTERM)

    def stop(self) -> None:
        self._end_sender()
        if self._mailbox:
            self._mailbox.end()
