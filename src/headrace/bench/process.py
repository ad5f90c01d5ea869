"""Programs that a benchmark starts: each in a session of its own, and ended with all that it started."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Final, Self

from headrace.bench import procfs

READY_TIMEOUT: Final = 30.0  # seconds for a server to be ready
STOP_TIMEOUT: Final = 10.0  # seconds for a program to end when asked to
POLL: Final = 0.02
PORTS: Final = 3  # to try: another process may take a free one first
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class BenchError(Exception):
    """The benchmark cannot go on; the message says why."""


class NotInstalledError(BenchError):
    """A program to compare with is not on this machine."""


def environment() -> dict[str, str]:
    """The caller's environment without its headrace settings, which must not change what is measured. Nothing is
    announced outside this machine."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
    ours.pop("PYTHONDONTWRITEBYTECODE", None)  # else programs in Python would be compiled anew at each start
    return {**ours, "HEADRACE_NO_DISCOVERY": "1"}


@dataclass(frozen=True, slots=True)
class Command:
    """A program with its arguments and its whole environment."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=environment)


class Child:
    """A running program. As a context manager it ends with the block, and so does whatever it started.

    output: a file, or subprocess.PIPE; both of the program's streams go there unless `errors` is another place.
    """

    def __init__(self, command: Command, output: Path | int, errors: Path | None = None) -> None:
        with contextlib.ExitStack() as files:
            out = output if isinstance(output, int) else files.enter_context(output.open("wb"))
            error = files.enter_context(errors.open("wb")) if errors else subprocess.STDOUT
            try:
                self._process = subprocess.Popen(
                    command.argv,
                    env=dict(command.env),
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=error,
                    start_new_session=True,
                )
            except FileNotFoundError as why:
                raise NotInstalledError(command.argv[0]) from why
        self.pid = self._process.pid
        self.stdout = self._process.stdout

    @property
    def ended(self) -> bool:
        """Whether it has ended by itself. It stays a zombie, so that its pid and group cannot be anybody else's."""
        if self._process.returncode is not None:
            return True
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None

    def wait(self) -> None:
        """Blocks until it has ended by itself, without taking its exit status."""
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)

    def reap(self) -> tuple[int, float]:
        """Of a program that has ended: its exit code, and the CPU seconds that it and its children used."""
        _, status, usage = os.wait4(self.pid, 0)
        self._process.returncode = os.waitstatus_to_exitcode(status)
        return self._process.returncode, usage.ru_utime + usage.ru_stime

    def kill(self) -> None:
        """Kills the program and its group, if it was not reaped yet."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    def end(self, ask: signal.Signals = signal.SIGTERM) -> None:
        """Asks the program to end, then kills what is left of it and of what it started. May be called again."""
        if self._process.returncode is None:
            started = {pid: procfs.started(pid) for pid in procfs.family(self.pid)}
            if not self.ended:
                os.kill(self.pid, ask)
            deadline = time.monotonic() + STOP_TIMEOUT
            while not self.ended and time.monotonic() < deadline:
                time.sleep(POLL)
            self.kill()
            self._process.wait()
            strays = [(pid, when) for pid, when in started.items() if when and pid != self.pid]
            for pid, when in strays:  # those in other sessions: sshd gives each client one
                if procfs.started(pid) == when:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            while any(procfs.is_running(*stray) for stray in strays) and time.monotonic() < deadline + STOP_TIMEOUT:
                time.sleep(POLL)
        if self.stdout:
            self.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()


@contextlib.contextmanager
def orderly() -> Iterator[None]:
    """Inside, the first SIGINT, SIGTERM or SIGHUP leaves the block, cleaning up; further ones cannot disturb that."""

    def leave(number: int, frame: FrameType | None) -> None:
        for other in _SIGNALS:
            signal.signal(other, signal.SIG_IGN)
        sys.exit(128 + number)

    before = {number: signal.signal(number, leave) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def listen(command: Callable[[int], Command], log: Path, address: str = "127.0.0.1") -> tuple[Child, int]:
    """A server on a free port of `address`, and that port. command: makes the command for a port.

    Raises BenchError with its log when it does not come to accept connections, NotInstalledError.
    """
    for attempt in range(1, PORTS + 1):
        port = _free_port(address)
        child = Child(command(port), log)
        try:
            _wait_for_port(child, (address, port), log)
        except BaseException as why:
            child.end()
            if attempt == PORTS or not isinstance(why, BenchError):
                raise
        else:
            return child, port
    raise AssertionError("the last attempt returns or raises")


def _free_port(address: str) -> int:
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def _wait_for_port(child: Child, where: tuple[str, int], log: Path) -> None:
    deadline = time.monotonic() + READY_TIMEOUT
    while time.monotonic() < deadline:
        if child.ended:
            raise BenchError(f"it ended at once: {tail(log)}")
        try:
            socket.create_connection(where, timeout=1).close()
        except OSError:
            time.sleep(POLL)
        else:
            return
    raise BenchError(f"it did not listen within {READY_TIMEOUT:.0f} s: {tail(log)}")


def tail(log: Path, characters: int = 1000) -> str:
    """The end of what a program said."""
    try:
        return log.read_text(errors="replace").strip()[-characters:] or "it said nothing"
    except OSError:
        return "it said nothing"
