"""Ctrl-C and kill: the command ends within about a second, says how to go on, and going on works."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

import pytest

from .processes import CODE, PATIENCE, Gate, Sharing, json_lines, run, start

MIB = 1024 * 1024
SOON = 2.5  # seconds: a grace of one, and a busy machine
ENDS = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]


@pytest.fixture
def silence():
    """An address that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


@pytest.mark.parametrize(("number", "exit_code"), ENDS)
@pytest.mark.parametrize("command", ["get", "ls", "cat"])
@pytest.mark.slow
def test_while_it_connects(command, number, exit_code, silence, home):
    with start(command, f"{CODE}@127.0.0.1:{silence.getsockname()[1]}", home=home) as process:
        connection, _ = silence.accept()
        started = time.monotonic()
        process.send_signal(number)
        out, err = process.communicate(timeout=PATIENCE)
        connection.close()

    assert process.returncode == exit_code
    assert time.monotonic() - started < SOON
    assert out == b""
    assert err == (b"headrace: interrupted; run the same command again to resume\n" if command == "get" else b"")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "exit_code"), ENDS)
def test_in_the_middle_of_a_transfer_and_again(number, exit_code, tmp_path, home):
    source = tmp_path / "tree" / "big"
    source.parent.mkdir()
    source.write_bytes(os.urandom(48 * MIB))
    dest = tmp_path / "dest"
    with Sharing(source.parent, home=tmp_path / "host") as share, Gate(share.ready["port"], 24 * MIB) as gate:
        with start("get", "--json", f"{CODE}@{gate.address}", dest, home=home) as process:
            assert gate.reached.wait(PATIENCE)  # now it waits for bytes that do not come
            started = time.monotonic()
            process.send_signal(number)
            out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == exit_code
        assert time.monotonic() - started < SOON
        assert err == b"headrace: interrupted; run the same command again to resume\n"
        last = json_lines(out)[-1]
        assert (last["event"], last["code"], last["retryable"]) == ("error", "stopped", True)
        assert not (dest / "big").exists()

        ran = run("get", "--json", share.target, dest, home=home)
        assert ran.returncode == 0, ran.stderr
        assert json_lines(ran.stdout)[-1]["bytes_reused"] > 0
        assert (dest / "big").read_bytes() == source.read_bytes()


@pytest.mark.slow
def test_an_impatient_second_signal(silence, home):
    with start("get", f"{CODE}@127.0.0.1:{silence.getsockname()[1]}", home=home) as process:
        connection, _ = silence.accept()
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=PATIENCE)
        connection.close()

    assert process.returncode == 130


def test_in_the_background_of_a_shell(tree: Path, tmp_path: Path):
    """Shells start background jobs with SIGINT ignored; share can be stopped all the same."""

    def ignore() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    command = ("share", tree, "--json", "--port", "0", "--bind", "127.0.0.1")
    with start(*command, home=tmp_path / "host", preexec_fn=ignore) as process:
        assert process.stdout
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=PATIENCE)

    assert process.returncode == 130
