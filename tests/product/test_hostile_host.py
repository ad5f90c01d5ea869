"""A host that lies: nothing outside the destination changes, nothing false gets a final name, nothing hangs."""

from __future__ import annotations

import os
import shutil
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

import headrace
from headrace.engine.plan import OnExist
from headrace.errors import ConnectionLostError, HeadraceError, IntegrityError, ProtocolError
from headrace.protocol.codes import Code
from headrace.protocol.frames import encode_frame
from headrace.protocol.messages import (
    Chunk,
    Data,
    Entry,
    Error,
    GetChunk,
    GetManifest,
    Goodbye,
    ListPart,
    ManifestPart,
    Message,
    Ping,
    Pong,
    Stat,
    Walk,
)
from headrace.protocol.session import Versions
from headrace.storage.chunks import hash_bytes
from headrace.transport.framed import MessageStream

from .scripted import MTIME, Answer, ScriptedHost, file_entry, folder_entry, link_entry
from .support import (
    CHUNK,
    CODE,
    MIB,
    Host,
    Outcome,
    call,
    call_get,
    finish,
    guarded,
    make_file,
    noise,
    run_get,
    snapshot,
    start_get,
    wait_until,
)

Listing = list[tuple[bytes, list[Entry]]]
SMALL, BIG = b"small content", noise(2 * CHUNK + 5)


@pytest.fixture(scope="module")
def host_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("host") / "home"


@pytest.fixture(scope="module")
def pins(host_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a client keeps that paired with these hosts: pairing anew each time would take a while."""
    home = tmp_path_factory.mktemp("paired")
    with ScriptedHost(host_home) as host:
        headrace.connect(host.target, home=home).close()
    return home / "pins.json"


@pytest.fixture
def here(tmp_path: Path, pins: Path) -> Iterator[Path]:
    """Where `dest` goes, and `home`; beside them `guard`, in which nothing may change."""
    (tmp_path / "home").mkdir(mode=0o700)
    shutil.copy(pins, tmp_path / "home")
    with guarded(tmp_path):
        yield tmp_path


def get(host: ScriptedHost, here: Path, *options: str, **more: Any) -> Outcome:
    more.setdefault("dest", here / "dest")
    return call_get(host.address, more.pop("dest"), *options, home=here / "home", **more).check_clean()


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder)) if folder.exists() else []


# ---- names and places --------------------------------------------------------------------------------------------

BAD_NAMES = [b"../x", b"/abs", b"a/b", b"..", b".", b"", b"nul\0", b"x" * 256, b"x" * 300, b"guard/../../x"]


@pytest.mark.parametrize(
    ("kind", "protocol"),
    [
        ("file", "8"),
        *[
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("folder", "8"), ("link", "8"), ("file", "7"), ("folder", "7"))
        ],
    ],
)
def test_impossible_names(here: Path, host_home: Path, kind: str, protocol: str) -> None:
    """Each for the Python API, which is quick; the last one for the command as well."""

    for name in BAD_NAMES:
        entry = {
            "file": file_entry(name, SMALL),
            "folder": folder_entry(name),
            "link": link_entry(name, b"target"),
        }[kind]
        listing: Listing = [(b"", [file_entry(b"good", SMALL), entry])]
        with ScriptedHost(host_home, listing, {b"good": SMALL, name: SMALL}) as host:
            with headrace.connect(host.target, home=here / "home", protocol=int(protocol)) as remote:
                with pytest.raises(ProtocolError):
                    remote.get("", here / "dest")
                assert set(names(here / "dest")) <= {"good"}
    with ScriptedHost(host_home, listing, {b"good": SMALL}) as host:
        assert get(host, here, "--protocol", protocol).check_failed(1).of("error")[0]["code"] == "protocol"


def test_an_impossible_name_for_the_share_itself(here: Path, host_home: Path) -> None:
    (here / "dest").mkdir()
    for name in (b"../guard", b"/tmp", b"..", b"a/b", b"."):
        for kind in ("d", "f"):
            root = Entry(name, kind, size=5, mtime_ns=MTIME, mode=0o755, version=bytes(16))
            with ScriptedHost(host_home, root=root) as host:
                if name == b"../guard":
                    get(host, here, dest=None, cwd=here / "dest").check_failed(1)
                else:
                    with headrace.connect(host.target, home=here / "home") as remote:
                        with pytest.raises(ProtocolError):
                            remote.stat()
    assert names(here / "dest") == []


@pytest.mark.parametrize("links", ["safe", "all"])
def test_files_in_a_folder_that_is_also_a_link(here: Path, host_home: Path, links: str) -> None:
    listing: Listing = [
        (b"", [link_entry(b"d", bytes(here / "guard")), link_entry(b"e", b"../guard"), folder_entry(b"d")]),
        (b"d", [file_entry(b"evil", SMALL)]),
        (b"e", [file_entry(b"secret", SMALL)]),
    ]
    with ScriptedHost(host_home, listing, {b"d/evil": SMALL, b"e/secret": SMALL}) as host:
        assert get(host, here, "--links", links).exit_code == 10
        get(host, here, "--links", links, "--on-exist", "overwrite")
    assert not (here / "dest" / "d").is_symlink()
    assert (here / "dest" / "d" / "evil").read_bytes() == SMALL


def test_a_link_first_and_files_behind_it_the_next_time(here: Path, host_home: Path) -> None:
    with ScriptedHost(host_home, [(b"", [link_entry(b"d", b"../guard")])]) as host:
        assert get(host, here, "--links", "all").exit_code == 0
        assert (here / "dest" / "d").is_symlink()
        host.listing = [(b"", [folder_entry(b"d")]), (b"d", [file_entry(b"secret", SMALL)])]
        host.content = {b"d/secret": SMALL}
        for on_exist in ("skip-same", "overwrite", "rename"):
            assert get(host, here, "--on-exist", on_exist).exit_code == 10


def test_links_without_end_are_made_early_and_nothing_is_written_through_them(
    here: Path, host_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So many that they do not wait for the end: 4 here. What comes later in their place, or below, fails."""
    monkeypatch.setattr("headrace.client.plan.MAX_LINKS", 4)
    out = [link_entry(b"d%d" % number, b"../guard") for number in range(6)]
    later = [folder_entry(b"d1"), file_entry(b"d2", SMALL), file_entry(b"fine", SMALL)]
    listing: Listing = [(b"", out), (b"", later), (b"d1", [file_entry(b"secret", SMALL)])]
    with ScriptedHost(host_home, listing, {b"d1/secret": SMALL, b"d2": SMALL, b"fine": SMALL}) as host:
        with headrace.connect(host.target, home=here / "home") as remote:
            made = len(out)
            result = remote.get("", here / "dest", links="all")
            assert result.error and result.failed >= 2
    assert sum(path.is_symlink() for path in (here / "dest").iterdir()) == made
    assert (here / "dest" / "fine").read_bytes() == SMALL


def test_links_that_lead_out_are_left_out(here: Path, host_home: Path) -> None:
    targets = [b"../../guard/secret", b"/etc/passwd", b"..", b"sub/../../guard", b"./../guard", b"x/../..", b""]
    entries = [link_entry(b"link%d" % number, target) for number, target in enumerate(targets)]
    listing: Listing = [
        (b"", [*entries, folder_entry(b"sub"), link_entry(b"fine", b"sub")]),
        (b"sub", [link_entry(b"up", b"../fine"), link_entry(b"out", b"../../guard")]),
    ]
    with ScriptedHost(host_home, listing) as host:
        result = get(host, here)
        assert result.exit_code == 10
        assert len(result.of("error")) == len(targets) + 1
        assert names(here / "dest") == ["fine", "sub"]
        assert names(here / "dest" / "sub") == ["up"]


def test_the_same_name_twice(here: Path, host_home: Path) -> None:
    """One of them arrives, whole; a mix never does."""
    other = noise(2 * CHUNK + 5, "other")
    first, second = file_entry(b"x", BIG), file_entry(b"x", other)

    def chunk(host: ScriptedHost, stream: MessageStream, request: GetChunk) -> None:
        content = BIG if request.version == first.version else other
        data = content[request.offset : request.offset + request.length]
        stream.send(Chunk(request.id, hash_bytes(data)), data)

    small = [file_entry(b"s", b"one"), file_entry(b"s", b"two"), folder_entry(b"s"), link_entry(b"s", b"x")]
    listing: Listing = [(b"", [first, second, *small])]
    with ScriptedHost(host_home, listing, {b"s": b"one"}, {GetChunk: chunk}) as host:
        result = get(host, here)
        assert result.exit_code in (1, 8, 10), result.stderr
        if (here / "dest" / "x").exists():
            assert (here / "dest" / "x").read_bytes() in (BIG, other)


def test_a_listing_of_something_that_was_not_asked_for(here: Path, host_home: Path) -> None:
    for directory in (b"", b"other", b"su", b"../sub", b"sub/../..", b"/sub", b"sub//x"):
        listing: Listing = [(b"", [folder_entry(b"sub")]), (directory, [file_entry(b"x", SMALL)])]

        def walk(host: ScriptedHost, stream: MessageStream, request: Walk) -> None:
            for path, entries in host.listing[1:]:
                stream.send(ListPart(request.id, path, entries))
            stream.send(ListPart(request.id, request.path, [], last=True))

        with ScriptedHost(host_home, listing, {b"x": SMALL}, {Walk: walk}) as host:
            with headrace.connect(host.target, home=here / "home") as remote:
                with pytest.raises(ProtocolError):
                    remote.get("sub", here / "dest")
    with ScriptedHost(host_home, listing, {b"x": SMALL}, {Walk: walk}) as host:
        get(host, here, path="sub").check_failed(1)
    assert names(here / "dest") == []


def test_a_folder_that_is_a_file_elsewhere_in_the_listing(here: Path, host_home: Path) -> None:
    listing: Listing = [(b"", [file_entry(b"x", SMALL)]), (b"x", [file_entry(b"y", SMALL)]), (b"x/y/z", [])]
    with ScriptedHost(host_home, listing, {b"x": SMALL, b"x/y": SMALL}) as host:
        assert get(host, here).exit_code in (8, 10)


def test_entries_named_like_files_in_flight(here: Path, host_home: Path) -> None:
    """They could pass off bytes as verified."""
    listing: Listing = [(b"", [file_entry(b".x.headrace-journal", SMALL), file_entry(b"x", BIG)])]
    with ScriptedHost(host_home, listing, {b".x.headrace-journal": SMALL, b"x": BIG}) as host:
        assert get(host, here).exit_code in (8, 10)
    assert not (here / "dest" / ".x.headrace-journal").exists()


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["8", "7"])
def test_an_honest_tree_deeper_than_the_protocol_can_say(tmp_path: Path, protocol: str) -> None:
    """What can be named arrives, the rest is told."""
    deep = b"/".join([b"d"] * 256)
    folder = os.open(tmp_path, os.O_RDONLY)
    os.mkdir("share", dir_fd=folder)
    folder = os.open("share", os.O_RDONLY, dir_fd=folder)
    for _ in range(258):
        with os.fdopen(os.open("file", os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=folder), "wb") as file:
            file.write(SMALL)
        os.mkdir("d", dir_fd=folder)
        folder = os.open("d", os.O_RDONLY, dir_fd=folder)
    with Host(tmp_path / "share", home=tmp_path / "host") as host:
        result = call_get(host.address, tmp_path / "dest", "--protocol", protocol, home=tmp_path / "home").check_clean()
        assert result.exit_code == 10, (result.exit_code, result.stderr)
    assert (tmp_path / "dest" / os.fsdecode(deep[:-2]) / "file").read_bytes() == SMALL


def test_odd_modes_and_times(here: Path, host_home: Path) -> None:
    """A host cannot make a set-uid file here; and times of its choice are taken or not, but never stop anything."""
    entries = [
        file_entry(b"setuid", SMALL, mode=0o6777),
        file_entry(b"early", SMALL, mtime_ns=-(1 << 63)),
        file_entry(b"late", SMALL, mtime_ns=(1 << 63) - 1),
        file_entry(b"unreadable", BIG, mode=0),
        Entry(b"sticky", "d", mtime_ns=MTIME, mode=0o7777),
    ]
    with ScriptedHost(
        host_home, [(b"", entries)], {entry.name: SMALL for entry in entries} | {b"unreadable": BIG}
    ) as h:
        assert get(h, here).exit_code == 0
    assert (here / "dest" / "setuid").stat().st_mode & 0o7777 == 0o777
    assert (here / "dest" / "sticky").stat().st_mode & 0o7777 == 0o777
    assert (here / "dest" / "unreadable").stat().st_mode & 0o7777 == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": -1},
        {"size": (1 << 62) + 1},
        {"mode": 0o10000},
        {"mtime_ns": 1 << 63},
        {"version": b"short"},
        {"version": bytes(17)},
        {"target": b"t" * 5000},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_fields_out_of_range(here: Path, host_home: Path, wrong: dict[str, Any]) -> None:

    with ScriptedHost(host_home, [(b"", [file_entry(b"x", SMALL, **wrong)])]) as host:
        with headrace.connect(host.target, home=here / "home") as remote, pytest.raises(ProtocolError):
            remote.get("", here / "dest")
    assert names(here / "dest") == []


# ---- contents ----------------------------------------------------------------------------------------------------


def corrupting(times: int) -> Answer:
    """The honest chunk with one bit wrong, so many times for each offset."""
    left: dict[tuple[bytes, int], int] = {}

    def chunk(host: ScriptedHost, stream: MessageStream, request: GetChunk) -> None:
        data = bytearray(host.content[request.path][request.offset : request.offset + request.length])
        digest = hash_bytes(data)
        key = request.path, request.offset
        left.setdefault(key, times)
        if left[key]:
            left[key] -= 1
            data[len(data) // 2] ^= 1
        stream.send(Chunk(request.id, digest), memoryview(data))

    return chunk


def test_a_chunk_that_is_damaged_once_is_fetched_again(here: Path, host_home: Path) -> None:
    holes = bytes(CHUNK // 2) + noise(CHUNK // 2) + bytes(CHUNK)
    entries = [file_entry(b"small", SMALL), file_entry(b"big", BIG), file_entry(b"holes", holes, sparse=True)]
    content = {b"small": SMALL, b"big": BIG, b"holes": holes}
    with ScriptedHost(host_home, [(b"", entries)], content, {GetChunk: corrupting(1)}) as host:
        result = get(host, here).check_ok()
        for name, data in content.items():
            assert (here / "dest" / name.decode()).read_bytes() == data
        assert result.done["bytes_received"] >= 2 * (len(BIG) + len(holes))


@pytest.mark.parametrize(("path", "data"), [(b"small", SMALL), (b"big", BIG)])
def test_a_chunk_that_is_always_damaged_is_an_integrity_failure(
    here: Path, host_home: Path, path: bytes, data: bytes
) -> None:
    listing: Listing = [(b"", [file_entry(path, data)])]
    with ScriptedHost(host_home, listing, {path: data}, {GetChunk: corrupting(99)}) as host:
        failed = get(host, here, path=path)
        assert failed.exit_code == 9
        assert [event["code"] for event in failed.of("error")] == ["integrity"]
        assert not (here / "dest").exists()
        options = ("--transport", "tcp")  # this host has nothing else, and a line would say so
        tree = call("get", *options, host.address, str(here / "dest"), home=here / "home", env={"HEADRACE_CODE": CODE})
        tree.check_failed(9)
        assert not (here / "dest" / path.decode()).exists()
        host.answers.clear()
        get(host, here).check_ok()
        assert (here / "dest" / path.decode()).read_bytes() == data


def test_a_hole_whose_hash_is_not_that_of_zeros(here: Path, host_home: Path) -> None:
    def chunk(host: ScriptedHost, stream: MessageStream, request: GetChunk) -> None:
        stream.send(Chunk(request.id, hash_bytes(b"not zeros"), zero=True))

    with ScriptedHost(host_home, [(b"", [file_entry(b"x", BIG, sparse=True)])], {b"x": BIG}, {GetChunk: chunk}) as host:
        assert get(host, here).exit_code == 9
    assert not (here / "dest" / "x").exists()


def send_chunk(change: Callable[[GetChunk, bytes], tuple[Message, bytes]]) -> Answer:
    def chunk(host: ScriptedHost, stream: MessageStream, request: GetChunk) -> None:
        data = host.content[request.path][request.offset : request.offset + request.length]
        stream.send(*change(request, data))

    return chunk


WRONG_ANSWERS: dict[str, Callable[[GetChunk, bytes], tuple[Message, bytes]]] = {
    "longer": lambda request, data: (Chunk(request.id, hash_bytes(data + b"x")), data + b"x"),
    "shorter": lambda request, data: (Chunk(request.id, hash_bytes(data[1:])), data[1:]),
    "nothing": lambda request, data: (Chunk(request.id, hash_bytes(b"")), b""),
    "a hole with bytes": lambda request, data: (Chunk(request.id, hash_bytes(data), zero=True), data),
    "the id of no request": lambda request, data: (Chunk(request.id + 1000, hash_bytes(data)), data),
    "id 0": lambda request, data: (Chunk(0, hash_bytes(data)), data),
    "a negative id": lambda request, data: (Chunk(-request.id, hash_bytes(data)), data),
    "an answer to something else": lambda request, data: (Data(request.id), data),
    "a request": lambda request, data: (Ping(request.id), b""),
    "a handshake again": lambda request, data: (Goodbye(), b""),
    "a short hash": lambda request, data: (Chunk(request.id, hash_bytes(data)[:8]), data),
}


@pytest.mark.parametrize("wrong", WRONG_ANSWERS)
def test_answers_that_are_none(here: Path, host_home: Path, wrong: str) -> None:

    for name, data in ((b"small", SMALL), (b"big", BIG)):
        listing: Listing = [(b"", [file_entry(name, data)])]
        answers: dict[type[Message], Answer] = {GetChunk: send_chunk(WRONG_ANSWERS[wrong])}
        with ScriptedHost(host_home, listing, {name: data}, answers) as host:
            with headrace.connect(host.target, home=here / "home") as remote:
                try:
                    error: HeadraceError | None = remote.get("", here / "dest").error
                except HeadraceError as why:
                    error = why
        assert isinstance(error, ProtocolError | ConnectionLostError | IntegrityError), error
        assert name.decode() not in names(here / "dest")


def test_a_chunk_too_large_for_any_frame(here: Path, host_home: Path) -> None:
    def chunk(host: ScriptedHost, stream: MessageStream, request: GetChunk) -> None:
        stream.send(Chunk(request.id, bytes(32)), bytes(CHUNK + 1))

    with ScriptedHost(host_home, [(b"", [file_entry(b"x", BIG)])], {b"x": BIG}, {GetChunk: chunk}) as host:
        failed = get(host, here).check_failed(1)
        assert "frame" in failed.stderr
    assert "x" not in names(here / "dest")


def test_a_chunk_that_breaks_off(here: Path, host_home: Path) -> None:
    def chunk(host: ScriptedHost, stream: MessageStream, request: GetChunk) -> None:
        stream.stream.send(encode_frame(Chunk(request.id, bytes(32)), request.length) + b"a few bytes")
        stream.close()

    with ScriptedHost(host_home, [(b"", [file_entry(b"x", BIG)])], {b"x": BIG}, {GetChunk: chunk}) as host:
        get(host, here).check_failed(6)
    assert "x" not in names(here / "dest")


MANIFESTS: dict[str, list[tuple[int, int, bool]]] = {
    # (the first index, how many hashes, last)
    "longer": [(0, 4, False), (4, 0, True)],
    "much longer": [(0, 2000, False), (2000, 2000, False), (4000, 0, True)],
    "shorter": [(0, 2, False), (2, 0, True)],
    "empty": [(0, 0, True)],
    "from the middle": [(1, 3, False), (4, 0, True)],
    "backwards": [(2, 1, False), (0, 2, True)],
}


@pytest.mark.parametrize("case", [*MANIFESTS, "half a hash"])
def test_manifests_of_another_length_than_the_file(here: Path, host_home: Path, case: str) -> None:
    """The client asks for one where a file of the same size and another time is there."""
    make_file(here / "dest" / "x", noise(len(BIG), "mine"), mtime_ns=MTIME - 1)
    before = snapshot(here / "dest")

    def manifest(host: ScriptedHost, stream: MessageStream, request: GetManifest) -> None:
        if case == "half a hash":
            stream.send(ManifestPart(request.id, 0, bytes(32 * 3 - 16), last=True))
            return
        for first, count, last in MANIFESTS[case]:
            stream.send(ManifestPart(request.id, first, bytes(32 * count), last))

    with ScriptedHost(host_home, [(b"", [file_entry(b"x", BIG)])], {b"x": BIG}, {GetManifest: manifest}) as host:
        with headrace.connect(host.target, home=here / "home") as remote, pytest.raises(ProtocolError):
            remote.get("", here / "dest", on_exist=OnExist.OVERWRITE)
    assert snapshot(here / "dest") == before


def test_a_file_of_an_impossible_size(here: Path, host_home: Path) -> None:
    for sparse in (True, False):
        listing: Listing = [(b"", [file_entry(b"x", SMALL, size=1 << 62, sparse=sparse)])]
        answer = send_chunk(lambda request, data: (Chunk(request.id, hash_bytes(bytes(CHUNK)), zero=True), b""))
        with ScriptedHost(host_home, listing, {b"x": b""}, {GetChunk: answer}) as host:
            failed = get(host, here).check_failed(8, 10)  # some file systems count it as too large, some as no space
            assert [event["code"] for event in failed.of("error")] == ["disk"]
        assert "x" not in names(here / "dest")


# ---- the protocol itself -----------------------------------------------------------------------------------------


def frame(payload: bytes = b"", **fields: Any) -> bytes:
    """A frame with any header at all."""
    header = msgspec.msgpack.encode(fields)
    return struct.pack(">II", len(header), len(payload)) + header + payload


def test_what_a_later_version_might_add_is_skipped(here: Path, host_home: Path) -> None:
    """Unknown messages with and without payload in between, unknown fields in known ones."""

    class Later(ScriptedHost):
        def answer(self, messages: MessageStream, request: Message) -> None:
            messages.stream.send(frame(type="hint", id=1, what=["ever", {"x": 1}]))
            messages.stream.send(frame(noise(100_000), type="push", id=7))
            if isinstance(request, GetChunk):
                data = self.content[request.path][request.offset : request.offset + request.length]
                digest = hash_bytes(data)
                messages.stream.send(frame(data, type="chunk", id=request.id, hash=digest, zstd=False, more=None))
            else:
                super().answer(messages, request)

    content = {b"small": SMALL, b"big": BIG}
    listing: Listing = [(b"", [file_entry(name, data) for name, data in content.items()])]
    with Later(host_home, listing, content) as host:
        get(host, here).check_ok()
    assert {path.name.encode(): path.read_bytes() for path in (here / "dest").iterdir()} == content


def test_garbage_in_the_middle_of_a_session(here: Path, host_home: Path) -> None:

    garbage = [
        struct.pack(">II", 0xFFFFFFFF, 0xFFFFFFFF),
        struct.pack(">II", 4, 0) + b"\xff\xff\xff\xff",
        frame(type="chunk", id="one"),
        frame(type="chunk"),
        frame(type=7),
        frame(b"x" * 10, type="error", id=1, code="x", message="y"),
        struct.pack(">II", 600 * 1024, 0) + bytes(600 * 1024),
        b"HTTP/1.1 200 OK\r\n\r\n",
    ]
    for data in garbage:

        def answer(host: ScriptedHost, stream: MessageStream, request: Walk, data: bytes = data) -> None:
            stream.stream.send(data)
            stream.close()

        with ScriptedHost(host_home, answers={Walk: answer}) as host:
            with headrace.connect(host.target, home=here / "home") as remote:
                with pytest.raises((ProtocolError, ConnectionLostError, HeadraceError)):
                    remote.get("", here / "dest")


ESCAPES = "\x1b]0;owned\x07\x1b[2J\x1b[31mred\r\n\x9b1A\u202e\x00end"


def test_what_a_host_says_cannot_move_the_cursor(here: Path, host_home: Path) -> None:
    """check_clean looks at every character of standard error; here is where something would come through."""
    env = {"HEADRACE_CODE": CODE}
    error: dict[str, Answer] = {
        "of a request": lambda host, stream, request: stream.send(Error(request.id, "not_found", ESCAPES)),
        "of an unknown kind": lambda host, stream, request: stream.send(Error(request.id, ESCAPES, ESCAPES * 50)),
        "of the connection": lambda host, stream, request: stream.send(Error(0, "internal", ESCAPES)),
    }
    for answer in error.values():
        with ScriptedHost(host_home, answers={Stat: answer}) as host:
            result = call("get", "-v", host.address, str(here / "dest"), home=here / "home", env=env).check_clean()
            assert result.exit_code in (1, 3, 6)
            assert "owned" in result.stderr
    odd = f"{ESCAPES}.txt".replace("\x00", "").encode()
    listing: Listing = [(b"", [file_entry(odd, SMALL), link_entry(b"out", ESCAPES.replace("\0", "/../..").encode())])]
    failing: Answer = lambda host, stream, request: stream.send(Error(request.id, "remote_io", ESCAPES))  # noqa: E731
    with ScriptedHost(host_home, listing, answers={GetChunk: failing}) as host:
        result = call("get", "-vv", host.address, str(here / "dest"), home=here / "home", env=env).check_clean()
        assert result.exit_code == 10
        assert result.stdout.decode().removesuffix("\n").isprintable()
        dry = call("get", "--dry-run", host.address, str(here / "dest"), home=here / "home", env=env).check_clean()
        assert all(line.isprintable() for line in dry.stdout.decode().splitlines())


def test_a_host_that_refuses_in_the_handshake_with_escapes(here: Path, host_home: Path) -> None:

    class Refusing(ScriptedHost):
        def let_in(self, messages: MessageStream) -> None:
            messages.expect()
            messages.send(Error(0, "wrong_code", ESCAPES))
            messages.close()
            raise ConnectionLostError("done")

    with Refusing(host_home) as host:
        get(host, here).check_failed(4)


def test_a_host_that_lies_about_itself(here: Path, host_home: Path) -> None:
    """Escapes in its agent and name; features nobody asked for."""

    class Odd(ScriptedHost):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self._code = Code.parse(CODE)

    with Odd(host_home, [(b"", [file_entry(b"x", SMALL)])], {b"x": SMALL}) as host:
        with headrace.connect(host.target, home=here / "home") as remote:
            assert remote.name.isprintable()
            remote.get("", here / "dest")
    assert (here / "dest" / "x").read_bytes() == SMALL


def test_a_host_that_grants_the_first_connection_only(here: Path, host_home: Path) -> None:
    class Stingy(ScriptedHost):
        granted = 0

        def let_in(self, messages: MessageStream) -> None:
            if self.granted:
                messages.close()
            super().let_in(messages)
            self.granted += 1

    with Stingy(host_home, [(b"", [file_entry(b"x", SMALL)])], {b"x": SMALL}) as host:
        get(host, here).check_failed(6)


@pytest.mark.slow
def test_phase_7_answers_that_are_none(here: Path, host_home: Path) -> None:
    from headrace.protocol.messages import Read

    wrong: list[Answer] = [
        lambda host, stream, request: stream.send(Data(request.id), b"x" * (request.length + 1)),
        lambda host, stream, request: stream.send(Data(request.id), b"x" * (request.length - 1)),
        lambda host, stream, request: stream.send(Data(request.id + 1), b"x" * request.length),
        lambda host, stream, request: stream.send(Chunk(request.id, bytes(32)), b"x" * request.length),
        lambda host, stream, request: stream.send(Pong(request.id)),
    ]
    for answer in wrong:
        with ScriptedHost(
            host_home, [(b"", [file_entry(b"x", BIG)])], {b"x": BIG}, {Read: answer}, versions=Versions(7, 7)
        ) as host:
            with headrace.connect(host.target, home=here / "home") as remote:
                assert remote.protocol == 7
                try:
                    assert remote.get("", here / "dest").error
                except HeadraceError:
                    pass
        assert "x" not in names(here / "dest")


# ---- too much ----------------------------------------------------------------------------------------------------


def endless(make: Callable[[int], Entry], parts: int) -> Answer:
    def walk(host: ScriptedHost, stream: MessageStream, request: Walk) -> None:
        for part in range(parts):
            stream.send(ListPart(request.id, b"", [make(1000 * part + number) for number in range(1000)]))
        stream.send(ListPart(request.id, b"", [], last=True))

    return walk


@pytest.mark.slow
def test_a_listing_without_end_is_taken_only_as_fast_as_its_files(here: Path, host_home: Path) -> None:
    """No chunk is ever answered: the client stops reading, instead of remembering everything."""
    walk = endless(lambda number: file_entry(b"%d" % number, SMALL), 10_000)
    with ScriptedHost(host_home, answers={Walk: walk, GetChunk: lambda host, stream, request: None}) as host:
        with start_get(host.address, here / "dest", home=here / "home") as process:
            wait_until(lambda: host.count(GetChunk) >= 2, "requests for chunks")
            seen = [0, 0.0]

            def stands_still() -> bool:
                process.watch_rss()
                now = max((event["files"] for event in process.of("progress")), default=0)
                if now != seen[0]:
                    seen[:] = [now, time.monotonic()]
                return bool(seen[0]) and time.monotonic() - seen[1] > 0.7

            process.wait_for("the client to stand still", stands_still)
            assert seen[0] < 20_000
            assert process.peak_rss < 150 * MIB
            process.kill(2)
            assert finish(process).exit_code == 130


@pytest.mark.slow
def test_a_listing_of_200_000_entries_stays_in_bounds(here: Path, host_home: Path) -> None:
    def make(number: int) -> Entry:
        if number % 4:
            return link_entry(b"%d" % number, b"target%d" % number)
        return Entry(b"%d" % number, "o")

    with ScriptedHost(host_home, answers={Walk: endless(make, 200)}) as host:
        result = run_get(host.address, here / "dest", "--links", "skip", home=here / "home", measure=True).check_ok()
    assert 0 < result.peak_rss < 300 * MIB
