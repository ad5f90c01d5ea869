"""On a terminal: a progress line that goes away again, a prompt that shows nothing, names that move no cursor."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from .processes import CODE, PATIENCE, Gate, Sharing, run, start, wait_until

MIB = 1024 * 1024


@dataclass
class Terminal:
    """The far end of a pseudo-terminal."""

    master: int
    slave: int
    seen: bytes = b""

    def read(self) -> bytes:
        """Everything that was shown so far."""
        os.set_blocking(self.master, False)
        with contextlib.suppress(BlockingIOError, OSError):
            while piece := os.read(self.master, 65536):
                self.seen += piece
        return self.seen


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    master, slave = pty.openpty()
    yield Terminal(master, slave)
    os.close(master)
    os.close(slave)


@pytest.mark.slow
def test_progress_is_drawn_and_goes_away(terminal, tmp_path, home):
    source = tmp_path / "tree" / "big"
    source.parent.mkdir()
    source.write_bytes(os.urandom(48 * MIB))
    with Sharing(source.parent, home=tmp_path / "host") as share, Gate(share.ready["port"], 24 * MIB) as gate:
        with start(*("get", f"{CODE}@{gate.address}", tmp_path / "dest"), home=home, stderr=terminal.slave) as process:
            assert gate.reached.wait(PATIENCE)
            wait_until(lambda: b" %  " in terminal.read())
            gate.open()
            out, _ = process.communicate(timeout=PATIENCE)

    assert process.returncode == 0
    shown = terminal.read()
    assert b"of 48.0 MiB" in shown
    assert b"B/s" in shown
    assert not re.search(rb"100 %", shown)
    assert shown.endswith(b"\r\x1b[K"), "nothing of it stays"
    assert out.startswith(b"48.0 MiB in 1 file, ")


@pytest.mark.parametrize(("option", "env"), [("-q", {}), ("--json", {}), ("-v", {"TERM": "dumb"})])
@pytest.mark.slow
def test_there_is_no_progress_line_where_nobody_wants_one(sharing, terminal, tmp_path, home, option, env):
    ran = run("get", option, sharing.target + "/day1", tmp_path, home=home, env=env, stderr=terminal.slave)

    assert ran.returncode == 0
    assert b"\x1b" not in terminal.read()


def test_the_code_is_asked_for_and_not_shown(sharing, terminal, home):
    with start(
        *("ls", sharing.address),
        home=home,
        stdin=terminal.slave,
        stderr=terminal.slave,
        start_new_session=True,
    ) as process:
        wait_until(lambda: f"Code for {sharing.address}: ".encode() in terminal.read())
        os.write(terminal.master, CODE.encode() + b"\n")
        out, _ = process.communicate(timeout=PATIENCE)

    assert process.returncode == 0
    assert b"notes.txt\n" in out
    assert CODE[5:].encode() not in terminal.read()


def test_ctrl_c_at_the_prompt(sharing, terminal, home):
    with start(
        *("ls", sharing.address), home=home, stdin=terminal.slave, stderr=terminal.slave, start_new_session=True
    ) as process:
        wait_until(lambda: b"Code for" in terminal.read())
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=PATIENCE)

    assert process.returncode == 130
    assert b"Traceback" not in terminal.read()


def test_names_cannot_move_the_cursor(sharing, terminal, home):
    ran = run("ls", sharing.target, home=home, stdout=terminal.slave, stderr=subprocess.PIPE)

    assert ran.returncode == 0
    shown = terminal.read().replace(b"\r\n", b"\n")
    assert b"two\\nlines\n" in shown
    assert b"caf\\xe9\n" in shown
