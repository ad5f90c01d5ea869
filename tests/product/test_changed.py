"""A file of which an older version is here: what is left of that is not fetched, and nothing false comes of it."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from headrace.protocol.messages import (
    BLOCK_SIZE,
    Blocks,
    Chunk,
    Error,
    GetBlocks,
    GetChunk,
    GetManifest,
    GetRanges,
    ManifestPart,
    Message,
)
from headrace.protocol.session import BLOCKS, FEATURES
from headrace.storage.blocks import block_sums, chunk_places, pack_places, pack_sums
from headrace.storage.chunks import hash_bytes
from headrace.transport.framed import MessageStream

from .scripted import ScriptedHost, file_entry
from .support import (
    CHUNK,
    KIB,
    MIB,
    Host,
    Outcome,
    facts_of,
    leftovers,
    make_file,
    make_sparse,
    noise,
    run_get,
    start_get,
    wait_until,
)

OLD: Final = noise(4 * CHUNK + 99)
T1: Final = 1_700_000_000_123_456_789
OVERWRITE: Final = ("--on-exist", "overwrite")


def update(tmp_path: Path, old: bytes, new: bytes, *options: str) -> Outcome:
    """`old` is here, `new` is fetched over it with real processes, and compared."""
    make_file(tmp_path / "dest", old, mtime_ns=T1)
    make_file(tmp_path / "file", new, mtime_ns=T1 + 1)
    with Host(tmp_path / "file", home=tmp_path / "host") as host:
        outcome = run_get(host.address, tmp_path / "dest", *OVERWRITE, *options, home=tmp_path / "home").check_ok()
    assert facts_of(tmp_path / "dest") == facts_of(tmp_path / "file")
    assert not leftovers(tmp_path)
    return outcome


def received(outcome: Outcome, size: int) -> int:
    done = outcome.done
    assert done["bytes_received"] + done["bytes_reused"] == size
    return int(done["bytes_received"])


def with_writes(content: bytes) -> bytes:
    """Another 4 KiB block in every MiB."""
    new = bytearray(content)
    for start in range(100 * BLOCK_SIZE, len(new), MIB):
        new[start : start + BLOCK_SIZE] = noise(BLOCK_SIZE, start)
    return bytes(new)


EDITS: Final[dict[str, tuple[Callable[[bytes], bytes], int]]] = {
    "more at the front": (lambda old: noise(KIB, "front") + old, 3 * BLOCK_SIZE),
    "more at the end": (lambda old: old + noise(MIB, "end"), MIB + 2 * BLOCK_SIZE),
    "blocks here and there": (with_writes, 16 * BLOCK_SIZE),
    "cut in the middle": (lambda old: old[: 2 * CHUNK + 7] + old[3 * CHUNK :], 3 * BLOCK_SIZE),
}


@pytest.mark.slow
@pytest.mark.parametrize("edit", EDITS)
def test_only_what_changed_is_fetched(tmp_path: Path, edit: str) -> None:
    change, most = EDITS[edit]
    new = change(OLD)
    assert received(update(tmp_path, OLD, new), len(new)) <= most


@pytest.mark.slow
@pytest.mark.parametrize("options", [("--protocol", "7"), ("--no-content-addressing",)], ids=" ".join)
def test_where_there_are_no_hashes_everything_is_fetched(tmp_path: Path, options: tuple[str, ...]) -> None:
    new = noise(KIB, "front") + OLD
    assert received(update(tmp_path, OLD, new, *options), len(new)) == len(new)


@pytest.mark.slow
def test_a_copy_beside_the_old_one_is_made_of_it(tmp_path: Path) -> None:
    make_file(tmp_path / "dest", OLD, mtime_ns=T1)
    make_file(tmp_path / "file", b"new" + OLD, mtime_ns=T1 + 1)
    with Host(tmp_path / "file", home=tmp_path / "host") as host:
        options = ("--on-exist", "rename")
        outcome = run_get(host.address, tmp_path / "dest", *options, home=tmp_path / "home").check_ok()
    assert received(outcome, len(OLD) + 3) <= 3 * BLOCK_SIZE
    assert (tmp_path / "dest").read_bytes() == OLD
    assert (tmp_path / "dest (1)").read_bytes() == b"new" + OLD


@pytest.mark.slow
def test_holes_stay_holes(tmp_path: Path) -> None:
    make_file(tmp_path / "dest", OLD, mtime_ns=T1)
    islands = {5 * MIB: OLD[CHUNK : CHUNK + MIB], 17 * MIB + 4096: b"an island"}
    make_sparse(tmp_path / "file", 20 * MIB, islands)
    with Host(tmp_path / "file", home=tmp_path / "host") as host:
        outcome = run_get(host.address, tmp_path / "dest", *OVERWRITE, home=tmp_path / "home").check_ok()
    assert (tmp_path / "dest").read_bytes() == (tmp_path / "file").read_bytes()
    assert (tmp_path / "dest").stat().st_blocks * 512 <= 2 * MIB
    assert outcome.done["bytes_received"] <= MIB


@pytest.mark.slow
def test_an_update_that_was_killed_goes_on_and_the_old_file_stays_readable(tmp_path: Path) -> None:
    old = noise(6 * CHUNK, "old")
    new = b"!" + b"".join(old[start : start + CHUNK - 9] + noise(MIB, start) for start in range(0, len(old), CHUNK))
    dest = tmp_path / "dest"
    make_file(dest, old, mtime_ns=T1)
    make_file(tmp_path / "file", new, mtime_ns=T1 + 1)
    with Host(tmp_path / "file", home=tmp_path / "host") as host:
        slowly = ("--limit-rate", "4M", *OVERWRITE)
        with start_get(host.address, dest, *slowly, home=tmp_path / "home") as first:
            part = tmp_path / ".dest.headrace-part"
            wait_until(lambda: part.exists() and part.stat().st_blocks * 512 > 5 * MIB, "some of it")
            assert dest.read_bytes() == old
            first.kill(signal.SIGKILL)
            first.wait()
        assert dest.read_bytes() == old
        outcome = run_get(host.address, dest, *OVERWRITE, home=tmp_path / "home").check_ok()
    assert dest.read_bytes() == new
    assert received(outcome, len(new)) <= 6 * MIB + 20 * BLOCK_SIZE
    assert not leftovers(tmp_path)


@pytest.mark.slow
def test_a_part_file_of_a_version_in_between_is_completed_from_the_old_copy(tmp_path: Path) -> None:
    old = noise(4 * CHUNK, "old")
    dest, file = tmp_path / "dest", tmp_path / "file"
    make_file(dest, old, mtime_ns=T1)
    make_file(file, noise(CHUNK, "a") + old, mtime_ns=T1 + 1)
    with Host(file, home=tmp_path / "host") as host:
        with start_get(host.address, dest, "--limit-rate", "1M", *OVERWRITE, home=tmp_path / "home") as first:
            part = tmp_path / ".dest.headrace-part"
            wait_until(lambda: part.exists() and part.stat().st_blocks * 512 > 4 * MIB, "some of it")
            first.kill(signal.SIGKILL)
            first.wait()
        make_file(file, b"b" * 5000 + old, mtime_ns=T1 + 2)
        outcome = run_get(host.address, dest, *OVERWRITE, home=tmp_path / "home").check_ok()
    assert dest.read_bytes() == file.read_bytes()
    assert received(outcome, len(old) + 5000) <= 5 * BLOCK_SIZE


# ---- hosts that lie ------------------------------------------------------------------------------------------------

Answer = Callable[[ScriptedHost, MessageStream, Any], None]
NEW: Final = noise(KIB, "front") + OLD[: 2 * CHUNK]


def blocks(host: ScriptedHost, stream: MessageStream, request: GetBlocks) -> None:
    view = memoryview(NEW)[request.chunk * CHUNK :][:CHUNK]
    marks = [OLD[300_000:300_002], OLD[2_000_000:2_000_002]]
    places = pack_places(chunk_places(view, marks))
    stream.send(Blocks(request.id, pack_sums(block_sums(view)), marks, places))


def ranges(host: ScriptedHost, stream: MessageStream, request: GetRanges) -> None:
    data = b"".join(NEW[start : start + length] for start, length in request.ranges)
    stream.send(Chunk(request.id, hash_bytes(data)), data)


def lie(tmp_path: Path, answers: dict[type[Message], Answer], features: tuple[str, ...] = FEATURES) -> Any:
    """The update of OLD to NEW from a host with these answers: the outcome, and the host."""
    make_file(tmp_path / "dest", OLD, mtime_ns=T1)
    entries = [(b"", [file_entry(b"file", NEW)])]
    own: dict[type[Message], Answer] = {GetBlocks: blocks, GetRanges: ranges, **answers}
    with ScriptedHost(tmp_path / "host", entries, {b"file": NEW}, own, features=features) as host:
        options = (*OVERWRITE, "--transport", "tcp")
        outcome = run_get(host.address, tmp_path / "dest", *options, home=tmp_path / "home", path="file")
    return outcome, host


@pytest.mark.slow
def test_an_honest_script(tmp_path: Path) -> None:
    outcome, host = lie(tmp_path, {})
    assert (tmp_path / "dest").read_bytes() == NEW
    assert received(outcome.check_ok(), len(NEW)) <= 3 * BLOCK_SIZE
    assert host.count(GetChunk) == 0


def wrong_sums(host: ScriptedHost, stream: MessageStream, request: GetBlocks) -> None:
    """Those of the old copy as it lies: they make all of it look unchanged."""
    view = memoryview(OLD)[request.chunk * CHUNK :][: len(NEW[request.chunk * CHUNK :][:CHUNK])]
    stream.send(Blocks(request.id, pack_sums(block_sums(view)), [], b""))


def wrong_marks(host: ScriptedHost, stream: MessageStream, request: GetBlocks) -> None:
    size = min(CHUNK, len(NEW) - request.chunk * CHUNK)
    everywhere = [OLD[:2], b"\0\0"]
    places = [
        (start, check) for start in (0, size - 32) for _, check in chunk_places(memoryview(OLD[:MIB]), everywhere)
    ]
    stream.send(Blocks(request.id, bytes(4 * -(-size // BLOCK_SIZE)), everywhere, pack_places(places[:256])))


def refused(host: ScriptedHost, stream: MessageStream, request: Any) -> None:
    stream.send(Error(request.id, "io", "no"))


def hung_up(host: ScriptedHost, stream: MessageStream, request: Any) -> None:
    stream.close()


def other_bytes(host: ScriptedHost, stream: MessageStream, request: GetRanges) -> None:
    """True to their hash, and not the file's."""
    data = bytes(sum(length for _, length in request.ranges))
    stream.send(Chunk(request.id, hash_bytes(data)), data)


def wrong_hash(host: ScriptedHost, stream: MessageStream, request: GetRanges) -> None:
    data = b"".join(NEW[start : start + length] for start, length in request.ranges)
    stream.send(Chunk(request.id, bytes(32)), data)


@pytest.mark.slow
@pytest.mark.parametrize(
    "answers",
    [
        {GetBlocks: wrong_sums},
        {GetBlocks: wrong_marks},
        {GetBlocks: refused},
        {GetBlocks: hung_up},
        {GetRanges: other_bytes},
        {GetRanges: wrong_hash},
    ],
    ids=lambda answers: next(iter(answers.values())).__name__,
)
def test_what_is_put_together_wrongly_is_fetched_whole(tmp_path: Path, answers: dict[type[Message], Answer]) -> None:
    outcome, host = lie(tmp_path, answers)
    outcome.check_ok()
    assert (tmp_path / "dest").read_bytes() == NEW
    assert host.count(GetChunk) >= 1


def no_blocks(host: ScriptedHost, stream: MessageStream, request: GetBlocks) -> None:
    stream.send(Blocks(request.id, b"", [], b""))


def long_marks(host: ScriptedHost, stream: MessageStream, request: GetBlocks) -> None:
    view = memoryview(NEW)[request.chunk * CHUNK :][:CHUNK]
    stream.send(Blocks(request.id, pack_sums(block_sums(view)), [b"x" * 100_000], b""))


def something_else(host: ScriptedHost, stream: MessageStream, request: Any) -> None:
    stream.send(ManifestPart(request.id, 0, b"", last=True))


@pytest.mark.slow
@pytest.mark.parametrize("answer", [no_blocks, long_marks, something_else], ids=lambda answer: answer.__name__)
def test_what_is_no_answer_ends_the_transfer(tmp_path: Path, answer: Answer) -> None:
    outcome, _ = lie(tmp_path, {GetBlocks: answer})
    outcome.check_failed(1)
    assert (tmp_path / "dest").read_bytes() == OLD


@pytest.mark.slow
def test_a_wrong_manifest_gives_the_file_no_name(tmp_path: Path) -> None:
    def manifest(host: ScriptedHost, stream: MessageStream, request: GetManifest) -> None:
        wrong = [*host.hashes(NEW)[:-1], bytes(32)]
        stream.send(ManifestPart(request.id, 0, b"".join(wrong), last=True))

    outcome, host = lie(tmp_path, {GetManifest: manifest})
    # The chunk is fetched whole then, and is what the host says that it is.
    assert outcome.exit_code == 0 and host.count(GetChunk) == 1
    assert (tmp_path / "dest").read_bytes() == NEW


@pytest.mark.slow
def test_a_host_without_the_feature_is_asked_for_whole_chunks(tmp_path: Path) -> None:
    outcome, host = lie(tmp_path, {}, tuple(feature for feature in FEATURES if feature != BLOCKS))
    assert (tmp_path / "dest").read_bytes() == NEW
    assert received(outcome.check_ok(), len(NEW)) == len(NEW)
    assert host.count(GetBlocks) == host.count(GetRanges) == 0


@pytest.mark.slow
def test_another_file_is_asked_about_a_few_times_only(tmp_path: Path) -> None:
    new = noise(20 * CHUNK, "another")
    assert received(update(tmp_path, noise(20 * CHUNK, "old"), new), len(new)) == len(new)
