"""What Linux says about a process and those it started. A process that is gone has no children and costs nothing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

TICKS: Final = os.sysconf("SC_CLK_TCK")  # a second
_PARENT, _UTIME, _CSTIME, _STARTED = 1, 11, 14, 19  # in the fields after the name, see proc_pid_stat(5)


class Processes:
    """Who started whom. Looking again is cheap: only processes that are new since the last look are read. One owner
    thread."""

    def __init__(self) -> None:
        self._parents: dict[int, int] = {}

    def look(self) -> None:
        """Not every kernel lists a process's children, so this goes through all that there are."""
        present = {int(name) for name in os.listdir("/proc") if name.isdigit()}
        known = self._parents
        self._parents = {pid: known[pid] if pid in known else parent(pid) for pid in present}

    def family(self, pid: int) -> list[int]:
        """`pid` and all its descendants at the last look."""
        found = [pid]
        for member in found:
            found += [child for child, parent in self._parents.items() if parent == member]
        return found


def family(pid: int) -> list[int]:
    """`pid` and all its descendants now."""
    processes = Processes()
    processes.look()
    return processes.family(pid)


def parent(pid: int) -> int:
    """0: it is gone."""
    fields = _stat(pid)
    return int(fields[_PARENT]) if fields else 0


def started(pid: int) -> int:
    """When the process started, in ticks since boot: with the pid it names one process for ever. 0: it is gone."""
    fields = _stat(pid)
    return int(fields[_STARTED]) if fields else 0


def is_running(pid: int, when: int) -> bool:
    """Whether the process that `started` then has not ended. One that only waits for its parent to notice has."""
    fields = _stat(pid)
    return bool(fields) and fields[0] not in "ZX" and int(fields[_STARTED]) == when


def cpu_seconds(pid: int) -> float:
    """User and system time of the whole family so far, those included that ended and were waited for."""
    ticks = 0
    for member in family(pid):
        ticks += sum(map(int, _stat(member)[_UTIME : _CSTIME + 1]))
    return ticks / TICKS


def peak_rss(pid: int) -> int:
    """The most memory that the one process held since its start or `forget_peak`, in bytes."""
    for line in _read(Path(f"/proc/{pid}/status")).splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def forget_peak(pid: int) -> None:
    """`peak_rss` counts from now on, for the whole family."""
    for member in family(pid):
        try:
            Path(f"/proc/{member}/clear_refs").write_text("5")
        except OSError:  # gone, or another user's: then the peak since its start is what there is
            continue


def _stat(pid: int) -> list[str]:
    return _read(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
