"""Kills and stops in the middle, on either side: nothing half written under a final name, and the rest comes later."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.transport.framed import PIECE

from .support import (
    CHUNK,
    MIB,
    Gate,
    Headrace,
    Host,
    assert_same_tree,
    facts_of,
    finish,
    leftovers,
    make_file,
    noise,
    run_get,
    start_get,
    wait_until,
    whole_files,
)

SIZE = 40 * MIB
SEEDS = range(5)
T1 = 1_700_000_000_123_456_789


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`file`: 40 MiB. `tree`: 24 MiB in files from nothing to 9 MiB."""
    folder = tmp_path_factory.mktemp("resume")
    make_file(folder / "file", noise(SIZE), mtime_ns=T1)
    for number, size in enumerate([0, 1, 5000, 300_000, 1_000_000, 4 * MIB, 4 * MIB + 1, 6 * MIB, 9 * MIB]):
        make_file(folder / "tree" / str(number % 3) / f"{number}.bin", noise(size, number), mtime_ns=T1 + number)
    return folder


@pytest.fixture(scope="module")
def file_host(place: Path) -> Iterator[Host]:
    with Host(place / "file", home=place / "file host") as host:
        yield host


@pytest.fixture(scope="module")
def tree_host(place: Path) -> Iterator[Host]:
    with Host(place / "tree", home=place / "tree host") as host:
        yield host


PART, JOURNAL = ".dest.headrace-part", ".dest.headrace-journal"


@pytest.fixture(scope="module")
def interrupted(file_host: Host, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what a killed get of the file left: 25 of its 40 MiB."""
    folder = tmp_path_factory.mktemp("interrupted")
    with Gate(file_host.port, 25 * MIB) as gate:
        with start_get(gate.address, folder / "dest", "--connections", "1", home=folder / "home") as process:
            hold_after(gate, process, 25 * MIB, payload_of(25 * MIB))
            process.kill(signal.SIGKILL)
            process.wait()
    assert leftovers(folder) == [JOURNAL.encode(), PART.encode()]
    return folder


def received(process: Headrace) -> int:
    """Payload bytes that the process has told of so far."""
    return max((event["bytes_received"] for event in process.of("progress")), default=0)


def payload_of(wire: int) -> int:
    """At least so many bytes of a large file are taken up when so many came over the wire: TLS and frames cost under
    2 %, and on two lanes there may be one piece each that is not whole yet."""
    return int(wire * 0.98) - 2 * PIECE


def hold_after(gate: Gate, process: Headrace, wire: int, payload: int) -> None:
    """Waits until the transfer stands still because `wire` bytes passed the gate, and at least `payload` of them are
    taken up."""
    gate.wait_reached(process)
    process.wait_for("the bytes to be taken up", lambda: received(process) >= payload)


@pytest.mark.parametrize(
    ("seed", "protocol"),
    [
        (0, "8"),
        *[pytest.param(seed, "8", marks=pytest.mark.slow) for seed in SEEDS[1:]],
        *[pytest.param(seed, "7", marks=pytest.mark.slow) for seed in SEEDS[:2]],
    ],
)
def test_a_killed_get_of_a_file_goes_on_where_it_was(
    file_host: Host, place: Path, tmp_path: Path, seed: int, protocol: str
) -> None:
    wire = random.Random(seed).randrange(MIB, SIZE)
    dest, options = tmp_path / "dest", ("--connections", "1", "--protocol", protocol)
    with Gate(file_host.port, wire) as gate:
        with start_get(gate.address, dest, *options, home=tmp_path / "home") as process:
            hold_after(gate, process, wire, payload_of(wire))
            process.kill(signal.SIGKILL)
            process.wait()
        assert not dest.exists()
        gate.open()
        second = run_get(gate.address, dest, *options, home=tmp_path / "home").check_ok()
    assert facts_of(dest) == facts_of(place / "file")
    assert not leftovers(tmp_path)
    kept = payload_of(wire) // CHUNK * CHUNK
    assert second.done["bytes_received"] <= SIZE - kept
    assert second.done["bytes_reused"] + second.done["bytes_received"] == SIZE


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_a_killed_get_of_a_tree_goes_on_where_it_was(tree_host: Host, place: Path, tmp_path: Path, seed: int) -> None:
    total = sum(path.stat().st_size for path in (place / "tree").rglob("*.bin"))
    at = sorted(random.Random(seed).sample(range(MIB, total), 3))
    dest = tmp_path / "dest"
    moved = 0
    with Gate(tree_host.port) as gate:
        for wire in at:
            gate.passed = 0
            gate.allow(max(wire - moved, MIB // 2))
            with start_get(gate.address, dest, home=tmp_path / "home") as process:
                process.wait_for("so many bytes", lambda: gate.reached or process.of("done"))
                process.kill(signal.SIGKILL)
                process.wait()
            moved += gate.passed
            if dest.exists():
                whole_files(dest, place / "tree")
        gate.open()
        last = run_get(gate.address, dest, home=tmp_path / "home").check_ok()
    assert_same_tree(dest, place / "tree")
    # Each of three kills costs at most what two lanes had asked for and not yet written down.
    assert moved + last.done["bytes_received"] <= total * 1.02 + 3 * 2 * 4 * CHUNK


@pytest.mark.parametrize(
    ("what", "protocol"),
    [
        pytest.param("file", "8"),
        *[pytest.param(*case, marks=pytest.mark.slow) for case in (("tree", "8"), ("file", "7"), ("tree", "7"))],
    ],
)
@pytest.mark.slow
def test_a_killed_host_is_told_and_when_it_is_back_the_rest_comes(
    place: Path, tmp_path: Path, what: str, protocol: str
) -> None:
    wire = 13 * MIB
    dest, options = tmp_path / "dest", ("--protocol", protocol)
    with Host(place / what, home=tmp_path / "host") as host, Gate(host.port, wire) as gate:
        with start_get(gate.address, dest, *options, home=tmp_path / "home") as process:
            gate.wait_reached(process)
            host.kill(signal.SIGKILL)
            host.wait()
            gate.open()
            lost = finish(process, 10).check_failed(6)
        assert "Run the same command again to resume" in lost.stderr
        assert lost.of("error")[-1]["code"] == "lost"
        assert lost.of("error")[-1]["retryable"] is True
        assert dest.is_dir() if what == "tree" else not dest.exists()
        with Host(place / what, home=tmp_path / "host", port=host.port):
            second = run_get(gate.address, dest, *options, home=tmp_path / "home").check_ok()
    assert second.done["bytes_reused"] >= CHUNK
    if what == "tree":
        assert_same_tree(dest, place / what)
    else:
        assert facts_of(dest) == facts_of(place / what)
    assert not leftovers(tmp_path)


@pytest.mark.slow
def test_a_host_that_dies_while_phase_7_lists_ends_the_client(tmp_path: Path) -> None:
    """In phase 7 listings and chunks share one connection; when it breaks, neither may wait for the other."""
    for number in range(150):
        make_file(tmp_path / "tree" / f"{number:03}" / "small", noise(9000, number))
        make_file(tmp_path / "tree" / f"{number:03}" / "large", noise(200_000, number))
    with Host(tmp_path / "tree", home=tmp_path / "host") as host:
        for wire in (100_000, 3_000_000, 11_000_000):
            dest = tmp_path / f"dest {wire}"
            with Gate(host.port, wire) as gate:
                with start_get(gate.address, dest, "--protocol", "7", home=tmp_path / "home") as process:
                    gate.wait_reached(process)
                    gate.cut()
                    finish(process, 10).check_failed(6)
            whole_files(dest, tmp_path / "tree")


@pytest.mark.parametrize(
    ("what", "number", "exit_code"),
    [
        ("file", signal.SIGINT, 130),
        ("file", signal.SIGTERM, 143),
        ("tree", signal.SIGINT, 130),
        ("tree", signal.SIGTERM, 143),
    ],
)
@pytest.mark.slow
def test_a_signal_stops_a_get_at_once_and_it_can_go_on(
    file_host: Host, tree_host: Host, place: Path, tmp_path: Path, what: str, number: int, exit_code: int
) -> None:
    host, dest, wire = file_host if what == "file" else tree_host, tmp_path / "dest", 13 * MIB
    with Gate(host.port, wire) as gate:
        with start_get(gate.address, dest, home=tmp_path / "home") as process:
            # In a tree, a file of one chunk is taken up when it is whole, and each lane may be in the middle of one.
            hold_after(gate, process, wire, payload_of(wire) - (2 * CHUNK if what == "tree" else 0))
            started = time.monotonic()
            process.kill(number)
            stopped = finish(process, 10).check_clean()
        assert time.monotonic() - started < 2
        assert stopped.exit_code == exit_code
        assert "run the same command again" in stopped.stderr.lower()
        assert len(stopped.stderr.splitlines()) == 1
        assert what == "tree" or not dest.exists()
        gate.open()
        second = run_get(gate.address, dest, home=tmp_path / "home").check_ok()
    assert second.done["bytes_reused"] >= (CHUNK if what == "file" else 1)
    assert facts_of(dest if what == "file" else dest / "2" / "8.bin") == facts_of(
        place / "file" if what == "file" else place / "tree" / "2" / "8.bin"
    )


@pytest.mark.slow
def test_a_signal_while_connecting_stops_a_get_too(tmp_path: Path) -> None:
    """The host takes the connection and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with start_get(address, tmp_path / "dest", home=tmp_path / "home") as process:
            silent.settimeout(20)
            sock, _ = silent.accept()
            with sock:
                started = time.monotonic()
                process.kill(signal.SIGINT)
                assert finish(process, 10).check_clean().exit_code == 130
                assert time.monotonic() - started < 2
    assert not (tmp_path / "dest").exists()


@pytest.mark.parametrize(
    ("number", "exit_code"),
    [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)],
)
@pytest.mark.slow
def test_a_signal_stops_a_share_in_order(place: Path, tmp_path: Path, number: int, exit_code: int) -> None:
    wire = 13 * MIB
    with Host(place / "file", home=tmp_path / "host") as host, Gate(host.port, wire) as gate:
        with start_get(gate.address, tmp_path / "dest", home=tmp_path / "home") as process:
            gate.wait_reached(process)
            started = time.monotonic()
            host.kill(number)
            assert host.wait(10) == exit_code
            assert time.monotonic() - started < 3
            assert "Traceback" not in host.stderr
            gate.open()
            finish(process, 10).check_failed(6)


@pytest.mark.slow
def test_a_private_tree_stays_private_over_an_interruption(tmp_path: Path) -> None:
    """The second run cannot know that the first one made the folder, so it has to be right from the start."""
    make_file(tmp_path / "tree" / "file", noise(3 * CHUNK))
    (tmp_path / "tree").chmod(0o700)
    dest = tmp_path / "dest"
    with Host(tmp_path / "tree", home=tmp_path / "host") as host, Gate(host.port, 2 * CHUNK) as gate:
        with start_get(gate.address, dest, home=tmp_path / "home") as process:
            gate.wait_reached(process)
            process.kill()
        assert stat.S_IMODE(dest.stat().st_mode) == 0o700
        run_get(host.address, dest, home=tmp_path / "home").check_ok()
    assert_same_tree(dest, tmp_path / "tree")
    assert stat.S_IMODE(dest.stat().st_mode) == 0o700


@pytest.mark.slow
def test_two_gets_of_the_same_file_do_not_mix(file_host: Host, place: Path, tmp_path: Path) -> None:
    """The second one is told that the first is at it."""
    dest = tmp_path / "dest"
    with Gate(file_host.port, 20 * MIB) as gate:
        with start_get(gate.address, dest, home=tmp_path / "one") as first:
            gate.wait_reached(first)
            wait_until(lambda: leftovers(tmp_path), "the part file")
            second = run_get(file_host.address, dest, home=tmp_path / "two").check_failed(8)
            assert "another headrace" in second.stderr
            gate.open()
            finish(first).check_ok()
    assert facts_of(dest) == facts_of(place / "file")


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["a torn journal", "a wrong bit", "a short part file", "noise", "no journal"])
def test_damage_costs_time_not_content(
    file_host: Host, interrupted: Path, place: Path, tmp_path: Path, damage: str
) -> None:
    dest, part, journal = tmp_path / "dest", tmp_path / PART, tmp_path / JOURNAL
    for name in (PART, JOURNAL):
        shutil.copy(interrupted / name, tmp_path / name)
    if damage == "a torn journal":
        os.truncate(journal, journal.stat().st_size - 7)
    elif damage == "a wrong bit":
        damaged = bytearray(journal.read_bytes())
        damaged[len(damaged) * 2 // 3] ^= 0x40
        journal.write_bytes(damaged)
    elif damage == "a short part file":
        os.truncate(part, 9 * MIB)
    elif damage == "noise":
        journal.write_bytes(noise(5000))
    else:
        journal.unlink()
    result = run_get(file_host.address, dest, home=tmp_path / "home").check_ok()
    assert facts_of(dest) == facts_of(place / "file")
    assert not leftovers(tmp_path)
    if damage in ("a torn journal", "a wrong bit"):  # what stands before the damage is still good
        assert result.done["bytes_reused"] >= CHUNK
