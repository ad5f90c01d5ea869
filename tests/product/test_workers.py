"""share --workers: real processes serve what the share lends them; killed ones lose nothing; none is left behind."""

from __future__ import annotations

import os
import signal
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from headrace.bench.procfs import family, is_running, started
from headrace.observe.running import ask, find

from .load import check_runs, load, measure
from .support import CHUNK, MIB, Gate, Host, call, facts_of, finish, make_file, noise, start_get, wait_until

SIZE: Final = 6 * CHUNK + 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workers") / "footage"
    make_file(folder / "big", noise(SIZE), mtime_ns=1_600_000_000_000_000_000)
    for number in range(200):
        make_file(folder / "many" / str(number), noise(number * 41, number), mtime_ns=1_600_000_000_000_000_000)
    return folder


@pytest.fixture
def short_home() -> Iterator[Path]:
    """A host's home whose path leaves room for the control socket's."""
    with tempfile.TemporaryDirectory(prefix="hr-") as folder:
        yield Path(folder)


def status(home: Path) -> dict:
    (found,) = find(home)
    return ask(found, {"ask": "status"})


def share(folder: Path, home: Path, *options: str, workers: int = 2) -> Host:
    """One whose workers are ready."""
    host = Host(folder, home=home, options=("--workers", str(workers), *options))
    try:
        host.wait_for("the workers", lambda: find(home) and status(home)["workers"] == workers)
    except BaseException:
        host.__exit__()
        raise
    return host


def metric(host: Host, name: str) -> float:
    (announced,) = host.of("metrics")
    with urllib.request.urlopen(f"http://{announced['address']}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.split("{")[0].split(" ")[0] == name)


def workers_of(host: Host) -> list[int]:
    return family(host.pid)[1:]


def are_gone(pids: list[int]) -> bool:
    """Those whose parent was killed may be left for nobody to reap."""
    return not any(is_running(pid, started(pid)) for pid in pids)


TCP: Final = ("--transport", "tcp")


@pytest.mark.slow
def test_three_clients_get_three_right_copies(folder: Path, tmp_path: Path, short_home: Path) -> None:
    with share(folder, short_home, "--metrics", "127.0.0.1:0") as host:
        getting = [start_get(host.address, tmp_path / f"dest {n}", *TCP, home=tmp_path / f"home {n}") for n in range(3)]
        outcomes = []
        for process in getting:
            with process:
                outcomes.append(finish(process).check_ok())
        wanted = facts_of(folder)
        assert all(facts_of(tmp_path / f"dest {n}") == wanted for n in range(3))
        assert metric(host, "headrace_loans_total") >= 3
        # What the clients saw on the wire is what the share says it sent, whichever process did.
        wire = sum(outcome.done["bytes_wire"] for outcome in outcomes)
        host.wait_for("the end of the sessions", lambda: not status(short_home)["peers"])
        now = status(short_home)
        assert abs(now["bytes_sent"] + now["bytes_received"] - wire) < 64 * 1024  # a probe of a path here or there
        assert metric(host, "headrace_cache_lookups_total") >= 6
        assert sum(event["bytes"] for event in host.of("transfer")) >= 3 * SIZE
        children = workers_of(host)
        assert len(children) == 2
        host.kill(signal.SIGINT)
        assert host.wait() == 130
        assert are_gone(children)
        assert "worker" not in host.stderr


@pytest.mark.slow
def test_a_worker_is_killed_in_the_middle_and_the_copy_is_whole(folder: Path, tmp_path: Path, short_home: Path) -> None:
    with share(folder, short_home, workers=1) as host, Gate(host.port, allow=2 * CHUNK) as gate:
        with start_get(
            gate.address, tmp_path / "dest", *TCP, home=tmp_path / "home", env={"HEADRACE_RETRY_FOR": "30"}
        ) as process:
            gate.wait_reached(process)
            (worker,) = workers_of(host)
            os.kill(worker, signal.SIGKILL)
            host.wait_for("the warning", lambda: "worker 1 ended" in host.stderr)
            gate.open()
            finish(process).check_ok()
        assert facts_of(tmp_path / "dest") == facts_of(folder)
        assert status(short_home)["workers"] == 0  # not at once again
        assert host.stderr.count("worker 1") == 1


@pytest.mark.slow
def test_workers_end_with_a_share_that_is_killed(folder: Path, tmp_path: Path, short_home: Path) -> None:
    with (
        share(folder, short_home, workers=1) as host,
        load(host.port, b"big", home=tmp_path / "home", lanes=2) as client,
    ):
        check_runs(client.received, MIB)
        children = workers_of(host)
        host.kill(signal.SIGKILL)
        wait_until(lambda: are_gone(children), "the end of the workers")


@pytest.mark.slow
def test_a_limit_that_is_set_in_the_middle_is_kept_and_breaks_nothing(
    folder: Path, tmp_path: Path, short_home: Path
) -> None:
    with (
        share(folder, short_home, "--metrics", "127.0.0.1:0") as host,
        load(host.port, b"big", home=tmp_path / "home", lanes=2) as client,
    ):
        check_runs(client.received, 4 * CHUNK)
        assert metric(host, "headrace_loans_total") == 2
        (found,) = find(short_home)
        ask(found, {"ask": "limit", "limit_rate": MIB})
        check_runs(client.received, MIB)  # the chunks in hand, and then on the same connections
        wait_until(lambda: measure(client.received, 1.0).rate < 1.5 * MIB, "the limit is kept")
        ask(found, {"ask": "limit", "limit_rate": None})
        check_runs(client.received, 8 * CHUNK)


def test_what_is_no_number_of_workers_is_a_usage_error(tmp_path: Path) -> None:
    got = call("share", "--workers", "-1", str(tmp_path), home=tmp_path / "home")
    assert got.exit_code == 2
    assert "workers" in got.stderr
