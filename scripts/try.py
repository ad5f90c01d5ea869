#!/usr/bin/env python3
"""One real run: share a tree and a large file, get both through `headrace`, compare them, say how fast it was.

Everything happens in one new folder, which is removed at the end, with a HEADRACE_HOME of its own for each side.
The large file is in memory where there is room, so that the disk does not set the pace.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

MIB = 1 << 20
GIB = 1 << 30

HEADRACE = Path(sys.executable).with_name("headrace")
SHARED_MEMORY = Path("/dev/shm")
READY_TIMEOUT = 30.0  # seconds for `share` to say that it is ready
GET_TIMEOUT = 600.0  # seconds for one `get`
STOP_TIMEOUT = 10.0  # seconds for `share` to end after Ctrl-C


class TryError(Exception):
    """Something did not work; the message says what."""


def main() -> int:
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # each line at once, into a pipe too
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _frame: sys.exit(128 + received))
    if not HEADRACE.exists():
        print(f"try: {HEADRACE} is missing. Run scripts/setup.", file=sys.stderr)
        return 1
    parent, size = choose_place()
    try:
        with tempfile.TemporaryDirectory(prefix="headrace-try-", dir=parent, ignore_cleanup_errors=True) as folder:
            run(Path(folder), size)
    except TryError as error:
        print(f"try: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def choose_place() -> tuple[Path, int]:
    """Where to work, and how large the large file can be. It is there twice: shared and received."""
    if SHARED_MEMORY.is_dir() and os.access(SHARED_MEMORY, os.W_OK) and shutil.disk_usage(SHARED_MEMORY).free > 3 * GIB:
        return SHARED_MEMORY, GIB
    parent = Path(tempfile.gettempdir())
    size = min(256 * MIB, shutil.disk_usage(parent).free // 8)
    print(
        f"{SHARED_MEMORY} has no 3 GiB free: using {parent} and a file of {size // MIB} MiB; the disk may set the pace"
    )
    return parent, size


def run(folder: Path, size: int) -> None:
    tree = folder / "tree"
    large = folder / "large.bin"
    print(f"making a sample tree and {size // MIB} MiB of random bytes in {folder}")
    shutil.copytree(sysconfig.get_path("purelib"), tree, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    write_random(large, size)

    with Host(folder / "host", [tree, large]) as host:
        print(f"sharing on {host.address}\n")
        into = folder / "received"
        get(host, "tree", into / "tree", folder)
        get(host, "large.bin", into / "large.bin", folder)

    compare("diff", "-r", tree, into / "tree")
    compare("cmp", large, into / "large.bin")
    print("\nboth copies are identical to what was shared (diff -r, cmp)")


def write_random(path: Path, size: int) -> None:
    with path.open("wb") as file:
        for start in range(0, size, 8 * MIB):
            file.write(os.urandom(min(8 * MIB, size - start)))


class Host:
    """`headrace share` as a process. Entering waits until it is ready; leaving stops it."""

    def __init__(self, folder: Path, paths: list[Path]) -> None:
        folder.mkdir()
        self._events = folder / "events.ndjson"
        self._log = folder / "log.txt"
        command: list[str | Path] = [HEADRACE, "share", *paths, "--port", "0", "--bind", "127.0.0.1", "--json"]
        with self._events.open("wb") as events, self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=events, stderr=log, env=environment(folder / "home")
            )
        self.code = ""
        self.address = ""

    def __enter__(self) -> Host:
        try:
            ready = self._wait_until_ready()
        except BaseException:
            self._stop()
            raise
        self.code = str(ready["code"])
        self.address = f"127.0.0.1:{ready['port']}"
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop()

    def _wait_until_ready(self) -> dict[str, Any]:
        deadline = time.monotonic() + READY_TIMEOUT
        while time.monotonic() < deadline:
            ended = self._process.poll() is not None
            for event in read_events(self._events.read_text()):
                if event.get("event") == "ready":
                    return event
            if ended:
                raise TryError(f"headrace share ended with {self._process.returncode}:\n{self.log()}")
            time.sleep(0.05)
        raise TryError(f"headrace share was not ready after {READY_TIMEOUT:.0f} s:\n{self.log()}")

    def _stop(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def log(self) -> str:
        return self._log.read_text(errors="replace").strip()


def get(host: Host, name: str, destination: Path, folder: Path) -> None:
    """Gets one path of the share and prints the figures."""
    destination.parent.mkdir(exist_ok=True)
    command: list[str | Path] = [HEADRACE, "get", f"{host.address}/{name}", destination, "--json"]
    started = time.monotonic()
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(folder / "client-home") | {"HEADRACE_CODE": host.code},
    )
    try:
        output, log = process.communicate(timeout=GET_TIMEOUT)
    except BaseException as error:
        process.kill()
        process.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            raise TryError(f"headrace get {name} was not done after {GET_TIMEOUT:.0f} s") from None
        raise
    wall = time.monotonic() - started

    done = [event for event in read_events(output) if event.get("event") == "done"]
    if process.returncode != 0 or not done:
        raise TryError(
            f"headrace get {name} ended with {process.returncode}:\n{output[-2000:]}{log}\nhost: {host.log()}"
        )
    print(describe(name, done[-1], wall))


def describe(name: str, done: dict[str, Any], wall: float) -> str:
    seconds = max(float(done["seconds"]), 1e-6)
    files, size = done["files"], done["bytes"]
    what = f"{files:,} file{'s' if files != 1 else ''}, {size / 1e6:,.1f} MB"
    speed = f"{size / seconds / 1e6:,.0f} MB/s"
    if files > 1:
        speed += f", {files / seconds:,.0f} files/s"
    how = ", ".join(
        str(done[key]) if key == "transport" else f"{key} {done[key]}"
        for key in ("transport", "protocol", "streams", "io")
        if done.get(key) is not None
    )
    indent = " " * 11
    return (
        f"{name + ':':<11}{what} in {seconds:.2f} s: {speed}\n{indent}{wall:.2f} s with start-up and connecting; {how}"
    )


def compare(*command: str | Path) -> None:
    if subprocess.run(command, stdin=subprocess.DEVNULL).returncode != 0:
        raise TryError(f"the copy differs: {' '.join(map(str, command))}")


def read_events(text: str) -> list[dict[str, Any]]:
    """The events in NDJSON text. A last line that is still being written is left out."""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n") and line.strip()]


def environment(home: Path) -> dict[str, str]:
    """The caller's environment without its headrace settings, which must not change what is tried."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
    return clean | {"HEADRACE_HOME": str(home)}


if __name__ == "__main__":
    sys.exit(main())
