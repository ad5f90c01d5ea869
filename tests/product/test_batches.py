"""Trees of small files, as a user copies them: they come in batches, and nobody can tell but by the time it takes."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest

from headrace.protocol.messages import Batch, Error, GetBatch, GetChunk, List, ListPart
from headrace.protocol.session import FEATURES
from headrace.storage.chunks import hash_bytes
from headrace.transport.framed import MessageStream

from .scripted import ScriptedClient, ScriptedHost, file_entry
from .support import (
    KIB,
    Headrace,
    Host,
    assert_same_tree,
    leftovers,
    make_file,
    noise,
    run_get,
    start_get,
    whole_files,
)
from .test_disk import resize, tmpfs


def make_small_files(root: Path, count: int, *, size: int = 10 * KIB, per_folder: int = 100) -> Path:
    """`count` files, most of about `size` bytes, some empty, in folders in folders."""
    rng = random.Random(count)
    for number in range(count):
        folder = root / f"{number // per_folder % 3}" / f"{number // per_folder}"
        length = 0 if number % 17 == 5 else rng.randrange(2 * size)
        make_file(folder / f"{number}", rng.randbytes(length), mode=rng.choice([0o644, 0o600, 0o755, 0o444]))
    return root


@pytest.mark.slow
def test_a_tree_of_small_files_takes_few_requests_and_the_second_time_none(tmp_path: Path) -> None:
    tree, dest = make_small_files(tmp_path / "tree", 1200), tmp_path / "dest"
    with Host(tree, home=tmp_path / "host") as host:
        first = run_get(host.address, dest, home=tmp_path / "home").check_ok()
        assert first.done["files"] == 1200
        assert {event["action"] for event in first.of("file")} == {"fetched"}
        assert len(first.of("file")) == 1200
        assert_same_tree(dest, tree)
        again = run_get(host.address, dest, home=tmp_path / "home").check_ok()
        assert again.done["bytes_received"] == 0


@pytest.mark.parametrize(
    "options",
    [
        (),
        *[
            pytest.param(options, marks=pytest.mark.slow)
            for options in (("--protocol", "7"), ("--io", "plain"), ("--connections", "1"))
        ],
    ],
    ids=str,
)
def test_odd_names_and_empty_files(tmp_path: Path, options: tuple[str, ...]) -> None:
    tree = os.fsencode(tmp_path / "tree")
    names = [b"\xff\xfe", b" ", b"-rf", b"new\nline", b"\xe4\xb8\x96" * 80, b"x" * 255, b"...", b"a\\b", b".hidden"]
    for folder in (b"", b"/\xfd", b"/  /   /    "):
        os.makedirs(tree + folder, exist_ok=True)
        for number, name in enumerate(names):
            if not os.path.exists(tree + folder + b"/" + name):
                make_file(tree + folder + b"/" + name, noise(number * 1000, number))
    with Host(tmp_path / "tree", home=tmp_path / "host") as host:
        run_get(host.address, tmp_path / "dest", *options, home=tmp_path / "home").check_ok()
    assert_same_tree(tmp_path / "dest", tmp_path / "tree")


def test_what_the_host_may_not_read_fails_alone(tmp_path: Path) -> None:
    tree = make_small_files(tmp_path / "tree", 150)
    (tree / "0" / "0" / "3").chmod(0)
    with Host(tree, home=tmp_path / "host", bound=True) as host:
        result = run_get(host.address, tmp_path / "dest", home=tmp_path / "home")
    assert result.exit_code == 10
    assert [(event["path"], event["code"]) for event in result.of("error") if event["path"]] == [("0/0/3", "denied")]
    assert result.done["files"] == 149


def test_files_that_change_or_vanish_after_they_were_listed(tmp_path: Path) -> None:
    """A host that answers as headrace does: one is another by now and comes as it is now, one is gone."""
    content = {b"%d" % number: b"%d" % number * 100 for number in range(50)}
    late = b"another content"

    def batch(host: ScriptedHost, stream: MessageStream, request: GetBatch) -> None:
        if (b"7", file_entry(b"7", late).version) in request.items:  # asked for anew
            host.honest(stream, request)
            return
        paths = [path for path, _ in request.items]
        failed = [number for number, path in enumerate(paths) if path in (b"7", b"9")]
        payload = b"".join(content[path] for path in paths if path not in (b"7", b"9"))
        host.content[b"7"] = late
        host.listing = [(b"", [file_entry(name, host.content[name]) for name in content])]
        sizes = [0 if number in failed else len(content[path]) for number, path in enumerate(paths)]
        codes = ["changed" if paths[number] == b"7" else "not_found" for number in failed]
        texts = [f"it {code}" for code in codes]
        stream.send(Batch(request.id, 0, sizes, failed, codes, texts, hash_bytes(payload)), payload)

    entries = [file_entry(name, data) for name, data in content.items()]
    with ScriptedHost(tmp_path / "host", [(b"", entries)], content, {GetBatch: batch}, features=FEATURES) as host:
        result = run_get(host.address, tmp_path / "dest", "--transport", "tcp", home=tmp_path / "home")
    assert result.exit_code == 10
    assert [(event["path"], event["code"]) for event in result.of("error") if event["path"]] == [("9", "not_found")]
    assert {found.name: found.read_bytes() for found in (tmp_path / "dest").iterdir()} == {
        name.decode(): late if name == b"7" else data for name, data in content.items() if name != b"9"
    }


def test_a_real_host_says_of_each_file_what_became_of_it(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for name in ("stays", "changes", "vanishes", "shrinks", "becomes a link"):
        make_file(tree / "sub" / name, b"content")
    with Host(tree, home=tmp_path / "host") as host, ScriptedClient(host.port) as client:
        client.pair()
        listing, _ = client.ask(List(1, b"sub"))
        assert isinstance(listing, ListPart)
        versions = {entry.name: entry.version for entry in listing.entries}
        assert client.receive()[0] == ListPart(1, b"sub", [], last=True)
        (tree / "sub" / "changes").write_bytes(b"CONTENT")
        (tree / "sub" / "vanishes").unlink()
        os.truncate(tree / "sub" / "shrinks", 3)
        (tree / "sub" / "becomes a link").unlink()
        (tree / "sub" / "becomes a link").symlink_to("stays")
        answer, payload = client.ask(GetBatch(2, [(b"sub/" + name, version) for name, version in versions.items()]))
    assert isinstance(answer, Batch)
    names = list(versions)
    assert payload == b"content"
    assert {names[number]: code for number, code in zip(answer.failed, answer.codes, strict=True)} == {
        b"changes": "changed",
        b"shrinks": "changed",
        b"vanishes": "not_found",
        b"becomes a link": "not_found",
    }


@pytest.mark.parametrize("lie", ["longer", "shorter", "other sizes", "too many", "wrong hash", "a code of ours"])
def test_a_host_that_lies(tmp_path: Path, lie: str) -> None:
    content = {b"a": b"a" * 1000, b"b": b"b" * 1000}

    def batch(host: ScriptedHost, stream: MessageStream, request: GetBatch) -> None:
        payload = b"".join(content[path] for path, _ in request.items)
        sizes = [1000] * len(request.items)
        fields: dict[str, Any] = {"failed": [], "codes": [], "texts": []}
        digest = hash_bytes(payload)
        if lie == "longer":
            payload += b"x"
        if lie == "shorter":
            payload = payload[1:]
        if lie == "other sizes":
            sizes[0], sizes[-1] = sizes[0] - 1, sizes[-1] + 1
        if lie == "too many":
            sizes.append(0)
        if lie == "wrong hash":
            digest = bytes(32)
        if lie == "a code of ours":
            sizes, payload = [0, *sizes[1:]], payload[1000:]
            fields = {"failed": [0], "codes": ["disk"], "texts": ["your disk is full"]}
            digest = hash_bytes(payload)
        stream.send(Batch(request.id, 0, sizes, hash=digest, **fields), payload)

    entries = [file_entry(name, data) for name, data in content.items()]
    with ScriptedHost(tmp_path / "host", [(b"", entries)], content, {GetBatch: batch}, features=FEATURES) as host:
        result = run_get(host.address, tmp_path / "dest", "--transport", "tcp", home=tmp_path / "home")
        if lie == "wrong hash":  # asked again once, then one by one, and those are right
            result.check_ok()
            assert [host.count(GetBatch), host.count(GetChunk)] == [2, 2]
            assert sorted(os.listdir(tmp_path / "dest")) == ["a", "b"]
        else:
            assert result.exit_code == 1
            assert host.count(GetBatch) == 1
            assert lie == "a code of ours" or os.listdir(tmp_path / "dest") == []


@pytest.mark.parametrize("case", ["none", "too many", "dots", "absolute", "no version", "a header without end"])
def test_a_client_that_asks_what_it_may_not(tmp_path: Path, case: str) -> None:
    make_file(tmp_path / "secret", b"never to be seen")
    make_file(tmp_path / "tree" / "a", b"content")
    version = bytes(16)
    items = {
        "none": [],
        "too many": [(b"a", version)] * 1025,
        "dots": [(b"a", version), (b"../secret", version)],
        "absolute": [(os.fsencode(tmp_path / "secret"), version)],
        "no version": [(b"a", b"")],
        "a header without end": [(b"x" * 255, version)] * 4000,
    }[case]
    with Host(tmp_path / "tree", home=tmp_path / "host") as host:
        port = host.port
        with ScriptedClient(port) as client:
            client.pair()
            client.send(GetBatch(1, items))
            said = client.until_closed()
        assert [type(message) for message in said] == [Error]
        assert isinstance(said[0], Error)
        assert (said[0].id, said[0].code) == (0, "protocol")
        with ScriptedClient(port) as client:  # it goes on serving
            client.pair()
            answer, payload = client.ask(GetBatch(1, [(b"a", version), (b"a", version)]))
            assert isinstance(answer, Batch)
            assert (answer.codes, payload) == (["changed", "changed"], b"")
        assert "Traceback" not in host.stderr


def test_a_client_that_did_not_agree_to_batches(tmp_path: Path) -> None:
    make_file(tmp_path / "tree" / "a", b"content")
    with Host(tmp_path / "tree", home=tmp_path / "host") as host:
        with ScriptedClient(host.port) as client:
            client.pair(features=[])
            client.send(GetBatch(1, [(b"a", bytes(16))]))
            (said,) = client.until_closed()
    assert isinstance(said, Error)
    assert said.code == "protocol"


def wait_for_files(process: Headrace, count: int) -> None:
    process.wait_for("files", lambda: len(process.of("file")) >= count or not process.alive())


@pytest.mark.slow
def test_a_killed_get_goes_on_where_it_was(tmp_path: Path) -> None:
    tree, dest = make_small_files(tmp_path / "tree", 3000), tmp_path / "dest"
    rng = random.Random(3)
    with Host(tree, home=tmp_path / "host") as host:
        for _ in range(4):
            with start_get(host.address, dest, home=tmp_path / "home") as process:
                wait_for_files(process, rng.randrange(50, 600))
                process.kill(signal.SIGKILL)
            before = whole_files(dest, tree)  # every name that is there is a whole file, or this says so
            assert leftovers(dest) == []
        result = run_get(host.address, dest, home=tmp_path / "home").check_ok()
    assert_same_tree(dest, tree)
    fetched = sum(event["action"] == "fetched" for event in result.of("file"))
    assert fetched <= 3000 - before


@pytest.mark.slow
def test_a_disk_that_is_full_in_the_middle(tmp_path: Path) -> None:
    tree = make_small_files(tmp_path / "tree", 900)
    with Host(tree, home=tmp_path / "host") as host, tmpfs(tmp_path / "disk", "size=4m") as disk:
        full = run_get(host.address, disk / "dest", home=tmp_path / "home").check_failed(8)
        assert "no space left" in full.stderr
        assert leftovers(disk / "dest") == []
        whole_files(disk / "dest", tree)
        resize(disk, "64m")
        again = run_get(host.address, disk / "dest", home=tmp_path / "home").check_ok()
        assert again.done["bytes_reused"] > 0
        assert_same_tree(disk / "dest", tree)
