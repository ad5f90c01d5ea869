"""What the figures depend on: the machine, its load, the versions of everything that takes part."""

from __future__ import annotations

import functools
import os
import platform
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from headrace.bench.peers import HEADRACE
from headrace.bench.process import NotInstalledError
from headrace.bench.sshd import program

TIMEOUT: Final = 20.0  # seconds for a program to say its version
PROGRAMS: Final = {
    "ssh": ("ssh", "-V"),
    "rsync": ("rsync", "--version"),
    "sshfs": ("sshfs", "--version"),
    "rclone": ("rclone", "--version"),
    "curl": ("curl", "--version"),
    "nginx": ("nginx", "-v"),
    "nfs-ganesha": ("ganesha.nfsd", "-v"),
    "wormhole": ("wormhole", "--version"),
    "iperf3": ("iperf3", "--version"),
}


def machine(programs: Iterable[str] = tuple(PROGRAMS)) -> dict[str, Any]:
    """Of here and now. programs: of PROGRAMS."""
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "headrace": _first_line(*HEADRACE, "--version"),
        "commit": commit(),
        **{name: _first_line(*PROGRAMS[name]) for name in programs},
        "load": load(),
    }


def load() -> float:
    """How many threads wanted to run, on average over the last minute."""
    return round(os.getloadavg()[0], 2)


def commit() -> str:
    """Of the sources that this runs from; empty where they are in no repository, as when it was installed."""
    try:
        said = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return ""
    # An environment may lie in somebody else's repository.
    return said.stdout.strip() if said.returncode == 0 and "site-packages" not in __file__ else ""


def cpu_model() -> str:
    """As the kernel names it."""
    try:
        found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found.group(1) if found else platform.machine()


@functools.cache
def _first_line(name: str, *arguments: str) -> str:
    """What a program says of its version."""
    try:
        said = subprocess.run(
            [program(name), *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=TIMEOUT
        )
    except NotInstalledError:
        return f"no {name}"
    except subprocess.TimeoutExpired:
        return f"{name} of unknown version"
    lines = (said.stdout + said.stderr).strip().splitlines()
    return " ".join(lines[0].split()) if lines else f"{name} of unknown version"
