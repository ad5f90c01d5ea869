"""The command as a real process, and a share to talk to."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

CODE = "7k2m-xq4c-9dht"
WRONG_CODE = "7k2m-xq4c-9dhw"
PATIENCE = 20.0  # seconds; far more than anything here should take


def environment(home: Path, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """The caller's, without its headrace settings. Nothing is announced outside this machine."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("HEADRACE_")}
    return {**inherited, "HEADRACE_HOME": str(home), "HEADRACE_NO_DISCOVERY": "1", **(more or {})}


def run(
    *arguments: str | bytes | Path, home: Path, env: Mapping[str, str] | None = None, **more: Any
) -> subprocess.CompletedProcess[bytes]:
    """Runs one command to its end."""
    more = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
    command = [sys.executable, "-m", "headrace", *arguments]
    return subprocess.run(command, env=environment(home, env), timeout=PATIENCE, check=False, **more)


def start(
    *arguments: str | Path, home: Path, env: Mapping[str, str] | None = None, **more: Any
) -> subprocess.Popen[bytes]:
    """Starts one command."""
    more = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
    return subprocess.Popen([sys.executable, "-m", "headrace", *arguments], env=environment(home, env), **more)


def json_lines(raw: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in raw.splitlines()]


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Sharing:
    """`headrace share --json` with CODE on a free port of 127.0.0.1. A context manager; what it says on standard
    error goes to a file. `end` sends a signal and waits."""

    def __init__(self, *paths: Path, home: Path, options: tuple[str, ...] = ()) -> None:
        home.mkdir(exist_ok=True)
        self._log = home / "stderr"
        with self._log.open("wb") as log:
            self.process = start(
                "share",
                *paths,
                *("--json", "--port", "0", "--bind", "127.0.0.1", *options),
                home=home,
                env={"HEADRACE_CODE": CODE},
                stderr=log,
            )
        assert self.process.stdout
        self.ready: dict[str, Any] = json.loads(self.process.stdout.readline())
        self.address = f"127.0.0.1:{self.ready['port']}"
        self.target = f"{CODE}@{self.address}"

    @property
    def stderr(self) -> str:
        return self._log.read_text()

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait(PATIENCE)
        assert self.process.stdout
        self.process.stdout.close()


class Gate:
    """A relay on 127.0.0.1 to the port of a share. It lets so many bytes through to the client and then holds the
    rest, so that "in the middle" is a place to wait at. A context manager; `address` is where to connect."""

    def __init__(self, port: int, allow: int) -> None:
        self._port = port
        self._left = allow
        self._lock = threading.Lock()
        self._opened = threading.Event()
        self.reached = threading.Event()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._server.accept()
                far = socket.create_connection(("127.0.0.1", self._port))
                threading.Thread(target=self._relay, args=(near, far, False), daemon=True).start()
                threading.Thread(target=self._relay, args=(far, near, True), daemon=True).start()

    def _relay(self, source: socket.socket, sink: socket.socket, gated: bool) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(65536):
                if gated:
                    with self._lock:
                        self._left -= len(piece)
                        closed = self._left < 0
                    if closed:
                        self.reached.set()
                        self._opened.wait(PATIENCE)
                sink.sendall(piece)
        for sock in (source, sink):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def open(self) -> None:
        """Lets the rest through."""
        self._opened.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.open()
        self._server.close()
