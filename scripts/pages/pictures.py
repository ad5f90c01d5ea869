"""Pictures of the terminal for the site, as SVG: `python -m scripts.pages.pictures FOLDER`.

headrace runs for them on a pseudo-terminal, with a share, a copy and somebody who watches. What it draws is followed as
a terminal would, and written as text. Machines and codes get the names that the pages use.
"""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator
from fcntl import ioctl
from html import escape
from pathlib import Path
from typing import Final

COLUMNS: Final = 118
ROWS: Final = 12
SIZE: Final = 96_000_000  # bytes of the file that is copied
RATE: Final = "16M"  # so that there is something to see
CODE: Final = "7k2m-xq4c-9dht"
ADDRESS: Final = "192.168.1.20"
EVERY: Final = 0.6  # seconds between two moments of an animation

_CELL: Final = (8.43, 19)  # of one character, in SVG's units
_FONT: Final = "14px ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace"
_SEQUENCE: Final = re.compile(r"\x1b\[(\??[\d;]*)([A-Za-z])|\r|\n|[^\x1b\r\n]+")


class Screen:
    """As much of a terminal as headrace uses. ValueError for what it does not know, so that no picture is wrong."""

    def __init__(self) -> None:
        self.lines = [""]
        self._row = self._column = 0

    def feed(self, text: str) -> None:
        at = 0
        while at < len(text):
            found = _SEQUENCE.match(text, at)
            if found is None:
                raise ValueError(f"a terminal sequence that is not known: {text[at : at + 10]!r}")
            at = found.end()
            if found[2]:
                self._control(found[1], found[2])
            elif found[0] == "\r":
                self._column = 0
            elif found[0] == "\n":
                self._row += 1
            else:
                self._put(found[0])

    def _put(self, text: str) -> None:
        self.lines += [""] * (self._row + 1 - len(self.lines))
        line = self.lines[self._row].ljust(self._column)
        self.lines[self._row] = line[: self._column] + text + line[self._column + len(text) :]
        self._column += len(text)

    def _control(self, argument: str, command: str) -> None:
        if command == "K" and not argument:
            if self._row < len(self.lines):
                self.lines[self._row] = self.lines[self._row][: self._column]
        elif command == "H" and not argument:
            self._row = self._column = 0
        elif command == "J" and argument in ("", "2"):
            first = self._row if not argument else 0
            self.lines[first:] = [
                line[: self._column] if not argument else "" for line in self.lines[first : first + 1]
            ]
        elif command not in ("h", "l"):  # those hide and show the cursor
            raise ValueError(f"a terminal sequence that is not known: {argument}{command}")


def main() -> int:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="headrace-pictures-", dir=place) as work:
        get, status = moments(Path(work))
    (folder / "get.svg").write_text(drawn("A copy on its way, in a terminal", get), "utf-8")
    (folder / "status.svg").write_text(drawn("headrace status --watch", [status]), "utf-8")
    return 0


def moments(work: Path) -> tuple[list[list[str]], list[str]]:
    """What `get` shows from its start to its end, and what `status --watch` shows in the middle of it."""
    source = work / "footage"
    (source / "day1").mkdir(parents=True)
    with (source / "day1" / "a.mov").open("wb") as file:
        for _ in range(0, SIZE, 1_000_000):
            file.write(os.urandom(1_000_000))
    (source / "notes.txt").write_text("Bring the long lens.\n")
    shown: list[list[str]] = []
    status: list[str] = []
    with sharing(source, work) as address:
        command = f"headrace get {CODE}@{address} copy"
        copying = ("get", f"{CODE}@{address}", "copy", "--transport", "tcp")
        with terminal(work, *copying) as get, terminal(work, "status", "--watch") as watch:
            while get.running():
                screen = watch.follow(EVERY)
                if not status and len(shown) >= 4 and any(re.match(r" +[2-9]\d %", line) for line in screen):
                    status = screen
                shown.append(get.follow(0))
            shown.append(get.follow(0))
    if not status:
        raise RuntimeError("the copy was over before anybody saw it")
    told = [[f"$ {command}", *lines] for lines in deduplicated(shown)]
    return [named(lines, address) for lines in told], named(["$ headrace status --watch", *status], address)


def deduplicated(shown: list[list[str]]) -> list[list[str]]:
    return [lines for before, lines in zip([None, *shown], shown, strict=False) if lines != before]


def named(lines: list[str], address: str) -> list[str]:
    """With the names that the pages use, and what is shown of processes as if they ran for a while."""
    port = address.rpartition(":")[2]
    replaced = [line.replace(address, f"{ADDRESS}:7420").replace(f"port {port}", "port 7420") for line in lines]
    return [line.replace("127.0.0.1", "192.168.1.34") for line in replaced]


@contextlib.contextmanager
def sharing(source: Path, work: Path) -> Iterator[str]:
    """HOST:PORT of a share of `source`."""
    command = [sys.executable, "-m", "headrace", "share", str(source), "--json", "--limit-rate", RATE]
    process = subprocess.Popen(
        [*command, "--bind", "127.0.0.1", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment(work) | {"HEADRACE_CODE": CODE},
    )
    try:
        assert process.stdout
        yield f"127.0.0.1:{json.loads(process.stdout.readline())['port']}"
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(10)


def environment(work: Path) -> dict[str, str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("HEADRACE_")}
    more = {"HEADRACE_HOME": str(work / "home"), "HEADRACE_NO_DISCOVERY": "1", "TERM": "xterm-256color"}
    return clean | more


class Shown:
    """A command on a pseudo-terminal."""

    def __init__(self, process: subprocess.Popen[bytes], master: int) -> None:
        self._process = process
        self._master = master
        self._screen = Screen()

    def running(self) -> bool:
        return self._process.poll() is None

    def follow(self, seconds: float) -> list[str]:
        """What stands there after so long."""
        end = time.monotonic() + seconds
        while (left := max(0.0, end - time.monotonic())) or select.select([self._master], [], [], 0)[0]:
            if select.select([self._master], [], [], left)[0]:
                try:
                    self._screen.feed(os.read(self._master, 65536).decode())
                except OSError:  # it ended: Linux says so by EIO
                    break
        return [line.rstrip() for line in self._screen.lines if line.strip()]


@contextlib.contextmanager
def terminal(work: Path, *arguments: str) -> Iterator[Shown]:
    master, slave = pty.openpty()
    ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "headrace", *arguments],
        cwd=work,
        stdin=subprocess.DEVNULL,
        stdout=slave,
        stderr=slave,
        env=environment(work),
    )
    os.close(slave)
    try:
        yield Shown(process, master)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait(10)
        os.close(master)


def drawn(title: str, screens: list[list[str]]) -> str:
    """One SVG; of several screens each is shown in its turn, the last one longest."""
    width, height = round(COLUMNS * _CELL[0] + 32), max(map(len, screens)) * _CELL[1] + 60
    turns = len(screens) + 3
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
        f"<title>{escape(title)}</title>",
        f"<style>text{{font:{_FONT};fill:#d8dee9;white-space:pre}}.typed{{fill:#8fbcbb}}</style>",
        f'<rect width="{width}" height="{height}" rx="8" fill="#242933"/>',
        *(
            f'<circle cx="{20 + 18 * n}" cy="20" r="5" fill="{c}"/>'
            for n, c in enumerate(("#bf616a", "#ebcb8b", "#a3be8c"))
        ),
    ]
    for number, lines in enumerate(screens):
        text = "".join(_line(row, line) for row, line in enumerate(lines))
        if len(screens) == 1:
            parts.append(text)
            continue
        times = [number / turns, 1 if number == len(screens) - 1 else (number + 1) / turns]
        values = ["none", "inline", "none"] if number else ["inline", "none"]
        moments = ";".join(f"{moment:.4f}" for moment in ([0, *times] if number else [0, times[1]]) if moment < 1)
        shown = ";".join(values[: moments.count(";") + 1])
        parts.append(
            f'<g display="{"inline" if number == len(screens) - 1 else "none"}"><animate attributeName="display" '
            f'values="{shown}" keyTimes="{moments}" calcMode="discrete" dur="{turns * EVERY:.1f}s" '
            f'repeatCount="indefinite"/>{text}</g>'
        )
    return "\n".join([*parts, "</svg>\n"])


def _line(row: int, line: str) -> str:
    kind = ' class="typed"' if line.startswith("$ ") else ""
    return f'<text x="16" y="{50 + row * _CELL[1]}"{kind} xml:space="preserve">{escape(line)}</text>'


if __name__ == "__main__":
    sys.exit(main())
