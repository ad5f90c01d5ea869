"""`headrace cache` as a real process: what it prints, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
from pathlib import Path
from typing import Any

import pytest

from headrace.storage.index import ChunkIndex

from .processes import json_lines, run, start, wait_until
from .test_terminal import Terminal, terminal

__all__ = ["terminal"]  # a fixture

CHUNK = 4 * 1024 * 1024


@pytest.fixture
def footage(tmp_path: Path) -> Path:
    """Two files of more than one chunk, and one that is too small to matter."""
    folder = tmp_path / "footage"
    (folder / "day1").mkdir(parents=True)
    (folder / "a.mov").write_bytes(os.urandom(CHUNK + 10_000))
    (folder / "day1" / "b.mov").write_bytes(os.urandom(2 * CHUNK))
    (folder / "notes.txt").write_text("hello\n")
    return folder


def cache(*arguments: str | bytes | Path, home: Path, code: int = 0, **more: Any) -> str:
    """What the command prints. Nothing on standard error where it ends well."""
    ran = run("cache", *arguments, home=home, **more)
    assert ran.returncode == code, ran.stderr
    assert bool(ran.stderr) == bool(code), ran.stderr
    return ran.stdout.decode()


def complaint(*arguments: str | bytes | Path, home: Path, code: int, **more: Any) -> str:
    """The one line on standard error when it ends badly."""
    ran = run("cache", *arguments, home=home, **more)
    assert ran.returncode == code, ran.stderr
    lines = ran.stderr.decode().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("headrace: ")
    return lines[0]


def info(home: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(cache("info", "--json", home=home))
    return found


def links(folder: Path, count: int) -> None:
    """So many files of 4 MiB, all the same one: there is much to hash, and nothing to write."""
    (folder / "0").write_bytes(os.urandom(CHUNK))
    for number in range(1, count):
        os.link(folder / "0", folder / str(number))


def test_without_a_word_on_what_to_do_it_says_what_there_is(home: Path) -> None:
    ran = run("cache", home=home)

    assert ran.returncode == 2
    assert ran.stdout == b""
    for part in (b"info", b"verify", b"gc", b"clear", b"add"):
        assert b"\n  " + part in ran.stderr


def test_a_new_machine_knows_nothing(home: Path) -> None:
    figures = info(home)

    assert figures.pop("bytes_on_disk") > 0
    assert figures == {
        "event": "info",
        "schema": 1,
        "path": str(home / "index.db"),
        "max_entries": 1_000_000,
        "hit_rate": None,
        "damaged": False,
        **dict.fromkeys(("entries", "files", "bytes_indexed", "stale", "evicted", "dropped"), 0),
        **dict.fromkeys(("asked", "found", "reused", "bytes_saved", "reflink", "copy_file_range", "copy"), 0),
        **dict.fromkeys(("manifest_hashes", "manifest_files", "manifest_bytes_on_disk"), 0),
        **dict.fromkeys(("manifest_hits", "manifest_misses", "bytes_not_hashed"), 0),
    }
    assert not (home / "manifests.db").exists()


def test_a_folder_is_added_once(home: Path, footage: Path) -> None:
    first = cache("add", footage, home=home)
    assert first.startswith("added 2 files, 12.0 MiB hashed in ")
    assert "known" not in first
    again = cache("add", footage, home=home)
    assert again.startswith("added 0 files, 0 B hashed in ")
    assert again.endswith(", 2 files known and unchanged\n")

    assert (info(home)["entries"], info(home)["files"]) == (4, 2)
    assert info(home)["bytes_indexed"] == 3 * CHUNK + 10_000
    assert "4 chunks of 2 files; at most 1,000,000" in cache("info", home=home)


def test_several_paths_one_of_them_a_symlink_that_the_user_named(home: Path, footage: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(footage / "day1")
    cache("add", footage / "a.mov", tmp_path / "link", home=home)

    assert info(home)["files"] == 2


def test_relative_paths_are_those_of_the_caller(home: Path, footage: Path) -> None:
    cache("add", "day1", home=home, cwd=footage)
    with ChunkIndex(home) as index, index.database() as database:
        assert database.file(os.fsencode(footage / "day1" / "b.mov"))


def test_names_that_are_not_utf_8(home: Path, tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/caf\xe9"
    with open(name, "wb") as file:
        file.write(os.urandom(5000))
    cache("add", name, home=home)

    assert info(home)["files"] == 1


def test_adding_as_events(home: Path, footage: Path) -> None:
    (event,) = json_lines(cache("add", "--json", footage, home=home).encode())

    assert event.pop("seconds") >= 0
    size = 3 * CHUNK + 10_000
    assert event == {
        "event": "done",
        "schema": 1,
        "files": 2,
        "bytes": size,
        "hashed": size,
        "added": 2,
        "known": 0,
        "failed": 0,
    }


def test_a_path_that_is_not_there(home: Path) -> None:
    assert "/no/such is not there" in complaint("add", "/no/such", home=home, code=3)


def test_what_cannot_be_read_is_named_and_the_rest_is_added(home: Path, footage: Path) -> None:
    """A path that is too long for the system cannot be read by root either."""
    above = os.open(footage, os.O_RDONLY)
    for _ in range(20):
        os.mkdir("x" * 250, dir_fd=above)
        below = os.open("x" * 250, os.O_RDONLY, dir_fd=above)
        os.close(above)
        above = below
    os.close(above)
    ran = run("cache", "add", "--json", footage, home=home)

    assert ran.returncode == 10
    first, last = ran.stderr.decode().splitlines()
    assert "cannot be read (File name too long)" in first
    assert "1 path could not be added" in last
    events = json_lines(ran.stdout)
    assert [(event["event"], event.get("code")) for event in events] == [
        ("error", "disk"),
        ("done", None),
        ("error", "some_failed"),
    ]
    assert (events[1]["added"], events[1]["failed"]) == (2, 1)


def test_verify_and_gc_of_what_is_right(home: Path, footage: Path) -> None:
    cache("add", footage, home=home)

    assert cache("verify", home=home) == "checked the index and 2 files, all as indexed\n"
    read = cache("verify", "--read-data", home=home)
    assert read.startswith("checked the index and 2 files, 12.0 MiB read in ")
    assert cache("gc", home=home) == "looked at 2 files, all as indexed\n"
    assert cache("gc", "-q", home=home) == ""
    assert json_lines(cache("gc", "--json", home=home).encode()) == [
        {"event": "done", "schema": 1, "files": 2, "stale": 0}
    ]


@pytest.mark.parametrize("command", ["verify", "gc"])
def test_files_that_are_gone_are_forgotten(home: Path, footage: Path, command: str) -> None:
    cache("add", footage, home=home)
    (footage / "a.mov").unlink()

    assert "1 changed or gone and forgotten" in cache(command, home=home)
    assert (info(home)["files"], info(home)["stale"]) == (1, 1)


def test_verify_names_a_file_that_changed_without_a_sign_and_ends_with_9(home: Path, footage: Path) -> None:
    """The index believes another hash of it: as if the disk had changed a bit."""
    cache("add", footage / "a.mov", home=home)
    with sqlite3.connect(home / "index.db") as sql:
        sql.execute("UPDATE chunks SET hash = ? WHERE offset = 0", (b"h" * 32,))
    sql.close()
    assert cache("verify", home=home)
    ran = run("cache", "verify", "--read-data", "--json", home=home)

    assert ran.returncode == 9
    lines = ran.stderr.decode().splitlines()
    assert str(footage / "a.mov") in lines[0]
    assert "1 file changed without a sign of it" in lines[1]
    done, error = json_lines(ran.stdout)
    assert done["different"] == [str(footage / "a.mov")]
    assert (error["event"], error["code"]) == ("error", "integrity")
    assert info(home)["files"] == 0


def test_clear_forgets_everything_and_touches_no_file(home: Path, footage: Path) -> None:
    cache("add", footage, home=home)

    assert cache("clear", home=home) == "forgot 4 chunks of 2 files\n"
    assert info(home)["entries"] == 0
    assert (footage / "a.mov").exists()


def test_the_counters_are_shown(home: Path, footage: Path) -> None:
    cache("add", footage, home=home)
    with ChunkIndex(home) as index:
        with index.database() as database:
            file = database.files_after(0, 1)[0]
            places = database.chunks_of(file)
        index.lookup([places[0].hash, os.urandom(32)])
        index.reused(places[0], "reflink")

    figures = info(home)
    assert (figures["asked"], figures["found"], figures["hit_rate"]) == (2, 1, 0.5)
    assert (figures["reused"], figures["reflink"], figures["bytes_saved"]) == (1, 1, places[0].length)
    text = cache("info", home=home)
    assert "2 chunks, 1 found (50%)" in text
    assert "1 chunk, 4.0 MiB not fetched (reflink 1, copy_file_range 0, copy 0)" in text


@pytest.mark.parametrize("how", ["option", "environment", "file"])
def test_the_bound_can_be_set(home: Path, tmp_path: Path, how: str) -> None:
    for number in range(150):
        (tmp_path / f"file{number}").write_bytes(os.urandom(5000))
    more: dict[str, Any] = {}
    options = ["--cache-entries", "100"] if how == "option" else []
    if how == "environment":
        more["env"] = {"HEADRACE_CACHE_ENTRIES": "100"}
    if how == "file":
        home.mkdir()
        (home / "config.toml").write_text("[cache]\ncache-entries = 100\n")
    cache("add", *options, *tmp_path.glob("file*"), home=home, **more)

    assert 0 < info(home)["entries"] <= 100
    assert info(home)["evicted"] == 150 - info(home)["entries"]


def test_a_bound_that_makes_no_sense(home: Path) -> None:
    assert "--cache-entries" in complaint("info", "--cache-entries", "7", home=home, code=2)


def test_a_damaged_index_is_set_aside_with_a_warning_and_the_command_works(home: Path, footage: Path) -> None:
    home.mkdir()
    (home / "index.db").write_bytes(b"garbage " * 1000)
    ran = run("cache", "add", footage, home=home)

    assert ran.returncode == 0
    assert b"was damaged" in ran.stderr
    assert info(home)["damaged"]
    assert "headrace cache gc deletes it" in cache("info", home=home)
    cache("gc", home=home)
    assert not info(home)["damaged"]


def test_an_index_of_a_newer_version(home: Path) -> None:
    info(home)
    with sqlite3.connect(home / "index.db") as sql:
        sql.execute("PRAGMA user_version = 2")
    sql.close()

    line = complaint("info", home=home, code=8)
    assert "made by a newer headrace" in line
    assert "Update headrace" in line


def test_a_home_that_cannot_be_used(home: Path) -> None:
    home.write_text("")
    for arguments in (("info",), ("add", "/"), ("verify",), ("gc",), ("clear",)):
        # The config file is looked for first, and is not there.
        assert "chunk index is off" in complaint(*arguments, home=home, code=8)


def test_on_a_terminal_there_is_a_progress_line_and_it_goes_away(
    home: Path, terminal: Terminal, tmp_path: Path
) -> None:
    folder = tmp_path / "large"
    folder.mkdir()
    links(folder, 200)
    with start("cache", "add", folder, home=home, stderr=terminal.slave) as process:
        wait_until(lambda: b" hashed  " in terminal.read() or process.poll() is not None)
        out, _ = process.communicate(timeout=20)

    assert process.returncode == 0
    assert b" files found so far" in terminal.read()
    assert terminal.read().endswith(b"\r\x1b[K"), "nothing of it stays"
    assert out.startswith(b"added 200 files, 800 MiB hashed")


@pytest.mark.slow
def test_ctrl_c_ends_it_and_what_was_added_stays(home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    links(folder, 4000)
    process = start("cache", "add", folder, home=home, stderr=subprocess.PIPE)
    wait_until(lambda: (home / "index.db-wal").exists() and (home / "index.db-wal").stat().st_size > 100_000)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)

    assert process.returncode == 130, err
    assert 0 < info(home)["files"] < 4000
    assert cache("verify", home=home).endswith("all as indexed\n")
