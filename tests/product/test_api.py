"""What the documentation teaches of the Python API, against a share in a process of its own."""

from __future__ import annotations

import io
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import headrace
from headrace.errors import (
    NotFoundError,
    SourceChangedError,
    UnreachableError,
    UsageError,
    WrongCodeError,
)

from .support import (
    CHUNK,
    CODE,
    KIB,
    MIB,
    WRONG_CODE,
    Host,
    assert_same_tree,
    contents,
    free_port,
    make_file,
    noise,
    snapshot,
)

BIG = noise(9 * MIB + 77)
LINES = b"".join(b"line %d %s\n" % (number, b"x" * (number % 200)) for number in range(5000))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("api")
    make_file(folder / "share" / "big.bin", BIG, mtime_ns=1_700_000_000_123_456_789)
    make_file(folder / "share" / "lines.txt", LINES, mode=0o640)
    make_file(folder / "share" / "empty", b"")
    make_file(bytes(folder / "share") + b"/day 1/caf\xe9", b"latin")
    (folder / "share" / "link").symlink_to("lines.txt")
    return folder


@pytest.fixture(scope="module")
def host(place: Path) -> Iterator[Host]:
    with Host(place / "share", home=place / "host") as host:
        yield host


@pytest.fixture(params=[8, 7])
def remote(request: pytest.FixtureRequest, host: Host, place: Path) -> Iterator[headrace.RemoteShare]:
    with headrace.connect(f"{CODE}@{host.address}", protocol=request.param, home=place / "home") as remote:
        assert remote.protocol == request.param
        yield remote


def test_looking_around(remote: headrace.RemoteShare, place: Path) -> None:
    assert remote.name == "share"
    assert [info.name for info in remote.ls()] == ["big.bin", "day 1", "empty", "lines.txt", "link"]
    assert [info.kind for info in remote.ls()] == ["file", "dir", "file", "file", "link"]
    big = remote.stat("big.bin")
    assert (big.path, big.size, big.mtime_ns, big.mode) == ("big.bin", len(BIG), 1_700_000_000_123_456_789, 0o644)
    assert remote.stat("/lines.txt").mode == 0o640
    assert remote.stat("link").target == "lines.txt"
    assert remote.stat().kind == "dir"
    (odd,) = remote.ls("day 1")
    assert odd.path == "day 1/caf\udce9"
    with remote.open(odd.path) as file:
        assert file.read() == b"latin"
    assert [info.path for info in remote.ls("empty")] == ["empty"]
    found = {info.path.encode("utf-8", "surrogateescape") for info in remote.walk()}
    assert found == snapshot(place / "share").keys() - {b""}


def test_reading_at_random_is_reading_the_local_file(remote: headrace.RemoteShare, place: Path) -> None:
    rng = random.Random(3)
    with remote.open("big.bin") as far, open(place / "share" / "big.bin", "rb", buffering=0) as near:
        assert far.size == len(BIG)
        for _ in range(60):
            offset = rng.randrange(len(BIG) + 1000)
            length = rng.choice([1, 100, 4096, 128 * KIB, 128 * KIB + 1, MIB])
            assert far.seek(offset) == near.seek(offset)
            want = near.read(length)
            got = b""
            while len(got) < len(want):  # like every raw file it may give less than was asked for
                piece = far.read(length - len(got))
                assert piece
                got += piece
            assert got == want
            assert far.tell() == near.tell()
        assert far.seek(-10, io.SEEK_END) == len(BIG) - 10
        assert far.read(100) == BIG[-10:]
        assert far.read(100) == b""
        assert far.seek(5) == 5
        assert far.seek(10, io.SEEK_CUR) == 15
        assert far.read(3) == BIG[15:18]
        with pytest.raises(ValueError, match="before the start"):
            far.seek(-1)


def test_reading_across_blocks_and_from_end_to_end(remote: headrace.RemoteShare) -> None:
    with remote.open("big.bin") as file:
        assert file.read() == BIG
        file.seek(CHUNK - 5)
        assert io.BufferedReader(file).read(10) == BIG[CHUNK - 5 : CHUNK + 5]
    with remote.open("big.bin") as file:
        buffer = bytearray(300 * KIB)
        done = bytearray()
        while count := file.readinto(buffer):
            done += buffer[:count]
        assert done == BIG
    with remote.open("empty") as file:
        assert file.read() == b""
        assert file.readinto(bytearray(10)) == 0


def test_it_is_a_file_like_any_other(remote: headrace.RemoteShare) -> None:
    with io.BufferedReader(remote.open("lines.txt")) as buffered:
        assert list(buffered) == LINES.splitlines(keepends=True)
    with io.TextIOWrapper(io.BufferedReader(remote.open("lines.txt")), "ascii") as text:
        assert text.read() == LINES.decode()
    file = remote.open("lines.txt")
    assert (file.readable(), file.seekable(), file.writable()) == (True, True, False)
    assert file.readline() == b"line 0 \n"
    with pytest.raises(io.UnsupportedOperation):
        file.write(b"x")
    file.close()
    with pytest.raises(ValueError, match="closed"):
        file.read(1)


def test_several_threads_share_a_connection(remote: headrace.RemoteShare) -> None:
    failures: list[object] = []

    def read(seed: int) -> None:
        rng = random.Random(seed)
        with remote.open("big.bin") as file:
            for _ in range(10):
                offset = rng.randrange(len(BIG) - 100)
                file.seek(offset)
                if (got := file.read(100)) != BIG[offset : offset + len(got)]:
                    failures.append(offset)
                if len(remote.ls()) != 5:
                    failures.append("ls")

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert not failures


def test_fetching(remote: headrace.RemoteShare, place: Path, tmp_path: Path) -> None:
    result = remote.get("", tmp_path / "dest")
    assert (result.failed, result.error, result.protocol) == (0, None, remote.protocol)
    assert_same_tree(tmp_path / "dest", place / "share")
    assert remote.get("", tmp_path / "dest").bytes_received == 0
    one = remote.get("lines.txt", tmp_path / "copy.txt")
    assert (one.files, one.bytes_received) == (1, len(LINES))
    assert (tmp_path / "copy.txt").read_bytes() == LINES
    # The session is as good as before.
    assert remote.stat("empty").size == 0
    some = remote.get("", tmp_path / "some", include=("*.txt",))
    assert contents(tmp_path / "some").keys() == {b"lines.txt"}
    assert some.files == 1


def test_what_is_not_there(remote: headrace.RemoteShare) -> None:
    for call in (remote.stat, remote.open, remote.ls, remote.get):
        with pytest.raises(NotFoundError, match="nothing"):
            call("nothing")
    with pytest.raises(NotFoundError, match="not a file"):
        remote.open("day 1")
    with pytest.raises(NotFoundError, match="not a file"):
        remote.open("link")
    for path in ("../x", "a\0b", "x" * 300):
        with pytest.raises(UsageError):
            remote.stat(path)
    assert remote.stat("big.bin").size == len(BIG)


def test_a_path_in_the_target_is_where_it_starts(host: Host, tmp_path: Path) -> None:
    with headrace.connect(f"headrace://{CODE}@{host.address}/day%201", home=tmp_path / "home") as remote:
        assert [info.kind for info in remote.ls()] == ["file"]
    with headrace.connect(f"{host.address}/big.bin", code=CODE, home=tmp_path / "home") as remote:
        assert remote.stat().size == len(BIG)
        with remote.open() as file:
            assert file.read(5) == BIG[:5]


def test_who_does_not_get_in(host: Host, tmp_path: Path) -> None:
    with pytest.raises(WrongCodeError):
        headrace.connect(f"{WRONG_CODE}@{host.address}", home=tmp_path / "home")
    with pytest.raises(UnreachableError):
        headrace.connect(f"{CODE}@127.0.0.1:{free_port()}", home=tmp_path / "home")
    for target in ("", "not a code!", f"{CODE}@", f"{CODE}@host:99999", f"{CODE}@{host.address}/../x"):
        with pytest.raises(UsageError) as refused:
            headrace.connect(target, home=tmp_path / "home")
        assert "7e57" not in str(refused.value)


@pytest.mark.parametrize("protocol", [8, 7])
def test_an_open_file_that_changes_is_told(tmp_path: Path, protocol: int) -> None:
    make_file(tmp_path / "file", noise(MIB))
    with headrace.share(tmp_path / "file", bind="127.0.0.1", home=tmp_path / "host") as shared:
        with headrace.connect(shared.target, protocol=protocol, home=tmp_path / "home") as remote:
            with remote.open() as file:
                assert file.read(10) == noise(MIB)[:10]
                make_file(tmp_path / "file", noise(MIB, "new"))
                file.seek(MIB // 2)
                with pytest.raises(SourceChangedError):
                    file.read(10)
            with remote.open() as file:
                assert file.read() == noise(MIB, "new")


def test_sharing_from_a_program(tmp_path: Path) -> None:
    """The first example of the documentation; and everybody can connect to `target`."""
    make_file(tmp_path / "footage" / "day1" / "a.mov", BIG)
    events: list[dict[str, object]] = []
    with headrace.share(
        tmp_path / "footage", bind="127.0.0.1", home=tmp_path / "host", on_event=events.append
    ) as shared:
        assert shared.target == f"{shared.code.text}@127.0.0.1:{shared.port}"
        with headrace.connect(shared.target, home=tmp_path / "home") as remote:
            assert [entry.path for entry in remote.ls()] == ["day1"]
            with remote.open("day1/a.mov") as file:
                file.seek(1_000_000)
                assert file.read(4096) == BIG[1_000_000:1_004_096]
            remote.get("day1", tmp_path / "copies" / "day1")
        assert (tmp_path / "copies" / "day1" / "a.mov").read_bytes() == BIG
    assert {event["event"] for event in events} == {"peer", "transfer"}
    with pytest.raises(UnreachableError):
        headrace.connect(shared.target, home=tmp_path / "home")


def test_what_cannot_be_shared(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        headrace.share(tmp_path / "nothing", home=tmp_path / "host")
    with headrace.share(tmp_path, bind="127.0.0.1", home=tmp_path / "host") as first:
        with pytest.raises(UsageError, match="in use"):
            headrace.share(tmp_path, bind="127.0.0.1", port=first.port, home=tmp_path / "host")
    with pytest.raises(UsageError, match="no address"):
        headrace.share(tmp_path, bind="192.0.2.1", home=tmp_path / "host")
