"""The connection breaks and comes back: `get` goes on by itself, and says so."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from .support import (
    CHUNK,
    MIB,
    Gate,
    Host,
    assert_same_tree,
    facts_of,
    finish,
    leftovers,
    make_file,
    noise,
    run_get,
    start_get,
)

SIZE = 40 * MIB
LONG = ("--retry-for", "60s")
CASES = [
    pytest.param("file", "8"),
    pytest.param("tree", "8"),
    *[pytest.param(what, "7", marks=pytest.mark.slow) for what in ("file", "tree")],
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`file`: 40 MiB. `tree`: 300 small files and a few large ones, in folders."""
    folder = tmp_path_factory.mktemp("reconnect")
    make_file(folder / "file", noise(SIZE))
    for number in range(300):
        make_file(folder / "tree" / f"{number % 20:02}" / f"{number}", noise(3000, number))
    for number, size in enumerate([9 * MIB, 4 * MIB, 12 * MIB]):
        make_file(folder / "tree" / "large" / f"{number}", noise(size, number))
    (folder / "tree" / "empty").mkdir()
    return folder


def assert_arrived(dest: Path, source: Path) -> None:
    if source.is_dir():
        assert_same_tree(dest, source)
    else:
        assert facts_of(dest) == facts_of(source)


@pytest.mark.slow
@pytest.mark.parametrize(("what", "protocol"), CASES)
@pytest.mark.parametrize("wire", [2000, 40_000, 5 * MIB, 18 * MIB])
def test_a_connection_that_breaks_is_made_anew(
    place: Path, tmp_path: Path, what: str, protocol: str, wire: int
) -> None:
    """Early enough to hit the listing, too. The handshakes take some 3 KB of the host's bytes."""
    wire += 3000
    with Host(place / what, home=tmp_path / "host") as host, Gate(host.port, wire) as gate:
        run_get(host.address, tmp_path / "other", "--dry-run", home=tmp_path / "home").check_ok()  # pairs
        options = (*LONG, "--protocol", protocol)
        with start_get(gate.address, tmp_path / "dest", *options, home=tmp_path / "home") as process:
            gate.wait_reached(process)
            gate.drop()
            gate.open()
            result = finish(process).check_ok()
    assert_arrived(tmp_path / "dest", place / what)
    assert not leftovers(tmp_path)
    assert [event for event in result.of("warning") if "trying again for 60 s" in event["message"]]
    if wire > MIB:  # at most what was on its way on a few lanes came twice
        total = sum(path.stat().st_size for path in [place / what, *(place / what).rglob("*")] if path.is_file())
        assert result.done["bytes_received"] <= total + 4 * CHUNK


@pytest.mark.parametrize(("what", "protocol"), CASES)
@pytest.mark.slow
def test_a_host_that_is_started_anew_is_found_again(place: Path, tmp_path: Path, what: str, protocol: str) -> None:
    with Host(place / what, home=tmp_path / "host") as host, Gate(host.port, 13 * MIB) as gate:
        options = (*LONG, "--protocol", protocol)
        with start_get(gate.address, tmp_path / "dest", *options, home=tmp_path / "home") as process:
            gate.wait_reached(process)
            host.kill(signal.SIGKILL)
            host.wait()
            gate.open()
            process.wait_event("warning")
            with Host(place / what, home=tmp_path / "host", port=host.port):
                finish(process).check_ok()
    assert_arrived(tmp_path / "dest", place / what)
    assert not leftovers(tmp_path)


@pytest.mark.slow
def test_a_host_that_stays_away_is_given_up_after_a_while(place: Path, tmp_path: Path) -> None:
    with Host(place / "file", home=tmp_path / "host") as host, Gate(host.port, 13 * MIB) as gate:
        options = ("--retry-for", "1.5")
        with start_get(gate.address, tmp_path / "dest", *options, home=tmp_path / "home") as process:
            gate.wait_reached(process)
            started = time.monotonic()
            gate.cut()
            lost = finish(process).check_failed(6)
            assert 1.4 < time.monotonic() - started < 10
    assert "Run the same command again to resume" in lost.stderr
    assert lost.of("warning")


@pytest.mark.slow
def test_a_signal_ends_the_waiting(place: Path, tmp_path: Path) -> None:
    with Host(place / "file", home=tmp_path / "host") as host, Gate(host.port, 13 * MIB) as gate:
        with start_get(gate.address, tmp_path / "dest", *LONG, home=tmp_path / "home") as process:
            gate.wait_reached(process)
            gate.cut()
            process.wait_event("warning")
            started = time.monotonic()
            process.kill(signal.SIGINT)
            assert finish(process).check_clean().exit_code == 130
            assert time.monotonic() - started < 3


@pytest.mark.slow
def test_a_host_with_another_code_is_not_asked_again(place: Path, tmp_path: Path) -> None:
    """It is there and refuses: trying again changes nothing."""
    with Host(place / "file", home=tmp_path / "host") as host, Gate(host.port, 13 * MIB) as gate:
        with start_get(gate.address, tmp_path / "dest", *LONG, home=tmp_path / "home") as process:
            gate.wait_reached(process)
            host.kill(signal.SIGKILL)
            host.wait()
            gate.open()
            with Host(place / "file", home=tmp_path / "host", port=host.port, code="7k2m-aaaa-bbbb"):
                finish(process).check_failed(4)
