"""System calls of both ends of one command, counted by strace."""

from __future__ import annotations

import re
import shutil
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Final

from headrace.bench import procfs
from headrace.bench.measure import run
from headrace.bench.process import POLL, BenchError, Child, Command, tail

STRACE: Final = ("strace", "-f", "-c")
WRITTEN_WITHIN: Final = 10.0  # seconds for strace to attach, or to write its table
_LINE: Final = re.compile(r"^\s*[\d.]+\s+[\d.]+\s+\d+\s+(\d+)\s+(?:\d+\s+)?(\w+)$", re.MULTILINE)


def why_not() -> str:
    """Why nothing can be counted here, or nothing."""
    return "" if shutil.which("strace") else "strace is not installed"


def parse(table: str) -> Counter[str]:
    """Calls by name, from what `strace -c` wrote."""
    found: Counter[str] = Counter({name: int(count) for count, name in _LINE.findall(table)})
    del found["total"]
    return found


def count(command: Command, folder: Path, server: int | None) -> int:
    """Runs `command` once, traced, and so the process that serves it with those it starts. Raises BenchError."""
    mine, its = folder / "calls-client.txt", folder / "calls-server.txt"
    for file in (mine, its):
        file.unlink(missing_ok=True)
    traced = Command((*STRACE, "-o", str(mine), *command.argv), command.env)
    if server is None:
        run(traced, log=folder / "calls.log")
        return parse(mine.read_text()).total()
    pids = [word for pid in procfs.family(server) for word in ("-p", str(pid))]
    attached = folder / "attached.log"
    with Child(Command((*STRACE, "-o", str(its), *pids)), attached) as tracer:
        _wait_for_attached(tracer, attached)
        run(traced, log=folder / "calls.log")
        tracer.end(signal.SIGINT)
    return parse(mine.read_text()).total() + parse(its.read_text()).total()


def _wait_for_attached(tracer: Child, log: Path) -> None:
    deadline = time.monotonic() + WRITTEN_WITHIN
    while "attached" not in log.read_text():
        if tracer.ended or time.monotonic() > deadline:
            raise BenchError(f"strace does not attach: {tail(log)}")
        time.sleep(POLL)
