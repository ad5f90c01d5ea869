"""Where the time of both ends goes in a bulk copy: by py-spy or pyinstrument where they are, and by perf."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from headrace.bench.measure import run
from headrace.bench.peers import Headrace
from headrace.bench.process import POLL, BenchError, Child, Command, tail
from headrace.bench.suite import room
from headrace.bench.workspace import GIB, checker, random_file

RATE: Final = 200  # samples a second
READY_WITHIN: Final = 10.0  # seconds for a profiler to attach
PROFILERS: Final = ("py-spy", "pyinstrument", "perf")
LINES: Final = 25  # of perf's report


def profiles(into: Path, where: Path, *, tell: Callable[[str], None], size: int = GIB) -> str:
    """Profiles `headrace get` and `headrace share` with each profiler that is here; files to `into`, an own run each.

    What was found, for people. Raises BenchError where there is none.
    """
    found = [name for name in PROFILERS if _program(name)]
    if not found:
        raise BenchError("no profiler is installed: pip install py-spy, or pyinstrument; or Linux's perf")
    into.mkdir(parents=True, exist_ok=True)
    parts = []
    with room(3 * size, where) as folder:
        source = folder / "source" / "data"
        source.parent.mkdir()
        random_file(source, size)
        peer = Headrace("headrace", folder / "headrace")
        try:
            peer.start(source.parent)
            _copy(peer, source, folder, None, peer.server)  # pairs, and hashes
            for name in found:
                tell(f"a copy of {size / GIB:g} GiB under {name}")
                parts.append(_WAYS[name](peer, source, folder, into))
        finally:
            peer.stop()
    missing = [name for name in PROFILERS if name not in found]
    if missing:
        parts.append(f"not installed here: {', '.join(missing)}")
    return "\n\n".join(parts) + "\n"


def _program(name: str) -> str | None:
    """Beside this Python, or on PATH."""
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else shutil.which(name)


def _copy(peer: Headrace, source: Path, folder: Path, launcher: tuple[str, ...] | None, server: int | None) -> None:
    """One checked copy. launcher: what the client is started by."""
    dest = folder / "copies"
    dest.mkdir()
    try:
        peer.before_run()
        made = peer.command(source.name, dest)
        run(Command((*(launcher or ()), *made.argv), made.env), log=folder / "profile.log", server=server)
        checker(source)(dest / source.name)
    finally:
        shutil.rmtree(dest, ignore_errors=True)


def _by_py_spy(peer: Headrace, source: Path, folder: Path, into: Path) -> str:
    spy = _program("py-spy")
    assert spy and peer.server
    words = ("record", "--rate", str(RATE), "--threads", "--format")
    files = [into / f"{end}.{kind}" for end in ("get", "share") for kind in ("svg", "txt")]
    for kind, suffix in (("flamegraph", "svg"), ("raw", "txt")):
        mine, its = into / f"get.{suffix}", into / f"share.{suffix}"
        server = (spy, *words, kind, "--output", str(its), "--pid", str(peer.server))
        with _attached(server, folder, "Sampling"):
            _copy(peer, source, folder, (spy, *words, kind, "--output", str(mine), "--"), None)
    shares = [f"{end}\n{_hottest(into / f'{end}.txt')}" for end in ("get", "share")]
    return "py-spy: self time of Python's lines, all threads\n" + "\n".join(shares) + _written(files)


def _hottest(folded: Path, most: int = 12) -> str:
    """The lines with most samples of their own, of py-spy's raw form: FRAME;FRAME;… COUNT."""
    own: dict[str, int] = {}
    for line in folded.read_text().splitlines():
        stack, _, count = line.rpartition(" ")
        frame = stack.rpartition(";")[2]
        own[frame] = own.get(frame, 0) + int(count)
    total = sum(own.values()) or 1
    best = sorted(own.items(), key=lambda item: -item[1])[:most]
    return "\n".join(f"  {100 * count / total:5.1f} %  {frame}" for frame, count in best)


def _by_pyinstrument(peer: Headrace, source: Path, folder: Path, into: Path) -> str:
    file = into / "get.html"
    program = _program("pyinstrument")
    assert program
    # It profiles the main thread of the process that it starts: the client.
    made = (program, "--renderer", "html", "--outfile", str(file), "-m", "headrace")
    _copy_as_module(peer, source, folder, made)
    return "pyinstrument: the client's main thread" + _written([file])


def _copy_as_module(peer: Headrace, source: Path, folder: Path, launcher: tuple[str, ...]) -> None:
    dest = folder / "copies"
    dest.mkdir()
    try:
        peer.before_run()
        made = peer.command(source.name, dest)
        after = made.argv.index("headrace") + 1  # PYTHON -m headrace get ...
        run(Command((*launcher, *made.argv[after:]), made.env), log=folder / "profile.log")
        checker(source)(dest / source.name)
    finally:
        shutil.rmtree(dest, ignore_errors=True)


def _by_perf(peer: Headrace, source: Path, folder: Path, into: Path) -> str:
    perf = _program("perf")
    assert perf and peer.server
    data = {end: folder / f"{end}.perf" for end in ("get", "share")}
    record = (perf, "record", "--quiet", "-F", "999", "-o")
    server = (*record, str(data["share"]), "-p", str(peer.server))
    with _attached(server, folder, ""):
        _copy(peer, source, folder, (*record, str(data["get"]), "--"), None)
    parts = ["perf: share of each process's CPU time"]
    for end, file in data.items():
        for key in ("dso", "symbol"):
            said = subprocess.run(
                [perf, "report", "--stdio", "-i", str(file), "--sort", key, "--percent-limit", "0.5"],
                capture_output=True,
                text=True,
                env=os.environ | {"PAGER": "cat"},
            )
            lines = [line for line in said.stdout.splitlines() if line.strip() and not line.startswith("#")]
            (into / f"{end}-{key}.txt").write_text("\n".join(lines) + "\n")
            parts += [f"{end}, by {key}", *lines[:LINES]]
    return "\n".join(parts) + _written([into / f"{end}-{key}.txt" for end in data for key in ("dso", "symbol")])


@contextlib.contextmanager
def _attached(argv: tuple[str, ...], folder: Path, says: str) -> Iterator[None]:
    """A profiler of the serving end. says: what it prints once it is attached. It writes its file when it ends."""
    log = folder / "profiler.log"
    with Child(Command(argv), log) as child:
        deadline = time.monotonic() + READY_WITHIN
        while says and says not in log.read_text(errors="replace"):
            if child.ended or time.monotonic() > deadline:
                raise BenchError(f"{argv[0]} does not attach: {tail(log)}")
            time.sleep(POLL)
        if not says:
            time.sleep(0.5)  # perf says nothing; samples of the first moments may lack
        yield
        child.end(signal.SIGINT)


def _written(files: list[Path]) -> str:
    return "\nwrote " + ", ".join(str(file) for file in files)


_WAYS: Final[dict[str, Callable[[Headrace, Path, Path, Path], str]]] = {
    "py-spy": _by_py_spy,
    "pyinstrument": _by_pyinstrument,
    "perf": _by_perf,
}
