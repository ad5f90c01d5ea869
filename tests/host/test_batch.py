"""GetBatch on the host: what comes, what fails alone, and what a client may not ask."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.errors import ProtocolError
from headrace.protocol.messages import (
    KIB,
    MAX_BATCH_FILE,
    MAX_BATCH_ITEMS,
    MIB,
    VERSION_SIZE,
    Batch,
    GetBatch,
)
from headrace.protocol.session import BATCH
from headrace.storage.chunks import hash_bytes
from headrace.storage.tree import SharedTree

from .test_requests import BULK, Conversation

BATCHES: Final = dataclasses.replace(BULK, features=BULK.features | {BATCH})
OTHER_VERSION: Final = bytes(VERSION_SIZE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """share/ with a, empty, sub/{b, c}, large (one byte too many), link -> a, pipe."""
    root = tmp_path / "share"
    (root / "sub").mkdir(parents=True)
    (root / "a").write_bytes(b"a" * 10)
    (root / "empty").write_bytes(b"")
    (root / "sub" / "b").write_bytes(b"b" * 20)
    (root / "sub" / "c").write_bytes(b"c" * MAX_BATCH_FILE)
    (root / "large").write_bytes(b"l" * (MAX_BATCH_FILE + 1))
    (root / "link").symlink_to("a")
    os.mkfifo(root / "pipe")
    return root


@pytest.fixture
def talk(folder: Path) -> Iterator[Conversation]:
    with SharedTree.open([folder]) as tree:
        conversation = Conversation(tree, BATCHES)
        yield conversation
        conversation.handler.close()


def batches(talk: Conversation, items: list[tuple[bytes, bytes]]) -> list[tuple[Batch, bytes]]:
    """The parts of the answer, each checked for what every client relies on."""
    parts: list[tuple[Batch, bytes]] = []
    position = 0
    for message, payload in talk.ask(GetBatch(7, items)):
        assert isinstance(message, Batch)
        assert (message.id, message.first) == (7, position)
        assert sum(message.sizes) == len(payload)
        assert message.hash == hash_bytes(payload)
        assert len(message.failed) == len(message.codes) == len(message.texts)
        position += len(message.sizes)
        parts.append((message, payload))
    assert position == len(items)
    return parts


def item(talk: Conversation, path: bytes) -> tuple[bytes, bytes]:
    return path, talk.entry(path).version


def test_files_of_several_folders_come_in_order(talk: Conversation) -> None:
    paths = [b"a", b"sub/b", b"empty", b"sub/c", b"a"]
    (part, payload), *more = batches(talk, [item(talk, path) for path in paths])
    assert not more
    assert part.sizes == [10, 20, 0, MAX_BATCH_FILE, 10]
    assert payload == b"a" * 10 + b"b" * 20 + b"c" * MAX_BATCH_FILE + b"a" * 10
    assert part.failed == []


def test_what_fails_fails_alone(talk: Conversation, folder: Path) -> None:
    items = [item(talk, b"a"), item(talk, b"sub/b"), item(talk, b"empty")]
    items += [(b"gone", OTHER_VERSION), (b"sub", OTHER_VERSION), (b"link", OTHER_VERSION), (b"pipe", OTHER_VERSION)]
    items += [(b"nowhere/at/all", OTHER_VERSION), (b"a/b", OTHER_VERSION), (b"", OTHER_VERSION)]
    items += [(b".a.headrace-part", OTHER_VERSION), item(talk, b"a")]
    (folder / ".a.headrace-part").write_bytes(b"in flight")
    (folder / "sub" / "b").write_bytes(b"another content")
    ((part, payload),) = batches(talk, items)
    assert payload == b"a" * 20
    assert dict(zip(part.failed, part.codes, strict=True)) == {1: "changed", **dict.fromkeys(range(3, 11), "not_found")}
    assert not any(str(folder) in text for text in part.texts)


def test_more_than_one_part(talk: Conversation, folder: Path) -> None:
    for number in range(30):
        (folder / "sub" / f"{number}").write_bytes(bytes([number]) * 100 * KIB)
    found = batches(talk, [item(talk, f"sub/{number}".encode()) for number in range(30)])
    assert len(found) == 3
    assert b"".join(payload for _, payload in found) == b"".join(bytes([n]) * 100 * KIB for n in range(30))


def test_a_small_buffer_is_held_for_each_part(talk: Conversation) -> None:
    batches(talk, [item(talk, b"sub/c")] * 30)
    figures = talk.handler._buffers.figures()  # type: ignore[attr-defined]
    assert 0 < figures.high_water <= MIB
    assert figures.in_use == 0


def test_reasons_do_not_outgrow_a_header(talk: Conversation) -> None:
    """1,024 long names in a script that takes three bytes a character."""
    path = b"/".join(["\u4e16".encode() * 80] * 2)
    found = batches(talk, [(path + b"%d" % number, OTHER_VERSION) for number in range(MAX_BATCH_ITEMS)])
    assert sum(len(part.failed) for part, _ in found) == MAX_BATCH_ITEMS
    assert len(found) > 1


@pytest.mark.parametrize(
    "items",
    [
        pytest.param([], id="none"),
        pytest.param([(b"a", OTHER_VERSION)] * (MAX_BATCH_ITEMS + 1), id="too many"),
        pytest.param([(b"a", b"")], id="no version"),
        pytest.param([(b"a", bytes(1000))], id="a long version"),
        *[
            pytest.param([(path, OTHER_VERSION)], id=repr(path[:12]))
            for path in (
                b"../a",
                b"sub/../a",
                b"/a",
                b"sub//b",
                b"./a",
                b"a\0",
                b"sub/",
                b"x" * 256,
                b"y/" * 2100 + b"y",
            )
        ],
        pytest.param([(b"a", OTHER_VERSION), (b"/a", OTHER_VERSION)], id="a slash after its like"),
        pytest.param([(b"sub/b", OTHER_VERSION), (b"sub/..", OTHER_VERSION)], id="dots in an open folder"),
    ],
)
def test_what_no_client_may_ask(talk: Conversation, items: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(ProtocolError):
        talk.handler.handle(GetBatch(1, items))


def test_a_file_over_the_limit(talk: Conversation) -> None:
    for before in ([], [item(talk, b"a")]):
        with pytest.raises(ProtocolError):
            talk.handler.handle(GetBatch(1, [*before, item(talk, b"large")]))


def test_more_in_all_than_the_limit(talk: Conversation) -> None:
    with pytest.raises(ProtocolError):
        talk.handler.handle(GetBatch(1, [item(talk, b"sub/c")] * 33))


def test_only_where_both_agreed(folder: Path) -> None:
    for agreed in (BULK, dataclasses.replace(BATCHES, version=7)):
        with SharedTree.open([folder]) as tree, pytest.raises(ProtocolError):
            Conversation(tree, agreed).handler.handle(GetBatch(1, [(b"a", OTHER_VERSION)]))


def test_a_share_of_one_file_and_of_several(folder: Path, tmp_path: Path) -> None:
    with SharedTree.open([folder / "a"]) as tree:
        talk = Conversation(tree, BATCHES)
        assert batches(talk, [item(talk, b"")])[0][1] == b"a" * 10
    with SharedTree.open([folder / "a", folder / "sub"]) as tree:
        talk = Conversation(tree, BATCHES)
        assert batches(talk, [item(talk, b"a"), item(talk, b"sub/b"), item(talk, b"a")])[0][1] == b"abba".replace(
            b"bb", b"b" * 20
        ).replace(b"a", b"a" * 10)


def test_a_folder_that_is_swapped_for_a_link_leads_nowhere(talk: Conversation, folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (folder / "sub" / "b").rename(outside / "b")  # the same file, and so the same version but for its ctime
    wanted = item(talk, b"sub/c")
    (folder / "sub").rename(tmp_path / "moved")
    (folder / "sub").symlink_to(tmp_path / "moved")
    ((part, payload),) = batches(talk, [wanted])
    assert (part.codes, payload) == (["not_found"], b"")


def test_a_file_that_changes_while_it_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with SharedTree.open([folder]) as tree:
        talk = Conversation(tree, BATCHES)
        items = [item(talk, b"a"), item(talk, b"sub/b")]
        honest = os.preadv

        def meddling(fd: int, buffers: list[memoryview], offset: int) -> int:
            done = honest(fd, buffers, offset)
            if done == 10:
                with (folder / "a").open("ab") as file:
                    file.write(b"more")
            return done

        monkeypatch.setattr(os, "preadv", meddling)
        ((part, payload),) = batches(talk, items)
    assert (part.failed, part.codes, payload) == ([0], ["changed"], b"b" * 20)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    wanted=st.lists(
        st.tuples(st.sampled_from([b"a", b"empty", b"sub/b", b"gone", b"sub/c"]), st.booleans()),
        min_size=1,
        max_size=40,
    )
)
def test_whatever_is_asked_every_item_is_answered_once(talk: Conversation, wanted: list[tuple[bytes, bool]]) -> None:
    sizes = {b"a": 10, b"empty": 0, b"sub/b": 20, b"sub/c": MAX_BATCH_FILE}
    items = [(path, talk.entry(path).version if right and path != b"gone" else OTHER_VERSION) for path, right in wanted]
    if sum(sizes.get(path, 0) for path, right in wanted if right) > 4 * MIB:
        return
    found = batches(talk, items)
    assert [size for part, _ in found for size in part.sizes] == [
        sizes[path] if right and path != b"gone" else 0 for path, right in wanted
    ]
    codes = {number: code for part, _ in found for number, code in zip(part.failed, part.codes, strict=True)}
    assert codes == {
        number: "not_found" if path == b"gone" else "changed"
        for number, (path, right) in enumerate(wanted)
        if path == b"gone" or not right
    }
