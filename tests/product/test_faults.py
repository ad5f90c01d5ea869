"""What may happen to either end of a get: the whole right file is there in the end, or none, and the next run resumes.

Faults of which other tests are about, and what each promises: docs/reliability.md.
"""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from .faults import CLOCK_SET_BACK, failing_reads, failing_writes, few_descriptors, stall_timeout
from .scripted import ScriptedClient
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
    whole_files,
)

pytestmark = pytest.mark.slow

SIZE = 24 * MIB


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`file`: six chunks. `tree`: 200 small files, two of several chunks."""
    folder = tmp_path_factory.mktemp("faults")
    make_file(folder / "file", noise(SIZE))
    for number in range(200):
        make_file(folder / "tree" / f"{number % 9}" / f"{number}", noise(3000, number))
    for number in range(2):
        make_file(folder / "tree" / "large" / f"{number}", noise(2 * CHUNK + 5, number))
    return folder


@pytest.fixture(scope="module")
def file_host(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with Host(place / "file", home=tmp_path_factory.mktemp("file host"), fault=stall_timeout(1.0)) as host:
        yield host
        assert "Traceback" not in host.stderr


def test_a_host_that_stands_still_for_longer_than_anybody_waits(file_host: Host, place: Path, tmp_path: Path) -> None:
    """The one get gives up, keeps what it has, and says so; the other one waits and goes on by itself."""
    dest, home = tmp_path / "dest", tmp_path / "home"
    options = ("--transport", "tcp", "--connections", "1")
    patient = start_get(
        file_host.address, tmp_path / "patient", *options, "--retry-for", "30s", home=tmp_path / "other"
    )
    with Gate(file_host.port, 9 * MIB) as gate, patient:
        with start_get(gate.address, dest, *options, home=home, fault=stall_timeout(1.0)) as process:
            gate.wait_reached(process)
            file_host.kill(signal.SIGSTOP)
            try:
                gate.open()
                finish(process).check_failed(6)
            finally:
                file_host.kill(signal.SIGCONT)
        assert not dest.exists() and len(leftovers(tmp_path)) >= 2
        rest = run_get(file_host.address, dest, *options, home=home).check_ok()
        assert rest.done["bytes_reused"] >= CHUNK
        finish(patient).check_ok()
    for copy in (dest, tmp_path / "patient"):
        assert facts_of(copy) == facts_of(place / "file")


def test_a_get_that_stands_still_for_longer_than_the_host_waits_goes_on(
    file_host: Host, place: Path, tmp_path: Path
) -> None:
    """Nobody else needs what the host holds for it, so it is borne."""
    dest, options = tmp_path / "dest", ("--transport", "tcp", "--retry-for", "20s")
    with Gate(file_host.port, 9 * MIB) as gate:
        with start_get(gate.address, dest, *options, home=tmp_path / "home") as process:
            gate.wait_reached(process)
            process.kill(signal.SIGSTOP)
            gate.open()
            other = run_get(file_host.address, tmp_path / "other", home=tmp_path / "home 2").check_ok()
            assert other.done["bytes"] == SIZE
            process.kill(signal.SIGCONT)
            finish(process).check_ok()
    assert facts_of(dest) == facts_of(place / "file")


def test_a_source_that_cannot_be_read_to_its_end(place: Path, tmp_path: Path) -> None:
    """That file fails alone, and what came of it counts once the disk reads again."""
    dest, home = tmp_path / "dest", tmp_path / "home"
    with Host(place / "tree", home=tmp_path / "host", fault=failing_reads(CHUNK + 5, "1")) as host:
        port = host.port
        failed = run_get(host.address, dest, home=home).check_clean()
        assert failed.exit_code == 10
        assert [(event["code"], event["path"]) for event in failed.of("error")] == [("remote_io", "large/1")]
        assert failed.of("error")[0]["retryable"]
        assert not (dest / "large" / "1").exists()
        assert whole_files(dest, place / "tree") == 201
    with Host(place / "tree", home=tmp_path / "host", port=port) as host:
        rest = run_get(host.address, dest, home=home).check_ok()
    assert_same_tree(dest, place / "tree")
    assert rest.done["bytes_received"] <= CHUNK + 5


@pytest.mark.parametrize("after", [100_000, 7 * MIB])
def test_a_destination_that_fails_in_the_middle(place: Path, tmp_path: Path, after: int) -> None:
    """In the middle of the small files, and of the large ones."""
    dest, home = tmp_path / "dest", tmp_path / "home"
    with Host(place / "tree", home=tmp_path / "host") as host:
        failed = run_get(host.address, dest, home=home, fault=failing_writes(after)).check_failed(8)
        assert "the disk reported an error" in failed.stderr
        whole_files(dest, place / "tree")
        run_get(host.address, dest, home=home).check_ok()
    assert_same_tree(dest, place / "tree")
    assert not leftovers(dest)


@pytest.mark.parametrize("most", [24, 40])
def test_a_get_with_few_descriptors(place: Path, tmp_path: Path, most: int) -> None:
    """It manages, or it says what is short; the next run with more ends it."""
    dest, home = tmp_path / "dest", tmp_path / "home"
    with Host(place / "tree", home=tmp_path / "host") as host:
        first = run_get(host.address, dest, home=home, fault=few_descriptors(most)).check_clean()
        if first.exit_code:
            first.check_failed(8, 6, 1)  # 6: a further connection could not be had; 1: a library could not be loaded
            assert "too many open files" in first.stderr.lower()
        if dest.exists():
            whole_files(dest, place / "tree")
        run_get(host.address, dest, home=home).check_ok()
    assert_same_tree(dest, place / "tree")
    assert not leftovers(dest)


def test_a_share_with_few_descriptors(place: Path, tmp_path: Path) -> None:
    """It turns away what it cannot serve, says so, and goes on when there is room again."""
    with Host(place / "tree", home=tmp_path / "host", fault=few_descriptors(64)) as host:
        crowd = [socket.create_connection(("127.0.0.1", host.port), timeout=5) for _ in range(100)]
        # Which of the two comes first is up to the machine: too many that are not in yet, or too many in all.
        words = ("said too little were ended", "connections are open")
        host.wait_for("a word about it", lambda: any(word in host.stderr for word in words))
        for one in crowd:
            one.close()
        host.wait_for("room", lambda: _lets_in(host))
        run_get(host.address, tmp_path / "dest", "--retry-for", "10s", home=tmp_path / "home").check_ok()
        assert "Traceback" not in host.stderr
    assert_same_tree(tmp_path / "dest", place / "tree")


def _lets_in(host: Host) -> bool:
    try:
        with ScriptedClient(host.port) as client:
            client.pair()
            return True
    except Exception:  # noqa: BLE001  # turned away, in whatever way
        return False


def test_a_clock_that_is_set_back_on_both_ends(place: Path, tmp_path: Path) -> None:
    """Nothing waits by it, and no content is judged by it."""
    tree, dest, home = tmp_path / "tree", tmp_path / "dest", tmp_path / "home"
    for number in range(30):
        make_file(tree / f"{number}", noise(5000, number))
    make_file(tree / "large", noise(2 * CHUNK + 5))
    with Host(tree, home=tmp_path / "host", fault=CLOCK_SET_BACK) as host:
        run_get(host.address, dest, home=home, fault=CLOCK_SET_BACK).check_ok()
        assert_same_tree(dest, tree)
        make_file(tree / "large", noise(2 * CHUNK + 5, "changed"))
        again = run_get(host.address, dest, "--on-exist", "overwrite", home=home, fault=CLOCK_SET_BACK).check_ok()
        assert again.done["bytes_received"] < 3 * CHUNK
    assert_same_tree(dest, tree)
