"""`headrace status`: what runs here, and what can be changed about it, as real processes of one home."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace.cli.status_view import Rates, lines
from headrace.observe import running

from .processes import CODE, PATIENCE, Sharing, json_lines, run, start, wait_until

MIB = 1024 * 1024
SECRET = ("xq4c-9dht", "xq4c9dht", "xq4c", "9dht")


@pytest.fixture
def home() -> Iterator[Path]:
    """Not below pytest's folder: the path of a Unix socket has about a hundred bytes."""
    with tempfile.TemporaryDirectory(prefix="hr-") as folder:
        yield Path(folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "footage"
    folder.mkdir()
    (folder / "a.mov").write_bytes(os.urandom(40 * MIB))
    return folder


class Told:
    """The events on a process's standard output, as they come."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.events: list[dict[str, Any]] = []
        assert process.stdout
        self._lines = process.stdout
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with contextlib.suppress(ValueError):  # closed
            for line in self._lines:
                self.events.append(json.loads(line))

    def of(self, name: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == name]

    def end(self) -> None:
        self._thread.join(PATIENCE)


@contextlib.contextmanager
def getting(share: Sharing, dest: Path, home: Path, *options: str) -> Iterator[tuple[subprocess.Popen[bytes], Told]]:
    """A `get` that would take very long; here once it can be asked."""
    arguments: tuple[str | Path, ...] = (
        "--json",
        "--limit-rate",
        "1M",
        "--transport",
        "tcp",
        *options,
        share.target,
        dest,
    )
    with start("get", *arguments, home=home) as process:
        told = Told(process)
        try:
            wait_until(lambda: any(found.pid == process.pid for found in running.find(home)))
            yield process, told
        finally:
            process.kill()
            process.wait(PATIENCE)
            told.end()


def status(home: Path, *arguments: str, **more: Any) -> subprocess.CompletedProcess[bytes]:
    return run("status", *arguments, home=home, **more)


def looks(home: Path, *arguments: str) -> list[dict[str, Any]]:
    """What `headrace status --json` says."""
    ran = status(home, "--json", *arguments)
    assert ran.returncode == 0, ran.stderr
    return json_lines(ran.stdout)


def ready(share: Sharing, home: Path) -> Sharing:
    """The socket opens right after the share said that it is ready."""
    wait_until(lambda: any(found.pid == share.process.pid for found in running.find(home)))
    return share


# ---- looking -------------------------------------------------------------------------------------------------------


def test_nothing_runs(home):
    ran = status(home)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, b"No share, transfer or mount runs here.\n", b"")
    assert status(home, "--json").stdout == b""
    for arguments in (("footage",), ("--limit-rate", "5M"), ("--limit-rate", "5M", "4711")):
        ran = status(home, *arguments)
        assert ran.returncode == 3, arguments
        assert ran.stderr.count(b"\n") == 1


@pytest.mark.slow
def test_a_share_with_its_peers_and_a_transfer(home, folder, tmp_path):
    with (
        Sharing(folder, home=home, options=("--limit-peer", "3M")) as share,
        getting(ready(share, home), tmp_path / "dest", home) as (process, _),
    ):
        wait_until(lambda: looks(home)[1]["bytes_received"] > 0)
        shared, got = looks(home)
        shown = status(home).stdout.decode()
        raw = b"".join(asked(found) for found in running.find(home)).decode()
        assert shared["rate_sent"] > 0

    assert (shared["event"], shared["schema"], shared["kind"]) == ("status", 1, "share")
    assert (shared["pid"], shared["name"], shared["share"]) == (share.process.pid, "footage", "7k2m")
    assert (shared["port"], shared["limit_rate"], shared["limit_peer"]) == (share.ready["port"], None, 3 * MIB)
    assert "tcp" in shared["transports"]
    (peer,) = shared["peers"]
    assert (peer["address"], peer["protocol"], peer["transport"]) == ("127.0.0.1", 8, "tcp")
    assert peer["bytes_sent"] > 0
    assert peer["connections"] >= 1

    assert (got["kind"], got["pid"], got["name"], got["share"]) == ("get", process.pid, "footage", "7k2m")
    assert (got["target"], got["dest"]) == (share.address, str(tmp_path / "dest"))
    assert (got["bytes"], got["files"], got["limit_rate"]) == (40 * MIB, 1, MIB)
    assert 0 < got["bytes_done"] < got["bytes"]
    assert (got["transport"], got["protocol"]) == ("tcp", 8)
    assert got["streams"] >= 2
    assert got["seconds_left"] is None or got["seconds_left"] > 10

    first, _, peer_line, second, progress = shown.splitlines()
    assert first.startswith(f"share footage  code 7k2m-…  port {share.ready['port']} (")
    assert peer_line.startswith("    127.0.0.1  protocol 8  tcp  ")
    assert second.startswith(f"get {share.address} -> {tmp_path}/dest")
    assert "of 40.0 MiB" in progress
    assert "limit 1.0 MiB/s" in progress
    for text in (shown, raw, json.dumps([shared, got])):
        assert not any(secret in text for secret in SECRET)


def asked(found: running.Found) -> bytes:
    """The answer as it is."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(PATIENCE)
        sock.connect(os.fspath(found.path))
        sock.sendall(b'{"ask":"status"}\n')
        answer = b""
        while piece := sock.recv(65536):
            answer += piece
        return answer


@pytest.mark.slow
def test_a_get_that_ended_is_gone_and_its_peer_too(home, folder, tmp_path):
    with Sharing(folder, home=home) as share:
        ready(share, home)
        assert run("get", share.target, tmp_path / "dest", home=home).returncode == 0
        wait_until(lambda: not looks(home)[0]["peers"])
        (shared,) = looks(home)
        assert shared["bytes_sent"] > 40 * MIB
        assert share.end() == 143
    assert list((home / "run").iterdir()) == []


def test_what_was_killed_is_cleared_away(home, folder):
    with Sharing(folder, home=home) as share:
        ready(share, home)
        share.end(signal.SIGKILL)
        assert len(list((home / "run").iterdir())) == 1
        assert status(home).stdout == b"No share, transfer or mount runs here.\n"
        assert list((home / "run").iterdir()) == []


@pytest.mark.slow
def test_one_that_does_not_answer_is_named_and_the_others_are_shown(home, folder, tmp_path):
    with Sharing(folder, home=home) as share, Sharing(folder, home=home) as stopped:
        for one in (share, stopped):
            ready(one, home)
        stopped.process.send_signal(signal.SIGSTOP)
        ran = status(home)
    assert ran.returncode == 0
    assert ran.stdout.startswith(b"share footage")
    assert ran.stdout.count(b"share footage") == 1
    assert f"share {stopped.process.pid} does not say".encode() in ran.stderr


@pytest.mark.slow
def test_a_home_whose_path_is_too_long_has_no_socket_and_works(tmp_path, folder):
    home = tmp_path / ("x" * 100)
    with Sharing(folder, home=home, options=("-vv",)) as share:
        wait_until(lambda: "no control socket" in share.stderr)
        assert run("ls", share.target, home=home).returncode == 0
        assert status(home).stdout == b"No share, transfer or mount runs here.\n"


@pytest.mark.slow
def test_watch_draws_it_over_and_over(home, folder):
    master, slave = pty.openpty()
    seen = b""

    def pictures() -> int:
        nonlocal seen
        with contextlib.suppress(BlockingIOError):
            seen += os.read(master, 65536)
        return seen.count(b"\x1b[Hshare footage")

    os.set_blocking(master, False)
    with Sharing(folder, home=home) as share:
        ready(share, home)
        with start("status", "--watch", home=home, stdout=slave) as process:
            wait_until(lambda: pictures() >= 2)
            process.send_signal(signal.SIGINT)
            _, stderr = process.communicate(timeout=PATIENCE)
    os.close(slave)
    os.close(master)
    assert (process.returncode, stderr) == (130, b"")
    assert seen.count(b"\x1b[J") >= 2


@pytest.mark.slow
def test_watch_for_programs_ends_with_what_it_watches(home, folder):
    with Sharing(folder, home=home) as share:
        ready(share, home)
        with start("status", "--watch", "--json", "footage", home=home) as process:
            told = Told(process)
            wait_until(lambda: len(told.of("status")) >= 2)
            share.end()
            assert process.wait(PATIENCE) == 0
            told.end()
    first, second = told.events[:2]
    assert first["rate_sent"] is None  # there is nothing yet to compare with
    assert second["rate_sent"] == 0


@pytest.mark.parametrize("how", [(), ("--json",)])
@pytest.mark.slow
def test_watch_ends_when_nobody_reads_any_more(home, folder, how):
    with Sharing(folder, home=home) as share:
        ready(share, home)
        with start("status", "--watch", *how, home=home) as process:
            assert process.stdout
            assert process.stdout.readline()
            process.stdout.close()
            assert process.wait(PATIENCE) == 0
            assert process.stderr
            assert process.stderr.read() == b""


# ---- changing ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_running_get_is_let_go_at_once(home, folder, tmp_path):
    with Sharing(folder, home=tmp_path / "elsewhere") as share, getting(share, tmp_path / "d", home) as (process, told):
        ran = status(home, "--limit-rate", "off")
        assert (ran.returncode, ran.stderr) == (0, b"")
        assert ran.stdout == f"get footage (pid {process.pid}): no limit\n".encode()
        assert process.wait(PATIENCE) == 0  # it would have taken 40 s
        told.end()
    assert told.of("limit") == [{"event": "limit", "schema": 1, "limit_rate": None}]


@pytest.mark.slow
def test_the_limits_of_a_running_share(home, folder):
    with Sharing(folder, home=home) as share:
        told = Told(ready(share, home).process)
        pid = share.process.pid
        ran = status(home, "--bwlimit", "20M", "--limit-peer", "1.5M")
        assert ran.stdout == f"share footage (pid {pid}): 20.0 MiB/s in all, 1.5 MiB/s each peer\n".encode()
        (changed,) = looks(home, "--limit-rate", "off", "footage")
        assert (changed["event"], changed["kind"], changed["pid"], changed["name"]) == (
            "limit",
            "share",
            pid,
            "footage",
        )
        assert (changed["limit_rate"], changed["limit_peer"]) == (None, 1.5 * MIB)
        (shared,) = looks(home)
        assert (shared["limit_rate"], shared["limit_peer"]) == (None, 1.5 * MIB)
        wait_until(lambda: len(told.of("limit")) == 2)
        share.end()
        told.end()
    limits = [(event["limit_rate"], event["limit_peer"]) for event in told.of("limit")]
    assert limits == [(20 * MIB, 1.5 * MIB), (None, 1.5 * MIB)]


@pytest.mark.slow
def test_who_is_meant(home, folder, tmp_path):
    (tmp_path / "other").mkdir()
    with Sharing(folder, home=home) as share, Sharing(tmp_path / "other", home=home) as other:
        for one in (share, other):
            ready(one, home)
        pids = {"footage": share.process.pid, "other": other.process.pid}
        for who, meant in (("other", "other"), (str(pids["footage"]), "footage")):
            assert [one["name"] for one in looks(home, who)] == [meant]
            assert [one["pid"] for one in looks(home, "--limit-rate", "5M", who)] == [pids[meant]]
        for who in ("7k2m", CODE, f"{CODE}@127.0.0.1:7420"):
            assert len(looks(home, who)) == 2
        for unclear in (("--limit-rate", "5M"), ("--limit-rate", "5M", "7k2m"), ("--limit-peer", "5M")):
            ran = status(home, *unclear)
            assert ran.returncode == 2, unclear
            assert all(f"share {name} (pid {pid})".encode() in ran.stderr for name, pid in pids.items())
        for who in ("nobody", "1", "foot"):
            for change in ("", "--limit-rate=5M"):
                ran = status(home, *([change] if change else []), who)
                assert ran.returncode == 3
                assert b"nothing that runs here is called" in ran.stderr


@pytest.mark.slow
def test_a_limit_per_peer_is_for_shares(home, folder, tmp_path):
    with Sharing(folder, home=home) as share, getting(ready(share, home), tmp_path / "dest", home) as (process, _):
        (changed,) = looks(home, "--limit-peer", "5M")  # there is one that can be meant
        assert changed["pid"] == share.process.pid
        ran = status(home, "--limit-peer", "5M", str(process.pid))
    assert ran.returncode == 2
    assert b"no limit per peer" in ran.stderr


@pytest.mark.slow
def test_only_the_command_line_changes_what_runs(home, folder):
    with Sharing(folder, home=home) as share:
        ready(share, home)
        (home / "config.toml").write_text('limit-rate = "1M"\n[status]\nlimit-peer = "1M"\n')
        ran = status(home, env={"HEADRACE_LIMIT_RATE": "2M", "HEADRACE_LIMIT_PEER": "2M"})
        assert ran.stdout.startswith(b"share footage")
        (shared,) = looks(home)
    assert (shared["limit_rate"], shared["limit_peer"]) == (None, None)


@pytest.mark.parametrize(
    "arguments", [("--limit-rate", "0"), ("--limit-rate", "fast"), ("--watch", "--limit-rate", "5M")]
)
def test_wrong_usage(home, arguments):
    assert status(home, *arguments).returncode == 2


# ---- what it looks like --------------------------------------------------------------------------------------------


def share_at(clock: float, sent: int, *peers: dict[str, Any], **more: Any) -> dict[str, Any]:
    facts = {"kind": "share", "pid": 1, "seconds": clock, "clock": clock, "bytes_sent": sent, "bytes_received": 0}
    return {**facts, "peers": list(peers), **more}


def peer(name: str, seconds: float, sent: int) -> dict[str, Any]:
    return {"peer": name, "seconds": seconds, "bytes_sent": sent, "bytes_received": sent // 10}


def test_rates_come_from_counters():
    rates = Rates()
    assert rates.add(share_at(10, 500))["rate_sent"] is None
    found = rates.add(share_at(12, 700, peer("a", 1, 50)))
    assert found["rate_sent"] == 100
    assert found["peers"][0]["rate_sent"] == 50  # within the one second that it is here
    found = rates.add(share_at(14, 900, peer("a", 3, 250)))
    assert found["rate_sent"] == 100
    assert found["peers"][0]["rate_sent"] == 83  # since it came
    assert "clock" not in found


def test_rates_are_of_the_last_five_seconds():
    rates = Rates()
    for clock in range(20):
        found = rates.add(share_at(clock, 1000 * min(clock, 10)))
    assert found["rate_sent"] == 0
    assert rates.add(share_at(20, 15_000))["rate_sent"] == 1000


def test_a_peer_that_came_again_starts_anew():
    rates = Rates()
    rates.add(share_at(10, 0, peer("a", 10, 10_000)))
    assert rates.add(share_at(12, 100, peer("a", 1, 100)))["peers"][0]["rate_sent"] == 100


def test_another_program_of_the_same_pid_is_no_rate():
    rates = Rates()
    rates.add(share_at(100, 10_000))
    assert rates.add(share_at(5, 100))["rate_sent"] is None


@pytest.mark.parametrize(
    "strange",
    [
        {},
        {"kind": "share"},
        {"kind": "get"},
        {"kind": "mount", "target": "x"},
        {"kind": "share", "peers": 3, "transports": None, "seconds": "long", "clock": "noon"},
        {"kind": "share", "peers": [None, {}, "x"], "transports": 3, "bytes_sent": []},
        {"kind": "get", "bytes": None, "seconds_left": "soon", "planned": True},
    ],
)
def test_another_version_may_leave_things_out(strange):
    for line in lines([Rates().add(strange)]):
        assert isinstance(line, str)


def test_what_peers_call_themselves_moves_no_cursor():
    evil = {"peer": "a", "agent": "\x1b[2J\nheadrace", "address": "\x07", "transport": "tcp"}
    shown = lines([share_at(1, 1, evil, name="foot\x1b[Hage")])
    assert all(line.isprintable() for line in shown)


def test_what_comes_in_is_shown_where_it_is_more_than_requests():
    quiet = lines([share_at(1, 1000)])[1]
    assert "received" not in quiet
    busy = lines([Rates().add(share_at(1, 1000, bytes_received=5 * MIB))])[1]
    assert "5.0 MiB received" in busy
