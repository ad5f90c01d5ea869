"""Compression as a user meets it: less on the way where the network is slow, nothing at all where it is not."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import zstandard

from headrace.protocol.messages import Chunk, GetBatch, GetChunk
from headrace.protocol.session import FEATURES
from headrace.storage.chunks import hash_bytes
from headrace.transport.framed import MessageStream

from .scripted import ScriptedHost, file_entry
from .support import (
    CHUNK,
    KIB,
    MIB,
    Host,
    Outcome,
    assert_same_tree,
    call_get,
    contents,
    facts_of,
    finish,
    make_file,
    noise,
    run_get,
    start_get,
)

SIZE: Final = CHUNK + 5
WORDS: Final = [b"%s%d" % (word, number) for word in (b"sluice", b"weir", b"head", b"race") for number in range(40)]


def prose(size: int, seed: int = 0) -> bytes:
    """Text that becomes a third of its size or less."""
    return b" ".join(random.Random(seed).choices(WORDS, k=size // 5))[:size]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`share`: text and noise of a chunk and a bit; small, a folder of small texts."""
    folder = tmp_path_factory.mktemp("compress")
    make_file(folder / "share" / "text", prose(SIZE))
    make_file(folder / "share" / "noise", noise(SIZE))
    for number in range(40):
        make_file(folder / "share" / "small" / f"{number}.txt", prose(8 * KIB, number))
    return folder


@pytest.fixture(scope="module")
def limited(place: Path) -> Iterator[Host]:
    with Host(place / "share", home=place / "limited", options=("--limit-rate", "5M")) as host:
        yield host


@pytest.fixture(scope="module")
def fast(place: Path) -> Iterator[Host]:
    with Host(place / "share", home=place / "fast") as host:
        yield host


def check_sums(got: Outcome, size: int) -> dict[str, Any]:
    """The done event, whose figures add up."""
    done = got.check_ok().done
    assert done["bytes"] == done["bytes_received"] + done["bytes_saved"] + done["bytes_reused"] == size
    progress = got.of("progress")[-1]
    assert (progress["bytes_received"], progress["bytes_saved"]) == (done["bytes_received"], done["bytes_saved"])
    assert progress["bytes_done"] == size
    return done


@pytest.mark.slow
def test_text_over_a_limited_rate_takes_a_third_of_the_bytes(limited: Host, place: Path, tmp_path: Path) -> None:
    got = call_get(limited.address, tmp_path / "dest", "--transport", "tcp", home=tmp_path / "home", path="text")
    done = check_sums(got, SIZE)
    assert done["bytes_received"] < SIZE / 2.8
    assert done["bytes_wire"] < SIZE / 2.7
    assert set(done["compression"]) == {"zstd", "small"}, "the last five bytes"
    assert facts_of(tmp_path / "dest") == facts_of(place / "share" / "text")


@pytest.mark.parametrize(
    ("path", "options", "words"),
    [
        ("noise", (), {"entropy", "small"}),
        ("text", ("--compress", "off"), set()),
        ("text", ("--protocol", "7"), set()),
    ],
)
@pytest.mark.slow
def test_what_comes_as_it_is(
    limited: Host, place: Path, tmp_path: Path, path: str, options: tuple[str, ...], words: set[str]
) -> None:
    got = call_get(limited.address, tmp_path / "dest", *options, home=tmp_path / "home", path=path)
    done = check_sums(got, SIZE)
    assert done["bytes_received"] == SIZE
    assert set(done["compression"]) == words
    assert facts_of(tmp_path / "dest") == facts_of(place / "share" / path)


@pytest.mark.parametrize("transport", ["tcp", "quic"])
@pytest.mark.slow
def test_a_level_is_used_on_any_link(fast: Host, place: Path, tmp_path: Path, transport: str) -> None:
    if transport == "quic":
        pytest.importorskip("aiopquic")
    options = ("--compress", "3", "--transport", transport)
    got = call_get(fast.address, tmp_path / "dest", *options, home=tmp_path / "home", path="text")
    assert check_sums(got, SIZE)["bytes_received"] < SIZE / 2.8
    assert facts_of(tmp_path / "dest") == facts_of(place / "share" / "text")


@pytest.mark.slow
def test_auto_on_loopback_compresses_nothing(fast: Host, place: Path, tmp_path: Path) -> None:
    got = call_get(fast.address, tmp_path / "dest", "--transport", "tcp", home=tmp_path / "home")
    done = check_sums(got, sum(file.stat().st_size for file in (place / "share").rglob("*") if file.is_file()))
    assert (done["bytes_saved"], set(done["compression"])) == (0, {"link", "small"})
    assert_same_tree(tmp_path / "dest", place / "share")


@pytest.mark.slow
def test_small_files_come_compressed_together(limited: Host, place: Path, tmp_path: Path) -> None:
    got = call_get(limited.address, tmp_path / "dest", home=tmp_path / "home", path="small")
    done = check_sums(got, 40 * 8 * KIB)
    assert done["bytes_received"] < 40 * 8 * KIB / 2.5
    assert done["compression"]["zstd"] < 10
    assert_same_tree(tmp_path / "dest", place / "share" / "small")


@pytest.mark.slow
def test_without_hashes_it_is_compressed_all_the_same(limited: Host, place: Path, tmp_path: Path) -> None:
    got = call_get(limited.address, tmp_path / "dest", "--no-content-addressing", home=tmp_path / "home", path="text")
    assert check_sums(got, SIZE)["bytes_received"] < SIZE / 2.8
    assert facts_of(tmp_path / "dest") == facts_of(place / "share" / "text")


@pytest.mark.parametrize(
    "options", [("--compress", "off"), ("--data-plane", "clear"), ("--compress", "1", "--protocol", "7")], ids=str
)
@pytest.mark.slow
def test_hosts_and_planes_that_do_not(place: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    own = ("--data-plane", "clear") if "clear" in options else options[2:]
    wish = () if "clear" in options else ("--compress", "3")
    with Host(place / "share", home=tmp_path / "host", options=options[:2]) as host:
        got = call_get(host.address, tmp_path / "dest", *own, *wish, home=tmp_path / "home", path="text")
    assert check_sums(got, SIZE)["bytes_received"] == SIZE
    assert got.done["compression"] == {}


@pytest.mark.slow
def test_a_copy_that_was_interrupted_goes_on(tmp_path: Path) -> None:
    """The journal knows chunks, whatever they came as; what is on the disk is not fetched again."""
    chunks = 4
    make_file(tmp_path / "long", prose(chunks * CHUNK, 9))
    dest, home = tmp_path / "dest", tmp_path / "home"
    with Host(tmp_path / "long", home=tmp_path / "host", options=("--limit-rate", "3M")) as host:
        with start_get(host.address, dest, "--connections", "1", home=home) as process:
            process.wait_for("a chunk", lambda: any(e["bytes_done"] > 1.5 * CHUNK for e in process.of("progress")))
            process.kill()
            process.wait()
        got = run_get(host.address, dest, home=home)
        done = check_sums(got, chunks * CHUNK)
        assert done["bytes_reused"] >= CHUNK
        assert done["bytes_received"] < (chunks * CHUNK - done["bytes_reused"]) / 2.8
        assert facts_of(dest) == facts_of(tmp_path / "long")
        again = run_get(host.address, tmp_path / "again", home=home).check_ok()
    assert (again.done["bytes_received"], again.done["bytes_reused"]) == (0, chunks * CHUNK)


@pytest.mark.slow
def test_a_host_from_before_there_was_compression(tmp_path: Path) -> None:
    content = prose(CHUNK)
    entry = file_entry(b"file", content)
    options = ("--transport", "tcp", "--compress", "9")
    with ScriptedHost(tmp_path / "host", [(b"", [entry])], {b"file": content}) as host:
        got = call_get(host.address, tmp_path / "dest", *options, home=tmp_path / "home")
        requests = [request for request in host.asked if isinstance(request, GetChunk)]
    done = check_sums(got, CHUNK)
    assert (done["bytes_received"], done["compression"]) == (CHUNK, {})
    assert [request.zstd for request in requests] == [0]
    assert (tmp_path / "dest" / "file").read_bytes() == content


def test_options(tmp_path: Path) -> None:
    for options in (("--compress", "20"), ("--compress", "fast"), ("--compress", "3", "--data-plane", "clear")):
        got = call_get("127.0.0.1:1", tmp_path / "dest", *options, home=tmp_path / "home")
        assert got.exit_code == 2
        assert "compress" in got.stderr


# ---- a host that means no good ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["more than it says", "says more than it may", "other bytes", "unasked"])
@pytest.mark.slow
def test_a_bomb(tmp_path: Path, way: str) -> None:
    content = prose(CHUNK)
    bomb = zstandard.ZstdCompressor(level=1).compress(bytes(64 * MIB))
    wrong = zstandard.ZstdCompressor(level=1).compress(content[::-1][: 512 * KIB])

    def answer(host: ScriptedHost, stream: MessageStream, request: GetChunk) -> None:
        digest = hash_bytes(content[request.offset :][: request.length])
        size = {"says more than it may": request.length}.get(way, 512 * KIB)
        payload = bomb if way != "other bytes" else wrong
        for _ in range(request.length // size):
            stream.send(Chunk(request.id, digest, size=size, packed="zstd"), payload)

    entry = file_entry(b"file", content)
    options = ("--transport", "tcp", *(("--compress", "off") if way == "unasked" else ()))
    with ScriptedHost(
        tmp_path / "host", [(b"", [entry])], {b"file": content}, {GetChunk: answer}, features=FEATURES
    ) as host:
        with start_get(host.address, tmp_path / "dest", *options, home=tmp_path / "home") as process:
            got = finish(process, measure=True)
        assert host.count(GetBatch) == 0
        assert host.count(GetChunk) == (2 if way == "other bytes" else 1), "wrong bytes are asked for once more"
    got.check_failed(9 if way == "other bytes" else 1)
    assert contents(tmp_path / "dest") == {}
    assert got.peak_rss < 150 * MIB
