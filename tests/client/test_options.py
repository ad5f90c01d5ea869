"""Options given as words: they mean what they say, or are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import headrace
from headrace.client.get import GetOptions, Links
from headrace.engine.plan import OnExist
from headrace.errors import ConnectionLostError, DestinationExistsError, UsageError


def test_words_become_options() -> None:
    options: Any = GetOptions(on_exist="overwrite", links="skip")  # type: ignore[arg-type]
    assert options.on_exist is OnExist.OVERWRITE
    assert options.links is Links.SKIP


@pytest.mark.parametrize("wrong", [{"on_exist": "sometimes"}, {"links": "none"}])
def test_other_words_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        GetOptions(**wrong)


@pytest.fixture
def remote(tmp_path: Path) -> Any:
    shared = tmp_path / "shared"
    (shared / "sub").mkdir(parents=True)
    for name in ("a", "b", "sub/c"):
        (shared / name).write_bytes(name.encode())
    (shared / "out").symlink_to("/etc/hostname")
    with (
        headrace.share(shared, bind="127.0.0.1", home=tmp_path / "host") as host,
        headrace.connect(host.target, home=tmp_path / "client") as connected,
    ):
        yield connected


def test_links_that_lead_outside_are_left_out_by_word_too(remote: Any, tmp_path: Path) -> None:
    result = remote.get("", tmp_path / "dest", links="safe")
    assert result.failed == 1
    assert not (tmp_path / "dest" / "out").is_symlink()


def test_a_share_is_of_use_after_a_transfer_that_failed(remote: Any, tmp_path: Path) -> None:
    remote.get("", tmp_path / "dest", links="skip")
    with pytest.raises(DestinationExistsError):
        remote.get("", tmp_path / "dest", on_exist="fail")
    assert [entry.name for entry in remote.ls()] == ["a", "b", "out", "sub"]
    assert remote.get("", tmp_path / "dest2", links="skip").files == 3


def test_lanes_are_given_back(remote: Any, tmp_path: Path) -> None:
    for number in range(4):
        remote.get("", tmp_path / f"dest{number}", links="skip")
    assert len(remote._session._lanes) == 1


def test_a_walk_leaves_room_for_other_questions(remote: Any) -> None:
    assert {entry.path: remote.stat(entry.path).size for entry in remote.walk() if entry.kind == "file"} == {
        "a": 1,
        "b": 1,
        "sub/c": 5,
    }


def test_a_closed_share_says_so(remote: Any) -> None:
    remote.close()
    with pytest.raises(ConnectionLostError):
        remote.ls()
