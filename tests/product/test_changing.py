"""Files that change while they are sent: the whole new version arrives, or none; never a mix, never half."""

from __future__ import annotations

import mmap
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from headrace.protocol.messages import Entry, Error, GetChunk, Stat, StatReply
from headrace.storage.manifest import SETTLED
from headrace.transport.framed import MessageStream

from .scripted import ScriptedHost, file_entry
from .support import (
    CHUNK,
    MIB,
    Gate,
    Host,
    call_get,
    facts_of,
    finish,
    leftovers,
    make_file,
    noise,
    run,
    run_get,
    start_get,
    wait_until,
)

SIZE = 24 * MIB
T1 = 1_700_000_000_123_456_789


def shrinks(path: Path) -> None:
    os.truncate(path, 9 * MIB + 5)


def shrinks_to_nothing(path: Path) -> None:
    os.truncate(path, 0)


def grows(path: Path) -> None:
    with path.open("ab") as file:
        file.write(noise(5 * MIB, "more"))


def is_replaced(path: Path) -> None:
    make_file(path.with_name("new"), noise(SIZE, "another"), mtime_ns=T1)
    path.with_name("new").replace(path)


def is_written_over(path: Path) -> None:
    """In place, same size, and somebody sets the time back."""
    with path.open("r+b") as file:
        file.seek(SIZE - 9 * MIB)
        file.write(noise(9 * MIB, "over"))
    os.utime(path, ns=(T1, T1))


def changes_its_mode(path: Path) -> None:
    path.chmod(0o600)


CHANGES = (shrinks, shrinks_to_nothing, grows, is_replaced, changes_its_mode)
IN_PHASE_7 = (shrinks, grows, is_written_over)
CASES = [
    pytest.param(is_written_over, "8", id=is_written_over.__name__),
    *[pytest.param(change, "8", id=change.__name__, marks=pytest.mark.slow) for change in CHANGES],
    *[pytest.param(change, "7", id=f"{change.__name__} in phase 7", marks=pytest.mark.slow) for change in IN_PHASE_7],
]


@pytest.mark.parametrize(("change", "protocol"), CASES)
@pytest.mark.slow
def test_a_file_that(change: Callable[[Path], None], protocol: str, tmp_path: Path) -> None:
    share, dest = tmp_path / "share", tmp_path / "dest"
    make_file(share / "file", noise(SIZE), mtime_ns=T1)
    options = ("--protocol", protocol, "--connections", "1")
    with Host(share, home=tmp_path / "host") as host, Gate(host.port, 10 * MIB) as gate:
        with start_get(gate.address, dest, *options, home=tmp_path / "home") as process:
            gate.wait_reached(process)
            change(share / "file")
            gate.open()
            result = finish(process).check_clean()
        assert result.exit_code in (0, 10), result.stderr
        if result.exit_code:
            assert not (dest / "file").exists()
            assert [event["code"] for event in result.of("error")] == ["changed"]
        else:
            assert facts_of(dest / "file") == facts_of(share / "file")
            assert not leftovers(dest)
        call_get(host.address, dest, home=tmp_path / "home").check_ok()
    assert facts_of(dest / "file") == facts_of(share / "file")


@pytest.mark.parametrize(
    ("path", "exit_code", "protocol"),
    [
        ("", 10, "8"),
        *[pytest.param(*case, marks=pytest.mark.slow) for case in (("file", 3, "8"), ("", 10, "7"), ("file", 3, "7"))],
    ],
)
@pytest.mark.slow
def test_a_file_that_vanishes(path: str, exit_code: int, protocol: str, tmp_path: Path) -> None:
    share, dest = tmp_path / "share", tmp_path / "dest"
    make_file(share / "file", noise(SIZE), mtime_ns=T1)
    make_file(share / "zz" / "other", b"it stays")
    options = ("--protocol", protocol, "--connections", "1")
    with Host(share, home=tmp_path / "host") as host, Gate(host.port, 10 * MIB) as gate:
        with start_get(gate.address, dest, *options, home=tmp_path / "home", path=path) as process:
            gate.wait_reached(process)
            (share / "file").unlink()
            gate.open()
            result = finish(process).check_clean()
    assert result.exit_code == exit_code, result.stderr
    assert [event["code"] for event in result.of("error")] == ["not_found"]
    assert not (dest if path else dest / "file").exists()
    assert not leftovers(tmp_path)
    assert path or (dest / "zz" / "other").read_bytes() == b"it stays"


@pytest.mark.slow
def test_a_file_that_never_stays_the_same(tmp_path: Path) -> None:
    """Each look finds another version; after some attempts it is reported, and the others are there."""
    content = noise(2 * CHUNK)
    looks = []

    def look(host: ScriptedHost, stream: MessageStream, request: Stat) -> None:
        if not request.path:
            return host.honest(stream, request)
        looks.append(request)
        version = len(looks).to_bytes(16, "big")
        return stream.send(StatReply(request.id, file_entry(b"busy", content, version=version)))

    def chunk(host: ScriptedHost, stream: MessageStream, request: GetChunk) -> None:
        if request.path == b"busy":
            return stream.send(Error(request.id, "changed", "busy changed while it was being read"))
        return host.honest(stream, request)

    listing: list[tuple[bytes, list[Entry]]] = [(b"", [file_entry(b"busy", content), file_entry(b"calm", b"calm")])]
    with ScriptedHost(tmp_path / "host", listing, {b"calm": b"calm"}, {Stat: look, GetChunk: chunk}) as host:
        result = run_get(host.address, tmp_path / "dest", home=tmp_path / "home").check_clean()
        assert result.exit_code == 10
        assert [event["code"] for event in result.of("error")] == ["changed"]
        assert result.of("error")[0]["retryable"] is True
        assert (tmp_path / "dest" / "calm").read_bytes() == b"calm"
        assert not (tmp_path / "dest" / "busy").exists()
        # In words, for one file alone.
        env = {"HEADRACE_CODE": "h3ad-race-7e57"}
        words = run(
            "get", "--transport", "tcp", f"{host.address}/busy", str(tmp_path / "x"), home=tmp_path / "home", env=env
        )
        words.check_failed(10)
        assert "Run the same command again" in words.stderr


@pytest.mark.slow
def test_what_matches_of_an_older_version_is_kept(tmp_path: Path) -> None:
    """An interrupted file whose end changed: its beginning is compared, not fetched again."""
    share, dest = tmp_path / "file", tmp_path / "dest"
    make_file(share, noise(SIZE), mtime_ns=T1)
    with Host(share, home=tmp_path / "host") as host, Gate(host.port, 15 * MIB) as gate:
        with start_get(gate.address, dest, "--connections", "1", home=tmp_path / "home") as process:
            gate.wait_reached(process)
            process.wait_for(
                "the bytes to be taken up",
                lambda: any(event["bytes_received"] >= 14 * MIB for event in process.of("progress")),
            )
            process.kill(signal.SIGKILL)
            process.wait()
        grows(share)
        result = run_get(host.address, dest, home=tmp_path / "home").check_ok()
    assert facts_of(dest) == facts_of(share)
    assert result.done["bytes_reused"] >= 2 * CHUNK
    assert result.done["bytes_received"] <= SIZE + 5 * MIB - 2 * CHUNK


@pytest.mark.slow
def test_what_changes_without_a_trace_arrives_all_the_same() -> None:
    """A page of a memory map that was written before can be written again, and the file's times stay as they are. What
    the host remembers is wrong then; it finds out when the client asks again."""
    if not os.path.isdir("/dev/shm"):
        pytest.skip("no tmpfs at /dev/shm")  # elsewhere pages are written back now and then, and then it shows
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        here, file = Path(folder), Path(folder, "file")
        make_file(file, noise(SIZE))
        with file.open("r+b") as opened, mmap.mmap(opened.fileno(), 0) as mapped:
            mapped[:6] = b"before"
            before = file.stat()
            wait_until(lambda: time.time_ns() - before.st_ctime_ns > SETTLED, "the file is no longer new")
            with Host(file, home=here / "host") as host:
                run_get(host.address, here / "one", home=here / "home").check_ok()
                mapped[:6] = b"behind"
                assert file.stat().st_mtime_ns == before.st_mtime_ns
                # A client that had the old content on its disk would take it from there: the host believes in its hash.
                again = run_get(host.address, here / "two", home=here / "another home").check_ok()
        assert (here / "two").read_bytes() == file.read_bytes() != (here / "one").read_bytes()
        assert again.done["bytes_received"] == SIZE + CHUNK


@pytest.mark.slow
def test_a_tree_that_is_rewritten_all_the_while(tmp_path: Path) -> None:
    """Every file is replaced again and again by another whole version; each that arrives is one of them."""
    share, dest = tmp_path / "share", tmp_path / "dest"
    versions = [{n: bytes([65 + n + v]) * (3000 if n % 2 else 5 * MIB) for n in range(8)} for v in range(3)]

    def write(version: dict[int, bytes]) -> None:
        for number, content in version.items():
            (tmp_path / "new").write_bytes(content)
            (tmp_path / "new").replace(share / str(number))

    share.mkdir()
    write(versions[0])
    stop = threading.Event()

    def keep_writing() -> None:
        while not stop.is_set():
            for version in versions:
                write(version)

    with Host(share, home=tmp_path / "host") as host:
        writer = threading.Thread(target=keep_writing)
        writer.start()
        try:
            result = run_get(host.address, dest, home=tmp_path / "home").check_clean()
        finally:
            stop.set()
            writer.join()
        assert result.exit_code in (0, 10), result.stderr
        for path in dest.iterdir():
            if not path.name.startswith("."):
                assert path.read_bytes() in [version[int(path.name)] for version in versions], path
        run_get(host.address, dest, "--on-exist", "overwrite", home=tmp_path / "home").check_ok()
    for number in range(8):
        assert (dest / str(number)).read_bytes() == (share / str(number)).read_bytes()
    assert not leftovers(dest)
