"""A share mounted by real processes, and what is left of it cleared away whatever happens."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.product.support import CODE, Headrace, Outcome, finish

from headrace.errors import HeadraceError
from headrace.mount import device, table


def missing() -> str:
    """Why nothing can be mounted here; empty where it can."""
    try:
        device.check_here()
    except HeadraceError as why:
        return str(why)
    return ""


needs_fuse = pytest.mark.skipif(bool(missing()), reason=missing() or "FUSE is here")


def start(*arguments: str | Path, home: Path, **more: Any) -> Headrace:
    """A headrace command with the code in its environment."""
    return Headrace(*map(str, arguments), home=home, env={"HEADRACE_CODE": CODE, **more.pop("env", {})}, **more)


def run(*arguments: str | Path, home: Path, seconds: float = 20, **more: Any) -> Outcome:
    with start(*arguments, home=home, **more) as process:
        return finish(process, seconds)


def pid_of(outcome: Outcome) -> int:
    """The process in the background that a `mount --json` left."""
    (ready,) = outcome.of("ready")
    return int(ready["pid"])


def cleared(point: Path) -> None:
    """Nothing is mounted there any more, whatever state it was in."""
    while table.at(str(point)):
        subprocess.run([device.HELPER, "-u", "-z", "--", str(point)], check=True, timeout=10, cwd="/")


@contextlib.contextmanager
def clearing(point: Path) -> Iterator[Path]:
    """An empty folder, on which nothing is mounted afterwards."""
    point.mkdir(parents=True)
    try:
        yield point
    finally:
        cleared(Path(os.path.realpath(point.parent)) / point.name)


def ended(pid: int) -> bool:
    """Whether the process has ended, if not been waited for: in a container nobody may do that."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
