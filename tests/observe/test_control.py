"""The control socket: it answers its user, costs nobody anything, and is gone when its program is."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import selectors
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from headrace.errors import LocalDiskError, UnreachableError, UsageError
from headrace.observe import control, running
from headrace.observe.control import MAX_CLIENTS, MAX_REQUEST, Control
from headrace.observe.running import Found, GoneError, ask, find

PATIENCE = 10.0


@pytest.fixture
def home() -> Iterator[Path]:
    """Not below pytest's folder: the path of a Unix socket has about a hundred bytes."""
    with tempfile.TemporaryDirectory(prefix="hr-") as folder:
        yield Path(folder)


class Program:
    """Counts what it is asked."""

    def __init__(self) -> None:
        self.facts: dict[str, Any] = {"kind": "share", "name": "footage"}
        self.rates: dict[str, float | None] = {}

    def status(self) -> dict[str, Any]:
        return self.facts

    def limit(self, rates: Mapping[str, float | None]) -> dict[str, Any]:
        if "limit_peer" in rates:
            raise UsageError("a get has no peers", hint="Use --limit-rate.")
        self.rates |= rates
        return dict(self.rates)


def talk(found: Found | Path, raw: bytes, *, end: bool = True) -> bytes:
    """Sends bytes, and everything that comes back."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(PATIENCE)
        sock.connect(os.fspath(found if isinstance(found, Path) else found.path))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            sock.sendall(raw)
            if end:
                sock.shutdown(socket.SHUT_WR)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := sock.recv(65536):
                answer += piece
        return answer


def only(home: Path) -> Found:
    (found,) = find(home)
    return found


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


# ---- asking --------------------------------------------------------------------------------------------------------


def test_a_program_says_how_it_is(home: Path) -> None:
    with Control("share", Program(), home) as socket_:
        assert only(home) == Found("share", os.getpid(), socket_.path)
        assert ask(only(home), {"ask": "status"}) == {"schema": 1, "kind": "share", "name": "footage"}
    assert find(home) == []


def test_limits_are_set(home: Path) -> None:
    program = Program()
    with Control("get", program, home):
        assert ask(only(home), {"ask": "limit", "limit_rate": 5.5}) == {"schema": 1, "limit_rate": 5.5}
        assert ask(only(home), {"ask": "limit", "limit_rate": None})["limit_rate"] is None
    assert program.rates == {"limit_rate": None}


def test_what_the_program_refuses_is_told(home: Path) -> None:
    with Control("get", Program(), home), pytest.raises(UsageError, match="no peers") as caught:
        ask(only(home), {"ask": "limit", "limit_peer": 5})
    assert caught.value.hint == "Use --limit-rate."


@pytest.mark.parametrize(
    "rate", [0, 0.5, -1, "5M", True, [1], {}, float("nan"), float("inf"), 10**400, -(10**400), 1e300]
)
def test_what_is_no_rate_changes_nothing(home: Path, rate: Any) -> None:
    program = Program()
    with Control("share", program, home), pytest.raises(UsageError, match="bytes a second"):
        ask(only(home), {"ask": "limit", "limit_rate": rate})
    assert program.rates == {}


@pytest.mark.parametrize(
    "raw",
    [
        b"\n",
        b"status\n",
        b"[]\n",
        b'"status"\n',
        b'{"ask":"stop"}\n',
        b'{"ask":["status"]}\n',
        b'{"ask":"limit"}\n',
        b"\xff\x00\n",
        b"[" * (MAX_REQUEST - 1) + b"\n",
        b"x" * (MAX_REQUEST * 4),
    ],
)
def test_nonsense_is_answered_and_harms_nobody(home: Path, raw: bytes) -> None:
    with Control("share", Program(), home):
        answer = talk(only(home), raw)
        # A line that is too long may be cut off by a reset, as it was not read to its end.
        assert json.loads(answer)["error"] == "usage" if answer or len(raw) <= MAX_REQUEST else True
        assert ask(only(home), {"ask": "status"})["name"] == "footage"


@pytest.mark.parametrize("facts", [{"x": {1, 2}}, {1j: 2}, {"x": b"bytes"}])
def test_a_status_that_fails_harms_nobody(home: Path, facts: dict[Any, Any]) -> None:
    program = Program()
    good, program.facts = program.facts, facts
    with Control("share", program, home):
        assert json.loads(talk(only(home), b'{"ask":"status"}\n'))["error"] == "internal"
        program.facts = good
        assert ask(only(home), {"ask": "status"})["name"] == "footage"


def test_an_answer_larger_than_any_buffer_arrives_whole(home: Path) -> None:
    program = Program()
    program.facts = {"peers": ["x" * 1000] * 2000}
    with Control("share", program, home):
        assert len(ask(only(home), {"ask": "status"}, patience=PATIENCE)["peers"]) == 2000


# ---- clients that mean no good ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_client_that_says_nothing_holds_up_nobody_and_is_dropped(home: Path) -> None:
    with Control("share", Program(), home) as socket_, socket.socket(socket.AF_UNIX) as silent:
        silent.settimeout(PATIENCE)
        silent.connect(os.fspath(socket_.path))
        silent.send(b'{"ask":')
        started = time.monotonic()
        assert ask(only(home), {"ask": "status"})["name"] == "footage"
        assert time.monotonic() - started < running.PATIENCE
        assert silent.recv(10) == b""  # hung up on, without more of it


@pytest.mark.slow
def test_a_client_that_reads_nothing_is_dropped(home: Path) -> None:
    program = Program()
    program.facts = {"peers": "x" * 2_000_000}
    with Control("share", program, home) as socket_, socket.socket(socket.AF_UNIX) as deaf:
        deaf.connect(os.fspath(socket_.path))
        deaf.send(b'{"ask":"status"}\n')
        wait_until(lambda: socket_._clients)
        wait_until(lambda: not socket_._clients)
        program.facts = {"name": "footage"}
        assert ask(only(home), {"ask": "status"})["name"] == "footage"


def test_more_clients_than_there_may_be_are_hung_up_on(home: Path) -> None:
    with Control("share", Program(), home) as socket_, contextlib.ExitStack() as stack:
        for _ in range(MAX_CLIENTS):
            one = stack.enter_context(socket.socket(socket.AF_UNIX))
            one.connect(os.fspath(socket_.path))
        wait_until(lambda: len(socket_._clients) == MAX_CLIENTS)
        assert talk(socket_.path, b"", end=False) == b""
        assert len(socket_._clients) <= MAX_CLIENTS
        stack.close()
        wait_until(lambda: not socket_._clients)
        assert ask(only(home), {"ask": "status"})["name"] == "footage"


def test_many_at_once_are_all_answered(home: Path) -> None:
    names: list[str] = []
    with Control("share", Program(), home):
        found = only(home)
        threads = [
            threading.Thread(target=lambda: names.append(ask(found, {"ask": "status"}, patience=PATIENCE)["name"]))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
    assert names == ["footage"] * 8


class Short(socket.socket):
    """A listener of a process that is out of descriptors at first."""

    refused = 0

    def accept(self) -> tuple[socket.socket, Any]:
        if not Short.refused:
            Short.refused += 1
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


def test_a_process_without_descriptors_answers_when_it_has_some_again(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    listen = control._listen

    def short(path: Path) -> socket.socket:
        listener = Short(fileno=listen(path).detach())
        listener.setblocking(False)
        return listener

    caplog.set_level("DEBUG", "headrace.control")
    monkeypatch.setattr(control, "_listen", short)
    monkeypatch.setattr(control, "PAUSE", 0.05)
    monkeypatch.setattr(Short, "refused", 0)
    with Control("share", Program(), home):
        assert ask(only(home), {"ask": "status"}, patience=PATIENCE)["name"] == "footage"
    assert caplog.text.count("cannot accept") == 1


def test_it_is_for_this_user_alone(home: Path) -> None:
    (home / "run").mkdir(mode=0o755)
    with Control("share", Program(), home) as socket_:
        assert mode(home / "run") == 0o700
        assert mode(socket_.path) == 0o600


def test_close_ends_the_thread_and_leaves_nothing(home: Path) -> None:
    socket_ = Control("share", Program(), home)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(os.fspath(socket_.path))
        socket_.close()
        socket_.close()
        with contextlib.suppress(ConnectionResetError):  # it had not been accepted yet
            assert client.recv(10) == b""
    assert not any(thread.name == "headrace-control" for thread in threading.enumerate())
    assert list((home / "run").iterdir()) == []


# ---- where there can be no socket ------------------------------------------------------------------------------------


def test_a_path_that_is_too_long_is_no_error(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "headrace.control")
    assert control.start("share", Program(), home / ("x" * 100)) is None
    assert "no control socket" in caplog.text
    assert find(home / ("x" * 100)) == []


def test_a_system_without_unix_sockets_is_no_error(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "AF_UNIX")
    assert control.start("share", Program(), home) is None
    assert find(home) == []


@pytest.mark.parametrize("make", [lambda path: path.write_text(""), lambda path: path.symlink_to("/tmp")])
def test_a_folder_that_is_none_is_not_used(home: Path, make: Callable[[Path], None]) -> None:
    make(home / "run")
    assert control.start("share", Program(), home) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_somebody_else_is_not_used(home: Path) -> None:
    (home / "run").mkdir()
    os.chown(home / "run", 65534, 65534)
    assert control.start("share", Program(), home) is None


# ---- programs that are gone ------------------------------------------------------------------------------------------


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait(PATIENCE)
    return process.pid


def leave_behind(home: Path, pid: int, kind: str = "share") -> Path:
    """A socket on which nobody listens any more."""
    (home / "run").mkdir(exist_ok=True)
    path = home / "run" / f"{kind}-{pid}.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(os.fspath(path))
    return path


def test_a_socket_of_the_dead_is_removed_by_who_asks(home: Path) -> None:
    path = leave_behind(home, dead_pid())
    with pytest.raises(GoneError, match="has ended"):
        ask(only(home), {"ask": "status"})
    assert not path.exists()


def test_a_socket_of_the_dead_is_removed_by_the_next_program(home: Path) -> None:
    left = [leave_behind(home, dead_pid()), leave_behind(home, dead_pid(), ".get")]
    with Control("share", Program(), home):
        wait_until(lambda: not any(path.exists() for path in left))
        assert ask(only(home), {"ask": "status"})["name"] == "footage"


def test_a_socket_whose_owner_may_live_stays(home: Path) -> None:
    path = leave_behind(home, os.getppid())
    with pytest.raises(GoneError):
        ask(only(home), {"ask": "status"})
    assert path.exists()


def test_what_an_earlier_process_of_this_number_left_is_in_nobodys_way(home: Path) -> None:
    leave_behind(home, os.getpid())
    with Control("share", Program(), home):
        assert ask(only(home), {"ask": "status"})["name"] == "footage"


def test_other_files_are_left_alone(home: Path) -> None:
    (home / "run").mkdir()
    for name in ("notes", "share-x.sock", "share-99999999999.sock", ".sock"):
        (home / "run" / name).write_text("")
    with Control("share", Program(), home):
        assert only(home).pid == os.getpid()
    assert len(list((home / "run").iterdir())) == 4


@pytest.mark.parametrize(
    ("answer", "problem"),
    [(b"", "hung up"), (b"nonsense\n", "makes no sense"), (b"[1]\n", "makes no sense"), (b"[" * 9999 + b"\n", "sense")],
)
def test_an_answer_that_makes_no_sense_is_an_error_of_that_program(home: Path, answer: bytes, problem: str) -> None:
    (home / "run").mkdir()
    found = Found("share", 1, home / "run" / "share-1.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(found.path))
        listener.listen()

        def serve() -> None:
            with listener.accept()[0] as sock:
                sock.recv(100)
                sock.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(UnreachableError, match=problem):
            ask(found, {"ask": "status"})
        thread.join(PATIENCE)


def test_a_program_that_hangs_costs_no_more_than_patience(home: Path) -> None:
    (home / "run").mkdir()
    found = Found("share", 1, home / "run" / "share-1.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(found.path))
        listener.listen()
        started = time.monotonic()
        with pytest.raises(UnreachableError, match="does not answer|timed out"):
            ask(found, {"ask": "status"}, patience=0.2)
        assert time.monotonic() - started < PATIENCE


def test_an_error_of_a_program_is_made_safe_to_show(home: Path) -> None:
    class Rude(Program):
        def status(self) -> dict[str, Any]:
            raise UsageError("\x1b[2Jgone")

    with Control("share", Rude(), home), pytest.raises(UsageError) as caught:
        ask(only(home), {"ask": "status"})
    assert re.fullmatch(r"[ -~]+", str(caught.value))


def test_a_folder_that_cannot_be_read_is_told(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: object) -> list[str]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(LocalDiskError, match="run cannot be read .Permission denied"):
        find(home)


def test_a_home_that_is_gone_has_no_programs(home: Path) -> None:
    shutil.rmtree(home)
    assert find(home) == []
    home.mkdir()


def test_where_it_cannot_start_nothing_stays_and_the_program_goes_on(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_thread(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    def no_selector() -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    def count() -> int:
        return len(os.listdir("/dev/fd"))

    for where, name, instead in (
        (threading.Thread, "start", no_thread),
        (selectors, "DefaultSelector", no_selector),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(where, name, instead)
            before = count()
            assert control.start("share", Program(), home) is None
            assert count() == before
        assert find(home) == []
