"""headrace as a user meets it: real processes, real sockets on loopback, real kills; and trees to share and compare.

Every wait here has a deadline and polls a condition; nothing sleeps and hopes.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import logging
import os
import random
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self
from unittest import mock

from headrace.cli.main import main
from headrace.transport.identity import Identity

KIB: Final = 1024
MIB: Final = 1024 * KIB
CHUNK: Final = 4 * MIB
CODE: Final = "h3ad-race-7e57"
WRONG_CODE: Final = "h3ad-race-7e58"
PATIENCE: Final = 20.0  # seconds; the most that any one wait takes, far more than it should need


def wait_until[T](condition: Callable[[], T], what: str, seconds: float = PATIENCE) -> T:
    """The condition's first true value. AssertionError naming `what` when it has none in time."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.005)
    return value


# ---- processes ---------------------------------------------------------------------------------------------------

# Root may write anywhere. Without these capabilities permissions hold for root as for everybody else (prctl(2)).
_BOUND: Final = """
import ctypes, os, sys
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 24, 1, 2
for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH) if os.geteuid() == 0 else ():
    assert ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) == 0
os.execv(sys.executable, [sys.executable, "-m", "headrace", *sys.argv[1:]])
"""
_AFTERWARDS: Final = """
import runpy, sys
sys.argv[0] = "headrace"
runpy.run_module("headrace", run_name="__main__")
"""


# A host that was killed is not waited for, unless a test is about that; and nothing is announced outside this machine.
NO_RETRY: Final = {"HEADRACE_RETRY_FOR": "0", "HEADRACE_NO_DISCOVERY": "1"}


class Headrace:
    """One `python -m headrace` process. A context manager that kills what is left of it.

    bound: permissions bind it even where the tests run as root. fault: Python that the process runs before anything
    else. events: the JSON lines of its standard output so far. peak_rss: bytes, as far as it was looked at.
    """

    def __init__(
        self,
        *arguments: str | bytes | os.PathLike[str],
        home: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        bound: bool = False,
        fault: str = "",
    ) -> None:
        start = ["-c", _BOUND] if bound else ["-c", fault + _AFTERWARDS] if fault else ["-m", "headrace"]
        base = {key: value for key, value in os.environ.items() if not key.startswith("HEADRACE_")}
        self._process = subprocess.Popen(
            [sys.executable, *start, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**base, **NO_RETRY, "HEADRACE_HOME": str(home), **(env or {})},
            cwd=cwd,
        )
        self.pid = self._process.pid
        self.events: list[dict[str, Any]] = []
        self.peak_rss = 0
        self._out = bytearray()
        self._err = bytearray()
        self._readers = [
            threading.Thread(target=self._read_out, daemon=True),
            threading.Thread(target=self._read_err, daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def _read_out(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            self._out += line
            with contextlib.suppress(ValueError):
                event = json.loads(line)
                if isinstance(event, dict):
                    self.events.append(event)

    def _read_err(self) -> None:
        assert self._process.stderr
        while data := self._process.stderr.read1(65536):  # type: ignore[attr-defined]
            self._err += data

    @property
    def stdout(self) -> bytes:
        return bytes(self._out)

    @property
    def stderr(self) -> str:
        return self._err.decode("utf-8", "backslashreplace")

    def of(self, event: str) -> list[dict[str, Any]]:
        """The events of that name so far."""
        return [found for found in list(self.events) if found.get("event") == event]

    def alive(self) -> bool:
        return self._process.poll() is None

    def wait_for(self, what: str, condition: Callable[[], Any], seconds: float = PATIENCE) -> Any:
        """As wait_until, and fails at once when the process ends first."""

        def look() -> Any:
            value = condition()
            if not value and not self.alive():
                self._drain()
                value = condition()
                assert value, f"ended ({self._process.returncode}) before {what}: {self.stderr}"
            return value

        return wait_until(look, what, seconds)

    def wait_event(self, event: str, **fields: Any) -> dict[str, Any]:
        """The first event of that name with those fields, waiting for it."""

        def find() -> dict[str, Any] | None:
            return next((e for e in self.of(event) if fields.items() <= e.items()), None)

        found: dict[str, Any] = self.wait_for(f"the event {event} {fields or ''}", find)
        return found

    def kill(self, number: int = signal.SIGKILL) -> None:
        if self.alive():
            self._process.send_signal(number)

    def wait(self, seconds: float = PATIENCE) -> int:
        """The exit code (minus the signal's number where one killed it)."""
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            self._process.wait()
            self._drain()
            raise AssertionError(f"still running after {seconds} s: {self.stderr[-2000:]}") from None
        self._drain()
        return code

    def watch_rss(self) -> None:
        """Notes the most memory the process has used so far (VmHWM: not inherited from whoever started it)."""
        with contextlib.suppress(OSError):
            if found := re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text()):
                self.peak_rss = max(self.peak_rss, int(found[1]) * KIB)

    def _drain(self) -> None:
        for reader in self._readers:
            reader.join(5)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.kill()
        self._process.wait()
        self._drain()
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe:
                pipe.close()


class Host(Headrace):
    """`headrace share` on a free port of 127.0.0.1, ready when the constructor returns."""

    def __init__(
        self,
        *paths: Path,
        home: Path,
        code: str = CODE,
        port: int = 0,
        options: Sequence[str] = (),
        bound: bool = False,
        fault: str = "",
    ) -> None:
        give_identity(home)
        where = ("--json", "--port", str(port), "--bind", "127.0.0.1")
        env = {"HEADRACE_CODE": code}
        super().__init__("share", *paths, *where, *options, home=home, env=env, bound=bound, fault=fault)
        try:
            ready = self.wait_event("ready")
        except BaseException:
            self.__exit__()
            raise
        self.code = code
        self.port: int = ready["port"]
        self.ready = ready

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


@dataclass(frozen=True)
class Outcome:
    """A command that ended. seconds: from its start."""

    exit_code: int
    events: list[dict[str, Any]]
    stdout: bytes
    stderr: str
    seconds: float
    peak_rss: int

    def of(self, event: str) -> list[dict[str, Any]]:
        return [found for found in self.events if found.get("event") == event]

    @property
    def done(self) -> dict[str, Any]:
        """The `done` event, which has to be the last one."""
        assert self.events and self.events[-1]["event"] == "done", f"no done event: {self.events[-3:]} {self.stderr}"
        return self.events[-1]

    def check_clean(self) -> Outcome:
        """No traceback, and nothing on standard error that could move a terminal's cursor."""
        assert "Traceback" not in self.stderr, self.stderr
        assert all(c.isprintable() or c == "\n" for c in self.stderr), repr(self.stderr)
        return self

    def check_failed(self, *exit_codes: int) -> Outcome:
        """One of those exit codes, one clear line on standard error that also says what to do, no traceback. Files that
        failed have a line each besides."""
        self.check_clean()
        assert self.exit_code in exit_codes, (self.exit_code, self.stderr, self.events[-3:])
        lines = self.stderr.strip().splitlines()
        files = sum(event["path"] is not None for event in self.of("error"))
        assert 1 <= len(lines) <= 1 + files, self.stderr
        for line in lines:
            assert re.match(r"headrace: .+\. .+", line), f"not a sentence and a hint: {line}"
        return self

    def check_ok(self) -> Outcome:
        self.check_clean()
        assert self.exit_code == 0, (self.exit_code, self.stderr, self.of("error"))
        return self


def start_get(
    address: str,
    dest: Path | str | None,
    *options: str,
    home: Path,
    path: str | bytes = "",
    code: str | None = CODE,
    **more: Any,
) -> Headrace:
    """`headrace get --json` of `path` at HOST:PORT, with the code in the environment."""
    target = os.fsencode(address) + (b"/" + os.fsencode(path) if path else b"")
    env = {**more.pop("env", {}), **({"HEADRACE_CODE": code} if code else {})}
    where = () if dest is None else (dest,)
    return Headrace("get", "--json", *options, "--", target, *where, home=home, env=env, **more)


def finish(process: Headrace, seconds: float = 50, *, measure: bool = False) -> Outcome:
    """Waits for the end of the process and says how it was."""
    started = time.monotonic()
    if measure:

        def look() -> bool:
            process.watch_rss()
            return not process.alive()

        wait_until(look, "the end of the process", seconds)
    code = process.wait(seconds)
    return Outcome(code, process.events, process.stdout, process.stderr, time.monotonic() - started, process.peak_rss)


def run_get(address: str, dest: Path | str | None, *options: str, home: Path, **more: Any) -> Outcome:
    """Runs `start_get` to its end."""
    seconds, measure = more.pop("seconds", 50), more.pop("measure", False)
    with start_get(address, dest, *options, home=home, **more) as process:
        return finish(process, seconds, measure=measure)


def call_get(
    address: str,
    dest: Path | str | None,
    *options: str,
    home: Path,
    path: str | bytes = "",
    code: str | None = CODE,
    cwd: Path | None = None,
) -> Outcome:
    """As `run_get`, but in this process, which saves starting one: for cases where nothing else is at stake than what
    the command answers and leaves on the disk."""
    target = os.fsencode(address) + (b"/" + os.fsencode(path) if path else b"")
    where = [] if dest is None else [os.fspath(dest)]
    env = {"HEADRACE_CODE": code} if code else {}
    with contextlib.chdir(cwd or "."):
        return call("get", "--json", *options, "--", os.fsdecode(target), *where, home=home, env=env)


def call(*arguments: str, home: Path, env: Mapping[str, str] | None = None) -> Outcome:
    """Runs any headrace command in this process. Call it from the main thread."""
    out = io.TextIOWrapper(io.BytesIO(), "utf-8", "surrogateescape")
    err = io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace")
    logger = logging.getLogger("headrace")
    before = logger.handlers[:], logger.level, logger.propagate
    ours = {key: value for key, value in os.environ.items() if not key.startswith("HEADRACE_")}
    started = time.monotonic()
    try:
        with (
            mock.patch.dict(os.environ, {**ours, **NO_RETRY, "HEADRACE_HOME": str(home), **(env or {})}, clear=True),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            exit_code = main(arguments)
    finally:
        logger.handlers[:], logger.level, logger.propagate = before
    seconds = time.monotonic() - started
    out.flush()
    err.flush()
    stdout, stderr = out.buffer.getvalue(), err.buffer.getvalue().decode()
    events = [json.loads(line) for line in stdout.splitlines()] if "--json" in arguments else []
    return Outcome(exit_code, events, stdout, stderr, seconds, 0)


def run(*arguments: str, home: Path, env: Mapping[str, str] | None = None, seconds: float = 30) -> Outcome:
    """Runs any headrace command to its end."""
    with Headrace(*arguments, home=home, env=env) as process:
        return finish(process, seconds)


@functools.cache
def _identity_pem() -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return Identity.load_or_create(Path(folder)).file.read_bytes()


def give_identity(home: Path) -> None:
    """Puts this test run's identity into a host's home, unless it has one: making one takes a while."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = home / "identity.pem"
    if not file.exists():
        file.touch(0o600)
        file.write_bytes(_identity_pem())


# ---- a gate on the way -------------------------------------------------------------------------------------------


class Gate:
    """A TCP relay to a port of this machine that lets so many bytes from the host through and then holds the rest.

    This is what makes "in the middle of a transfer" a place that a test can wait for. allow: bytes over all
    connections; None: all. damage: what becomes of the host's bytes, as many as arrive at a time, 16 KiB at most.
    """

    def __init__(
        self, port: int, allow: int | None = None, *, damage: Callable[[bytes], bytes] = lambda data: data
    ) -> None:
        self._upstream = port
        self._damage = damage
        self._allow = allow
        self.passed = 0
        self._changed = threading.Condition()
        self._closing = False
        self._socks: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def reached(self) -> bool:
        """Whether everything that was allowed has passed."""
        with self._changed:
            return self._allow is not None and self.passed >= self._allow

    def wait_reached(self, process: Headrace) -> None:
        """Until so many bytes are on their way to `process`."""
        process.wait_for("so many bytes on their way", lambda: self.reached)

    def open(self) -> None:
        """Lets everything through from here on."""
        self.allow(None)

    def allow(self, allow: int | None) -> None:
        with self._changed:
            self._allow = allow
            self._changed.notify_all()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self._upstream), timeout=5)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            for sock in (near, far):  # or small messages wait 40 ms for each other
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._changed:
                self._socks |= {near, far}
            for source, sink, gated in ((near, far, False), (far, near, True)):
                thread = threading.Thread(target=self._relay, args=(source, sink, gated), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _relay(self, source: socket.socket, sink: socket.socket, gated: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(16 * KIB):
                data = self._damage(data) if gated else data
                position = 0
                while position < len(data):
                    room = self._room(len(data) - position) if gated else len(data)
                    sink.sendall(data[position : position + room])
                    position += room
        # The other direction ends with this one: a cut is what these tests are about.
        for sock in (source, sink):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _room(self, wanted: int) -> int:
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self._allow is None or self.passed < self._allow)
            if self._closing:
                raise OSError("closing")
            room = wanted if self._allow is None else min(wanted, self._allow - self.passed)
            self.passed += room
            return room

    def cut(self) -> None:
        """Breaks every connection and takes no new ones, as if the host had died."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.drop()

    def drop(self) -> None:
        """Breaks every connection, and takes new ones."""
        with self._changed:
            socks = set(self._socks)
        for sock in socks:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self.cut()
        for thread in self._threads:
            thread.join(5)
        for sock in self._socks:
            sock.close()


# ---- trees -------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=16)
def noise(size: int, seed: int | str = 0) -> bytes:
    """Bytes that do not compress and differ with the seed."""
    return random.Random(f"{seed}/{size}").randbytes(size)


def make_file(path: Path | bytes, content: bytes, *, mode: int = 0o644, mtime_ns: int | None = None) -> None:
    """A file, with the folders above it."""
    raw = os.fsencode(path)
    os.makedirs(os.path.dirname(raw), exist_ok=True)
    with open(raw, "wb") as file:
        file.write(content)
    os.chmod(raw, mode)
    if mtime_ns is not None:
        os.utime(raw, ns=(mtime_ns, mtime_ns))


ODD_NAMES: Final = (
    b"caf\xe9 in latin-1",
    b"\xff\xfe\x80",
    b"two\nlines",
    b"tab\tand\rreturn",
    b" leading and trailing space ",
    b"-rf",
    b"--help",
    b"*?[a]",
    b"back\\slash",
    b"\x1b[31mred\x1b[0m",
    b"quote'\"`$(id)",
    b"a:b@c#d%20e",
    b"...",
    b"..hidden",
    b"x" * 255,
    "überall".encode(),
    "u\u0308berall".encode(),  # the same for the eye, other bytes
    "\u202etxt.exe".encode(),
)
EDGE_SIZES: Final = (
    *(0, 1, 4095, 4096, 4097),
    *(128 * KIB - 1, 128 * KIB, 128 * KIB + 1),
    *(CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 1),
)
_T0: Final = 1_600_000_000_123_456_789  # ns since 1970: a time whose nanoseconds matter


def make_tree(root: Path, small_files: int = 1500) -> Path:
    """The tree of the main job: everything that a folder can hold and that should arrive as it was."""
    base = os.fsencode(root)
    os.makedirs(base)
    clock = iter(range(_T0, _T0 + 10**18, 1_000_000_007))
    for number in range(small_files):
        folder = b"many/%02d/%d" % (number % 40, number % 7)
        content = noise(number % 97 * 41, number)
        make_file(os.path.join(base, folder, b"%d.txt" % number), content, mtime_ns=next(clock))
    for name in ODD_NAMES:
        make_file(os.path.join(base, b"odd", name, name), name, mtime_ns=next(clock))
    for size in EDGE_SIZES:
        make_file(os.path.join(base, b"sizes/%d.bin" % size), noise(size), mtime_ns=next(clock))
    for mode in (0o400, 0o444, 0o600, 0o640, 0o664, 0o755, 0o777):
        make_file(os.path.join(base, b"modes/%o" % mode), b"%o" % mode, mode=mode, mtime_ns=next(clock))
        os.makedirs(os.path.join(base, b"modes/empty/%o" % (mode | 0o500)), exist_ok=True)
    make_file(os.path.join(base, b"old"), b"before 1970", mtime_ns=-1_000_000_001)
    make_file(os.path.join(base, b"future"), b"after 2038", mtime_ns=5_000_000_000_000_000_001)
    make_file(os.path.join(base, *[b"deep"] * 60, b"file"), b"far down", mtime_ns=next(clock))
    make_sparse(root / "sparse.img", 48 * MIB, {5 * MIB + 1: b"an island", 30 * MIB: noise(70 * KIB)})
    make_file(root / "locked" / "inside", b"in a folder that cannot be written")
    links: dict[str, str | bytes] = {
        "links/inside": "../sizes/4096.bin",
        "links/same folder": "inside",
        "links/dangling": "../nothing/here",
        "links/folder": "../many",
        "links/odd": b"caf\xe9",
    }
    (root / "links").mkdir()
    for link, target in links.items():
        os.symlink(os.fsencode(target), os.fsencode(root / link))
        os.utime(root / link, ns=(next(clock),) * 2, follow_symlinks=False)
    # Bottom up, and last: making an entry changes the time of its folder.
    for folder, _, _ in os.walk(base, topdown=False):
        os.utime(folder, ns=(next(clock),) * 2)
    for mode in (0o400, 0o444, 0o600, 0o640, 0o664, 0o755, 0o777):
        os.chmod(os.path.join(base, b"modes/empty/%o" % (mode | 0o500)), mode | 0o500)
    os.chmod(root / "locked", 0o555)
    os.chmod(root, 0o750)
    return root


def make_sparse(path: Path, size: int, islands: Mapping[int, bytes]) -> None:
    """A file that is all hole but for some islands of data."""
    with open(path, "wb") as file:
        file.truncate(size)
        for offset, data in islands.items():
            file.seek(offset)
            file.write(data)


@dataclass(frozen=True, slots=True)
class Fact:
    """What must be the same in a copy. content: a hash, or a link's target."""

    kind: str
    mode: int = 0
    mtime_ns: int = 0
    size: int = 0
    content: bytes = field(default=b"")


def facts_of(path: bytes | Path) -> Fact:
    raw = os.fsencode(path)
    st = os.lstat(raw)
    if stat.S_ISLNK(st.st_mode):
        return Fact("link", 0, st.st_mtime_ns, 0, os.readlink(raw))
    if stat.S_ISDIR(st.st_mode):
        return Fact("dir", stat.S_IMODE(st.st_mode), st.st_mtime_ns)
    digest = b""
    if stat.S_ISREG(st.st_mode):
        with open(raw, "rb") as file:
            digest = hashlib.file_digest(file, "blake2b").digest()[:16]
    return Fact("file", stat.S_IMODE(st.st_mode), st.st_mtime_ns, st.st_size, digest)


def snapshot(root: Path) -> dict[bytes, Fact]:
    """Everything in a folder, itself included, by relative path."""
    base = os.fsencode(root)
    found = {b"": facts_of(base)}
    for folder, folders, files in os.walk(base):
        for name in folders + files:
            path = os.path.join(folder, name)
            found[os.path.relpath(path, base)] = facts_of(path)
    return found


def contents(root: Path) -> dict[bytes, bytes]:
    """The hash of each file's content and the target of each link, by relative path; times and modes left out."""
    return {path: fact.content for path, fact in snapshot(root).items() if fact.kind != "dir"}


def assert_same_tree(copy: Path, original: Path) -> None:
    """Kinds, names, contents, modes, times to the nanosecond, link targets; and holes are still holes."""
    ours, theirs = snapshot(copy), snapshot(original)
    assert ours.keys() == theirs.keys(), (
        f"missing {sorted(theirs.keys() - ours.keys())[:5]}, too many {sorted(ours.keys() - theirs.keys())[:5]}"
    )
    different = {path: (ours[path], theirs[path]) for path in ours if ours[path] != theirs[path]}
    assert not different, f"{len(different)} differ, such as {dict(list(different.items())[:3])}"
    for path, fact in theirs.items():
        if fact.kind == "file" and fact.size >= MIB:
            there = os.path.join(os.fsencode(original), path)
            assert allocated(os.path.join(os.fsencode(copy), path)) <= allocated(there) + 64 * KIB, path


def allocated(path: bytes | Path) -> int:
    """Bytes that the file occupies on disk."""
    return os.stat(path).st_blocks * 512


def leftovers(root: Path) -> list[bytes]:
    """Files in flight below `root`."""
    return sorted(path for path in snapshot(root) if path.endswith((b".headrace-part", b".headrace-journal")))


def whole_files(copy: Path, original: Path) -> int:
    """How many files of an unfinished copy stand under their final names; each of them has to be whole."""
    theirs = snapshot(original)
    count = 0
    for path, fact in snapshot(copy).items():
        if fact.kind == "file" and not path.endswith((b".headrace-part", b".headrace-journal")):
            name = os.path.basename(path)
            assert path in theirs or name.startswith(b"."), f"{path!r} is not in the original"
            if path in theirs:
                assert fact.content == theirs[path].content, f"{path!r} is half written"
                count += 1
    return count


@contextlib.contextmanager
def guarded(folder: Path) -> Iterator[Path]:
    """A folder beside the destination, with things in it that must stay exactly as they are."""
    guard = folder / "guard"
    guard.mkdir()
    make_file(guard / "secret", b"not to be touched", mode=0o600)
    make_file(guard / "inner" / "file", b"nor this")
    before = snapshot(guard), sorted(os.listdir(folder))
    yield guard
    assert snapshot(guard) == before[0]
    new = set(os.listdir(folder)) - set(before[1])
    assert new <= {"dest", "home", ".dest.headrace-part", ".dest.headrace-journal"}, f"something new beside it: {new}"


def free_port() -> int:
    """A port of 127.0.0.1 on which nobody listens now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
