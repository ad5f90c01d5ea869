"""What lies on this disk already is not fetched again, and whatever is wrong with what is known of it harms nothing."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.storage.manifest import SETTLED

from .support import (
    CHUNK,
    MIB,
    Gate,
    Host,
    Outcome,
    assert_same_tree,
    facts_of,
    finish,
    leftovers,
    make_file,
    make_sparse,
    noise,
    run,
    run_get,
    start_get,
    wait_until,
)

SIZE = 24 * MIB
T1 = 1_700_000_000_123_456_789
OFF = "--no-content-addressing"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    make_file(tmp_path / "file", noise(SIZE), mtime_ns=T1)
    return tmp_path / "file"


@pytest.fixture
def host(file: Path, tmp_path: Path) -> Iterator[Host]:
    with Host(file, home=tmp_path / "host") as host:
        yield host


def get(host: Host, dest: Path, *options: str) -> Outcome:
    """A get that has nothing to say on standard error."""
    outcome = run_get(host.address, dest, *options, home=dest.parent / "home").check_ok()
    assert outcome.stderr == ""
    return outcome


def figures(outcome: Outcome) -> tuple[int, int]:
    """(bytes that came, bytes that were here)"""
    return outcome.done["bytes_received"], outcome.done["bytes_reused"]


def change(file: Path, *chunks: int) -> None:
    """Other bytes in these chunks of the file."""
    with file.open("r+b") as content:
        for number in chunks:
            content.seek(number * CHUNK + 5)
            content.write(b"other")


def test_a_second_copy_of_a_tree_is_not_fetched(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    sizes = (CHUNK + 1, 2 * CHUNK, 9 * MIB, 9 * MIB + 1)
    for number, size in enumerate(sizes):
        make_file(tree / str(number % 2) / f"{number}.bin", noise(size, number), mtime_ns=T1 + number)
    make_sparse(tree / "sparse", 12 * MIB, {5 * MIB: b"an island"})
    with Host(tree, home=tmp_path / "host") as host:
        first = get(host, tmp_path / "first")
        assert figures(first)[1] == 0
        second = get(host, tmp_path / "second")
    assert_same_tree(tmp_path / "second", tree)
    assert figures(second) == (0, sum(sizes) + CHUNK), "the holes of the sparse file lie nowhere"
    assert second.done["files"] == len(sizes) + 1
    assert not leftovers(tmp_path / "second")


@pytest.mark.slow
def test_what_changed_is_fetched_and_no_more(host: Host, file: Path, tmp_path: Path) -> None:
    get(host, tmp_path / "first")
    change(file, 0, 5)
    assert figures(get(host, tmp_path / "second")) == (2 * CHUNK, SIZE - 2 * CHUNK)
    assert facts_of(tmp_path / "second") == facts_of(file)


@pytest.mark.slow
def test_a_file_that_grew_is_recognised_by_what_comes_of_it(host: Host, file: Path, tmp_path: Path) -> None:
    get(host, tmp_path / "first")
    with file.open("ab") as content:
        content.write(noise(10 * MIB, "more"))
    # Slowly, and little at a time: what was asked for already cannot be taken from here any more.
    options = ("--limit-rate", "20M", "--connections", "1", "--streams", "1")
    received, reused = figures(get(host, tmp_path / "second", *options))
    assert received + reused == SIZE + 10 * MIB
    assert reused >= SIZE - 4 * CHUNK
    assert facts_of(tmp_path / "second") == facts_of(file)


@pytest.mark.slow
def test_an_existing_file_is_overwritten_with_what_is_here(host: Host, file: Path, tmp_path: Path) -> None:
    get(host, tmp_path / "first")
    make_file(tmp_path / "second", noise(SIZE, "something else"))
    assert figures(get(host, tmp_path / "second", "--on-exist", "overwrite")) == (0, SIZE)
    assert facts_of(tmp_path / "second") == facts_of(file)


@pytest.mark.slow
def test_a_copy_that_was_added_by_hand(host: Host, file: Path, tmp_path: Path) -> None:
    shutil.copyfile(file, tmp_path / "copy")  # with another time
    run("cache", "add", str(tmp_path / "copy"), home=tmp_path / "home").check_ok()
    assert figures(get(host, tmp_path / "dest")) == (0, SIZE)
    assert facts_of(tmp_path / "dest") == facts_of(file)


@pytest.mark.slow
def test_a_copy_that_is_gone_is_no_help_and_no_harm(host: Host, file: Path, tmp_path: Path) -> None:
    get(host, tmp_path / "first")
    (tmp_path / "first").unlink()
    assert figures(get(host, tmp_path / "second")) == (SIZE, 0)


@pytest.mark.slow
def test_a_copy_whose_bytes_changed_without_a_sign_is_found_out(host: Host, file: Path, tmp_path: Path) -> None:
    first = tmp_path / "first"
    get(host, first)
    change(first, 3)
    os.utime(first, ns=(T1, T1))
    with sqlite3.connect(tmp_path / "home" / "index.db") as index:  # the clock of changes cannot be set, only believed
        index.execute("UPDATE files SET ctime_ns = ? WHERE path = ?", (first.stat().st_ctime_ns, os.fsencode(first)))
        assert index.total_changes == 1
    index.close()
    # It is no longer trusted at all then, so how much still comes from it depends on what was in hand.
    received, reused = figures(get(host, tmp_path / "second"))
    assert received >= CHUNK
    assert received + reused == SIZE
    assert facts_of(tmp_path / "second") == facts_of(file)


@pytest.mark.parametrize("damage", ["garbage", "cut", "a folder"])
@pytest.mark.slow
def test_a_damaged_index_is_told_and_costs_nothing_else(host: Host, file: Path, tmp_path: Path, damage: str) -> None:
    get(host, tmp_path / "first")
    index = tmp_path / "home" / "index.db"
    for end in ("-wal", "-shm"):
        (index.parent / (index.name + end)).unlink(missing_ok=True)
    if damage == "a folder":
        index.unlink()
        index.mkdir()
    else:
        content = index.read_bytes()
        index.write_bytes(noise(len(content)) if damage == "garbage" else content[: len(content) // 2 + 100])
    second = run_get(host.address, tmp_path / "second", home=tmp_path / "home").check_ok()
    assert second.stderr.count("\n") == 1
    assert "chunk index" in second.stderr
    assert sum(figures(second)) == SIZE
    assert facts_of(tmp_path / "second") == facts_of(file)
    if damage != "a folder":  # and a new one serves again
        assert figures(get(host, tmp_path / "third")) == (0, SIZE)


@pytest.mark.slow
def test_an_interrupted_get_goes_on_with_what_is_here_by_now(host: Host, file: Path, tmp_path: Path) -> None:
    dest = tmp_path / "dest"
    with Gate(host.port, 12 * MIB) as gate, start_get(gate.address, dest, home=tmp_path / "home") as process:
        gate.wait_reached(process)
        process.wait_for("a chunk", lambda: any(e["bytes_received"] >= 2 * CHUNK for e in process.of("progress")))
        process.kill(signal.SIGKILL)
        process.wait()
    assert leftovers(tmp_path)
    shutil.copyfile(file, tmp_path / "copy")
    run("cache", "add", str(tmp_path / "copy"), home=tmp_path / "home").check_ok()
    assert figures(get(host, dest)) == (0, SIZE), "resumed, or copied"
    assert facts_of(dest) == facts_of(file)
    assert not leftovers(tmp_path)


@pytest.mark.slow
def test_a_kill_while_chunks_are_copied(host: Host, file: Path, tmp_path: Path) -> None:
    get(host, tmp_path / "first")
    change(file, 5)
    second = tmp_path / "second"

    def copied() -> bool:
        # The journal has a record for each chunk that is there: all but the one that changed.
        journal = tmp_path / ".second.headrace-journal"
        return journal.exists() and journal.stat().st_size > 4 * 45

    with Gate(host.port, 64 * 1024) as gate:  # hashes and handshakes pass, the chunk that changed does not
        with start_get(gate.address, second, home=tmp_path / "home") as process:
            process.wait_for("some chunks", copied)
            process.kill(signal.SIGKILL)
            process.wait()
        assert not second.exists()
    assert figures(get(host, second)) == (CHUNK, SIZE - CHUNK)
    assert facts_of(second) == facts_of(file)
    assert not leftovers(tmp_path)


@pytest.mark.slow
def test_two_at_once(host: Host, file: Path, tmp_path: Path) -> None:
    get(host, tmp_path / "first")
    home = tmp_path / "home"
    with (
        start_get(host.address, tmp_path / "a", home=home) as one,
        start_get(host.address, tmp_path / "b", home=home) as other,
    ):
        for process in (one, other):
            assert figures(finish(process).check_ok()) == (0, SIZE)
    assert facts_of(tmp_path / "a") == facts_of(tmp_path / "b") == facts_of(file)


@pytest.mark.parametrize("option", ["--protocol=7", "--io=plain", "--dry-run", OFF])
@pytest.mark.slow
def test_where_it_is_off_everything_is_fetched(host: Host, file: Path, tmp_path: Path, option: str) -> None:
    get(host, tmp_path / "first")
    before = entries(tmp_path / "home")
    second = run_get(host.address, tmp_path / "second", option, home=tmp_path / "home").check_ok()
    assert figures(second) == (0 if option == "--dry-run" else SIZE, 0)
    if option == OFF:
        assert second.stderr == (
            "headrace: warning: chunks are not compared with their hashes; TLS alone protects them.\n"
        ) or [event["message"] for event in second.of("warning")] == [
            "chunks are not compared with their hashes; TLS alone protects them"
        ]
    else:
        assert second.stderr == ""
        assert second.of("warning") == []
    # What came by the baseline has been hashed all the same.
    assert entries(tmp_path / "home") == before + (SIZE // CHUNK if option == "--protocol=7" else 0)


def entries(home: Path) -> int:
    return int(run("cache", "info", "--json", home=home).check_ok().events[0]["entries"])


@pytest.mark.slow
def test_in_the_clear_hashes_are_all_there_is(tmp_path: Path, file: Path) -> None:
    with Host(file, home=tmp_path / "host", options=("--data-plane", "clear")) as host:
        dest, home = tmp_path / "first", tmp_path / "home"
        refused = run_get(host.address, dest, "--data-plane", "clear", OFF, home=home)
        refused.check_failed(2)
        get(host, dest, "--data-plane", "clear")
        assert figures(get(host, tmp_path / "second", "--data-plane", "clear")) == (0, SIZE)
    assert facts_of(tmp_path / "second") == facts_of(file)


@pytest.mark.slow
def test_a_home_that_takes_no_index(host: Host, file: Path, tmp_path: Path) -> None:
    """Paired before, the transfer needs nothing there that it cannot do without."""
    get(host, tmp_path / "first", OFF.replace("--no-", "--"))
    home = tmp_path / "home"
    (home / "index.db").unlink()
    (home / "index.db").symlink_to("/proc/nothing")
    second = run_get(host.address, tmp_path / "second", home=home).check_ok()
    assert figures(second) == (SIZE, 0)
    assert second.stderr.count("\n") <= 1


@pytest.mark.slow
def test_the_cache_command_tells_what_was_saved(host: Host, tmp_path: Path) -> None:
    get(host, tmp_path / "first")
    get(host, tmp_path / "second")
    wait_until(lambda: entries(tmp_path / "home") == 2 * SIZE // CHUNK, "both copies in the index")
    info = run("cache", "info", "--json", home=tmp_path / "home").check_ok().events[0]
    assert info["bytes_saved"] == SIZE
    assert info["files"] == 2


@pytest.mark.slow
def test_a_share_that_was_killed_and_started_again_hashes_nothing_anew(file: Path, tmp_path: Path) -> None:
    wait_until(lambda: time.time_ns() - file.stat().st_ctime_ns > SETTLED, "the file is old enough to be remembered")
    hosts = tmp_path / "host"

    def kept() -> dict[str, int]:
        found: dict[str, int] = run("cache", "info", "--json", home=hosts).check_ok().events[0]
        return found

    with Host(file, home=hosts) as host:
        run_get(host.address, tmp_path / "first", home=tmp_path / "one").check_ok()
        wait_until(lambda: kept()["manifest_hashes"] == SIZE // CHUNK, "the hashes are kept")
        assert kept()["bytes_not_hashed"] == 0
        host.kill()
        host.wait()
    with Host(file, home=hosts) as host:
        run_get(host.address, tmp_path / "second", home=tmp_path / "two").check_ok()
        wait_until(lambda: kept()["bytes_not_hashed"] == SIZE, "what was counted is kept")  # before the host is killed
    assert facts_of(tmp_path / "second") == facts_of(file)
    figures = kept()
    assert (figures["manifest_hits"], figures["manifest_misses"]) == (1, 1)
    assert figures["bytes_not_hashed"] == SIZE
