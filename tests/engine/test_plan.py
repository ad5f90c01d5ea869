"""What is done with a file, given what lies at its destination: the whole table."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import pytest

from headrace.engine.plan import Action, OnExist, decide
from headrace.protocol.messages import Entry

MTIME: Final = 1_700_000_000_123_456_789
ENTRY: Final = Entry(b"a.mov", "f", size=5, mtime_ns=MTIME, mode=0o644, version=bytes(16))
THERE: Final = ("nothing", "same", "other time", "other size", "newer and larger", "folder", "link", "dangling", "fifo")


def existing(place: Path, what: str) -> os.stat_result | None:
    """The lstat of a destination with that there."""
    path = place / "a.mov"
    if what == "nothing":
        return None
    if what == "folder":
        path.mkdir()
    elif what == "fifo":
        os.mkfifo(path)
    elif what == "link":
        (place / "other").write_bytes(b"12345")
        os.utime(place / "other", ns=(MTIME, MTIME))
        path.symlink_to("other")
    elif what == "dangling":
        path.symlink_to("5char")
    else:
        path.write_bytes(b"1234567" if what in ("other size", "newer and larger") else b"12345")
        mtime = {"same": MTIME, "other time": MTIME + 1, "other size": MTIME, "newer and larger": MTIME + 10**9}[what]
        os.utime(path, ns=(mtime, mtime))
    return path.lstat()


@pytest.mark.parametrize("checksum", [False, True])
@pytest.mark.parametrize("on_exist", [OnExist.SKIP_SAME, OnExist.OVERWRITE, OnExist.RENAME])
@pytest.mark.parametrize(
    ("there", "action", "with_checksum"),
    [
        ("nothing", Action.FETCH, Action.FETCH),
        ("same", Action.SAME, Action.COMPARE),
        ("other time", Action.COMPARE, Action.COMPARE),
        ("other size", Action.DIFFERENT, Action.DIFFERENT),
        ("newer and larger", Action.DIFFERENT, Action.DIFFERENT),
        ("folder", Action.OCCUPIED, Action.OCCUPIED),
        ("fifo", Action.OCCUPIED, Action.OCCUPIED),
        ("link", Action.DIFFERENT, Action.DIFFERENT),
        ("dangling", Action.DIFFERENT, Action.DIFFERENT),
    ],
)
def test_what_lies_there_decides(
    tmp_path: Path, there: str, action: Action, with_checksum: Action, on_exist: OnExist, checksum: bool
) -> None:
    """What `--on-exist` wants comes in where the content is known to be another."""
    wanted = with_checksum if checksum else action
    assert decide(ENTRY, existing(tmp_path, there), on_exist, checksum=checksum) is wanted


@pytest.mark.parametrize("checksum", [False, True])
@pytest.mark.parametrize("there", THERE)
def test_fail_takes_nothing_but_an_empty_place(tmp_path: Path, there: str, checksum: bool) -> None:
    wanted = Action.FETCH if there == "nothing" else Action.FORBIDDEN
    assert decide(ENTRY, existing(tmp_path, there), OnExist.FAIL, checksum=checksum) is wanted


def test_an_empty_file_is_one_like_any_other(tmp_path: Path) -> None:
    empty = Entry(b"a.mov", "f", size=0, mtime_ns=MTIME, version=bytes(16))
    path = tmp_path / "a.mov"
    path.touch()
    assert decide(empty, path.lstat(), OnExist.SKIP_SAME, checksum=False) is Action.COMPARE
    os.utime(path, ns=(MTIME, MTIME))
    assert decide(empty, path.lstat(), OnExist.SKIP_SAME, checksum=False) is Action.SAME


def test_the_words_of_the_command_line() -> None:
    assert [OnExist(word) for word in ("skip-same", "rename", "overwrite", "fail")] == [*OnExist]
